"""Sizes as the papers give them: weights that remain, MB, gzip MB, compression ratio.

oBERT's Table 17 has the size of the gzipped model and its ratio to the dense one, Table
6 the unpruned weights of the encoder; sparsity is that of the encoder's linear weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from obert_modifiers.deploy.artefact import find_artefact
from obert_modifiers.deploy.weights import weights_of
from obert_modifiers.sizes import MB, gzip_bytes, plain_bytes

HEAD = (
    "model",
    "format",
    "parameters",
    "non-zero",
    "encoder weights",
    "non-zero",
    "sparsity",
    "MB",
    "gzip MB",
    "ratio",
)


@dataclass(frozen=True)
class Sizes:
    """How large a model is.

    Attributes:
        model: The path that was measured.
        kind: Its format.
        parameters: Numbers in the file, a shared weight once.
        parameters_nonzero: Those that are not zero.
        prunable: Weights of the encoder's linear layers.
        prunable_nonzero: Those that are not zero.
        bytes: Its files with weights.
        gzip_bytes: The same after gzip at level 6.
        ratio: Gzipped bytes of the reference over those of this; None without one.
    """

    model: str
    kind: str
    parameters: int
    parameters_nonzero: int
    prunable: int
    prunable_nonzero: int
    bytes: int
    gzip_bytes: int
    ratio: float | None = None

    @property
    def sparsity(self) -> float | None:
        """Share of zeros among the prunable weights, None without any."""
        if not self.prunable:
            return None
        return 1.0 - self.prunable_nonzero / self.prunable

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON, in bytes and in MB."""
        return asdict(self) | {
            "sparsity": self.sparsity,
            "mb": self.bytes / MB,
            "gzip_mb": self.gzip_bytes / MB,
        }


def measure(path: Path, known: tuple[int, int] | None = None) -> Sizes:
    """Measure one model.

    Args:
        path: A run's folder or an exported file.
        known: Bytes as they were measured once, and gzipped; taken where the files
            still have as many.

    Returns:
        Its sizes, without a ratio.

    Raises:
        FileNotFoundError: If there is no model.
        ValueError: If it is damaged, or none that is known here.
    """  # noqa: DOC502  raised by what is called
    artefact = find_artefact(path)
    weights = weights_of(artefact)
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
    """Measure several models beside one that they are compared with.

    Args:
        paths: Runs' folders and exported files.
        reference: The one that ratios are taken to; the first of several without.
        known: Bytes of some of them, as for `measure`.

    Returns:
        Their sizes; those of a reference that is not among them are the first.

    Raises:
        FileNotFoundError: If there is no model in one of them.
        ValueError: If one is damaged, or none that is known here.
    """  # noqa: DOC502  raised by what is called
    paths = [Path(path) for path in paths]
    if reference is not None and Path(reference) not in paths:
        paths.insert(0, Path(reference))
    found = [measure(path, (known or {}).get(path)) for path in paths]
    if len(found) < 2:
        return found
    chosen = paths[0] if reference is None else Path(reference)
    base = found[paths.index(chosen)].gzip_bytes
    return [replace(one, ratio=base / one.gzip_bytes) for one in found]


def cells(sizes: Sizes) -> list[str]:
    """Format sizes for a table with `HEAD`.

    Args:
        sizes: Of one model.

    Returns:
        One text for each column.
    """
    none = "–"
    return [
        sizes.model,
        sizes.kind,
        f"{sizes.parameters:,}",
        f"{sizes.parameters_nonzero:,}",
        f"{sizes.prunable:,}",
        f"{sizes.prunable_nonzero:,}",
        none if sizes.sparsity is None else f"{100 * sizes.sparsity:.2f} %",
        f"{sizes.bytes / MB:.1f}",
        f"{sizes.gzip_bytes / MB:.1f}",
        none if sizes.ratio is None else f"{sizes.ratio:.2f}x",
    ]
