"""Latency of the exported files of a table's rows, in turns on the same cores."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from obert_modifiers.deploy.bench.cases import Case
from obert_modifiers.deploy.bench.rounds import Effort, measure
from obert_modifiers.runtime.file import FILE_NAME
from studies.runs import Place, machine_name
from studies.tables import Job, Table

COLUMNS = ("task", "row", "run", "engine", "bf16", "batch", "tokens", "p50_ms", "sd_ms")
SPARSE = "sparse"
COLUMNS += ("batches", "cores", "commit", "versions", "machine")


def lengths_of(place: Place, job: Job, count: int) -> list[int]:
    """Count the tokens of the first validation samples; of one, the median of 32."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from obert_modifiers.tasks.data.columns import GLUE_COLUMNS

    words = place.words(job.run)
    file = words[words.index("--validation_file") + 1]
    most = int(words[words.index("--max_seq_length") + 1])
    rows = load_dataset("parquet", data_files=file, split="train").select(range(32))
    usual = [c for c in GLUE_COLUMNS.values() if set(c) <= set(rows.column_names)]
    columns = max(usual, key=len)
    tokenizer = AutoTokenizer.from_pretrained(place.folder(job.run))
    texts = [list(rows[name]) for name in columns]
    found = tokenizer(*texts, truncation=True, max_length=most)["input_ids"]
    lengths = [len(ids) for ids in found]
    return lengths[:count] if count > 1 else [int(statistics.median_low(lengths))]


def cases_of(table: Table, place: Place, task: str) -> Iterator[Case]:
    """List each row's file of seed 0, on each engine that reads it."""
    told = table.told["speed"]
    jobs = [j for j in table.jobs("small", [0]) if j.run.task == task and j.form]
    for batch in told["batches"]:
        lengths = lengths_of(place, jobs[0], batch)
        for job in jobs:
            for engine in told["engines"]:
                path = file_of(place.folder(job.run) / "export", job.form or "", engine)
                if path is None:
                    continue
                size = (batch, max(lengths))
                yield Case(job.row, path, engine, *size, lengths=tuple(lengths))
                if engine == "openvino" and job.row == "dense":
                    yield Case(
                        job.row, path, engine, *size, True, lengths=tuple(lengths)
                    )


def file_of(folder: Path, form: str, engine: str) -> Path | None:
    """Find the file of a form that an engine reads; None where there is none."""
    if engine == SPARSE:
        path = folder / SPARSE / FILE_NAME
        return path if form == SPARSE and path.is_file() else None
    path = folder / ("onnxruntime.onnx" if form == "onnx" else f"{form}.onnx")
    return path if path.is_file() else None


def lines(
    table: Table,
    place: Place,
    task: str,
    effort: Effort,
    environment: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Measure a task's rows."""
    found = []
    runs = {
        job.row: job.run.key for job in table.jobs("small", [0]) if job.run.task == task
    }
    for one in measure(list(cases_of(table, place, task)), effort):
        case, figures = one.case, one.summary()
        told = (task, case.name, runs[case.name])
        told += (case.engine, int(case.bf16), case.batch, case.seq)
        told += (f"{figures['median_ms']:.4f}", f"{figures['sd_ms']:.4f}")
        told += (figures["batches"], environment["machine"]["cores"])
        told += (environment["commit"],)
        told += ("; ".join(f"{k} {v}" for k, v in environment["versions"].items()),)
        found.append(
            dict(zip(COLUMNS, (*told, machine_name(environment)), strict=True))
        )
    return found
