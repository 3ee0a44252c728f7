"""Formats that engines compute: written, then compared with the run."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from obert_modifiers.deploy.checks import compare
from obert_modifiers.deploy.engines import ENGINES
from obert_modifiers.deploy.formats.format import (
    Exported,
    Format,
    Options,
    check_int8,
)
from obert_modifiers.deploy.onnx.saturation import describe
from obert_modifiers.deploy.run import Run, load_run
from obert_modifiers.deploy.weight import Weight
from obert_modifiers.sizes import plain_bytes

if TYPE_CHECKING:
    from obert_modifiers.deploy.onnx.export import OnnxExport


class Graph(Format):
    """A graph that engines read."""

    is_graph = True

    def write(self, run: Path, out: Path, options: Options) -> Exported:
        if out.is_dir():
            raise ValueError(
                f"out={out} is a folder; expected the name of a file; write "
                f"{out / self.default_out(run, options).name}"
            )
        loaded = load_run(run)
        check_int8(options, run, loaded.quantized)
        found = self.export(loaded, out, options)
        facts = (*_facts(found), self._compared(loaded, found, options))
        return Exported(found.path, plain_bytes(self.files(found.path)), facts)

    @abstractmethod
    def export(self, run: Run, out: Path, options: Options) -> "OnnxExport":
        """Write a run that was loaded."""

    @abstractmethod
    def engine(self, options: Options) -> str:
        """Name the engine that a new file is compared on."""

    @abstractmethod
    def weights(self, files: Sequence[Path]) -> list[Weight]: ...

    def _compared(self, run: Run, found: "OnnxExport", options: Options) -> str:
        """Compare a file with its run; one that computes something else is removed."""
        fix = "report this model's class"
        if found.shape is None:
            fix = f"fix its sizes with --shape BATCHxLENGTH, or {fix}"
        if options.integer_bias:
            fix = "leave out --integer-bias, which is less exact"
        int8, engine = found.int8_weights > 0, self.engine(options)
        try:
            return compare(run.model, run.sample(), found.path, engine, int8, fix)
        except BaseException:
            for file in self.files(found.path):
                file.unlink()
            raise


def _facts(found: "OnnxExport") -> list[str]:
    """Say what a user wants to know of a file."""
    count, size = found.int8_weights, "any batch size and sequence length"
    if found.shape is not None:
        size = "only batch size {} and sequence length {}".format(*found.shape)
    facts = [f"{count} weights as INT8" if count else "all weights in float32", size]
    if found.saturating:
        facts.append(
            f"{len(found.saturating)} layers have sums beyond 16 bits, which INT8 "
            f"kernels without VNNI cannot hold: {describe(found.saturating)}; "
            f"{ENGINES[found.target].target.saturating_note}; train with reduce_range: "
            "true in QATModifier, where none can"
        )
    if found.integer_products:
        facts.append(f"{found.integer_products} products of integers")
    return facts
