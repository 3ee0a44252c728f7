"""What a run leaves on record: figures of the saved file, versions, the machine."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from obert_modifiers import __version__
from obert_modifiers.cpu import host_cpu
from obert_modifiers.modifiers._targets import (
    encoder_weights,
    non_embedding_weights,
    unwrap,
)
from obert_modifiers.sizes import MB, gzip_bytes, plain_bytes, weight_files

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "sparseml", "numpy")


def count_zeros(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """Count the zeros of some parameters in the files of a saved model.

    Args:
        folder: The model's folder.
        names: Full names of the parameters.

    Returns:
        For each ``{"name", "numel", "pruned"}``, in the order of the names.

    Raises:
        ValueError: If a parameter is in none of the files.
    """
    names, found = list(names), {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in set(names) & set(file.keys()):
                weight = file.get_tensor(name)
                zeros = weight.numel() - int(torch.count_nonzero(weight))
                found[name] = {"name": name, "numel": weight.numel(), "pruned": zeros}
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"model={folder} lacks {', '.join(missing)}; expected every pruned "
            "parameter in the saved file; save the model that was trained"
        )
    return [found[name] for name in names]


def sparsity_of(layers: Sequence[dict[str, Any]]) -> float:
    """Return the share of zeros over some layers.

    Args:
        layers: As from `count_zeros`.

    Returns:
        The sparsity in [0, 1]; 0.0 without layers.
    """
    total = sum(layer["numel"] for layer in layers)
    return sum(layer["pruned"] for layer in layers) / total if total else 0.0


def sparsities(folder: Path, model: nn.Module) -> dict[str, float]:
    """Count the zeros of a saved model as the papers do, beside the recipe's targets.

    Args:
        folder: The model's folder.
        model: The model that was saved there; only its names are read.

    Returns:
        ``sparsity_encoder``, of the encoder's linear weights, as oBERT and GMP★ report
        it, and ``sparsity_non_embedding``, of all linear weights, as oBERTa's Table 18
        does; both in [0, 1].
    """
    model = unwrap(model)
    return {
        "sparsity_encoder": sparsity_of(count_zeros(folder, encoder_weights(model))),
        "sparsity_non_embedding": sparsity_of(
            count_zeros(folder, non_embedding_weights(model))
        ),
    }


def sizes_mb(folder: Path) -> tuple[float, float]:
    """Measure the weights on disk, as they are and gzipped.

    Args:
        folder: The model's folder.

    Returns:
        Both sizes in MB of 1,000,000 bytes; gzip is at level 6.
    """
    files = weight_files(folder)
    return plain_bytes(files) / MB, gzip_bytes(files) / MB


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of what it stands on.

    Returns:
        Version by name.
    """
    found = {"python": platform.python_version(), "obert_modifiers": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Describe the machine.

    Returns:
        ``cpu`` (model), ``cores`` (that this process may use), ``threads`` (of torch)
        and ``gpu`` (model or None).
    """
    return {
        "cpu": host_cpu().name,
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON with two spaces of indentation.

    Args:
        path: The file.
        record: Plain Python values and paths.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")
