"""2:4 sparse weights as a GPU's sparse tensor cores take them: values and metadata.

Of every four neighbours along the input two values are written, and for each its place
among the four in two bits. The file is written and read on a CPU; `sparsify_` makes
``torch.sparse.to_sparse_semi_structured`` weights of it on a GPU.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.deploy.formats import container
from obert_modifiers.deploy.formats.format import Options
from obert_modifiers.deploy.grid import from_grid, to_grid
from obert_modifiers.deploy.registry import check_known
from obert_modifiers.deploy.run_folder import RunFolder, copy_along, read_run

FILE_NAME = "torch24.safetensors"
KIND, VERSION = "obert_modifiers.torch24", 1
DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32")}
# What rows and columns are multiples of in torch.sparse, so that both of its backends
# take the weight: cuSPARSELt wants (16, 16) in half precision, CUTLASS (32, 64). In
# float32 there is only CUTLASS, with 1:2 in place of 2:4, which is not written here.
MULTIPLES = (32, 64)
_M, _N = 4, 2
_SHIFTS = torch.tensor([0, 2, 4, 6])  # of four places in a byte


@dataclass(frozen=True, kw_only=True)
class Torch24Export(container.ExportedFolder):
    """What was written."""

    sparse_weights: tuple[str, ...]  # names of the weights that are written as 2:4


class Torch24(container.Folder):
    """Values and metadata of 2:4 weights, in ``torch24.safetensors``."""

    name, pattern, kind = "torch24", FILE_NAME, KIND

    def write(self, run: Path, out: Path, options: Options) -> Torch24Export:
        return export_torch24(run, out)

    def load(self, path: Path) -> dict[str, Tensor]:
        return load_torch24(path)


def export_torch24(
    run_dir: Path, out: Path, *, dtype: str = "float16"
) -> Torch24Export:
    """Write a run's 2:4 weights as values and metadata, and the others whole.

    Which weights are 2:4 is seen from their zeros. A quantized model's weights are
    rounded to their grids and written in floating point, with ``quantization.json``
    beside them. `dtype` is that of the matrices; GPUs compute 2:4 in float16 and
    bfloat16. Biases and norms stay as they are: in half precision they would move a
    quantized model's activations over the borders of their steps.
    """
    check_known("dtype", dtype, DTYPES, "use float16")
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
        values = tensor.contiguous()
        if name in sparse:
            values, stored[f"{name}.meta"] = compress(tensor)
        stored[f"{name}.values"] = values
        entries[name] = {"shape": list(tensor.shape), "sparse": name in sparse}
    path = out / FILE_NAME
    container.write(path, KIND, VERSION, stored, entries)
    container.check_written(path, load_torch24(path), cast, _same_numbers)
    return Torch24Export(
        path=out,
        size_bytes=path.stat().st_size,
        file=path,
        dense_bytes=run.dense_bytes,
        sparse_weights=tuple(sparse),
    )


def sparse_names(run: RunFolder) -> list[str]:
    """Find the weights of a run that are 2:4 along their input."""
    shapes = {name: tuple(one.shape) for name, one in run.tensors.items() if is_24(one)}
    if not shapes:
        raise ValueError(
            f"run={run.path} has no 2:4 weight; expected two zeros in every four "
            "neighbours along the input; prune with mask_type: 2:4"
        )
    high, wide = MULTIPLES
    unfit = [f"{n} {s}" for n, s in shapes.items() if s[0] % high or s[1] % wide]
    if unfit:
        raise ValueError(
            f"run={run.path} has 2:4 weights of shapes that sparse tensor cores do not "
            f"take: {', '.join(unfit)}; expected rows that are a multiple of {high} and"
            f" columns of {wide}; leave them out of the recipe's params"
        )
    return list(shapes)


def is_24(tensor: Tensor) -> bool:
    """Tell matrices of at most two in every four neighbours of a row by their zeros."""
    if tensor.ndim != 2 or tensor.numel() == 0 or tensor.shape[1] % _M:
        return False
    kept = (tensor != 0).reshape(-1, _M).sum(dim=1)
    return int(kept.max()) <= _N


def compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Write a 2:4 weight ``(rows, columns)`` as values and metadata.

    Where fewer than two of four are not zero, zeros fill up: one that is -0.0 first,
    then the foremost. Columns are a multiple of 8. The values are ``(rows, columns /
    2)``; the metadata, uint8 ``(rows, columns / 8)``, has two bits for each, its place
    among its four, with the first in the lowest bits.
    """
    rows, columns = weight.shape
    fours = weight.reshape(rows, columns // _M, _M)
    rank = torch.where(fours != 0, 0, torch.where(torch.signbit(fours), 1, 2))
    places = rank.argsort(dim=-1, stable=True)[..., :_N].sort(dim=-1).values
    values = fours.gather(-1, places).reshape(rows, columns // 2)
    meta = (places.reshape(rows, columns // 8, 4) << _SHIFTS).sum(-1)
    return values.contiguous(), meta.to(torch.uint8)


def decompress(values: Tensor, meta: Tensor) -> Tensor:
    """Read a 2:4 weight, ``(rows, columns)``, from what `compress` returned."""
    rows, half = values.shape
    places = (meta[..., None] >> _SHIFTS) & 3  # (rows, columns / 8, 4)
    places = places.reshape(rows, half // _N, _N)
    whole = torch.zeros(rows, half // _N, _M, dtype=values.dtype)
    whole.scatter_(-1, places, values.reshape(rows, half // _N, _N))
    return whole.reshape(rows, 2 * half)


def load_torch24(path: Path) -> dict[str, Tensor]:
    """Read the weights as dense tensors, from a folder or its file.

    Matrices have the dtype of the file, and each bit as it was exported; only a third
    -0.0 among four comes back as 0.0.
    """
    return _read(path)[0]


def sparsify_(model: nn.Module, path: Path, device: str = "cuda") -> list[str]:
    """Make the 2:4 weights of a model sparse on a GPU; changes the model in place.

    The model, which is not quantized, is moved to the GPU and to the file's dtype. Its
    weights must be those of the file, as ``from_pretrained(None, config=...,
    state_dict=load_torch24(path))`` loads them. Returns the names of the sparse ones.
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
            "cores (compute capability 8.0 or higher); use load_torch24 on a CPU"
        )
    modules, layers = dict(model.named_modules()), {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        layers[name] = modules.get(owner)
        if type(layers[name]) is not nn.Linear or leaf != "weight":
            raise ValueError(
                f"{name} of {path} is of no plain linear layer of "
                f"{type(model).__name__}; expected the model that was exported, without"
                " quantization; load that one"
            )
    model.to(device=device, dtype=dtype).eval()
    with warnings.catch_warnings():
        # torch calls its sparse tensors a prototype, once.
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructured")
        for name, layer in layers.items():
            weight = dense[name].to(device)
            sparse = torch.sparse.to_sparse_semi_structured(weight)
            layer.weight = nn.Parameter(sparse, requires_grad=False)
    return names


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read dense tensors, and the names of those that are 2:4."""
    tensors, entries = container.read(path, FILE_NAME, KIND, VERSION)
    dense = {name: tensors[f"{name}.values"] for name in entries}
    sparse = [name for name, entry in entries.items() if entry["sparse"]]
    for name in sparse:
        dense[name] = decompress(dense[name], tensors[f"{name}.meta"])
    return dense, sparse


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


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


FORMAT = Torch24()
