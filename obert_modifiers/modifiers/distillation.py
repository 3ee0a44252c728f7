"""Knowledge distillation on the outputs of a task and on hidden states."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.host.bases import ScheduledModifier, SparsificationTypes
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers._classes import class_names, order_for
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers.keys import Key, KeyedModifier, between, recipe_modifier
from obert_modifiers.modifiers.shared_keys import SharedKeys, ends_later

if TYPE_CHECKING:
    from torch import Tensor, nn

    from obert_modifiers.core.distillation import Outputs, RowLosses

    # By name, one tensor, or tensors in the order of the model's arguments.
    Inputs = Mapping[str, Tensor] | Tensor | Sequence[Tensor]

_SWITCH = "output_hidden_states"
_TOKEN_TYPES = "token_type_ids"

_LOGGER = logging.getLogger(__name__)


@recipe_modifier()
class LogitDistillationModifier(KeyedModifier, ScheduledModifier):
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
    The teacher is in eval mode, takes no gradient and keeps its own dtype. Where its
    configuration names the student's classes in another order, its logits are brought
    into the student's.

    Order of its hooks: ``initialize`` takes the teacher (``distillation_teacher``, a
    module, ``"self"`` for a copy of the model as it is then, or ``"disable"``) and,
    with ``hidden_weight``, has the student return its hidden states
    (``config.output_hidden_states``); ``loss_update`` runs the teacher on the
    student's inputs and mixes the losses between ``start_epoch`` and ``end_epoch``;
    ``finalize`` lets go of the teacher and sets the configuration back.

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

    kind = SparsificationTypes.distillation
    replaceable = True

    hardness = Key(rules.FRACTION, 0.5, later=True).means(
        "Weight h of the distillation loss, in [0, 1]."
    )
    temperature = Key(rules.POSITIVE, 2.0, later=True).means(
        "Softening T of both outputs."
    )
    start_epoch = SharedKeys.start_epoch.but(default=-1.0, later=True).means(
        "First epoch; -1 for the start."
    )
    end_epoch = SharedKeys.end_epoch.but(default=-1.0, later=True).means(
        "Epoch from which on the task's loss is back; -1 for never."
    )
    mask_padding = Key(rules.FLAG, True, later=True).means(
        "False counts padding too, as SparseML's DistillationModifier does."
    )
    teacher = Key(
        rules.name("a folder or hub id, self or disable"), None, later=True
    ).means(
        "Folder or hub id of the teacher, which whoever runs the recipe loads; self or "
        "disable. A teacher given to initialize comes before it."
    )
    hidden_weight = Key(rules.NOT_NEGATIVE, 0.0, later=True).means(
        "Weight w of the loss on hidden states, beside that on logits; 0 leaves it out."
    )
    layer_map = Key(rules.LAYER_MAP, None, later=True).means(
        "uniform (the default), last, or for each layer of the student the index of "
        "the teacher's, counted from 0."
    )
    teacher_input_keys = Key(rules.INPUTS, None, later=True).means(
        "Names of the student's inputs that the teacher gets, for one that takes "
        "fewer; None for all but the labels."
    )
    mask_unlabelled = Key(rules.FLAG, None, later=True, silent=True).means(
        "Whether tokens whose label is -100 are left out; false counts them, as "
        "SparseML does; without a value as mask_padding, which meant both before this "
        "key."
    )
    _ends = ends_later("epochs to distil in, or -1 for the end of the training")

    @between("layer_map", "hidden_weight")
    def _weighed(layers: Any, weight: float) -> Iterator[Fault]:
        if layers is not None and weight == 0.0:
            said = "is given without hidden_weight", "both", "write hidden_weight: 1.0"
            yield Fault.of(Rule.NEEDS, "layer_map", layers, *said)

    def begin(self) -> None:
        """Have no teacher yet."""
        self._teacher_model: nn.Module | None = None
        self._digest: str | None = None
        self._switched: tuple[Any, Any] | None = None
        self._config: Any = None  # the student's
        self._order: list[int] | None = None

    def initialize(
        self, module, epoch=0, loggers=None, distillation_teacher=None, **kwargs
    ) -> None:
        """Take the teacher: a model, ``"self"`` or ``"disable"``.

        None stands for the recipe's ``teacher``. An error if the teacher is something
        else or the student itself, or if its outputs stand for something else.
        """
        from torch import nn

        super().initialize(module, epoch, loggers, **kwargs)
        student, given = unwrap(module), distillation_teacher
        given = (self.teacher or "disable") if given is None else given
        if isinstance(given, nn.Module):
            if unwrap(given) is student:
                raise ValueError(
                    "distillation_teacher is the student itself; expected another "
                    "model; pass self for a copy of it"
                )
            self._teacher_model = given
        elif given == "self":
            self._teacher_model = deepcopy(student)
        elif given == "disable":
            _LOGGER.warning("distillation_teacher=disable: training on the task's loss")
            return
        else:
            raise ValueError(
                f"distillation_teacher={given} is unknown; expected a "
                "model, self or disable; pass a loaded model"
            )
        self._teacher_model.eval().requires_grad_(False)
        self._digest = None
        config = self._config = getattr(student, "config", None)
        self._compare(getattr(self._teacher_model, "config", None))
        if self._hidden_weight > 0.0 and config is not None:
            self._switched = (config, getattr(config, _SWITCH, False))
            setattr(config, _SWITCH, True)

    def _compare(self, theirs: Any) -> None:
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

    def active(self, epoch: float) -> bool:
        """Tell whether the loss is distilled at an epoch."""
        ended = 0.0 <= self.end_epoch <= epoch
        begun = epoch >= self.start_epoch and not ended
        return begun and self._teacher_model is not None

    def loss_update(
        self,
        loss,
        module,
        optimizer,
        epoch,
        steps_per_epoch,
        student_outputs=None,
        student_inputs=None,
        teacher_inputs=None,
        **kwargs,
    ) -> Tensor:
        """Mix the distillation loss into the loss of a batch, between the epochs.

        ``student_outputs`` have ``logits``, or are a tuple that starts with them.
        ``student_inputs`` are inputs by name, of which the labels are not shown to the
        teacher; as in SparseML also a tensor, or tensors in the order of the model's
        arguments, with which no padding is known and every row counts.
        ``teacher_inputs`` are the teacher's own, of the same samples, where they are
        others. An error if outputs or inputs are missing.
        """
        where = module, optimizer, epoch, steps_per_epoch
        loss = super().loss_update(loss, *where, **kwargs)
        if not self.active(epoch):
            return loss
        if student_outputs is None or student_inputs is None:
            raise ValueError(
                "student_outputs and student_inputs are missing; expected both for "
                "distillation; pass them to loss_update"
            )
        rows, hidden = self._losses(student_outputs, student_inputs, teacher_inputs)
        distilled = rows.mean()
        if hidden is not None:
            distilled = distilled + self._hidden_weight * hidden.mean()
        return core.distillation.mix_losses(loss, distilled, self._hardness)

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
        import torch

        teacher_model = self._teacher_model
        inputs = self._teacher_inputs(student_inputs, teacher_inputs)
        student = core.distillation.read_outputs(student_outputs)
        device = student.logits[0].device
        if next(teacher_model.parameters()).device != device:
            teacher_model.to(device)
        hidden = self._hidden_weight > 0.0
        asked = {_SWITCH: True} if hidden and hasattr(teacher_model, "config") else {}
        with torch.no_grad():
            found = _forward(teacher_model, inputs, asked)
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
        if not hidden:
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

    def _teacher_inputs(self, student: Inputs, own: Inputs | None) -> Inputs:
        keys, begins = self._teacher_input_keys, core.outputs.TEACHERS_OWN
        if isinstance(student, Mapping):
            extra = {k: v for k, v in student.items() if k.startswith(begins)}
            student = {k: v for k, v in student.items() if k not in extra}
            student |= {k.removeprefix(begins): v for k, v in extra.items()}
        if own is None and keys is not None:
            if not isinstance(student, Mapping):
                raise ValueError(
                    f"teacher_input_keys={keys} names inputs of a "
                    f"{type(student).__name__}; expected inputs by name; pass a dict "
                    "as student_inputs, or leave the key out"
                )
            missing = [key for key in keys if key not in student]
            if missing:
                raise ValueError(
                    f"teacher_input_keys={keys} names {missing[0]}, which the student "
                    f"does not get; expected some of {', '.join(student)}; correct it"
                )
            return {key: student[key] for key in keys}
        shown = student if own is None else own
        if not isinstance(shown, Mapping):
            return shown
        taken = inspect.signature(self._teacher_model.forward).parameters
        left_out = set(core.outputs.LABELS)
        if _TOKEN_TYPES not in taken and "input_ids" in taken:  # as in DistilBERT
            left_out.add(_TOKEN_TYPES)
        return {k: v for k, v in shown.items() if k not in left_out}

    def own_state(self) -> dict[str, Any]:
        """Return which teacher there is, by a hash that is taken once.

        Its weights are not in it: whoever resumes passes the same teacher, for ``self``
        the model as it was when the training began.
        """
        return {"teacher": self._hash()}

    def _hash(self) -> str | None:
        if self._teacher_model is None:
            return None
        digest_of = core.distributed.identity.digest_of
        self._digest = self._digest or digest_of(self._teacher_model)
        return self._digest

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Check that the teacher is the same."""
        known, own = state["teacher"], self._hash()
        if known != own:
            raise ValueError(
                f"distillation_teacher has the hash {str(own)[:12]}, that of the state "
                f"{str(known)[:12]}; expected the teacher that the training began "
                "with; pass the same one, and for self the model as it was at the start"
            )

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        """Let go of the teacher, and set the student's configuration back."""
        super().finalize(module, reset_loggers, **kwargs)
        self._teacher_model = self._config = None
        if self._switched is not None:
            config, before = self._switched
            setattr(config, _SWITCH, before)
            self._switched = None


def _forward(model: nn.Module, inputs: Inputs, options: Mapping[str, Any]) -> Any:
    from torch import Tensor

    if isinstance(inputs, Mapping):
        return model(**inputs, **options)
    ordered = (inputs,) if isinstance(inputs, Tensor) else inputs
    return model(*ordered, **options)
