"""Knowledge distillation on the logits of a task."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.distillation import distillation_loss, mix_losses
from obert_modifiers.modifiers._host import (
    ModifierProp,
    PyTorchModifierYAML,
    ScheduledModifier,
    SparsificationTypes,
    recipe_key,
)
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers._validate import as_float, as_fraction, as_positive

_LOGGER = logging.getLogger(__name__)


@PyTorchModifierYAML()
class LogitDistillationModifier(ScheduledModifier):
    """Train on a teacher's logits, ``(1 - h) * task + h * KL`` at a temperature.

    GMP★ section 2.1; oBERT and GMP★ use a hardness of 1.0 and temperatures of 2.0 and
    5.5. The teacher is in eval mode and takes no gradient.

    Order of its hooks: ``initialize`` takes the teacher (``distillation_teacher``, a
    module, ``"self"`` for a copy of the model as it is then, or ``"disable"``);
    ``loss_update`` runs it on the student's inputs and mixes the losses between
    ``start_epoch`` and ``end_epoch``; ``finalize`` lets go of it.

    Sample YAML::

        !LogitDistillationModifier
            hardness: 1.0
            temperature: 5.5
            start_epoch: 0.0
            end_epoch: -1.0
    """

    hardness = recipe_key("hardness", "Weight h of the distillation loss.")
    temperature = recipe_key("temperature", "Softening T of both outputs.")

    def __init__(
        self,
        hardness: float = 0.5,
        temperature: float = 2.0,
        start_epoch: float = -1.0,
        end_epoch: float = -1.0,
    ) -> None:
        """Check and keep the recipe's keys.

        Args:
            hardness: Weight h of the distillation loss, in [0, 1].
            temperature: Softening T, above 0.
            start_epoch: First epoch; -1 for the start.
            end_epoch: Epoch from which on the task's loss is back; -1 for never.
        """
        super().__init__(
            start_epoch=as_float("start_epoch", start_epoch),
            end_epoch=as_float("end_epoch", end_epoch),
            end_comparator=-1,
        )
        self._hardness = as_fraction("hardness", hardness)
        self._temperature = as_positive("temperature", temperature)
        self._teacher: nn.Module | None = None

    @ModifierProp(serializable=False)
    def sparsification_types(self) -> list[SparsificationTypes]:
        """Kinds of compression that this modifier applies."""  # noqa: DOC201 property
        return [SparsificationTypes.distillation]

    def initialize(
        self,
        module: nn.Module,
        epoch: float = 0,
        loggers: Any = None,
        distillation_teacher: nn.Module | str = "disable",
        **kwargs: Any,
    ) -> None:
        """Take the teacher.

        Args:
            module: The student.
            epoch: Epoch to start from.
            loggers: SparseML loggers.
            distillation_teacher: A model, ``"self"`` or ``"disable"``.
            **kwargs: What the caller offers to all modifiers.

        Raises:
            ValueError: If the teacher is neither.
        """
        super().initialize(module, epoch, loggers, **kwargs)
        if isinstance(distillation_teacher, nn.Module):
            self._teacher = distillation_teacher
        elif distillation_teacher == "self":
            self._teacher = deepcopy(unwrap(module))
        elif distillation_teacher == "disable":
            _LOGGER.warning("distillation_teacher=disable: training on the task's loss")
            return
        else:
            raise ValueError(
                f"distillation_teacher={distillation_teacher} is unknown; expected a "
                "model, self or disable; pass a loaded model"
            )
        self._teacher.eval().requires_grad_(False)

    def active(self, epoch: float) -> bool:
        """Tell whether the loss is distilled at an epoch.

        Args:
            epoch: Progress in epochs.

        Returns:
            True between start and end, where there is a teacher.
        """
        ended = self.end_epoch >= 0.0 and epoch >= self.end_epoch
        return self._teacher is not None and epoch >= self.start_epoch and not ended

    def loss_update(
        self,
        loss: Tensor,
        module: nn.Module,
        optimizer: Any,
        epoch: float,
        steps_per_epoch: int,
        student_outputs: Any = None,
        student_inputs: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Mix the distillation loss into the loss of a batch.

        Args:
            loss: The task's loss, a mean over the batch.
            module: The student.
            optimizer: The optimizer.
            epoch: Progress in epochs.
            steps_per_epoch: Optimizer steps in an epoch.
            student_outputs: Outputs with ``logits``, or a tuple that starts with
                them.
            student_inputs: Inputs by name; ``labels`` are not shown to the teacher.
            **kwargs: What the caller offers to other modifiers.

        Returns:
            The mixed loss, or the task's loss outside the range of epochs.

        Raises:
            ValueError: If outputs or inputs are missing.
        """
        loss = super().loss_update(
            loss, module, optimizer, epoch, steps_per_epoch, **kwargs
        )
        if not self.active(epoch):
            return loss
        if student_outputs is None or student_inputs is None:
            raise ValueError(
                "student_outputs and student_inputs are missing; expected both for "
                "distillation; pass them to loss_update"
            )
        rows = self.sample_losses(student_outputs, student_inputs)
        return mix_losses(loss, rows.mean(), self._hardness)

    def sample_losses(
        self, student_outputs: Any, student_inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """Compute the distillation loss of each sample.

        Args:
            student_outputs: Outputs with ``logits``, or a tuple that starts with
                them.
            student_inputs: Inputs by name; ``labels`` are not shown to the teacher.

        Returns:
            ``(k,)``, with gradients to the student's outputs alone.
        """
        inputs = {k: v for k, v in student_inputs.items() if k != "labels"}
        student = _logits(student_outputs)
        if next(self._teacher.parameters()).device != student.device:
            self._teacher.to(student.device)
        with torch.no_grad():
            teacher = _logits(self._teacher(**inputs))
        return distillation_loss(student, teacher, self._temperature)

    def finalize(
        self, module: nn.Module | None = None, reset_loggers: bool = True, **kwargs: Any
    ) -> None:
        """Let go of the teacher.

        Args:
            module: The student.
            reset_loggers: True forgets the loggers.
            **kwargs: What the caller offers to all modifiers.
        """
        super().finalize(module, reset_loggers, **kwargs)
        self._teacher = None


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
