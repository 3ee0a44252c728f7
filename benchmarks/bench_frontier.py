"""Loss after pruning against seconds: what a second-order event should be made of.

The fine-tuned embedded encoder is pruned once, by greedy selection with joint update,
without any training after; one thing at a time is changed: samples of a gradient over
the same sentences, gradients, block width, precision of the sums, recomputations.

    python benchmarks/bench_frontier.py --json FILE [--datasets movie_snippets sst2]
        [--seeds 0 1 2] [--data FOLDER] [--plot FILE.png]
    python benchmarks/bench_frontier.py --quick

The file is written after every row, and rows that it holds are not measured again. The
seconds of a row are those of its whole event on its own, the least over the seeds.
"""

import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import _common as common
import _encoder as encoder
from _oneshot import OURS, FisherOptions, Job
from bench_oneshot import measure
from matplotlib.figure import Figure

SENTENCES = 1024
GOALS = (("unstructured", 0.7), ("unstructured", 0.8), ("unstructured", 0.9))
GOALS += (("block4", 0.8),)
SHOWN = ("unstructured", 0.8)
BATCHES = FisherOptions(num_grads=128, grad_granularity="batch", batch_samples=8)


def fishers() -> list[FisherOptions]:
    """List what the Fisher is collected from.

    Returns:
        Options, each once.
    """
    narrow = replace(BATCHES, fisher_dtype="float32")
    wide = [replace(BATCHES, fisher_block_size=96)]
    wide.append(replace(narrow, fisher_block_size=128))
    same = [
        replace(BATCHES, batch_samples=k, num_grads=SENTENCES // k) for k in (2, 4, 16)
    ]
    fewer = [replace(BATCHES, num_grads=m) for m in (32, 64, 256)]
    other = [replace(BATCHES, fisher_block_size=width) for width in (32, 64)]
    return [FisherOptions(), BATCHES, *wide, *same, *fewer, *other, narrow]


def jobs(quick: bool) -> list[Job]:
    """List what is measured.

    Args:
        quick: True for a short list.

    Returns:
        The rows, those that share a Fisher together.
    """
    if quick:
        small = (replace(BATCHES, num_grads=8), FisherOptions(num_grads=64))
        return [Job(OURS, *SHOWN, fisher) for fisher in small]
    found = [Job(OURS, *goal, fisher) for fisher in fishers() for goal in GOALS]
    return found + [
        Job(OURS, *goal, BATCHES, num_recomputations=count)
        for count in (2, 4)
        for goal in GOALS
    ]


def label(row: dict[str, Any]) -> str:
    """Name what a row's Fisher was made of.

    Args:
        row: A row of the results.

    Returns:
        Such as ``128 x 8, B 48``.
    """
    by_batch = row["grad_granularity"] == "batch"
    words = [f"{row['num_grads']} x {row['batch_samples'] if by_batch else 1}"]
    words.append(f"B {row['fisher_block_size']}")
    if row["fisher_dtype"] != "float64":
        words.append(row["fisher_dtype"])
    if row["num_recomputations"] > 1:
        words.append(f"{row['num_recomputations']} recomputations")
    return ", ".join(words)


def grouped(rows: list[dict[str, Any]]) -> dict[str, dict[tuple, list[dict]]]:
    """Bring the seeds of a row together.

    Args:
        rows: Rows of one data set.

    Returns:
        By label, and by pattern and sparsity.
    """
    found: dict[str, dict[tuple, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[label(row)][row["pattern"], row["sparsity"]].append(row)
    return found


def table(result: dict[str, Any]) -> list[str]:
    """Write the rows as Markdown.

    Args:
        result: What `measure` returns.

    Returns:
        Lines: accuracy / loss, mean and sample standard deviation over the seeds.
    """
    lines = []
    for name, dense in result["dense"].items():
        rows = [row for row in result["rows"] if row["dataset"] == name]
        goals = [
            g for g in GOALS if any((r["pattern"], r["sparsity"]) == g for r in rows)
        ]
        lines += [
            "",
            f"{name}, dense {dense['accuracy']:.3f} / {dense['loss']:.3f}",
            "",
        ]
        heads = [f"{pattern} {100 * sparsity:.0f} %" for pattern, sparsity in goals]
        lines.append("| gradients x samples | " + " | ".join(heads) + " | seconds |")
        lines.append("|---" * (len(goals) + 2) + "|")
        for text, cells in grouped(rows).items():
            shown = [
                " / ".join(
                    common.mean_and_spread([row[key] for row in cells[goal]], 3)
                    for key in ("accuracy", "loss")
                )
                if goal in cells
                else ""
                for goal in goals
            ]
            seconds = [row["seconds"] for found in cells.values() for row in found]
            lines.append(f"| {text} | {' | '.join(shown)} | {min(seconds):.1f} |")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw loss against seconds at one sparsity.

    Args:
        result: What `measure` returns.
        path: The picture.
    """
    names = list(result["dense"])
    figure = Figure(figsize=(6.4 * len(names), 4.8), layout="constrained")
    for axes, name in zip(
        figure.subplots(1, len(names), squeeze=False)[0], names, strict=True
    ):
        rows = [row for row in result["rows"] if row["dataset"] == name]
        for text, cells in grouped(rows).items():
            found = cells.get(SHOWN)
            if found:
                at = min(row["seconds"] for row in found)
                losses = [row["loss"] for row in found]
                middle = statistics.mean(losses)
                spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
                axes.errorbar(at, middle, yerr=spread, fmt="o", color="C0")
                axes.annotate(
                    text,
                    (at, middle),
                    fontsize=7,
                    xytext=(4, 4),
                    textcoords="offset points",
                )
        axes.axhline(result["dense"][name]["loss"], color="0.6", linestyle="--")
        axes.set(
            xlabel="seconds of the event",
            ylabel="validation loss",
            title=f"{name}, {SHOWN[0]} {100 * SHOWN[1]:.0f} %",
        )
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the benchmark."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--datasets", nargs="+", choices=encoder.DATASETS, default=encoder.DATASETS
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--plot", type=Path, help="draw the frontier there")
    arguments = parser.parse_args()
    result = measure(arguments, jobs(arguments.quick), "frontier")
    print("\n".join(table(result)))
    if arguments.plot:
        draw(result, arguments.plot)


if __name__ == "__main__":
    main()
