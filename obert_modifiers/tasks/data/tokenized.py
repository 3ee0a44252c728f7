"""Tokens on disk: made once, mapped into memory at each start.

A folder is complete or not there: it is written beside its place and renamed, so that a
run that is killed on the way leaves nothing that another one reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MANIFEST = "made_from.json"
SAMPLED = 64  # rows that are tokenized again to see whether they give the same tokens
WHOLE = 2**27  # bytes of text up to which every row is looked at

Encode = Callable[[dict[str, list[Any]]], dict[str, list[Any]]]


def made_from(
    rows: Dataset,
    column: str,
    tokenizer: PreTrainedTokenizerBase,
    encode: Encode,
    flags: Mapping[str, Any],
) -> dict[str, Any]:
    """Say what tokens are made from, by name: what differs first is to blame.

    Rows are known by their number and texts; of more than `WHOLE` bytes, by the bytes
    and some of the texts. The tokenizer is known by its vocabulary and what `encode`
    makes of some texts.
    """
    rows = rows.select_columns([column])
    step = max(len(rows) // SAMPLED, 1)
    some = rows[range(0, len(rows), step)]
    texts = ["" if one is None else str(one) for one in some[column][:SAMPLED]]
    size = rows.data.nbytes  # of all that the rows are chosen from; nothing is read
    seen = hashlib.sha256()
    for part in rows.iter(1000) if size <= WHOLE else [some, {column: [size]}]:
        for text in part[column]:
            seen.update(f"{text}\n".encode("utf-8", "surrogatepass"))
    return {
        **flags,
        "vocabulary": _digest(sorted(tokenizer.get_vocab().items())),
        "rows": len(rows),
        "texts": seen.hexdigest(),
        "tokens": _digest(encode({column: texts})),
    }


def folder_of(source: Mapping[str, Any], named: Path | None, cache: Path) -> Path:
    """Choose where tokens are: the folder that is named, or one for just these."""
    return named or cache / "tokenized" / _digest(dict(source))[:16]


def stored(
    folder: Path, source: Mapping[str, Any], make: Callable[[Path], None]
) -> Dataset:
    """Return the tokens in a folder, and make them before if it is not there.

    `make` writes Arrow files into the folder that it is given, whose names are in the
    rows' order.

    Raises:
        ValueError: If the folder's tokens are made from something else, or damaged.
    """
    if not folder.exists():
        _make(folder, source, make)
    try:
        known = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        before, files = known["made_from"], known["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"tokenized data={folder} has no {MANIFEST} that can be read; expected a "
            "folder that an earlier run made, or none; choose another --tokenized_dir"
        ) from error
    for name, value in source.items():
        if before.get(name) != value:
            raise ValueError(
                f"tokenized data={folder} is made with {name}={before.get(name)}; "
                f"expected {value} as in this run; give another --tokenized_dir, or "
                "remove the folder to make it anew"
            )
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(
                f"tokenized data={path} is missing or damaged; expected {size} bytes; "
                f"remove {folder} to make it anew"
            )
    return concatenate_datasets([Dataset.from_file(str(folder / n)) for n in files])


def _make(
    folder: Path, source: Mapping[str, Any], make: Callable[[Path], None]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    mine = f"{folder.name}.{platform.node()}."
    for path in folder.parent.glob(f"{mine}*.partial"):
        if not _alive(path.suffixes[-2]):
            shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
    partial = folder.with_name(f"{mine}{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        make(partial)
        files = {p.name: p.stat().st_size for p in sorted(partial.glob("*.arrow"))}
        text = json.dumps({"made_from": dict(source), "files": files}, indent=1)
        (partial / MANIFEST).write_text(text, encoding="utf-8")
        for path in partial.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _alive(suffix: str) -> bool:
    try:
        os.kill(int(suffix.lstrip(".")), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        pass
    return True


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
