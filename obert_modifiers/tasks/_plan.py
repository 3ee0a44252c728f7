"""Load and check everything that a run needs, before any training."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from obert_modifiers.compat import replaced
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.tasks import _data, _models, _teacher_inputs
from obert_modifiers.tasks._arguments import Arguments
from obert_modifiers.tasks._files import MISMATCHED
from obert_modifiers.tasks._task import Inputs, Prepared, Task, no_labels
from obert_modifiers.training import SCHEDULES, TrainConfig, check_tf32
from obert_modifiers.training.batches import lengths_of

logger = logging.getLogger(__name__)

_PAD_MULTIPLE = 8  # tensor cores want it in half precision
_SPLIT_FLAGS = {
    "train": ("do_train", "--train_file"),
    "validation": ("do_eval", "--validation_file or --validation_ratio"),
    "test": ("do_predict", "--test_file"),
}


@dataclass
class Notes:
    """What a run says before training starts; logged, and kept for the record.

    Attributes:
        texts: What was said.
    """

    texts: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Log a sentence and keep it.

        Args:
            text: The sentence.
        """
        self.texts.append(text)
        logger.info(text)


@dataclass(frozen=True)
class Plan:
    """Everything that was loaded and checked.

    Attributes:
        task: The task.
        arguments: The flags, with what is to be done filled in.
        manager: The recipe, or None.
        inputs: The data set, its classes, and where the model came from.
        model: The model, with a head for the task.
        teacher: A model, ``self``, ``disable`` or None.
        samples: The data set as samples.
        config: The training loop's settings.
        prunable: Names of the parameters whose sparsity is reported.
    """

    task: Task
    arguments: Arguments
    manager: RecipeManager | None
    inputs: Inputs
    model: PreTrainedModel
    teacher: Any
    samples: Prepared
    config: TrainConfig
    prunable: list[str]


def what_to_do(task: Task, arguments: Arguments) -> Arguments:
    """Fill in the do_* flags: without any of them, train and evaluate.

    Args:
        task: The task.
        arguments: The flags as given.

    Returns:
        The flags with what they mean.

    Raises:
        ValueError: If there is a recipe and no training, or nothing to predict.
    """
    train = arguments.train
    if train.do_predict and task.write_predictions is None:
        raise ValueError(
            f"--do_predict has nothing to predict in {task.name}; expected --do_train "
            "or --do_eval; leave it out"
        )
    if not (train.do_train or train.do_eval or train.do_predict):
        train = replace(train, do_train=True, do_eval=True)
    if train.recipe is None and train.recipe_args is not None:
        raise ValueError(
            f"--recipe_args={train.recipe_args} has no recipe; expected --recipe beside"
            " it; add the recipe"
        )
    if train.recipe is not None and not train.do_train:
        raise ValueError(
            f"--recipe={train.recipe} needs training; expected --do_train beside it; "
            "add it, or leave the recipe out"
        )
    return replace(arguments, train=train)


def load_recipe(arguments: Arguments) -> RecipeManager | None:
    """Load and check the recipe, before anything slow happens.

    Args:
        arguments: The flags.

    Returns:
        Its manager, or None without a recipe.
    """
    train = arguments.train
    if train.recipe is None:
        return None
    with replaced(train.replace):
        return RecipeManager.from_recipe(train.recipe, train.recipe_args)


def prepare(
    task: Task,
    arguments: Arguments,
    manager: RecipeManager | None,
    state: PartialState,
    notes: Notes,
) -> Plan:
    """Load the data, the model and the teacher, and check the recipe against them.

    Args:
        task: The task.
        arguments: The flags, from `what_to_do`.
        manager: The recipe's.
        state: The process among its peers.
        notes: Takes what there is to say.

    Returns:
        The plan.

    Raises:
        ValueError: If something is missing or does not fit.
    """  # noqa: DOC502  raised by what is called
    inputs = read_inputs(task, arguments, notes)
    config = train_config(arguments, state)
    flags, seed = arguments.model, arguments.train.seed
    loading = (inputs.found, task.model_class, inputs.labels, flags)
    model = _models.load_student(*loading, seed)
    named = manager.teacher if manager is not None else None
    if flags.distill_teacher is not None and named not in (None, flags.distill_teacher):
        notes.say(
            f"--distill_teacher {flags.distill_teacher} comes before the recipe's "
            f"teacher {named}"
        )
    teacher = _models.load_teacher(*loading, named)
    if manager is not None:
        manager.check_teacher(teacher)
        # Before any parameter is looked up by its name.
        manager.apply_structure(model, teacher=teacher)
        manager.check_model(model)
    if teacher not in (None, "disable") and not (manager and manager.distillation):
        notes.say(
            f"the teacher {flags.distill_teacher} is not used: no distillation "
            "modifier is in the recipe"
        )
    if half_on_gpu(config, state):
        inputs = replace(inputs, pad_multiple=_PAD_MULTIPLE)
    samples = task.prepare(inputs)
    if _teacher_inputs.lacks_types(teacher) and len(inputs.data.text_columns) == 2:
        notes.say("the teacher gets token types of its own, which the model has not")
        collate = _teacher_inputs.TeacherTypes(
            samples.data.collate, inputs.found.tokenizer
        )
        samples = replace(samples, data=replace(samples.data, collate=collate))
    if len(samples.data.train):
        _models.check_teachers_length(teacher, max(lengths_of(samples.data.train)))
    if manager is not None and arguments.train.do_train:
        manager.check_data(len(samples.data.train))
    prunable = _models.prunable_names(model, manager)
    return Plan(
        task, arguments, manager, inputs, model, teacher, samples, config, prunable
    )


