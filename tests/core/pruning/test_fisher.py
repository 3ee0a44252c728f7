"""The Fisher: sums, dampening, and inverses as accurate as the paper's recursion."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.pruning import blocks
from obert_modifiers.core.pruning.fisher import BlockFisher, resolve_damp
from obert_modifiers.kernels import inverse_blocks
from obert_modifiers.kernels.packed import unpack_blocks
from tests import reference
from tests.core.models import random_fisher

WIDTH, COUNT, DAMP = 24, 256, 1e-3
CONDITIONS = [1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9]
assert len(CONDITIONS) == 9


def test_fisher_counts_what_was_added_and_drops_pruned_weights() -> None:
    fisher, grads, _ = random_fisher()
    assert fisher.num_grads == 40
    torch.testing.assert_close(fisher.diagonal(), grads.square().mean(dim=0))
    kept = torch.ones(23, dtype=torch.bool)
    kept[3] = False
    masked = BlockFisher(23, 5, dtype=torch.float64)
    masked.add_(grads.clone(), kept)
    assert masked.diagonal()[3] == 0
    block = unpack_blocks(masked.sums)[0]
    assert (block[3] == 0).all() and (block[0] != 0).any()


def test_damping() -> None:
    fisher, grads, _ = random_fisher()
    mask = torch.rand(23) > 0.5
    mean = grads.square().mean(dim=0)[mask].mean().item()
    trace, living = fisher.living_trace(mask)
    assert living == int(mask.sum())
    assert resolve_damp([trace], living, None, 0.01) == pytest.approx(0.01 * mean)
    total, everything = fisher.living_trace(None)
    assert everything == 23
    assert total == pytest.approx(grads.square().mean(dim=0).sum().item())
    assert resolve_damp([], 0, 1e-7, None) == 1e-7


def _trace(fisher: BlockFisher) -> float:
    return fisher.living_trace(None)[0]


REFUSED = {
    "are both given": lambda fisher: resolve_damp([1.0], 1, 1e-7, 0.01),
    "are both missing": lambda fisher: resolve_damp([1.0], 1, None, None),
    "no gradient was added": lambda fisher: _trace(BlockFisher(5, 5)),
    "every sampled gradient is zero": lambda fisher: resolve_damp(
        [_trace(fisher)], 5, None, 0.01
    ),
    "with_mean=False keeps no mean gradient": lambda fisher: fisher.newton_step(0.1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_dampening_or_mean_is_refused(message: str) -> None:
    fisher = BlockFisher(5, 5)
    fisher.add_(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=message):
        REFUSED[message](fisher)


class StreamingInverse:
    """oBERT section 3.2.2 with k gradients at a time (Woodbury).

    ``F^-1 <- F^-1 - F^-1 G^T (m I + G F^-1 G^T)^-1 G F^-1``, from ``I / damp``.
    """

    def __init__(self, numel: int, width: int, damp: float, num_grads: int) -> None:
        self.width, self.num_grads = width, num_grads
        eye = torch.eye(width, dtype=torch.float64) / damp
        self.f_inv = eye.repeat(blocks.count_blocks(numel, width), 1, 1)

    def add_(self, grads: torch.Tensor, rank: int) -> None:
        for some in grads.double().split(rank):
            parts = blocks.to_blocks(some, self.width).permute(1, 0, 2)
            pulled = parts @ self.f_inv  # (num_blocks, k, B)
            inner = pulled @ parts.transpose(1, 2)
            inner.diagonal(dim1=1, dim2=2).add_(float(self.num_grads))
            factor = torch.linalg.cholesky(inner)
            half = torch.linalg.solve_triangular(factor, pulled, upper=False)
            self.f_inv.baddbmm_(half.transpose(1, 2), half, alpha=-1)


def _gradients(condition: float) -> np.ndarray:
    """Draw float32 gradients whose dampened Fisher has about that condition number."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    spread = np.geomspace(DAMP * condition, DAMP / 10, WIDTH)
    grads = rng.standard_normal((COUNT, WIDTH)) * np.sqrt(spread) @ basis.T
    return grads.astype(np.float32)


def _error(inverse: np.ndarray, exact: np.ndarray) -> float:
    found = np.linalg.norm(inverse.astype(np.float64) - exact) / np.linalg.norm(exact)
    return float(found) if np.isfinite(found) else np.inf


def _errors(grads: np.ndarray, exact: np.ndarray, **dtype) -> tuple[float, float]:
    """Errors of our inverse, and of the recursion in float32."""
    fisher = BlockFisher(WIDTH, WIDTH, **dtype)
    for part in torch.from_numpy(grads).split(32):
        fisher.add_(part)
    ours = inverse_blocks(fisher.sums, fisher.scale, DAMP)[0].numpy()
    theirs = reference.rank_one_recursion(grads, DAMP, np.float32)
    return _error(ours, exact), _error(theirs, exact)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_as_accurate_as_the_recursion(condition: float) -> None:
    grads = _gradients(condition)
    dense = reference.dense_fisher(grads, DAMP)
    assert np.linalg.cond(dense) == pytest.approx(condition, rel=0.5)
    exact = np.linalg.inv(dense)
    ours, theirs = _errors(grads, exact)  # in its default precision
    assert ours <= theirs
    # Twice float64's rounding times the condition number bounds it.
    assert ours <= 2 * COUNT * 2.2e-16 * condition
    streaming = StreamingInverse(WIDTH, WIDTH, DAMP, COUNT)
    streaming.add_(torch.from_numpy(grads), 24)
    assert _error(streaming.f_inv[0].numpy(), exact) <= theirs


@pytest.mark.parametrize("condition", [1e5, 1e7])
def test_control_float32_sums_do_not_keep_up(condition: float) -> None:
    grads = _gradients(condition)
    exact = np.linalg.inv(reference.dense_fisher(grads, DAMP))
    ours, theirs = _errors(grads, exact, dtype=torch.float32)
    assert ours > theirs


def test_the_recursion_is_sparsemls() -> None:
    obs = pytest.importorskip(
        "sparseml.pytorch.sparsification.pruning.modifier_pruning_obs"
    )
    grads = _gradients(1e4)
    state = obs.EmpiricalBlockFisherInverse(COUNT, WIDTH, WIDTH, DAMP, "cpu")
    for grad in torch.from_numpy(grads):
        state.add_grad(grad)
    ours = reference.rank_one_recursion(grads, DAMP, np.float32)
    assert _error(state.f_inv[0].numpy(), ours.astype(np.float64)) < 1e-4


@pytest.mark.parametrize("rank", [1, 3, 32])
def test_streaming_inverse(rank: int) -> None:
    grads = torch.randn(32, 23, dtype=torch.float64)
    found = StreamingInverse(23, 5, 0.1, 32)
    found.add_(grads, rank)
    dense = reference.block_diagonal(reference.dense_fisher(grads.numpy(), 0.1), 5)
    exact = np.linalg.inv(dense)
    for b, start in enumerate(range(0, 23, 5)):
        part = slice(start, min(start + 5, 23))
        size = part.stop - part.start
        ours = found.f_inv[b, :size, :size].numpy()
        np.testing.assert_allclose(ours, exact[part, part], rtol=1e-9, atol=1e-11)
    # Control: without the count of gradients it is another matrix.
    wrong = StreamingInverse(5, 5, 0.1, 1)
    wrong.add_(grads[:, :5], 32)
    assert not np.allclose(wrong.f_inv[0].numpy(), exact[:5, :5], rtol=1e-3)
