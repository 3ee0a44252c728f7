"""Inverse block Fisher: seconds per gradient, ours beside one gradient at a time.

Ours sums outer products, a piece of weights and 128 gradients at a time as in a pruning
event, and inverts once; the baseline updates the inverse for every gradient (oBERT
section 3.2.2). That is SparseML's ``EmpiricalBlockFisherInverse``, or where SparseML is
not installed the same recursion in plain torch; the table says which. Both get float32
gradients of one kind in one run. The baseline is timed on a few gradients, as its cost
per gradient does not depend on their number; ours on all m, inversion included. The
errors are those of the inverse on 64 blocks against float64, the baseline's on all m
too. ``ratio`` is the lowest of the rows with float64 sums, which are the default.

    python benchmarks/bench_fisher.py [--quick] [--json FILE]
"""

import time
from typing import Any

import _common as common
import torch
from _baseline import Baseline, compare_baselines, find_baseline
from torch import Tensor

from obert_modifiers.core.distributed.sharding import FOLD_SAMPLES, PIECE_WEIGHTS
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.kernels import inverse_blocks

NUM_GRADS, DAMP = 1024, 1e-3
BASELINE_GRADS, CHECKED_BLOCKS = 8, 64
DTYPES = (torch.float64, torch.float32)
SIZES = [
    *[(1_000_000, width, NUM_GRADS) for width in (48, 50, 64, 128, 384)],
    *[(10_000_000, width, NUM_GRADS) for width in (48, 50)],
]
QUICK_SIZES = [(1_000_000, width, 256) for width in (48, 50)]


def gradients(numel: int, count: int, seed: int) -> Tensor:
    """Draw gradients whose blocks are far from diagonal.

    Args:
        numel: Weights d.
        count: Gradients k.
        seed: Seed.

    Returns:
        ``(k, d)``, float32.
    """
    generator = torch.Generator().manual_seed(seed)
    common_part = torch.randn(count, 1, generator=generator)
    return torch.randn(count, numel, generator=generator) * 0.5 + common_part


def piece_sizes(numel: int, width: int) -> list[int]:
    """Cut weights into whole blocks as an event does.

    Args:
        numel: Weights d, a multiple of the width.
        width: Block width B.

    Returns:
        Weights of each piece.
    """
    size = PIECE_WEIGHTS - PIECE_WEIGHTS % width
    return [min(size, numel - start) for start in range(0, numel, size)]


