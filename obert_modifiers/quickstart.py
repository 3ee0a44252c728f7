"""The main job on what is embedded: dense, GMP★, oBERT, INT8 and our engine.

A study: what is fixed (`Settings`), the runs (`STEPS`), and the table of their figures.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from obert_modifiers.cpu import host_cpu
from obert_modifiers.deploy.engines.engine import import_engine
from obert_modifiers.deploy.export import export_run
from obert_modifiers.resources import recipe_path
from obert_modifiers.sizes import MB, gzip_bytes, plain_bytes

if TYPE_CHECKING:
    from obert_modifiers.tasks.flags import Arguments


@dataclass(frozen=True)
class Settings:
    """What is fixed about the runs, beside the recipes."""

    # The first of the embedded data's fixed shuffle. A multiple of the batch size, so
    # that pruning events fall on whole steps.
    sentences: int = 2560
    batch_size: int = 32
    dense_epochs: float = 2.0
    dense_learning_rate: float = 8e-5  # the highest; linear to 0
    bf16: bool = False


@dataclass(frozen=True)
class Step:
    """A run of the study."""

    title: str
    recipe: str | None = None  # shipped; the dense run, without one, teaches the others
    start: str | None = None  # the run whose model it starts from
    form: str | None = None  # the format that is measured, else the run's folder


STEPS = {
    "dense": Step("dense"),
    "gmp": Step("GMP★", "quickstart_gmp.yaml", "dense"),
    "obert": Step("oBERT", "quickstart.yaml", "dense"),
    "int8": Step("oBERT, INT8", "quickstart_int8.yaml", "obert", "onnx"),
}
FIGURES = ("accuracy", "loss", "sparsity", "size_mb", "gzip_mb", "speed", "minutes")
_HEAD = (
    *("", "accuracy", "loss", "recovery", "sparsity"),
    *("MB", "gzip MB", "sentences/s", "minutes"),
)
# A row of its own: the same model, exported for our engine and evaluated there.
SPARSE, SPARSE_OF, SPARSE_TITLE = "sparse", "int8", "the same on our engine"
ENGINE = "onnxruntime"
SIZE = (32, 32)  # sentences, tokens of each: the data's mean is 25
EFFORT = {"seconds": 2.0, "rounds": 4, "warm_up": 0.5}


def run(
    output_dir: str | Path = "runs/quickstart",
    *,
    seed: int = 0,
    only: Sequence[str] = tuple(STEPS),
    settings: Settings | None = None,
    reporter: Any = None,
) -> dict[str, dict[str, Any]]:
    """Run dense, GMP★, oBERT and INT8, and write ``summary.json`` and a report.

    Runs that are not in `only` are taken from `output_dir` where they are there with
    the same seed and data; what a run starts from is made if it is missing. A reporter
    shows the progress, and the table with its method ``table``. Returns what
    ``summary.json`` holds: the figures of each run by its name.
    """
    check_names(only)
    from obert_modifiers.report.card import write_card
    from obert_modifiers.report.write import write_report
    from obert_modifiers.tasks.run.execute import run as run_task
    from obert_modifiers.tasks.text_classification import TASK

    settings, folder = settings or Settings(), Path(output_dir)
    needed = {*only, "dense", *(STEPS[name].start for name in only)}
    records: dict[str, dict[str, Any]] = {}
    for name, step in STEPS.items():
        record = None if name in only else _earlier(folder / name, seed, settings)
        if record is None and name in needed:
            if reporter is not None:
                reporter.message(f"== {step.title}")
            record = run_task(TASK, arguments(name, folder, seed, settings), reporter)
            write_report([folder / name])
            write_card(folder / name)
        if record is not None:
            records[name] = record
    if reporter is not None:
        reporter.message("== Size and speed")
    deployed = _deploy(folder, list(records))
    summary = {}
    for name, record in records.items():
        figures = record | deployed[name]
        summary[name] = {figure: figures[figure] for figure in FIGURES}
    if SPARSE_OF in records:
        figures = records[SPARSE_OF] | deployed[SPARSE] | {"minutes": None}
        summary[SPARSE] = {figure: figures[figure] for figure in FIGURES}
    text = json.dumps(summary, indent=2)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    rows, below = table(summary), notes(records, settings, seed)
    runs = {STEPS[name].title: folder / name for name in records}
    page = write_report(runs, folder, title="Quickstart", table=rows, notes=below)
    if reporter is not None:
        reporter.table("Quickstart", rows)
        for line in (*below, f"report: {page}"):
            reporter.message(line)
    return summary


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError unless these are names of `STEPS`."""
    if not names or set(names) - set(STEPS):
        raise ValueError(
            f"only={','.join(names)} names no run; expected some of "
            f"{', '.join(STEPS)}; write --only obert"
        )


def arguments(name: str, folder: Path, seed: int, settings: Settings) -> "Arguments":
    """Say what one of `STEPS` is, in the flags of `obert train`."""
    from obert_modifiers.tasks.flags import Arguments, ModelArguments, TrainArguments
    from obert_modifiers.tasks.text_classification import TextArguments

    step = STEPS[name]
    return Arguments(
        ModelArguments(
            model_name_or_path=str(folder / step.start) if step.start else None,
            distill_teacher=str(folder / "dense") if step.recipe else None,
        ),
        TextArguments(max_train_samples=settings.sentences, max_seq_length=128),
        TrainArguments(
            output_dir=str(folder / name),
            overwrite_output_dir=True,
            recipe=str(recipe_path(step.recipe)) if step.recipe else None,
            do_train=True,
            do_eval=True,
            eval_strategy="no",  # the saved model is evaluated
            num_train_epochs=settings.dense_epochs,
            learning_rate=settings.dense_learning_rate,
            per_device_train_batch_size=settings.batch_size,
            bf16=settings.bf16,
            seed=seed,
        ),
        ("obert", "quickstart", "--seed", str(seed), "--only", name),
    )


