"""What is measured: a model on an engine at one size."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx

from obert_modifiers.deploy.artefact import RUN, Artefact, find_artefact, names_of
from obert_modifiers.deploy.engines import ENGINES
from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.deploy.formats.format import Options
from obert_modifiers.deploy.onnx.file import load_onnx
from obert_modifiers.deploy.onnx.shapes import fix_sizes
from obert_modifiers.deploy.registry import check_known

Size = tuple[int, int]  # batch size and sequence length


@dataclass(frozen=True)
class Case:
    """A model on an engine at one size."""

    name: str  # what the model is called in tables
    path: Path  # the file, or the run's folder
    engine: str  # what computes it
    batch: int  # sequences at once
    seq: int  # tokens of each
    bf16: bool = False  # let the engine compute floating point in bfloat16
    # What the user named, where `path` was made from it, or None.
    source: Path | None = None
    # Tokens of each sequence where they are padded to `seq`; None for `seq` tokens.
    lengths: tuple[int, ...] | None = None

    @property
    def size(self) -> Size:
        """Batch size and sequence length."""
        return self.batch, self.seq

    @property
    def label(self) -> str:
        """Model and engine."""
        return f"{self.name} on {self.engine}{' (bf16)' if self.bf16 else ''}"


@dataclass(frozen=True)
class Plan:
    """What is measured, and why a model is left out on an engine.

    The first case of each size is what the others are compared with.
    """

    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()


def plan_cases(
    models: Sequence[Path],
    engines: Sequence[str],
    sizes: Sequence[Size],
    folder: Path,
    bf16: bool = False,
) -> Plan:
    """Find what each engine can run of some runs and exported files.

    What an engine needs a file of its own for is written to `folder`.
    """
    for engine in engines:
        check_known("--engine", engine, ENGINES, "name them with commas")
    models = [Path(path) for path in models]
    artefacts = [find_artefact(path) for path in models]
    named = list(zip(names_of(models), artefacts, strict=True))
    files = _Files(folder)
    cases: list[Case] = []
    notes: dict[str, None] = {}  # in order, none twice
    for size in sizes:
        for name, artefact in named:
            before = len(cases)
            named_file = artefact.files[0] if artefact.is_graph else artefact.path
            for engine in engines:
                try:
                    file = files.of(artefact, engine, size)
                except _LeftOut as why:
                    notes[str(why)] = None
                    continue
                source = None if file in artefact.files else named_file
                half = bf16 and ENGINES[engine].bf16
                cases.append(Case(name, file, engine, *size, half, source))
            if len(cases) == before:
                raise ValueError(
                    f"model={artefact.path} runs on none of {', '.join(engines)}: "
                    f"{'; '.join(notes)}; expected an engine that reads it; name "
                    "another --engine"
                )
    return Plan(tuple(cases), tuple(notes))


class _LeftOut(Exception):
    """Why an engine does not get a model."""


class _Files:
    """What each engine reads of a model; exported once for each that needs its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, itertools.count()
        self._run, self._exported = cache(self._make_run), cache(self._export)

    def of(self, artefact: Artefact, engine: str, size: Size) -> Path:
        """Return the file for an engine."""
        kind = artefact.kind if artefact.is_graph else RUN
        reads, target = kind in ENGINES[engine].reads, ENGINES[engine].target
        if not reads and kind != RUN:
            raise _LeftOut(f"{engine} does not read {artefact.path.name} ({kind})")
        if kind == RUN:
            run = self._run(artefact)
            shape = size if target is not None and target.fixed else None
            return run if reads else self._exported(run.resolve(), engine, shape)
        file = artefact.files[0]
        if kind != "onnx":
            return file
        model = load_onnx(file)
        note = ENGINES[engine].refusal(model, file.name) or _misfit(model, file, size)
        if note:
            raise _LeftOut(note)
        if target is None or not target.fixed:
            return file
        fix_sizes(model, size)
        onnx.save(model, copy := self._new(f"{engine}.onnx"))
        return copy

    def _make_run(self, artefact: Artefact) -> Path:
        return artefact.as_run(self._new(RUN))

    def _export(self, run: Path, engine: str, shape: Size | None) -> Path:
        if ENGINES[engine].target is None:
            form = FORMATS[ENGINES[engine].reads[0]]
            try:
                return form.write(run, self._new(form.name), Options()).path
            except ValueError as error:  # of a family that it does not compute
                raise _LeftOut(f"{engine}: {error}") from error
        from obert_modifiers.deploy.onnx.export import export_onnx
        from obert_modifiers.deploy.run import load_run

        loaded, out = load_run(run), self._new(f"{engine}.onnx")
        return export_onnx(loaded.model, loaded.sample(), out, engine, shape).path

    def _new(self, name: str) -> Path:
        return self._folder / f"{next(self._number)}_{name}"


def _misfit(model: onnx.ModelProto, file: Path, size: Size) -> str | None:
    """Say which size a file is for, where it is for another one."""
    for one in model.graph.input:
        there = [axis.dim_value for axis in one.type.tensor_type.shape.dim]
        if any(a and a != b for a, b in zip(there, size, strict=False)):
            return (
                f"{file.name} is only for batch size and sequence length "
                f"{'x'.join(map(str, there))}, not {size[0]}x{size[1]}"
            )
    return None
