"""Two processes that share a training, by torchrun on the CPU."""

import subprocess
import sys
from pathlib import Path

from tests.hosts import ROOT, environment


def torchrun(*words: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a script or ``-m`` a module with its words on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    return subprocess.run(
        [*command, "--standalone", *map(str, words)],
        env=environment(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_script(text: str, folder: Path) -> list[list[str]]:
    """Run a script, which gets the folder; returns the lines of rank0 and rank1."""
    (folder / "two.py").write_text(text)
    done = torchrun(folder / "two.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [(folder / f"rank{rank}").read_text().splitlines() for rank in (0, 1)]
