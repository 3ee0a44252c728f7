"""Knowledge distillation on embeddings of sentences; needs no labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers._teacher import TeacherModifier
from obert_modifiers.modifiers.keys import Key, between, recipe_modifier

if TYPE_CHECKING:
    from torch import Tensor

    from obert_modifiers.modifiers._teacher import Inputs

_SAME = 1e-6  # below it a distance is rounding


@recipe_modifier(
    order="hardness cosine_weight squared_weight similarity_weight start_epoch"
    " end_epoch"
)
class EmbeddingDistillationModifier(TeacherModifier):
    """Train on a teacher's embeddings, ``(1 - h) * task + h * distance``.

    The distance is ``c * (1 - cos) + s * squared + m * similarity + w * hidden``, each
    the mean over the batch: the cosine and the squared distance of a sentence's two
    embeddings, the squared error of the cosines among the sentences of a batch (of a
    process), and that of the hidden states after the layers.
    :mod:`obert_modifiers.core.embedding` and, for hidden states,
    :func:`~obert_modifiers.core.distillation.square_head_losses` have the definitions.
    Teachers of another width have ``similarity_weight`` only.

    Hooks run in the order of
    :class:`~obert_modifiers.modifiers._teacher.TeacherModifier`.

    Sample YAML::

        !EmbeddingDistillationModifier
            hardness: 1.0
            cosine_weight: 1.0
            squared_weight: 1.0
            similarity_weight: 1.0
            teacher: path/to/teacher
    """

    distils = "sentence_embedding"

    hardness = TeacherModifier.hardness.but(default=1.0).means(
        "Weight h of the distillation loss, in [0, 1]; texts without labels have no "
        "other."
    )
    cosine_weight = Key(rules.NOT_NEGATIVE, 1.0, later=True).means(
        "Weight c of 1 - cos of student and teacher."
    )
    squared_weight = Key(rules.NOT_NEGATIVE, 1.0, later=True).means(
        "Weight s of the squared distance of both."
    )
    similarity_weight = Key(rules.NOT_NEGATIVE, 1.0, later=True).means(
        "Weight m of the squared error of the cosines among the sentences of a batch."
    )
    hidden_weight = TeacherModifier.hidden_weight.but().means(
        "Weight w of the loss on hidden states; 0 leaves it out."
    )

    @between("cosine_weight", "squared_weight", "similarity_weight", "hidden_weight")
    def _something(*weights: float) -> Iterator[Fault]:
        if not any(weights):
            said = "and every other weight is 0", "one above it", "write 1.0"
            yield Fault.of(Rule.NEEDS, "cosine_weight", 0, *said)

    def batch_loss(
        self,
        student_outputs: Any,
        student_inputs: Inputs,
        teacher_inputs: Inputs | None = None,
    ) -> Tensor:
        """Compute the distance to the teacher over a batch."""
        found = core.embedding.embedding_of(student_outputs)
        outputs = self.ask_teacher(found.device, student_inputs, teacher_inputs)
        loss = self._rows(student_outputs, outputs, student_inputs).mean()
        if self._similarity_weight:
            theirs = core.embedding.embedding_of(outputs)
            similarity = core.embedding.similarity_loss(found, theirs)
            loss = loss + self._similarity_weight * similarity
        return loss

    def sample_losses(
        self, student_outputs: Any, student_inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """Compute the distance of each sample, ``(k,)``, without the similarities.

        Raises:
            ValueError: If the student is the teacher still: the loss is 0, at its
                minimum, and so is every gradient.
        """
        device = core.embedding.embedding_of(student_outputs).device
        outputs = self.ask_teacher(device, student_inputs)
        losses = self._rows(student_outputs, outputs, student_inputs)
        if float(losses.detach().abs().max()) < _SAME:
            raise ValueError(
                f"distance to the teacher={float(losses.detach().max()):.1g} is 0 to "
                "rounding: the student is still its teacher, where the loss has its "
                "minimum and the Fisher of the loss is zero; expected the Fisher of "
                "the embeddings, which needs no loss; write fisher_loss: task"
            )
        return losses

    def _rows(self, student: Any, teacher: Any, inputs: Any) -> Tensor:
        ours, theirs = (core.embedding.embedding_of(one) for one in (student, teacher))
        rows = ours.new_zeros(len(ours))
        if self._cosine_weight:
            found = core.embedding.cosine_losses(ours, theirs)
            rows = rows + self._cosine_weight * found
        if self._squared_weight:
            found = core.embedding.squared_losses(ours, theirs)
            rows = rows + self._squared_weight * found
        if self._hidden_weight:
            mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
            known = core.distillation
            states = [
                known.Outputs((), hidden=known.hidden_of(one))
                for one in (student, teacher)
            ]
            layers = self._layer_map or "uniform"
            found = known.hidden_losses(*states, layers, mask)
            rows = rows + self._hidden_weight * found
        return rows
