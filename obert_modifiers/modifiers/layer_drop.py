"""Layer dropping: a shallower model before anything else happens."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import CHOICES, MEASURED
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.host.bases import ScheduledModifier, SparsificationTypes
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers.keys import (
    Key,
    KeyedModifier,
    Values,
    between,
    recipe_modifier,
)

if TYPE_CHECKING:
    from torch import nn


_LOGGER = logging.getLogger(__name__)


@recipe_modifier()
class LayerDropModifier(KeyedModifier, ScheduledModifier):
    """Keep some of the encoder's layers and drop the others, for good.

    oBERT section 4.3, "direct" layer dropping; oBERTa section 3. Without ``choice``
    or a list, three layers are the first, the middle and the last, and any other
    number is interleaved: 0, 6, 11 and 0, 2, 4, 6, 8, 11 of twelve. With ``choice:
    measured`` the layer goes whose absence leaves the lowest loss of training samples,
    one after the other: for a model that is trained for the task. The model's
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

    kind = SparsificationTypes.structured
    kept: tuple[int, ...] | None = None  # indices of the layers that stayed

    keep = Key(rules.LAYERS, None).means(
        "How many layers stay, or a list of their indices, counted from 0; 1 only if "
        "they are measured."
    )
    choice = Key(rules.choice(*CHOICES), None).means(
        "first_middle_last, for three layers; interleaved; or measured, for a trained "
        "model: one after the other goes without which the loss is lowest."
    )
    drop = Key(rules.LAYER_NAMES, None).means(
        "Instead of keep, the full names of the layers to drop, such as "
        "bert.encoder.layer.1."
    )

    @between("keep", "choice", "drop")
    def _go_together(
        keep: Any, choice: str | None, drop: list[str] | None
    ) -> Iterator[Fault]:
        if drop is not None:
            if keep is not None or choice is not None:
                said = (
                    "and keep or choice are both given",
                    "one of them",
                    "leave it out",
                )
                yield Fault.of(Rule.BOTH, "drop", drop, *said)
        elif keep is None:
            said = "keep is missing", "a number of layers, or drop", "write keep: 3"
            yield Fault(Rule.MISSING, "keep", None, *said)
        elif keep == 1 and choice != MEASURED:
            said = (
                "does not say which layer",
                "2 or more",
                f"write a list, as in keep: [0], or choice: {MEASURED}",
            )
            yield Fault.of(Rule.LAYERS, "keep", keep, *said)
        elif choice is not None and isinstance(keep, list):
            said = "and a list in keep are both given", "one of them", "leave it out"
            yield Fault.of(Rule.BOTH, "choice", choice, *said)
        elif choice == CHOICES[0] and keep != 3:
            broken = f"is for three layers, not keep={keep}"
            said = broken, "keep: 3", f"write choice: {CHOICES[1]}"
            yield Fault.of(Rule.LAYERS, "choice", choice, *said)

    @classmethod
    def derive(cls, values: Values) -> None:
        """It has no epochs to choose."""
        # The host initializes in the order of end_epoch, -1 last of all.
        values.update(start_epoch=-1.0, end_epoch=0.0)

    def begin(self) -> None:
        """Have no model yet."""
        self._model: weakref.ref[nn.Module] | None = None
        self._gone: list[weakref.ref[nn.Parameter]] = []

    def plan(self, model: nn.Module) -> tuple[int, ...]:
        """Choose the layers of a model that stay; changes nothing."""
        model, keep = unwrap(model), self._keep
        if self._applied_to(model):
            return self.kept
        if self._drop is not None:
            keep = core.layer_drop.layers_left(model, self._drop)
        return core.layer_drop.plan_layers(model, keep, self._choice)

    def adopt(self, model: nn.Module) -> None:
        """Take a model that was saved after its layers were dropped: drop no more."""
        model = unwrap(model)
        layers = core.layer_drop.find_layers(model, least=1)[1]
        self.kept = tuple(range(len(layers)))
        self._model = weakref.ref(model)

    def _applied_to(self, model: nn.Module) -> bool:
        return self._model is not None and self._model() is model

    def initialize(self, module, epoch=0, loggers=None, **kwargs) -> None:
        """Drop the layers, if this model still has them."""
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
        kept = self.plan(model)
        if self._choice == MEASURED:
            kept = self._measured(model, kwargs.get("calibration_loss"))
        dropped = core.layer_drop.drop_layers_(model, kept)
        self.kept = dropped.kept
        self._model = weakref.ref(model)
        self._gone = [weakref.ref(parameter) for parameter in dropped.parameters]

    def _measured(self, model: nn.Module, loss: Any) -> tuple[int, ...]:
        if loss is None:
            raise ValueError(
                "choice=measured has no samples to measure on; expected those of the "
                "training; drop layers with `obert train` or obert_modifiers.training, "
                "or write the indices of the layers into keep"
            )
        kept = core.layer_drop.measure_layers(model, self._keep, loss)
        _LOGGER.info("choice=measured: the layers %s stay", list(kept))
        return core.layer_drop.plan_layers(model, kept)

    def optimizer_pre_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Refuse an optimizer that holds dropped layers, at the first step."""
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

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        """Let go of the model; the layers stay away."""
        super().finalize(module, reset_loggers, **kwargs)
        self._gone = []

    def own_state(self) -> dict[str, Any]:
        """Return which layers stayed."""
        return {"kept": self.kept}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Check that the state is that of a model with the same layers."""
        if tuple(state["kept"]) != self.kept:
            raise ValueError(
                f"state keeps the layers {list(state['kept'])}, the model has "
                f"{list(self.kept)}; expected the same; resume with the model and the "
                "recipe that the state was saved with"
            )
