"""Where the rows of a data set are: a folder, files, the hub, or the package."""

import csv
import glob
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.data_files import get_data_patterns
from datasets.exceptions import DatasetsError

from obert_modifiers import embedded
from obert_modifiers.tasks.data.columns import GLUE_COLUMNS, nearest
from obert_modifiers.tasks.data.tables import SUFFIXES, TableError, read_table
from obert_modifiers.tasks.flags import DataSetArguments

logger = logging.getLogger(__name__)

_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
_PARTS = ("validation", "test")
_LOCAL_WAY = "give the files with --train_file and --validation_file, or a folder"


def read(
    args: DataSetArguments, cache_dir: str | None
) -> tuple[dict[str, Dataset], str]:
    """Find the splits of a data set by name, in files, or the embedded one."""
    task = getattr(args, "task_name", None)
    if task is not None:
        return _read_glue(task.lower(), cache_dir)
    if args.dataset_name is not None:
        found = _read_named(args.dataset_name, args.dataset_config_name, cache_dir)
        return found, args.dataset_name
    if args.files:
        splits = {
            split: _read_file(f"--{split}_file", Path(path), cache_dir)
            for split, path in args.files.items()
        }
        return splits, ", ".join(args.files.values())
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
    return _read_named("glue", task, cache_dir), f"GLUE {task}"


def _files_by_split(folder: Path) -> dict[str, list[str]] | None:
    """Find files that the datasets library would not; None where it would.

    It throws MNLI's files together, and takes brackets in a folder's name for patterns.
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
) -> dict[str, Dataset]:
    """Read a data set from a folder or from the hub.

    MNLI's matched sets are its validation and test, beside the mismatched ones.
    """
    local = Path(name).exists()
    if not local:
        logger.info("asking the hub for the data set %s", name)
    files = _files_by_split(Path(name)) if local else None
    try:
        splits = _load(name, config, cache_dir, files)
        return {split.removesuffix("_matched"): rows for split, rows in splits.items()}
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
    """Let the datasets library find a data set's files, and read tables here."""
    more: dict[str, Any] = {"cache_dir": cache_dir, "data_files": files}
    builder = datasets.load_dataset_builder(name, config, **more)
    form = builder.config
    if hasattr(form, "keep_default_na"):  # the library's reader of tables
        paths = {
            str(split): [Path(path) for path in named]
            for split, named in form.data_files.items()
        }
        every = [path for named in paths.values() for path in named]
        # What a data set says of itself, such as types, is the library's to read.
        if (
            builder.info.features is None
            and form.sep in (",", "\t")
            and all(path.suffix in SUFFIXES and path.is_file() for path in every)
        ):
            return {split: read_table(named) for split, named in paths.items()}
        more |= {"keep_default_na": False, "na_values": [""]}
        if form.sep == "\t":
            more["quoting"] = csv.QUOTE_NONE
    return datasets.load_dataset(name, config, **more)


def _read_file(flag: str, path: Path, cache_dir: str | None) -> Dataset:
    """Read one file."""
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
