"""What a run's folder holds beside its weights, and the weights themselves."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from obert_modifiers.core.embedding_folder import MODULES, module_files
from obert_modifiers.core.quantization.scales import FILE_NAME
from obert_modifiers.deploy.formats import container
from obert_modifiers.sizes import weight_files

# What stays behind: weights in any form, and what was made from the run.
_LEFT = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".html", ".png", ".part")
_LEFT += (".xml", ".h5", ".msgpack", ".ot")  # other engines' and libraries'
_LEFT += ("model.safetensors.index.json", "README.md")
# What one run has and another has not, and what is read of a folder depends on.
_OPTIONAL = (FILE_NAME, MODULES)
_OPTIONAL += ("tokenizer.json", "added_tokens.json", "special_tokens_map.json")
_LEFT_STARTS = ("predictions", "nbest_predictions", "null_odds", "eval_metrics")


@dataclass(frozen=True)
class RunFolder:
    """A run's weights."""

    path: Path
    tensors: dict[str, Tensor]  # a shared weight is there once
    # Scale of the INT8 grid of each quantized weight, ``(1,)`` or ``(rows,)``; empty
    # for a plain model.
    scales: dict[str, Tensor] = field(default_factory=dict)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the tensors as they are."""
        return sum(one.nbytes for one in self.tensors.values())


def check_run(path: Path) -> None:
    """Refuse what is no run's folder."""
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"run={path} has no config.json; expected the output folder of `obert "
            "train`, or a folder of save_pretrained; check the path"
        )


def read_run(path: Path) -> RunFolder:
    """Read the weights of a run."""
    check_run(path)
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        tensors |= load_weights(file)
    return RunFolder(path, tensors, _scales(path / FILE_NAME, tensors))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a plain safetensors file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"model={path} is damaged ({error}); expected a whole safetensors file; "
            "copy or train it again"
        ) from error


def copy_along(source: Path, out: Path) -> None:
    """Copy what a run's folder holds beside weights, checkpoints and pictures.

    What an earlier export left there, and this run has not, is removed where it would
    be read: the scales of a model that was quantized, or how it pooled.
    """
    if out.exists() and (not out.is_dir() or out.samefile(source)):
        what = "the run itself" if out.is_dir() else "a file"
        raise ValueError(
            f"out={out} is {what}; expected another folder; choose one, such as "
            f"{source / 'export'}"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in _OPTIONAL:
        if not (source / name).is_file():
            (out / name).unlink(missing_ok=True)
    for path in sorted(source.iterdir()):
        left = path.name.endswith(_LEFT) or path.name.startswith(_LEFT_STARTS)
        if path.is_file() and not left:
            shutil.copyfile(path, out / path.name)
    for name in module_files(source):  # those in folders of their own too
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, out / name)


def write_run(tensors: Mapping[str, Tensor], source: Path, out: Path) -> Path:
    """Write a plain model's folder, as ``save_pretrained`` does."""
    copy_along(source, out)
    container.write_tensors(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def _scales(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Find the scale of each quantized weight of a saved model.

    A weight that two layers share, such as an embedding and the output of masked
    language modelling, is saved once. Where the other layer rounds it to another grid,
    neither grid is taken: the weight stays as it is.
    """
    if not path.is_file():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["tensors"]
    config = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    scales = {
        name.replace(":", "."): torch.tensor(entry["scale"])
        for name, entry in entries.items()
        if entry["dtype"] == "int8" and not any(entry["zero_point"])
    }
    own = {name: scale for name, scale in scales.items() if name in tensors}
    for scale in (scale for name, scale in scales.items() if name not in tensors):
        # As many rows as the vocabulary has: it is the embedding that is shared.
        rows = config.get("vocab_size") if scale.numel() == 1 else scale.numel()
        twins = [n for n in own if rows in (None, len(tensors[n]))]
        if not any(torch.equal(own[twin], scale) for twin in twins):
            own = {name: one for name, one in own.items() if name not in twins}
    return own