def read_inputs(task: Task, arguments: Arguments, notes: Notes) -> Inputs:
    """Find the model and read the data set.

    Args:
        task: The task.
        arguments: The flags.
        notes: Takes what there is to say.

    Returns:
        Both, and the classes.
    """
    found = _models.find(arguments.model, words=task.words)
    flags, seed = arguments.data, arguments.train.seed
    cache = arguments.model.cache_dir
    data = _data.load(flags, cache, seed, task.columns, task.reader)
    data = _only_needed(data, arguments)
    _data.need_columns(data)
    if data.splits.keys() == {"test"} and task.labels is not no_labels:
        labels = found.labels(task.model_class, data.label_column)
    else:
        labels = task.labels(data, flags, found.classes(task.model_class))
    _describe(arguments, found, data, labels, notes)
    inputs = Inputs(data, labels, found, flags, seed)
    _models.check_fixed_length(found, inputs.max_length, flags.pad_to_max_length)
    return inputs


def _only_needed(data: _data.TextData, arguments: Arguments) -> _data.TextData:
    """Keep the splits that are used, and see that they are there.

    Args:
        data: The data set.
        arguments: The flags.

    Returns:
        The data set with these splits.

    Raises:
        ValueError: If a split is missing.
    """
    needed = [
        split
        for split, (flag, _) in _SPLIT_FLAGS.items()
        if getattr(arguments.train, flag)
    ]
    for split in needed:
        if split not in data.splits:
            flag, way = _SPLIT_FLAGS[split]
            raise ValueError(
                f"data={data.description} has no {split} split, only "
                f"{', '.join(data.splits)}; expected one for --{flag}; give {way}"
            )
    if "validation" in needed and MISMATCHED in data.splits:
        needed.append(MISMATCHED)
    return replace(data, splits={split: data.splits[split] for split in needed})


def _describe(
    arguments: Arguments,
    found: _models.Pretrained,
    data: _data.TextData,
    labels: _data.Labels | None,
    notes: Notes,
) -> None:
    """Say what was found and which defaults were taken.

    Args:
        arguments: The flags.
        found: The model.
        data: The data set.
        labels: The classes, or None.
        notes: Takes what there is to say.
    """
    if arguments.model.model_name_or_path is None:
        notes.say(f"no --model_name_or_path: training {found.description}")
    if data.description.startswith("the embedded"):
        notes.say(f"no data flags: reading {data.description}")
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in data.splits.items())
    text = f"data: {sizes} rows; text in {' and '.join(data.text_columns)}"
    if labels is not None:
        names = ", ".join(labels.names)
        kind = "a number" if labels.regression else f"classes {names}"
        kind += ", any number of them," if labels.multi else ""
        text += f", {kind} in {labels.column}"
    notes.say(text)


def train_config(arguments: Arguments, state: PartialState) -> TrainConfig:
    """Turn the flags into the training loop's settings.

    Args:
        arguments: The flags.
        state: The process among its peers.

    Returns:
        The settings.

    Raises:
        ValueError: If fp16 or tf32 is asked for on a CPU, or the schedule is unknown.
    """
    train = arguments.train
    if train.fp16 and state.device.type == "cpu":
        raise ValueError(
            "--fp16 runs on a CPU here; expected a GPU; use --bf16 or leave it out"
        )
    if train.tf32:
        check_tf32(state.device)
    if train.lr_scheduler_type not in SCHEDULES:
        raise ValueError(
            f"--lr_scheduler_type={train.lr_scheduler_type} is unknown; expected one "
            f"of {', '.join(SCHEDULES)}; use linear"
        )
    return TrainConfig(
        output_dir=Path(train.output_dir),
        num_train_epochs=train.num_train_epochs,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        per_device_train_batch_size=train.per_device_train_batch_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        max_grad_norm=train.max_grad_norm,
        warmup_ratio=train.warmup_ratio,
        lr_scheduler_type=train.lr_scheduler_type,
        mixed_precision="fp16" if train.fp16 else "bf16" if train.bf16 else "no",
        tf32=train.tf32,
        torch_compile=train.torch_compile_backend
        or ("inductor" if train.torch_compile else None),
        seed=train.seed,
        logging_steps=train.logging_steps,
        group_by_length=train.group_by_length,
        eval_each_epoch=train.do_eval and train.eval_strategy == "epoch",
        cpu=train.use_cpu,
        save_strategy=train.save_strategy,
        save_steps=train.save_steps,
        save_total_limit=train.save_total_limit,
        resume_from_checkpoint=train.resume_from_checkpoint,
        recipe_changed=train.recipe_changed,
        save_on_sigterm=True,
        report_to=train.report_to,
    )


def half_on_gpu(config: TrainConfig, state: PartialState) -> bool:
    """Tell whether the run computes in half precision on a GPU.

    Args:
        config: The training loop's settings.
        state: The process among its peers.

    Returns:
        True where padding to a multiple of eight pays.
    """
    return config.mixed_precision != "no" and state.device.type != "cpu"
