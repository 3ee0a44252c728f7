"""Question answering: data sets as SQuAD has them, in its own files or as rows."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from obert_modifiers.tasks.data import sources
from obert_modifiers.tasks.data.texts import map_rows
from obert_modifiers.tasks.squad.windows import (
    WindowShape,
    cut_windows,
    label_windows,
)

# A folder's files belong to splits by how their names begin, as in SQuAD's own.
_PREFIXES = {"train": "train", "dev": "validation", "valid": "validation"}
_PREFIXES |= {"test": "test"}
_PLACES = ("question", "starts", "ends", "null")


def read(flags: Any, cache_dir: str | None) -> tuple[dict[str, Dataset], str]:
    """Find the splits of a data set: SQuAD's own files, or rows with its columns."""
    if flags.dataset_name is not None:
        splits = _documents_in(Path(flags.dataset_name))
        return (
            (splits, flags.dataset_name) if splits else sources.read(flags, cache_dir)
        )
    given = flags.files
    splits = {split: read_document(Path(path)) for split, path in given.items()}
    documents = [split for split, rows in splits.items() if rows is not None]
    if len(documents) < len(given):
        others = replace(flags, **{f"{split}_file": None for split in documents})
        splits |= sources.read(others, cache_dir)[0]
    return splits, ", ".join(given.values())


def _documents_in(folder: Path) -> dict[str, Dataset]:
    splits: dict[str, Dataset] = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        for prefix, split in _PREFIXES.items():
            if (
                path.name.startswith(prefix)
                and (rows := read_document(path)) is not None
            ):
                splits[split] = rows
    return splits


def read_document(path: Path) -> Dataset | None:
    """Read a file that holds one JSON object with the key ``data``.

    That is SQuAD's own form, paragraphs with their questions, or a list of rows. Gives
    a row for each question, or None where the file is of another form.
    """
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # rows, one in a line; what else it is, their reader says
        return None
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        return None
    try:
        rows = [row for entry in document["data"] for row in _rows(entry)]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"file={path} is not as SQuAD's: {type(error).__name__} {error}; expected "
            "data, in it paragraphs with context and qas, in these id, question and "
            "answers; check the file"
        ) from error
    return Dataset.from_list(rows)


def _rows(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "paragraphs" not in entry:
        return [_row(entry, entry["context"])]
    return [
        _row(asked, paragraph["context"])
        for paragraph in entry["paragraphs"]
        for asked in paragraph["qas"]
    ]


def _row(asked: Mapping[str, Any], context: str) -> dict[str, Any]:
    answers = answers_of(asked.get("answers"))
    return {
        "id": str(asked["id"]),
        "context": context,
        "question": asked["question"],
        "answers": {
            "text": [text for _, text in answers],
            "answer_start": [start for start, _ in answers],
        },
    }


def answers_of(value: Any) -> list[tuple[int, str]]:
    """Return where each answer of a question starts, and its text."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(zip(value["answer_start"], value["text"], strict=True))
    return [(one["answer_start"], one["text"]) for one in value]


def ids_of(rows: Dataset) -> list[str]:
    """Return the ids of questions, or their numbers where there are none."""
    if "id" not in rows.column_names:
        return [str(number) for number in range(len(rows))]
    ids = [str(name) for name in rows["id"]]
    twice = next((name for name, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise ValueError(
            f"id={twice} is that of two questions; expected one of its own for each; "
            "rename it, or leave the column id out"
        )
    return ids


def windows_of(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    shape: WindowShape,
    *,
    labelled: bool,
    with_null: bool,
    workers: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Turn questions into windows.

    Gives what the model reads, where `labelled` with ``start_positions`` and
    ``end_positions`` of the first answer, and of each window what `cut_windows` tells
    beside it; ``question`` is the number of the row. `with_null`: a question may have
    no answer.
    """

    def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        windows = cut_windows(tokenizer, batch["question"], batch["context"], shape)
        if labelled:
            answers = _first_answers(batch, numbers, with_null)
            labels = label_windows(windows, answers)
            windows["start_positions"] = [first for first, _ in labels]
            windows["end_positions"] = [last for _, last in labels]
        windows["question"] = [numbers[question] for question in windows["question"]]
        return windows

    kept = ["question", "context"] + (["answers"] if labelled else [])
    windows = map_rows(
        rows, encode, kept, workers, "cutting contexts", with_indices=True
    )
    places = [name for name in windows.column_names if name in _PLACES]
    return windows.remove_columns(places), windows.select_columns(places)


def _first_answers(
    batch: Mapping[str, Sequence[Any]], numbers: Sequence[int], with_null: bool
) -> list[tuple[int, str] | None]:
    """Take the first answer of each question, and check that it is where it says."""
    first: list[tuple[int, str] | None] = []
    for number, context, value in zip(
        numbers, batch["context"], batch["answers"], strict=True
    ):
        answers = answers_of(value)
        if not answers and not with_null:
            raise ValueError(
                f"the question in row {number} has no answer; expected one in each; "
                "add --version_2_with_negative, or drop it"
            )
        if answers:
            start, text = answers[0]
            if context[start : start + len(text)] != text:
                raise ValueError(
                    f"answer={text!r} of row {number} is not at answer_start={start} of"
                    " its context; expected the same characters there; mend the row"
                )
        first.append(answers[0] if answers else None)
    return first
