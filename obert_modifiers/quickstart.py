"""The main job on what is embedded: dense, GMP★ and oBERT in one table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from obert_modifiers.manager import RecipeManager
from obert_modifiers.report import write_comparison, write_report
from obert_modifiers.resources import recipe_path
from obert_modifiers.tasks._arguments import (
    Arguments,
    DataArguments,
    ModelArguments,
    TrainArguments,
)
from obert_modifiers.tasks.text_classification import TRAIN_RECORD
from obert_modifiers.tasks.text_classification import run as run_task

RECIPES = {"gmp": "quickstart_gmp.yaml", "obert": "quickstart.yaml"}
TITLES = {"dense": "dense", "gmp": "GMP★", "obert": "oBERT"}
FIGURES = ("accuracy", "loss", "sparsity", "size_mb", "gzip_mb", "minutes")
_HEAD = ("", "accuracy", "loss", "recovery", "sparsity", "MB", "gzip MB", "minutes")


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
) -> dict[str, dict[str, float]]:
    """Run dense, GMP★ and oBERT, and write ``summary.json`` and a report.

    Args:
        output_dir: Where all of it goes; a folder for each run.
        seed: Seed of the three runs.
        only: Which of them to run. The others are taken from `output_dir` where they
            are there with the same seed and data; the dense model is made if missing.
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
    records: dict[str, dict[str, Any]] = {}
    for name in TITLES:
        found = None if name in only else _earlier(folder / name, seed, settings)
        if found is None and name not in (*only, "dense"):
            continue
        if found is None:
            if reporter is not None:
                reporter.message(f"== {TITLES[name]}")
            found = run_task(arguments(name, folder, seed, settings), reporter)
            write_report(folder / name)
        records[name] = found
    summary = {
        name: {figure: record[figure] for figure in FIGURES}
        for name, record in records.items()
    }
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
        name: dense, gmp or obert.
        folder: The quickstart's folder.
        seed: The seed.
        settings: What is fixed about the runs.

    Returns:
        The flags.
    """
    dense = str(folder / "dense")
    sparse = name != "dense"
    start_dense = sparse and settings.students_start_dense
    return Arguments(
        ModelArguments(
            model_name_or_path=dense if start_dense else None,
            distill_teacher=dense if sparse else None,
        ),
        DataArguments(max_train_samples=settings.sentences, max_seq_length=128),
        TrainArguments(
            output_dir=str(folder / name),
            overwrite_output_dir=True,
            recipe=str(recipe_path(RECIPES[name])) if sparse else None,
            do_train=True,
            do_eval=True,
            num_train_epochs=settings.dense_epochs,
            learning_rate=settings.dense_learning_rate,
            per_device_train_batch_size=settings.batch_size,
            bf16=settings.bf16,
            seed=seed,
        ),
        ("obert", "quickstart", "--seed", str(seed), "--only", name),
    )


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


def table(summary: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
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
        "file.",
        f"Machine: {machine['gpu'] or machine['cpu']}, {machine['cores']} cores.",
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
    for name in RECIPES:
        if name not in records:
            continue
        manager = RecipeManager.from_recipe(recipe_path(RECIPES[name]))
        grads = [getattr(modifier, "num_grads", None) for modifier in manager.pruning]
        with_grads = "".join(f", num_grads {count}" for count in grads if count)
        parts.append(f"{TITLES[name]} {manager.max_epochs:g}{with_grads}")
    return f", {', '.join(parts)}, from {start} and with it as teacher" if parts else ""


def _rich_table(rows: Sequence[Sequence[str]]) -> Table:
    drawn = Table(title="Quickstart")
    for number, name in enumerate(rows[0]):
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows[1:]:
        drawn.add_row(*row)
    return drawn
