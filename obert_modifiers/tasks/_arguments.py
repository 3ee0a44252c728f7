"""The command line of a task: the flags of SparseML's training scripts.

A flag means what it means there. What SparseML knows and this package does not do yet
is refused by name, and so is a misspelt flag; nothing is ignored in silence.
"""

import ast
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from transformers import HfArgumentParser

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
    adafactor best_model_after_epoch dispatch_batches fp16_backend
    fp16_opt_level half_precision_backend include_inputs_for_metrics jit_mode_eval
    logging_dir max_predict_samples mp_parameters num_export_samples one_shot
    overwrite_cache past_index per_gpu_eval_batch_size per_gpu_train_batch_size
    push_to_hub_model_id push_to_hub_organization push_to_hub_token ray_scope
    save_safetensors sharded_ddp split_batches torchdynamo tpu_metrics_debug
    tpu_num_cores trust_remote_code use_auth_token use_fast_tokenizer use_ipex
    label_all_tokens return_entity_level_metrics use_mps_device use_teacher_tokenizer
    xpu_backend
""".split()


def flag(default: Any, text: str, *aliases: str) -> Any:
    """Declare a flag.

    Args:
        default: Its value where it is not given.
        text: What ``--help`` says about it.
        *aliases: Other names of it, with their dashes.

    Returns:
        The field of a dataclass of flags.
    """
    metadata: dict[str, Any] = {"help": text}
    if aliases:
        metadata["aliases"] = list(aliases)
    return field(default=default, metadata=metadata)


def check_positive(name: str, value: int | None) -> None:
    """Check a number that counts something.

    Args:
        name: The flag, without dashes.
        value: Its value, or None where it is not given.

    Raises:
        ValueError: If it is below 1.
    """
    if value is not None and value < 1:
        raise ValueError(
            f"--{name}={value} is not positive; expected 1 or more; raise it"
        )


@dataclass
class ModelArguments:
    """Which model is trained, and by which teacher."""

    model_name_or_path: str | None = flag(
        None, "A folder or hub id of the model; without it, the embedded encoder."
    )
    config_name: str | None = flag(
        None, "A folder or hub id of the configuration, where it is another."
    )
    tokenizer_name: str | None = flag(
        None, "A folder or hub id of the tokenizer, where it is another."
    )
    cache_dir: str | None = flag(None, "Where models and data of the hub are kept.")
    model_revision: str = flag("main", "The branch, tag or commit of a hub model.")
    distill_teacher: str | None = flag(
        None,
        "The teacher that the recipe's distillation modifier learns from: a folder or "
        "hub id, 'self' for the model as it starts, or 'disable'.",
    )


@dataclass
class DataSetArguments:
    """Which data set is read, and how it becomes tokens; the flags of every task."""

    dataset_name: str | None = flag(None, "A folder or hub id of a data set.")
    dataset_config_name: str | None = flag(None, "The data set's configuration.")
    train_file: str | None = flag(None, "A csv, tsv, json, jsonl, parquet or txt file.")
    validation_file: str | None = flag(None, "The same, to evaluate on.")
    test_file: str | None = flag(None, "The same, to predict.")
    validation_ratio: float | None = flag(
        None, "The share of the training data kept for validation, between 0 and 1."
    )
    eval_on_test: bool = flag(
        False, "Evaluate on the test data, for data sets like IMDB without others."
    )
    max_seq_length: int = flag(384, "Longer sequences are cut to this many tokens.")
    pad_to_max_length: bool = flag(
        False, "Pad every sample to max_seq_length, not to the longest of its batch."
    )
    max_train_samples: int | None = flag(None, "Train on the first samples only.")
    max_eval_samples: int | None = flag(None, "Evaluate on the first samples only.")
    preprocessing_num_workers: int | None = flag(None, "Processes that tokenize.")

    def check(self) -> None:
        """Check each value, and those that exclude each other.

        Raises:
            ValueError: If a value breaks its rule.
        """
        for name in ("max_seq_length", "max_train_samples", "max_eval_samples"):
            check_positive(name, getattr(self, name))
        check_positive("preprocessing_num_workers", self.preprocessing_num_workers)
        ratio = self.validation_ratio
        if ratio is not None and not 0 < ratio < 1:
            raise ValueError(
                f"--validation_ratio={ratio} is outside (0, 1); expected a share of "
                "the training data; use 0.1 for a tenth"
            )
        if self.eval_on_test and ratio is not None:
            raise ValueError(
                "--eval_on_test and --validation_ratio exclude each other; expected one"
                "; drop one"
            )
        named = [
            f"--{name}={getattr(self, name)}"
            for name in ("task_name", "dataset_name", "train_file")
            if getattr(self, name, None) is not None
        ]
        if len(named) > 1:
            raise ValueError(
                f"{' and '.join(named)} name several data sets; expected one; drop one"
            )


@dataclass
class DataArguments(DataSetArguments):
    """The flags of text classification's data."""

    task_name: str | None = flag(None, "A GLUE task, fetched from the hub.")
    input_column_names: str | None = flag(
        None, "The column of the text, or two of them with a comma for pairs."
    )
    label_column_name: str = flag("label", "The column of the labels.")


