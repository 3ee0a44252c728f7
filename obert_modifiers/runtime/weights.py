"""Weights without their zeros: as they are stored, and as a path multiplies them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from obert_modifiers.runtime.kernels import GROUP, blocks_at_once
from obert_modifiers.runtime.paths import Path

_MOST_BLOCKS = 2**16  # a block's number has 16 bits
# Sums of products of 255 and -128 have 32 bits.
_MOST_INT8 = (2**31 - 1) // (255 * 128) // GROUP * GROUP
# Columns of a chunk: a tile of them is of the first-level cache's size.
_CHUNK = {"int8": 768, "float1": 96, "float4": 96}
# Of two bytes times weights in 16 bits: 255 * 128 < 2**15.
_MOST_IN_PAIR = 128


@dataclass(frozen=True)
class Linear:
    """A linear layer.

    Attributes:
        columns: Of the dense weight.
        values: ``(blocks, group)`` weights of the kept blocks, row by row: int8, or
            float32. A block is `group` neighbouring weights of a row.
        blocks: ``(blocks,)`` uint16, their numbers in their rows, ascending.
        counts: ``(rows,)`` uint32, how many each row has.
        scale: ``(1,)`` or ``(rows,)`` float32; of float32 weights None.
        bias: ``(rows,)`` float32.
        grid: Scale and zero point of its input, ``s (q - z)`` with q from 0 to 255;
            of float32 weights None.
    """

    columns: int
    values: np.ndarray
    blocks: np.ndarray
    counts: np.ndarray
    bias: np.ndarray
    scale: np.ndarray | None = None
    grid: tuple[float, int] | None = None

    @property
    def rows(self) -> int:
        """Outputs."""
        return len(self.bias)

    @property
    def group(self) -> int:
        """Weights of a block."""
        return self.values.shape[1]

    @property
    def inputs(self) -> str:
        """The kernel's name for what it multiplies."""
        return "int8" if self.grid is not None else f"float{self.group}"

    def dense(self) -> np.ndarray:
        """Return the weight with its zeros, ``(rows, columns)``, int8 or float32."""
        count = self.columns // self.group
        whole = np.zeros((self.rows * count, self.group), self.values.dtype)
        row = np.repeat(np.arange(self.rows), self.counts)
        whole[row * count + self.blocks] = self.values
        return whole.reshape(self.rows, self.columns)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return what a file holds of it."""
        found = {
            "values": self.values,
            "blocks": self.blocks,
            "counts": self.counts,
            "bias": self.bias,
        }
        if self.scale is not None:
            found["scale"] = self.scale
        return {f"{name}.{part}": one for part, one in found.items()}

    def spec(self) -> dict[str, Any]:
        """Return what a file says of it."""
        return {"columns": self.columns, "grid": self.grid}

    @classmethod
    def read(
        cls, name: str, spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> "Linear":
        """Read what a file holds; whatever it holds, no kernel reads beyond it.

        Raises:
            ValueError: If it does not fit together.
        """
        parts = {
            part: arrays.get(f"{name}.{part}")
            for part in ("values", "blocks", "counts", "bias", "scale")
        }
        grid = spec["grid"]
        found = cls(columns=spec["columns"], grid=grid and tuple(grid), **parts)
        found.check(name)
        return found

    def check(self, name: str) -> None:
        """Raise a ValueError where the parts do not fit together."""
        kinds = {
            "values": ("int8" if self.grid is not None else "float32", 2),
            "blocks": ("uint16", 1),
            "counts": ("uint32", 1),
            "bias": ("float32", 1),
        }
        if self.grid is not None:
            kinds["scale"] = ("float32", 1)
        for part, (dtype, ndim) in kinds.items():
            one = getattr(self, part)
            if one is None or one.dtype.name != dtype or one.ndim != ndim:
                raise ValueError(
                    f"{name}.{part} is not {ndim}-dimensional {dtype}; expected what "
                    "`obert export` writes; export the run again"
                )
        fits = (
            self.group in ((GROUP,) if self.grid is not None else (1, GROUP))
            and self.columns % GROUP == 0
            and (self.grid is None or self.columns <= _MOST_INT8)
            and len(self.counts) == self.rows > 0
            and len(self.blocks) == len(self.values) == int(self.counts.sum())
            and (not len(self.blocks) or self.blocks.max() < self.columns // self.group)
            and (self.scale is None or len(self.scale) in (1, self.rows))
        )
        if not fits:
            raise ValueError(
                f"{name} has parts that do not fit together; expected what `obert "
                "export` writes; export the run again"
            )
        numbers = [self.bias, self.values, self.scale]
        if not all(np.isfinite(one).all() for one in numbers if one is not None):
            raise ValueError(
                f"{name} holds infinite numbers or NaN; expected numbers; train the "
                "model again"
            )
        if self.grid is not None:
            check_grid(name, self.grid)


def check_grid(name: str, grid: tuple[float, int]) -> None:
    """Raise a ValueError where a scale and zero point are none of 8 bits."""
    step, zero = grid
    if not (0 < step < math.inf and zero in range(256)):
        raise ValueError(
            f"{name} has the scale {step} and the zero point {zero}; expected a number "
            "above 0 and 0 to 255; train the model again"
        )


def from_dense(
    weight: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray | None = None,
    grid: tuple[float, int] | None = None,
) -> Linear:
    """Leave out the blocks of a weight that are zero.

    Args:
        weight: ``(rows, columns)``, int8 or float32.
        bias: ``(rows,)`` float32.
        scale: ``(1,)`` or ``(rows,)`` float32, of an int8 weight.
        grid: Scale and zero point of the input of an int8 weight.

    Returns:
        The layer. Float32 weights are stored one by one where less than four fifths
        of those in blocks that hold any are not zero.
    """
    rows, columns = weight.shape
    cut = weight.reshape(rows, -1, GROUP)
    kept = (cut != 0).any(2)
    group = GROUP
    if weight.dtype != np.int8 and np.count_nonzero(weight) < 0.8 * GROUP * kept.sum():
        group, cut = 1, weight.reshape(rows, -1, 1)
        kept = cut[:, :, 0] != 0
    most = _MOST_BLOCKS * group if grid is None else _MOST_INT8
    if columns > most:
        raise ValueError(
            f"columns={columns} of a weight are too many; expected at most {most}; "
            "use another format"
        )
    return Linear(
        columns=columns,
        values=np.ascontiguousarray(cut[kept]),
        blocks=np.nonzero(kept)[1].astype(np.uint16),
        counts=kept.sum(1).astype(np.uint32),
        bias=bias.astype(np.float32),
        scale=None if scale is None else scale.astype(np.float32).reshape(-1),
        grid=grid,
    )


class Packed:
    """A layer as a path's kernels take it; its arrays outlive the addresses."""

    def __init__(self, layer: Linear, path: Path) -> None:
        self.rows, self.columns = layer.rows, layer.columns
        self.inputs, self.grid = layer.inputs, layer.grid
        self.kept = layer.values.size
        values, blocks = layer.values, layer.blocks
        row = np.repeat(np.arange(layer.rows), layer.counts)
        width = _CHUNK[layer.inputs] // layer.group
        self.chunks = max(1, -(-layer.columns // layer.group // width))
        # Row after row of the first chunk, then of the second.
        place = blocks.astype(np.int64) // width * layer.rows + row
        if self.chunks > 1:
            order = np.argsort(place, kind="stable")
            values, blocks, place = values[order], blocks[order], place[order]
        counts = np.bincount(place, minlength=self.chunks * layer.rows)
        if blocks_at_once(path, layer.inputs) == 2:
            values, blocks, counts = pair(values, blocks, counts)
        starts = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=starts[1:])
        scale = np.ones(layer.rows, np.float32)
        bias = layer.bias
        if layer.grid is not None:
            step, zero = layer.grid
            scale = layer.scale.astype(np.float64) * step * np.ones(layer.rows)
            sums = np.bincount(row, layer.values.astype(np.int64).sum(1), layer.rows)
            # SDOT multiplies bytes less 128.
            offset = zero - 128 if path.name == "sdot" else zero
            bias = layer.bias - scale * offset * sums
        self._arrays = [
            np.ascontiguousarray(values),
            np.ascontiguousarray(blocks, np.uint16),
            starts,
            np.ascontiguousarray(scale, np.float32),
            np.ascontiguousarray(bias, np.float32),
        ]
        self.addresses = [one.ctypes.data for one in self._arrays]
        self.addresses += [self.chunks, self.rows]
        self.size_bytes = sum(one.nbytes for one in self._arrays)


def pair(
    values: np.ndarray, blocks: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put blocks of a row in pairs whose products with bytes add up within 16 bits.

    A 16-bit lane gets two weights of each block of a pair. The positive among those
    four must add up to 128 at most, and so must the negative; a block that is too
    large by itself becomes two halves. The largest goes with the smallest, or with
    zeros if even that is too much.

    Args:
        values: ``(blocks, 4)`` int8.
        blocks: ``(blocks,)`` their numbers.
        counts: ``(rows,)`` how many each row has.

    Returns:
        The same three with two blocks for each pair.
    """
    rows = np.repeat(np.arange(len(counts)), counts)
    values = values.astype(np.int16)
    large = _lanes(values).max(1, initial=0) > _MOST_IN_PAIR
    half = values[large] >> 1
    values = np.concatenate([
        np.where(large[:, None], values >> 1, values),
        values[large] - half,
    ])
    blocks = np.concatenate([blocks, blocks[large]])
    rows = np.concatenate([rows, rows[large]])
    sizes = _lanes(values)
    order = np.lexsort((blocks, -sizes.max(1, initial=0), rows))
    values, blocks, rows, sizes = (x[order] for x in (values, blocks, rows, sizes))
    counts = np.bincount(rows, minlength=len(counts))
    stops = np.cumsum(counts)
    low, high = stops - counts, stops - 1  # the largest and the smallest that are left
    firsts, seconds = [], []
    while True:
        at = np.nonzero(low <= high)[0]
        if not len(at):
            break
        i, j = low[at], high[at]
        fits = (i < j) & ((sizes[i] + sizes[j]).max(1) <= _MOST_IN_PAIR)
        firsts.append(i)
        seconds.append(np.where(fits, j, -1))
        low[at] += 1
        high[at] -= fits
    if not firsts:
        return values.astype(np.int8), blocks, counts
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    order = np.argsort(rows[first], kind="stable")
    first, second = first[order], second[order]
    alone = second < 0
    both = np.stack([first, np.where(alone, first, second)], 1).reshape(-1)
    found = values[both].astype(np.int8)
    found[1::2][alone] = 0
    return found, blocks[both], 2 * np.bincount(rows[first], minlength=len(counts))


def _lanes(values: np.ndarray) -> np.ndarray:
    """Add up the positive and the negative of two neighbours, ``(blocks, 4)``."""
    lanes = values.reshape(-1, 2, 2)
    positive, negative = np.maximum(lanes, 0).sum(2), np.maximum(-lanes, 0).sum(2)
    return np.concatenate([positive, negative], 1)
