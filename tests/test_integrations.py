"""What stands in integrations/ runs."""

import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "integrations"


def test_plain_loop_with_sparsemls_manager(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # SparseML writes its log files where it is run
    script = runpy.run_path(str(FOLDER / "sparseml" / "plain_loop.py"))
    assert script["main"]() == 461 / 576  # round(0.8 * 576)


def test_every_script_is_run_here() -> None:
    assert [p.name for p in sorted(FOLDER.rglob("*.py"))] == ["plain_loop.py"]
