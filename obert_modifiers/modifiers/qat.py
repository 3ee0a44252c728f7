"""Quantization-aware training to INT8."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import WHOLE
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.host.bases import (
    SCHEDULE_KEY,
    ScheduledModifier,
    SparsificationTypes,
)
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers._sampling import find_source
from obert_modifiers.modifiers._states import by_name
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers.keys import (
    Key,
    KeyedModifier,
    Values,
    between,
    recipe_modifier,
)
from obert_modifiers.modifiers.shared_keys import SharedKeys, ends_later

if TYPE_CHECKING:
    from torch import nn

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
    active = False  # whether the model is quantized by now
    frozen = False  # whether disable_observer_epoch has fixed ranges by now

    start_epoch = SharedKeys.start_epoch.but(default=0.0).means(
        "Epoch at which quantization begins; -1 for the start."
    )
    end_epoch = SharedKeys.end_epoch.but(default=-1.0, later=True).means(
        "Epoch at which all ranges are fixed at the latest; the model stays quantized. "
        "-1 for the end of the training."
    )
    disable_observer_epoch = Key(rules.NUMBER, None, later=True).means(
        "Epoch from which ranges are fixed; None for end_epoch."
    )
    freeze = Key(rules.choice("all", "activations"), "all", later=True).means(
        "Which ranges disable_observer_epoch fixes: all, as in the paper, or "
        "activations, while the scales of weights still follow their largest value."
    )
    per_channel = Key(rules.FLAG, False).means(
        "True for a scale for each output of a linear layer, false for one for its "
        "weight. An embedding has one scale."
    )
    reduce_range = Key(rules.FLAG, True).means(
        "True keeps the weights of linear layers to -63 to 63, which every CPU sums "
        "exactly; false to -127 to 127, which kernels without VNNI may not."
    )
    quantize_embeddings = Key(rules.FLAG, True).means(
        "Whether embedding matrices are quantized."
    )
    quantize_attention_matmuls = Key(rules.FLAG, False).means(
        "Whether the inputs of the products of query with key and of probabilities "
        "with value are quantized."
    )
    ignore = Key(rules.names(), ()).means(
        "Names of modules, which stand for all below them, or re: patterns, that stay "
        "in floating point."
    )
    submodules = Key(rules.names(WHOLE), None).means(
        "Names of modules, which stand for all below them, or re: patterns, outside of "
        "which nothing is quantized; None, or the empty name of the whole, for the "
        "model."
    )
    _ends = ends_later()

    @between("disable_observer_epoch", "start_epoch", "end_epoch")
    def _fixed_in_between(
        at: float | None, start: float, end: float
    ) -> Iterator[Fault]:
        if at is None:
            return
        where = Rule.EPOCHS, "disable_observer_epoch", f"{at:g}"
        if at <= max(start, 0.0):
            expected = "a later epoch, as ranges come from training"
            broken = f"does not lie after start_epoch={start:g}"
            yield Fault.of(*where, broken, expected, "raise it")
        elif 0.0 <= end < at:
            broken = f"lies after end_epoch={end:g}, which fixes all ranges"
            yield Fault.of(*where, broken, "an earlier epoch", "lower it")

    @classmethod
    def derive(cls, values: Values) -> None:
        """Bring the names that are left out into a list."""
        values.ignore = list(values.ignore)

    def begin(self) -> None:
        """Have no model yet."""
        self._model: nn.Module | None = None

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the modules that would be quantized, of a wrapped model too."""
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

    def initialize(self, module, epoch=0, loggers=None, **kwargs) -> None:
        """Find the layers; changes nothing yet, unless it is all done at once."""
        super().initialize(module, epoch, loggers, **kwargs)
        self.resolve_targets(module)  # fails now rather than at start_epoch
        self._model = unwrap(module)
        if math.isinf(epoch):
            self._calibrate(find_source(kwargs))

    def _quantize(self) -> None:
        core.quantization.scheme.quantize_(self._model, self._scheme())
        self.active = True

    def _quantizers(self) -> dict[str, Any]:
        scheme = core.quantization.scheme
        return scheme.quantizers_of(self._model) if self.active else {}

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
        self._quantize()
        with core.quantization.scheme.calibrating(self._model):
            _, count = core.pruning.gradients.sum_losses(
                self._model, source.batches(request), source, limit
            )
        if count == 0:
            raise ValueError(
                "gradient_source gives no batch for the ranges of activations; expected"
                " one at least; check it, or train with the recipe"
            )
        self._average_ranges()
        self._fix_ranges(True)
        self.frozen = True

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
        return not self.frozen and at is not None and epoch >= at

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Begin to quantize, or fix ranges; called by the host when it is time."""
        super().update(module, optimizer, epoch, steps_per_epoch)
        if self.start_pending(epoch, steps_per_epoch):
            self._quantize()
        freezes = self._freeze_due(epoch)
        ends = self.end_pending(epoch, steps_per_epoch)
        if freezes or ends:
            # The last batches that they followed were others on each process.
            self._average_ranges()
        if freezes:
            self._fix_ranges(self._freeze == "all")
            self.frozen = True
        if ends:
            self._fix_ranges(True)

    def _average_ranges(self) -> None:
        quantizers = list(self._quantizers().values())
        core.quantization.fake_quant.average_ranges_(quantizers)

    def _fix_ranges(self, weights: bool) -> None:
        unseen = core.quantization.scheme.freeze_(self._model, weights)
        kinds = [one.kind for one in self._quantizers().values()]
        if unseen and len(unseen) == kinds.count(
            core.quantization.fake_quant.ACTIVATION
        ):
            raise RuntimeError(
                f"start_epoch={self.start_epoch:g} is less than a step before the "
                "ranges are fixed; expected a training step at least, for the ranges "
                "of activations; start earlier or fix them later"
            )
        if unseen:
            names = ", ".join(name.rpartition(":")[0] for name in unseen)
            _LOGGER.warning("not in use, and so not quantized: %s", names)

    def optimizer_post_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Average moving ranges over processes; keep weights within fixed ones."""
        super().optimizer_post_step(module, optimizer, epoch, steps_per_epoch)
        if self.active and not self.frozen:
            self._average_ranges()
        if self.active:
            core.quantization.scheme.hold_weights_(self._model)

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        """Fix the ranges that still move, and let go of the model."""
        super().finalize(module, reset_loggers, **kwargs)
        if not self.active:
            _LOGGER.warning(
                "start_epoch=%g was not reached: the model is not quantized",
                self.start_epoch,
            )
        elif module is not None:  # else deleted, perhaps while Python ends
            self._fix_ranges(True)
        self._model = None

    def own_state(self) -> dict[str, Any]:
        """Return the ranges by name, and whether they move."""
        state = {name: one.state() for name, one in self._quantizers().items()}
        return state | {SCHEDULE_KEY: {"active": self.active, "frozen": self.frozen}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take up the ranges; quantizes the model where it was quantized."""
        schedule = state[SCHEDULE_KEY]
        if schedule["active"] and not self.active:
            self._quantize()
        quantizers = self._quantizers()
        ranges = by_name(state, quantizers, "layers")
        for name, quantizer in quantizers.items():
            quantizer.load_state_(ranges[name])
        self.frozen = schedule["frozen"]
