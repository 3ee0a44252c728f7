"""One run in a process of its own: `python -m studies.one FOLDER_OF_ITS_ORDER`."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks._common import cpu_seconds, environment
from obert_modifiers import tasks
from obert_modifiers.sizes import MB, gzip_bytes, plain_bytes
from studies.forms import FORMS, export
from studies.runs import RECORD, WEIGHTS, read_record


def main(folder: Path) -> None:
    """Train, measure what was asked for, and leave a record."""
    order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    record = read_record(folder)
    started, used = time.perf_counter(), cpu_seconds()
    if order["words"]:
        found = tasks.main(order["task"], order["words"])
        record = {"figures": figures(found), "forms": {}, "notes": found["notes"]}
        record |= environment() | spent(started, used)
        write(folder, record)
    for form in sorted(set(order["forms"]) - set(record["forms"])):
        try:
            measured = measure(folder, form, order)
        except ValueError as error:  # a form that is not to be had; the others are
            print(f"{form}: {error}", flush=True)
        else:
            record["forms"][form] = measured | spent(started, used)
            write(folder, record)
    if not order["keep"] and set(order["forms"]) <= set(record["forms"]):
        (folder / WEIGHTS).unlink(missing_ok=True)
    if not order["keep_exports"]:
        shutil.rmtree(folder / "export", ignore_errors=True)


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write what there is so far."""
    text = json.dumps(record, indent=2) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")


def measure(folder: Path, form: str, order: dict[str, Any]) -> dict[str, Any]:
    """Export a run, and evaluate the file."""
    from obert_modifiers.deploy.evaluate import Request, evaluate_file

    path = export(folder, form)
    # The data is that of the run's own command.
    asked = Request(path, order["task"], FORMS[form], folder, ("--use_cpu",))
    found = evaluate_file(asked)
    sizes = {"file_mb": plain_bytes([path]) / MB, "gzip_mb": gzip_bytes([path]) / MB}
    return {"figures": figures(found) | sizes}


def spent(started: float, used: float) -> dict[str, float]:
    """Return minutes and processor seconds since a time."""
    minutes = (time.perf_counter() - started) / 60
    return {"minutes": minutes, "cpu_seconds": cpu_seconds() - used}


def figures(record: dict[str, Any]) -> dict[str, float]:
    """Keep what is a number."""
    numbers = (int, float)
    return {k: v for k, v in record.items() if type(v) in numbers and k != "seed"}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
