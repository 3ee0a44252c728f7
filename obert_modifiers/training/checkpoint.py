"""Folders ``checkpoint-<step>``: written completely or not at all, and checked.

A folder is written under a temporary name, every file is flushed, a manifest with all
checksums comes last, and only then the folder gets its name. So a folder with that name
is whole unless the disk has lost something, which the checksums tell.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from obert_modifiers.training.state import pack, unpack

FORMAT = 1
MANIFEST = "manifest.json"
LAST = "last"
# What a disk or a file system can do to a file that is written.
WRITE_ERRORS = (OSError, SafetensorError)

_NAME = re.compile(r"checkpoint-(\d+)(\.replaced)?")
_LOGGER = logging.getLogger(__name__)


def name_of(step: int) -> str:
    return f"checkpoint-{step}"


def partial_of(folder: Path, step: int) -> Path:
    """Name the folder in which a checkpoint is written before it is complete."""
    return folder / f"{name_of(step)}.partial"


def checkpoints_in(folder: Path) -> list[Path]:
    """List the checkpoints of a run, whole or damaged, that of the last step first."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.is_dir() and _step(path) >= 0]
    # What is being replaced comes after its replacement.
    return sorted(paths, key=lambda p: (_step(p), not p.suffix, p), reverse=True)


def write_state(folder: Path, name: str, value: Any) -> None:
    """Write a state as ``<name>.json``, and its tensors as ``<name>.safetensors``."""
    plain, tensors = pack(value)
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
        _flush(folder / f"{name}.safetensors")
    write_text(folder / f"{name}.json", json.dumps(plain))


def read_state(folder: Path, name: str) -> Any:
    """Read what `write_state` wrote, with tensors on the CPU."""
    plain = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    tensors = folder / f"{name}.safetensors"
    return unpack(plain, load_file(tensors) if tensors.is_file() else {})


def write_text(path: Path, text: str) -> None:
    """Write a text and flush it to the disk."""
    path.write_text(text, encoding="utf-8")
    _flush(path)


def seal(partial: Path, step: int) -> Path:
    """Complete a checkpoint whose files are written: manifest, name, flushes."""
    files = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
    text = json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1)
    write_text(partial / MANIFEST, text)
    _flush(partial)
    final = partial.parent / name_of(step)
    replaced = final.with_name(f"{final.name}.replaced")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    partial.rename(final)
    _flush(partial.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def fault_of(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, None if nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, known is {FORMAT}"
        for name, expected in manifest["files"].items():
            if _checksum(folder / name) != expected:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"
    return None


def find_whole(resume: str | Path | None, output_dir: Path) -> Path | None:
    """Find the checkpoint to resume from, passing over damaged ones with a warning.

    `resume` is ``last`` for the last one of the run, or a checkpoint's folder, or that
    of a run. None for None, and for ``last`` where none was ever written.
    """
    if resume is None:
        return None
    candidates = checkpoints_in(output_dir) if resume == LAST else _named(Path(resume))
    if not candidates:
        _LOGGER.info("no checkpoint in %s yet: starting anew", output_dir)
        return None
    faults = []
    for candidate in candidates:
        fault = fault_of(candidate)
        if fault is not None:
            faults.append(f"{candidate} is damaged: {fault}")
            continue
        if faults:
            _LOGGER.warning(
                "%s; resuming from the one before: %s", "; ".join(faults), candidate
            )
        return candidate
    raise ValueError(
        f"resume_from_checkpoint={resume} finds no whole checkpoint: "
        f"{'; '.join(faults)}; expected one at least; train anew with "
        "--overwrite_output_dir"
    )


def _named(folder: Path) -> list[Path]:
    """List the checkpoints of a run, or a checkpoint and those before it."""
    if not folder.is_dir():
        raise ValueError(
            f"resume_from_checkpoint={folder} is no folder; expected that of a "
            "checkpoint or of a run; give its path or last"
        )
    found = checkpoints_in(folder)
    if found:
        return found
    if not (folder / MANIFEST).is_file() and _step(folder) < 0:
        raise ValueError(
            f"resume_from_checkpoint={folder} holds no checkpoint; expected "
            f"checkpoint-<step> with {MANIFEST}, as --save_strategy writes it, or the "
            "folder of a run; give its path or last"
        )
    before = [p for p in checkpoints_in(folder.parent) if _step(p) < _step(folder)]
    return [folder, *before]


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def remove_old(folder: Path, newest: Path, limit: int | None) -> None:
    """Remove what is no longer wanted, after a new checkpoint is complete."""
    for path in folder.glob("checkpoint-*.replaced"):
        shutil.rmtree(path, ignore_errors=True)
    if limit is None:
        return
    others = [path for path in checkpoints_in(folder) if path != newest]
    for path in others[max(limit - 1, 0) :]:
        shutil.rmtree(path, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in folder.glob("checkpoint-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def remove_all(folder: Path) -> None:
    """Remove all checkpoints of a run, for one that starts anew in its folder."""
    remove_unfinished(folder)
    for path in checkpoints_in(folder):
        shutil.rmtree(path)


def _checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}


def _flush(path: Path) -> None:
    """Flush a file or a folder's list of files to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
