"""How to train, and what a run ends with."""

from dataclasses import dataclass
from pathlib import Path

from obert_modifiers.core.pruning.report import PruneReport

SCHEDULES = ("linear", "cosine", "constant")
SAVE_STRATEGIES = ("no", "epoch", "steps")
RECIPE_CHANGED = ("refuse", "allow")
REPORT_TO = ("tensorboard", "wandb", "all", "none")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        output_dir: Folder of ``metrics.jsonl``.
        num_train_epochs: Epochs where the recipe does not say.
        learning_rate: Highest rate where the recipe does not set it.
        weight_decay: Of AdamW; not on biases and normalisation weights.
        per_device_train_batch_size: Samples of a micro-batch of one process.
        per_device_eval_batch_size: The same for evaluation.
        gradient_accumulation_steps: Micro-batches of an optimizer step.
        max_grad_norm: Norm to which gradients are clipped; 0 turns it off.
        warmup_ratio: Share of the steps in which the rate rises from 0.
        lr_scheduler_type: linear, cosine or constant.
        mixed_precision: no, bf16 or fp16.
        tf32: True lets float32 matrix products round their factors to TF32 on a GPU
            that has it; what is summed in float64 stays so.
        torch_compile: Backend of ``torch.compile``, such as inductor, or None; the
            model keeps its parameters' names.
        seed: Seed of the order of samples and of the draws of gradient samples.
        logging_steps: Optimizer steps from one record to the next.
        group_by_length: True puts samples of similar length into a batch.
        eval_each_epoch: True evaluates after every epoch, not only at the end.
        cpu: True stays on the CPU.
        save_strategy: no, epoch (after each, evaluated) or steps.
        save_steps: Optimizer steps from one checkpoint to the next.
        save_total_limit: Checkpoints that are kept; None for all.
        resume_from_checkpoint: Folder of a checkpoint or of a run, ``last`` for the
            last one in ``output_dir``, or None. Model, data and teacher are passed to
            the training as they were when it began.
        recipe_changed: refuse, or allow to continue with an edited recipe where that
            is safe.
        save_on_sigterm: True takes SIGTERM as a request to save and to end with
            `TrainingStopped`.
        report_to: tensorboard, wandb, all (that are installed) or none; None for
            tensorboard where it is installed. ``metrics.jsonl`` is always written.
    """

    output_dir: Path
    num_train_epochs: float = 3.0
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.0
    lr_scheduler_type: str = "linear"
    mixed_precision: str = "no"
    tf32: bool = False
    torch_compile: str | None = None
    seed: int = 42
    logging_steps: int = 10
    group_by_length: bool = True
    eval_each_epoch: bool = True
    cpu: bool = False
    save_strategy: str = "no"
    save_steps: int = 500
    save_total_limit: int | None = None
    resume_from_checkpoint: str | Path | None = None
    recipe_changed: str = "refuse"
    save_on_sigterm: bool = False
    report_to: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training run ended with.

    Attributes:
        metrics: Figures of the last evaluation by name.
        events: Every pruning event.
        steps: Optimizer steps that were made.
        seconds: Wall-clock time.
        sparsity: Fraction of pruned weights over all pruned parameters.
    """

    metrics: dict[str, float]
    events: list[PruneReport]
    steps: int
    seconds: float
    sparsity: float
