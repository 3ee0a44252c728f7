"""Knowledge distillation on the outputs of a task and on hidden states."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers._classes import class_names, order_for
from obert_modifiers.modifiers._teacher import TeacherModifier
from obert_modifiers.modifiers.keys import Key, recipe_modifier

if TYPE_CHECKING:
    from torch import Tensor

    from obert_modifiers.core.distillation import Outputs, RowLosses
    from obert_modifiers.modifiers._teacher import Inputs

_LOGGER = logging.getLogger(__name__)


@recipe_modifier(
    order="hardness temperature start_epoch end_epoch mask_padding teacher"
)
class LogitDistillationModifier(TeacherModifier):
    """Train on a teacher's outputs, ``(1 - h) * task + h * (KL + w * hidden)``.

    GMP★ section 2.1; oBERT and GMP★ use a hardness of 1.0 and temperatures of 2.0 and
    5.5. KL is the mean over rows of T^2 KL(teacher || student), where a row is a
    sample, a token, or the start or end logits of a sample over its positions, without
    padding (``mask_padding``) and tokens that have no label (``mask_unlabelled``): of
    masked language modelling those leave the masked tokens only, 15 %, where SparseML,
    and with it the papers, take all. For several labels at
    once (``problem_type: multi_label_classification``) it is the binary divergence, the
    mean over the labels; for numbers (one output, or ``problem_type: regression``) the
    squared error between the outputs, where the temperature has no meaning.
    :mod:`obert_modifiers.core.distillation` has the definitions. ``hidden_weight`` w
    adds a loss on the hidden states of the layers, for students with fewer of them.
    Where the teacher's configuration names the student's classes in another order, its
    logits are brought into the student's.

    Hooks run in the order of
    :class:`~obert_modifiers.modifiers._teacher.TeacherModifier`.

    Sample YAML::

        !LogitDistillationModifier
            hardness: 1.0
            temperature: 5.5
            start_epoch: 0.0
            end_epoch: -1.0
            teacher: path/to/teacher
            hidden_weight: 1.0
            layer_map: uniform
    """

    distils = "logits"

    temperature = Key(rules.POSITIVE, 2.0, later=True).means(
        "Softening T of both outputs."
    )
    mask_padding = Key(rules.FLAG, True, later=True).means(
        "False counts padding too, as SparseML's DistillationModifier does."
    )
    mask_unlabelled = Key(rules.FLAG, None, later=True, silent=True).means(
        "Whether tokens whose label is -100 are left out; false counts them, as "
        "SparseML does; without a value it is as mask_padding, which covered both "
        "before this key."
    )

    def begin(self) -> None:
        """Have no teacher yet."""
        super().begin()
        self._order: list[int] | None = None

    def compare(self, theirs: Any) -> None:
        """Hold the teacher's outputs against the student's, by the configurations."""
        own, other = (getattr(c, "problem_type", None) for c in (self._config, theirs))
        special = {core.outputs.REGRESSION, core.outputs.MULTI_LABEL}
        if None not in (own, other) and own != other and {own, other} & special:
            raise ValueError(
                f"teacher has problem_type={other}; expected the student's {own}; use "
                "one of the same task, or correct problem_type in its config.json"
            )
        names, others = class_names(self._config), class_names(theirs)
        order = order_for(names, others) if names else None
        self._order = None if order == list(range(len(names))) else order
        if self._order is not None:
            _LOGGER.info(
                "the teacher has the classes %s; its outputs are brought into the "
                "student's order %s",
                ", ".join(others),
                ", ".join(names),
            )

    def batch_loss(
        self,
        student_outputs: Any,
        student_inputs: Inputs,
        teacher_inputs: Inputs | None = None,
    ) -> Tensor:
        """Compute the distillation loss of a batch.

        ``student_outputs`` have ``logits``, or are a tuple that starts with them.
        """
        rows, hidden = self._losses(student_outputs, student_inputs, teacher_inputs)
        distilled = rows.mean()
        if hidden is not None:
            distilled = distilled + self._hidden_weight * hidden.mean()
        return distilled

    def sample_losses(
        self, student_outputs: Any, student_inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """Compute the distillation loss of each sample, ``(k,)``.

        For tokens it is the mean over the sample's own tokens that count, 0 where
        there are none, so that the mean over samples weighs tokens differently from
        :meth:`loss_update`, where each token counts the same. Gradients go to the
        student's outputs only.
        """
        rows, hidden = self._losses(student_outputs, student_inputs)
        if hidden is None:
            return rows.per_sample()
        return rows.per_sample() + self._hidden_weight * hidden

    def _losses(
        self,
        student_outputs: Any,
        student_inputs: Inputs,
        teacher_inputs: Inputs | None = None,
    ) -> tuple[RowLosses, Tensor | None]:
        """Run the teacher and compare: the outputs, and the hidden states if asked."""
        student = core.distillation.read_outputs(student_outputs)
        device = student.logits[0].device
        found = self.ask_teacher(device, student_inputs, teacher_inputs)
        teacher = self._in_order(core.distillation.read_outputs(found))
        known = student_inputs if isinstance(student_inputs, Mapping) else {}
        padding, unlabelled = self._mask_padding, self._mask_unlabelled
        unlabelled = padding if unlabelled is None else unlabelled
        mask = known.get("attention_mask") if padding else None
        rows = core.distillation.output_losses(
            student,
            teacher,
            self._temperature,
            attention_mask=mask,
            labels=known.get("labels") if padding or unlabelled else None,
            mask_unlabelled=unlabelled,
            problem=getattr(self._config, "problem_type", None),
        )
        if not self._hidden_weight:
            return rows, None
        layers = self._layer_map or "uniform"
        return rows, core.distillation.hidden_losses(student, teacher, layers, mask)

    def _in_order(self, outputs: Outputs) -> Outputs:
        order = self._order
        if order is None or outputs.over_positions:
            return outputs
        logits = tuple(
            one[..., order] if one.shape[-1] == len(order) else one
            for one in outputs.logits
        )
        return replace(outputs, logits=logits)
