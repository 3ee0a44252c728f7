"""The whole second-order step on the embedded encoder, ours beside SparseML's.

One-shot pruning of its 10.6 M encoder weights to 80 %: gradients, Fisher, selection and
update. Ours takes 128 gradients of batches of 8, the default. The baseline is
SparseML's ``OBSPruningModifier`` with its own ``GradSampler``, or where SparseML is not
installed the same step in plain torch (the paper's recursion); the result says which.
It gets the same batches of 8; its time is split into a part per gradient and a fixed
part by two short runs and extrapolated, and marked so:

- ``ratio_same_samples``: 128 batches of 8, those of ours;
- ``ratio``: as SparseML's recipes run it, 1024 batches of 8, eight times our samples.

Without ``--quick`` the baseline's run on the same batches is also made in full, for the
loss, and ours with float32 sums, with 1024 gradients of single sentences and with
blocks of 128.

    python benchmarks/bench_pruning_step.py [--quick] [--json FILE]

The fine-tuned model is made first where it is missing (``make bench-prepare``).
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import _common as common
import _encoder as encoder
import torch
from _baseline import RECURSION, rank_one_step_, sparseml_module
from torch import nn

from obert_modifiers.core.distributed.memory import peak_memory
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.pruning_step import second_order_step_
from obert_modifiers.training.batches import TaskData

SPARSITY, NUM_GRADS, BATCH, WIDTH = 0.8, 128, 8, 48
QUICK_GRADS = 32
RECIPE_GRADS = 8  # SparseML's recipes take so many times our gradients
DAMP = 1e-7  # SparseML's default
SHORT, LONG = 8, 24  # gradients of the baseline's two timed runs
PARAMS = ["re:.*encoder.layer.*(query|key|value|dense).weight"]
SPARSEML_STEP = "SparseML's OBSPruningModifier"
Step = Callable[[nn.Module, TaskData, int], None]


def ours(
    model: nn.Module, data: TaskData, num_grads: int, **changes: Any
) -> dict[str, Any]:
    """Prune in one shot with our step.

    Args:
        model: The dense model, left as it is.
        data: The task.
        num_grads: Gradients m.
        changes: Of the configuration; else gradients are of batches of `BATCH`.

    Returns:
        Seconds, loss and accuracy, and what the step predicts.
    """
    pruned = copy.deepcopy(model)
    targets = encoder.encoder_targets(pruned)
    config = SecondOrderConfig(
        num_grads=num_grads,
        fisher_block_size=WIDTH,
        grad_granularity="batch",
        options=(("batch_size", BATCH),),
    )
    config = replace(config, **changes)
    started = time.perf_counter()
    result = second_order_step_(
        pruned,
        targets,
        [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets],
        [SPARSITY] * len(targets),
        global_sparsity=True,
        config=config,
        source=encoder.source_of(pruned, data),
    )
    seconds = time.perf_counter() - started
    by_batch = config.grad_granularity == "batch"
    return {
        "seconds": seconds,
        "num_grads": num_grads,
        "samples": num_grads * (BATCH if by_batch else 1),
        "fisher_block_size": config.fisher_block_size,
        "fisher_dtype": config.fisher_dtype,
        "memory_plan": result.plan.describe(),
        "peak_memory_bytes": peak_memory(),
        "predicted_loss_increase": result.predicted_loss_increase,
        **encoder.validation(pruned, data),
    }


def sparseml_step_(modifier: type, model: nn.Module, data: TaskData, m: int) -> None:
    """Prune in one shot with SparseML's modifier; writes the parameters.

    Args:
        modifier: Its class.
        model: The model.
        data: The task.
        m: Gradients, of batches of `BATCH`.
    """
    made = modifier(
        init_sparsity=SPARSITY,
        final_sparsity=SPARSITY,
        start_epoch=0.0,
        end_epoch=1.0,
        update_frequency=1.0,
        params=PARAMS,
        num_grads=m,
        fisher_block_size=WIDTH,
        damp=DAMP,
    )
    sampler = encoder.sparseml_sampler(model, data, m, BATCH)
    made.apply(model, epoch=math.inf, grad_sampler=sampler)


def recursion_step_(model: nn.Module, data: TaskData, m: int) -> None:
    """Prune in one shot with the paper's recursion; writes the parameters.

    Args:
        model: The model.
        data: The task.
        m: Gradients, of batches of `BATCH`.
    """
    sampler = encoder.sparseml_sampler(model, data, m, BATCH)
    batches = islice(sampler["data_loader_builder"](None), m)

    def loss(inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        return sampler["loss_function"](model(**inputs), labels)

    losses = [partial(loss, inputs, labels) for _, inputs, labels in batches]
    rank_one_step_(encoder.encoder_targets(model), losses, WIDTH, DAMP, SPARSITY)


def find_step() -> tuple[str, Step]:
    """Take SparseML's modifier where it is installed, otherwise the recursion.

    Returns:
        Its name for the result, and the function.
    """
    module = sparseml_module("sparseml.pytorch.sparsification.pruning")
    if module is None:
        return RECURSION, recursion_step_
    return SPARSEML_STEP, partial(sparseml_step_, module.OBSPruningModifier)


def timed_baseline(
    step_: Step, model: nn.Module, data: TaskData, num_grads: int
) -> dict[str, Any]:
    """Prune in one shot with the baseline.

    Args:
        step_: The baseline.
        model: The dense model, left as it is.
        data: The task.
        num_grads: Gradients m.

    Returns:
        Seconds.
    """
    pruned = copy.deepcopy(model)
    started = time.perf_counter()
    step_(pruned, data, num_grads)
    return {
        "seconds": time.perf_counter() - started,
        "num_grads": num_grads,
        "samples": num_grads * BATCH,
        "model": pruned.eval(),
    }


def extrapolate(
    step_: Step, model: nn.Module, data: TaskData, num_grads: int
) -> dict[str, Any]:
    """Time the baseline on few gradients.

    Args:
        step_: The baseline.
        model: The dense model, left as it is.
        data: The task.
        num_grads: Our gradients m.

    Returns:
        The seconds that it would take, and its parts.
    """
    short, long = (
        timed_baseline(step_, model, data, m)["seconds"] for m in (SHORT, LONG)
    )
    per_gradient = (long - short) / (LONG - SHORT)
    fixed = short - SHORT * per_gradient
    return {
        "as_its_recipes_run_it_s": fixed + RECIPE_GRADS * num_grads * per_gradient,
        "same_samples_s": fixed + num_grads * per_gradient,
        "seconds_per_gradient": per_gradient,
        "fixed_s": fixed,
        "timed_gradients": [SHORT, LONG],
    }


def main() -> None:
    """Run the benchmark."""
    arguments = common.parser(__doc__).parse_args()
    model, data = encoder.dense_model(), encoder.task_data()
    num_grads = QUICK_GRADS if arguments.quick else NUM_GRADS
    ours(model, data, 8)  # compile and warm up
    mine = ours(model, data, num_grads)
    name, step_ = find_step()
    extrapolated = extrapolate(step_, model, data, num_grads)
    result = {
        "benchmark": "pruning_step",
        "baseline": name,
        "ratio": extrapolated["as_its_recipes_run_it_s"] / mine["seconds"],
        "ratio_same_samples": extrapolated["same_samples_s"] / mine["seconds"],
        "dense": encoder.validation(model, data),
        "ours": mine,
        "baseline_extrapolated": extrapolated,
        **common.environment(),
    }
    if not arguments.quick:
        result["ours_float32"] = ours(model, data, num_grads, fisher_dtype="float32")
        result["ours_single"] = ours(
            model, data, num_grads * BATCH, grad_granularity="sample", options=()
        )
        result["ours_wide"] = ours(model, data, num_grads, fisher_block_size=128)
        full = timed_baseline(step_, model, data, num_grads)
        full |= encoder.validation(full.pop("model"), data)
        result["baseline_same_samples"] = full
        result["ratio_same_samples_in_full"] = full["seconds"] / mine["seconds"]
    for key, value in result.items():
        print(f"{key}: {value}")
    common.write(arguments.json, result)


if __name__ == "__main__":
    main()
