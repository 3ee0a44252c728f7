"""From an exported file and its task's data to the task's metric."""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import nn

from obert_modifiers.core.outputs import MULTI_LABEL
from obert_modifiers.deploy.artefact import RUN, Artefact, find_artefact
from obert_modifiers.deploy.engines import ENGINES, readers
from obert_modifiers.deploy.engines.engine import reason
from obert_modifiers.deploy.graph_model import open_graph
from obert_modifiers.deploy.registry import check_known
from obert_modifiers.sizes import plain_bytes
from obert_modifiers.tasks import TASKS, load
from obert_modifiers.tasks.command_line import parse
from obert_modifiers.tasks.flags import Arguments
from obert_modifiers.tasks.run import models, record
from obert_modifiers.tasks.run.execute import TRAIN_RECORD, quiet_libraries
from obert_modifiers.tasks.run.plan import Notes, read_inputs, train_config
from obert_modifiers.tasks.task import Inputs, Task
from obert_modifiers.training import evaluate

logger = logging.getLogger(__name__)

_DATA = {"dataset_name", "task_name", "train_file", "validation_file", "test_file"}


@dataclass(frozen=True)
class Request:
    """What is to be evaluated."""

    model: Path  # a run's folder or an exported file
    task: str | None = None  # a task's name; None for that of the run
    engine: str | None = None  # what computes it; None for the format's own
    # The folder of configuration and tokenizer, where the model has none.
    run: Path | None = None
    # Flags of the task's data, as for ``obert train``. Where they name no data, they
    # are added to those of the run's own command.
    words: Sequence[str] = ()


def evaluate_file(request: Request) -> dict[str, Any]:
    """Evaluate a model as it is on disk, on its task's validation data."""
    artefact = find_artefact(request.model)
    engine = _engine_of(request, artefact)
    home = _home(request, artefact)
    name = _task_of(request, home)
    task: Task = load(name)
    arguments = _arguments(request, home, task)
    state = PartialState(cpu=arguments.train.use_cpu or artefact.is_graph)
    notes = Notes()
    with quiet_libraries(), _loaded(artefact, engine, task) as model:
        inputs = _read(request, task, arguments, notes)
        _check_classes(inputs, request.model)
        if artefact.is_graph and inputs.labels is not None:
            _check_logits(model, inputs.pretrained.config.num_labels, request.model)
        data = task.prepare(inputs).data
        config = replace(train_config(arguments, state), mixed_precision="no")
        started = time.monotonic()
        figures = evaluate(model, data, config)
    return {
        "model": str(request.model),
        "run": str(home),
        "format": artefact.kind,
        "engine": engine,
        "task": name,
        "headline": list(data.headline),
        **figures,
        "data": inputs.data.description,
        "seconds": time.monotonic() - started,
        "bytes": plain_bytes(artefact.files),
        "sha256": _digest(artefact.files),
        "notes": notes.texts,
        "versions": record.versions(),
        "machine": record.machine(),
    }


def _engine_of(request: Request, artefact: Artefact) -> str:
    """Name the engine: the one that was asked for, or the first that reads it."""
    possible = readers(artefact.kind if artefact.is_graph else RUN)
    engine, fix = request.engine or possible[0], "leave it out for the format's own"
    check_known("--engine", engine, ENGINES, fix)
    if engine not in possible:
        raise ValueError(
            f"--engine={engine} does not read {artefact.kind}; expected "
            f"{' or '.join(possible)}; {fix}"
        )
    return engine


def _home(request: Request, artefact: Artefact) -> Path:
    """Find the folder with the model's configuration and tokenizer."""
    # `obert export` writes into a folder of the run's.
    places = [artefact.folder, artefact.folder.resolve().parent]
    if request.run is not None:
        places = [Path(request.run)]
    for home in places:
        if (home / "config.json").is_file():
            return home
    raise FileNotFoundError(
        f"model={request.model} has no config.json in "
        f"{' or '.join(map(str, places))}; expected the model's configuration and "
        "tokenizer there; give the run's folder with --run"
    )


