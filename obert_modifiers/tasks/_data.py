"""Data sets of texts with a label: find them, understand them, make them tokens."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetsError

from obert_modifiers import embedded
from obert_modifiers.tasks._arguments import DataArguments

logger = logging.getLogger(__name__)

GLUE_COLUMNS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}
_LOCAL_WAY = "give the files with --train_file and --validation_file, or a folder"


@dataclass(frozen=True)
class Labels:
    """What the labels of a data set mean.

    Attributes:
        column: The column they are in.
        ids: The class number of each label as it stands in the data; empty for numbers
            to be predicted (regression).
        names: The name of each class, by number.
    """

    column: str
    ids: Mapping[Any, int]
    names: tuple[str, ...]

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be predicted."""
        return not self.ids

    @property
    def num_labels(self) -> int:
        """The width of the classification head."""
        return len(self.names) or 1


@dataclass(frozen=True)
class TextData:
    """A data set as it was read.

    Attributes:
        splits: ``train``, ``validation`` and ``test``, as far as there are any.
        text_columns: One column, or two for pairs.
        label_column: The column of the labels.
        description: Where the data came from, for the log.
    """

    splits: Mapping[str, Dataset]
    text_columns: tuple[str, ...]
    label_column: str
    description: str


def load(args: DataArguments, cache_dir: str | None, seed: int) -> TextData:
    """Read the data set that the flags name; without any, the embedded one.

    Args:
        args: The flags.
        cache_dir: Where the datasets library keeps what it has read.
        seed: Which part of the training data `validation_ratio` keeps.

    Returns:
        Its splits, cut to the asked numbers of samples, and its columns.

    Raises:
        ValueError: If a file, split or column is missing or a value is empty.
    """
    splits, description = _read(args, cache_dir)
    if args.validation_ratio is not None and "train" in splits:
        parts = splits["train"].train_test_split(args.validation_ratio, seed=seed)
        splits |= {"train": parts["train"], "validation": parts["test"]}
    for split, most in (
        ("train", args.max_train_samples),
        ("validation", args.max_eval_samples),
    ):
        if split in splits and most is not None:
            splits[split] = splits[split].select(range(min(most, len(splits[split]))))
    for split, rows in splits.items():
        if len(rows) == 0:
            raise ValueError(
                f"data={description} has no rows in its {split} split; expected at "
                "least one; check the file"
            )
    first = splits.get("train", next(iter(splits.values())))
    _need_column(first, args.label_column_name, "--label_column_name", description)
    columns = text_columns(first, args, description)
    return TextData(splits, columns, args.label_column_name, description)


def _read(args: DataArguments, cache_dir: str | None) -> tuple[dict[str, Dataset], str]:
    """Find the splits of a data set by name, in files, or the embedded one.

    Args:
        args: The flags.
        cache_dir: Where the datasets library keeps what it has read.

    Returns:
        The splits and where they came from.
    """
    files = {
        "train": args.train_file,
        "validation": args.validation_file,
        "test": args.test_file,
    }
    files = {split: path for split, path in files.items() if path is not None}
    if args.task_name is not None:
        return _read_glue(args.task_name.lower(), cache_dir)
    if args.dataset_name is not None:
        found = _read_named(args.dataset_name, args.dataset_config_name, cache_dir)
        return dict(found), args.dataset_name
    if files:
        splits = {
            split: _read_file(f"--{split}_file", Path(path), cache_dir)
            for split, path in files.items()
        }
        return splits, ", ".join(files.values())
    splits = {
        split: _read_file("embedded data", path, cache_dir)
        for split, path in embedded.movie_snippets().items()
    }
    return splits, f"the embedded {embedded.DATA_NAME}"


def _read_glue(task: str, cache_dir: str | None) -> tuple[dict[str, Dataset], str]:
    if task not in GLUE_COLUMNS:
        raise ValueError(
            f"--task_name={task} is no GLUE task; expected one of "
            f"{', '.join(GLUE_COLUMNS)}; {_nearest(task, GLUE_COLUMNS)}"
        )
    found = dict(_read_named("glue", task, cache_dir))
    if task == "mnli":
        found["validation"] = found["validation_matched"]
        found["test"] = found["test_matched"]
    splits = ("train", "validation", "test")
    return {split: found[split] for split in splits}, f"GLUE {task}"


