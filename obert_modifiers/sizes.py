"""Bytes of files as they are and gzipped: the one definition of a model's MB."""

import zlib
from collections.abc import Iterable
from pathlib import Path

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


def plain_bytes(files: Iterable[Path]) -> int:
    """Add up the sizes of files."""
    return sum(path.stat().st_size for path in files)


def gzip_bytes(files: Iterable[Path]) -> int:
    """Measure files, one after the other, after gzip at level 6."""
    packer = zlib.compressobj(GZIP_LEVEL, wbits=16 + zlib.MAX_WBITS)  # gzip's format
    size = 0
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                size += len(packer.compress(chunk))
    return size + len(packer.flush())


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a saved model, those that transformers reads."""
    if (folder / "model.safetensors").is_file():  # then it reads no other
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"model={folder} has no weights; expected model.safetensors; save it with "
            "save_pretrained"
        )
    return files
