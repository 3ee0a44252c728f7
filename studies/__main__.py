"""The papers' tables, rerun.

python -m studies list
python -m studies run TABLE [--scale small|paper] [--seeds 0,1,2] [--jobs 2]
    [--rows PATTERN] [--data FOLDER] [--output_dir F] [--limit_minutes M]
python -m studies table TABLE
python -m studies speed rivals [--seconds 10]
python -m studies plot TABLE
python -m studies results [--check]
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks._data import ROOT, data_folder
from studies import plots, results, runs
from studies.tables import SCALES, Job, read_table, table_names


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    flags = parser().parse_args(argv)
    try:
        return COMMANDS[flags.command](flags)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """Make the command line."""
    made = argparse.ArgumentParser(
        prog="python -m studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("command", choices=COMMANDS)
    made.add_argument("table", nargs="?", help="a name that `list` shows, or a file")
    made.add_argument("--scale", choices=SCALES, default="small")
    made.add_argument("--seeds", type=_seeds, help="such as 0,1,2; else the row's own")
    made.add_argument("--jobs", type=int, default=1, help="runs side by side")
    made.add_argument(
        "--rows", default="", help="a pattern of TASK/ROW, as sst2/gmp 0.9"
    )
    made.add_argument("--data", type=Path, help="the folder of the data sets")
    made.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "studies")
    made.add_argument("--results", type=Path, help="the CSV file; else the table's own")
    made.add_argument("--limit_minutes", type=float, help="start no run after these")
    made.add_argument("--seconds", type=float, default=10.0, help="speed: of each file")
    made.add_argument("--dry_run", action="store_true", help="check and show the runs")
    made.add_argument("--check", action="store_true", help="fail if the page is not so")
    return made


def _seeds(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _run(flags: argparse.Namespace) -> int:
    table, scale = read_table(_named(flags)), flags.scale
    everything = table.jobs(scale, flags.seeds)
    wanted = [job for job in everything if _matches(job, flags.rows)]
    path = flags.results or results.results_of(table.name)
    left = results.missing(wanted, results.read(path))
    place = runs.Place(flags.output_dir.resolve(), data_folder(flags.data).resolve())
    print(f"{table.name}: {len(left)} of {len(wanted)} runs are missing", flush=True)
    if flags.dry_run:
        for job in left:
            runs.dry_run(job.run, place)
            task = runs.tasks(scale)[job.run.task]["task"]
            print(f"{_label(job)}: obert train {task} {' '.join(place.words(job.run))}")
        return 0
    if scale == "small" and not place.data.is_dir():
        print(f"data={place.data} is no folder; name that of the data sets with --data")
        left = [job for job in left if runs.tasks(scale)[job.run.task].get("embedded")]

    def ended(node: runs.Node, record: dict) -> None:
        for job in node.jobs:
            if job.form and job.form not in record["forms"]:
                continue
            line = results.line_of(job, record, runs.machine_name(record))
            results.append(path, line)
            cost = f"{float(line['cpu_seconds']) / 60:.1f} CPU minutes"
            print(
                f"{_label(job)}: {line['metric']} {line['value']}, {cost}", flush=True
            )

    nodes = runs.graph_of(left, table.jobs(scale, flags.seeds))
    faults = runs.work_off(nodes, place, flags.jobs, ended, flags.limit_minutes)
    for fault in faults:
        print(f"not run: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _named(flags: argparse.Namespace) -> str:
    if flags.table is None:
        raise ValueError(
            f"table is missing; expected one of {', '.join(table_names())}; name it"
        )
    return flags.table


def _label(job: Job) -> str:
    form = f", {job.form}" if job.form else ""
    return f"{job.run.task}/{job.row}{form}, seed {job.run.seed}"


def _matches(job: Job, pattern: str) -> bool:
    return re.search(pattern, f"{job.run.task}/{job.row}") is not None


def _list(flags: argparse.Namespace) -> int:
    print("| table | rows | runs | left | CPU minutes left, estimated | paper's runs |")
    print("|---|---|---|---|---|---|")
    costs: dict[runs.Run, float] = {}
    for name in [flags.table] if flags.table else table_names():
        table = read_table(name)
        jobs = [j for j in table.jobs("small", flags.seeds) if _matches(j, flags.rows)]
        left = results.missing(jobs, results.read(results.results_of(table.name)))
        for job in left:
            costs[job.run] = max(job.minutes, costs.get(job.run, 0.0))
        minutes = sum(costs[run] for run in {job.run for job in left})
        counts = (len(table.rows), len(jobs), len(left), f"{minutes:.0f}")
        paper = len(table.jobs("paper", flags.seeds))
        print(f"| {table.name} | {' | '.join(map(str, counts))} | {paper} |")
    print(f"\n{sum(costs.values()):.0f} minutes of one core; no run counted twice")
    return 0


def _table(flags: argparse.Namespace) -> int:
    from studies import page

    table = read_table(_named(flags))
    lines = results.read(flags.results or results.results_of(table.name))
    print(page.render([table], {table.name: lines}).partition("\n## ")[2])
    return 0


def _plot(flags: argparse.Namespace) -> int:
    table = read_table(_named(flags))
    lines = results.read(flags.results or results.results_of(table.name))
    for task in dict.fromkeys(job.run.task for job in table.jobs("small")):
        path = plots.picture(task)
        timed = results.read(results.results_of(f"{table.name}_speed"))
        drawn = plots.draw(table, lines, timed, task, path)
        print(path if drawn else f"{task}: nothing with a cost is measured yet")
    return 0


def _speed(flags: argparse.Namespace) -> int:
    from benchmarks._common import environment
    from obert_modifiers.deploy.bench.rounds import Effort
    from studies import speed

    table = read_table(_named(flags))
    place = runs.Place(flags.output_dir.resolve(), data_folder(flags.data).resolve())
    path = flags.results or results.results_of(f"{table.name}_speed")
    for task in table.told["speed"]["tasks"]:
        if re.search(flags.rows, task):
            effort = Effort(seconds=flags.seconds, rounds=5)
            for line in speed.lines(table, place, task, effort, environment()):
                results.append(path, line, speed.COLUMNS)
                print(f"{task}, {line['row']}, {line['engine']}: {line['p50_ms']} ms")
    return 0


def _results(flags: argparse.Namespace) -> int:
    from studies import page

    if flags.check:
        same = page.PAGE.read_text(encoding="utf-8") == page.render()
        print(f"{page.PAGE}: {'as measured' if same else 'old; write it anew'}")
        return 0 if same else 1
    page.write()
    print(page.PAGE)
    return 0


COMMANDS = {
    "run": _run,
    "list": _list,
    "table": _table,
    "speed": _speed,
    "plot": _plot,
    "results": _results,
}

if __name__ == "__main__":
    sys.exit(main())
