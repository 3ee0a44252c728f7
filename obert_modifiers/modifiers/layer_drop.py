"""Layer dropping: a shallower model before anything else happens."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import CHOICES
from obert_modifiers.host.bases import (
    ModifierProp,
    PyTorchModifierYAML,
    ScheduledModifier,
    SparsificationTypes,
    check_initialized,
    recipe_key,
)
from obert_modifiers.modifiers._states import as_tensors, from_tensors
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers._validate import as_choice, as_count

if TYPE_CHECKING:
    from torch import Tensor, nn

_STATE_KEY = "kept"


@PyTorchModifierYAML()
class LayerDropModifier(ScheduledModifier):
    """Keep some of the encoder's layers and drop the others, for good.

    oBERT section 4.3, "direct" layer dropping; oBERTa section 3. Without ``choice``
    or a list, three layers are the first, the middle and the last, and any other
    number is interleaved: 0, 6, 11 and 0, 2, 4, 6, 8, 11 of twelve. The model's
    configuration says how many are left, so that the saved model loads without us.

    Order of its hooks: ``initialize`` drops the layers, before any other modifier
    looks at the model: ``RecipeManager`` calls ``apply_structure`` first, and
    SparseML's manager sorts it before all modifiers that end. It does so once for a
    model. ``optimizer_pre_step`` refuses an optimizer that was made before.

    Sample YAML::

        !LayerDropModifier
            keep: 3
            choice: first_middle_last
    """

    keep = recipe_key("keep", "Number of layers that stay, or their indices.")
    choice = recipe_key("choice", "first_middle_last or interleaved.")
    drop = recipe_key("drop", "Names of the layers that go.")

    def __init__(
        self,
        keep: int | list[int] | None = None,
        choice: str | None = None,
        drop: Sequence[str] | None = None,
    ) -> None:
        """Check and keep the recipe's keys.

        Args:
            keep: How many layers stay, at least 2, or a list of their indices,
                counted from 0.
            choice: ``first_middle_last``, for three layers, or ``interleaved``.
            drop: In the place of ``keep``, the full names of the layers that go, as
                ``bert.encoder.layer.1``.

        Raises:
            ValueError: If a value breaks its rule.
        """
        # SparseML initializes in the order of end_epoch, -1 last of all.
        super().__init__(start_epoch=-1.0, end_epoch=0.0, end_comparator=-1)
        self._drop = _as_drop(drop, keep, choice)
        self._keep = None if self._drop else _as_keep(keep)
        self._choice = choice
        if choice is not None:
            as_choice("choice", choice, CHOICES)
            if isinstance(self._keep, list):
                raise ValueError(
                    f"choice={choice} and a list in keep are both given; expected one "
                    "of them; leave choice out"
                )
            if choice == CHOICES[0] and self._keep != 3:
                raise ValueError(
                    f"choice={choice} is for three layers, not keep={self._keep}; "
                    "expected keep: 3; write choice: interleaved"
                )
        self._kept: tuple[int, ...] | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._gone: list[weakref.ref[nn.Parameter]] = []

    @ModifierProp(serializable=False)
    def sparsification_types(self) -> list[SparsificationTypes]:
        """Kinds of compression that this modifier applies."""  # noqa: DOC201 property
        return [SparsificationTypes.structured]

    @property
    def kept(self) -> tuple[int, ...] | None:
        """Indices of the layers that stayed; None before they are dropped."""
        return self._kept

    def props(self, only_serializable: bool, **kwargs: bool) -> dict[str, Any]:
        """Collect the recipe's keys; it has no epochs to choose.

        Args:
            only_serializable: True for the keys that go into YAML alone.
            **kwargs: SparseML's choice of format.

        Returns:
            Value by key.
        """
        found = super().props(only_serializable, **kwargs)
        if not only_serializable:
            return found
        keys = ("keep", "choice", "drop")
        return {k: v for k, v in found.items() if k in keys and v is not None}

    def plan(self, model: nn.Module) -> tuple[int, ...]:
        """Choose the layers of a model that stay; changes nothing.

        Args:
            model: The model, wrapped or not.

        Returns:
            Their indices; those it kept already, if it has dropped the others.
        """
        model = unwrap(model)
        if self._applied_to(model):
            return self._kept
        return self._plan(model)

    def _plan(self, model: nn.Module) -> tuple[int, ...]:
        keep = (
            self._keep
            if self._drop is None
            else core.layer_drop.layers_left(model, self._drop)
        )
        return core.layer_drop.plan_layers(model, keep, self._choice)

    def adopt(self, model: nn.Module) -> None:
        """Take a model that was saved after its layers were dropped: drop no more.

        Args:
            model: The model, wrapped or not.
        """
        model = unwrap(model)
        self._kept = tuple(range(len(core.layer_drop.find_layers(model)[1])))
        self._model = weakref.ref(model)

    def _applied_to(self, model: nn.Module) -> bool:
        return self._model is not None and self._model() is model

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Drop the layers, if this model still has them.

        Args:
            module: The model, not wrapped for distributed training.
            epoch: Epoch to start from.
            loggers: SparseML loggers.
            **kwargs: What the caller offers to all modifiers.

        Raises:
            RuntimeError: If the model is wrapped for distributed training.
        """
        from torch.nn.parallel import DistributedDataParallel

        super().initialize(module, epoch, loggers, **kwargs)
        model = unwrap(module)
        if self._applied_to(model):
            return
        if isinstance(module, DistributedDataParallel):
            raise RuntimeError(
                "model=DistributedDataParallel still waits for the gradients of layers "
                "that are to be dropped; expected the model before it is wrapped; call "
                "RecipeManager.apply_structure first"
            )
        kept = self._plan(model)
        dropped = core.layer_drop.drop_layers_(model, kept)
        self._kept = dropped.kept
        self._model = weakref.ref(model)
        self._gone = [weakref.ref(parameter) for parameter in dropped.parameters]

    def optimizer_pre_step(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Refuse an optimizer that holds dropped layers, at the first step.

        Args:
            module: The model.
            optimizer: The optimizer.
            epoch: Progress in epochs.
            steps_per_epoch: Optimizer steps in an epoch.

        Raises:
            RuntimeError: If the optimizer was made before the layers were dropped.
        """
        super().optimizer_pre_step(module, optimizer, epoch, steps_per_epoch)
        gone = {id(one) for ref in self._gone if (one := ref()) is not None}
        if not gone:
            return
        groups = getattr(optimizer, "param_groups", [])
        stale = sum(id(one) in gone for group in groups for one in group["params"])
        if stale:
            raise RuntimeError(
                f"optimizer={type(optimizer).__name__} holds {stale} parameters of "
                "dropped layers; expected one that was made after the layers were "
                "dropped; call RecipeManager.apply_structure before making it"
            )
        self._gone = []

    def finalize(
        self, module: nn.Module | None = None, reset_loggers: bool = True, **kwargs: Any
    ) -> None:
        """Let go of the model; the layers stay away.

        Args:
            module: The model.
            reset_loggers: True forgets the loggers.
            **kwargs: What the caller offers to all modifiers.
        """
        super().finalize(module, reset_loggers, **kwargs)
        self._gone = []

    def state_dict(self) -> dict[str, Tensor]:
        """Return which layers stayed, and where the schedule stands."""
        return as_tensors({
            _STATE_KEY: self._kept,
            "started": self._started,
            "ended": self._ended,
        })

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Check that the state is that of a model with the same layers.

        Args:
            state_dict: As from :meth:`state_dict`.
            strict: Ignored: other layers are always an error.

        Raises:
            RuntimeError: If the modifier is not initialized.
            ValueError: If other layers were kept.
        """
        check_initialized(self)
        state_dict = from_tensors(state_dict)
        if tuple(state_dict[_STATE_KEY]) != self._kept:
            raise ValueError(
                f"state keeps the layers {list(state_dict[_STATE_KEY])}, the model has "
                f"{list(self._kept)}; expected the same; resume with the model and the "
                "recipe that the state was saved with"
            )
        self._started, self._ended = state_dict["started"], state_dict["ended"]


def _as_keep(value: Sequence[int] | Any) -> int | list[int]:
    if not isinstance(value, (list, tuple)):
        count = as_count("keep", value)
        if count < 2:
            raise ValueError(
                f"keep={count} does not say which layer; expected 2 or more; write a "
                "list, as in keep: [0]"
            )
        return count
    whole = all(type(one) is int and one >= 0 for one in value)
    if not whole or not value or list(value) != sorted(set(value)):
        raise ValueError(
            f"keep={list(value)} is not a list of layers; expected different indices "
            "from 0 on, in increasing order; write [0, 6, 11]"
        )
    return list(value)


def _as_drop(
    drop: Sequence[str] | None, keep: int | list[int] | None, choice: str | None
) -> list[str] | None:
    if drop is None:
        if keep is None:
            raise ValueError(
                "keep is missing; expected a number of layers, or drop with the names "
                "of those that go; write keep: 3"
            )
        return None
    if keep is not None or choice is not None:
        raise ValueError(
            f"drop={drop} and keep or choice are both given; expected one of them; "
            "leave drop out"
        )
    named = isinstance(drop, (list, tuple)) and drop
    if not named or not all(isinstance(name, str) for name in drop):
        raise ValueError(
            f"drop={drop} is not a list of names; expected layers that the model has; "
            "write [bert.encoder.layer.1]"
        )
    return list(drop)
