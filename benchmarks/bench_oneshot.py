"""One-shot pruning of the fine-tuned embedded encoder: which rule keeps most.

Every combination of selection and update, magnitude beside them, at several sparsities
and patterns, without any fine-tuning after; full validation set of movie_snippets,
several seeds of gradient samples.

    python benchmarks/bench_oneshot.py [--quick] [--json FILE] [--seeds 0 1 2]

Rows: ``{dataset, method, pattern, sparsity, num_grads, seed, accuracy, loss}``.
"""

import copy
import statistics
import time
from typing import Any

import _common as common
import _encoder as encoder
from torch import nn

from obert_modifiers.batches import TaskData
from obert_modifiers.modifiers import GMPStarPruningModifier, OBERTPruningModifier
from obert_modifiers.modifiers._gradual import GradualPruningModifier

WIDTH, NUM_GRADS = 48, 1024
UNSTRUCTURED = (0.5, 0.6, 0.7, 0.8, 0.9)
METHODS = {
    "magnitude": None,
    "independent, SparseML's update": ("independent", "independent"),
    "independent, joint": ("independent", "joint"),
    "greedy, joint": ("greedy", "joint"),
}


def modifier_for(
    method: str, pattern: str, sparsity: float, num_grads: int
) -> GradualPruningModifier:
    """Make the modifier of one row.

    Args:
        method: A key of `METHODS`.
        pattern: The mask type.
        sparsity: Target in one shot.
        num_grads: Gradients m.

    Returns:
        A modifier to be applied once.
    """
    schedule = {
        "init_sparsity": sparsity,
        "final_sparsity": sparsity,
        "start_epoch": 0.0,
        "end_epoch": 1.0,
        "update_frequency": 1.0,
        "mask_type": pattern,
        "global_sparsity": True,
    }
    rules = METHODS[method]
    if rules is None:
        return GMPStarPruningModifier(**schedule)
    return OBERTPruningModifier(
        **schedule,
        num_grads=num_grads,
        fisher_block_size=WIDTH,
        selection=rules[0],
        update=rules[1],
    )


def row(
    model: nn.Module, data: TaskData, seed: int, settings: tuple[str, str, float, int]
) -> dict[str, Any]:
    """Prune a copy of the model and evaluate it.

    Args:
        model: The dense model.
        data: The task.
        seed: Seed of the gradient samples.
        settings: Method, pattern, sparsity and gradients.

    Returns:
        A row of the table.
    """
    method, pattern, sparsity, num_grads = settings
    pruned = copy.deepcopy(model)
    started = time.perf_counter()
    modifier = modifier_for(method, pattern, sparsity, num_grads)
    source = encoder.source_of(pruned, data, seed)
    modifier.apply(pruned, gradient_source=source)
    return {
        "dataset": "movie_snippets",
        "method": method,
        "pattern": pattern,
        "sparsity": sparsity,
        "num_grads": 0 if METHODS[method] is None else num_grads,
        "seed": seed,
        "seconds": time.perf_counter() - started,
        **encoder.validation(pruned, data),
    }


def plan(quick: bool) -> list[tuple[str, str, float, int]]:
    """List what is measured.

    Args:
        quick: True for a short list.

    Returns:
        Method, pattern, sparsity and gradients of each row.
    """
    if quick:
        return [(method, "unstructured", 0.7, 128) for method in METHODS]
    rows = [
        (method, "unstructured", sparsity, NUM_GRADS)
        for sparsity in UNSTRUCTURED
        for method in METHODS
    ]
    rows += [(method, "block4", 0.7, NUM_GRADS) for method in METHODS]
    return rows + [(method, "2:4", 0.5, NUM_GRADS) for method in METHODS]


def main() -> None:
    """Run the benchmark."""
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    model, data = encoder.dense_model(), encoder.task_data()
    dense = encoder.validation(model, data)
    print(f"dense: accuracy {dense['accuracy']:.4f}, loss {dense['loss']:.4f}")
    rows: list[dict[str, Any]] = []
    for settings in plan(arguments.quick):
        # Magnitude draws no samples, so that one seed tells all.
        drawn = seeds if METHODS[settings[0]] else seeds[:1]
        own = [row(model, data, seed, settings) for seed in drawn]
        rows += own
        print(line(own), flush=True)
        result = {
            "benchmark": "oneshot",
            "dense": dense,
            "rows": rows,
            **common.environment(),
        }
        common.write(arguments.json, result)


def line(rows: list[dict[str, Any]]) -> str:
    """Format mean and spread over seeds.

    Args:
        rows: Rows that differ in the seed alone.

    Returns:
        One line.
    """
    parts = []
    for figure in ("accuracy", "loss"):
        values = [r[figure] for r in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        parts.append(f"{figure} {statistics.mean(values):.4f} ± {spread:.4f}")
    first = rows[0]
    return (
        f"{first['pattern']:>12} {first['sparsity']:.0%}  {first['method']:<32}"
        f"  {parts[0]}  {parts[1]}  {first['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
