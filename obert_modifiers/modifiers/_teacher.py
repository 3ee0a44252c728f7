"""What modifiers that learn from a teacher share: the teacher, and when."""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.host.bases import ScheduledModifier, SparsificationTypes
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers.keys import Key, KeyedModifier, between
from obert_modifiers.modifiers.shared_keys import SharedKeys, ends_later

if TYPE_CHECKING:
    from torch import Tensor, nn

    # By name, one tensor, or tensors in the order of the model's arguments.
    Inputs = Mapping[str, Tensor] | Tensor | Sequence[Tensor]

_SWITCH = "output_hidden_states"
_TOKEN_TYPES = "token_type_ids"

_LOGGER = logging.getLogger(__name__)


class TeacherModifier(KeyedModifier, ScheduledModifier):
    """Base of modifiers that learn from a teacher between two epochs.

    The teacher is in eval mode, takes no gradient and keeps its own dtype.

    Order of its hooks: ``initialize`` takes the teacher (``distillation_teacher``, a
    module, ``"self"`` for a copy of the model as it is then, or ``"disable"``) and,
    with ``hidden_weight``, has the student return its hidden states
    (``config.output_hidden_states``); ``loss_update`` runs the teacher on the
    student's inputs and mixes the losses between ``start_epoch`` and ``end_epoch``;
    ``finalize`` lets go of the teacher and sets the configuration back.

    Attributes:
        distils: The output that it learns, as `obert_modifiers.core.outputs` names it.
    """

    kind = SparsificationTypes.distillation
    replaceable = True
    distils: str

    hardness = Key(rules.FRACTION, 0.5, later=True).means(
        "Weight h of the distillation loss, in [0, 1]."
    )
    start_epoch = SharedKeys.start_epoch.but(default=-1.0, later=True).means(
        "First epoch; -1 for the start."
    )
    end_epoch = SharedKeys.end_epoch.but(default=-1.0, later=True).means(
        "Epoch from which the task's loss is used again; -1 for never."
    )
    teacher = Key(
        rules.name("a folder or hub id, self or disable"), None, later=True
    ).means(
        "Folder or hub id of the teacher, loaded by the caller that runs the recipe; "
        "self or disable. A teacher passed to initialize takes precedence."
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
        self.compare(getattr(self._teacher_model, "config", None))
        if self._hidden_weight > 0.0 and config is not None:
            before = getattr(config, _SWITCH, False)
            if not before:  # else another modifier may have switched it, and back
                self._switched = (config, before)
                setattr(config, _SWITCH, True)

    def compare(self, theirs: Any) -> None:
        """Hold the teacher's configuration against the student's; nothing here."""

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

        ``student_outputs`` are what the model returned.
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
        distilled = self.batch_loss(student_outputs, student_inputs, teacher_inputs)
        return core.distillation.mix_losses(loss, distilled, self._hardness)

    @abstractmethod
    def batch_loss(
        self,
        student_outputs: Any,
        student_inputs: Inputs,
        teacher_inputs: Inputs | None = None,
    ) -> Tensor:
        """Compute the distillation loss of a batch."""

    @abstractmethod
    def sample_losses(
        self, student_outputs: Any, student_inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """Compute the distillation loss of each sample, ``(k,)``."""

    def ask_teacher(
        self, device: Any, student_inputs: Inputs, teacher_inputs: Inputs | None = None
    ) -> Any:
        """Run the teacher on a device; returns its outputs."""
        import torch

        teacher_model = self._teacher_model
        inputs = self._teacher_inputs(student_inputs, teacher_inputs)
        if next(teacher_model.parameters()).device != device:
            teacher_model.to(device)
        hidden = self._hidden_weight > 0.0
        asked = {_SWITCH: True} if hidden and hasattr(teacher_model, "config") else {}
        with torch.no_grad():
            return _forward(teacher_model, inputs, asked)

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
