"""The one place in the modifiers that imports SparseML, with its analytics off.

SparseML and SparseZoo decide at import time whether they send usage events, and
ask a geolocation service on the way. They are told not to here, for the time of
the import only: the process environment is left as it was found.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import yaml

_OPT_OUT = "NM_DISABLE_ANALYTICS"


@contextmanager
def _analytics_declined() -> Iterator[None]:
    before = os.environ.get(_OPT_OUT)
    os.environ[_OPT_OUT] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OPT_OUT]
        else:
            os.environ[_OPT_OUT] = before


# SparseML puts a function that warns in place of torch.compile; it is put back.
_compile = torch.compile

with _analytics_declined():
    import sparseml.pytorch.optim  # noqa: F401  registers SparseML's own tags
    from sparseml.analytics import sparseml_analytics
    from sparseml.optim.helpers import (
        check_if_staged_recipe,
        evaluate_recipe_yaml_str_equations,
        load_recipe_yaml_str,
        load_recipe_yaml_str_no_classes,
        parse_recipe_variables,
        update_recipe_variables,
    )
    from sparseml.pytorch.optim import ScheduledModifierManager
    from sparseml.pytorch.sparsification.modifier import (
        Modifier,
        ModifierProp,
        PyTorchModifierYAML,
        ScheduledModifier,
        ScheduledUpdateModifier,
    )
    from sparseml.pytorch.utils.logger import LambdaLogger, LoggerManager
    from sparseml.sparsification import SparsificationTypes
    from sparsezoo.analytics import sparsezoo_analytics

torch.compile = _compile

# SparseML may have been imported before us, with its analytics on.
sparseml_analytics._disabled = True
sparsezoo_analytics._disabled = True

# Where a state_dict of masks or ranges by name keeps what is neither.
SCHEDULE_KEY = "__schedule__"
_TAG_PREFIX = "!pytorch."


def modifier_classes() -> dict[str, type]:
    """Return every registered PyTorch modifier, SparseML's and ours.

    Returns:
        Class by YAML tag name without the exclamation mark, sorted by name.
    """
    tags = yaml.SafeLoader.yaml_constructors
    found = {}
    for cls in _subclasses(Modifier):
        if f"{_TAG_PREFIX}{cls.__name__}" in tags:
            found[cls.__name__] = cls
    return dict(sorted(found.items()))


def silent_loggers() -> LoggerManager:
    """Make loggers that drop everything.

    Without loggers of its own a manager of SparseML writes log files to a folder
    ``sparse_logs`` where the process was started.

    Returns:
        Loggers for ``initialize``.
    """
    nobody = LambdaLogger(lambda_func=lambda *args, **kwargs: True)
    return LoggerManager([nobody], log_python=False)


def recipe_key(name: str, doc: str, attribute: str | None = None) -> ModifierProp:
    """Make a read-only recipe key of a modifier.

    Args:
        name: Name of the key in YAML and of the property.
        doc: What the key means, one sentence.
        attribute: Attribute that holds the value; the name with an underscore in
            front where it is None.

    Returns:
        The property, found and written to YAML by SparseML.
    """
    source = attribute or f"_{name}"

    def read(self: Modifier) -> object:
        return getattr(self, source)

    read.__name__, read.__doc__ = name, doc
    return ModifierProp()(read)


def check_initialized(modifier: Modifier) -> None:
    """Refuse to load a state into a modifier that has no model yet.

    Args:
        modifier: SparseML's or ours.

    Raises:
        RuntimeError: If it is not initialized.
    """
    if not modifier.initialized:
        raise RuntimeError(
            f"state is for an uninitialized modifier: {type(modifier).__name__} has no "
            "model yet; expected one that is initialized; call initialize first"
        )


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


__all__ = [
    "SCHEDULE_KEY",
    "Modifier",
    "ModifierProp",
    "PyTorchModifierYAML",
    "ScheduledModifier",
    "ScheduledModifierManager",
    "ScheduledUpdateModifier",
    "SparsificationTypes",
    "check_if_staged_recipe",
    "check_initialized",
    "evaluate_recipe_yaml_str_equations",
    "load_recipe_yaml_str",
    "load_recipe_yaml_str_no_classes",
    "modifier_classes",
    "parse_recipe_variables",
    "recipe_key",
    "silent_loggers",
    "update_recipe_variables",
]
