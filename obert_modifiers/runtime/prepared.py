"""A model made ready for a path: weights packed, kernels chosen and compiled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from obert_modifiers.runtime.forking import fork_safe_lock
from obert_modifiers.runtime.jit import Library
from obert_modifiers.runtime.kernels import Kernel, linear
from obert_modifiers.runtime.model import Layer, Model, Norm
from obert_modifiers.runtime.packing import uneven
from obert_modifiers.runtime.paths import Path
from obert_modifiers.runtime.weights import Linear, Packed

# What a tile costs beside its products, in registers of tokens.
_TILE_COST = 2.5
# How much longer the rows of a tile take than its share of them, where threads share
# them: norms are computed by one.
_SHARING_COST = 1.25
_RATE = 1e11  # products of a second, in round figures


def shares_rows(tiles: int, threads: int) -> bool:
    """Tell whether threads share the rows of each tile, or have tiles of their own."""
    return uneven(-(-tiles // threads), threads, tiles)


def seconds(weights: int, tokens: int) -> float:
    """Guess how long a thread multiplies kept weights with tokens."""
    return weights * tokens / _RATE


@dataclass(frozen=True)
class ReadyLayer:
    """A layer with its packed weights.

    Attributes:
        linears: By name.
        kernels: Theirs, by name.
        norms: After attention, and after the feed-forward layers.
        numbers: Of attention: ``floats``, ``grid`` or ``words``.
        attention: Its kernel.
        constants: Scale of the scores, 1 / step of the probabilities, and factor and
            zero point of what comes out.
        grids: Scales and zero points of query, key and value, where they are rounded.
    """

    linears: Mapping[str, Packed]
    kernels: Mapping[str, Kernel]
    norms: tuple[Norm, Norm]
    numbers: str
    attention: Kernel
    constants: tuple[float, float, float, float]
    grids: Mapping[str, tuple[float, int]]

    @property
    def number_bytes(self) -> int:
        """Of a query, key or value."""
        return 2 if self.numbers == "words" else 4


class Prepared:
    """Everything that runs of a model reads."""

    def __init__(self, model: Model, path: Path, tell: Callable[[str], None]) -> None:
        self.model, self.path, self.about = model, path, model.about
        self._packed = {id(one): Packed(one, path) for one in model.all_linears()}
        self.layers = [self._layer(one) for one in model.layers]
        tables = [table for table, _ in model.tables.values()]
        self.embed = Kernel(
            "embed", tuple("int8" if t.dtype == np.int8 else "float" for t in tables)
        )
        self._tell, self._lock = tell, fork_safe_lock()
        self._libraries: dict[int, Library] = {}
        self.library(path.registers)

    @property
    def size_bytes(self) -> int:
        """Bytes of weights."""
        tables = sum(table.nbytes for table, _ in self.model.tables.values())
        return tables + sum(one.size_bytes for one in self._packed.values())

    def packed(self, layer: Linear) -> Packed:
        """Return a layer as kernels take it."""
        return self._packed[id(layer)]

    def plain(self, layer: Linear, activation: str) -> Kernel:
        """Name the kernel that writes a layer's output as floats."""
        return linear(layer.inputs, "floats", activation, self.packed(layer).chunks)

    def registers_for(self, tokens: int, threads: int = 1) -> int:
        """Choose how many registers of tokens make a tile that a thread computes."""
        sizes = [
            1 << n for n in range(self.path.registers.bit_length())
        ]  # 1, 2, 4, ... registers
        lanes = self.path.lanes

        def cost(registers: int) -> float:
            tiles = -(-tokens // (lanes * registers))
            each: float = -(-tiles // threads)
            if shares_rows(tiles, threads):
                each = _SHARING_COST * tiles / threads
            return each * (registers + _TILE_COST)

        return min(sizes, key=lambda n: (cost(n), n))

    def layer_seconds(self, tokens: int) -> float:
        """Guess how long a thread takes for a layer."""
        kept = sum(one.kept for one in self.layers[0].linears.values())
        return seconds(kept, tokens)

    def library(self, registers: int) -> Library:
        """Return the kernels for tiles of so many registers, compiled if need be."""
        with self._lock:
            found = self._libraries.get(registers)
            if found is None:
                path = replace(self.path, registers=registers)
                found = Library(path, self._kernels(), self._tell)
                self._libraries[registers] = found
            return found

    def _layer(self, layer: Layer) -> ReadyLayer:
        packed = {name: self.packed(one) for name, one in layer.linears.items()}
        size = self.about["hidden"] // self.about["heads"]
        numbers, grids = "floats", layer.grids or {}
        scale, step, factor, zero = size**-0.5, 0.0, 1.0, 0.0
        if grids:
            numbers = "words" if self.path.words else "grid"
            scale *= grids["query"][0] * grids["key"][0]
            step = 1.0 / grids["probabilities"][0]
            factor = grids["probabilities"][0] * grids["value"][0]
        after = packed["output"].grid
        if after is not None:
            factor, zero = factor / after[0], float(after[1])
        words = numbers == "words"
        to_down = "floats" if packed["down"].grid is None else "bytes"
        results = {
            "query": (numbers, "none"),
            "key": (numbers, "none"),
            "value": ("halves" if words else numbers, "none"),
            "output": ("add", "none"),
            "up": (to_down, self.about["activation"]),
            "down": ("add", "none"),
        }
        return ReadyLayer(
            packed,
            {
                n: linear(one.inputs, *results[n], one.chunks)
                for n, one in packed.items()
            },
            layer.norms,
            numbers,
            Kernel("attention", (numbers, "floats" if after is None else "bytes")),
            (scale, step, factor, zero),
            grids,
        )

    def _kernels(self) -> set[Kernel]:
        found = {self.embed, Kernel("quantize")}
        found |= {Kernel("norm", (kind,)) for kind in ("bytes", "floats")}
        for layer in self.layers:
            found |= {layer.attention, *layer.kernels.values()}
        for output in self.model.outputs:
            for kind, name, *rest in output.steps:
                if kind == "linear":
                    found.add(self.plain(self.model.linears[name], rest[0]))
        if self.model.project is not None:
            found.add(self.plain(self.model.project, "none"))
        return found
