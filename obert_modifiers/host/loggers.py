"""Where modifiers log figures: the part of SparseML's loggers that they call."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any


class LambdaLogger:
    """Passes figures to a function, called as SparseML's logger calls it."""

    def __init__(
        self,
        lambda_func: Callable[..., Any],
        name: str = "lambda",
        enabled: bool = True,
    ) -> None:
        self.lambda_func, self.name, self.enabled = lambda_func, name, enabled

    def _log(self, step=None, wall_time=None, level=None, **what: Any) -> Any:
        what = {"tag": None, "value": None, "values": None, **what}
        return self.lambda_func(**what, step=step, wall_time=wall_time, level=level)

    def log_scalar(self, tag: str, value: float, *when: Any, **more: Any) -> Any:
        return self._log(*when, **more, tag=tag, value=value)

    def log_scalars(self, tag: str, values: Any, *when: Any, **more: Any) -> Any:
        return self._log(*when, **more, tag=tag, values=values)

    def log_hyperparams(self, params: Any, level: int | None = None) -> Any:
        return self._log(values=params, level=level)

    def log_string(self, *args: Any, **kwargs: Any) -> bool:
        return False


class LoggerManager:
    """Loggers together, and how often they are given something."""

    def __init__(
        self,
        loggers: Sequence[Any] | None = None,
        log_frequency: float | None = 0.1,
        log_python: bool = True,
        name: str = "manager",
    ) -> None:
        # SparseML adds a logger that writes files for log_python; there is none here.
        self.loggers = list(loggers or [])
        self.log_frequency, self.name = log_frequency, name

    def __len__(self) -> int:
        return len(self.loggers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loggers)

    def add_logger(self, logger: Any) -> None:
        self.loggers.append(logger)

    def log_ready(self, epoch: float | None, last_log_epoch: float) -> bool:
        if self.log_frequency is None or not any(log.enabled for log in self.loggers):
            return False
        due = epoch is None or epoch >= last_log_epoch + self.log_frequency
        return due or epoch == last_log_epoch

    @staticmethod
    def epoch_to_step(epoch: float, steps_per_epoch: int) -> int:
        return round(epoch * steps_per_epoch) if steps_per_epoch > 0 else round(epoch)

    def log_scalar(self, tag: str, value: float, *when: Any, **more: Any) -> None:
        self._each("log_scalar", tag, value, *when, **more)

    def log_scalars(self, tag: str, values: Any, *when: Any, **more: Any) -> None:
        self._each("log_scalars", tag, values, *when, **more)

    def log_string(self, tag: str, string: str, *when: Any, **more: Any) -> None:
        self._each("log_string", tag, string, *when, **more)

    def log_hyperparams(self, params: Any, level: int | None = None) -> None:
        self._each("log_hyperparams", params, level)

    def _each(self, method: str, *args: Any, **kwargs: Any) -> None:
        for logger in self.loggers:
            if logger.enabled:
                getattr(logger, method)(*args, **kwargs)
