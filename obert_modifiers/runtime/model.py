"""A sparse model as a file describes it, checked before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from obert_modifiers.runtime import file
from obert_modifiers.runtime.kernels import ACTIVATIONS, GROUP
from obert_modifiers.runtime.weights import Linear, check_grid

PARTS = ("query", "key", "value", "output", "up", "down")
TABLES = ("words", "types", "positions")
_ENDS = (("mean",), ("unit",))  # steps that come last
_PRODUCTS = ("query", "key", "probabilities", "value")


@dataclass(frozen=True)
class Norm:
    """Gain and bias of a layer normalisation, ``(features,)`` float32."""

    gain: np.ndarray
    bias: np.ndarray

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Where both stand."""
        return self.gain.ctypes.data, self.bias.ctypes.data


@dataclass(frozen=True)
class Layer:
    """An encoder layer.

    Attributes:
        linears: By the names of `PARTS`.
        norms: After attention, and after the two feed-forward layers.
        grids: Scale and zero point of the inputs of attention's two products, by
            ``query``, ``key``, ``probabilities`` and ``value``; None where they are
            floats.
    """

    linears: Mapping[str, Linear]
    norms: tuple[Norm, Norm]
    grids: Mapping[str, tuple[float, int]] | None


@dataclass(frozen=True)
class Output:
    """What is computed from the last layer.

    Attributes:
        names: Of the outputs; of several each is one feature.
        first: Whether it is made of the first token of a sentence, else of each token.
        steps: ``("linear", name, activation)`` or ``("norm", name)``, in order.
        ends: What comes of them: ``mean``, over the tokens of a sentence that are
            attended to, and ``unit``, for the length 1.
    """

    names: tuple[str, ...]
    first: bool
    steps: tuple[tuple[str, ...], ...]
    ends: tuple[str, ...] = ()

    @property
    def of_sentence(self) -> bool:
        """Whether there is one for a sentence, not for each token."""
        return self.first or "mean" in self.ends


@dataclass(frozen=True)
class Model:
    """Everything that a file holds."""

    about: Mapping[str, Any]  # sizes and names
    tables: Mapping[str, tuple[np.ndarray, float]]  # and their scales, 1 for floats
    embedding_norm: Norm
    project: Linear | None  # from the embeddings' width to the hidden size
    layers: tuple[Layer, ...]
    linears: Mapping[str, Linear]  # of the outputs
    norms: Mapping[str, Norm]
    outputs: tuple[Output, ...]
    texts: Mapping[str, Any]  # of an embedder: length, lower and prompt, if it has them

    def all_linears(self) -> list[Linear]:
        """List every linear layer."""
        found = [one for layer in self.layers for one in layer.linears.values()]
        found += self.linears.values()
        return found if self.project is None else [self.project, *found]


def read(path: Path) -> Model:
    """Read and check a file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, of another version, or does not fit together.
    """
    spec, arrays = file.read(path)
    try:
        return _model(spec, arrays)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"file={path} lacks {error}; expected what `obert export --format sparse` "
            "writes; export the run again"
        ) from error
    except ValueError as error:
        raise ValueError(f"file={path}: {error}") from error


