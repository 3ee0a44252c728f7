"""What an engine is: it opens a file and computes with it."""

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from obert_modifiers.cpu import Cpu

if TYPE_CHECKING:
    import numpy as np
    import onnx

Shape = tuple[int | None, ...]  # None for an axis that is free


@dataclass(frozen=True)
class Setting:
    """How a graph is timed: always the same batch, on some of the cores."""

    batch: int
    seq: int
    cores: int
    bf16: bool = False  # floating point in bfloat16, where the engine can


@dataclass(frozen=True)
class Opened:
    """A graph that an engine has loaded; all by the names in the graph."""

    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    compute: Callable[[Mapping[str, "np.ndarray"]], Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the engine tells


@dataclass(frozen=True)
class Target:
    """What an ONNX file for an engine is like."""

    opset: int = 17  # the version of ONNX's operators
    fixed: bool = False  # whether it has one batch size and sequence length only
    # How products of quantized values are written: between Q and DQ nodes (``qdq``),
    # with linear layers as Gemm nodes too (``gemm``), or as integers (``integer``).
    products: str = "qdq"
    # What becomes of INT8 weights whose sums a CPU without VNNI cannot hold:
    # ``unsigned``, ``float``, or ``kept``.
    saturating: str = "kept"
    saturating_note: str = "outputs there may be wrong"  # the same for a user


class Engine(ABC):
    """What computes models; `name` is its package's and that of the extra for it."""

    name: str
    title: str
    colour: str = "#aa3377"  # in pictures
    reads: tuple[str, ...]  # formats
    target: Target | None = None  # of ONNX files for it; None: it reads none
    bf16: bool = False  # whether it can be told to compute in bfloat16

    def open(self, path: Path, setting: Setting | None = None) -> Opened:
        """Open a file, to be timed in a setting or for any inputs."""
        module = self.package()
        try:
            return self.load(module, path, setting)
        except Exception as error:  # engines raise classes of their own
            raise ValueError(
                f"model={path} cannot be opened by {self.name} ({reason(error)}); "
                "expected what `obert export` wrote for it; export it again"
            ) from error

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return find_spec(self.name) is not None

    def package(self) -> Any:
        """Import the engine's package, or raise a ValueError with its extra."""
        return import_engine(self.name)

    @abstractmethod
    def load(self, module: Any, path: Path, setting: Setting | None) -> Opened:
        """Open a file; `module` is the engine's package."""

    def refusal(self, model: "onnx.ModelProto", name: str) -> str | None:
        """Say why a file, called `name`, should not be timed here; None if it may."""
        return None

    @abstractmethod
    def advice(self, cpu: Cpu) -> str:
        """Say what pays on a CPU, and what does not."""


def import_engine(name: str) -> ModuleType:
    """Import an engine's package, or name the extra that brings it in a ValueError."""
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


def reason(error: BaseException) -> str:
    """Shorten what an engine or a library says of an error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # OpenVINO begins with the place in its own code.
    told = [line for line in lines if not line.startswith("Exception from")]
    return (told or lines)[0][:300]
