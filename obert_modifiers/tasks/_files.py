"""Where the rows of a data set are: a folder, files, the hub, or the package."""

import csv
import difflib
import glob
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.data_files import get_data_patterns
from datasets.exceptions import DatasetsError

from obert_modifiers import embedded
from obert_modifiers.tasks._arguments import DataSetArguments
from obert_modifiers.tasks._tables import SUFFIXES, TableError, read_table

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
# What the papers report of a task that is not accuracy alone.
GLUE_FIGURES = {
    "cola": ("matthews_correlation",),
    "mnli": ("accuracy", "accuracy_mm"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
}
_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
_PARTS = ("validation", "test")
MISMATCHED = "validation_mismatched"  # MNLI's second validation set
_LOCAL_WAY = "give the files with --train_file and --validation_file, or a folder"


def read(
    args: DataSetArguments, cache_dir: str | None
) -> tuple[dict[str, Dataset], str]:
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
    task = getattr(args, "task_name", None)
    if task is not None:
        return _read_glue(task.lower(), cache_dir)
    if args.dataset_name is not None:
        found = _read_named(args.dataset_name, args.dataset_config_name, cache_dir)
        return _matched(found), args.dataset_name
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
            f"{', '.join(GLUE_COLUMNS)}; {nearest(task, GLUE_COLUMNS)}"
        )
    return _matched(_read_named("glue", task, cache_dir)), f"GLUE {task}"


def glue_task(args: DataSetArguments) -> str | None:
    """Tell which GLUE task the flags name.

    Args:
        args: The flags: the task, or a folder or configuration that has its name,
            as it is or before an underscore (``qqp_subset``).

    Returns:
        The task in small letters, or None.
    """
    folder = Path(args.dataset_name).name if args.dataset_name is not None else None
    for name in (getattr(args, "task_name", None), args.dataset_config_name, folder):
        task = (name or "").lower().split("_")[0]
        if task in GLUE_COLUMNS:
            return task
    return None


def _matched(found: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Take MNLI's matched sets for validation and test, beside the mismatched ones.

    Args:
        found: The splits of any data set.

    Returns:
        The splits by the usual names.
    """
    return {split.removesuffix("_matched"): rows for split, rows in found.items()}


def _files_by_split(folder: Path) -> dict[str, list[str]] | None:
    """Find files that the datasets library would not: MNLI's, and beside brackets.

    Args:
        folder: Any folder. The library throws MNLI's files together, and takes
            brackets in a folder's name for a pattern.

    Returns:
        The files of each split, or None where the library finds the splits itself.
    """
    base = folder.resolve().as_posix()
    escaped = glob.escape(base)
    splits = [f"{part}_{kind}matched" for part in _PARTS for kind in ("", "mis")]
    if any(folder.glob(f"{splits[0]}*")):
        names = (f"{name}[-.]*" for name in ("train", *splits))
        found = {name[:-5]: [name] for name in names if any(folder.glob(name))}
    elif escaped != base:
        try:
            found = get_data_patterns(escaped)
        except FileNotFoundError:  # of which the library tells
            return None
    else:
        return None
    return {
        str(split): [f"{escaped}/{pattern}" for pattern in patterns]
        for split, patterns in found.items()
    }


def _read_named(
    name: str, config: str | None, cache_dir: str | None
) -> Mapping[str, Dataset]:
    """Read a data set from a folder or from the hub.

    Args:
        name: The folder or hub id.
        config: Its configuration, where it has several.
        cache_dir: Where the datasets library keeps what it has read.

    Returns:
        Its splits.

    Raises:
        TableError: If the rows of a table cannot be told apart.
        ValueError: If there is no such folder and the hub does not give it either.
    """
    local = Path(name).exists()
    if not local:
        logger.info("asking the hub for the data set %s", name)
    files = _files_by_split(Path(name)) if local else None
    try:
        return _load(name, config, cache_dir, files)
    except TableError:
        raise
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


def _load(
    name: str, config: str | None, cache_dir: str | None, files: Any
) -> Mapping[str, Dataset]:
    """Let the datasets library find a data set's files, and read tables here.

    Args:
        name: The folder or hub id.
        config: Its configuration, where it has several.
        cache_dir: Where the datasets library keeps what it has read.
        files: The files of each split, or None.

    Returns:
        Its splits.
    """
    more: dict[str, Any] = {"cache_dir": cache_dir, "data_files": files}
    builder = datasets.load_dataset_builder(name, config, **more)
    found = builder.config
    if hasattr(found, "keep_default_na"):  # the library's reader of tables
        paths = {
            str(split): [Path(path) for path in named]
            for split, named in found.data_files.items()
        }
        every = [path for named in paths.values() for path in named]
        # What a data set says of itself, such as types, is the library's to read.
        if (
            builder.info.features is None
            and found.sep in (",", "\t")
            and all(path.suffix in SUFFIXES and path.is_file() for path in every)
        ):
            return {split: read_table(named) for split, named in paths.items()}
        more |= {"keep_default_na": False, "na_values": [""]}
        if found.sep == "\t":
            more["quoting"] = csv.QUOTE_NONE
    return datasets.load_dataset(name, config, **more)


def _read_file(flag: str, path: Path, cache_dir: str | None) -> Dataset:
    """Read one file.

    Args:
        flag: The flag that named it, for errors.
        path: The file.
        cache_dir: Where the datasets library keeps what it has read.

    Returns:
        Its rows.

    Raises:
        TableError: If the rows of a table cannot be told apart.
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
            f"{nearest(path.name, siblings) if siblings else 'check the path'}"
        )
    try:
        if kind == "csv":
            return read_table([path])
        return datasets.load_dataset(
            kind,
            data_files=[glob.escape(str(path))],
            split="train",
            cache_dir=cache_dir,
        )
    except TableError as error:
        raise TableError(f"{flag}={path}: {error}") from error
    except Exception as error:  # datasets wraps the readers' errors in its own
        cause = error.__cause__ or error
        raise ValueError(
            f"{flag}={path} cannot be read as {kind} ({_first_line(cause)}); expected "
            "rows with named columns; check the file"
        ) from error


def nearest(name: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    """Suggest the name that was meant.

    Args:
        name: The name as it was written.
        names: Those that exist.

    Returns:
        The way out, for an error.
    """
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f"did you mean {found[0]}?" if found else "check the name"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
