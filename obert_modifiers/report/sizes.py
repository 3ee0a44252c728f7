"""Sizes as the papers give them: weights that remain, MB, gzip MB, compression ratio.

oBERT's Table 17 has the size of the gzipped model and its ratio to the dense one, Table
6 the unpruned weights of the encoder; sparsity is that of the encoder's linear weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from obert_modifiers.deploy.artefact import find_artefact
from obert_modifiers.report.text import NONE, percent
from obert_modifiers.sizes import MB, gzip_bytes, plain_bytes

HEAD = (
    *("model", "format", "parameters", "non-zero", "encoder weights", "non-zero"),
    *("sparsity", "MB", "gzip MB", "ratio"),
)


@dataclass(frozen=True)
class Sizes:
    """How large a model is."""

    model: str  # what was measured
    kind: str  # its format
    parameters: int  # numbers in the file, a shared weight once
    parameters_nonzero: int
    prunable: int  # weights of the encoder's linear layers
    prunable_nonzero: int
    bytes: int  # of its files with weights
    gzip_bytes: int
    ratio: float | None = None  # gzipped bytes of the reference over those of this

    @property
    def sparsity(self) -> float | None:
        """Share of zeros among the prunable weights, None without any."""
        return 1.0 - self.prunable_nonzero / self.prunable if self.prunable else None

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON, in bytes and in MB."""
        return asdict(self) | {
            "sparsity": self.sparsity,
            "mb": self.bytes / MB,
            "gzip_mb": self.gzip_bytes / MB,
        }

    def cells(self) -> list[str]:
        """Return the texts of a table's row below `HEAD`."""
        return [
            self.model,
            self.kind,
            f"{self.parameters:,}",
            f"{self.parameters_nonzero:,}",
            f"{self.prunable:,}",
            f"{self.prunable_nonzero:,}",
            percent(self.sparsity),
            f"{self.bytes / MB:.1f}",
            f"{self.gzip_bytes / MB:.1f}",
            NONE if self.ratio is None else f"{self.ratio:.2f}x",
        ]


def measure(path: Path, known: tuple[int, int] | None = None) -> Sizes:
    """Measure a run's folder or an exported file.

    `known` are its bytes as they were measured once, plain and gzipped; taken where the
    files still have as many.
    """
    artefact = find_artefact(path)
    weights = artefact.weights()
    prunable = [weight for weight in weights if weight.prunable]
    size = plain_bytes(artefact.files)
    same = known is not None and known[0] == size
    return Sizes(
        model=str(path),
        kind=artefact.kind,
        parameters=sum(weight.count for weight in weights),
        parameters_nonzero=sum(weight.nonzero for weight in weights),
        prunable=sum(weight.count for weight in prunable),
        prunable_nonzero=sum(weight.nonzero for weight in prunable),
        bytes=size,
        gzip_bytes=known[1] if same else gzip_bytes(artefact.files),
    )


def measure_all(
    paths: Sequence[Path],
    reference: Path | None = None,
    known: Mapping[Path, tuple[int, int]] | None = None,
) -> list[Sizes]:
    """Measure models beside a reference, the first of them unless given.

    A reference that is not among them comes first in what is returned.
    """
    if reference is not None and reference not in paths:
        paths = [reference, *paths]
    found = [measure(path, (known or {}).get(path)) for path in paths]
    if len(found) < 2:
        return found
    base = found[0 if reference is None else paths.index(reference)].gzip_bytes
    return [replace(sizes, ratio=base / sizes.gzip_bytes) for sizes in found]
