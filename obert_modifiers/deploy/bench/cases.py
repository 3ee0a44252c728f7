"""What is measured: a model on an engine at one size."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from obert_modifiers.deploy.artefact import ONNX, OPENVINO, RUN, find_artefact, names_of
from obert_modifiers.deploy.onnx.file import load_onnx
from obert_modifiers.deploy.onnx.qdq import has_qdq_products
from obert_modifiers.deploy.onnx.shapes import fix_sizes

ENGINES = ("onnxruntime", "openvino", "deepsparse", "torch")
# Which files an engine reads.
_READS = {
    "onnxruntime": (ONNX,),
    "openvino": (ONNX, OPENVINO),
    "deepsparse": (ONNX,),
    "torch": (RUN,),
}


@dataclass(frozen=True)
class Case:
    """A model on an engine at one size.

    Attributes:
        name: What the model is called in tables.
        path: The file, or the run's folder.
        engine: One of :data:`ENGINES`.
        batch: Sequences at once.
        seq: Tokens of each.
        bf16: Let the engine compute floating point in bfloat16 where the CPU can.
        source: What the user named, where `path` was made from it, or None.
    """

    name: str
    path: Path
    engine: str
    batch: int
    seq: int
    bf16: bool = False
    source: Path | None = None

    @property
    def label(self) -> str:
        """Model and engine."""
        return f"{self.name} on {self.engine}{' (bf16)' if self.bf16 else ''}"


@dataclass(frozen=True)
class Plan:
    """What is measured, and what cannot be.

    Attributes:
        cases: In order; the first of each size is what the others are compared with.
        notes: Why a model is left out on an engine.
    """

    cases: tuple[Case, ...]
    notes: tuple[str, ...] = field(default=())


def plan_cases(
    models: Sequence[Path],
    engines: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    folder: Path,
    bf16: bool = False,
) -> Plan:
    """Find what each engine can run of some models; runs are exported for it.

    Args:
        models: Runs' folders, ONNX files and OpenVINO IRs.
        engines: Some of :data:`ENGINES`.
        sizes: Batch size and sequence length of each measurement.
        folder: Where runs are exported to.
        bf16: Let OpenVINO compute floating point in bfloat16.

    Returns:
        The cases.

    Raises:
        ValueError: If an engine is unknown, or no engine can run a model.
        FileNotFoundError: If a model is not there.
    """  # noqa: DOC502  raised by what is called
    for engine in engines:
        if engine not in ENGINES:
            raise ValueError(
                f"--engine={engine} is unknown; expected some of {', '.join(ENGINES)}; "
                "name them with commas"
            )
    cases: list[Case] = []
    notes: list[str] = []
    models = [Path(path) for path in models]
    names = dict(zip(models, names_of(models), strict=True))
    exporter = _Exporter(folder)
    for batch, seq in sizes:
        for path in models:
            found = [
                _case(path, engine, (batch, seq), exporter, notes) for engine in engines
            ]
            cases += [
                replace(
                    one,
                    name=names[path],
                    bf16=bf16 and one.engine == "openvino",
                )
                for one in found
                if one is not None
            ]
            if not any(found):
                raise ValueError(
                    f"model={path} runs on none of {', '.join(engines)}: "
                    f"{'; '.join(dict.fromkeys(notes))}; expected an engine that reads "
                    "it; name another --engine"
                )
    return Plan(tuple(cases), tuple(dict.fromkeys(notes)))


def _case(
    path: Path,
    engine: str,
    size: tuple[int, int],
    exporter: "_Exporter",
    notes: list[str],
) -> Case | None:
    artefact = find_artefact(path)
    name = path.name
    if artefact.kind == RUN:
        file = exporter.file(path, engine, size)
        return Case(name, file, engine, *size, source=path)
    if artefact.kind not in _READS[engine]:
        notes.append(f"{engine} does not read {name} ({artefact.kind})")
        return None
    file = artefact.files[0]
    if artefact.kind != ONNX:
        return Case(name, file, engine, *size)
    model = load_onnx(file)
    if not _fits(model, file.name, engine, size, notes):
        return None
    if engine == "deepsparse":
        # Told the sizes, it writes them into the file that it is given.
        copy = exporter.of_size(model, size)
        return Case(name, copy, engine, *size, source=file)
    return Case(name, file, engine, *size)


def _fits(
    model: onnx.ModelProto,
    name: str,
    engine: str,
    size: tuple[int, int],
    notes: list[str],
) -> bool:
    if engine == "deepsparse" and has_qdq_products(model):
        notes.append(
            f"deepsparse takes the Q and DQ nodes of {name} for floating point, or "
            "ends; export with --target deepsparse"
        )
        return False
    for one in model.graph.input:
        there = [axis.dim_value for axis in one.type.tensor_type.shape.dim]
        if any(a and a != b for a, b in zip(there, size, strict=False)):
            notes.append(
                f"{name} is for batch size and sequence length "
                f"{'x'.join(map(str, there))} alone, not {size[0]}x{size[1]}"
            )
            return False
    return True


class _Exporter:
    """Exports a run once for each engine and size that needs a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._copies = folder, 0
        self._done: dict[tuple[Path, str, tuple[int, int] | None], Path] = {}

    def of_size(self, model: onnx.ModelProto, size: tuple[int, int]) -> Path:
        fix_sizes(model, size)
        self._copies += 1
        out = self._folder / f"copy_{self._copies}.onnx"
        onnx.save(model, out)
        return out

    def file(self, run: Path, engine: str, size: tuple[int, int]) -> Path:
        if engine == "torch":
            return run
        shape = size if engine == "deepsparse" else None
        key = (run.resolve(), engine, shape)
        if key not in self._done:
            from obert_modifiers.deploy.onnx.export import export_onnx
            from obert_modifiers.deploy.run import load_run

            loaded = load_run(run)
            name = f"{len(self._done)}_{engine}.onnx"
            out = self._folder / name
            export_onnx(loaded.model, loaded.sample(), out, engine, shape)
            self._done[key] = out
        return self._done[key]
