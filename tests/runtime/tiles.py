"""Tiles and weights for the tests of kernels."""

from dataclasses import replace

import numpy as np

from obert_modifiers.runtime.jit import Library, Program
from obert_modifiers.runtime.kernels import Kernel
from obert_modifiers.runtime.paths import PATHS, Path, available
from tests.runtime.interpreter import Interpreter

FAR = [name for name in PATHS if name not in available()]


def of_registers(name: str, registers: int) -> Path:
    return replace(PATHS[name], registers=registers)


def run(path: Path, kernel: Kernel, *values: float) -> None:
    """Run a kernel, on the CPU where it has the instructions, else interpreted."""
    if path.name not in FAR:
        library = Library(path, [kernel], lambda line: None)
        program = Program(library)
        program.add(kernel, *values)
        library.run(program.take())
        return
    words = np.zeros(len(values), np.int64)
    for i, (letter, value) in enumerate(zip(kernel.parameters, values, strict=True)):
        words[i] = value if letter == "i" else np.float32(value).view(np.int32)
    Interpreter(kernel.write(path))(words.ctypes.data)


def sparse(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    kept: float = 0.4,
    most: int = 127,
) -> np.ndarray:
    """Draw an int8 weight in blocks of four, some rows empty and one whole."""
    weight = rng.integers(-most, most + 1, (rows, columns // 4, 4))
    mask = rng.random((rows, columns // 4, 1)) < kept
    mask[0], mask[-1] = False, True
    return (weight * mask).reshape(rows, columns).astype(np.int8)


def bytes_tile(values: np.ndarray) -> np.ndarray:
    """Lay ``(features, T)`` bytes out in blocks of four features."""
    features, tokens = values.shape
    blocks = values.reshape(features // 4, 4, tokens).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks)


def plain(tile: np.ndarray) -> np.ndarray:
    """Return ``(features, T)`` of a tile of bytes."""
    blocks, tokens, _ = tile.shape
    return tile.transpose(0, 2, 1).reshape(4 * blocks, tokens)
