"""Runs as commands of `obert train`, and their graph worked off by processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from benchmarks._data import ROOT, shuffled
from obert_modifiers.embedded import movie_snippets
from studies.tables import Job, Run, find_recipe, tasks

# One thread a run, so that a result does not depend on how many run side by side.
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
} | {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OBERT_HOST": "own",  # the same with and without SparseML
}
USUAL = {
    "eval_strategy": "no",
    "report_to": "none",
    "do_train": True,
    "do_eval": True,
}
WEIGHTS = "model.safetensors"
OTHERS = "others"  # of distill_file: samples that are not trained on
MOVIES = "movie_snippets"
RECORD = "study.json"  # of a run: its figures, and those of its exported forms


@dataclass(frozen=True)
class Place:
    """Where runs are kept, and where the data sets are."""

    output_dir: Path
    data: Path

    def folder(self, run: Run) -> Path:
        """Return a run's folder."""
        return self.output_dir / run.scale / run.task / f"{run.key}-{run.seed}"

    def words(self, run: Run) -> list[str]:
        """Write a run as the words behind `obert train TASK`; makes its data."""
        told = tasks(run.scale)[run.task]
        flags = USUAL | told.get("flags", {}) | dict(run.flags)
        flags |= self._data(run.scale, told)
        if flags.get("distill_file") == OTHERS:
            flags["distill_file"] = self._others(told)
        if run.recipe is not None:
            flags["recipe"] = find_recipe(run.recipe)
            if run.args:
                flags["recipe_args"] = json.dumps(dict(run.args))
        if run.start is not None:
            flags["model_name_or_path"] = self._model(run.start)
        if run.teacher is not None:
            flags["distill_teacher"] = self._model(run.teacher)
        flags |= {"seed": run.seed, "output_dir": self.folder(run)}
        words = []
        for name, value in flags.items():
            if value is not False:
                words += [f"--{name}"] + [str(value)] * (value is not True)
        return words

    def _model(self, model: Run | str) -> str:
        return str(self.folder(model)) if isinstance(model, Run) else model

    def _data(self, scale: str, told: Mapping[str, Any]) -> dict[str, Any]:
        """Find a task's files; the first rows of a fixed shuffle are written once."""
        if scale == "paper":
            return {}
        if told.get("embedded"):
            return {f"{split}_file": path for split, path in movie_snippets().items()}
        found = {}
        for split in ("train", "validation"):
            name, count = told[split]["file"], told[split].get("rows")
            source = self.data / f"{name}.parquet"
            kept = (
                self.output_dir / "data" / f"{name.replace('/', '_')}_{count}.parquet"
            )
            found[f"{split}_file"] = shuffled(source, kept, count) if count else source
        return found

    def _others(self, told: Mapping[str, Any]) -> Path:
        """Write as many training samples again, of those that are not trained on."""
        embedded = told.get("embedded")
        count = (
            told["flags"]["max_train_samples"] if embedded else told["train"]["rows"]
        )
        name = MOVIES if embedded else told["train"]["file"]
        file = f"{name.replace('/', '_')}_others_{count}.parquet"
        kept, order = self.output_dir / "data" / file, None if embedded else 0
        source = self.data / f"{name}.parquet"
        source = movie_snippets()["train"] if embedded else source
        return shuffled(source, kept, count, count, order)


@dataclass
class Node:
    """A run, and what is wanted of it."""

    run: Run
    forms: set[str]
    jobs: list[Job]
    kept: bool = False  # whether another run of the table needs its model


def graph_of(jobs: Iterable[Job], all_jobs: Iterable[Job]) -> dict[Run, Node]:
    """Bring jobs of the same run together, with the runs that they need."""
    nodes: dict[Run, Node] = {}

    def add(run: Run) -> Node:
        for needed in run.needs:
            add(needed)
        return nodes.setdefault(run, Node(run, set(), []))

    for job in jobs:
        node = add(job.run)
        node.jobs.append(job)
        node.forms |= {job.form} if job.form else set()
    needed = {one for job in all_jobs for one in job.run.needs}
    for run, node in nodes.items():
        node.kept = run in needed or any(run in other.needs for other in nodes)
    return nodes


