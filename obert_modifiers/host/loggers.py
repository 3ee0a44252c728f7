"""Where modifiers log figures: the part of SparseML's loggers that they call."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any


class LambdaLogger:
    """Passes figures to a function, called as SparseML's logger calls it."""

    def __init__(
        self, lambda_func: Callable[..., Any], name: str = "lambda", enabled=True
    ) -> None:
        self.lambda_func, self.name, self.enabled = lambda_func, name, enabled

    def log_scalar(self, tag, value, step=None, wall_time=None, level=None) -> Any:
        when = {"step": step, "wall_time": wall_time, "level": level}
        return self.lambda_func(tag=tag, value=value, values=None, **when)


class LoggerManager:
    """Loggers together, and how often they are given something."""

    def __init__(
        self, loggers: Sequence[Any] = (), log_frequency=0.1, log_python=True
    ) -> None:
        # SparseML adds a logger that writes files for log_python; there is none here.
        self.loggers, self.log_frequency = list(loggers), log_frequency

    def __len__(self) -> int:
        return len(self.loggers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loggers)

    def log_ready(self, epoch: float | None, last_log_epoch: float) -> bool:
        if self.log_frequency is None or not any(log.enabled for log in self.loggers):
            return False
        due = epoch is None or epoch >= last_log_epoch + self.log_frequency
        return due or epoch == last_log_epoch

    @staticmethod
    def epoch_to_step(epoch: float, steps_per_epoch: int) -> int:
        return round(epoch * steps_per_epoch) if steps_per_epoch > 0 else round(epoch)

    def log_scalar(self, tag, value, step=None, wall_time=None, level=None) -> None:
        for logger in self.loggers:
            if logger.enabled:
                logger.log_scalar(tag, value, step, wall_time, level)
