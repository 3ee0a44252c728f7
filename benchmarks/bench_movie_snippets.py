"""Dense, GMP★ and oBERT on all of movie_snippets, mean and spread over seeds.

The quickstart with every training sentence: the same recipes, the same teacher, three
seeds (of the head, the order of samples, dropout and the gradient samples), trained in
mixed bfloat16 precision. About 45 minutes on 2 cores with AMX; ``--quick`` runs one
seed on 512 sentences in about three.

    python benchmarks/bench_movie_snippets.py --json FILE [--seeds 0 1 2] [--quick]
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from rich.console import Console

from obert_modifiers.cli.progress import Reporter
from obert_modifiers.quickstart import FIGURES, Settings, run

ALL_SENTENCES = 9072
QUICK_SENTENCES = 512


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the figures of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, help="keep the runs in this folder")
    parser.add_argument("--quick", action="store_true", help="one seed, few sentences")
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    sentences = QUICK_SENTENCES if arguments.quick else ALL_SENTENCES
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.output_dir or Path(scratch)
        rows = []
        for seed in seeds:
            summary = run(
                folder / f"seed{seed}",
                seed=seed,
                settings=Settings(sentences=sentences, bf16=True),
                reporter=Reporter(Console(), bar=False),
            )
            rows += [
                {"method": name, "seed": seed, "sentences": sentences, **figures}
                for name, figures in summary.items()
            ]
            if arguments.json:  # after every seed: a long run may be stopped
                arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    for line in table(rows):
        print(line)


def table(rows: list[dict]) -> list[str]:
    """Format mean and spread of each method as Markdown.

    Args:
        rows: One dict per run with ``method``, ``seed`` and the figures.

    Returns:
        The lines of the table; the spread is the sample standard deviation.
    """
    lines = [
        "| | seeds | " + " | ".join(FIGURES) + " |",
        "|---|---|" + "---|" * len(FIGURES),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = []
        for figure in FIGURES:
            values = [row[figure] for row in own]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        lines.append(f"| {method} | {len(own)} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