def ours(
    numel: int, width: int, num_grads: int, pool: list[Tensor], dtype: torch.dtype
) -> dict[str, Any]:
    """Time accumulation and inversion, and keep a few inverses.

    Args:
        numel: Weights d.
        width: Block width B.
        num_grads: Gradients m.
        pool: Gradients of a piece, used in turn by every piece.
        dtype: Precision of the sums.

    Returns:
        Seconds by part, and the inverses of the first blocks.
    """
    sizes = piece_sizes(numel, width)
    started = time.perf_counter()
    fishers = [BlockFisher(size, width, dtype=dtype) for size in sizes]
    room = torch.empty(FOLD_SAMPLES * max(sizes), dtype=dtype)
    for nth in range(num_grads // FOLD_SAMPLES):
        for size, fisher in zip(sizes, fishers, strict=True):
            grads = room[: FOLD_SAMPLES * size].view(FOLD_SAMPLES, size)
            fisher.add_(grads.copy_(pool[nth % len(pool)][:, :size]))
    summed = time.perf_counter()
    for fisher in fishers:
        inverse_blocks(fisher.sums, fisher.scale, DAMP)
    done = time.perf_counter()
    first = fishers[0]
    checked = inverse_blocks(first.sums[:CHECKED_BLOCKS], first.scale, DAMP)
    return {"sum_s": summed - started, "invert_s": done - summed, "inverse": checked}


def one_at_a_time(baseline: Baseline, numel: int, width: int) -> float:
    """Time the baseline.

    Args:
        baseline: The baseline.
        numel: Weights d.
        width: Block width B.

    Returns:
        Seconds per gradient.
    """
    grads = gradients(numel, BASELINE_GRADS + 1, 2)
    state = baseline.make(len(grads), width, numel, DAMP)
    state.add_grad(grads[0])
    started = time.perf_counter()
    for grad in grads[1:]:
        state.add_grad(grad)
    return (time.perf_counter() - started) / BASELINE_GRADS


def reference(
    baseline: Baseline, width: int, num_grads: int, pool: list[Tensor]
) -> tuple[Tensor, float]:
    """Invert the first blocks in float64, and by the baseline.

    Args:
        baseline: The baseline.
        width: Block width B.
        num_grads: Gradients m.
        pool: Gradients that are used in turn.

    Returns:
        The inverses ``(blocks, B, B)``, and the baseline's error.
    """
    numel = CHECKED_BLOCKS * width
    sums = torch.zeros(CHECKED_BLOCKS, width, width, dtype=torch.float64)
    state = baseline.make(num_grads, width, numel, DAMP)
    for nth in range(num_grads // FOLD_SAMPLES):
        part = pool[nth % len(pool)][:, :numel]
        for grad in part:
            state.add_grad(grad)
        cut = part.double().reshape(len(part), CHECKED_BLOCKS, width)
        sums += torch.einsum("kbi,kbj->bij", cut, cut)
    exact = torch.linalg.inv(sums / num_grads + DAMP * torch.eye(width).double())
    return exact, error_of(state.f_inv, exact)


def error_of(found: Tensor, exact: Tensor) -> float:
    """Return the norm-wise relative error.

    Args:
        found: Inverses of any dtype.
        exact: The same in float64.

    Returns:
        The error.
    """
    return float((found.double() - exact).norm() / exact.norm())


def measure(
    baseline: Baseline,
    size: tuple[int, int, int],
    rates: dict[torch.dtype, float],
) -> list[dict[str, Any]]:
    """Measure one size in both precisions.

    Args:
        baseline: What ours is measured against.
        size: Weights d, block width B and gradients m.
        rates: The machine's matrix-product rate by precision.

    Returns:
        Rows of the table.
    """
    numel, width, num_grads = size
    numel -= numel % width
    pool = [
        gradients(min(numel, PIECE_WEIGHTS), FOLD_SAMPLES, seed) for seed in range(2)
    ]
    theirs = one_at_a_time(baseline, numel, width)
    exact, baseline_error = reference(baseline, width, num_grads, pool)
    rows = []
    for dtype in DTYPES:
        ours(max(piece_sizes(numel, width)), width, FOLD_SAMPLES, pool, dtype)
        mine = ours(numel, width, num_grads, pool, dtype)
        per_gradient = (mine["sum_s"] + mine["invert_s"]) / num_grads
        rows.append({
            "numel": numel,
            "fisher_block_size": width,
            "num_grads": num_grads,
            "fisher_dtype": str(dtype).removeprefix("torch."),
            "seconds_per_gradient": per_gradient,
            "sum_s": mine["sum_s"],
            "invert_s": mine["invert_s"],
            "baseline": baseline.name,
            "baseline_seconds_per_gradient": theirs,
            "ratio": theirs / per_gradient,
            "error": error_of(mine["inverse"], exact),
            "baseline_error": baseline_error,
            "share_of_matrix_rate": 2.0 * numel * width / rates[dtype] / per_gradient,
        })
    return rows


def main() -> None:
    """Run the benchmark."""
    arguments = common.parser(__doc__).parse_args()
    rates = {dtype: common.matrix_rate(dtype) for dtype in DTYPES}
    baseline = find_baseline()
    print(f"baseline: {baseline.name}")
    compared = compare_baselines(baseline, gradients(1_000_000, 9, 3), DAMP)
    if compared:
        print(
            f"it and the recursion in plain torch differ by "
            f"{compared['difference']:.1e} and it takes "
            f"{compared['seconds_ratio']:.2f} times as long"
        )
    rows = []
    for size in QUICK_SIZES if arguments.quick else SIZES:
        for row in measure(baseline, size, rates):
            rows.append(row)
            print(
                f"d {row['numel']:>10,}  B {row['fisher_block_size']:>3}  "
                f"m {row['num_grads']}  {row['fisher_dtype']}  "
                f"{1e3 * row['seconds_per_gradient']:8.2f} ms, baseline "
                f"{1e3 * row['baseline_seconds_per_gradient']:8.2f} ms per gradient  "
                f"ratio {row['ratio']:5.1f}  error {row['error']:.1e} (baseline "
                f"{row['baseline_error']:.1e})  "
                f"{100 * row['share_of_matrix_rate']:.0f} % of the matrix rate",
                flush=True,
            )
    wide = [row["ratio"] for row in rows if row["fisher_dtype"] == "float64"]
    result = {
        "benchmark": "fisher",
        "ratio": min(wide),
        "baseline": baseline.name,
        "sparseml_beside_recursion": compared,
        "matrix_rate_gflops": {
            str(dtype).removeprefix("torch."): rate / 1e9
            for dtype, rate in rates.items()
        },
        "rows": rows,
        **common.environment(),
    }
    common.write(arguments.json, result)


if __name__ == "__main__":
    main()
