"""Text classification: from a command line to a saved, measured, sparse model."""

import csv
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from obert_modifiers.core import quantization_file
from obert_modifiers.core.outputs import logits_of
from obert_modifiers.tasks import _models, _record
from obert_modifiers.tasks._arguments import (
    Arguments,
    TrainArguments,
    check,
    parse,
    resuming,
)
from obert_modifiers.tasks._plan import Notes, Plan, load_recipe, prepare, what_to_do
from obert_modifiers.training import TrainResult, checkpoint, evaluate, train

PROGRAM = "obert train text_classification"
TRAIN_RECORD = "metrics.json"
EVAL_RECORD = "eval_metrics.json"
# What a run writes beside the model; removed when a folder is written over.
WRITTEN = (
    TRAIN_RECORD,
    EVAL_RECORD,
    "metrics.jsonl",
    "predictions.csv",
    quantization_file.FILE_NAME,
    "recipe.yaml",
    "report.html",
    "report.png",
)


def main(argv: list[str], reporter: Any = None) -> dict[str, Any]:
    """Run what a command line asks for; works under every launcher of accelerate.

    Args:
        argv: The flags, without a program name; see ``--help``.
        reporter: Shows the progress; see `obert_modifiers.training.train`.

    Returns:
        The record that `run` wrote.

    Raises:
        ValueError: If a flag, the recipe, the model or the data cannot be used.
    """  # noqa: DOC502  raised by parse and run
    return run(parse(argv, PROGRAM), reporter)


def resume_command(argv: list[str]) -> str:
    """Write the command that goes on where a run was stopped.

    Args:
        argv: The run's flags, without a program name.

    Returns:
        A line for the shell.
    """
    return shlex.join([*PROGRAM.split(), *resuming(argv)])


def run(arguments: Arguments, reporter: Any = None) -> dict[str, Any]:
    """Load, check, train, save, reload and measure.

    Args:
        arguments: All flags.
        reporter: Shows the progress; see `obert_modifiers.training.train`.

    Returns:
        The record that was written into the output folder: ``metrics.json`` after
        training, else ``eval_metrics.json``.

    Raises:
        ValueError: If a flag, the recipe, the model or the data cannot be used.
    """  # noqa: DOC502  raised by the checks
    started = time.monotonic()
    check(arguments)
    arguments = what_to_do(arguments)
    manager = load_recipe(arguments)
    state = PartialState(cpu=arguments.train.use_cpu)
    notes = Notes()
    with _quiet_libraries(), torch.random.fork_rng():
        # Dropout differs between processes; the model and the order of data do not.
        torch.manual_seed(arguments.train.seed + state.process_index)
        with state.main_process_first():
            plan = prepare(arguments, manager, state, notes)
        record = _execute(plan, state, reporter)
    record |= {
        "minutes": (time.monotonic() - started) / 60,
        "notes": notes.texts,
        "command": list(arguments.command),
        "versions": _record.versions(),
        "machine": _record.machine() | {"processes": state.num_processes},
    }
    if state.is_main_process:
        name = TRAIN_RECORD if arguments.train.do_train else EVAL_RECORD
        _record.write_json(Path(arguments.train.output_dir) / name, record)
    state.wait_for_everyone()
    return record


