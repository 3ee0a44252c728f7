"""The command line of a task: the flags of SparseML's training scripts.

A flag means what it means there. What SparseML knows and this package does not do yet
is refused by name, and so is a misspelt flag; nothing is ignored in silence.
"""

import dataclasses
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import HfArgumentParser

from obert_modifiers.training.checkpoint import LAST, checkpoints_in

_NOT_YET = {
    "load_best_model_at_end": "the model of the last step is saved",
    "logging_dir": "the log is OUTPUT_DIR/metrics.jsonl",
    "max_steps": "use --num_train_epochs",
    "optim": "the optimizer is AdamW",
    "warmup_steps": "use --warmup_ratio",
}
# Flags of SparseML and of the transformers releases that it supports; those of the
# installed release are added from its TrainingArguments.
_KNOWN_ELSEWHERE = """
    adafactor best_model_after_epoch dispatch_batches eval_on_test fp16_backend
    fp16_opt_level half_precision_backend include_inputs_for_metrics jit_mode_eval
    logging_dir max_predict_samples mp_parameters num_export_samples one_shot
    overwrite_cache past_index per_gpu_eval_batch_size per_gpu_train_batch_size
    push_to_hub_model_id push_to_hub_organization push_to_hub_token ray_scope
    save_safetensors sharded_ddp split_batches torchdynamo tpu_metrics_debug
    tpu_num_cores trust_remote_code use_auth_token use_fast_tokenizer use_ipex
    use_mps_device use_teacher_tokenizer xpu_backend
""".split()


def _flag(default: Any, text: str, *aliases: str) -> Any:
    metadata: dict[str, Any] = {"help": text}
    if aliases:
        metadata["aliases"] = list(aliases)
    return field(default=default, metadata=metadata)


@dataclass
class ModelArguments:
    """Which model is trained, and by which teacher."""

    model_name_or_path: str | None = _flag(
        None, "A folder or hub id of the model; without it, the embedded encoder."
    )
    config_name: str | None = _flag(
        None, "A folder or hub id of the configuration, where it is another."
    )
    tokenizer_name: str | None = _flag(
        None, "A folder or hub id of the tokenizer, where it is another."
    )
    cache_dir: str | None = _flag(None, "Where models and data of the hub are kept.")
    model_revision: str = _flag("main", "The branch, tag or commit of a hub model.")
    distill_teacher: str | None = _flag(
        None,
        "The teacher that the recipe's distillation modifier learns from: a folder or "
        "hub id, 'self' for the model as it starts, or 'disable'.",
    )


@dataclass
class DataArguments:
    """Which data set is read, and how it becomes tokens."""

    task_name: str | None = _flag(None, "A GLUE task, fetched from the hub.")
    dataset_name: str | None = _flag(None, "A folder or hub id of a data set.")
    dataset_config_name: str | None = _flag(None, "The data set's configuration.")
    train_file: str | None = _flag(None, "A csv, tsv, json, jsonl or parquet file.")
    validation_file: str | None = _flag(None, "The same, to evaluate on.")
    test_file: str | None = _flag(None, "The same, to predict.")
    validation_ratio: float | None = _flag(
        None, "The share of the training data kept for validation, between 0 and 1."
    )
    input_column_names: str | None = _flag(
        None, "The column of the text, or two of them with a comma for pairs."
    )
    label_column_name: str = _flag("label", "The column of the labels.")
    max_seq_length: int = _flag(384, "Longer sequences are cut to this many tokens.")
    pad_to_max_length: bool = _flag(
        False, "Pad every sample to max_seq_length, not to the longest of its batch."
    )
    max_train_samples: int | None = _flag(None, "Train on the first samples only.")
    max_eval_samples: int | None = _flag(None, "Evaluate on the first samples only.")
    preprocessing_num_workers: int | None = _flag(None, "Processes that tokenize.")


