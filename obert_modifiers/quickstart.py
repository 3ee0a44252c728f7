"""The main job on what is embedded: dense, GMP★, oBERT and INT8 in one table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from obert_modifiers.cpu import host_cpu
from obert_modifiers.deploy.bench.cases import plan_cases
from obert_modifiers.deploy.bench.rounds import Effort, measure
from obert_modifiers.deploy.engines.engine import import_engine
from obert_modifiers.deploy.export import export_run
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.report import write_comparison, write_report
from obert_modifiers.resources import recipe_path
from obert_modifiers.sizes import MB, gzip_bytes, plain_bytes
from obert_modifiers.tasks.flags import Arguments, ModelArguments, TrainArguments
from obert_modifiers.tasks.run.execute import TRAIN_RECORD
from obert_modifiers.tasks.run.execute import run as run_task
from obert_modifiers.tasks.text_classification import TASK, TextArguments

INT8 = "int8"
RECIPES = {"gmp": "quickstart_gmp.yaml", "obert": "quickstart.yaml"}
INT8_RECIPE = "quickstart_int8.yaml"
TITLES = {"dense": "dense", "gmp": "GMP★", "obert": "oBERT", INT8: "oBERT, INT8"}
# What each run starts from, and what must be there before it.
_NEEDS = {"gmp": ("dense",), "obert": ("dense",), INT8: ("dense", "obert")}
FIGURES = ("accuracy", "loss", "sparsity", "size_mb", "gzip_mb", "speed", "minutes")
_HEAD = (
    *("", "accuracy", "loss", "recovery", "sparsity"),
    *("MB", "gzip MB", "sentences/s", "minutes"),
)
ENGINE = "onnxruntime"
SIZE = (32, 32)  # sentences, tokens of each: the data's mean is 25
EFFORT = Effort(seconds=2.0, rounds=4, warm_up=0.5)


@dataclass(frozen=True)
class Settings:
    """What is fixed about the three runs, beside the recipes.

    Attributes:
        sentences: Training sentences, the first of the embedded data's fixed shuffle.
            A multiple of the batch size, so that pruning events fall on whole steps.
        batch_size: Sentences in an optimizer step.
        dense_epochs: Epochs of the dense run.
        dense_learning_rate: Its highest learning rate; linear to 0.
        students_start_dense: Whether sparse runs start from the fine-tuned dense
            model; else from the encoder. The teacher is the dense model either way.
        bf16: Whether training runs in mixed bfloat16 precision.
    """

    sentences: int = 2560
    batch_size: int = 32
    dense_epochs: float = 2.0
    dense_learning_rate: float = 8e-5
    students_start_dense: bool = True
    bf16: bool = False


def run(
    output_dir: str | Path = "runs/quickstart",
    *,
    seed: int = 0,
    only: Sequence[str] = tuple(TITLES),
    settings: Settings | None = None,
    reporter: Any = None,
) -> dict[str, dict[str, Any]]:
    """Run dense, GMP★, oBERT and INT8, and write ``summary.json`` and a report.

    Args:
        output_dir: Where all of it goes; a folder for each run.
        seed: Seed of the runs.
        only: Which of them to run. The others are taken from `output_dir` where they
            are there with the same seed and data; what a run starts from is made if
            missing.
        settings: What is fixed about the runs.
        reporter: Shows the progress, and the table with its method ``show``.

    Returns:
        What ``summary.json`` holds: the figures of each run by its name.

    Raises:
        ValueError: If `only` names no run.
    """
    settings, folder = settings or Settings(), Path(output_dir)
    unknown = sorted(set(only) - set(TITLES))
    if unknown or not only:
        raise ValueError(
            f"only={','.join(only)} names no run; expected some of "
            f"{', '.join(TITLES)}; write --only obert"
        )
    needed = {*only, "dense"}.union(*(_NEEDS.get(name, ()) for name in only))
    records: dict[str, dict[str, Any]] = {}
    for name in TITLES:
        found = None if name in only else _earlier(folder / name, seed, settings)
        if found is None and name not in needed:
            continue
        if found is None:
            if reporter is not None:
                reporter.message(f"== {TITLES[name]}")
            found = run_task(TASK, arguments(name, folder, seed, settings), reporter)
            write_report(folder / name)
        records[name] = found
    if reporter is not None:
        reporter.message("== Size and speed")
    summary = _summarize(records, _deploy(folder, records))
    text = json.dumps(summary, indent=2)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    rows, below = table(summary), notes(records, settings, seed)
    runs = {TITLES[name]: folder / name for name in records}
    page = write_comparison(folder, "Quickstart", runs, rows, below)
    if reporter is not None:
        reporter.show(_rich_table(rows))
        for line in (*below, f"report: {page}"):
            reporter.message(line)
    return summary


def arguments(name: str, folder: Path, seed: int, settings: Settings) -> Arguments:
    """Say what one of the runs is, in the flags of `obert train`.

    Args:
        name: dense, gmp, obert or int8.
        folder: The quickstart's folder.
        seed: The seed.
        settings: What is fixed about the runs.

    Returns:
        The flags.
    """
    dense = str(folder / "dense")
    sparse = name != "dense"
    start_dense = sparse and settings.students_start_dense
    start = str(folder / "obert") if name == INT8 else dense if start_dense else None
    return Arguments(
        ModelArguments(
            model_name_or_path=start,
            distill_teacher=dense if sparse else None,
        ),
        TextArguments(max_train_samples=settings.sentences, max_seq_length=128),
        TrainArguments(
            output_dir=str(folder / name),
            overwrite_output_dir=True,
            recipe=str(_recipe_of(name)) if sparse else None,
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


def _recipe_of(name: str) -> Path:
    return recipe_path((RECIPES | {INT8: INT8_RECIPE})[name])


def _deploy(folder: Path, records: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Export what is run, and measure it.

    Args:
        folder: The quickstart's folder.
        records: The record of each run.

    Returns:
        ``speed`` of each run, in sentences a second on ONNX Runtime, and ``size_mb``
        and ``gzip_mb`` of the INT8 file; the speeds are None without the engine.
    """
    found: dict[str, dict[str, float | None]] = {
        name: {"speed": None} for name in records
    }
    paths = {name: folder / name for name in records}
    if INT8 in paths:
        paths[INT8] = export_run(paths[INT8], "onnx").path
        size, packed = plain_bytes([paths[INT8]]), gzip_bytes([paths[INT8]])
        found[INT8] |= {"size_mb": size / MB, "gzip_mb": packed / MB}
    try:
        import_engine(ENGINE)
    except ValueError:
        return found
    with TemporaryDirectory() as scratch:
        plan = plan_cases([*paths.values()], (ENGINE,), (SIZE,), Path(scratch))
        measured = measure(plan.cases, EFFORT)
    for name, one in zip(paths, measured, strict=True):
        found[name]["speed"] = one.summary()["items_per_second"]
    return found