@dataclass
class TrainArguments:
    """How it is trained, and where the result goes."""

    output_dir: str = flag("runs/text_classification", "Where the result is written.")
    overwrite_output_dir: bool = flag(False, "Write over what output_dir holds.")
    recipe: str | None = flag(None, "The recipe: a .yaml file, or .md with it on top.")
    recipe_args: str | None = flag(
        None, "Values for the recipe's variables, as JSON: '{\"num_grads\": 512}'."
    )
    replace: Literal["same", "ours"] | None = flag(
        None,
        "Run the recipe's SparseML modifiers on ours: 'same' (or nothing) for the same "
        "meaning of every key, 'ours' for our defaults.",
    )
    do_train: bool = flag(False, "Train; without any do_* flag: train and evaluate.")
    do_eval: bool = flag(False, "Evaluate on the validation data.")
    do_predict: bool = flag(False, "Write the predictions for the test data.")
    num_train_epochs: float = flag(3.0, "Epochs; the recipe's EpochRange overrides.")
    learning_rate: float = flag(5e-5, "The rate after warm-up, without a recipe's.")
    lr_scheduler_type: str = flag("linear", "The schedule, without a recipe's.")
    warmup_ratio: float = flag(0.0, "The share of the steps that warms the rate up.")
    weight_decay: float = flag(0.0, "AdamW's; biases and LayerNorms have none.")
    max_grad_norm: float = flag(1.0, "Gradients are clipped to this norm.")
    per_device_train_batch_size: int = flag(8, "Samples in a batch of a process.")
    per_device_eval_batch_size: int = flag(64, "The same when it evaluates.")
    gradient_accumulation_steps: int = flag(1, "Batches in an optimizer step.")
    group_by_length: bool = flag(True, "Put samples of like length into a batch.")
    seed: int = flag(42, "Fixes the new head, the order of the data and dropout.")
    bf16: bool = flag(False, "Mixed precision in bfloat16.")
    fp16: bool = flag(False, "Mixed precision in float16; needs a GPU.")
    tf32: bool = flag(False, "Products of float32 in TF32; needs an Ampere GPU.")
    torch_compile: bool = flag(False, "Compile the model; masks cost no recompiling.")
    torch_compile_backend: str | None = flag(
        None, "The compiler, inductor if unset; turns --torch_compile on."
    )
    use_cpu: bool = flag(False, "Stay on the CPU.", "--no_cuda")
    logging_steps: int = flag(10, "Optimizer steps between two lines of the log.")
    eval_strategy: Literal["no", "epoch"] = flag(
        "epoch", "When the validation data is looked at.", "--evaluation_strategy"
    )
    save_strategy: Literal["no", "epoch", "steps"] = flag(
        "no", "When checkpoints are written, from which a killed run is resumed."
    )
    save_steps: int = flag(500, "Optimizer steps between two checkpoints.")
    save_total_limit: int | None = flag(
        None, "Checkpoints that are kept; all if unset."
    )
    resume_from_checkpoint: str | None = flag(
        None, "Go on from a checkpoint's folder, or from the last one: 'last'."
    )
    recipe_changed: Literal["refuse", "allow"] = flag(
        "refuse", "Whether a run goes on with an edited recipe, where that is safe."
    )
    report_to: Literal["tensorboard", "wandb", "all", "none"] | None = flag(
        None,
        "Who gets the figures, beside files in output_dir; if unset tensorboard, "
        "where it is installed.",
    )
    disable_tqdm: bool = flag(False, "Print lines instead of a progress bar.")


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
    data: DataSetArguments = field(default_factory=DataArguments)
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


