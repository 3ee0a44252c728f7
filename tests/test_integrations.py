"""What stands in integrations/ runs."""

import runpy
from pathlib import Path

from tests.hosts import on_sparseml

FOLDER = Path(__file__).parents[1] / "integrations"
# The README runs two of them, tests/elsewhere two, and this file one.
SCRIPTS = [
    "accelerate/plain_loop.py",
    "composer/obert.py",
    "llmcompressor/obert.py",
    "sparseml/plain_loop.py",
    "transformers/train.py",
]


@on_sparseml
def test_plain_loop_with_sparsemls_manager(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # SparseML writes its log files where it is run
    script = runpy.run_path(str(FOLDER / "sparseml" / "plain_loop.py"))
    assert script["main"]() == 461 / 576  # round(0.8 * 576)


def test_every_script_is_run_somewhere() -> None:
    found = sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.py"))
    assert found == SCRIPTS
