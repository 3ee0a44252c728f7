"""What a task adds to the run that all tasks share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obert_modifiers.tasks.command_line import parse, resuming
from obert_modifiers.tasks.flags import Arguments, DataSetArguments

IGNORED = -100  # core.distillation.IGNORED_LABEL, which comes with torch

if TYPE_CHECKING:  # they come with torch and datasets
    import numpy as np
    from datasets import Dataset

    from obert_modifiers.tasks.data.columns import Columns
    from obert_modifiers.tasks.data.dataset import TextData
    from obert_modifiers.tasks.data.labels import Labels
    from obert_modifiers.tasks.run.models import Pretrained
    from obert_modifiers.training.batches import TaskData


@dataclass(frozen=True)
class Inputs:
    """What a task makes its samples from."""

    data: TextData  # with the splits that are needed
    labels: Labels | None  # None where the task has no classes
    pretrained: Pretrained
    flags: Any
    seed: int
    pad_multiple: int | None = None  # batches are padded to a multiple of this

    @property
    def max_length(self) -> int:
        """The most tokens of a sample: what is asked for, as far as the model goes."""
        longest = self.pretrained.max_length(self.flags.max_seq_length)
        multiple = self.pad_multiple or 1
        padded = -(-longest // multiple) * multiple
        # Padding takes positions as well.
        fits = self.pretrained.max_length(padded) == padded
        return longest if fits else max(longest // multiple * multiple, 1)

    def token_collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Return what pads samples whose labels are those of tokens, with -100."""
        from transformers import DataCollatorForTokenClassification

        fixed = self.flags.pad_to_max_length
        return DataCollatorForTokenClassification(
            self.pretrained.tokenizer,
            padding="max_length" if fixed else True,
            max_length=self.max_length if fixed else None,
            pad_to_multiple_of=self.pad_multiple,
        )


@dataclass(frozen=True)
class Prepared:
    """A data set as samples."""

    data: TaskData
    test: Sequence[dict[str, Any]] | None = None
    # Called with what `data.keep` kept of the test samples, arrays by name, and the
    # folder that the predictions are written into.
    write: Callable[[dict[str, np.ndarray], Path], None] | None = None

    @classmethod
    def of(
        cls, samples: Mapping[str, Sequence[Any]], write: Any = None, **other: Any
    ) -> Prepared:
        """Make it from samples by split, and the other fields of `TaskData`."""
        from obert_modifiers.training.batches import TaskData

        train, validation = (samples.get(name, []) for name in ("train", "validation"))
        data = TaskData(train=train, validation=validation, **other)
        return cls(data, samples.get("test"), write)


@dataclass(frozen=True)
class Task:
    """A task: its flags, its model, its samples and its predictions."""

    name: str  # the last word of its command, `obert train NAME`
    flags: type[DataSetArguments]  # of its data; their `check` checks the values
    head: str  # what transformers calls the model, such as ForTokenClassification
    # From rows, flags and the data's description: the columns of text, and that of
    # labels or None; raises where they are not there.
    columns: Callable[[Dataset, Any, str], Columns]
    prepare: Callable[[Inputs], Prepared]
    # The files that `Prepared.write` writes; a task without any predicts nothing.
    prediction_files: tuple[str, ...] = ()
    # From data, flags and the classes that the model was trained with: the classes,
    # which become the model's.
    labels: Callable[[TextData, Any, Mapping[str, int]], Labels] | None = None
    # From flags and the cache's folder: the splits and the data's description; None
    # for `obert_modifiers.tasks.data.sources.read`.
    reader: Callable[[Any, str | None], tuple[dict[str, Dataset], str]] | None = None
    words: bool = False  # texts are lists of words, whose starts the tokenizer must see
    output: str = "logits"  # what a recipe can distil
    # From the flags, which loads the model; None for transformers' class of `head`.
    loader: Callable[[], Any] | None = None
    # From the inputs and the modifiers that distil: raises where nothing is learnt.
    check: Callable[[Inputs, Sequence[Any]], None] | None = None

    def parse(self, argv: Sequence[str]) -> Arguments:
        """Read the flags of its command."""
        return parse(argv, f"obert train {self.name}", self.flags)

    @property
    def model_class(self) -> Any:
        """What loads the model, mostly a class of transformers."""
        if self.loader is not None:
            return self.loader()
        import transformers

        return getattr(transformers, f"AutoModel{self.head}")

    def resume_command(self, argv: Sequence[str]) -> str:
        """Write the line for the shell that continues a run with these flags."""
        return shlex.join(["obert", "train", self.name, *resuming(argv)])
