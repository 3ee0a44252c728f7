"""Some sentences of a batch on their way through the layers."""

from collections.abc import Callable, Sequence

import numpy as np

from obert_modifiers.runtime.kernels import Kernel
from obert_modifiers.runtime.memory import Memory
from obert_modifiers.runtime.model import Norm, Output
from obert_modifiers.runtime.packing import Packing
from obert_modifiers.runtime.prepared import Prepared, ReadyLayer
from obert_modifiers.runtime.weights import Linear, Packed

Part = tuple[int, int]  # which of how many
_WHOLE = (0, 1)


class Group:
    """Tiles of sentences, and the phases of a layer over them.

    Threads take tiles where there are enough of them, and else parts of the rows of
    each weight.

    Args:
        prepared: The model.
        packing: The sentences; T as the registers say.
        registers: Of tokens in a tile.
        memory: Where arrays come from.
        each: Calls a function with each of some items, on `threads` threads.
        threads: How many take part.
    """

    def __init__(
        self,
        prepared: Prepared,
        packing: Packing,
        registers: int,
        memory: Memory,
        each: Callable[[Callable[..., None], Sequence[tuple]], None],
        threads: int,
    ) -> None:
        self._prepared, self._packing = prepared, packing
        self._run = prepared.library(registers)
        self._memory, self._each, self._threads = memory, each, threads
        self._tokens = tokens = prepared.path.lanes * registers
        self._tiles = packing.tiles
        self._shared = threads > 1 and self._tiles < threads
        about = prepared.about
        self._width, self._heads = about["hidden"], about["heads"]
        inner = about["intermediate"]
        tiles, width = self._tiles, self._width
        self._hidden = memory((tiles, width, tokens), np.float32)
        self._bytes = memory((tiles, width, tokens), np.uint8)
        number = max((layer.number_bytes for layer in prepared.layers), default=4)
        self._projected = [
            memory((tiles * width * tokens, number), np.uint8) for _ in range(3)
        ]
        # Where tiles are not computed at the same time one has the memory of all.
        workers = tiles if threads > 1 else 1
        self._context = memory((workers, width, tokens), np.float32)
        self._middle = memory((workers, inner, tokens), np.float32)
        self._sums = memory((workers, max(inner, width), tokens), np.float32)
        keys = int((packing.ranges[:, 1] - packing.ranges[:, 0]).max(initial=0))
        places = workers * (self._heads if self._shared else 1)
        self._scores = memory((places, keys, tokens), np.float32)

    # -- the whole

    def encode(self, inputs: Sequence[np.ndarray]) -> None:
        """Compute the last layer's output from the slots' ids, types and positions."""
        self._embed(inputs)
        layers = self._prepared.layers
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            if layer is layers[0]:
                self._each_tile([(self._round_first, False)], layer)
            self._each_tile([(self._project, True)], layer)
            phases = [
                (self._attend, True),
                (self._output, True),
                (self._middle_norm, False),
                (self._up, True),
                (self._down, True),
                (
                    lambda layer, t, part, after=after: self._last_norm(
                        layer, after, t
                    ),
                    False,
                ),
            ]
            for group in [[one] for one in phases] if self._shared else [phases]:
                self._each_tile(group, layer)

    def output(self, output: Output) -> np.ndarray:
        """Return features, ``(sentences, n)`` or of all tokens ``(tokens, n)``."""
        tokens, packing = self._tokens, self._packing
        if output.first:
            where = np.arange(len(packing.rows))
            shape = (-(-len(where) // tokens), self._width, tokens)
            tiles = np.zeros(shape, np.float32)
            chosen = self._hidden[packing.starts // tokens, :, packing.starts % tokens]
            tiles[where // tokens, :, where % tokens] = chosen
        else:
            tiles, where = self._hidden, packing.slots
        for kind, name, *rest in output.steps:
            if kind == "norm":
                tiles = tiles.copy() if tiles is self._hidden else tiles
                self._norm_all(tiles, self._prepared.model.norms[name])
            else:
                tiles = self._linear(self._prepared.model.linears[name], tiles, rest[0])
        return tiles[where // tokens, :, where % tokens]

    def _each_tile(
        self,
        phases: Sequence[tuple[Callable[[ReadyLayer, int, Part], None], bool]],
        layer: ReadyLayer,
    ) -> None:
        """Run phases tile by tile; True stands for those that can be divided."""
        parts = self._threads if self._shared and all(d for _, d in phases) else 1

        def work(t: int, part: int) -> None:
            for phase, _ in phases:
                phase(layer, t, (part, parts))

        self._each(work, [(t, i) for t in range(self._tiles) for i in range(parts)])

    # -- before and behind the layers

    def _embed(self, inputs: Sequence[np.ndarray]) -> None:
        prepared, model = self._prepared, self._prepared.model
        narrow = prepared.about["embedding"]
        own = self._hidden
        if model.project is not None:
            own = self._memory((self._tiles, narrow, self._tokens), np.float32)
        tables = [table.ctypes.data for table, _ in model.tables.values()]
        scales = [scale for _, scale in model.tables.values()]

        def work(t: int) -> None:
            places = [one.ctypes.data + 4 * t * self._tokens for one in inputs]
            self._run[prepared.embed](
                *places, *tables, narrow, own[t].ctypes.data, *scales
            )
            self._norm(own[t], model.embedding_norm)

        self._each(work, [(t,) for t in range(self._tiles)])
        if model.project is not None:
            self._hidden = self._linear(model.project, own, "none")

    def _linear(self, layer: Linear, tiles: np.ndarray, activation: str) -> np.ndarray:
        """Compute ``(tiles, rows, T)`` of ``(tiles, columns, T)`` floats."""
        packed = self._prepared.packed(layer)
        kernel = self._run[self._prepared.plain(layer, activation)]
        count, tokens = len(tiles), self._tokens
        found = self._memory((count, packed.rows, tokens), np.float32)
        sums = self._memory((count, packed.rows, tokens), np.float32)
        rounded = self._memory((count, packed.columns, tokens), np.uint8)

        def round_(t: int) -> None:
            self._round(packed, tiles[t], rounded[t])

        parts = self._threads if count < self._threads else 1

        def work(t: int, part: int) -> None:
            source = tiles if packed.grid is None else rounded
            kernel(
                source[t].ctypes.data,
                *packed.addresses,
                sums[t].ctypes.data,
                *_rows(packed.rows, (part, parts)),
                found[t].ctypes.data,
                0.0,
                0.0,
            )

        self._each(round_, [(t,) for t in range(count if packed.grid else 0)])
        self._each(work, [(t, i) for t in range(count) for i in range(parts)])
        return found

    def _norm_all(self, tiles: np.ndarray, norm: Norm) -> None:
        self._each(lambda tile: self._norm(tile, norm), [(one,) for one in tiles])

    # -- phases of a layer; in each, tile t of the group

    def _round_first(self, layer: ReadyLayer, t: int, part: Part) -> None:
        self._round(layer.linears["query"], self._hidden[t], self._bytes[t])

    def _round(self, packed: Packed, tile: np.ndarray, out: np.ndarray) -> None:
        if packed.grid is not None:
            step, zero = packed.grid
            self._run[Kernel("quantize")](
                tile.ctypes.data, out.ctypes.data, packed.columns, 1.0 / step, zero
            )

    def _project(self, layer: ReadyLayer, t: int, part: Part) -> None:
        """Compute queries, keys and values."""
        shared = layer.linears["query"].grid
        size = layer.number_bytes * self._width * self._tokens
        for name, array in zip(("query", "key", "value"), self._projected, strict=True):
            packed = layer.linears[name]
            source = self._hidden[t] if packed.grid is None else self._bytes[t]
            if packed.grid not in (None, shared):  # its own rounding of the same input
                source = np.empty((self._width, self._tokens), np.uint8)
                self._round(packed, self._hidden[t], source)
            out = array.ctypes.data + size * t
            self._call(layer, name, source, t, part, out, layer.grids.get(name))

    def _attend(self, layer: ReadyLayer, t: int, part: Part) -> None:
        heads = _rows(self._heads, part, 1)
        worker = self._worker(t)
        place = worker * self._heads + heads[0] if self._shared else worker
        if heads[0] == heads[1]:
            return
        query, keys, values = (one.ctypes.data for one in self._projected)
        packing = self._packing
        first, last = packing.ranges[t]
        self._run[layer.attention](
            query + layer.number_bytes * t * self._width * self._tokens,
            keys,
            values,
            packing.keys.ctypes.data,
            packing.own.ctypes.data + 4 * t * self._tokens,
            int(first),
            int(last),
            self._width,
            self._width // self._heads,
            *heads,
            self._scores[place].ctypes.data,
            self._context[worker].ctypes.data,
            *layer.constants,
        )

    def _output(self, layer: ReadyLayer, t: int, part: Part) -> None:
        source, out = self._context[self._worker(t)], self._hidden[t].ctypes.data
        self._call(layer, "output", source, t, part, out)

    def _middle_norm(self, layer: ReadyLayer, t: int, part: Part) -> None:
        self._norm(self._hidden[t], layer.norms[0], layer.linears["up"], self._bytes[t])

    def _up(self, layer: ReadyLayer, t: int, part: Part) -> None:
        floats = layer.linears["up"].grid is None
        source = self._hidden[t] if floats else self._bytes[t]
        out = self._middle[self._worker(t)].ctypes.data
        self._call(layer, "up", source, t, part, out, layer.linears["down"].grid)

    def _down(self, layer: ReadyLayer, t: int, part: Part) -> None:
        source, out = self._middle[self._worker(t)], self._hidden[t].ctypes.data
        self._call(layer, "down", source, t, part, out)

    def _last_norm(self, layer: ReadyLayer, after: ReadyLayer | None, t: int) -> None:
        following = None if after is None else after.linears["query"]
        self._norm(self._hidden[t], layer.norms[1], following, self._bytes[t])

    def _worker(self, t: int) -> int:
        return t if self._threads > 1 else 0

    def _call(
        self,
        layer: ReadyLayer,
        name: str,
        source: np.ndarray,
        t: int,
        part: Part,
        out: int,
        grid: tuple[float, int] | None = None,
    ) -> None:
        packed = layer.linears[name]
        step, zero = grid or (1.0, 0)
        self._run[layer.kernels[name]](
            source.ctypes.data,
            *packed.addresses,
            self._sums[self._worker(t)].ctypes.data,
            *_rows(packed.rows, part),
            out,
            1.0 / step,
            zero,
        )

    def _norm(
        self,
        tile: np.ndarray,
        norm: Norm,
        after: Packed | None = None,
        out: np.ndarray | None = None,
    ) -> None:
        """Normalise in place, and round to the grid of the layer that comes after."""
        grid = None if after is None else after.grid
        step, zero = grid or (1.0, 0)
        width = len(norm.gain)
        self._run[Kernel("norm", ("floats" if grid is None else "bytes",))](
            tile.ctypes.data,
            norm.gain.ctypes.data,
            norm.bias.ctypes.data,
            0 if out is None else out.ctypes.data,
            width,
            self._prepared.about["eps"],
            1.0 / width,
            1.0 / step,
            zero,
        )


def _rows(count: int, part: Part, multiple: int = 4) -> tuple[int, int]:
    """Return where a part of some rows begins and ends."""
    which, parts = part
    units = count // multiple
    edges = [units * i // parts * multiple for i in (which, which + 1)]
    return edges[0], count if which + 1 == parts else edges[1]
