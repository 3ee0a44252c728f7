"""The layer below the modifiers: SparseML's classes, or ours of the same behaviour.

Which of the two is decided once in a process, when :mod:`obert_modifiers.host.bases` is
first imported: what ``OBERT_HOST`` says (``own`` or ``sparseml``, read for tests), else
what :func:`prefer` was told, else SparseML's where it is installed and imports.
"""

import logging
import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from obert_modifiers.faults import Fault, Rule

OWN, SPARSEML = "own", "sparseml"
EXTRA = 'pip install "obert_modifiers[sparseml]"'
TAG_PREFIX = "!pytorch."
# Its tags for which neither our modifiers nor our host have a class.
ONLY_SPARSEML = frozenset(
    """
    ACDCPruningModifier DistillationModifier GMPruningModifier
    GlobalMagnitudePruningModifier GradualParamModifier LayerPruningModifier
    LayerThinningModifier MFACPruningModifier MagnitudePruningModifier
    MovementPruningModifier OBSPruningModifier PerLayerDistillationModifier
    PowerpropagationModifier QuantizationModifier RigLPruningModifier SetParamModifier
    SparsificationLoggingModifier StructuredPruningModifier TopKASTPruningModifier
    """.split()
)

_LOGGER = logging.getLogger(__name__)
_preferred: str | None = None
_decided: list[ModuleType | None] = []  # one item at most


def prefer(name: str) -> None:
    """Say which host to take; without effect once it is decided.

    Args:
        name: ``own``, or ``sparseml``, which has to import then.
    """
    global _preferred
    _preferred = name


def name() -> str:
    """Return the host of this process, decided now where it was not."""
    return OWN if sparseml() is None else SPARSEML


def sparseml() -> ModuleType | None:
    """Return the module that holds SparseML's classes, None where ours are taken."""
    if not _decided:
        _decided.append(_decide())
    return _decided[0]


def only_sparseml(tag: str) -> Fault:
    """Say that a modifier is missing, as it is one of SparseML's own."""
    try:
        there = find_spec("sparseml") is not None
    except ImportError:
        there = False
    how = f"set OBERT_HOST={SPARSEML}" if there else f"run `{EXTRA}`"
    return Fault(
        Rule.UNKNOWN,
        broken=f"!{tag} is a modifier that only SparseML has, and this process runs "
        "without it",
        expected="SparseML, or one of our modifiers",
        fix=f"{how}, or write one of ours",
    )


def _decide() -> ModuleType | None:
    wanted = os.environ.get("OBERT_HOST") or _preferred
    if wanted not in (None, OWN, SPARSEML):
        raise ValueError(
            f"OBERT_HOST={wanted} is no host; expected {OWN} or {SPARSEML}; write one"
        )
    if wanted == OWN:
        return None
    try:
        return import_module("obert_modifiers.host.theirs")
    except Exception as error:  # whatever a package raises that met newer ones
        if wanted == SPARSEML:
            raise
        if getattr(error, "name", None) not in ("sparseml", "sparsezoo"):
            _LOGGER.warning(
                "SparseML is installed and cannot be imported (%s: %s): our own host "
                "takes its place; its own modifiers are missing",
                type(error).__name__,
                error,
            )
        return None
