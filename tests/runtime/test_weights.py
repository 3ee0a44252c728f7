"""Weights without zeros, and blocks in pairs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obert_modifiers.runtime.paths import PATHS
from obert_modifiers.runtime.weights import Linear, Packed, from_dense, pair
from tests.runtime.tiles import sparse


@st.composite
def weights(draw: st.DrawFn) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 9)), 4 * draw(st.integers(1, 12))
    weight = sparse(rng, *shape, draw(st.floats(0, 1)), draw(st.integers(0, 127)))
    if draw(st.booleans()):
        weight[rng.random(shape) < 0.2] = draw(st.sampled_from([-127, 127, -128]))
    return weight


@settings(max_examples=60, deadline=None)
@given(weights(), st.booleans())
def test_a_weight_comes_back(weight, floats) -> None:
    bias = np.arange(len(weight), dtype=np.float32)
    scale, grid = (None, None) if floats else (np.ones(1, np.float32), (0.1, 3))
    given_ = weight.astype(np.float32) if floats else weight
    layer = from_dense(given_, bias, scale, grid)
    layer.check("layer")
    np.testing.assert_array_equal(layer.dense(), given_)
    again = Linear.read("a.b", layer.spec(), layer.arrays("a.b"))
    np.testing.assert_array_equal(again.dense(), given_)


@settings(max_examples=60, deadline=None)
@given(weights())
def test_pairs_add_up_within_16_bits(weight) -> None:
    layer = from_dense(weight, np.zeros(len(weight), np.float32))
    layer = from_dense(weight, layer.bias, np.ones(1, np.float32), (1.0, 0))
    values, blocks, counts = pair(layer.values, layer.blocks, layer.counts)
    assert values.dtype == np.int8 and not (np.asarray(counts) % 2).any()
    lanes = values.astype(int).reshape(-1, 2, 2, 2)  # pairs, blocks, lanes, weights
    for sign in (1, -1):
        assert np.maximum(sign * lanes, 0).sum((1, 3)).max(initial=0) <= 128
    total = np.zeros(weight.shape, int)
    rows = np.repeat(np.arange(len(weight)), counts)
    for row, block, four in zip(rows, blocks, values, strict=True):
        total[row, 4 * block : 4 * block + 4] += four
    np.testing.assert_array_equal(total, weight)
    # A block is whole, or in two halves; each stands with a partner or with zeros.
    assert len(values) <= 4 * len(layer.values)


def test_pairs_waste_little_at_the_spread_of_trained_weights() -> None:
    weight = sparse(np.random.default_rng(0), 64, 768, 0.2)
    spread = np.random.default_rng(1).normal(0, 127 / 4.5, weight.shape)
    weight = np.where(weight != 0, spread.round().clip(-127, 127), 0).astype(np.int8)
    layer = from_dense(
        weight, np.zeros(64, np.float32), np.ones(1, np.float32), (1.0, 0)
    )
    assert len(pair(layer.values, layer.blocks, layer.counts)[0]) < 1.15 * len(
        layer.values
    )


def test_float_weights_are_stored_in_blocks_where_those_are_full() -> None:
    bias = np.zeros(8, np.float32)
    full = sparse(np.random.default_rng(0), 8, 64).astype(np.float32)
    assert from_dense(full, bias).group == 4
    single = full * (np.arange(64) % 2)
    assert from_dense(single.astype(np.float32), bias).group == 1


@pytest.mark.parametrize("zero", [0, 77, 255])
@pytest.mark.parametrize("name", PATHS)
def test_the_zero_point_goes_into_the_bias(name, zero) -> None:
    weight = sparse(np.random.default_rng(0), 5, 24)
    bias = np.linspace(-1, 1, 5).astype(np.float32)
    scale = np.linspace(0.1, 0.2, 5).astype(np.float32)
    packed = Packed(from_dense(weight, bias, scale, (0.5, zero)), PATHS[name])
    offset = zero - 128 if name == "sdot" else zero
    exact = bias - scale.astype(float) * 0.5 * offset * weight.astype(int).sum(1)
    np.testing.assert_allclose(packed._arrays[4], exact, rtol=1e-6)


LAYER = from_dense(
    sparse(np.random.default_rng(0), 4, 16),
    np.zeros(4, np.float32),
    np.ones(1, np.float32),
    (0.1, 3),
)
BROKEN = {
    "a block beyond the row": {"blocks": LAYER.blocks + np.uint16(4)},
    "a missing block": {"blocks": LAYER.blocks[1:]},
    "counts of more": {"counts": LAYER.counts + np.uint32(1)},
    "another dtype": {"values": LAYER.values.astype(np.float32)},
    "no bias": {"bias": None},
    "NaN in a bias": {"bias": np.array([0, 0, np.nan, 0], np.float32)},
    "an infinite scale": {"scale": np.array([np.inf], np.float32)},
    "scales of other rows": {"scale": np.ones(3, np.float32)},
    "columns without blocks": {"columns": 6},
    "an infinite step": {"grid": (float("inf"), 0)},
    "a step of 0": {"grid": (0.0, 0)},
    "a zero point beyond": {"grid": (0.1, 256)},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_parts_that_do_not_fit_are_refused(change) -> None:
    LAYER.check("right")
    with pytest.raises(ValueError, match=r"^wrong"):
        replace(LAYER, **change).check("wrong")
