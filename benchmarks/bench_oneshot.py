"""One-shot pruning of the fine-tuned embedded encoder: which rule keeps most.

Every combination of selection and update, and magnitude beside them, at several
sparsities and patterns, without any fine-tuning after; full validation sets, several
seeds of gradient samples. SparseML's rule is independent selection with independent
update, on our Fisher. The rows with equal gradient samples share one Fisher.

    python benchmarks/bench_oneshot.py --json FILE [--datasets movie_snippets sst2]
        [--seeds 0 1 2] [--parts core samples recomputations extras] [--data FOLDER]
    python benchmarks/bench_oneshot.py --quick
    python benchmarks/bench_oneshot.py --table FILE [FILE ...]

The file is written after every row, and rows that it holds are not measured again, so
that a long run can be split and resumed. ``--table`` measures nothing and prints the
rows of the files as Markdown, mean and sample standard deviation over the seeds.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _common as common
import _encoder as encoder
from _oneshot import (
    METHODS,
    OURS,
    SPARSEML,
    FisherOptions,
    Job,
    OneShot,
    remembered_rankings,
    warm_up,
)
from _table import label, show, table

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)
PATTERNS = {"unstructured": SPARSITIES, "block4": SPARSITIES, "2:4": (0.5,)}
RULES = (SPARSEML, OURS)
PARTS = ("core", "samples", "recomputations", "extras")
QUICK = FisherOptions(num_grads=64)
SAME_DENSE = 1e-3  # loss of the dense model, in two runs


def core() -> list[Job]:
    """List all methods at all sparsities.

    Returns:
        The rows of the part.
    """
    return [
        Job(method, pattern, sparsity)
        for pattern, sparsities in PATTERNS.items()
        for sparsity in sparsities
        for method in METHODS
    ]


def samples() -> list[Job]:
    """List four times the gradients.

    Returns:
        The rows of the part.
    """
    more = FisherOptions(num_grads=4096)
    return [
        replace(job, fisher=more)
        for job in core()
        if job.method in RULES and job.pattern != "block4"
    ]


def recomputations() -> list[Job]:
    """List several sub-steps, each with a fresh Fisher.

    Returns:
        The rows of the part.
    """
    return [
        Job(method, "unstructured", sparsity, num_recomputations=count)
        for count in (4, 8)
        for sparsity in (0.8, 0.9)
        for method in RULES
    ]


def extras() -> list[Job]:
    """List what else may change the Fisher: one option at a time.

    Returns:
        The rows of the part.
    """
    plain = [Job(m, "unstructured", s) for s in (0.7, 0.8) for m in RULES]
    n_m = [Job(method, "2:4", 0.5) for method in RULES]
    fishers = [
        FisherOptions(fisher_block_size=96),
        FisherOptions(fisher_block_size=128),
        FisherOptions(num_grads=128, grad_granularity="batch"),
        FisherOptions(labels="sampled"),
    ]
    dampings = (0.001, 0.1, 1.0)
    rows = [replace(job, fisher=fisher) for fisher in fishers for job in plain]
    rows += [replace(j, damp_fraction=d) for d in dampings for j in plain + n_m]
    return rows + [replace(j, first_order=True) for j in plain if j.method == OURS]


def plan(parts: Iterable[str], quick: bool) -> list[Job]:
    """List what is measured, rows with the same Fisher together.

    Args:
        parts: Some of `PARTS`.
        quick: True for a short list.

    Returns:
        The rows. Rows with one ranking follow each other too, so that it is done once.
    """
    if quick:
        return [Job(method, "unstructured", 0.7, QUICK) for method in METHODS]
    made = {"core": core, "samples": samples, "extras": extras}
    made["recomputations"] = recomputations
    jobs = list(dict.fromkeys(job for part in parts for job in made[part]()))
    first = {job.fisher: place for place, job in reversed(list(enumerate(jobs)))}

    def order(job: Job) -> tuple:
        own = METHODS[job.method] is not None
        selection = METHODS[job.method][0] if own else ""
        ranking = (job.first_order, job.damp_fraction, job.pattern, selection)
        return own, job.num_recomputations, first[job.fisher], *ranking

    return sorted(jobs, key=order)


def load(path: Path | None) -> dict[str, Any]:
    """Read what an earlier run left.

    Args:
        path: Its file, or None.

    Returns:
        The dense models' figures and the rows; empty where there is no file.
    """
    if path is None or not path.is_file():
        return {"dense": {}, "rows": []}
    return json.loads(path.read_text(encoding="utf-8"))


def check_dense(
    before: dict[str, Any], name: str, found: dict[str, float], path: Path
) -> None:
    """Refuse to mix rows of two dense models.

    Args:
        before: What the file holds.
        name: The data set.
        found: Figures of the model at hand.
        path: The file.

    Raises:
        SystemExit: If the file's rows are of another model.
    """
    old = before["dense"].get(name)
    if old is not None and abs(old["loss"] - found["loss"]) > SAME_DENSE:
        raise SystemExit(
            f"dense loss={found['loss']:.4f} on {name} is not that of the rows in "
            f"{path}, {old['loss']:.4f}; expected the same fine-tuned model; give "
            "another --json"
        )


def measure(
    arguments: argparse.Namespace, jobs: list[Job], benchmark: str = "oneshot"
) -> dict[str, Any]:
    """Measure what is missing, and write it row by row.

    Args:
        arguments: The command line.
        jobs: What is wanted.
        benchmark: Its name in the result.

    Returns:
        The dense models' figures and all rows.
    """
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    names = arguments.datasets[:1] if arguments.quick else arguments.datasets
    result = load(arguments.json)
    rows = result["rows"]
    with remembered_rankings() as rankings:
        for name in names:
            dataset = encoder.find(name, arguments.data)
            if dataset is None:
                continue
            model, data = encoder.dense_model(dataset), encoder.task_data(dataset)
            dense = encoder.validation(model, data)
            print(f"{name}, dense: {show(dense)}")
            check_dense(result, name, dense, arguments.json)
            result["dense"].setdefault(name, dense)
            warm_up(model, data, sorted({job.pattern for job in jobs}))
            bench = OneShot(name, model, data, rankings)
            for seed in seeds:
                for row in missing_rows(bench, jobs, seed, rows):
                    rows.append(row)
                    print(
                        f"{label(row)}: {show(row)}, {row['seconds']:.0f} s", flush=True
                    )
                    written = {"benchmark": benchmark, **result, "rows": rows}
                    common.write(arguments.json, written | common.environment())
    return result


def by_identity(rows: list[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    """Find rows by what was measured, without what came out.

    Args:
        rows: Any rows.

    Returns:
        The rows, each once.
    """
    keys = tuple(core()[0].identity("", 0))
    return {tuple(row.get(key) for key in keys): row for row in rows}


def missing_rows(
    bench: OneShot, jobs: list[Job], seed: int, rows: list[dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Measure the rows that are not there, Fisher by Fisher.

    Args:
        bench: The dense model.
        jobs: What is wanted, in order.
        seed: Seed of the gradient samples.
        rows: What is there.

    Yields:
        A row at a time.
    """
    done = set(by_identity(rows))
    wanted = by_identity([job.identity(bench.dataset, seed) for job in jobs])
    left = [job for job, key in zip(jobs, wanted, strict=True) if key not in done]
    shared = None
    for job in left:
        if job.shares and job.fisher != shared:
            shared = job.fisher
            sharing = [j for j in left if j.shares and j.fisher == shared]
            print(bench.collect(sharing, seed), flush=True)
        elif job.num_recomputations > 1:  # needs the memory for its own
            shared = None
            bench.release()
        yield bench.measure(job, seed)
    bench.release()


def main() -> None:
    """Run the benchmark, or print what was measured."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--datasets", nargs="+", choices=encoder.DATASETS, default=encoder.DATASETS
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument(
        "--table", type=Path, nargs="+", help="print these files' rows, no measuring"
    )
    arguments = parser.parse_args()
    if not arguments.table:
        found = measure(arguments, plan(arguments.parts, arguments.quick))
        print("\n".join(table(found["rows"], found["dense"])))
        return
    rows, dense = [], {}
    for path in arguments.table:
        found = load(path)
        rows += found["rows"]
        dense |= found["dense"]
    rows = list(by_identity(rows).values())
    print("\n".join(table(rows, dense)[1:]))


if __name__ == "__main__":
    main()
