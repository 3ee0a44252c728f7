"""Which host the tests run on, and processes that have another one.

Tests run on SparseML's host where it is installed. `make test` runs those of the
modifiers and recipes once more where SparseML cannot be imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from obert_modifiers import host

ROOT = Path(__file__).parent.parent
# The address named: a machine's own name need not resolve, and torchrun waits for it.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1")
_BLOCKER = Path(__file__).parent / "without_sparseml"

ON_SPARSEML = host.name() == host.SPARSEML
# What a recipe can name on every host; the rest needs SparseML.
MISSING = frozenset() if ON_SPARSEML else host.ONLY_SPARSEML
on_sparseml = pytest.mark.skipif(
    not ON_SPARSEML, reason="SparseML is missing, whose own classes it is about"
)


def needs_sparseml(text: str) -> bool:
    """Tell whether a recipe names what is missing here."""
    return any(f"!{tag}" in text for tag in MISSING)


def environment(without_sparseml: bool = False, **more: str) -> dict[str, str]:
    """Return this process's environment for another one, with or without SparseML."""
    old = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [part for part in old if part and Path(part) != _BLOCKER]
    paths = [*([str(_BLOCKER)] if without_sparseml else []), str(ROOT), *paths]
    kept = {k: v for k, v in os.environ.items() if k != "OBERT_HOST"}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), **more}


def python(*words: str, **environ: str | bool) -> subprocess.CompletedProcess[str]:
    """Run Python with words, in an environment as from :func:`environment`."""
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env=environment(**environ),
        cwd=ROOT,
    )
