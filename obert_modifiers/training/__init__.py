"""The training loop on ``accelerate``, which owns the step rule of a recipe."""

from obert_modifiers.training.batches import TaskData
from obert_modifiers.training.config import SCHEDULES, TrainConfig, TrainResult
from obert_modifiers.training.environment import TrainingStopped, check_tf32
from obert_modifiers.training.evaluation import evaluate, predict
from obert_modifiers.training.journal import Reporter
from obert_modifiers.training.loop import train
from obert_modifiers.training.stepper import RecipeStepper

__all__ = [
    "SCHEDULES",
    "RecipeStepper",
    "Reporter",
    "TaskData",
    "TrainConfig",
    "TrainResult",
    "TrainingStopped",
    "check_tf32",
    "evaluate",
    "predict",
    "train",
]