def _summarize(
    records: Mapping[str, Mapping[str, Any]],
    deployed: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    together = {name: {**records[name], **deployed[name]} for name in records}
    return {
        name: {figure: found[figure] for figure in FIGURES}
        for name, found in together.items()
    }


def _earlier(folder: Path, seed: int, settings: Settings) -> dict[str, Any] | None:
    """Read the record of an earlier run, if it is one of the same quickstart.

    Args:
        folder: The run's folder.
        seed: The seed it must have.
        settings: The settings whose data it must have.

    Returns:
        The record, or None.
    """
    path = folder / TRAIN_RECORD
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    same = record["seed"] == seed and record["train_samples"] == settings.sentences
    return record if same else None


def table(summary: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Format the figures of the runs.

    Args:
        summary: What ``summary.json`` holds.

    Returns:
        The head, and a row for each run. Recovery is the accuracy over the dense one.
    """
    rows = [_HEAD]
    for name, figures in summary.items():
        recovery = figures["accuracy"] / summary["dense"]["accuracy"]
        rows.append((
            TITLES[name],
            f"{figures['accuracy']:.3f}",
            f"{figures['loss']:.4f}",
            f"{100 * recovery:.1f} %",
            f"{100 * figures['sparsity']:.2f} %",
            f"{figures['size_mb']:.1f}",
            f"{figures['gzip_mb']:.1f}",
            "-" if figures["speed"] is None else f"{figures['speed']:.0f}",
            f"{figures['minutes']:.1f}",
        ))
    return rows


def notes(
    records: Mapping[str, Mapping[str, Any]], settings: Settings, seed: int
) -> list[str]:
    """Say under which conditions the figures were measured.

    Args:
        records: The record of each run.
        settings: What is fixed about the runs.
        seed: The seed.

    Returns:
        The lines below the table.
    """
    dense = records["dense"]
    machine = dense["machine"]
    start = "the dense model" if settings.students_start_dense else "the encoder"
    epochs = f"dense {settings.dense_epochs:g}{_sparse_epochs(records, start)}"
    return [
        f"Data: the first {dense['train_samples']:,} training sentences of the "
        f"embedded movie_snippets (fixed shuffle), all {dense['samples']:,} validation "
        "sentences.",
        f"Epochs: {epochs}; batches of {settings.batch_size} sorted by length; "
        f"seed {seed}.",
        "Sparsity is that of the encoder's linear weights, counted from the saved "
        f"file. Speed is ONNX Runtime's, {SIZE[0]} sentences of {SIZE[1]} tokens at "
        "once; it multiplies by zeros, so that INT8 alone makes it faster.",
        f"Machine: {machine['gpu'] or machine['cpu']} "
        f"({', '.join(host_cpu().instruction_sets)}), {machine['cores']} cores.",
    ]


def _sparse_epochs(records: Mapping[str, Any], start: str) -> str:
    """Read epochs and num_grads from the recipes that were run.

    Args:
        records: The record of each run.
        start: What the sparse runs started from.

    Returns:
        The middle of a sentence, empty where there was no sparse run.
    """
    parts = []
    for name in (*RECIPES, INT8):
        if name not in records:
            continue
        manager = RecipeManager.from_recipe(_recipe_of(name))
        grads = [getattr(modifier, "num_grads", None) for modifier in manager.pruning]
        with_grads = "".join(f", num_grads {count}" for count in grads if count)
        parts.append(f"{TITLES[name]} {manager.max_epochs:g}{with_grads}")
    if INT8 in records:
        parts[-1] += " more"
    return f", {', '.join(parts)}, from {start} and with it as teacher" if parts else ""


def _rich_table(rows: Sequence[Sequence[str]]) -> Table:
    drawn = Table(title="Quickstart")
    for number, name in enumerate(rows[0]):
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows[1:]:
        drawn.add_row(*row)
    return drawn
