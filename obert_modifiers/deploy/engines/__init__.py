"""The engines: what reads a file and computes with it, one file each."""

from obert_modifiers.cpu import Cpu
from obert_modifiers.deploy.engines.engine import Engine
from obert_modifiers.deploy.registry import Registry

ENGINES: Registry[Engine] = Registry(
    "ENGINE",
    {
        "onnxruntime": "obert_modifiers.deploy.engines.onnxruntime",
        "openvino": "obert_modifiers.deploy.engines.openvino",
        "sparse": "obert_modifiers.deploy.engines.sparse",
        "deepsparse": "obert_modifiers.deploy.engines.deepsparse",
        "torch": "obert_modifiers.deploy.engines.torch",
    },
)


def targets() -> list[str]:
    """Name the engines that ONNX files are written for."""
    return [name for name, engine in ENGINES.items() if engine.target is not None]


def readers(kind: str) -> list[str]:
    """Name the engines that read a format."""
    return [name for name, engine in ENGINES.items() if kind in engine.reads]


def engine_advice(cpu: Cpu) -> dict[str, str]:
    """Say what each engine profits from on a CPU, and what will be slow."""
    return {name: engine.advice(cpu) for name, engine in ENGINES.items()}
