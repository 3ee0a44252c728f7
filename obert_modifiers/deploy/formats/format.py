"""What a format is: it writes a run, and reads what it wrote."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from obert_modifiers.deploy.weight import Weight


@dataclass(frozen=True)
class Options:
    """What a user asks for; the command's flags have the same names."""

    target: str = "onnxruntime"  # the engine that an ONNX file is for
    shape: tuple[int, int] | None = None  # batch size and sequence length, both fixed
    int8: bool = False  # insist on INT8 weights
    integer_bias: bool = False  # round biases to INT32, for speed


@dataclass(frozen=True)
class Exported:
    """What a format wrote."""

    path: Path  # a file or folder
    size_bytes: int
    facts: tuple[str, ...] = ()  # lines that a user wants to read


class Format(ABC):
    """A form of a model on disk.

    This one holds the weights of a plain model, which `load` gives back; `Graph` holds
    what an engine computes.
    """

    name: str  # as ``--format`` has it
    pattern: str  # names of its files
    takes: frozenset[str] = frozenset()  # the options that it makes use of
    is_graph = False  # whether engines read it; else its weights go into the model

    def default_out(self, run: Path, options: Options) -> Path:
        """Say where a run's export goes unless told otherwise."""
        return run / "export" / self.name

    @abstractmethod
    def write(self, run: Path, out: Path, options: Options) -> Exported:
        """Write what is in a run's folder."""

    def recognises(self, path: Path) -> bool:
        """Tell a file of this format."""
        return fnmatch(path.name, self.pattern)

    def files(self, path: Path) -> tuple[Path, ...]:
        """List the files with weights that belong to a file of this format."""
        return (path,)

    def load(self, path: Path) -> dict[str, "Tensor"]:
        """Read the weights of a plain model from a file, or the folder that it is in.

        Raises a ValueError if it is damaged, foreign, or of a newer version.
        """
        raise NotImplementedError(f"{self.name} holds no plain model")

    def weights(self, files: Sequence[Path]) -> list["Weight"]:
        """Count the weights in the files of a model."""
        from obert_modifiers.deploy.weight import count_tensors

        return count_tensors(self.load(files[0]).items())


def check_int8(options: Options, run: Path, quantized: bool) -> None:
    """Refuse to write INT8 weights of a run that has none."""
    if options.int8 and not quantized:
        raise ValueError(
            f"run={run} was not trained with INT8: it has no quantization.json; "
            "expected a recipe with !QATModifier; train with one, or leave out --int8"
        )