def _model(spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Model:
    about = spec["model"]
    described, offset = spec["linears"], about["position_offset"]
    hidden, inner, narrow = (about[n] for n in ("hidden", "intermediate", "embedding"))
    if about["activation"] not in ACTIVATIONS:
        raise ValueError(f"activation={about['activation']} is unknown")
    _check(about["heads"] > 0 and hidden % about["heads"] == 0, "heads", about["heads"])
    _check(hidden // about["heads"] % GROUP == 0, "heads", about["heads"])
    for name in ("hidden", "intermediate", "embedding"):
        _check(about[name] > 0 and about[name] % GROUP == 0, name, about[name])
    for name in ("vocab", "types", "positions"):
        _check(about[name] > 0, name, about[name])
    _check(0 <= offset < about["positions"], "position_offset", offset)
    _check(not offset or 0 <= about["pad"] < about["positions"], "pad", about["pad"])

    def linear(name: str, rows: int | None, columns: int) -> Linear:
        found = Linear.read(name, described[name], arrays)
        if found.columns != columns or rows not in (None, found.rows):
            raise ValueError(
                f"{name} is {found.rows} by {found.columns}; expected {rows or 'any'} "
                f"by {columns}; export the run again"
            )
        return found

    def norm(name: str, width: int) -> Norm:
        parts = [arrays[f"{name}.{part}"] for part in ("gain", "bias")]
        for part in parts:
            fits = part.shape == (width,) and part.dtype == np.float32
            fits = fits and width % GROUP == 0  # computed so many at a time
            _check(fits and np.isfinite(part).all(), name, part.shape)
        return Norm(*parts)

    sizes = {
        part: (hidden if part != "up" else inner, hidden if part != "down" else inner)
        for part in PARTS
    }
    layers = []
    for i, grids in enumerate(spec["attention"]):
        name = f"layers.{i}"
        if grids is not None:
            grids = {
                part: (float(grids[part][0]), grids[part][1]) for part in _PRODUCTS
            }
            for part, grid in grids.items():
                check_grid(f"{name}.{part}", grid)
            _check(grids["probabilities"][1] == 0, name, grids["probabilities"])
        layers.append(
            Layer(
                {p: linear(f"{name}.{p}", *sizes[p]) for p in PARTS},
                (norm(f"{name}.norm0", hidden), norm(f"{name}.norm1", hidden)),
                grids,
            )
        )
    _check(len(layers) == about["layers"], "layers", about["layers"])
    tables = {}
    for name, count in zip(TABLES, ("vocab", "types", "positions"), strict=True):
        table, scale = arrays[f"tables.{name}"], spec["tables"][name]
        kind = "float32" if scale is None else "int8"
        fits = table.shape == (about[count], narrow) and table.dtype.name == kind
        _check(fits and np.isfinite(table).all(), name, table.shape)
        tables[name] = (table, 1.0 if scale is None else float(scale))
    linears: dict[str, Linear] = {}
    norms: dict[str, Norm] = {}
    outputs = []
    for one in spec["outputs"]:
        every = [tuple(step) for step in one["steps"]]
        ends = tuple(step[0] for step in every if step in _ENDS)
        steps = tuple(step for step in every if step not in _ENDS)
        width = hidden
        for kind, name, *rest in steps:
            if kind == "norm":
                norms[name] = norm(name, width)
                continue
            _check(kind == "linear" and rest[0] in ACTIVATIONS, name, kind)
            linears[name] = linear(name, None, width)
            width = linears[name].rows
        for kind, *_ in steps[1:]:  # between steps features come in blocks
            _check(kind in ("norm", "linear"), "step", kind)
        _check(len(one["names"]) in (1, width), "outputs", one["names"])
        outputs.append(Output(tuple(one["names"]), bool(one["first"]), steps, ends))
    project = linear("project", hidden, narrow) if "project" in described else None
    _check(project is not None or narrow == hidden, "embedding", narrow)
    return Model(
        about,
        tables,
        norm("embedding_norm", narrow),
        project,
        tuple(layers),
        linears,
        norms,
        tuple(outputs),
        _texts(spec.get("texts") or {}),
    )


def _texts(told: Mapping[str, Any]) -> Mapping[str, Any]:
    length, prompt = told.get("length"), told.get("prompt")
    fits = length is None or (isinstance(length, int) and length > 0)
    _check(fits, "texts.length", length)
    _check(prompt is None or isinstance(prompt, str), "texts.prompt", prompt)
    return {"length": length, "prompt": prompt, "lower": bool(told.get("lower"))}


def _check(fits: bool, name: str, value: Any) -> None:
    if not fits:
        raise ValueError(
            f"{name}={value} does not fit the model; expected what `obert export` "
            "writes; export the run again"
        )
