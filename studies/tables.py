"""A table's YAML, and the runs that its rows stand for."""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from obert_modifiers.resources import recipe_names, recipe_path, recipe_setup

HERE = Path(__file__).parent
SCALES = ("small", "paper")
ENCODER = "encoder"  # the embedded one, as it is pre-trained
DENSE = "dense"  # the task's fine-tuned model, that of seed 0
_ROW = set("title of grid seeds differs".split()) | set(SCALES)
_SCALE = set("recipe args start teacher flags tasks minutes forms numbers".split())
_TABLE = set("title about differs rows claims speed".split()) | set(SCALES)


@dataclass(frozen=True)
class Run:
    """A training run: what it is, and not where it is kept."""

    scale: str
    task: str  # a name of tasks.yaml
    seed: int
    recipe: str | None = None  # a shipped one, or the path of one below studies/
    args: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    start: "Run | str | None" = None  # None for the embedded encoder
    teacher: "Run | str | None" = None

    @functools.cached_property
    def key(self) -> str:
        """A hash of everything that its result depends on, the seed left out."""
        told = {
            "data": tasks(self.scale)[self.task],
            "recipe": recipe_text(self.recipe),
            "args": dict(self.args),
            "flags": dict(self.flags),
            "start": _key_of(self.start),
            "teacher": _key_of(self.teacher),
        }
        return digest(json.dumps(told, sort_keys=True, default=str))

    @property
    def needs(self) -> tuple["Run", ...]:
        """The runs whose models it starts from or learns from."""
        return tuple(one for one in (self.start, self.teacher) if isinstance(one, Run))

    def __hash__(self) -> int:
        """Hash by what it is; runs are keys of dicts."""
        return hash((self.scale, self.key, self.seed))


def _key_of(other: "Run | str | None") -> str | None:
    return f"{other.key} {other.seed}" if isinstance(other, Run) else other


