"""Two processes that share a training, by torchrun on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

from tests.hosts import ROOT, TORCHRUN


def torchrun(*words: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a script or ``-m`` a module with its words on two processes."""
    command = [sys.executable, *TORCHRUN, "--nproc_per_node=2"]
    more = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **more},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_script(text: str, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run a script's text on two processes; its first word is the folder."""
    script = folder / "two.py"
    script.write_text(text)
    return torchrun(script, folder, *words)


def lines_of_ranks(text: str, folder: Path) -> list[list[str]]:
    """Run a script that ends well; returns the lines of its rank0 and rank1."""
    done = run_script(text, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [(folder / f"rank{rank}").read_text().splitlines() for rank in (0, 1)]