def _execute(plan: Plan, state: PartialState, reporter: Any) -> dict[str, Any]:
    """Train, save, and measure what was saved.

    Args:
        plan: What was loaded.
        state: The process among its peers.
        reporter: Shows the progress.

    Returns:
        The figures of the record.
    """
    flags, folder = plan.arguments.train, Path(plan.config.output_dir)
    if state.is_main_process and not _resumes(flags, folder):
        _clear(folder, flags.do_train)
    state.wait_for_everyone()
    result, model = None, plan.model
    if flags.do_train:
        result = train(
            plan.model,
            plan.data,
            plan.config,
            manager=plan.manager,
            teacher=plan.teacher,
            reporter=reporter,
        )
        if state.is_main_process:
            _save(plan, folder)
        state.wait_for_everyone()
        # The file is measured, not what is in memory: it is what people will use.
        model = _models.load_saved(folder)
    else:
        quantization_file.load_quantization_(model, plan.found.source)
    record = _facts(plan, result)
    if flags.do_eval:
        record |= evaluate(model, plan.data, replace(plan.config, mixed_precision="no"))
    if flags.do_predict and state.is_main_process:
        _predict(plan, model.to(state.device), folder / "predictions.csv")
    if flags.do_train:
        layers = _record.count_zeros(folder, plan.prunable)
        plain, packed = _record.sizes_mb(folder)
        record |= {
            "sparsity": _record.sparsity_of(layers),
            "size_mb": plain,
            "gzip_mb": packed,
            "layers": layers,
        }
    return record


def _resumes(flags: TrainArguments, folder: Path) -> bool:
    wanted = flags.resume_from_checkpoint
    return wanted not in (None, checkpoint.LAST) or (
        wanted is not None and bool(checkpoint.checkpoints_in(folder))
    )


def _clear(folder: Path, training: bool) -> None:
    """Make the output folder and remove what an earlier run wrote beside its model.

    Args:
        folder: The output folder.
        training: Whether the run trains; one that does not keeps the training's files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stale = list(folder.glob("model*.safetensors*")) if training else []
    names = WRITTEN if training else (EVAL_RECORD, "predictions.csv")
    for path in (*stale, *(folder / name for name in names)):
        path.unlink(missing_ok=True)
    if training:
        checkpoint.remove_all(folder)


def _save(plan: Plan, folder: Path) -> None:
    plan.model.save_pretrained(folder)
    quantization_file.save_quantization(plan.model, folder)
    plan.found.tokenizer.save_pretrained(folder)
    if plan.manager is not None:
        plan.manager.save(folder / "recipe.yaml")


def _facts(plan: Plan, result: TrainResult | None) -> dict[str, Any]:
    """Collect what was run.

    Args:
        plan: What was loaded.
        result: What training gave, or None.

    Returns:
        The first entries of the record.
    """
    facts: dict[str, Any] = {"accuracy": None, "loss": None}
    if result is not None:
        facts |= {"steps": result.steps, "train_seconds": result.seconds}
        facts["pruning_events"] = len(result.events)
    return facts | {
        "seed": plan.config.seed,
        "train_samples": len(plan.data.train),
        "model": plan.found.description,
        "data": plan.source,
        "recipe": plan.arguments.train.recipe,
        "teacher": plan.arguments.model.distill_teacher
        or (plan.manager.teacher if plan.manager else None),
        "config": asdict(plan.config),
    }


def _predict(plan: Plan, model: PreTrainedModel, path: Path) -> None:
    """Write a prediction for each test sample: its index, and class name or number.

    Args:
        plan: What was loaded.
        model: The model, on its device.
        path: The csv file to write.
    """
    loader = DataLoader(
        plan.test,
        batch_size=plan.config.per_device_eval_batch_size,
        collate_fn=plan.data.collate,
    )
    model.eval()
    rows: list[Any] = []
    with torch.no_grad():
        for batch in loader:
            outputs = model(**{k: v.to(model.device) for k, v in batch.items()})
            logits = logits_of(outputs)
            if plan.labels.regression:
                rows += logits.squeeze(-1).tolist()
            else:
                rows += [plan.labels.names[i] for i in logits.argmax(-1).tolist()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "prediction"))
        writer.writerows(enumerate(rows))


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the chatter of transformers and datasets out of the log, for a while.

    Yields:
        Nothing.
    """
    hub = transformers.utils.logging
    level, bars = hub.get_verbosity(), hub.is_progress_bar_enabled()
    data_bars = not datasets.are_progress_bars_disabled()
    hub.set_verbosity_error()
    hub.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        hub.set_verbosity(level)
        if bars:
            hub.enable_progress_bar()
        if data_bars:
            datasets.enable_progress_bars()
