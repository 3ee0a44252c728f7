"""Bytes of files as they are and gzipped: the one definition of a model's MB."""

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

MB = 1_000_000
GZIP_LEVEL = 6  # that of the gzip command, which the papers' sizes are made with
_CHUNK = 1 << 20


def check_there(model: Path) -> None:
    """Check that a model's path leads somewhere, before anything reads it."""
    if not model.exists():
        raise FileNotFoundError(
            f"model={model} is not there; expected a run's folder or an exported file; "
            "check the path"
        )


class _Counter:
    """A file that keeps only how many bytes were written to it."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        pass


def plain_bytes(files: Iterable[Path]) -> int:
    """Add up the sizes of files."""
    return sum(path.stat().st_size for path in files)


def gzip_bytes(files: Iterable[Path]) -> int:
    """Measure files, one after the other, after gzip at level 6."""
    counter: BinaryIO = _Counter()  # type: ignore[assignment]
    with gzip.GzipFile(
        fileobj=counter, mode="wb", compresslevel=GZIP_LEVEL, mtime=0
    ) as packed:
        for path in files:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    packed.write(chunk)
    return counter.size


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a saved model."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"model={folder} has no weights; expected model.safetensors; save it with "
            "save_pretrained"
        )
    return files