@dataclass(frozen=True)
class Job:
    """A line of the results: a row on a task with a seed."""

    table: str
    row: str  # with its place in the grid, such as `obert 0.9`
    run: Run
    form: str | None  # the exported form that is measured; None for the run itself
    minutes: float  # of one core, estimated
    numbers: Mapping[str, float]  # the paper's, by metric

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes a line of the results the same."""
        run = self.run
        return run.scale, run.task, self.row, str(run.seed), run.key, self.form or ""


@dataclass(frozen=True)
class Row:
    """A row of a table's YAML at one place of its grid."""

    name: str
    base: str  # its key in the YAML
    title: str
    of: str  # which row of which table of a paper
    setting: Mapping[str, Any]  # recipe variables of the grid
    seeds: int
    scales: Mapping[str, Mapping[str, Any]]  # what is said of it at each scale
    differs: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the studies."""

    name: str
    told: Mapping[str, Any]  # the YAML
    rows: Mapping[str, Row]  # by name

    def jobs(self, scale: str, seeds: list[int] | None = None) -> list[Job]:
        """List what is to be measured; seed 0 of everything first."""
        found = [
            self._job(row, scale, task, seed)
            for row in self.rows.values()
            if scale in row.scales
            for task in self.tasks_of(row, scale)
            for seed in (range(row.seeds) if seeds is None else seeds)
        ]
        return sorted(found, key=lambda job: job.run.seed)

    def tasks_of(self, row: Row, scale: str) -> list[str]:
        """Name a row's tasks."""
        own, usual = row.scales[scale], self.told.get(scale, {})
        named = own.get("tasks", usual.get("tasks"))
        if named is None:
            named = recipe_setup(own["recipe"])["tasks"]
        return list(named)

    def paper_of(self, row: Row) -> str:
        """Write the paper's numbers of a row."""
        parts = []
        for task in row.scales.get("paper", {}).get("numbers", {}):
            for metric, number in numbers_of(row, "paper", task).items():
                parts.append(f"{task} {metric} {number:g}")
        return ", ".join(parts)

    def _job(self, row: Row, scale: str, task: str, seed: int) -> Job:
        run = self.run_of(row, scale, task, seed)
        own = row.scales[scale]
        forms = own.get("forms")
        return Job(
            self.name,
            row.name,
            run,
            forms,
            float(_by_task(own.get("minutes", 0.0), task)),
            numbers_of(row, scale, task),
        )

    def run_of(self, row: Row, scale: str, task: str, seed: int) -> Run:
        """Make the run of a row."""
        usual, own = self.told.get(scale, {}), row.scales[scale]
        recipe = _by_task(own.get("recipe"), task)
        variables = {**usual.get("args", {}), **own.get("args", {}), **row.setting}
        if recipe is not None:
            known = variables_of(recipe)
            ours = set(own.get("args", {})) | set(row.setting)
            variables = {k: v for k, v in variables.items() if k in known or k in ours}
        flags = {**usual.get("flags", {}), **own.get("flags", {})}
        start = _by_task(own.get("start", usual.get("start")), task)
        teacher = _by_task(own.get("teacher", usual.get("teacher")), task)
        if scale == "paper":
            made = of_paper(recipe, task, seed, start, teacher)
            return replace(made, args=variables, flags=made.flags | flags)
        run = Run(scale, task, seed, recipe, variables, flags)
        if recipe is None:
            variables, teacher = {}, None
            if start == DENSE:  # the fine-tuned model itself
                return dense(task, seed)
        return replace(
            run,
            args=variables,
            start=self._model(start, row, task, seed),
            teacher=self._model(teacher, row, task, seed),
        )

    def _model(
        self, name: str | None, row: Row, task: str, seed: int
    ) -> Run | str | None:
        """Find what a row starts or learns from: a model, or another row's."""
        if name in (None, ENCODER):
            return None
        if name == DENSE:
            return dense(task, seed)
        if name == "self":
            return "self"
        # A row at the same place of the grid, or the only one of that name.
        place = " ".join(f"{value:g}" for value in row.setting.values())
        for known in (f"{name} {place}".strip(), name):
            if known in self.rows:
                other = self.rows[known]
                theirs = self.tasks_of(other, "small")
                where = task if task in theirs else theirs[0]
                return self.run_of(other, "small", where, seed % other.seeds)
        raise ValueError(
            f"{row.name}: start={name} is no row of {self.name}; expected {ENCODER}, "
            f"{DENSE}, self or a row; correct it in tables/{self.name}.yaml"
        )


def dense(task: str, seed: int) -> Run:
    """Return the run that fine-tunes the embedded encoder on a task."""
    return Run("small", task, seed, flags=tasks("small")[task]["dense"])


def of_paper(
    recipe: str,
    task: str,
    seed: int,
    start: "Run | str | None",
    teacher: "Run | str | None",
) -> Run:
    """Make the run of a recipe as its header says; students and teachers too."""
    setup = recipe_setup(recipe)
    flags = {
        "max_seq_length": _by_task(setup["tokens"], task),
        "per_device_train_batch_size": _by_task(setup["batch"], task),
    }
    if tasks("paper")[task]["task"] == "question_answering":
        flags["doc_stride"] = setup["stride"]
    start = start or _by_task(setup["student"], task)
    teacher = teacher or _by_task(setup["teacher"], task)
    for role, name in (("start", start), ("teacher", teacher)):
        if isinstance(name, list):
            raise ValueError(
                f"{recipe} has several models for {role}: {', '.join(name)}; expected "
                f"one; name it as {role} in the row"
            )
    models = (_of_paper(name, task) for name in (start, teacher))
    return Run("paper", task, seed, recipe, {}, flags, *models)


