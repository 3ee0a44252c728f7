"""The formats: what `obert export` writes, one file each."""

from obert_modifiers.deploy.formats.format import Format
from obert_modifiers.deploy.registry import Registry

FORMATS: Registry[Format] = Registry(
    "FORMAT",
    {
        "onnx": "obert_modifiers.deploy.formats.onnx",
        "openvino": "obert_modifiers.deploy.formats.openvino",
        "safetensors": "obert_modifiers.deploy.formats.safetensors_packed",
        "sparse": "obert_modifiers.deploy.formats.sparse",
        "torch24": "obert_modifiers.deploy.formats.torch24",
    },
)