def work_off(
    nodes: Mapping[Run, Node],
    place: Place,
    count: int,
    ended: Callable[[Node, dict[str, Any]], None],
    limit_minutes: float | None = None,
) -> list[str]:
    """Run what is missing, so many side by side; return what failed or was left."""
    over = time.monotonic() + 60 * limit_minutes if limit_minutes else float("inf")
    sorter = TopologicalSorter({run: run.needs for run in nodes})
    sorter.prepare()
    faults: list[str] = []
    ready = 0
    with ThreadPoolExecutor(count) as pool:
        running: dict[Future, Run] = {}
        while True:
            for run in sorter.get_ready():
                running[pool.submit(_one, nodes[run], place, over)] = run
                ready += 1
            if not running:
                waiting = len(nodes) - ready
                waits = [f"{waiting} more runs wait for these"] if waiting else []
                return faults + waits
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                run = running.pop(future)
                fault, record = future.result()
                if fault:
                    faults.append(fault)  # and what needs it is never ready
                    continue
                ended(nodes[run], record)
                sorter.done(run)
                for form in nodes[run].forms - set(record["forms"]):
                    log = place.folder(run) / "log.txt"
                    faults.append(f"{run.task}, seed {run.seed}: no {form}; see {log}")


def _one(node: Node, place: Place, over: float) -> tuple[str, dict[str, Any]]:
    """Make a run in a process of its own, or take it as it is kept."""
    folder, run = place.folder(node.run), node.run
    label = f"{run.task}, {run.recipe or 'dense'} {dict(run.args)}, seed {run.seed}"
    record = read_record(folder)
    there = (folder / WEIGHTS).is_file()
    if record and node.forms <= set(record["forms"]) and (there or not node.kept):
        return "", record
    if time.monotonic() > over:
        return f"{label}: left for a later call", {}
    words = [] if record and there else [*place.words(run), "--overwrite_output_dir"]
    folder.mkdir(parents=True, exist_ok=True)
    order = {
        "task": tasks(run.scale)[run.task]["task"],
        "words": words,
        "forms": sorted(node.forms),
        "keep": node.kept,
        "keep_exports": run.seed == 0,  # whose latency is measured
    }
    (folder / "order.json").write_text(json.dumps(order, indent=2), encoding="utf-8")
    code = start_process(folder)
    if code:
        lines = (folder / "log.txt").read_text("utf-8").strip().splitlines()
        return f"{label}: {lines[-1] if lines else code}; {folder}", {}
    return "", read_record(folder)


def start_process(folder: Path) -> int:
    """Run the order in a folder with one thread; return the exit status."""
    command = [sys.executable, "-W", "ignore", "-m", "studies.one", str(folder)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": paths}
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        streams = {"stdout": log, "stderr": subprocess.STDOUT}
        return subprocess.run(command, env=environment, **streams).returncode


def read_record(folder: Path) -> dict[str, Any]:
    """Read what a run left; empty where it has not ended."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def dry_run(run: Run, place: Place) -> None:
    """Check a run's recipe and flags, and those of the runs that it needs."""
    from obert_modifiers.recipe.manager import RecipeManager
    from obert_modifiers.tasks import load

    for needed in run.needs:
        dry_run(needed, place)
    task = load(tasks(run.scale)[run.task]["task"])
    parsed = task.parse(place.words(run))
    parsed.data.check()
    parsed.train.check()
    if run.recipe is not None:
        RecipeManager.from_recipe(find_recipe(run.recipe), dict(run.args))


def machine_name(environment: Mapping[str, Any]) -> str:
    """Name the machine: CPU, family, model, instructions that matter, cores."""
    from obert_modifiers.cpu import host_cpu

    cpu = host_cpu()
    wanted = [name for name in cpu.instruction_sets if name not in ("FMA", "AVX2")]
    parts = [cpu.name, f"family {cpu.family} model {cpu.model}", *wanted]
    parts.append(f"{environment['machine']['cores']} cores")
    return ", ".join(parts)