@dataclass
class TrainArguments:
    """How it is trained, and where the result goes."""

    output_dir: str = _flag("runs/text_classification", "Where the result is written.")
    overwrite_output_dir: bool = _flag(False, "Write over what output_dir holds.")
    recipe: str | None = _flag(None, "The recipe: a .yaml file, or .md with it on top.")
    recipe_args: str | None = _flag(
        None, "Values for the recipe's variables, as JSON: '{\"num_grads\": 512}'."
    )
    do_train: bool = _flag(False, "Train; without any do_* flag: train and evaluate.")
    do_eval: bool = _flag(False, "Evaluate on the validation data.")
    do_predict: bool = _flag(False, "Write the predictions for the test data.")
    num_train_epochs: float = _flag(3.0, "Epochs; the recipe's EpochRange overrides.")
    learning_rate: float = _flag(5e-5, "The rate after warm-up, without a recipe's.")
    lr_scheduler_type: str = _flag("linear", "The schedule, without a recipe's.")
    warmup_ratio: float = _flag(0.0, "The share of the steps that warms the rate up.")
    weight_decay: float = _flag(0.0, "AdamW's; biases and LayerNorms have none.")
    max_grad_norm: float = _flag(1.0, "Gradients are clipped to this norm.")
    per_device_train_batch_size: int = _flag(8, "Samples in a batch of a process.")
    per_device_eval_batch_size: int = _flag(64, "The same when it evaluates.")
    gradient_accumulation_steps: int = _flag(1, "Batches in an optimizer step.")
    group_by_length: bool = _flag(True, "Put samples of like length into a batch.")
    seed: int = _flag(42, "Fixes the new head, the order of the data and dropout.")
    bf16: bool = _flag(False, "Mixed precision in bfloat16.")
    fp16: bool = _flag(False, "Mixed precision in float16; needs a GPU.")
    use_cpu: bool = _flag(False, "Stay on the CPU.", "--no_cuda")
    logging_steps: int = _flag(10, "Optimizer steps between two lines of the log.")
    eval_strategy: Literal["no", "epoch"] = _flag(
        "epoch", "When the validation data is looked at.", "--evaluation_strategy"
    )
    save_strategy: Literal["no", "epoch", "steps"] = _flag(
        "no", "When checkpoints are written, from which a killed run is resumed."
    )
    save_steps: int = _flag(500, "Optimizer steps between two checkpoints.")
    save_total_limit: int | None = _flag(
        None, "Checkpoints that are kept; all if unset."
    )
    resume_from_checkpoint: str | None = _flag(
        None, "Go on from a checkpoint's folder, or from the last one: 'last'."
    )
    recipe_changed: Literal["refuse", "allow"] = _flag(
        "refuse", "Whether a run goes on with an edited recipe, where that is safe."
    )
    report_to: Literal["none"] = _flag("none", "Reports are files in output_dir.")
    disable_tqdm: bool = _flag(False, "Print lines instead of a progress bar.")


@dataclass(frozen=True)
class Arguments:
    """All flags of a run.

    Attributes:
        model: Which model and which teacher.
        data: Which data set.
        train: How it is trained and where the result goes.
        command: The words of the command line, for the record.
    """

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    train: TrainArguments = field(default_factory=TrainArguments)
    command: tuple[str, ...] = ()


