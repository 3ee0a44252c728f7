"""The engines that run exported files, and what each makes of a CPU."""

import importlib
import warnings
from types import ModuleType

from obert_modifiers.cpu import Cpu


def import_engine(name: str) -> ModuleType:
    """Import an engine.

    Args:
        name: Its name, which is its package's and that of the extra that brings it.

    Returns:
        The module.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # DeepSparse is not made for the pydantic of today, and says so.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"engine={name} is not installed; expected the {name} package; run pip "
            f"install 'obert-modifiers[{name}]'"
        ) from error


def engine_advice(cpu: Cpu) -> dict[str, str]:
    """Say what each engine profits from on a CPU, and what will be slow.

    Args:
        cpu: The CPU.

    Returns:
        A line for each engine, and one for training here.
    """
    has = cpu.features
    if cpu.saturates:
        onnxruntime = openvino = "INT8 gains little over float32 without VNNI"
        openvino += "; layers that could saturate run in float32"
    else:
        onnxruntime = openvino = "INT8 pays"
    deepsparse = "zeros pay, INT8 less without AVX-512 VNNI"
    training = "bfloat16 (--bf16) is for CPUs with AMX"
    if "avx512vnni" in has:
        deepsparse = "zeros and INT8 pay"
    if "amx-bf16" in has:
        openvino += "; so does bfloat16 (--bf16), most of all for dense models"
        training = "bfloat16 pays in training (--bf16)"
    return {
        "onnxruntime": onnxruntime,
        "openvino": openvino,
        "deepsparse": deepsparse,
        "torch": training,
    }
