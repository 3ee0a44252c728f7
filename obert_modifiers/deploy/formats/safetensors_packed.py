"""A run's weights without their zeros: masks and values in one safetensors file.

Each tensor is cut into tiles (1 x 1 for unstructured masks, 1 x 4 for ``block4``); a
mask tells which tiles hold anything, and the tiles that do follow one another. The
weights of a model that QATModifier trained are INT8 with their scales.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from obert_modifiers.core.quantization.scales import FILE_NAME as SCALES
from obert_modifiers.deploy.formats import container, mask_code
from obert_modifiers.deploy.formats.format import Options, check_int8
from obert_modifiers.deploy.grid import from_grid, to_grid
from obert_modifiers.deploy.run_folder import copy_along, read_run

FILE_NAME = "packed.safetensors"
KIND, VERSION = "obert_modifiers.packed", 1
# Rows by columns; a tile that the mask was not made of takes more values, and so is not
# chosen.
TILES = (
    *((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32)),
    *((2, 1), (4, 1), (8, 1), (16, 1), (32, 1)),
    *((2, 2), (4, 4), (8, 8), (16, 16), (32, 32)),
)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class PackedExport(container.ExportedFolder):
    """What was written."""

    # What entropy allows: the kept values, and n * H(s) bits for the mask of each
    # tensor with n weights of which a share s is pruned.
    bound_bytes: int
    tensors: int  # how many there are
    int8_weights: int  # how many of them are stored as INT8


class Packed(container.Folder):
    """Masks and values, in ``packed.safetensors``."""

    name, pattern, kind = "safetensors", FILE_NAME, KIND
    takes = frozenset({"int8"})

    def default_out(self, run: Path, options: Options) -> Path:
        return run / "export" / "packed"

    def write(self, run: Path, out: Path, options: Options) -> PackedExport:
        check_int8(options, run, (run / SCALES).is_file())
        return export_packed(run, out)

    def load(self, path: Path) -> dict[str, Tensor]:
        return load_packed(path)


def export_packed(run_dir: Path, out: Path, *, int8: bool = True) -> PackedExport:
    """Write a run's weights packed, with its configuration, tokenizer and recipe.

    Every bit of a weight comes back: -0.0, NaN and all dtypes too. Of a quantized
    model the weights are INT8, and what comes back is the weight that the model
    computes with, rounded to its grid; the outputs keep their bits. ``int8=False``
    keeps its floating-point weights.
    """
    run, out = read_run(Path(run_dir)), Path(out)
    copy_along(run.path, out)
    stored: dict[str, Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    wanted: dict[str, Tensor] = {}
    bound = 0.0
    for name, tensor in run.tensors.items():
        takes_grid = int8 and tensor.dtype == torch.float32
        scale = run.scales.get(name) if takes_grid else None
        values, wanted[name], kept = tensor, tensor, _bits(tensor) != 0
        if scale is not None:
            values = to_grid(tensor, scale)
            wanted[name] = from_grid(values, scale)
            stored[f"{name}.scale"] = scale
        parts, entries[name] = pack(values, kept)
        entries[name]["int8"] = scale is not None
        stored |= {f"{name}.{part}": one for part, one in parts.items()}
        count = int(np.count_nonzero(kept))
        bound += count * values.element_size() * 8
        bound += mask_code.entropy_bits(kept.size, count)
    path = out / FILE_NAME
    container.write(path, KIND, VERSION, stored, entries)
    container.check_written(path, load_packed(path), wanted, _same_bits)
    return PackedExport(
        path=out,
        size_bytes=path.stat().st_size,
        file=path,
        dense_bytes=run.dense_bytes,
        bound_bytes=round(bound / 8),
        tensors=len(entries),
        int8_weights=sum(entry["int8"] for entry in entries.values()),
    )


def load_packed(path: Path) -> dict[str, Tensor]:
    """Read packed weights as they were, zeros included, from a folder or its file.

    Those that were INT8 come back in float32, on their grids. A shared weight is there
    once, as in a saved model; ``from_pretrained`` ties it again.
    """
    tensors, entries = container.read(path, FILE_NAME, KIND, VERSION)
    found = {}
    for name, entry in entries.items():
        values = unpack(tensors[f"{name}.values"], tensors.get(f"{name}.mask"), entry)
        scale = tensors.get(f"{name}.scale")
        found[name] = values if scale is None else from_grid(values, scale)
    return found


def pack(values: Tensor, kept: np.ndarray) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Leave out the tiles of a tensor that are pruned."""
    shape, size = tuple(values.shape), values.element_size()
    best = None
    for tile in TILES[:1] if kept.all() else TILES:
        if not _fits(shape, tile):
            continue
        tiles = _tiled(kept, shape, tile).any(axis=(-2, -1)).reshape(-1)
        total = int(np.count_nonzero(tiles)) * tile[0] * tile[1] * size
        if best is not None and total >= best[0]:
            continue
        code, mask_size = mask_code.choose(tiles)
        total += mask_size
        if best is None or total < best[0]:
            best = total, tile, tiles, code
    _, tile, tiles, code = best
    bits = _tiled(_bits(values), shape, tile).reshape(-1, *tile)[tiles]
    parts = {"values": _values(bits.reshape(-1), values.dtype)}
    if code.kind != mask_code.ALL:
        parts["mask"] = torch.from_numpy(mask_code.encode(tiles, code))
    return parts, {"shape": shape, "tile": tile, "mask": code.as_dict()}


def unpack(values: Tensor, mask: Tensor | None, entry: Mapping[str, Any]) -> Tensor:
    """Put what `pack` left out back as zeros."""
    shape, (high, wide) = tuple(entry["shape"]), entry["tile"]
    rows, columns = _matrix(shape)
    down, across = rows // high, columns // wide
    code = mask_code.MaskCode(**entry["mask"])
    stream = np.zeros(0, np.uint8) if mask is None else mask.numpy()
    kept = mask_code.decode(stream, code, down * across)
    bits = _bits(values)
    whole = np.zeros((down * across, high, wide), bits.dtype)
    whole[kept] = bits.reshape(-1, high, wide)
    whole = whole.reshape(down, across, high, wide).transpose(0, 2, 1, 3)
    return _values(whole.reshape(-1), values.dtype).reshape(shape)


def _bits(tensor: Tensor) -> np.ndarray:
    # Any dtype as whole numbers, (numel,): comparing those compares bits.
    flat = tensor.contiguous().reshape(-1)
    return flat.view(_BITS[tensor.element_size()]).numpy()


def _values(bits: np.ndarray, dtype: torch.dtype) -> Tensor:
    if bits.size == 0:
        return torch.empty(0, dtype=dtype)
    return torch.from_numpy(np.ascontiguousarray(bits)).view(dtype)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    columns = shape[-1] if shape else 1
    return int(np.prod(shape[:-1], dtype=np.int64)), columns


def _fits(shape: tuple[int, ...], tile: tuple[int, int]) -> bool:
    rows, columns = _matrix(shape)
    return tile == (1, 1) or (rows % tile[0] == 0 and columns % tile[1] == 0)


def _tiled(
    flat: np.ndarray, shape: tuple[int, ...], tile: tuple[int, int]
) -> np.ndarray:
    rows, columns = _matrix(shape)
    high, wide = tile
    cut = flat.reshape(rows // high, high, columns // wide, wide)
    return cut.transpose(0, 2, 1, 3)  # (rows / high, columns / wide, high, wide)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and np.array_equal(_bits(one), _bits(other))


FORMAT = Packed()
