"""Fake quantization against the dense oracle of `tests.reference`."""

import math

import numpy as np
import pytest
import torch

from obert_modifiers.core.quantization.fake_quant import (
    ACTIVATION,
    AVERAGING,
    WEIGHT,
    Quantizer,
    average_ranges_,
)
from obert_modifiers.core.quantization.scheme import Scheme, quantize_, quantizers_of
from tests import reference
from tests.core.models import TOKENS, Attending, in_group

CPU = torch.device("cpu")
INT8, UINT8 = (-127, 127), (0, 255)
SHAPES = [(1, 1), (3, 5), (16, 7), (33, 64)]


def _values(shape, seed=0, shift=0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 3.0 + shift


def _agrees(found: torch.Tensor, expected: np.ndarray) -> bool:
    """The same steps of the grid; float32 scales are off by 2^-24 of themselves."""
    largest = np.abs(expected).max() + 1e-30
    return bool(np.abs(found.numpy() - expected).max() <= 1e-6 * largest)


def _rows(weight: np.ndarray) -> np.ndarray:
    grids = [reference.symmetric_grid(row) for row in weight]
    return np.stack([
        reference.fake_quantize(row, *grid, INT8)
        for row, grid in zip(weight, grids, strict=True)
    ])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights(shape, per_channel) -> None:
    weight = _values(shape)
    quantizer = Quantizer(WEIGHT, CPU, per_channel)
    if per_channel:
        weight *= torch.logspace(-2, 2, shape[0])[:, None]
        found, wanted = quantizer(weight, training=True), _rows(weight.numpy())
    else:
        scale, zero = reference.symmetric_grid(weight.numpy())
        wanted = [reference.fake_quantize(weight.numpy(), scale, zero, INT8)]
        found = [quantizer(weight, training=True)]
        assert quantizer.scale.item() == pytest.approx(scale, rel=1e-6)
    for ours, expected in zip(found, wanted, strict=True):
        assert _agrees(ours, expected)
    assert quantizer.zero_point.tolist() == [0] * len(found)


@pytest.mark.parametrize("shift", [0.0, 4.0, -40.0])
def test_activations_over_moving_ranges(shift: float) -> None:
    batches = [_values((4, 9), seed, shift) for seed in range(3)]
    quantizer = Quantizer(ACTIVATION, CPU)
    for batch in batches:
        found = quantizer(batch, training=True)
    arrays = [batch.numpy() for batch in batches]
    low, high = reference.moving_range(arrays, AVERAGING)
    grid = reference.asymmetric_grid(low, high)
    assert _agrees(found, reference.fake_quantize(arrays[-1], *grid, UINT8))
    assert quantizer.zero_point.tolist() == [grid[1]]


def test_planted_mistakes_do_not_agree() -> None:
    weight = _values((33, 64))
    found = Quantizer(WEIGHT, CPU)(weight, training=True)
    array = weight.numpy()
    scale, _ = reference.symmetric_grid(array)
    cut = np.trunc(array / scale) * scale
    low, high = float(array.min()), float(array.max())
    asymmetric = reference.asymmetric_grid(low, high)
    for wrong in (
        reference.fake_quantize(array, scale * 127 / 127.5, 0, (-128, 127)),
        reference.fake_quantize(array, *asymmetric, UINT8),
        cut,
        _rows(array),
        array,
    ):
        assert not _agrees(found, wrong)


def test_zeros_stay_zeros_and_the_range_is_symmetric() -> None:
    weight = _values((20, 30))
    weight[weight.abs() < 2.0] = 0.0
    for per_channel in (False, True):
        quantizer = Quantizer(WEIGHT, CPU, per_channel)
        found = quantizer(weight, training=True)
        assert (found[weight == 0] == 0).all()
        steps = (found.T / quantizer.scale).T.round()
        assert steps.min() >= -127 and steps.max() <= 127
        assert steps.abs().max() == 127
        # A second time changes nothing: the values are on the grid.
        assert torch.equal(quantizer(found, training=True), found)


def test_the_gradient_passes_where_nothing_is_clamped() -> None:
    quantizer = Quantizer(ACTIVATION, CPU)
    quantizer.fix_(torch.tensor([0.1]), torch.tensor([100]))
    values = torch.tensor([-20.0, -9.9, 0.03, 15.4, 16.0], requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    quantizer(values, training=True).backward(upstream)
    assert values.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


def test_activations_follow_training_alone_and_weights_always() -> None:
    small, large = _values((4, 4)), _values((4, 4)) * 10
    activation, weight = Quantizer(ACTIVATION, CPU), Quantizer(WEIGHT, CPU)
    assert torch.equal(activation(small, training=False), small)
    assert not activation.ready
    activation(small, training=True)
    weight(small, training=False)
    before = activation.scale.clone(), weight.scale.clone()
    activation(large, training=False)
    weight(large, training=False)
    assert torch.equal(activation.scale, before[0])
    assert weight.scale.item() == pytest.approx(10 * before[1].item(), rel=1e-6)
    weight.observing = activation.observing = False
    after = activation.scale.clone(), weight.scale.clone()
    for quantizer, scale in zip((activation, weight), after, strict=True):
        quantizer(small * 100, training=True)
        assert torch.equal(quantizer.scale, scale)


def test_awkward_values() -> None:
    quantizer = Quantizer(ACTIVATION, CPU)
    for bad in (math.nan, math.inf, -math.inf):
        quantizer(torch.tensor([1.0, bad]), training=True)
    assert not quantizer.ready
    quantizer(torch.zeros(0, 3), training=True)
    assert not quantizer.ready
    assert quantizer(torch.zeros(3), training=True).tolist() == [0.0] * 3
    quantizer(torch.tensor([math.nan]), training=True)
    assert bool(quantizer.scale.isfinite().all())
    for kind in (WEIGHT, ACTIVATION):
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            values = _values((3, 3)).to(dtype)
            assert Quantizer(kind, CPU)(values, training=True).dtype == dtype


@pytest.mark.parametrize("per_channel", [False, True])
def test_state_goes_on_where_it_was(per_channel: bool) -> None:
    for kind in (WEIGHT, *([] if per_channel else [ACTIVATION])):
        one, two = (Quantizer(kind, CPU, per_channel) for _ in range(2))
        one(_values((4, 6)), training=True)
        state = one.state()
        two.load_state_(state)
        for seed in (1, 2):
            batch = _values((4, 6), seed) * 2
            assert torch.equal(one(batch, training=True), two(batch, training=True))
        one.observing = False
        two.load_state_(one.state())
        assert not two.observing
    assert state["scale"].numel() == (4 if per_channel else 1)


def _worker(rank: int, folder: str) -> None:
    with in_group(rank, folder):
        model = Attending()
        quantize_(model, Scheme())
        model.train()
        model(TOKENS + 5 * rank)  # each process sees other tokens
        found = quantizers_of(model)
        if rank == 1:  # as after a first batch with a NaN
            late = Quantizer(ACTIVATION, torch.device("cpu"))
            found["head:input"] = model.head.quantizers["input"] = late
        own = {name: one.state() for name, one in found.items()}
        average_ranges_(list(found.values()))
        mean = {name: one.state() for name, one in found.items()}
        torch.save((own, mean), f"{folder}/rank{rank}.pt")


def test_two_processes_have_the_mean_of_their_ranges(tmp_path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    (one, mean), (two, other) = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    key = "block.query:input"
    assert not torch.equal(one[key]["max_val"], two[key]["max_val"])
    assert not two["head:input"]["ready"] and other["head:input"]["ready"]
    for name, state in mean.items():
        for key in ("min_val", "max_val", "scale", "zero_point"):
            assert torch.equal(state[key], other[name][key])  # the same bits
        for key in ("min_val", "max_val"):
            expected = (one[name][key] + two[name][key]) / 2
            if name == "head:input":
                expected = one[name][key]
            assert torch.equal(state[key], expected)
