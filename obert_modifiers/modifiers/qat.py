"""Quantization-aware training to INT8."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import WHOLE
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.host.bases import (
    SCHEDULE_KEY,
    ScheduledModifier,
    SparsificationTypes,
    check_initialized,
)
from obert_modifiers.modifiers._sampling import find_source
from obert_modifiers.modifiers._states import as_tensors, from_tensors
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers.keys import (
    Key,
    KeyedModifier,
    Values,
    between,
    recipe_modifier,
)
from obert_modifiers.modifiers.rules import FLAG, NUMBER, choice, names
from obert_modifiers.modifiers.shared_keys import SharedKeys, ends_later

if TYPE_CHECKING:
    from torch import Tensor, nn

    from obert_modifiers.core.pruning.sampling import GradientSource
    from obert_modifiers.core.quantization.scheme import Scheme

CALIBRATION_SAMPLES = 512  # of a model that is quantized without training

_LOGGER = logging.getLogger(__name__)


@recipe_modifier()
class QATModifier(KeyedModifier, ScheduledModifier):
    """Train with weights and activations rounded to 8 bits, as INT8 inference has them.

    oBERT appendix A.7: the embedding matrices, the linear layers of the encoder
    (attention and feed-forward) and that of the output; here the pooler's too. Weights
    are symmetric int8, activations (the inputs of the linear layers) asymmetric uint8
    with fixed ranges. Softmax, LayerNorm and GELU stay in floating point. Pruned
    weights stay exactly zero, and the masks of pruning modifiers stay in force.

    Order of its hooks: ``initialize`` finds the layers; ``update`` switches the
    quantization on at ``start_epoch``, before the optimizer step, and fixes the ranges
    at ``disable_observer_epoch``; ``optimizer_post_step`` averages ranges over
    processes and keeps weights within fixed ones; ``finalize`` fixes what still moves.
    Applied at once (an infinite epoch), it takes the ranges of activations as means
    over batches of the source of gradients, after pruning modifiers have pruned. The
    model stays quantized and its
    ``state_dict`` is that of a plain model; the scales are saved beside it by
    :func:`~obert_modifiers.core.quantization.scales.save_quantization`.

    Sample YAML::

        !QATModifier
            start_epoch: 0.0
            disable_observer_epoch: 5.0
            per_channel: false
            reduce_range: true
            quantize_attention_matmuls: false
    """

    kind = SparsificationTypes.quantization

    start_epoch = SharedKeys.start_epoch.but(
        default=0.0, meaning="Epoch at which quantization begins; -1 for the start."
    )
    end_epoch = SharedKeys.end_epoch.but(
        default=-1.0,
        meaning="Epoch at which all ranges are fixed at the latest; the model stays "
        "quantized. -1 for the end of the training.",
        later=True,
    )
    disable_observer_epoch = Key(
        NUMBER,
        None,
        "Epoch from which on ranges are fixed; None for end_epoch.",
        later=True,
    )
    freeze = Key(
        choice("all", "activations"),
        "all",
        "Which ranges disable_observer_epoch fixes: all, as in the paper, or "
        "activations, while the scales of weights go on following their largest value.",
        later=True,
    )
    per_channel = Key(
        FLAG,
        False,
        "True for a scale for each output of a linear layer, false for one for its "
        "weight. An embedding has one scale.",
    )
    reduce_range = Key(
        FLAG,
        True,
        "True keeps the weights of linear layers to -63 to 63, which every CPU sums "
        "exactly; false to -127 to 127, which kernels without VNNI may not.",
    )
    quantize_embeddings = Key(FLAG, True, "Whether embedding matrices are quantized.")
    quantize_attention_matmuls = Key(
        FLAG,
        False,
        "Whether the inputs of the products of query with key and of probabilities "
        "with value are quantized.",
    )
    ignore = Key(
        names(),
        (),
        "Names of modules, which stand for all below them, or re: patterns, that stay "
        "in floating point.",
    )
    submodules = Key(
        names(WHOLE),
        None,
        "Names of modules, which stand for all below them, or re: patterns, outside of "
        "which nothing is quantized; None, or the empty name of the whole, for the "
        "model.",
    )
    _ends = ends_later()

    @between("disable_observer_epoch", "start_epoch", "end_epoch")
    def _fixed_in_between(
        epoch: float | None, start: float, end: float
    ) -> Iterator[Fault]:
        key, rule = "disable_observer_epoch", Rule.EPOCHS
        if epoch is None:
            return
        if epoch <= max(start, 0.0):
            broken = f"does not lie after start_epoch={start:g}"
            expected = "a later epoch, as ranges come from training"
            yield Fault.of(rule, key, f"{epoch:g}", broken, expected, "raise it")
        elif 0.0 <= end < epoch:
            broken = f"lies after end_epoch={end:g}, which fixes all ranges"
            expected, fix = "an earlier epoch", "lower it or leave it out"
            yield Fault.of(rule, key, f"{epoch:g}", broken, expected, fix)

    @classmethod
    def derive(cls, values: Values) -> None:
        """Bring the names that are left out into a list."""
        values.ignore = list(values.ignore)

    def begin(self) -> None:
        """Have no model yet."""
        self._model: nn.Module | None = None
        self._active = False
        self._frozen = False

    @property
    def active(self) -> bool:
        """Whether the model is quantized by now."""
        return self._active

    @property
    def frozen(self) -> bool:
        """Whether ``disable_observer_epoch`` has fixed ranges by now."""
        return self._frozen

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the modules that this modifier would quantize.

        Args:
            model: The model, wrapped or not.

        Returns:
            Full names in the unwrapped model.
        """
        return core.quantization.scheme.find_layers(unwrap(model), self._scheme())

    def _scheme(self) -> Scheme:
        return core.quantization.scheme.Scheme(
            per_channel=self._per_channel,
            reduce_range=self._reduce_range,
            embeddings=self._quantize_embeddings,
            attention_matmuls=self._quantize_attention_matmuls,
            ignore=tuple(self._ignore),
            submodules=None if self._submodules is None else tuple(self._submodules),
        )

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Find the layers; changes nothing yet."""
        super().initialize(module, epoch, loggers, **kwargs)
        self.resolve_targets(module)  # fails now rather than at start_epoch
        self._model = unwrap(module)
        if math.isinf(epoch):
            self._calibrate(find_source(kwargs))

    def _calibrate(self, source: GradientSource | None) -> None:
        if source is None:
            raise ValueError(
                "epoch=inf cannot be trained at, and gradient_source and grad_sampler "
                "are both missing; expected batches for the ranges of activations; "
                "pass one of the two, or train with the recipe"
            )
        request = core.pruning.fisher_state.request_of(
            CALIBRATION_SAMPLES, 0, {}, "sample"
        )
        limit = None if source.divides else request.share
        core.quantization.scheme.quantize_(self._model, self._scheme())
        self._active = True
        with core.quantization.scheme.calibrating(self._model):
            _, count = core.pruning.gradients.sum_losses(
                self._model, source.batches(request), source, limit
            )
        if count == 0:
            raise ValueError(
                "gradient_source gives no batch for the ranges of activations; expected"
                " one at least; check it, or train with the recipe"
            )
        core.quantization.fake_quant.average_ranges_(
            list(core.quantization.scheme.quantizers_of(self._model).values())
        )
        self._fix_ranges(True)
        self._frozen = True

    def advance_epochs(self, ref_start_epoch: float | None = None) -> None:
        """Move the schedule behind another recipe's, where SparseML composes stages."""
        super().advance_epochs(ref_start_epoch)
        if ref_start_epoch is not None and self._disable_observer_epoch is not None:
            self._disable_observer_epoch += ref_start_epoch

    def update_ready(self, epoch: float, steps_per_epoch: int) -> bool:
        """Tell whether quantization begins, ranges are fixed, or the schedule ends."""
        ready = super().update_ready(epoch, steps_per_epoch)
        return ready or (self._enabled and self._started and self._freeze_due(epoch))

    def _freeze_due(self, epoch: float) -> bool:
        at = self._disable_observer_epoch
        return not self._frozen and at is not None and epoch >= at

    def update(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Begin to quantize, or fix ranges; called by SparseML when it is time."""
        super().update(module, optimizer, epoch, steps_per_epoch)
        if self.start_pending(epoch, steps_per_epoch):
            core.quantization.scheme.quantize_(self._model, self._scheme())
            self._active = True
        freezes = self._freeze_due(epoch)
        ends = self.end_pending(epoch, steps_per_epoch)
        if freezes or ends:
            # The last batches that they followed were others on each process.
            self._average_ranges()
        if freezes:
            self._fix_ranges(self._freeze == "all")
            self._frozen = True
        if ends:
            self._fix_ranges(True)

    def _average_ranges(self) -> None:
        core.quantization.fake_quant.average_ranges_(
            list(core.quantization.scheme.quantizers_of(self._model).values())
        )

    def _fix_ranges(self, weights: bool) -> None:
        unseen = core.quantization.scheme.freeze_(self._model, weights)
        found = core.quantization.scheme.quantizers_of(self._model).values()
        if unseen and len(unseen) == sum(
            one.kind == core.quantization.fake_quant.ACTIVATION for one in found
        ):
            raise RuntimeError(
                f"start_epoch={self.start_epoch:g} is less than a step before the "
                "ranges are fixed; expected a training step at least, for the ranges "
                "of activations; start earlier or fix them later"
            )
        if unseen:
            _LOGGER.warning(
                "not in use, and so not quantized: %s",
                ", ".join(name.rpartition(":")[0] for name in unseen),
            )

    def optimizer_post_step(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Average moving ranges over processes; keep weights within fixed ones."""
        super().optimizer_post_step(module, optimizer, epoch, steps_per_epoch)
        if self._active and not self._frozen:
            self._average_ranges()
        if self._active:
            core.quantization.scheme.hold_weights_(self._model)

    def finalize(
        self, module: nn.Module | None = None, reset_loggers: bool = True, **kwargs: Any
    ) -> None:
        """Fix the ranges that still move, and let go of the model."""
        super().finalize(module, reset_loggers, **kwargs)
        if self._active:
            if module is not None:  # else deleted, perhaps while Python ends
                self._fix_ranges(True)
        else:
            _LOGGER.warning(
                "start_epoch=%g was not reached: the model is not quantized",
                self.start_epoch,
            )
        self._model = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the ranges by name, and where the schedule stands."""
        found = (
            core.quantization.scheme.quantizers_of(self._model) if self._active else {}
        )
        state: dict[str, Any] = {name: one.state() for name, one in found.items()}
        state[SCHEDULE_KEY] = {
            "started": self._started,
            "ended": self._ended,
            "active": self._active,
            "frozen": self._frozen,
        }
        return as_tensors(state)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Continue where :meth:`state_dict` was taken; quantizes the model.

        Args:
            state_dict: As from :meth:`state_dict`.
            strict: Ignored: a missing or extra name is always an error.

        Raises:
            RuntimeError: If the modifier is not initialized.
            IndexError: If the names differ from those of the model.
        """
        check_initialized(self)
        state_dict = from_tensors(state_dict)
        schedule = state_dict[SCHEDULE_KEY]
        ranges = {k: v for k, v in state_dict.items() if k != SCHEDULE_KEY}
        if schedule["active"] and not self._active:
            core.quantization.scheme.quantize_(self._model, self._scheme())
            self._active = True
        found = (
            core.quantization.scheme.quantizers_of(self._model) if self._active else {}
        )
        if set(ranges) != set(found):
            missing, extra = (
                sorted(set(found) - set(ranges)),
                sorted(set(ranges) - set(found)),
            )
            raise IndexError(
                f"state has other layers than the model: missing {missing}, extra "
                f"{extra}; expected the same names; use the model it was saved from"
            )
        for name, quantizer in found.items():
            quantizer.load_state_(ranges[name])
        self._started, self._ended = schedule["started"], schedule["ended"]
        self._frozen = schedule["frozen"]
