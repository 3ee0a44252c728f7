"""Fake quantization to 8 bits, on torch.ao's observers.

The one file that knows torch.ao; another library would take its place here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)

from obert_modifiers.core.distributed.parallel import all_reduce_, world

AVERAGING = 0.01  # share of a new batch in an activation's range (torch.ao's own)
WEIGHT, ACTIVATION = "weight", "activation"
# The largest integer of a weight. Two products of it with uint8 activations fit into 16
# bits where the range is reduced: 2 * 63 * 255 < 2**15.
FULL_RANGE, REDUCED_RANGE = 127, 63


class Quantizer:
    """Round one tensor to 8 bits and back, :math:`s (clamp(round(x / s) + z) - z)`.

    Jacob et al. 2018, equation (12) of section 3.1, as oBERT's section 4 and appendix
    A.7 take it up. Rounding is to the nearest, ties to even; the gradient passes
    straight through where nothing is clamped and is zero where it is.

    Weights are int8 and symmetric: :math:`z = 0`, :math:`s = max |w| / limit` of the
    weights as they are now, so that a zero stays exactly zero. Activations are uint8
    and asymmetric: 0 to 255 over a moving average of each batch's least and largest
    value, widened to hold zero.

    It is not an ``nn.Module``, so that a layer that holds one keeps the state_dict that
    it had.

    Attributes:
        kind: ``weight`` or ``activation``.
        per_channel: Whether each row of a weight has its own scale.
        limit: The largest integer of a weight, 127 or 63.
        observing: Whether the range still follows what is seen.
        ready: Whether there is a range; until then values pass unchanged.
        scale: Steps of the grid, float32, ``(1,)`` or ``(rows,)``.
        zero_point: Integer that stands for 0.0, int32, shape of the scale.
    """

    def __init__(
        self,
        kind: str,
        device: torch.device,
        per_channel: bool = False,
        limit: int = FULL_RANGE,
    ) -> None:
        """Start without a range, on a device."""
        self.kind, self.per_channel, self.limit = kind, per_channel, limit
        self.observing, self.ready = True, False
        self.scale = torch.ones(1, dtype=torch.float32, device=device)
        self.zero_point = torch.zeros(1, dtype=torch.int32, device=device)
        self._calibrated: int | None = None  # batches, while calibrating
        observer: Any = MovingAverageMinMaxObserver
        options: dict[str, Any] = {
            "qscheme": torch.per_tensor_affine,
            "averaging_constant": AVERAGING,
        }
        if kind == WEIGHT:
            options = {
                "qscheme": torch.per_tensor_symmetric,
                "dtype": torch.qint8,
                "averaging_constant": 1.0,
                "quant_min": -limit,
                "quant_max": limit,
            }
        if per_channel:
            observer = MovingAveragePerChannelMinMaxObserver
            options |= {"qscheme": torch.per_channel_symmetric, "ch_axis": 0}
        self._observer = observer(**options).to(device)

    def __call__(self, values: Tensor, training: bool) -> Tensor:
        """Return floating point values rounded to the grid, same shape and dtype.

        An activation's range follows only batches that the layer trains or calibrates
        on, a weight's follows the weight.
        """
        calibrating = self._calibrated is not None
        if self.observing and (training or calibrating or self.kind == WEIGHT):
            self.observe_(values)
        if not self.ready:
            return values
        # A weight's scale is that of -limit to limit, so that it never gets to -128,
        # but ONNX has no other int8.
        low, high = (-128, 127) if self.kind == WEIGHT else (0, 255)
        grid = self.scale, self.zero_point
        if self.per_channel:
            return torch.fake_quantize_per_channel_affine(values, *grid, 0, low, high)
        return torch.fake_quantize_per_tensor_affine(values, *grid, low, high)

    @torch.no_grad()
    def observe_(self, values: Tensor) -> None:
        """Let the range follow a weight or an activation; changes scale and zero point.

        An activation with an infinite or NaN value is passed over, as in a step that
        loss scaling skips: a moving average would never lose it.
        """
        if values.numel() == 0:
            return
        if self.kind == ACTIVATION:
            values = torch.stack(torch.aminmax(values))
            if not bool(values.isfinite().all()):
                return
            if self._calibrated is not None:  # a mean over the batches
                self._calibrated += 1
                self._observer.averaging_constant = 1.0 / self._calibrated
        self._observer(values)
        self._set(*self._observer.calculate_qparams())

    @property
    def averaging(self) -> float:
        """Share of a new batch in the range."""
        return float(self._observer.averaging_constant)

    def begin_calibration(self) -> None:
        """Let an activation's range be the mean of the batches' that come now."""
        self._calibrated = 0

    def end_calibration(self) -> None:
        """Let an activation's range follow only training batches again."""
        self._calibrated = None
        if self.kind == ACTIVATION:
            self._observer.averaging_constant = AVERAGING

    def _set(self, scale: Tensor, zero_point: Tensor) -> None:
        where = self.scale.device
        for own, new in ((self.scale, scale), (self.zero_point, zero_point)):
            own.resize_(new.shape).copy_(new.to(where))
        self.ready = True

    def to(self, device: torch.device) -> None:
        """Move to a device; dtypes stay."""
        self._observer.to(device)
        self.scale, self.zero_point = self.scale.to(device), self.zero_point.to(device)

    def state(self) -> dict[str, Any]:
        """Return copies of everything that is needed to go on."""
        return {
            "observing": self.observing,
            "ready": self.ready,
            "scale": self.scale.clone(),
            "zero_point": self.zero_point.clone(),
            "min_val": self._observer.min_val.clone(),
            "max_val": self._observer.max_val.clone(),
            "limit": torch.tensor(self.limit),
        }

    def load_state_(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self._set(state["scale"], state["zero_point"])
        where = self.scale.device
        for name in ("min_val", "max_val"):
            own = getattr(self._observer, name)
            own.resize_(state[name].shape).copy_(state[name].to(where))
        self.observing, self.ready = state["observing"], state["ready"]
        if self.kind == WEIGHT:  # states from before it could be reduced have none
            self.limit = int(state.get("limit", FULL_RANGE))
            self._observer.quant_min, self._observer.quant_max = -self.limit, self.limit

    @torch.no_grad()
    def hold_(self, weight: Tensor) -> None:
        """Clamp a ``(rows, columns)`` weight to its range once that is fixed.

        A full range needs no holding: int8 ends there, and rounding holds it.
        """
        if self.limit == FULL_RANGE or self.observing or not self.ready:
            return
        most = self.limit * self.scale
        if self.per_channel:
            most = most.reshape(-1, *[1] * (weight.ndim - 1))
        weight.clamp_(-most, most)

    def fix_(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale and zero point from elsewhere, and stop observing."""
        self._set(scale, zero_point)
        self.observing = False


def average_ranges_(quantizers: list[Quantizer]) -> None:
    """Give the activations the same ranges on all processes: the mean of theirs.

    Takes the same quantizers in the same order on all, and changes them in place. One
    all-reduce of three numbers for each activation that still observes; a process that
    has no range yet takes the mean of those that have one.
    """
    moving = [q for q in quantizers if q.kind == ACTIVATION and q.observing]
    if world()[1] == 1 or not moving:
        return
    where = moving[0].scale.device
    rows = torch.zeros(len(moving), 3, device=where)  # least, largest, processes
    for row, quantizer in zip(rows, moving, strict=True):
        if quantizer.ready:
            row[0].copy_(quantizer._observer.min_val)
            row[1].copy_(quantizer._observer.max_val)
            row[2] = 1.0
    all_reduce_(rows)
    for row, quantizer in zip(rows, moving, strict=True):
        if bool(row[2] > 0):
            observer = quantizer._observer
            observer.min_val.copy_(row[0] / row[2])
            observer.max_val.copy_(row[1] / row[2])
            quantizer._set(*observer.calculate_qparams())
