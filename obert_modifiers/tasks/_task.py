"""What a task adds to the run that all tasks share."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from obert_modifiers.tasks._arguments import DataSetArguments, resuming
from obert_modifiers.tasks._data import ColumnRule, Labels, Reader, TextData
from obert_modifiers.tasks._files import read
from obert_modifiers.tasks._models import Pretrained
from obert_modifiers.training.batches import TaskData


@dataclass(frozen=True)
class Inputs:
    """What a task makes its samples from.

    Attributes:
        data: The data set, with the splits that are needed.
        labels: The classes, or None where the task has none.
        found: The model that will be loaded, and its tokenizer.
        flags: The task's flags.
        seed: The run's seed, for what is drawn at random.
        pad_multiple: Batches are padded to a multiple of this, or None.
    """

    data: TextData
    labels: Labels | None
    found: Pretrained
    flags: Any
    seed: int
    pad_multiple: int | None = None

    @property
    def max_length(self) -> int:
        """The most tokens of a sample: what is asked for, as far as the model goes."""
        found = self.found.max_length(self.flags.max_seq_length)
        multiple = self.pad_multiple or 1
        padded = -(-found // multiple) * multiple
        # Padding takes positions as well.
        fits = self.found.max_length(padded) == padded
        return found if fits else max(found // multiple * multiple, 1)


@dataclass(frozen=True)
class Prepared:
    """A data set as samples.

    Attributes:
        data: Training and validation samples with losses and metrics.
        test: Samples to be predicted, or None.
    """

    data: TaskData
    test: Sequence[dict[str, Any]] | None = None


def no_labels(
    data: TextData, flags: DataSetArguments, known: Mapping[str, int]
) -> Labels | None:
    """Say that a task has no classes.

    Args:
        data: The data set.
        flags: The task's flags.
        known: The classes that the model was trained with.

    Returns:
        None.
    """


@dataclass(frozen=True)
class Task:
    """A task: its flags, its model, its samples and its predictions.

    Attributes:
        name: The last word of its command, `obert train NAME`.
        flags: The flags of its data; `check` of it checks their values.
        model_class: ``AutoModelFor...`` of transformers.
        columns: Called with rows, flags and the data's description; tells the columns
            of text and that of labels (or None), or raises.
        prepare: Makes the samples.
        write_predictions: Called with what `TaskData.keep` kept of the test samples,
            what they were made from, and the folder that they are written into. None
            for a task that predicts nothing.
        labels: Called with data, flags and the classes that the model was trained with;
            tells the classes, which become the model's, or None.
        prediction_files: Names of the files that `write_predictions` writes.
        reader: Called with flags and the cache's folder; finds the splits.
        words: Texts are lists of words, and the tokenizer must know where each starts.
    """

    name: str
    flags: type[DataSetArguments]
    model_class: Any
    columns: ColumnRule
    prepare: Callable[[Inputs], Prepared]
    write_predictions: Callable[[dict[str, np.ndarray], Inputs, Path], None] | None
    labels: Callable[[TextData, Any, Mapping[str, int]], Labels | None] = no_labels
    prediction_files: tuple[str, ...] = ("predictions.csv",)
    reader: Reader = read
    words: bool = False

    @property
    def program(self) -> str:
        """The command."""
        return f"obert train {self.name}"

    def resume_command(self, argv: Sequence[str]) -> str:
        """Write the command that goes on where a run was stopped.

        Args:
            argv: The run's flags, without a program name.

        Returns:
            A line for the shell.
        """
        return shlex.join([*self.program.split(), *resuming(argv)])
