"""Where the rows of a data set are: a folder, files, the hub, or the package."""

import csv
import glob
import logging
from collections.abc import Callable, Mapping
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

_FORMATS = dict.fromkeys(SUFFIXES, "csv")
_FORMATS |= {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
_MNLI = ("validation_matched", "validation_mismatched")
_MNLI += ("test_matched", "test_mismatched")


def read(
    args: DataSetArguments,
    cache_dir: str | None,
    own: Callable[[str, Path], Dataset | None] = lambda flag, path: None,
) -> tuple[dict[str, Dataset], str]:
    """Find the splits of a data set by name, in files, or the embedded one.

    A task reads files of its own form with `own`, which gives None for others.
    """
    task = getattr(args, "task_name", None)
    if task is not None:
        task = task.lower()
        if task not in GLUE_COLUMNS:
            raise ValueError(
                f"--task_name={task} is no GLUE task; expected one of "
                f"{', '.join(GLUE_COLUMNS)}; {nearest(task, GLUE_COLUMNS)}"
            )
        return _read_named("glue", task, cache_dir), f"GLUE {task}"
    if args.dataset_name is not None:
        named, config = args.dataset_name, args.dataset_config_name
        return _read_named(named, config, cache_dir), named
    files = args.files
    description = ", ".join(files.values()) or f"the embedded {embedded.DATA_NAME}"
    splits = {}
    for split, path in (files or embedded.movie_snippets()).items():
        given = f"--{split}_file", Path(path)
        rows = own(*given)
        splits[split] = _read_file(*given, cache_dir) if rows is None else rows
    return splits, description


def _files_by_split(folder: Path) -> dict[str, list[str]] | None:
    """Find files that the datasets library would not; None where it would.

    It throws MNLI's files together, and takes brackets in a folder's name for patterns.
    """
    base = folder.resolve().as_posix()
    escaped = glob.escape(base)
    if any(folder.glob(f"{_MNLI[0]}*")):
        patterns = {name: [f"{name}[-.]*"] for name in ("train", *_MNLI)}
        files = {name: one for name, one in patterns.items() if any(folder.glob(*one))}
    elif escaped == base:
        return None
    else:
        try:
            files = get_data_patterns(escaped)
        except FileNotFoundError:  # of which the library tells
            return None
    return {
        str(split): [f"{escaped}/{pattern}" for pattern in patterns]
        for split, patterns in files.items()
    }


def _read_named(
    name: str, config: str | None, cache_dir: str | None
) -> dict[str, Dataset]:
    """Read a data set from a folder or the hub; MNLI's matched sets lose that word."""
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
        why = "is no folder here, and the hub did not give it"
        rule = "a folder, or a hub id and a network"
        if local:
            why, rule = "has no data that can be read", "csv, json or parquet files"
        raise ValueError(
            f"data set={name} {why} ({_first_line(error)}); expected {rule}; give the "
            "files with --train_file and --validation_file"
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
        readable = all(path.suffix in SUFFIXES and path.is_file() for path in every)
        # What a data set says of itself, such as types, is the library's to read.
        if builder.info.features is None and form.sep in (",", "\t") and readable:
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
            f"{nearest(path.name, siblings)}"
        )
    try:
        if kind == "csv":
            return read_table([path])
        files = [glob.escape(str(path))]
        return datasets.load_dataset(
            kind, data_files=files, split="train", cache_dir=cache_dir
        )
    except TableError as error:
        raise TableError(f"{flag}={path}: {error}") from error
    except Exception as error:  # datasets wraps the readers' errors in its own
        why = _first_line(error.__cause__ or error)
        raise ValueError(
            f"{flag}={path} cannot be read as {kind} ({why}); expected rows with named "
            "columns; check the file"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