def _of_paper(name: Run | str, task: str) -> Run | str | None:
    """Find a model that a header names: one of the hub, or what a recipe makes.

    ``RECIPE of MODEL`` starts from a model, ``by`` names a teacher, and ``with`` gives
    recipe variables as JSON.
    """
    if name == "none":
        return None
    if isinstance(name, Run):
        return name
    name, _, given = name.partition(" with ")
    name, _, teacher = name.partition(" by ")
    made, _, of = name.partition(" of ")
    if made not in recipe_names():
        return name
    known = recipe_setup(made)["tasks"]
    of = _of_paper(of, task) if of else None
    run = of_paper(made, task if task in known else known[0], 0, of, teacher or None)
    return replace(run, args=json.loads(given)) if given else run


def numbers_of(row: Row, scale: str, task: str) -> dict[str, float]:
    """Return the paper's numbers of a row on a task, by metric."""
    told = row.scales[scale].get("numbers", {}).get(task, {})
    found = {}
    for metric, number in told.items():
        for value in row.setting.values():
            number = number.get(value) if isinstance(number, Mapping) else number
        if number is not None:
            found[metric] = float(number)
    return found


def _by_task(value: Any, task: str) -> Any:
    """Take a task's own of what is told by task, or what is told for all."""
    if not isinstance(value, Mapping):
        return value
    return value[task] if task in value else value["others"]


@functools.cache
def tasks(scale: str) -> dict[str, Any]:
    """Read which data each task has."""
    text = (HERE / "tasks.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)[scale]


def find_recipe(recipe: str) -> Path:
    """Find a recipe: a shipped one by name, one of the studies by its path."""
    return HERE / recipe if "/" in recipe else recipe_path(recipe)


@functools.cache
def recipe_text(recipe: str | None) -> str:
    """Read a recipe without its comments, on which no result depends."""
    if recipe is None:
        return ""
    lines = find_recipe(recipe).read_text(encoding="utf-8").splitlines()
    kept = (line for line in lines if line.strip() and not line.startswith("#"))
    return "\n".join(kept)


@functools.cache
def variables_of(recipe: str) -> frozenset[str]:
    """Name a recipe's variables."""
    lines = recipe_text(recipe).splitlines()
    names = (line.partition(":") for line in lines if not line.startswith(" "))
    return frozenset(name for name, _, value in names if value.strip())


def digest(text: str) -> str:
    """Hash a text, in twelve digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def table_names() -> list[str]:
    """List the tables."""
    return sorted(path.stem for path in (HERE / "tables").glob("*.yaml"))


def read_table(name: str) -> Table:
    """Read a table by its name, or from a file."""
    path = Path(name) if name.endswith(".yaml") else HERE / "tables" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"table={name} is unknown; expected one of {', '.join(table_names())}; "
            "`python -m studies list` shows them"
        )
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check(path, "", told, _TABLE)
    rows = {}
    for base, one in told["rows"].items():
        _check(path, base, one, _ROW)
        for scale in set(SCALES) & set(one):
            _check(path, f"{base}, {scale}", one[scale], _SCALE)
        rows |= {row.name: row for row in _expand(base, one)}
    return Table(path.stem, told, rows)


def _expand(base: str, told: Mapping[str, Any]) -> Iterator[Row]:
    """Make the rows of a grid."""
    grid = told.get("grid", {})
    for values in itertools.product(*grid.values()):
        words = [f"{value:g}" for value in values]
        title = told.get("title", base)
        named = title.format(**dict(zip(grid, words, strict=True)))
        yield Row(
            " ".join([base, *words]),
            base,
            " ".join([title, *words]) if named == title else named,
            told.get("of", "none"),
            dict(zip(grid, values, strict=True)),
            told.get("seeds", 3),
            {scale: told[scale] for scale in SCALES if scale in told},
            told.get("differs", ""),
        )


def _check(path: Path, place: str, told: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(told) - known)
    if unknown:
        raise ValueError(
            f"{path.name}: {place}: {unknown[0]} is unknown; expected some of "
            f"{', '.join(sorted(known))}; correct it"
        )
