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

from obert_modifiers import __version__, embedded
from obert_modifiers.cpu import host_cpu
from obert_modifiers.modifiers._targets import (
    encoder_weights,
    non_embedding_weights,
    unwrap,
)
from obert_modifiers.sizes import MB, gzip_bytes, plain_bytes, weight_files

TRAIN_RECORD = "metrics.json"
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "sparseml", "numpy")


def count_zeros(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """Count the zeros of parameters in a saved model's files, in the names' order."""
    names, counts = list(names), {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in set(names) & set(file.keys()):
                weight = file.get_tensor(name)
                zeros = weight.numel() - int(torch.count_nonzero(weight))
                counts[name] = {"name": name, "numel": weight.numel(), "pruned": zeros}
    missing = [name for name in names if name not in counts]
    if missing:
        raise ValueError(
            f"model={folder} lacks {', '.join(missing)}; expected every pruned "
            "parameter in the saved file; save the model that was trained"
        )
    return [counts[name] for name in names]


def sparsity_of(layers: Sequence[dict[str, Any]]) -> float:
    """Return the share of zeros over some layers."""
    total = sum(layer["numel"] for layer in layers)
    return sum(layer["pruned"] for layer in layers) / total if total else 0.0


def sparsities(folder: Path, model: nn.Module) -> dict[str, float]:
    """Return the sparsity of a saved model as the papers count it.

    oBERT and GMP★ report the encoder's linear weights, oBERTa's Table 18 all of them.
    """
    model = unwrap(model)
    counted = {
        "sparsity_encoder": encoder_weights(model),
        "sparsity_non_embedding": non_embedding_weights(model),
    }
    return {k: sparsity_of(count_zeros(folder, names)) for k, names in counted.items()}


def sizes_mb(folder: Path) -> dict[str, float]:
    """Return the MB (1,000,000 bytes) of the weights on disk, plain and gzipped."""
    files = weight_files(folder)
    return {"size_mb": plain_bytes(files) / MB, "gzip_mb": gzip_bytes(files) / MB}


def hub_ids(model: str | None, data: Any) -> dict[str, Any]:
    """Name what the hub has: the model that a run began with, and its data set.

    The former through earlier runs, which are folders here; None where it has not.
    """
    task, named = getattr(data, "task_name", None), data.dataset_name
    dataset = named if named is not None and not Path(named).exists() else None
    config = task or data.dataset_config_name
    dataset = "nyu-mll/glue" if task else dataset
    return {
        "base_model": embedded.ENCODER_ID if model is None else _base_model(model),
        "dataset": dataset,
        "dataset_config": config if dataset else None,
    }


def _base_model(model: str) -> str | None:
    folder = Path(model)
    if not folder.exists():
        return model
    try:
        earlier = json.loads((folder / TRAIN_RECORD).read_text(encoding="utf-8"))
        return earlier.get("hub_model_id") or earlier["hub"]["base_model"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # no run of ours


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of what it stands on."""
    known = {"python": platform.python_version(), "obert_modifiers": __version__}
    for name in _PACKAGES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "not installed"
    return known


def machine() -> dict[str, Any]:
    """Describe the machine."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return {
        "cpu": host_cpu().name,
        "cores": cores,  # that this process may use
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write plain values and paths as JSON."""
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")
