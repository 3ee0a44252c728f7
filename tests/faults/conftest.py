"""The warm process, and the runs that were not interrupted."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.faults.kills import Kill

ROOT = Path(__file__).parents[2]


@dataclass
class Runs:
    """Starts runs as children of the warm process."""

    server: subprocess.Popen  # the warm process
    folder: Path  # where the uninterrupted runs are kept

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
        job = {
            "folder": str(folder),
            "recipe": recipe,
            "kill": None if kill is None else asdict(kill),
            "plant": list(plant),
            "options": options,
        }
        shared = {"WORLD_SIZE": str(ranks), "MASTER_PORT": port}
        shared |= {"MASTER_ADDR": "127.0.0.1"}
        jobs = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared}
            told = {"environment": own if ranks > 1 else {}}
            jobs.append({**job, **told, "log": str(folder / f"log-{rank}")})
        self.server.stdin.write(json.dumps(jobs) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        assert answer, "the warm process is gone"
        return json.loads(answer)

    def end(
        self, folder: Path, recipe: str, *kills: Kill, plant: Sequence[str] = (), **how
    ) -> None:
        """Run to each kill in turn, and then to the end, there with planted bugs."""
        for kill in kills:
            codes = self.start(folder, recipe, kill, **how)
            assert -9 in codes, f"not killed: {codes}\n{log(folder)}"
        codes = self.start(folder, recipe, plant=plant, **how)
        assert not any(codes), log(folder)

    def whole(self, recipe: str, ranks: int = 1) -> Path:
        """Return the folder of the uninterrupted run, made once, without saving."""
        folder = self.folder / f"{recipe}-{ranks}"
        if not folder.exists():
            self.end(folder, recipe, ranks=ranks)
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
        ready = server.stdout.readline() == "ready\n"
        assert ready, (folder / "server.log").read_text()[-3000:]
        yield Runs(server, folder)
        server.stdin.close()
        server.wait(timeout=60)
        server.stdout.close()
    shutil.rmtree(folder)
