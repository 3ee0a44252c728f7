"""SparseML's own scripts in processes of their own, two at a time."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from obert_modifiers.sparseml_cli.stacks import diagnose, installed_versions
from tests.sparseml_cli.commands import COMMANDS, TASKS, Command
from tests.sparseml_cli.recipes import RECIPES

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(HERE.parents[1]),
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is here where SparseML's scripts cannot be imported."""
    found = diagnose(installed_versions(), "B")
    if found.stack is None:
        reason = f"SparseML's scripts do not run here: {found.faults[0]}; use "
        skip = pytest.mark.skip(reason=f"{reason}make test-sparseml-cli")
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(skip)


def each_task(*names: str) -> pytest.MarkDecorator:
    """Parametrise by the four tasks, and start the commands of each."""
    assert len(TASKS) == 4
    rows = [
        pytest.param(task, marks=pytest.mark.runs(*(f"{task}_{n}" for n in names)))
        for task in TASKS
    ]
    return pytest.mark.parametrize("task", rows)


@dataclass(frozen=True)
class Done:
    """What a command left."""

    status: int
    text: str
    folder: Path

    def json(self, name: str) -> dict:
        """Read a file of a command that worked."""
        assert self.status == 0, self.text[-3000:]
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def figures(self) -> dict:
        return self.json("eval_results.json")

    def steps(self) -> int:
        return self.json("trainer_state.json")["global_step"]

    def zeros(self) -> tuple[int, int]:
        """Count the zeros of the saved encoder's matrices, and its weights."""
        from safetensors.torch import load_file

        found = [
            values
            for name, values in load_file(self.folder / "model.safetensors").items()
            if ".encoder.layer." in name
            and name.endswith("weight")
            and values.ndim == 2
        ]
        return sum(int((v == 0).sum()) for v in found), sum(v.numel() for v in found)


class Runner:
    """Runs commands, each once, in the order in which they are asked for."""

    def __init__(self, base: Path, threads: int = 2) -> None:
        self.base = base
        self._pool = ThreadPoolExecutor(threads)
        self._futures: dict[str, Future] = {}
        for name in ("runs", "recipes", "scratch"):
            (base / name).mkdir()
        for name, text in RECIPES.items():
            (base / "recipes" / f"{name}.yaml").write_text(text, encoding="utf-8")

    def start(self, name: str, command: Command | None = None) -> Future:
        if name not in self._futures:
            command = command or COMMANDS[name]
            if command.after is not None:
                self.start(command.after)  # first, so that it never waits for this one
            self._futures[name] = self._pool.submit(self._run, name, command)
        return self._futures[name]

    def __call__(self, name: str, command: Command | None = None) -> Done:
        return self.start(name, command).result()

    def _run(self, name: str, command: Command) -> Done:
        if command.after is not None:
            before = self(command.after)
            assert before.status == 0, before.text[-3000:]
        out = self.base / "runs" / name
        if command.checkpoint is not None:
            source = self.base / "runs" / command.checkpoint
            shutil.copytree(source, out / source.name)
        places = {
            "out": out,
            "cache": self.base / "cache" / name,
            **{n: self.base / n for n in ("runs", "recipes", "models", "data")},
        }
        words = command.words.format(**places).split()
        scratch = self.base / "scratch" / name
        scratch.mkdir()
        done = subprocess.run(
            [*_program(command.program, words), *words],
            cwd=scratch,  # SparseML writes its log files where it is run
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        return Done(done.returncode, done.stdout + done.stderr, out)


def _program(kind: str, words: list[str]) -> list[str]:
    if kind == "console":
        return [str(Path(sys.executable).with_name(words.pop(0)))]
    ranks = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    module = {
        "obert": ["obert_modifiers.run"],
        "seeded": ["tests.sparseml_cli.seeded", "run"],
        "ranks": [*ranks, "obert_modifiers.run"],
    }
    return [sys.executable, "-m", *module[kind]]


@pytest.fixture(scope="session")
def run(tmp_path_factory, request) -> Runner:
    """Return the runner, with all commands that the tests name already started."""
    from tests.sparseml_cli import made  # needs transformers 4.40

    base = tmp_path_factory.mktemp("sparseml_cli")
    made.save_models(base / "models")
    made.save_data(base / "data")
    runner = Runner(base)
    for item in request.session.items:
        for marker in item.iter_markers("runs"):
            for name in marker.args:
                runner.start(name)
    return runner
