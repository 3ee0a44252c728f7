"""Inverse block Fisher: seconds per gradient, ours beside SparseML's class.

Ours sums outer products in batches and inverts once; SparseML's
``EmpiricalBlockFisherInverse.add_grad`` updates the inverse for every gradient (oBERT
section 3.2.2). Both get the same gradients in one run. SparseML's is timed on a few
gradients, as its cost per gradient does not depend on their number; ours on all m,
inversion included. The error is that of the inverse on 64 blocks against float64.

    python benchmarks/bench_fisher.py [--quick] [--json FILE]
"""

import time
import warnings
from typing import Any

import _common as common
import torch
from torch import Tensor

from obert_modifiers.core.fisher import BlockFisher
from obert_modifiers.kernels import inverse_blocks, inverse_group_blocks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sparseml.pytorch.sparsification.pruning.modifier_pruning_obs import (
        EmpiricalBlockFisherInverse,
    )

    from obert_modifiers.modifiers import _host  # noqa: F401  analytics off

NUM_GRADS, BATCH, DAMP = 1024, 32, 1e-3
REFERENCE_GRADS, CHECKED_BLOCKS = 8, 64


def gradients(numel: int, batch: int, seed: int) -> Tensor:
    """Draw gradients whose blocks are far from diagonal.

    Args:
        numel: Weights d.
        batch: Gradients k.
        seed: Seed.

    Returns:
        ``(k, d)``, float32.
    """
    generator = torch.Generator().manual_seed(seed)
    common_part = torch.randn(batch, 1, generator=generator)
    return torch.randn(batch, numel, generator=generator) * 0.5 + common_part


def ours(numel: int, width: int, num_grads: int, pool: list[Tensor]) -> dict[str, Any]:
    """Time accumulation and inversion, and keep a few inverses.

    Args:
        numel: Weights d.
        width: Block width B.
        num_grads: Gradients m.
        pool: Batches that are used in turn.

    Returns:
        Seconds by part, and the inverses of the first blocks.
    """
    fisher = BlockFisher(numel, width)
    started = time.perf_counter()
    for nth in range(num_grads // BATCH):
        fisher.add_(pool[nth % len(pool)])
    summed = time.perf_counter()
    inverse_group_blocks(fisher.sums, fisher.scale, DAMP, 1)
    done = time.perf_counter()
    checked = inverse_blocks(fisher.sums[:CHECKED_BLOCKS], fisher.scale, DAMP)
    return {"sum_s": summed - started, "invert_s": done - summed, "inverse": checked}


def sparsemls(numel: int, width: int, count: int, pool: list[Tensor]) -> float:
    """Time SparseML's class.

    Args:
        numel: Weights d.
        width: Block width B.
        count: Gradients to time.
        pool: Batches that are used in turn.

    Returns:
        Seconds per gradient.
    """
    state = EmpiricalBlockFisherInverse(count + 1, width, numel, DAMP, "cpu")
    grads = torch.cat(pool)
    state.add_grad(grads[0])
    started = time.perf_counter()
    for nth in range(count):
        state.add_grad(grads[(nth + 1) % len(grads)])
    return (time.perf_counter() - started) / count


def errors(
    width: int, num_grads: int, pool: list[Tensor], found: Tensor
) -> tuple[float, float]:
    """Compare both with a float64 inverse on the first blocks.

    Args:
        width: Block width B.
        num_grads: Gradients m.
        pool: Batches that were used in turn.
        found: Our inverses of the first blocks.

    Returns:
        Norm-wise relative error of ours and of SparseML's recursion.
    """
    blocks = found.shape[0]
    sums = torch.zeros(blocks, width, width, dtype=torch.float64)
    numel = blocks * width
    state = EmpiricalBlockFisherInverse(num_grads, width, numel, DAMP, "cpu")
    for nth in range(num_grads // BATCH):
        part = pool[nth % len(pool)][:, : blocks * width]
        for grad in part:
            state.add_grad(grad)
        cut = part.double().reshape(BATCH, blocks, width)
        sums += torch.einsum("kbi,kbj->bij", cut, cut)
    exact = torch.linalg.inv(sums / num_grads + DAMP * torch.eye(width).double())
    scale = exact.norm()
    theirs = state.f_inv.double()
    return float((found - exact).norm() / scale), float((theirs - exact).norm() / scale)


def measure(numel: int, width: int, num_grads: int, rate: float) -> dict[str, Any]:
    """Measure one size.

    Args:
        numel: Weights d.
        width: Block width B.
        num_grads: Gradients m.
        rate: The machine's matrix-product rate.

    Returns:
        A row of the table.
    """
    numel -= numel % width
    pool = [gradients(numel, BATCH, seed) for seed in range(2)]
    ours(numel, width, BATCH, pool)  # compile and warm up
    mine = ours(numel, width, num_grads, pool)
    theirs = sparsemls(numel, width, REFERENCE_GRADS, pool)
    error, reference_error = errors(width, num_grads, pool, mine.pop("inverse"))
    per_gradient = (mine["sum_s"] + mine["invert_s"]) / num_grads
    limit = 2.0 * numel * width / rate
    return {
        "numel": numel,
        "fisher_block_size": width,
        "num_grads": num_grads,
        "seconds_per_gradient": per_gradient,
        "sum_s": mine["sum_s"],
        "invert_s": mine["invert_s"],
        "sparseml_seconds_per_gradient": theirs,
        "ratio": theirs / per_gradient,
        "error": error,
        "sparseml_error": reference_error,
        "share_of_matrix_rate": limit / per_gradient,
    }


def main() -> None:
    """Run the benchmark."""
    arguments = common.parser(__doc__).parse_args()
    rate = common.matrix_rate()
    if arguments.quick:
        sizes = [(1_000_000, width, 256) for width in (48, 50)]
    else:
        sizes = [(1_000_000, width, NUM_GRADS) for width in (48, 50, 64, 128)]
        sizes += [(10_000_000, 48, NUM_GRADS), (10_000_000, 50, NUM_GRADS)]
    rows = [measure(*size, rate) for size in sizes]
    for row in rows:
        print(
            f"d {row['numel']:>10,}  B {row['fisher_block_size']:>3}  "
            f"m {row['num_grads']}  {1e3 * row['seconds_per_gradient']:8.2f} ms, "
            f"SparseML {1e3 * row['sparseml_seconds_per_gradient']:8.2f} ms per "
            f"gradient  ratio {row['ratio']:5.1f}  error {row['error']:.1e} "
            f"(SparseML {row['sparseml_error']:.1e})  "
            f"{100 * row['share_of_matrix_rate']:.0f} % of the matrix rate"
        )
    result = {
        "benchmark": "fisher",
        "ratio": min(row["ratio"] for row in rows),
        "matrix_rate_gflops": rate / 1e9,
        "rows": rows,
        **common.environment(),
    }
    common.write(arguments.json, result)


if __name__ == "__main__":
    main()
