"""The engines that run exported files, each where its package is installed."""

import importlib
import warnings
from types import ModuleType


def import_engine(name: str) -> ModuleType:
    """Import an engine.

    Args:
        name: Its name, which is its package's and that of the extra that brings it.

    Returns:
        The module.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # DeepSparse is not made for the pydantic of today, and says so.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"engine={name} is not installed; expected the {name} package; run pip "
            f"install 'obert-modifiers[{name}]'"
        ) from error
