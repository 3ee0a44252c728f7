"""Whether model, data, settings, recipe and teacher of a run go together."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import nn

from obert_modifiers.core.distributed.parallel import all_reduce_
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training.batches import TaskData, check_sampling_options
from obert_modifiers.training.config import CHOICES, TrainConfig
from obert_modifiers.training.environment import check_environment
from obert_modifiers.training.journal import trackers_of


def check_run(
    model: nn.Module,
    data: TaskData,
    config: TrainConfig,
    manager: RecipeManager | None,
    teacher: nn.Module | str | None,
) -> None:
    """Check what a run is given against each other, before anything is changed."""
    check_environment()
    _check_config(config)
    _check_data(data.train)
    check_same_classes(model, teacher)
    trackers_of(config.report_to)
    if data.texts is not None:
        check_taught("texts without labels", manager, teacher)
    if manager is None:
        return
    if config.save_strategy != "no":
        manager.check_can_be_saved()
    manager.check_data(len((data.gradients or data).train))
    manager.check_teacher(teacher)
    evaluates = config.eval_each_epoch and len(data.validation)
    if manager.early_stopping is not None and not evaluates:
        raise ValueError(
            f"eval_each_epoch={config.eval_each_epoch} with {len(data.validation)} "
            "validation samples leaves EarlyStoppingModifier nothing to go by; "
            "expected evaluations; give --do_eval and --eval_strategy epoch"
        )
    for modifier in manager.pruning:
        check_sampling_options(getattr(modifier, "grad_sampler_kwargs", None))


def _check_config(config: TrainConfig) -> None:
    for name, choices in CHOICES.items():
        _check_choice(name, getattr(config, name), choices)
    if config.torch_compile is not None:
        backends = [one.value.lower() for one in DynamoBackend]
        _check_choice("torch_compile", config.torch_compile.lower(), backends)
    for name, most in (("num_train_epochs", 1e9), ("warmup_ratio", 1.0)):
        value = getattr(config, name)
        if not 0.0 <= value <= most:
            raise ValueError(
                f"{name}={value} is outside [0, {most:g}]; expected epochs, or a share "
                "of the steps; correct it"
            )
    for name in ("save_steps", "save_total_limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(
                f"{name}={value} is not positive; expected 1 or more; raise it"
            )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(
            f"{name}={value} is unknown; expected one of {', '.join(choices)}; "
            f"use {choices[0]}"
        )


def _check_data(samples: Sequence[dict[str, Any]]) -> None:
    if not hasattr(samples, "__len__"):
        raise ValueError(
            f"train data is {type(samples).__name__} without a length; expected samples"
            " by index; make a list or a datasets.Dataset of it"
        )
    if not len(samples):
        raise ValueError("train data has 0 samples; expected 1 or more; look at it")


def check_taught(what: str, manager: RecipeManager | None, teacher: Any) -> None:
    """Check that somebody teaches what has no labels."""
    distils = manager.distillation if manager is not None else []
    if manager is not None and teacher is None:
        teacher = manager.teacher
    known = teacher not in (None, "disable")
    if not (known and any(getattr(one, "hardness", 1.0) > 0.0 for one in distils)):
        raise ValueError(
            f"{what} have no loss without a teacher; expected a distillation modifier "
            "with a hardness above 0 in the recipe, and a teacher; add them, as with "
            "--distill_teacher"
        )


def check_same_classes(model: nn.Module, teacher: Any) -> None:
    """Check that a teacher that classifies has as many classes as the model."""
    if not (_classifies(model) and _classifies(teacher)):
        return
    ours, theirs = model.config.num_labels, teacher.config.num_labels
    if ours != theirs:
        raise ValueError(
            f"teacher has num_labels={theirs}; expected the model's {ours}; use another"
        )


def _classifies(model: Any) -> bool:
    named = "Classification" in type(model).__name__
    return named and hasattr(getattr(model, "config", None), "num_labels")


def check_same_data(lengths: Sequence[int], device: torch.device) -> None:
    """Check that all processes have the same data; one would wait for another's."""
    digest = hashlib.sha256(repr(list(lengths)).encode()).digest()
    number = int.from_bytes(digest[:7], "big")
    pair = torch.tensor([number, -number], device=device)
    least, most = all_reduce_(pair, least=True).tolist()
    if least != -most:
        raise ValueError(
            f"train data with {len(lengths)} samples differs between the processes; "
            "expected the same samples in the same order; give all the same flags"
        )
