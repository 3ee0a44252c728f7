"""The whole second-order step on the embedded encoder, ours beside SparseML's.

One-shot pruning of its 10.6 M encoder weights to 80 %: gradients, Fisher, selection and
update. Ours takes 1024 per-sample gradients. SparseML's ``OBSPruningModifier`` runs
with its own ``GradSampler`` on batches of 8; its time is split into a part per gradient
and a fixed part by two short runs and extrapolated, and marked so:

- ``ratio``: as its recipes run it, 1024 batches of 8, eight times our samples;
- ``ratio_same_samples``: 128 batches of 8, the same number of samples as ours.

Without ``--quick`` its run on the same samples is also made in full, for the loss.

    python benchmarks/bench_pruning_step.py [--quick] [--json FILE]

The fine-tuned model is made first where it is missing (``make bench-prepare``).
"""

import copy
import math
import time
import warnings
from typing import Any

import _common as common
import _encoder as encoder
from torch import nn

from obert_modifiers.batches import TaskData
from obert_modifiers.modifiers import OBERTPruningModifier

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sparseml.pytorch.optim import OBSPruningModifier

SPARSITY, NUM_GRADS, SPARSEML_BATCH, WIDTH = 0.8, 1024, 8, 48
SHORT, LONG = 8, 24  # gradients of SparseML's two timed runs
PARAMS = ["re:.*encoder.layer.*(query|key|value|dense).weight"]
SCHEDULE = {
    "init_sparsity": SPARSITY,
    "final_sparsity": SPARSITY,
    "start_epoch": 0.0,
    "end_epoch": 1.0,
    "update_frequency": 1.0,
}


def ours(model: nn.Module, data: TaskData, num_grads: int) -> dict[str, Any]:
    """Prune in one shot with our modifier.

    Args:
        model: The dense model, left as it is.
        data: The task.
        num_grads: Gradients m.

    Returns:
        Seconds, loss and accuracy, and what the report predicts.
    """
    pruned = copy.deepcopy(model)
    modifier = OBERTPruningModifier(
        **SCHEDULE, num_grads=num_grads, fisher_block_size=WIDTH
    )
    source = encoder.source_of(pruned, data)
    started = time.perf_counter()
    modifier.apply(pruned, gradient_source=source, finalize=False)
    seconds = time.perf_counter() - started
    report = modifier.events[0]
    modifier.finalize(pruned)
    return {
        "seconds": seconds,
        "num_grads": num_grads,
        "samples": num_grads,
        "peak_memory_bytes": report.peak_memory_bytes,
        "predicted_loss_increase": report.predicted_loss_increase,
        **encoder.validation(pruned, data),
    }


def sparsemls(model: nn.Module, data: TaskData, num_grads: int) -> dict[str, Any]:
    """Prune in one shot with SparseML's modifier.

    Args:
        model: The dense model, left as it is.
        data: The task.
        num_grads: Gradients m, of batches of 8.

    Returns:
        Seconds, and loss and accuracy.
    """
    pruned = copy.deepcopy(model)
    modifier = OBSPruningModifier(
        **SCHEDULE,
        params=PARAMS,
        num_grads=num_grads,
        fisher_block_size=WIDTH,
        damp=1e-7,
    )
    sampler = encoder.sparseml_sampler(data, SPARSEML_BATCH)
    started = time.perf_counter()
    modifier.apply(pruned, epoch=math.inf, grad_sampler=sampler)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "num_grads": num_grads,
        "samples": num_grads * SPARSEML_BATCH,
        **encoder.validation(pruned.eval(), data),
    }


def main() -> None:
    """Run the benchmark."""
    arguments = common.parser(__doc__).parse_args()
    model, data = encoder.dense_model(), encoder.task_data()
    num_grads = 256 if arguments.quick else NUM_GRADS
    ours(model, data, 32)  # compile and warm up
    mine = ours(model, data, num_grads)
    short, long = (sparsemls(model, data, count) for count in (SHORT, LONG))
    per_gradient = (long["seconds"] - short["seconds"]) / (LONG - SHORT)
    fixed = short["seconds"] - SHORT * per_gradient
    same_samples = num_grads // SPARSEML_BATCH
    extrapolated = {
        "as_its_recipes_run_it_s": fixed + num_grads * per_gradient,
        "same_samples_s": fixed + same_samples * per_gradient,
        "seconds_per_gradient": per_gradient,
        "fixed_s": fixed,
        "timed_gradients": [SHORT, LONG],
    }
    result = {
        "benchmark": "pruning_step",
        "ratio": extrapolated["as_its_recipes_run_it_s"] / mine["seconds"],
        "ratio_same_samples": extrapolated["same_samples_s"] / mine["seconds"],
        "dense": encoder.validation(model, data),
        "ours": mine,
        "sparseml_extrapolated": extrapolated,
        **common.environment(),
    }
    if not arguments.quick:
        full = sparsemls(model, data, same_samples)
        result["sparseml_same_samples"] = full
        result["ratio_same_samples_in_full"] = full["seconds"] / mine["seconds"]
    for key, value in result.items():
        print(f"{key}: {value}")
    common.write(arguments.json, result)


if __name__ == "__main__":
    main()
