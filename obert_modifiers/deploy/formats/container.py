"""A safetensors file of one of our formats: its description and a checksum."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from obert_modifiers.deploy.formats.format import Exported, Format
from obert_modifiers.runtime.file import whole

_FORMAT, _VERSION, _SPEC, _DIGEST = "obert_format", "version", "spec", "sha256"


class Folder(Format):
    """A folder with one such file, and what else belongs to the run beside it."""

    kind: str  # as the file's head has it

    def recognises(self, path: Path) -> bool:
        # A damaged file is still what its name says; loading says what is wrong.
        return path.name == self.pattern or kind_of(path) == self.kind


@dataclass(frozen=True, kw_only=True)
class ExportedFolder(Exported):
    """What such a format wrote; its path is the folder, its size that of the file."""

    file: Path
    dense_bytes: int  # the same weights with their zeros, in the run's dtype


def write(
    path: Path, kind: str, version: int, tensors: Mapping[str, Tensor], spec: Any
) -> None:
    """Write a file with its description and checksum, whole or not at all."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    digest = _digest(text, tensors)
    metadata = {_FORMAT: kind, _VERSION: str(version), _SPEC: text, _DIGEST: digest}
    write_tensors(tensors, path, metadata)


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]
) -> None:
    """Write a file whole or not at all, for whoever may read the files beside it."""
    with whole(path) as unfinished:
        save_file(dict(tensors), unfinished, metadata)


def read(
    path: Path, name: str, kind: str, version: int
) -> tuple[dict[str, Tensor], Any]:
    """Read a file, or that of a name in a folder; return tensors and their spec."""
    path = Path(path) / name if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"file={path} is not there; expected an export; check the path"
        )
    fix = "expected it as `obert export` wrote it; export or copy it again"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_kind(path, metadata, kind, version)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"file={path} is not whole ({error}); {fix}") from error
    text = metadata.get(_SPEC, "")
    if _digest(text, tensors) != metadata.get(_DIGEST):
        raise ValueError(f"file={path} is damaged: its checksum differs; {fix}")
    return tensors, json.loads(text)


def check_written(
    path: Path,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    same: Callable[[Tensor, Tensor], bool],
) -> None:
    """Compare what was read of a new file with what was to be written."""
    for name, tensor in wanted.items():
        if not same(found[name], tensor):
            raise RuntimeError(
                f"{name} of {path} does not read as it was written; expected the same "
                "numbers; report this with the run"
            )


def kind_of(path: Path) -> str | None:
    """Tell which of our formats a file is."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(_FORMAT)
    except (SafetensorError, OSError):
        return None


def _check_kind(
    path: Path, metadata: Mapping[str, str], kind: str, version: int
) -> None:
    found, given = metadata.get(_FORMAT, "run"), metadata.get(_VERSION, "")
    if found != kind:
        raise ValueError(
            f"file={path} is of the format {found}; expected {kind}; load it with that"
            " format's loader, a run with from_pretrained"
        )
    if not given.isdigit() or not 1 <= int(given) <= version:
        raise ValueError(
            f"version={given} of {path} is unknown; expected {version} or older; load "
            "it with the version of this package that wrote it, or a newer one"
        )


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
