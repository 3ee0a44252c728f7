"""The warm process, and the runs that were not interrupted."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import world
from tests.faults.kills import Kill

ROOT = Path(__file__).parents[2]


@dataclass
class Runs:
    """Starts runs as children of the warm process.

    Attributes:
        server: The warm process.
        folder: Where the uninterrupted runs are kept.
    """

    server: subprocess.Popen
    folder: Path

    def start(
        self,
        folder: Path,
        recipe: str,
        kill: Kill | None = None,
        ranks: int = 1,
        plant: Sequence[str] = (),
        **options,
    ) -> list[int]:
        """Run to the end or to the kill; gives the exit codes."""
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        jobs = []
        for rank in range(ranks):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            jobs.append({
                "environment": environment if ranks > 1 else {},
                "folder": str(folder),
                "recipe": recipe,
                "kill": None if kill is None else kill.plain(),
                "plant": list(plant),
                "options": options,
                "log": str(folder / f"log-{rank}"),
            })
        self.server.stdin.write(json.dumps(jobs) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        assert answer, "the warm process is gone"
        return json.loads(answer)

    def whole(self, recipe: str, ranks: int = 1) -> Path:
        """Return the folder of the uninterrupted run, made once, without saving."""
        folder = self.folder / f"{recipe}-{ranks}"
        if not folder.exists():
            assert self.start(folder, recipe, ranks=ranks) == [0] * ranks, log(folder)
        return folder


def log(folder: Path) -> str:
    return "\n".join(p.read_text()[-3000:] for p in sorted(folder.glob("log-*")))


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Iterator[Runs]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "NUMBA_THREADING_LAYER": "workqueue",  # that of OpenMP forbids forks
        "ACCELERATE_USE_CPU": "true",
    }
    folder = tmp_path_factory.mktemp("faults")
    with (folder / "server.log").open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert server.stdout.readline() == "ready\n", (
            folder / "server.log"
        ).read_text()[-3000:]
        yield Runs(server, folder)
        server.stdin.close()
        server.wait(timeout=60)
        server.stdout.close()
    shutil.rmtree(folder)


@pytest.fixture
def compare() -> Callable[..., None]:
    """Compare a run that was killed and resumed with one that was not."""

    def same(folder: Path, whole: Path, ranks: int = 1) -> None:
        for rank in range(ranks):
            name = f"result-{rank}.json"
            ours = json.loads((folder / name).read_text())
            assert ours == json.loads((whole / name).read_text())
            steps = world.digests_of(whole, rank)
            found = world.digests_of(folder, rank)
            assert found == steps
            assert all(len(digests) == 1 for digests in steps.values())
        assert world.records_of(folder) == world.records_of(whole)

    return same
