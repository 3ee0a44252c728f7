"""Whether model, data, settings, recipe and teacher of a run go together."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from obert_modifiers.core.distributed.parallel import all_reduce_
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training.batches import TaskData, check_sampling_options
from obert_modifiers.training.config import (
    RECIPE_CHANGED,
    SAVE_STRATEGIES,
    SCHEDULES,
    TrainConfig,
)
from obert_modifiers.training.environment import check_compiler, check_environment
from obert_modifiers.training.trackers import trackers_of


def check_run(
    model: nn.Module,
    data: TaskData,
    config: TrainConfig,
    manager: RecipeManager | None,
    teacher: nn.Module | str | None,
) -> None:
    """Check what a run is given against each other, before anything is changed."""
    check_environment()
    check_compiler(config.torch_compile)
    _check_data(data.train)
    check_same_classes(model, teacher)
    if config.lr_scheduler_type not in SCHEDULES:
        raise ValueError(
            f"lr_scheduler_type={config.lr_scheduler_type} is unknown; expected one of "
            f"{', '.join(SCHEDULES)}; use linear"
        )
    _check_saving(config)
    trackers_of(config.report_to)
    if manager is not None:
        if config.save_strategy != "no":
            manager.check_can_be_saved()
        manager.check_data(len(data.train))
        manager.check_teacher(teacher)
        if manager.early_stopping is not None:
            _check_evaluations(data, config)
        for modifier in manager.pruning:
            check_sampling_options(getattr(modifier, "grad_sampler_kwargs", None))


def _check_evaluations(data: TaskData, config: TrainConfig) -> None:
    if not (config.eval_each_epoch and len(data.validation)):
        raise ValueError(
            f"eval_each_epoch={config.eval_each_epoch} with {len(data.validation)} "
            "validation samples leaves EarlyStoppingModifier nothing to go by; "
            "expected an evaluation after each epoch; give --do_eval and "
            "--eval_strategy epoch, or remove the modifier"
        )


def _check_data(samples: Sequence[dict[str, Any]]) -> None:
    if not hasattr(samples, "__len__"):
        raise ValueError(
            f"train data is {type(samples).__name__} without a length; expected samples"
            " by index, as epochs are counted; make a list or a datasets.Dataset of it"
        )
    if not len(samples):
        raise ValueError(
            "train data has 0 samples; expected 1 or more; look at the data set"
        )


def check_same_classes(model: nn.Module, teacher: Any) -> None:
    """Check that a teacher that classifies has as many classes as the model."""
    if not isinstance(teacher, nn.Module) or not _classifies(model, teacher):
        return
    ours, theirs = model.config.num_labels, teacher.config.num_labels
    if ours != theirs:
        raise ValueError(
            f"teacher has num_labels={theirs}; expected the model's {ours}; use a "
            "teacher with the same labels"
        )


def _classifies(*models: Any) -> bool:
    return all(
        "Classification" in type(one).__name__
        and hasattr(getattr(one, "config", None), "num_labels")
        for one in models
    )


def _check_saving(config: TrainConfig) -> None:
    for name, choices in (
        ("save_strategy", SAVE_STRATEGIES),
        ("recipe_changed", RECIPE_CHANGED),
    ):
        value = getattr(config, name)
        if value not in choices:
            raise ValueError(
                f"{name}={value} is unknown; expected one of {', '.join(choices)}; "
                f"use {choices[0]}"
            )
    for name in ("save_steps", "save_total_limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(
                f"{name}={value} is not positive; expected 1 or more; raise it"
            )


def check_same_data(lengths: Sequence[int], device: torch.device) -> None:
    """Check that all processes have the same training data.

    Without that one would wait for a batch that another does not have.
    """
    digest = hashlib.sha256(repr(list(lengths)).encode()).digest()
    number = int.from_bytes(digest[:7], "big")
    pair = torch.tensor([number, -number], device=device)
    least, most = all_reduce_(pair, least=True).tolist()
    if least != -most:
        raise ValueError(
            f"train data with {len(lengths)} samples differs between the processes; "
            "expected the same samples in the same order on all; give all of them the "
            "same files and flags"
        )
