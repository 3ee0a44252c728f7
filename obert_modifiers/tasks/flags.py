"""The flags of SparseML's training scripts, which mean here what they mean there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SPLITS = ("train", "validation", "test")


def flag(default: Any, text: str, *aliases: str) -> Any:
    """Declare a flag with its text of ``--help``; aliases with their dashes."""
    more: dict[str, Any] = {"aliases": list(aliases)} if aliases else {}
    return field(default=default, metadata={"help": text, **more})


def check_positive(flags: Any, *names: str) -> None:
    """Check flags (their names without dashes) that count something, if given."""
    for name in names:
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ValueError(
                f"--{name}={value} is not positive; expected 1 or more; raise it"
            )


def check_share(flags: Any, name: str, usual: float = 0.1) -> None:
    """Check a flag that is a share, if given."""
    value = getattr(flags, name)
    if value is not None and not 0 < value < 1:
        raise ValueError(
            f"--{name}={value} is outside (0, 1); expected a share; use {usual}"
        )


@dataclass
class ModelArguments:
    """Which model is trained, and by which teacher."""

    model_name_or_path: str | None = flag(
        None, "A folder or hub id of the model; without it, the embedded encoder."
    )
    config_name: str | None = flag(None, "A folder or hub id of its configuration.")
    tokenizer_name: str | None = flag(None, "A folder or hub id of its tokenizer.")
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
    distill_file: str | None = flag(
        None,
        "The same, of texts whose labels are not read: they join the training with the "
        "teacher's loss only.",
    )
    distill_share: float = flag(
        0.5, "The share of a training batch that they are, beside its samples."
    )
    validation_ratio: float | None = flag(
        None, "The share of the training data kept for validation, between 0 and 1."
    )
    eval_on_test: bool = flag(False, "Evaluate on the test data, as IMDB has no other.")
    max_seq_length: int = flag(384, "Longer sequences are cut to this many tokens.")
    pad_to_max_length: bool = flag(False, "Pad every sample to max_seq_length.")
    max_train_samples: int | None = flag(None, "Train on the first samples only.")
    max_eval_samples: int | None = flag(None, "Evaluate on the first samples only.")
    preprocessing_num_workers: int | None = flag(None, "Processes that tokenize.")

    @property
    def files(self) -> dict[str, str]:
        """The files that are given, by split."""
        named = {split: getattr(self, f"{split}_file") for split in SPLITS}
        return {split: path for split, path in named.items() if path is not None}

    def check(self) -> None:
        """Raise ValueError if a value breaks its rule or two exclude each other."""
        check_positive(self, "max_seq_length", "max_train_samples", "max_eval_samples")
        check_positive(self, "preprocessing_num_workers")
        check_share(self, "validation_ratio")
        check_share(self, "distill_share", 0.5)
        if self.eval_on_test and self.validation_ratio is not None:
            raise ValueError(
                "--eval_on_test and --validation_ratio exclude each other; drop one"
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
class TrainArguments:
    """How it is trained, and where the result goes."""

    output_dir: str = flag("runs/text_classification", "Where the result is written.")
    overwrite_output_dir: bool = flag(False, "Write over what output_dir holds.")
    recipe: str | None = flag(None, "The recipe: a .yaml file, or .md with it on top.")
    recipe_args: str | None = flag(
        None,
        "Values for the recipe's variables: name=value, with commas, or JSON: "
        "'{\"num_grads\": 512}'.",
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
    dropout: float | None = flag(
        None, "The probability of dropout in training, in place of the model's own."
    )
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
    torch_compile_backend: str | None = flag(None, "Compile with this, not inductor.")
    use_cpu: bool = flag(False, "Stay on the CPU.", "--no_cuda")
    logging_steps: int = flag(10, "Optimizer steps between two lines of the log.")
    eval_strategy: Literal["no", "epoch"] = flag(
        "epoch", "When the validation data is looked at.", "--evaluation_strategy"
    )
    save_strategy: Literal["no", "epoch", "steps"] = flag(
        "no", "When checkpoints are written, from which a killed run is resumed."
    )
    save_steps: int = flag(500, "Optimizer steps between two checkpoints.")
    save_total_limit: int | None = flag(None, "Checkpoints kept; all if unset.")
    resume_from_checkpoint: str | None = flag(
        None, "Continue from a checkpoint's folder, or from the last: 'last'."
    )
    recipe_changed: Literal["refuse", "allow"] = flag(
        "refuse", "Whether a run continues with an edited recipe, where that is safe."
    )
    report_to: Literal["tensorboard", "wandb", "all", "none"] | None = flag(
        None, "Who gets the figures too; if unset tensorboard, where it is installed."
    )
    disable_tqdm: bool = flag(False, "Print lines instead of a progress bar.")
    push_to_hub: bool = flag(False, "Upload model and card to the hub at the end.")
    hub_model_id: str | None = flag(
        None, "The hub's repository, OWNER/NAME; output_dir's name if unset."
    )
    hub_private_repo: bool = flag(False, "Make it private where it is new.")

    @property
    def repository(self) -> str:
        """The hub's repository that is pushed to."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    def check(self) -> None:
        """Raise ValueError if a value breaks its rule or two exclude each other."""
        check_positive(
            self, "per_device_train_batch_size", "per_device_eval_batch_size"
        )
        check_positive(self, "gradient_accumulation_steps", "logging_steps")
        check_positive(self, "save_steps", "save_total_limit")
        if self.dropout != 0:
            check_share(self, "dropout")
        if self.fp16 and self.bf16:
            raise ValueError("--fp16 and --bf16 exclude each other; drop one")
        for name in ("hub_model_id", "hub_private_repo"):
            if getattr(self, name) and not self.push_to_hub:
                raise ValueError(
                    f"--{name}={getattr(self, name)} has nothing to push; expected "
                    "--push_to_hub beside it; add it"
                )


@dataclass(frozen=True)
class Arguments:
    """All flags of a run."""

    model: ModelArguments
    data: DataSetArguments
    train: TrainArguments
    command: tuple[str, ...] = ()  # the words of the command line, for the record
