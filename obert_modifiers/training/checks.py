"""Whether model, data, settings, recipe and teacher of a run go together."""

from torch import nn

from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training.batches import TaskData, check_sampling_options
from obert_modifiers.training.config import SCHEDULES, TrainConfig
from obert_modifiers.training.guards import check_data, check_same_classes
from obert_modifiers.training.launching import check_compiler, check_environment
from obert_modifiers.training.saving import check_saving
from obert_modifiers.training.trackers import trackers_of


def check_run(
    model: nn.Module,
    data: TaskData,
    config: TrainConfig,
    manager: RecipeManager | None,
    teacher: nn.Module | str | None,
) -> None:
    """Check what a run is given against each other, before anything is changed.

    Args:
        model: The model.
        data: The task.
        config: How to train.
        manager: A checked recipe, or None.
        teacher: Model to distil from, or its name, or None.

    Raises:
        ValueError: If something does not fit.
    """
    check_environment()
    check_compiler(config.torch_compile)
    check_data(data.train)
    check_same_classes(model, teacher)
    if config.lr_scheduler_type not in SCHEDULES:
        raise ValueError(
            f"lr_scheduler_type={config.lr_scheduler_type} is unknown; expected one of "
            f"{', '.join(SCHEDULES)}; use linear"
        )
    check_saving(config)
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
