"""From the flags to a saved, measured model."""

import shutil
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

from obert_modifiers import hub
from obert_modifiers.core.quantization import scales
from obert_modifiers.tasks.command_line import check, resumes
from obert_modifiers.tasks.flags import Arguments
from obert_modifiers.tasks.run import models, record
from obert_modifiers.tasks.run.plan import (
    Notes,
    Plan,
    load_recipe,
    prepare,
    with_actions,
)
from obert_modifiers.tasks.run.record import TRAIN_RECORD
from obert_modifiers.tasks.task import Task
from obert_modifiers.training import TrainResult, checkpoint, evaluate, predict, train
from obert_modifiers.training.environment import check_environment

EVAL_RECORD = "eval_metrics.json"
# What a run writes beside the model; removed when a folder is written over.
WRITTEN = (TRAIN_RECORD, EVAL_RECORD, "metrics.jsonl", scales.FILE_NAME, "recipe.yaml")
WRITTEN += ("report.html", "report.png", "README.md")
EXPORTED = ("export/*", "onnx/model*.onnx*", "openvino/openvino_model.*")


def run(task: Task, arguments: Arguments, reporter: Any = None) -> dict[str, Any]:
    """Load, check, train, save, reload and measure; return what is recorded."""
    started = time.monotonic()
    check(arguments)
    check_environment()
    arguments = with_actions(task, arguments)
    manager = load_recipe(arguments)
    flags = arguments.train
    state = PartialState(cpu=flags.use_cpu)
    notes = Notes()
    with quiet_libraries(), torch.random.fork_rng():
        # Dropout differs between processes; the model and the order of data do not.
        torch.manual_seed(flags.seed + state.process_index)
        with state.main_process_first():
            plan = prepare(task, arguments, manager, state, notes)
        repository = None
        if flags.push_to_hub and state.is_main_process:
            # Now, as it may be refused.
            repository = hub.open_repository(flags.repository, flags.hub_private_repo)
        figures = _execute(plan, state, reporter)
    figures |= {
        "hub_model_id": repository,
        "minutes": (time.monotonic() - started) / 60,
        "notes": notes.texts,
        "command": list(arguments.command),
        "versions": record.versions(),
        "machine": record.machine() | {"processes": state.num_processes},
    }
    if state.is_main_process:
        name = TRAIN_RECORD if flags.do_train else EVAL_RECORD
        record.write_json(Path(flags.output_dir) / name, figures)
    state.wait_for_everyone()
    return figures


def _execute(plan: Plan, state: PartialState, reporter: Any) -> dict[str, Any]:
    """Train, save, and measure what was saved."""
    flags, folder = plan.arguments.train, Path(plan.config.output_dir)
    data, model, result = plan.samples.data, plan.model, None
    if state.is_main_process and not resumes(flags):
        _clear(folder, flags.do_train, plan.task)
    state.wait_for_everyone()
    if flags.do_train:
        others = {"manager": plan.manager, "teacher": plan.teacher}
        result = train(plan.model, data, plan.config, reporter=reporter, **others)
        if state.is_main_process:
            _save(plan, folder)
        state.wait_for_everyone()
        # The file is measured, not what is in memory: it is what people will use.
        model = models.load_saved(folder, plan.task.model_class)
    else:
        scales.load_quantization_(model, plan.inputs.pretrained.source)
    figures = _facts(plan, result)
    config = replace(plan.config, mixed_precision="no")
    if flags.do_eval:
        figures |= evaluate(model, data, config)
    if flags.do_predict:
        kept = predict(model, data, plan.samples.test, config)
        if state.is_main_process:
            plan.samples.write(kept, folder)
    if flags.do_train:
        layers = record.count_zeros(folder, plan.prunable)
        figures["sparsity"] = record.sparsity_of(layers)
        figures |= record.sparsities(folder, plan.model) | record.sizes_mb(folder)
        figures["layers"] = layers
    return figures


def _clear(folder: Path, training: bool, task: Task) -> None:
    """Make the output folder and remove what an earlier run of this kind wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    patterns = ("model*.safetensors*", *EXPORTED) if training else ()
    stale = [path for pattern in patterns for path in folder.glob(pattern)]
    names = (WRITTEN if training else (EVAL_RECORD,)) + task.prediction_files
    for path in (*stale, *(folder / name for name in names)):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
    if training:
        checkpoint.remove_all(folder)


def _save(plan: Plan, folder: Path) -> None:
    plan.model.save_pretrained(folder)
    scales.save_quantization(plan.model, folder)
    plan.inputs.pretrained.tokenizer.save_pretrained(folder)
    if plan.manager is not None:
        plan.manager.save(folder / "recipe.yaml")


def _facts(plan: Plan, result: TrainResult | None) -> dict[str, Any]:
    """Collect what was run."""
    data, asked = plan.samples.data, plan.arguments
    facts: dict[str, Any] = {data.headline[0]: None, "loss": None}
    if result is not None:
        facts |= {"steps": result.steps, "train_seconds": result.seconds}
        facts["pruning_events"] = len(result.events)
    named = plan.manager.teacher if plan.manager else None
    return facts | {
        "seed": plan.config.seed,
        "train_samples": len(data.train),
        "task": plan.task.name,
        "headline": list(data.headline),
        "model": plan.inputs.pretrained.description,
        "data": plan.inputs.data.description,
        "text_columns": list(plan.inputs.data.text_columns),
        "hub": record.hub_ids(asked.model.model_name_or_path, asked.data),
        "recipe": asked.train.recipe,
        "teacher": asked.model.distill_teacher or named,
        "config": asdict(plan.config),
    }


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the chatter of transformers and datasets out of the log, for a while."""
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
