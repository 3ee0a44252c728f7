"""The scales of a quantized model, in a file beside it.

The model itself is saved as if it were plain, and loads without this package.
"""

import json
from pathlib import Path

import torch
from torch import nn

from obert_modifiers.core.quantization.fake_quant import WEIGHT
from obert_modifiers.core.quantization.layers import Quantized, attach_
from obert_modifiers.core.quantization.scheme import freeze_, quantizers_of

FILE_NAME = "quantization.json"
_VERSION = 1


def save_quantization(model: nn.Module, folder: str | Path) -> Path | None:
    """Return the file of scales, written beside a saved model; None for a plain one."""
    tensors = {
        name: {
            "dtype": "int8" if quantizer.kind == WEIGHT else "uint8",
            "per_channel": quantizer.per_channel,
            "scale": quantizer.scale.tolist(),
            "zero_point": quantizer.zero_point.tolist(),
        }
        for name, quantizer in quantizers_of(model).items()
        if quantizer.ready
    }
    if not tensors:
        return None
    path = Path(folder) / FILE_NAME
    text = json.dumps({"version": _VERSION, "tensors": tensors}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def load_quantization_(model: nn.Module, folder: str | Path) -> bool:
    """Quantize a loaded model as it was when it was saved; its weights stay.

    Returns:
        False if there is no ``quantization.json``, and nothing was done.

    Raises:
        ValueError: If the file is of another version or names what is not there.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return False
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved.get("version") != _VERSION:
        raise ValueError(
            f"version={saved.get('version')} of {path} is unknown; expected {_VERSION}"
            "; load it with the version of this package that wrote it"
        )
    modules = dict(model.named_modules())
    for name, entry in saved["tensors"].items():
        module_name, _, role = name.rpartition(":")
        if module_name not in modules:
            raise ValueError(
                f"{name} of {path} is not in {type(model).__name__}; expected the "
                "model that it was saved with; load that one"
            )
        module = modules[module_name]
        if not isinstance(module, Quantized):
            attach_(module, entry["per_channel"])
        module.quantizers[role].fix_(
            torch.tensor(entry["scale"]), torch.tensor(entry["zero_point"])
        )
    freeze_(model)
    return True
