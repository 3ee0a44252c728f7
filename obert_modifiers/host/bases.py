"""What modifiers are built on, of the host that this process has."""

from collections.abc import Iterator
from typing import Any

import yaml

from obert_modifiers import host

# Where a state_dict of masks or ranges by name keeps what is neither.
SCHEDULE_KEY = "__schedule__"

if (_theirs := host.sparseml()) is None:
    from obert_modifiers.host import constant, standard  # noqa: F401  their tags
    from obert_modifiers.host.loggers import LambdaLogger, LoggerManager
    from obert_modifiers.host.manager import ScheduledModifierManager
    from obert_modifiers.host.modifier import (
        Modifier,
        ModifierProp,
        PyTorchModifierYAML,
        ScheduledModifier,
        ScheduledUpdateModifier,
        SparsificationTypes,
    )
else:
    Modifier: Any = _theirs.Modifier
    ModifierProp: Any = _theirs.ModifierProp
    PyTorchModifierYAML: Any = _theirs.PyTorchModifierYAML
    ScheduledModifier: Any = _theirs.ScheduledModifier
    ScheduledUpdateModifier: Any = _theirs.ScheduledUpdateModifier
    ScheduledModifierManager: Any = _theirs.ScheduledModifierManager
    SparsificationTypes: Any = _theirs.SparsificationTypes
    LambdaLogger: Any = _theirs.LambdaLogger
    LoggerManager: Any = _theirs.LoggerManager


def modifier_classes() -> dict[str, type]:
    """Return the class of every YAML tag, the host's and ours, sorted by name."""
    tags = yaml.SafeLoader.yaml_constructors
    classes = {cls.__name__: cls for cls in _subclasses(Modifier)}
    return {k: classes[k] for k in sorted(classes) if f"{host.TAG_PREFIX}{k}" in tags}


def silent_loggers() -> Any:
    """Make loggers that drop everything.

    Without loggers of its own a manager of SparseML writes log files to a folder
    ``sparse_logs`` where the process was started.
    """
    nobody = LambdaLogger(lambda_func=lambda *args, **kwargs: True)
    return LoggerManager([nobody], log_python=False)


def check_initialized(modifier: Any) -> None:
    """Refuse to load a state into a modifier that has no model yet."""
    if not modifier.initialized:
        raise RuntimeError(
            f"state is for an uninitialized modifier: {type(modifier).__name__} has no "
            "model yet; expected one that is initialized; call initialize first"
        )


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)
