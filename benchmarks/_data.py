"""Where the data sets are that are not shipped; what benchmarks and studies share."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA_VARIABLE = "OBERT_SHARED_DATA"


def data_folder(named: Path | None = None) -> Path:
    """Find the folder of the data sets that are not shipped.

    Args:
        named: What the command line says.

    Returns:
        That, or what the environment variable `DATA_VARIABLE` names, or
        ``../shared/data`` beside the checkout; it need not exist.
    """
    if named is None and DATA_VARIABLE in os.environ:
        named = Path(os.environ[DATA_VARIABLE])
    return named or ROOT.parent / "shared" / "data"


def shuffled(
    source: Path, kept: Path, count: int, skip: int = 0, order: int | None = 0
) -> Path:
    """Keep the first rows of a fixed shuffle.

    Args:
        source: A parquet file.
        kept: Where they are written, if they are not there yet.
        count: How many.
        skip: How many come before them.
        order: Seed of the shuffle; None for the file's own order.

    Returns:
        ``kept``.
    """
    if not kept.is_file():
        from datasets import load_dataset  # seconds

        kept.parent.mkdir(parents=True, exist_ok=True)
        rows = load_dataset("parquet", data_files=str(source), split="train")
        rows = rows if order is None else rows.shuffle(seed=order)
        unfinished = kept.with_name(f"{kept.name}.{os.getpid()}")
        part = rows.select(range(skip, min(skip + count, len(rows))))
        part.to_parquet(str(unfinished))
        unfinished.replace(kept)
    return kept
