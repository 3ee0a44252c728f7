"""Some sentences of a batch on their way through the layers."""

from collections.abc import Callable, Sequence

import numpy as np

from obert_modifiers.runtime.jit import Program
from obert_modifiers.runtime.kernels import Kernel
from obert_modifiers.runtime.memory import Memory, Tiles
from obert_modifiers.runtime.model import Norm, Output
from obert_modifiers.runtime.packing import Packing
from obert_modifiers.runtime.prepared import Prepared, ReadyLayer, seconds, shares_rows
from obert_modifiers.runtime.team import Parts, Team
from obert_modifiers.runtime.weights import Linear, Packed

Part = tuple[int, int]  # which of how many
# Adds what a part of a tile needs to a program.
Phase = Callable[[Program, int, Part], None]
_WORTH_DIVIDING = 2e-5  # seconds of a layer of the head; below, one thread has it
_QUANTIZE = Kernel("quantize")
_NORM, _NORM_BYTES = Kernel("norm", ("floats",)), Kernel("norm", ("bytes",))


class Group:
    """Tiles of sentences, and the phases of a layer over them.

    Threads take tiles where there are as many for each, and else parts of the rows of
    each weight and of the heads. All of it is one program for each thread.

    Args:
        prepared: The model.
        packing: The sentences; T as the registers say.
        registers: Of tokens in a tile.
        memory: Where arrays come from.
        team: The threads.
        threads: How many of them take part.
    """

    def __init__(
        self,
        prepared: Prepared,
        packing: Packing,
        registers: int,
        memory: Memory,
        team: Team,
        threads: int,
    ) -> None:
        self._prepared, self._packing = prepared, packing
        self._parts = Parts(prepared.library(registers), team, threads)
        self._memory, self._threads = memory, threads
        self._tokens = tokens = prepared.path.lanes * registers
        self._tiles = packing.tiles
        self._shared = shares_rows(self._tiles, threads)
        about = prepared.about
        self._width, self._heads = about["hidden"], about["heads"]
        inner = about["intermediate"]
        tiles, width = self._tiles, self._width
        self._hidden = self._take(tiles, width)
        self._bytes = self._take(tiles, width, np.uint8)
        number = max((layer.number_bytes for layer in prepared.layers), default=4)
        whole = width * tokens
        self._projected = [
            Tiles(memory((tiles, number * whole), np.uint8)) for _ in range(3)
        ]
        self._wholes = {2: 2 * whole, 4: 4 * whole}  # bytes of a tile's numbers
        # Tiles that are not computed at the same time have the same memory.
        workers = tiles if self._shared else min(tiles, threads)
        self._context = self._take(workers, width)
        self._middle = self._take(workers, inner)
        self._sums = self._take(workers, max(inner, width))
        keys = int((packing.ranges[:, 1] - packing.ranges[:, 0]).max(initial=0))
        self._scores = self._take(workers * (self._heads if self._shared else 1), keys)
        self._attended, self._own = packing.keys.ctypes.data, packing.own.ctypes.data
        self._ranges = packing.ranges.tolist()

    def _take(self, count: int, features: int, dtype: type = np.float32) -> Tiles:
        return Tiles(self._memory((count, features, self._tokens), dtype))

    # -- the whole

    def encode(self, inputs: Sequence[np.ndarray]) -> None:
        """Compute the last layer's output from the slots' ids, types and positions."""
        self._embed(inputs)
        layers = self._prepared.layers
        if layers:
            self._for_tiles(lambda to, t, _: self._round_first(to, layers[0], t))
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            self._layer(layer, after)

    def _layer(self, layer: ReadyLayer, after: ReadyLayer | None) -> None:
        phases: list[tuple[Phase, bool]] = [  # and whether it can be divided
            (lambda to, t, part: self._attend(to, layer, t, part), True),
            (lambda to, t, part: self._output(to, layer, t, part), True),
            (lambda to, t, _: self._middle_norm(to, layer, t), False),
            (lambda to, t, part: self._up(to, layer, t, part), True),
            (lambda to, t, part: self._down(to, layer, t, part), True),
            (lambda to, t, _: self._last_norm(to, layer, after, t), False),
        ]
        self._for_tiles(lambda to, t, part: self._project(to, layer, t, part), True)
        if self._shared:
            for phase, divided in phases:
                self._for_tiles(phase, divided)
            return

        def every(to: Program, t: int, part: Part) -> None:
            for phase, _ in phases:
                phase(to, t, part)

        self._parts.meet()  # a tile attends to the keys of others
        self._for_tiles(every)
        self._parts.meet()

    def output(self, output: Output) -> np.ndarray:
        """Return features, ``(sentences, n)`` or of all tokens ``(tokens, n)``."""
        tokens, packing = self._tokens, self._packing
        if output.first:
            self._parts.run()
            where = np.arange(len(packing.rows))
            shape = (-(-len(where) // tokens), self._width, tokens)
            tiles = Tiles(self._memory(shape, np.float32))
            tiles.array[:] = 0
            hidden, starts = self._hidden.array, packing.starts
            chosen = hidden[starts // tokens, :, starts % tokens]
            tiles.array[where // tokens, :, where % tokens] = chosen
        else:
            tiles, where = self._hidden, packing.slots
        for kind, name, *rest in output.steps:
            if kind == "norm":
                if tiles is self._hidden:
                    self._parts.run()
                    tiles = Tiles(tiles.array.copy())
                self._norm_all(tiles, self._prepared.model.norms[name])
            else:
                tiles = self._linear(self._prepared.model.linears[name], tiles, rest[0])
        self._parts.run()
        return tiles.array[where // tokens, :, where % tokens]

    def _for_tiles(self, phase: Phase, divided: bool = False) -> None:
        """Add a phase for each tile."""
        parts = self._threads if self._shared and divided else 1
        self._for_each(phase, self._tiles, parts)
        if self._shared:
            self._parts.meet()

    def _for_each(self, phase: Phase, count: int, parts: int = 1) -> None:
        programs = self._parts.programs
        for t in range(count):
            for i in range(parts):
                to = programs[i if parts > 1 else t % self._threads]
                phase(to, t, (i, parts))

    # -- before and behind the layers

    def _embed(self, inputs: Sequence[np.ndarray]) -> None:
        prepared, model = self._prepared, self._prepared.model
        narrow = prepared.about["embedding"]
        own = self._hidden
        if model.project is not None:
            own = self._take(self._tiles, narrow)
        tables = [table.ctypes.data for table, _ in model.tables.values()]
        scales = [scale for _, scale in model.tables.values()]
        starts = [one.ctypes.data for one in inputs]

        def work(to: Program, t: int, _: Part) -> None:
            places = [start + 4 * t * self._tokens for start in starts]
            to.add(prepared.embed, *places, *tables, narrow, own[t], *scales)
            self._norm(to, own[t], model.embedding_norm)

        self._for_tiles(work)
        if model.project is not None:
            self._hidden = self._linear(model.project, own, "none")

    def _linear(self, layer: Linear, tiles: Tiles, activation: str) -> Tiles:
        """Compute the ``rows`` features of tiles of ``columns`` floats."""
        packed = self._prepared.packed(layer)
        kernel = self._prepared.plain(layer, activation)
        count = len(tiles)
        found = self._take(count, packed.rows)  # where sums of chunks wait, too
        source = tiles
        if packed.grid is not None:
            source = self._take(count, packed.columns, np.uint8)
            self._for_each(
                lambda to, t, _: self._round(to, packed, tiles[t], source[t]), count
            )
        long = seconds(packed.kept, count * self._tokens) >= _WORTH_DIVIDING
        parts = self._threads if count < self._threads and long else 1
        if parts > 1:
            self._parts.meet()

        def work(to: Program, t: int, part: Part) -> None:
            rows = _rows(packed.rows, part)
            place = found[t]
            to.add(kernel, source[t], *packed.addresses, place, *rows, place, 0.0, 0.0)

        self._for_each(work, count, parts)
        if parts > 1:
            self._parts.meet()
        return found

    def _norm_all(self, tiles: Tiles, norm: Norm) -> None:
        self._for_each(lambda to, t, _: self._norm(to, tiles[t], norm), len(tiles))

    # -- phases of a layer; in each, tile t of the group

    def _round_first(self, to: Program, layer: ReadyLayer, t: int) -> None:
        self._round(to, layer.linears["query"], self._hidden[t], self._bytes[t])

    def _round(self, to: Program, packed: Packed, tile: int, out: int) -> None:
        if packed.grid is not None:
            step, zero = packed.grid
            to.add(_QUANTIZE, tile, out, packed.columns, 1.0 / step, zero)

    def _project(self, to: Program, layer: ReadyLayer, t: int, part: Part) -> None:
        """Compute queries, keys and values."""
        shared = layer.linears["query"].grid
        whole = self._wholes[layer.number_bytes]
        for name, array in zip(("query", "key", "value"), self._projected, strict=True):
            packed = layer.linears[name]
            source = self._hidden[t] if packed.grid is None else self._bytes[t]
            if packed.grid not in (None, shared):  # its own rounding of the same input
                source = self._take(1, self._width, np.uint8)[0]
                self._round(to, packed, self._hidden[t], source)
            out = array.start + whole * t
            self._call(to, layer, name, source, t, part, out, layer.grids.get(name))

    def _attend(self, to: Program, layer: ReadyLayer, t: int, part: Part) -> None:
        heads = _rows(self._heads, part, 1)
        if heads[0] == heads[1]:
            return
        worker = self._worker(t)
        place = worker * self._heads + heads[0] if self._shared else worker
        query, keys, values = (one.start for one in self._projected)
        to.add(
            layer.attention,
            query + self._wholes[layer.number_bytes] * t,
            keys,
            values,
            self._attended,
            self._own + 4 * t * self._tokens,
            *self._ranges[t],
            self._width,
            self._width // self._heads,
            *heads,
            self._scores[place],
            self._context[worker],
            *layer.constants,
        )

    def _output(self, to: Program, layer: ReadyLayer, t: int, part: Part) -> None:
        source, out = self._context[self._worker(t)], self._hidden[t]
        self._call(to, layer, "output", source, t, part, out)

    def _middle_norm(self, to: Program, layer: ReadyLayer, t: int) -> None:
        self._norm(
            to, self._hidden[t], layer.norms[0], layer.linears["up"], self._bytes[t]
        )

    def _up(self, to: Program, layer: ReadyLayer, t: int, part: Part) -> None:
        floats = layer.linears["up"].grid is None
        source = self._hidden[t] if floats else self._bytes[t]
        out = self._middle[self._worker(t)]
        self._call(to, layer, "up", source, t, part, out, layer.linears["down"].grid)

    def _down(self, to: Program, layer: ReadyLayer, t: int, part: Part) -> None:
        source, out = self._middle[self._worker(t)], self._hidden[t]
        self._call(to, layer, "down", source, t, part, out)

    def _last_norm(
        self, to: Program, layer: ReadyLayer, after: ReadyLayer | None, t: int
    ) -> None:
        following = None if after is None else after.linears["query"]
        self._norm(to, self._hidden[t], layer.norms[1], following, self._bytes[t])

    def _worker(self, t: int) -> int:
        return t if self._shared else t % self._threads

    def _call(
        self,
        to: Program,
        layer: ReadyLayer,
        name: str,
        source: int,
        t: int,
        part: Part,
        out: int,
        grid: tuple[float, int] | None = None,
    ) -> None:
        packed = layer.linears[name]
        step, zero = grid or (1.0, 0)
        to.add(
            layer.kernels[name],
            source,
            *packed.addresses,
            self._sums[self._worker(t)],
            *_rows(packed.rows, part),
            out,
            1.0 / step,
            zero,
        )

    def _norm(
        self,
        to: Program,
        tile: int,
        norm: Norm,
        after: Packed | None = None,
        out: int = 0,
    ) -> None:
        """Normalise in place, and round to the grid of the layer that comes after."""
        grid = None if after is None else after.grid
        step, zero = grid or (1.0, 0)
        width = len(norm.gain)
        to.add(
            _NORM if grid is None else _NORM_BYTES,
            tile,
            *norm.addresses,
            out,
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