class _Parser(HfArgumentParser):
    """An argument parser whose errors are exceptions."""

    def error(self, message: str) -> None:
        """Raise what argparse would print.

        Args:
            message: What is wrong with the arguments.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{message}; run with --help for the flags and their values")


def _parser(program: str) -> _Parser:
    return _Parser(
        (ModelArguments, DataArguments, TrainArguments),
        prog=program,
        allow_abbrev=False,
    )


def parse(argv: list[str], program: str) -> Arguments:
    """Read a command line.

    Args:
        argv: The words after the program's name.
        program: That name, for the help text.

    Returns:
        The flags, each with a value of its type.

    Raises:
        ValueError: If a flag is unknown, not supported yet or has a bad value.
    """
    parser = _parser(program)
    model, data, train, rest = parser.parse_args_into_dataclasses(
        list(argv), return_remaining_strings=True
    )
    if rest:
        raise ValueError(_unknown(rest, parser))
    return Arguments(model, data, train, (*program.split(), *argv))


def resuming(argv: Sequence[str]) -> list[str]:
    """Change the words of a command line so that it resumes the run.

    Args:
        argv: The words after the program's name.

    Returns:
        The same with ``--resume_from_checkpoint last``.
    """
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        name = word.split("=")[0].replace("-", "_")
        if name == "__resume_from_checkpoint":
            if "=" not in word:
                next(words, None)
        else:
            kept.append(word)
    return [*kept, "--resume_from_checkpoint", LAST]


def _unknown(rest: list[str], parser: _Parser) -> str:
    """Say why a word that the parser left over is no flag.

    Args:
        rest: The words left over, in order.
        parser: The parser that left them.

    Returns:
        The message of the error.
    """
    word = next((word for word in rest if word.startswith("--")), rest[0])
    if not word.startswith("--"):
        return f"argument={word!r} belongs to no flag; expected --name value; remove it"
    name = word[2:].split("=")[0].replace("-", "_")
    from transformers import TrainingArguments

    elsewhere = {known.name for known in dataclasses.fields(TrainingArguments)}
    if name in elsewhere | set(_KNOWN_ELSEWHERE):
        way = _NOT_YET.get(name, "remove it")
        return (
            f"--{name} is a flag of SparseML's training script that is not supported "
            f"here yet; expected a flag that --help lists; {way}"
        )
    ours = [option for option in parser._option_string_actions if "_" in option]
    ours += [
        option for option in parser._option_string_actions if "-" not in option[2:]
    ]
    near = [option for option in ours if option.startswith(f"--{name}")]
    near += difflib.get_close_matches(f"--{name}", ours, n=1, cutoff=0.5)
    return f"--{name} is unknown; expected a flag that --help lists; " + (
        f"did you mean {near[0]}?" if near else "remove it"
    )


def check(arguments: Arguments) -> None:
    """Check each value, and those that exclude each other, before anything is loaded.

    Args:
        arguments: The flags.

    Raises:
        ValueError: If a value breaks its rule.
    """
    data, train = arguments.data, arguments.train
    for owner, names in (
        (data, ("max_seq_length", "max_train_samples", "max_eval_samples")),
        (data, ("preprocessing_num_workers",)),
        (train, ("per_device_train_batch_size", "per_device_eval_batch_size")),
        (train, ("gradient_accumulation_steps", "logging_steps")),
        (train, ("save_steps", "save_total_limit")),
    ):
        for name in names:
            value = getattr(owner, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"--{name}={value} is not positive; expected 1 or more; raise it"
                )
    if train.fp16 and train.bf16:
        raise ValueError("--fp16 and --bf16 exclude each other; expected one; drop one")
    ratio = data.validation_ratio
    if ratio is not None and not 0 < ratio < 1:
        raise ValueError(
            f"--validation_ratio={ratio} is outside (0, 1); expected a share of the "
            "training data; use 0.1 for a tenth"
        )
    named = [
        f"--{name}={getattr(data, name)}"
        for name in ("task_name", "dataset_name", "train_file")
        if getattr(data, name) is not None
    ]
    if len(named) > 1:
        raise ValueError(
            f"{' and '.join(named)} name several data sets; expected one; drop one"
        )
    _check_output(Path(train.output_dir), train)


def _check_output(folder: Path, train: TrainArguments) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"--output_dir={folder} is a file; expected a folder; choose another"
        )
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"--output_dir={folder} cannot be written to: no permission for "
            f"{existing}; expected a folder of yours; choose another"
        )
    full = train.do_train or not (train.do_eval or train.do_predict)
    if train.resume_from_checkpoint is not None and not full:
        raise ValueError(
            f"--resume_from_checkpoint={train.resume_from_checkpoint} needs training; "
            "expected --do_train beside it; add it"
        )
    if full and not train.overwrite_output_dir and folder.is_dir():
        if any(folder.iterdir()) and not _goes_on(folder, train):
            raise ValueError(
                f"--output_dir={folder} is not empty; expected an empty or new folder; "
                "choose another or add --overwrite_output_dir"
            )


def _goes_on(folder: Path, train: TrainArguments) -> bool:
    """Tell whether a run takes up what an output folder holds.

    Returns:
        True where it is resumed; for ``last`` not from a folder with another model.
    """
    if train.resume_from_checkpoint is None:
        return False
    finished = any(folder.glob("model*.safetensors"))
    named = train.resume_from_checkpoint != LAST
    return named or not finished or bool(checkpoints_in(folder))
