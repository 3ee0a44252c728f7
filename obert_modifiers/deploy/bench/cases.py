"""What is measured: a model on an engine at one size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from obert_modifiers.deploy.artefact import RUN, Artefact, find_artefact, names_of
from obert_modifiers.deploy.engines import ENGINES
from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.deploy.formats.format import Options
from obert_modifiers.deploy.onnx.file import load_onnx
from obert_modifiers.deploy.onnx.shapes import fix_sizes

Size = tuple[int, int]  # batch size and sequence length


@dataclass(frozen=True)
class Case:
    """A model on an engine at one size."""

    name: str  # what the model is called in tables
    path: Path  # the file, or the run's folder
    engine: str  # what computes it
    batch: int  # sequences at once
    seq: int  # tokens of each
    # Let the engine compute floating point in bfloat16 where the CPU can.
    bf16: bool = False
    # What the user named, where `path` was made from it, or None.
    source: Path | None = None

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

    Raises:
        ValueError: If an engine is unknown, or no engine can run a model.
        FileNotFoundError: If a model is not there.
    """
    for engine in engines:
        if engine not in ENGINES:
            raise ValueError(
                f"--engine={engine} is unknown; expected some of {', '.join(ENGINES)}; "
                "name them with commas"
            )
    models = [Path(path) for path in models]
    names = dict(zip(models, names_of(models), strict=True))
    artefacts = {path: find_artefact(path) for path in models}
    files = _Files(folder)
    cases: list[Case] = []
    for size in sizes:
        for path in models:
            before = len(cases)
            for engine in engines:
                file = files.of(artefacts[path], engine, size)
                if file is None:
                    continue
                known = artefacts[path]
                source = known.files[0] if known.is_graph else path
                source = None if file in known.files else source
                half = bf16 and ENGINES[engine].bf16
                cases.append(Case(names[path], file, engine, *size, half, source))
            if len(cases) == before:
                raise ValueError(
                    f"model={path} runs on none of {', '.join(engines)}: "
                    f"{'; '.join(dict.fromkeys(files.notes))}; expected an engine that "
                    "reads it; name another --engine"
                )
    return Plan(tuple(cases), tuple(dict.fromkeys(files.notes)))


class _Files:
    """What each engine reads of a model; exported once for each that needs its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[Path, str, Size | None], Path] = {}
        self.notes: list[str] = []

    def of(self, artefact: Artefact, engine: str, size: Size) -> Path | None:
        """Return the file for an engine; a note says why there is none."""
        reads, name = ENGINES[engine].reads, artefact.path.name
        if not artefact.is_graph:
            return self._exported(artefact, engine, size)
        if artefact.kind not in reads:
            self.notes.append(f"{engine} does not read {name} ({artefact.kind})")
            return None
        file = artefact.files[0]
        if artefact.kind != "onnx":
            return file
        model = load_onnx(file)
        note = ENGINES[engine].refusal(model, file.name) or _misfit(model, file, size)
        if note:
            self.notes.append(note)
            return None
        target = ENGINES[engine].target
        if target is None or not target.fixed:
            return file
        fix_sizes(model, size)
        onnx.save(model, copy := self._new(f"{engine}.onnx"))
        self._made[file, engine, size] = copy
        return copy

    def _exported(self, artefact: Artefact, engine: str, size: Size) -> Path | None:
        target = ENGINES[engine].target
        if RUN in ENGINES[engine].reads:
            return self._run(artefact)
        run = self._run(artefact)
        key = (run.resolve(), engine, size if target and target.fixed else None)
        if key not in self._made and target is None:
            form = FORMATS[ENGINES[engine].reads[0]]
            written = form.write(run, self._new(form.name), Options())
            self._made[key] = written.path
        elif key not in self._made:
            from obert_modifiers.deploy.onnx.export import export_onnx
            from obert_modifiers.deploy.run import load_run

            loaded, out = load_run(run), self._new(f"{engine}.onnx")
            export_onnx(loaded.model, loaded.sample(), out, engine, key[2])
            self._made[key] = out
        return self._made[key]

    def _run(self, artefact: Artefact) -> Path:
        if artefact.kind == RUN:
            return artefact.path
        key = (artefact.path.resolve(), RUN, None)
        if key not in self._made:
            self._made[key] = artefact.as_run(self._new(RUN))
        return self._made[key]

    def _new(self, name: str) -> Path:
        return self._folder / f"{len(self._made)}_{name}"


def _misfit(model: onnx.ModelProto, file: Path, size: Size) -> str | None:
    """Say which size a file is for, where it is for another one."""
    for one in model.graph.input:
        there = [axis.dim_value for axis in one.type.tensor_type.shape.dim]
        if any(a and a != b for a, b in zip(there, size, strict=False)):
            return (
                f"{file.name} is for batch size and sequence length "
                f"{'x'.join(map(str, there))} alone, not {size[0]}x{size[1]}"
            )
    return None
