"""Question answering: data sets as SQuAD has them, in its own files or as rows."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from obert_modifiers.tasks.data import sources
from obert_modifiers.tasks.data.columns import Batch, map_rows
from obert_modifiers.tasks.squad.windows import WindowShape, cut_windows, label_windows

# A folder's files belong to splits by how their names begin, as in SQuAD's own.
_STARTS = {"train": "train", "dev": "validation", "valid": "validation", "test": "test"}
_PLACES = ("question", "starts", "ends", "null")


def read(flags: Any, cache_dir: str | None) -> tuple[dict[str, Dataset], str]:
    """Find the splits of a data set: SQuAD's own files, or rows with its columns."""
    splits: dict[str, Dataset] = {}
    names: dict[str, str] = {}
    if flags.dataset_name is not None:
        for path in sorted(Path(flags.dataset_name).glob("*.json")):
            split = next((_STARTS[s] for s in _STARTS if path.name.startswith(s)), None)
            if split and (rows := read_document("file", path)) is not None:
                if split in splits:
                    raise ValueError(
                        f"--dataset_name={flags.dataset_name} has {names[split]} and "
                        f"{path.name} for its {split} split; expected one file; give "
                        f"it with --{split}_file"
                    )
                splits[split], names[split] = rows, path.name
    if splits:
        return splits, flags.dataset_name
    return sources.read(flags, cache_dir, read_document)


def read_document(flag: str, path: Path) -> Dataset | None:
    """Read a file that holds one JSON object with a list ``data``; None for others.

    In it are SQuAD's paragraphs with their questions, or rows. Gives a row for each
    question.
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
        return Dataset.from_list(list(_rows(document["data"])))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{flag}={path} is not as SQuAD's: {type(error).__name__} {error}; "
            "expected paragraphs with context and qas; check the file"
        ) from error


def _rows(entries: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        row = "paragraphs" not in entry
        for paragraph in [entry] if row else entry["paragraphs"]:
            for asked in [entry] if row else paragraph["qas"]:
                context = paragraph["context"]
                answers = answers_of(asked.get("answers"))
                yield {
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
    if isinstance(value, Mapping):
        return list(zip(value["answer_start"], value["text"], strict=True))
    return [(one["answer_start"], one["text"]) for one in value or []]


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
    """Turn questions into windows, of which `with_null` ones may have no answer.

    Gives what the model reads, where `labelled` with the positions of the first answer,
    and beside it ``question``, the row's number, ``starts``, ``ends`` and ``null``.
    """

    def encode(batch: Batch, numbers: list[int]) -> Batch:
        windows = cut_windows(tokenizer, batch["question"], batch["context"], shape)
        if labelled:
            triples = zip(numbers, batch["context"], batch["answers"], strict=True)
            answers = [_first_answer(*one, with_null) for one in triples]
            labels = label_windows(windows, answers)
            windows["start_positions"] = [first for first, _ in labels]
            windows["end_positions"] = [last for _, last in labels]
        windows["question"] = [numbers[question] for question in windows["question"]]
        return windows

    kept = ["question", "context", *(["answers"] if labelled else [])]
    how = (kept, workers, "cutting contexts")
    windows = map_rows(rows, encode, *how, with_indices=True)
    places = [name for name in windows.column_names if name in _PLACES]
    return windows.remove_columns(places), windows.select_columns(places)


def _first_answer(
    row: int, context: str, value: Any, with_null: bool
) -> tuple[int, str] | None:
    """Take the first answer of a question, and check that it is where it says."""
    answers = answers_of(value)
    if not answers and not with_null:
        raise ValueError(
            f"the question in row {row} has no answer; expected one in each; "
            "add --version_2_with_negative, or drop it"
        )
    if not answers:
        return None
    start, text = answers[0]
    if context[start : start + len(text)] != text:
        raise ValueError(
            f"answer={text!r} of row {row} is not at answer_start={start} of its "
            "context; expected the same characters there; mend the row"
        )
    return start, text
