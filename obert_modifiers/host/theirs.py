"""SparseML's classes, imported with its analytics off.

SparseML and SparseZoo decide at import time whether they send usage events, and
ask a geolocation service on the way. They are told not to here, for the time of
the import only: the process environment is left as it was found.
"""

# ruff: noqa: F401

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_OPT_OUT = "NM_DISABLE_ANALYTICS"


@contextmanager
def _kept_as_they_were() -> Iterator[None]:
    before, compile_ = os.environ.get(_OPT_OUT), torch.compile
    os.environ[_OPT_OUT] = "1"
    try:
        yield
    finally:
        torch.compile = compile_  # SparseML puts a function that warns in its place
        if before is None:
            del os.environ[_OPT_OUT]
        else:
            os.environ[_OPT_OUT] = before


with _kept_as_they_were():
    import sparseml.pytorch.optim  # registers SparseML's own tags
    from sparseml.analytics import sparseml_analytics
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

# SparseML may have been imported before us, with its analytics on.
sparseml_analytics._disabled = True
sparsezoo_analytics._disabled = True
