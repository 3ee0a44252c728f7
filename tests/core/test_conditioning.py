"""The inverse from raw gradients is at least as accurate as the paper's recursion."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.pruning.fisher import BlockFisher, StreamingInverse
from obert_modifiers.kernels import inverse_blocks, update_inverse_
from tests import reference

WIDTH, COUNT = 24, 256
CONDITIONS = [1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9]
assert len(CONDITIONS) == 9


def _gradients(condition: float, damp: float, seed: int = 0) -> np.ndarray:
    """Draw float32 gradients whose dampened Fisher has about that condition number."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    spread = np.geomspace(damp * condition, damp / 10, WIDTH)
    grads = rng.standard_normal((COUNT, WIDTH)) * np.sqrt(spread) @ basis.T
    return grads.astype(np.float32)


def _error(inverse: np.ndarray, exact: np.ndarray) -> float:
    found = np.linalg.norm(inverse.astype(np.float64) - exact) / np.linalg.norm(exact)
    return float(found) if np.isfinite(found) else np.inf


@pytest.mark.parametrize("condition", CONDITIONS)
def test_as_accurate_as_the_recursion(condition: float) -> None:
    damp = 1e-3
    grads = _gradients(condition, damp)
    dense = reference.dense_fisher(grads, damp)
    assert np.linalg.cond(dense) == pytest.approx(condition, rel=0.5)
    exact = np.linalg.inv(dense)
    fisher = BlockFisher(WIDTH, WIDTH)  # its default precision
    for part in torch.from_numpy(grads).split(32):
        fisher.add_(part)
    ours = inverse_blocks(fisher.sums, fisher.scale, damp)[0].numpy()
    theirs = _error(reference.rank_one_recursion(grads, damp, np.float32), exact)
    assert _error(ours, exact) <= theirs
    # Twice float64's rounding times the condition number bounds it.
    assert _error(ours, exact) <= 2 * COUNT * 2.2e-16 * condition
    streaming = StreamingInverse(WIDTH, WIDTH, damp, COUNT)
    for part in torch.from_numpy(grads).split(24):
        streaming.add_(part)
    assert _error(streaming.f_inv[0].numpy(), exact) <= theirs


@pytest.mark.parametrize("condition", [1e5, 1e7])
def test_control_float32_sums_do_not_keep_up(condition: float) -> None:
    damp = 1e-3
    grads = _gradients(condition, damp)
    exact = np.linalg.inv(reference.dense_fisher(grads, damp))
    fisher = BlockFisher(WIDTH, WIDTH, dtype=torch.float32)
    fisher.add_(torch.from_numpy(grads))
    ours = inverse_blocks(fisher.sums, fisher.scale, damp)[0].numpy()
    theirs = _error(reference.rank_one_recursion(grads, damp, np.float32), exact)
    assert _error(ours, exact) > theirs


def test_the_recursion_is_sparsemls() -> None:
    obs = pytest.importorskip(
        "sparseml.pytorch.sparsification.pruning.modifier_pruning_obs"
    )
    grads = _gradients(1e4, 1e-3)
    state = obs.EmpiricalBlockFisherInverse(COUNT, WIDTH, WIDTH, 1e-3, "cpu")
    for grad in torch.from_numpy(grads):
        state.add_grad(grad)
    ours = reference.rank_one_recursion(grads, 1e-3, np.float32)
    assert _error(state.f_inv[0].numpy(), ours.astype(np.float64)) < 1e-4


@pytest.mark.parametrize("rank", [1, 3, 32])
def test_streaming_inverse(rank: int) -> None:
    torch.manual_seed(0)
    grads = torch.randn(32, 23, dtype=torch.float64)
    found = StreamingInverse(23, 5, 0.1, 32)
    for part in grads.split(rank):
        found.add_(part)
    dense = reference.block_diagonal(reference.dense_fisher(grads.numpy(), 0.1), 5)
    exact = np.linalg.inv(dense)
    for b, start in enumerate(range(0, 23, 5)):
        part = slice(start, min(start + 5, 23))
        size = part.stop - part.start
        ours = found.f_inv[b, :size, :size].numpy()
        np.testing.assert_allclose(ours, exact[part, part], rtol=1e-9, atol=1e-11)
    # Control: without the count of gradients it is another matrix.
    wrong = torch.eye(5, dtype=torch.float64).expand(1, 5, 5) / 0.1
    wrong = update_inverse_(wrong.clone(), grads[:, None, :5], 1)
    assert not np.allclose(wrong[0].numpy(), exact[:5, :5], rtol=1e-3)