def _earlier(folder: Path, seed: int, settings: Settings) -> dict[str, Any] | None:
    """Read the record of a run in a folder, if it is one of the same study."""
    from obert_modifiers.tasks.run.execute import TRAIN_RECORD

    path = folder / TRAIN_RECORD
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    same = record["seed"] == seed and record["train_samples"] == settings.sentences
    return record if same else None


def _deploy(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Export what is deployed, and measure it.

    ``speed`` is in sentences a second, None without the engine; ``size_mb`` and
    ``gzip_mb`` are those of runs in a format of their own.
    """
    from obert_modifiers.deploy.bench.cases import plan_cases
    from obert_modifiers.deploy.bench.rounds import Effort, measure

    found: dict[str, dict[str, Any]] = {name: {"speed": None} for name in names}
    paths = {name: folder / name for name in names}
    forms = {name: STEPS[name].form for name in names if STEPS[name].form is not None}
    if SPARSE_OF in names:
        found[SPARSE] = {"speed": None}
        paths[SPARSE], forms[SPARSE] = folder / SPARSE_OF, SPARSE
    for name, form in forms.items():
        path = paths[name] = export_run(paths[name], form).path
        found[name]["size_mb"] = plain_bytes([path]) / MB
        found[name]["gzip_mb"] = gzip_bytes([path]) / MB
    if SPARSE in paths:
        found[SPARSE] |= _evaluated(paths[SPARSE], folder / SPARSE_OF)
    engines = {name: SPARSE if name == SPARSE else ENGINE for name in paths}
    try:
        import_engine(ENGINE)
    except ValueError:
        paths = {name: path for name, path in paths.items() if name == SPARSE}
    with TemporaryDirectory() as scratch:
        cases = []
        for name, path in paths.items():
            place = Path(scratch) / name
            place.mkdir()
            cases += plan_cases([path], (engines[name],), (SIZE,), place).cases
        measured = measure(cases, Effort(**EFFORT))
    for name, case in zip(paths, measured, strict=True):
        found[name]["speed"] = case.summary()["items_per_second"]
    return found


def _evaluated(path: Path, run: Path) -> dict[str, Any]:
    """Evaluate an exported file on all validation sentences."""
    from obert_modifiers.deploy.evaluate import Request, evaluate_file

    words = ("--max_seq_length", "128", "--use_cpu")
    record = evaluate_file(Request(path, run=run, words=words))
    return {name: record[name] for name in ("accuracy", "loss")}


def table(summary: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Format ``summary.json``; recovery is the accuracy over the dense model's."""
    rows = [_HEAD]
    for name, figures in summary.items():
        recovery = figures["accuracy"] / summary["dense"]["accuracy"]
        rows.append((
            SPARSE_TITLE if name == SPARSE else STEPS[name].title,
            f"{figures['accuracy']:.3f}",
            f"{figures['loss']:.4f}",
            f"{100 * recovery:.1f} %",
            f"{100 * figures['sparsity']:.2f} %",
            f"{figures['size_mb']:.1f}",
            f"{figures['gzip_mb']:.1f}",
            "-" if figures["speed"] is None else f"{figures['speed']:.0f}",
            "-" if figures["minutes"] is None else f"{figures['minutes']:.1f}",
        ))
    return rows


def notes(
    records: Mapping[str, Mapping[str, Any]], settings: Settings, seed: int
) -> list[str]:
    """Say under which conditions the figures were measured."""
    dense = records["dense"]
    machine = dense["machine"]
    epochs = [f"dense {settings.dense_epochs:g}"]
    epochs += [_epochs(STEPS[name]) for name in records if name != "dense"]
    sparse = ", from the dense model and with it as teacher" if len(epochs) > 1 else ""
    return [
        f"Data: the first {dense['train_samples']:,} training sentences of the "
        f"embedded movie_snippets (fixed shuffle), all {dense['samples']:,} validation "
        "sentences.",
        f"Epochs: {', '.join(epochs)}{sparse}; batches of {settings.batch_size} sorted "
        f"by length; seed {seed}.",
        "Sparsity is that of the encoder's linear weights, counted from the saved "
        f"file. Speed is ONNX Runtime's, {SIZE[0]} sentences of {SIZE[1]} tokens at "
        "once; it multiplies by zeros, so that only INT8 makes it faster. Our engine "
        "leaves zeros out in blocks of 4; here the masks are unstructured, and six "
        "blocks in ten hold a weight.",
        f"Machine: {machine['gpu'] or machine['cpu']} "
        f"({', '.join(host_cpu().instruction_sets)}), {machine['cores']} cores.",
    ]


def _epochs(step: Step) -> str:
    """Read epochs and num_grads from the recipe that was run."""
    from obert_modifiers.recipe.manager import RecipeManager

    manager = RecipeManager.from_recipe(recipe_path(step.recipe))
    counts = [getattr(modifier, "num_grads", None) for modifier in manager.pruning]
    grads = "".join(f", num_grads {count}" for count in counts if count)
    more = "" if step.start == "dense" else " more"
    return f"{step.title} {manager.max_epochs:g}{grads}{more}"
