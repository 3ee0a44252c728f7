"""2:4 sparse weights as a GPU's sparse tensor cores take them: values and metadata.

Of every four neighbours along the input two values are written, and for each its place
among the four in two bits. The file is written and read on a CPU; `sparsify_` makes
``torch.sparse.to_sparse_semi_structured`` weights of it on a GPU.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from obert_modifiers.deploy.formats import container
from obert_modifiers.deploy.formats.format import Exported, Options
from obert_modifiers.deploy.grid import from_grid, to_grid
from obert_modifiers.deploy.run_folder import (
    RunFolder,
    copy_along,
    read_run,
)

FILE_NAME = "torch24.safetensors"
KIND, VERSION = "obert_modifiers.torch24", 1
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
# What rows and columns are multiples of in torch.sparse, so that both of its backends
# take the weight: cuSPARSELt wants (16, 16) in half precision, CUTLASS (32, 64); in
# float32 there is CUTLASS alone, with 1:2 in place of 2:4, which is not written here.
MULTIPLES = (32, 64)
_M, _N = 4, 2


class Torch24(container.Folder):
    """Values and metadata of 2:4 weights, in ``torch24.safetensors``."""

    name, pattern, kind = "torch24", FILE_NAME, KIND

    def write(self, run: Path, out: Path, options: Options) -> Exported:
        found = export_torch24(run, out)
        return Exported(found.path, found.size_bytes)

    def load(self, path: Path) -> dict[str, Tensor]:
        return load_torch24(path)


@dataclass(frozen=True)
class Torch24Export:
    """What was written."""

    path: Path  # the folder
    file: Path  # the weights in it
    size_bytes: int  # size of that file
    dense_bytes: int  # the same weights with their zeros, in the run's dtype
    sparse_weights: tuple[str, ...]  # names of the weights that are written as 2:4


def export_torch24(
    run_dir: Path, out: Path, *, dtype: str = "float16"
) -> Torch24Export:
    """Write a run's 2:4 weights as values and metadata, and the others whole.

    Which weights are 2:4 is seen from their zeros. A quantized model's weights are
    rounded to their grids and written in floating point, with ``quantization.json``
    beside them.

    Args:
        run_dir: The output folder of a run.
        out: The folder that is written; made where it is missing.
        dtype: ``float16`` or ``bfloat16``, in which GPUs compute 2:4, or ``float32``;
            of the matrices. Biases and norms, which are small, stay as they are: in
            half precision they would move a quantized model's activations over the
            borders of their steps.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no run in the folder.
        ValueError: If no weight is 2:4, the shape of one does not fit, or a number is
            too large for the dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype={dtype} is unknown; expected one of {', '.join(DTYPES)}; use "
            "float16"
        )
    run, out = read_run(Path(run_dir)), Path(out)
    # Rounded to its grid a weight is still on it in half precision: 127 steps of 8 bits
    # against 11 bits, or 8 bits of bfloat16, where the farthest are a quarter step off.
    whole = run.tensors | {
        name: from_grid(to_grid(run.tensors[name], scale), scale)
        for name, scale in run.scales.items()
    }
    cast = {name: _cast(name, one, dtype) for name, one in whole.items()}
    sparse = sparse_names(run)
    copy_along(run.path, out)
    stored: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    for name, tensor in cast.items():
        if name in sparse:
            values, meta = compress(tensor)
            stored |= {f"{name}.values": values, f"{name}.meta": meta}
        else:
            stored[f"{name}.values"] = tensor.contiguous()
        entries[name] = {"shape": list(tensor.shape), "sparse": name in sparse}
    path = out / FILE_NAME
    container.write(path, KIND, VERSION, stored, entries)
    _check(path, cast)
    return Torch24Export(
        path=out,
        file=path,
        size_bytes=path.stat().st_size,
        dense_bytes=run.dense_bytes,
        sparse_weights=tuple(sparse),
    )


def sparse_names(run: RunFolder) -> list[str]:
    """Find the weights of a run that are 2:4 along their input."""
    found = [name for name, tensor in run.tensors.items() if is_24(tensor)]
    if not found:
        raise ValueError(
            f"run={run.path} has no 2:4 weight; expected two zeros in every four "
            "neighbours along the input; prune with mask_type: 2:4, or export with "
            "--format safetensors"
        )
    high, wide = MULTIPLES
    unfit = [
        f"{name} {tuple(run.tensors[name].shape)}"
        for name in found
        if run.tensors[name].shape[0] % high or run.tensors[name].shape[1] % wide
    ]
    if unfit:
        raise ValueError(
            f"{len(unfit)} 2:4 weights of run={run.path} have shapes that sparse tensor"
            f" cores do not take: {', '.join(unfit)}; expected rows that are a multiple"
            f" of {high} and columns of {wide}; leave them out of the recipe's params, "
            "or export with --format safetensors"
        )
    return found


def is_24(tensor: Tensor) -> bool:
    """Tell matrices of at most two in every four neighbours of a row by their zeros."""
    if tensor.ndim != 2 or tensor.numel() == 0 or tensor.shape[1] % _M:
        return False
    kept = (tensor != 0).reshape(-1, _M).sum(dim=1)
    return int(kept.max()) <= _N


def compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Write a 2:4 weight as values and metadata.

    Where fewer than two of four are not zero, zeros fill up: one that is -0.0 first,
    then the foremost. `weight` is ``(rows, columns)``, columns a multiple of 8.

    Returns:
        The values ``(rows, columns / 2)``, and two bits for each, its place among its
        four, four in a byte with the first in the lowest bits: uint8 ``(rows, columns /
        8)``.
    """
    rows, columns = weight.shape
    fours = weight.reshape(rows, columns // _M, _M)
    rank = torch.where(fours != 0, 0, torch.where(torch.signbit(fours), 1, 2))
    places = rank.argsort(dim=-1, stable=True)[..., :_N].sort(dim=-1).values
    values = fours.gather(-1, places).reshape(rows, columns // 2)
    bits = places.reshape(rows, columns // 8, 4).to(torch.uint8).numpy()
    meta = bits[..., 0] | bits[..., 1] << 2 | bits[..., 2] << 4 | bits[..., 3] << 6
    return values.contiguous(), torch.from_numpy(meta.astype(np.uint8))


def decompress(values: Tensor, meta: Tensor) -> Tensor:
    """Read a 2:4 weight, ``(rows, columns)``, from what `compress` returned."""
    rows, half = values.shape
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    places = (meta[..., None] >> shifts) & 3  # (rows, columns / 8, 4)
    places = places.reshape(rows, half // _N, _N).to(torch.int64)
    whole = torch.zeros(rows, half // _N, _M, dtype=values.dtype)
    whole.scatter_(-1, places, values.reshape(rows, half // _N, _N))
    return whole.reshape(rows, 2 * half)


def load_torch24(path: Path) -> dict[str, Tensor]:
    """Read the weights as dense tensors, for a CPU or a model that is not sparse.

    Args:
        path: The folder that `export_torch24` wrote, or the file in it.

    Returns:
        Tensors by name, matrices in the dtype of the file, each bit as it was exported;
        in a weight that is 2:4 a third -0.0 among four comes back as 0.0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, foreign, or of a newer version.
    """
    return _read(path)[0]


def sparsify_(model: nn.Module, path: Path, device: str = "cuda") -> list[str]:
    """Make the 2:4 weights of a model sparse on a GPU; changes the model in place.

    The model is moved to the GPU and to the file's dtype. Its weights must be those of
    the file, as ``from_pretrained(None, config=..., state_dict=load_torch24(path))``
    loads them. Not run on a GPU by this package's tests where there is none.

    Args:
        model: The model, not quantized.
        path: The folder that `export_torch24` wrote.
        device: The GPU.

    Returns:
        Names of the weights that are sparse now.

    Raises:
        ValueError: If there is no such GPU, the dtype is float32, or a sparse weight
            is not that of a linear layer of the model.
    """
    dense, names = _read(path)
    dtype = dense[names[0]].dtype
    if dtype == torch.float32:
        raise ValueError(
            f"dtype=float32 of {path} is not computed 2:4 by GPUs; expected float16 or "
            "bfloat16; export it again with one of them"
        )
    if not torch.cuda.is_available():
        raise ValueError(
            f"device={device} is not there; expected an NVIDIA GPU with sparse tensor "
            "cores (compute capability 8.0 or higher); load_torch24 gives dense weights"
            " on a CPU"
        )
    layers = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        layer = dict(model.named_modules()).get(owner)
        if type(layer) is not nn.Linear or leaf != "weight":
            raise ValueError(
                f"{name} of {path} belongs to no plain linear layer of "
                f"{type(model).__name__}; expected the model that was exported, without"
                " quantization; load that one"
            )
        layers[name] = layer
    model.to(device=device, dtype=dtype).eval()
    with warnings.catch_warnings():
        # torch calls its sparse tensors a prototype, once.
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructured")
        for name, layer in layers.items():
            weight = dense[name].to(device)
            sparse = torch.sparse.to_sparse_semi_structured(weight)
            layer.weight = nn.Parameter(sparse, requires_grad=False)
    return list(layers)


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    tensors, entries = container.read(path, FILE_NAME, KIND, VERSION)
    dense = {}
    for name in entries:
        values = tensors[f"{name}.values"]
        meta = tensors.get(f"{name}.meta")
        dense[name] = values if meta is None else decompress(values, meta)
    return dense, [name for name in entries if entries[name]["sparse"]]


def _cast(name: str, tensor: Tensor, dtype: str) -> Tensor:
    if not tensor.is_floating_point() or tensor.ndim < 2:
        return tensor
    found = tensor.to(DTYPES[dtype])
    if not torch.equal(found.isfinite(), tensor.isfinite()):
        raise ValueError(
            f"dtype={dtype} does not hold the numbers of {name}, up to "
            f"{tensor.abs().max().item():.3g}; expected a wider range; use bfloat16"
        )
    return found


def _check(path: Path, wanted: dict[str, Tensor]) -> None:
    for name, tensor in load_torch24(path).items():
        if not torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(wanted[name])):
            raise RuntimeError(
                f"{name} of {path} does not read as it was written; expected the same "
                "numbers; report this with the run"
            )


FORMAT = Torch24()