def _task_of(request: Request, home: Path) -> str:
    """Name the task: the one that was asked for, or the one of the model's head."""
    name = request.task
    if name is not None:
        check_known("--task", name, TASKS, "leave it out for the run's own")
    config = json.loads((home / "config.json").read_text(encoding="utf-8"))
    heads = config.get("architectures") or []
    fitting = [n for n in TASKS if any(h.endswith(load(n).head) for h in heads)]
    if name is None and not fitting:
        raise ValueError(
            f"{home / 'config.json'} names {', '.join(heads) or 'no architecture'}, "
            "which is no task's; expected a model with a head; give --task, or train "
            "the model on a task first"
        )
    if name is not None and fitting and name not in fitting:
        raise ValueError(
            f"--task={name} is not that of model={request.model}, a {heads[0]}; "
            f"expected {fitting[0]}; leave --task out"
        )
    return name or fitting[0]


def _arguments(request: Request, home: Path, task: Task) -> Arguments:
    """Read the data's flags: those that were given, or else those of the run."""
    words = list(request.words)
    recorded = [] if names_data(words) else recorded_words(home, task.name)
    if recorded:
        words = [*recorded, *words]  # of a flag that is there twice the last counts
        logger.info("data as in the run's own command, %s", home / TRAIN_RECORD)
    found = parse(words, f"obert evaluate {task.name}", task.flags)
    found.data.check()
    model = replace(found.model, model_name_or_path=str(home), distill_teacher=None)
    off = dict.fromkeys(("do_train", "do_predict", "fp16", "bf16"), False)
    return replace(found, model=model, train=replace(found.train, do_eval=True, **off))


def names_data(words: Sequence[str]) -> bool:
    """Tell whether flags say which data is meant, or only how much of it."""
    named = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words}
    return bool(named & _DATA)


def recorded_words(home: Path, task: str) -> list[str]:
    """Find the flags that a run was started with."""
    path = home / TRAIN_RECORD
    if not path.is_file():
        return []
    words = json.loads(path.read_text(encoding="utf-8")).get("command") or []
    return words[3:] if words[:3] == ["obert", "train", task] else []


def _read(request: Request, task: Task, arguments: Arguments, notes: Notes) -> Inputs:
    try:
        return read_inputs(task, arguments, notes)
    except (ValueError, FileNotFoundError) as error:
        if request.words:
            raise
        raise ValueError(
            f"{error}; the data's flags were those of the run's own command, or none; "
            f"give them as for `obert train {task.name}`"
        ) from error


def _check_classes(inputs: Inputs, model: Path) -> None:
    labels, config = inputs.labels, inputs.pretrained.config
    if labels is None:
        return
    fix = "evaluate it on the data set that it was trained on"
    if labels.num_labels != config.num_labels:
        raise ValueError(
            f"model={model} tells {config.num_labels} classes apart and "
            f"{inputs.data.description} has {labels.num_labels}; expected as many; "
            f"{fix}"
        )
    multi = getattr(config, "problem_type", None) == MULTI_LABEL
    if labels.multi != multi:
        ways = ("one class", "any number of classes")
        raise ValueError(
            f"model={model} gives each sample {ways[multi]} and "
            f"{inputs.data.description} has {ways[labels.multi]} in {labels.column}; "
            f"expected the same; {fix}"
        )


def _check_logits(graph: nn.Module, classes: int, path: Path) -> None:
    some = torch.ones(1, 2, dtype=torch.int64)
    outputs = graph(input_ids=some, attention_mask=some)
    sizes = {name: one.shape[-1] for name, one in outputs.items()}
    if sizes.get("logits") != classes:
        said = ", ".join(f"{name} of {size}" for name, size in sizes.items())
        raise ValueError(
            f"model={path} gives {said}; expected logits of {classes} classes, as the "
            "run's configuration says; give the run that it was exported from"
        )


@contextmanager
def _loaded(artefact: Artefact, engine: str, task: Task) -> Iterator[nn.Module]:
    """Load a model, for a while, as a module that gives its outputs by name."""
    if artefact.is_graph:
        yield open_graph(artefact.files[0], engine)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = artefact.as_run(Path(folder) / "run")
        try:
            model = models.load_saved(source, task.model_class)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise ValueError(
                f"model={artefact.path} cannot be loaded ({reason(error)}); expected a "
                "whole folder as `obert train` writes it; copy or train it again"
            ) from error
        yield model


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
