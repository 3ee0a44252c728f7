"""How to train, and what a run ends with."""

from dataclasses import dataclass
from pathlib import Path

from obert_modifiers.core.pruning.report import PruneReport

SCHEDULES = ("linear", "cosine", "constant")
# What fields of `TrainConfig` may be; the first is safe anywhere.
CHOICES = {
    "lr_scheduler_type": SCHEDULES,
    "save_strategy": ("no", "epoch", "steps"),
    "recipe_changed": ("refuse", "allow"),
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; a step is an optimizer step."""

    output_dir: Path  # of metrics.jsonl and the checkpoints
    num_train_epochs: float = 3.0  # where the recipe does not say
    learning_rate: float = 5e-5  # the highest, where the recipe does not set it
    weight_decay: float = 0.0  # not on biases and normalisation weights
    per_device_train_batch_size: int = 32  # samples of a process's micro-batch
    per_device_eval_batch_size: int = 64
    gradient_accumulation_steps: int = 1  # micro-batches of a step
    dropout: float | None = None  # in training, in place of the model's own
    max_grad_norm: float = 1.0  # to which gradients are clipped; 0 for never
    warmup_ratio: float = 0.0  # share of the steps in which the rate rises from 0
    lr_scheduler_type: str = "linear"  # cosine, constant
    mixed_precision: str = "no"  # bf16, fp16
    tf32: bool = False  # rounds the factors of a GPU's float32 products, not of float64
    torch_compile: str | None = None  # a backend of torch.compile, such as inductor
    seed: int = 42  # of the order of samples and the draws of gradient samples
    logging_steps: int = 10  # from one record to the next
    group_by_length: bool = True  # batches of samples of similar length
    eval_each_epoch: bool = True  # not only at the end
    cpu: bool = False  # even where there is a GPU
    save_strategy: str = "no"  # epoch (after each, evaluated), steps
    save_steps: int = 500  # from one checkpoint to the next
    save_total_limit: int | None = None  # checkpoints that are kept; None for all
    # Folder of a checkpoint or of a run, or "last" for the last one in output_dir.
    resume_from_checkpoint: str | Path | None = None
    recipe_changed: str = "refuse"  # allow: take an edited recipe where that is safe
    save_on_sigterm: bool = False  # and end with `TrainingStopped`
    # wandb, all (that are installed), none; None for tensorboard if it is installed.
    report_to: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training run ended with."""

    metrics: dict[str, float]  # of the last evaluation
    events: list[PruneReport]
    steps: int  # optimizer steps
    seconds: float  # wall-clock
    sparsity: float  # share of pruned weights over all pruned parameters
