"""The file of a sparse model: a description, arrays, and a checksum over both."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FILE_NAME = "sparse.safetensors"
KIND, VERSION = "obert_modifiers.sparse", 1
_DTYPES = {"int8", "uint8", "uint16", "uint32", "float32"}


def write(path: Path, spec: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file whole or not at all."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    arrays = {name: np.ascontiguousarray(one) for name, one in arrays.items()}
    metadata = {
        "obert_format": KIND,
        "version": str(VERSION),
        "spec": text,
        "sha256": _digest(text, arrays),
    }
    with whole(path) as unfinished:
        save_file(arrays, unfinished, metadata)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a file to write, which becomes that of a path when all of it is there.

    Whoever may read the files beside it may read it: safetensors would leave that to
    its owner only.
    """
    # Of its own: another process may write the same file.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(mode)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a file, or the one in a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, of another format, or of another version.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"file={path} is not there; expected what `obert export --format sparse` "
            "writes; check the path"
        )
    try:
        with safe_open(path, framework="np") as opened:
            metadata = opened.metadata() or {}
            _check_version(path, metadata)
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        text = metadata.get("spec", "")
        digest = _digest(text, arrays)
    except (SafetensorError, TypeError, KeyError, OSError) as error:
        raise ValueError(
            f"file={path} is no whole safetensors file ({error}); expected what `obert "
            "export` wrote; export or copy it again"
        ) from error
    if digest != metadata.get("sha256"):
        raise ValueError(
            f"file={path} is damaged: its checksum differs; expected it as `obert "
            "export` wrote it; export or copy it again"
        )
    return json.loads(text), arrays


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    found = metadata.get("obert_format")
    if found != KIND:
        raise ValueError(
            f"file={path} is of the format {found or 'safetensors'}; expected {KIND}; "
            "write it with `obert export --format sparse`"
        )
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"version={metadata.get('version')} of {path} is unknown; expected "
            f"{VERSION}; export the run again with this version of the package"
        )


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        one = arrays[name]
        if one.dtype.name not in _DTYPES:
            raise TypeError(f"{name} is of dtype {one.dtype}")
        found.update(f"|{name}|{one.dtype.name}|{one.shape}|".encode())
        found.update(np.ascontiguousarray(one).reshape(-1).view(np.uint8))
    return found.hexdigest()