def _read_named(
    name: str, config: str | None, cache_dir: str | None
) -> datasets.DatasetDict:
    """Read a data set from a folder or from the hub.

    Args:
        name: The folder or hub id.
        config: Its configuration, where it has several.
        cache_dir: Where the datasets library keeps what it has read.

    Returns:
        Its splits.

    Raises:
        ValueError: If there is no such folder and the hub does not give it either.
    """
    local = Path(name).exists()
    if not local:
        logger.info("asking the hub for the data set %s", name)
    try:
        return datasets.load_dataset(name, config, cache_dir=cache_dir)
    except (OSError, ValueError, DatasetsError) as error:
        if local:
            why, rule = "has no data that can be read", "csv, json or parquet files"
        else:
            why = "is no folder here, and the hub did not give it"
            rule = "a folder, or a hub id and a network"
        raise ValueError(
            f"data set={name} {why} ({_first_line(error)}); expected {rule}; "
            f"{_LOCAL_WAY} with --dataset_name"
        ) from error


def _read_file(flag: str, path: Path, cache_dir: str | None) -> Dataset:
    """Read one csv, tsv, json, jsonl or parquet file.

    Args:
        flag: The flag that named it, for errors.
        path: The file.
        cache_dir: Where the datasets library keeps what it has read.

    Returns:
        Its rows.

    Raises:
        ValueError: If the file is missing, of another kind or cannot be read.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"{flag}={path} is of an unknown kind; expected a name that ends in "
            f"{', '.join(_FORMATS)}; convert it or rename it"
        )
    if not path.is_file():
        siblings = [other.name for other in path.parent.glob(f"*{path.suffix}")]
        raise ValueError(
            f"{flag}={path} does not exist; expected a file; "
            f"{_nearest(path.name, siblings) if siblings else 'check the path'}"
        )
    options = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
    try:
        return datasets.load_dataset(
            kind,
            data_files=[str(path)],
            split="train",
            cache_dir=cache_dir,
            **options,
        )
    except Exception as error:  # datasets wraps the readers' errors in its own
        cause = error.__cause__ or error
        raise ValueError(
            f"{flag}={path} cannot be read as {kind} ({_first_line(cause)}); expected "
            "rows with named columns; check the file"
        ) from error


def text_columns(
    rows: Dataset, args: DataArguments, description: str
) -> tuple[str, ...]:
    """Decide which columns hold the text.

    Args:
        rows: A split.
        args: The flags; `input_column_names` and `task_name` decide where given.
        description: Where the data came from, for errors.

    Returns:
        One column, or two for pairs: those named, else the pair or single column of a
        GLUE task, else the one or two columns of text.

    Raises:
        ValueError: If a named column is missing or the choice is not clear.
    """
    if args.input_column_names is not None:
        names = tuple(name.strip() for name in args.input_column_names.split(","))
        for name in names:
            _need_column(rows, name, "--input_column_names", description)
        if len(names) > 2:
            raise ValueError(
                f"--input_column_names={args.input_column_names} names {len(names)} "
                "columns; expected one, or two for pairs; join the others beforehand"
            )
        return names
    if args.task_name is not None:
        return GLUE_COLUMNS[args.task_name.lower()]
    usual = sorted(set(GLUE_COLUMNS.values()), key=lambda pair: (-len(pair), pair))
    for columns in (*usual, ("text",)):
        if set(columns) <= set(rows.column_names):
            return columns
    texts = [
        name
        for name, feature in rows.features.items()
        if getattr(feature, "dtype", "") in ("string", "large_string")
        and name not in (args.label_column_name, "id", "idx")
    ]
    if not 1 <= len(texts) <= 2:
        raise ValueError(
            f"data={description} has the columns {', '.join(rows.column_names)}, of "
            f"which {len(texts)} could be the text; expected one, or two for pairs; "
            "name them with --input_column_names"
        )
    return tuple(texts)


def _need_column(rows: Dataset, name: str, flag: str, description: str) -> None:
    if name not in rows.column_names:
        raise ValueError(
            f"{flag}={name} is no column of {description}; expected one of "
            f"{', '.join(rows.column_names)}; {_nearest(name, rows.column_names)}"
        )


def _nearest(name: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f"did you mean {found[0]}?" if found else "check the name"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