def _parser(program: str, data: type[DataSetArguments]) -> _Parser:
    parser = _Parser(
        (ModelArguments, data, TrainArguments),
        prog=program,
        allow_abbrev=False,
    )
    parser.set_defaults(output_dir=f"runs/{program.split()[-1]}")
    return parser


def parse(
    argv: list[str], program: str, data: type[DataSetArguments] = DataArguments
) -> Arguments:
    """Read a command line.

    Args:
        argv: The words after the program's name.
        program: That name, for the help text; its last word names the folder that
            the result is written to by default.
        data: The task's flags.

    Returns:
        The flags, each with a value of its type.

    Raises:
        ValueError: If a flag is unknown, not supported yet or has a bad value.
    """
    parser = _parser(program, data)
    model, found, train, rest = parser.parse_args_into_dataclasses(
        _spelt_out(argv), return_remaining_strings=True
    )
    if rest:
        raise ValueError(_unknown(rest, parser))
    return Arguments(model, found, train, (*program.split(), *argv))


def _spelt_out(argv: Sequence[str]) -> list[str]:
    """Give a bare ``--replace`` its value.

    Args:
        argv: The words after the program's name.

    Returns:
        The same with ``--replace same`` for it.
    """
    words: list[str] = []
    for word, after in zip(argv, [*argv, "--"][1:], strict=True):
        words.append(word)
        if word == "--replace" and after.startswith("--"):
            words.append("same")
    return words


def resuming(argv: Sequence[str]) -> list[str]:
    """Change the words of a command line so that it resumes the run.

    Args:
        argv: The words after the program's name.

    Returns:
        The same with ``--resume_from_checkpoint last``.
    """
    from obert_modifiers.training.checkpoint import LAST  # with torch

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
    if name in _transformers_flags() | set(_KNOWN_ELSEWHERE):
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


def _transformers_flags() -> set[str]:
    """Read the flags of the installed transformers from its source, without torch.

    Returns:
        Their names.
    """
    spec = find_spec("transformers")
    source = Path(spec.origin).with_name("training_args.py").read_text("utf-8")
    return {
        field.target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def check(arguments: Arguments) -> None:
    """Check each value, and those that exclude each other, before anything is loaded.

    Args:
        arguments: The flags.

    Raises:
        ValueError: If a value breaks its rule.
    """
    arguments.data.check()
    train = arguments.train
    for name in (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "logging_steps",
        "save_steps",
        "save_total_limit",
    ):
        check_positive(name, getattr(train, name))
    if train.fp16 and train.bf16:
        raise ValueError("--fp16 and --bf16 exclude each other; expected one; drop one")
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
    # They come with torch, which --help and misspelt flags do without.
    from obert_modifiers.training.checkpoint import LAST, checkpoints_in

    finished = any(folder.glob("model*.safetensors"))
    named = train.resume_from_checkpoint != LAST
    return named or not finished or bool(checkpoints_in(folder))
