"""The documented interfaces of Composer and llm-compressor, as far as they are used.

In their place where they are not installed. Each has the methods that the library's
documentation names, called in the order that it gives.
"""

import enum
import importlib.util
import sys
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


def installed(name: str) -> bool:
    """Whether a library can be imported."""
    return importlib.util.find_spec(name) is not None


def _module(name: str, **contents: Any) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)


class Event(enum.Enum):
    """Composer's events of a batch, in their order."""

    BATCH_START = "batch_start"
    BEFORE_FORWARD = "before_forward"
    AFTER_BACKWARD = "after_backward"
    BATCH_END = "batch_end"


class Algorithm:
    """Composer's base class: ``match`` says when ``apply`` is called."""


class ComposerState(types.SimpleNamespace):
    """Composer's: what an algorithm sees of the training."""


class Logger:
    """Composer's: takes figures by name."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.logged.append(metrics)


def fit(model: nn.Module, loader: Any, optimizer: Any, algorithm: Any, epochs: int):
    """Train as Composer's engine does, with one algorithm."""
    logger, batches = Logger(), types.SimpleNamespace(batch=0)
    state = ComposerState(model=model, dataloader=loader, timestamp=batches)
    state.dataloader_len = len(loader)

    def tell(event: Event) -> None:
        if algorithm.match(event, state):
            algorithm.apply(event, state, logger)

    for _ in range(epochs):
        for batch in loader:
            tell(Event.BATCH_START)
            tell(Event.BEFORE_FORWARD)
            model.loss(model(batch), batch).backward()
            tell(Event.AFTER_BACKWARD)
            optimizer.step()
            optimizer.zero_grad()
            batches.batch += 1
            tell(Event.BATCH_END)
    return logger.logged


@dataclass
class Data:
    """llm-compressor's: the data sets."""

    calib: Any = None


@dataclass
class State:
    """llm-compressor's: what a modifier sees."""

    model: nn.Module
    data: Data


class Modifier:
    """llm-compressor's base class: fields of the class are arguments."""

    def __init__(self, **values: Any) -> None:
        unknown = set(values) - set(type(self).__annotations__)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are not fields")
        vars(self).update(values)


def oneshot(model: nn.Module, recipe: Modifier, dataset: Any) -> None:
    """Call a modifier as llm-compressor's lifecycle does in one shot."""
    state = State(model, Data(dataset))
    assert recipe.on_initialize(state)
    recipe.on_calibration_start(state, None)
    with torch.no_grad():
        for batch in dataset:
            model(**batch)


def use_stand_ins() -> None:
    """Put them in the place of what is not installed."""
    if not installed("composer"):
        _module("composer")
        _module("composer.core", Algorithm=Algorithm, Event=Event, State=ComposerState)
        _module("composer.loggers", Logger=Logger)
    if not installed("llmcompressor"):
        _module("llmcompressor", oneshot=oneshot)
        _module("llmcompressor.core", Event=object, State=State)
        _module("llmcompressor.modifiers", Modifier=Modifier)
