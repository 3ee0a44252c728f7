"""Load and check everything that a run needs, before any training."""

import logging
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel

from obert_modifiers.compat import replaced
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.tasks.data import dataset, unlabelled
from obert_modifiers.tasks.data.columns import MISMATCHED
from obert_modifiers.tasks.flags import Arguments
from obert_modifiers.tasks.run import models, teacher
from obert_modifiers.tasks.task import Inputs, Prepared, Task
from obert_modifiers.training import SCHEDULES, TrainConfig, check_tf32
from obert_modifiers.training.batches import lengths_of
from obert_modifiers.training.checks import check_taught
from obert_modifiers.training.evaluation import calibration_loss

logger = logging.getLogger(__name__)

_PAD_MULTIPLE = 8  # tensor cores want it in half precision
_SPLIT_FLAGS = {
    "train": ("do_train", "--train_file"),
    "validation": ("do_eval", "--validation_file or --validation_ratio"),
    "test": ("do_predict", "--test_file"),
}


@dataclass
class Notes:
    """What a run says before training starts; logged, and kept for the record."""

    texts: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Log a sentence and keep it."""
        self.texts.append(text)
        logger.info(text)


@dataclass(frozen=True)
class Plan:
    """Everything that was loaded and checked."""

    task: Task
    arguments: Arguments
    manager: RecipeManager | None
    inputs: Inputs
    model: PreTrainedModel
    teacher: Any  # a model, self, disable or None
    samples: Prepared
    config: TrainConfig
    prunable: list[str]  # parameters whose sparsity is reported


def with_actions(task: Task, arguments: Arguments) -> Arguments:
    """Fill in the do_* flags: without any of them, train and evaluate."""
    train = arguments.train
    if train.do_predict and not task.prediction_files:
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
    """Load and check the recipe, before anything slow happens."""
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
    """Load the data, the model and the teacher, and check the recipe against them."""
    inputs = read_inputs(task, arguments, notes)
    config = train_config(arguments, state)
    flags, named = arguments.model, manager and manager.teacher
    loading = (inputs.pretrained, task.model_class, inputs.labels, flags)
    model = models.load_student(*loading, arguments.train.seed)
    if flags.distill_teacher is not None and named not in (None, flags.distill_teacher):
        notes.say(
            f"--distill_teacher {flags.distill_teacher} comes before the recipe's "
            f"teacher {named}"
        )
    teaches = teacher.load_teacher(*loading, named)
    if config.mixed_precision != "no" and state.device.type != "cpu":
        inputs = replace(inputs, pad_multiple=_PAD_MULTIPLE)
    prepared: list[Prepared] = []

    def measure(trial: nn.Module) -> float:
        if not prepared:
            prepared.append(task.prepare(inputs))
        return calibration_loss(trial, prepared[0].data, config.seed, state.device)

    if manager is not None:
        manager.check_teacher(teaches)
        manager.check_output(task.output)
        # Before any parameter is looked up by its name.
        manager.apply_structure(model, teacher=teaches, loss=measure)
        manager.check_model(model)
    if teaches not in (None, "disable") and not (manager and manager.distillation):
        notes.say(
            f"the teacher {flags.distill_teacher} is not used: no distillation "
            "modifier is in the recipe"
        )
    if task.check is not None:
        taught = manager is not None and teaches not in (None, "disable")
        task.check(inputs, manager.distillation if taught else ())
    named = inputs.flags.distill_file
    if named is not None:
        unlabelled.check(task, arguments)
        check_taught(f"--distill_file={named}: texts", manager, teaches)
    samples = prepared[0] if prepared else task.prepare(inputs)
    if named is not None:
        samples = unlabelled.add(task, inputs, samples)
        count, share = len(samples.data.texts), inputs.flags.distill_share
        notes.say(f"{count:,} texts without labels are {share:g} of each batch")
    if teacher.lacks_types(teaches) and len(inputs.data.text_columns) == 2:
        notes.say("the teacher gets token types of its own, which the model has not")
        separator = inputs.pretrained.tokenizer.sep_token_id
        collate = teacher.TeacherTypes(samples.data.collate, separator)
        samples = replace(samples, data=replace(samples.data, collate=collate))
    train = samples.data.train
    if len(train):
        every = train if named is None else samples.data.texts
        longest = max(*lengths_of(train), *lengths_of(every))
        teacher.check_length(teaches, longest)
    if manager is not None and arguments.train.do_train:
        manager.check_data(len((samples.data.gradients or samples.data).train))
    prunable = models.prunable_names(model, manager)
    return Plan(
        task, arguments, manager, inputs, model, teaches, samples, config, prunable
    )


def read_inputs(task: Task, arguments: Arguments, notes: Notes) -> Inputs:
    """Find the model, read the data set, decide its classes, and say what is read."""
    pretrained = models.find(arguments.model, words=task.words)
    flags, seed = arguments.data, arguments.train.seed
    cache = arguments.model.cache_dir
    data = dataset.load(flags, cache, seed, task.columns, task.reader)
    data = _only_needed(data, arguments)
    dataset.need_columns(data)
    labels = None
    if task.labels is not None and data.splits.keys() == {"test"}:
        labels = pretrained.labels(task.head, data.label_column)
    elif task.labels is not None:
        labels = task.labels(data, flags, pretrained.classes(task.head))
    inputs = Inputs(data, labels, pretrained, flags, seed)
    if arguments.model.model_name_or_path is None:
        notes.say(f"no --model_name_or_path: training {pretrained.description}")
    if data.description.startswith("the embedded"):
        notes.say(f"no data flags: reading {data.description}")
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in data.splits.items())
    text = f"data: {sizes} rows; text in {' and '.join(data.text_columns)}"
    if labels is not None:
        classes = f"classes {', '.join(labels.names)}"
        kind = "a number" if labels.regression else classes
        kind += ", any number of them," if labels.multi else ""
        text += f", {kind} in {labels.column}"
    notes.say(text)
    models.check_fixed_length(pretrained, inputs.max_length, flags.pad_to_max_length)
    return inputs


def _only_needed(data: dataset.TextData, arguments: Arguments) -> dataset.TextData:
    """Keep the splits that are used, and see that they are there."""
    needed = []
    for split, (flag, way) in _SPLIT_FLAGS.items():
        if not getattr(arguments.train, flag):
            continue
        if split not in data.splits:
            raise ValueError(
                f"data={data.description} has no {split} split, only "
                f"{', '.join(data.splits)}; expected one for --{flag}; give {way}"
            )
        needed.append(split)
    if "validation" in needed and MISMATCHED in data.splits:
        needed.append(MISMATCHED)
    return replace(data, splits={split: data.splits[split] for split in needed})


def train_config(arguments: Arguments, state: PartialState) -> TrainConfig:
    """Turn the flags into the training loop's settings."""
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
    same = {name.name for name in fields(TrainConfig)} & vars(train).keys()
    compiler = "inductor" if train.torch_compile else None
    return TrainConfig(
        **{name: getattr(train, name) for name in same}
        | {
            "output_dir": Path(train.output_dir),
            "mixed_precision": "fp16" if train.fp16 else "bf16" if train.bf16 else "no",
            "torch_compile": train.torch_compile_backend or compiler,
            "eval_each_epoch": train.do_eval and train.eval_strategy == "epoch",
            "cpu": train.use_cpu,
            "save_on_sigterm": True,
        }
    )
