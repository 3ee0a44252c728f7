"""docs/results.md, from the tables' YAML and the lines of the results."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks._data import ROOT
from studies import plots, results, verdicts
from studies.results import Cell
from studies.tables import Table, read_table, table_names, tasks

PAGE = ROOT / "docs" / "results.md"
_HEAD = """\
# The papers' tables, rerun

Written by `python -m studies results` from `studies/tables/*.yaml` and
`studies/results/*.csv`; a test holds it to them. Measured is the **small scale**: the
embedded encoder (6 layers, hidden 384) on a few thousand samples, with sizes and epochs
that were fixed before ([tasks.yaml](../studies/tasks.yaml)). The papers' numbers are
those of BERT-base and RoBERTa-base on whole data sets: a claim may hold there and not
here, and the other way round. [studies/README.md](../studies/README.md) has the
commands.

{rule}

{summary}
"""
Lines = Sequence[Mapping[str, str]]


def render(
    tables: Sequence[Table] | None = None, lines: Mapping[str, Lines] | None = None
) -> str:
    """Write the page; lines are those of the files where they are not given."""
    if tables is None:
        tables = [read_table(name) for name in table_names()]
    if lines is None:
        lines = {one.name: results.read(results.results_of(one.name)) for one in tables}
    found: Counter[str] = Counter()
    body = [
        text for one in tables for text in _section(one, lines.get(one.name, ()), found)
    ]
    order = (verdicts.HOLDS, verdicts.FAILS, verdicts.UNDECIDED, verdicts.FEW)
    counts = [f"{found[one]} {one}" for one in (*order, verdicts.MISSING)]
    summary = f"Of {sum(found.values())} claims, each on one task: {'; '.join(counts)}."
    head = _HEAD.format(rule=verdicts.RULE, summary=summary)
    recipes = _by_recipe(tables, lines)
    return "\n".join([head, *body, *recipes]) + "\n"


def _section(table: Table, lines: Lines, found: Counter[str]) -> Iterator[str]:
    told, jobs = table.told, table.jobs("small")
    cells = results.cells(lines, jobs)
    yield f"## {told['title']}\n"
    yield f"{told['about']} `python -m studies run {table.name}`\n"
    if told.get("differs"):
        yield f"What differs: {told['differs']}\n"
    claims = list(verdicts.claims_of(told))
    if claims:
        yield "| claim | of | the papers | task | here (seeds) | verdict |"
        yield "|---|---|---|---|---|---|"
    for claim in claims:
        for task in _tasks_of(table, claim.left):
            sides = [cells.get((name, task), Cell()) for name in _sides(claim)]
            decided = verdicts.verdict(claim, sides[0], sides[1:])
            found[decided] += 1
            shown = " / ".join(
                f"{c.mean:.4f} ({len(c.values)})" if c.values else "-" for c in sides
            )
            parts = (claim.says, claim.of, claim.paper or "-", task, shown, decided)
            yield f"| {' | '.join(parts)} |"
    if claims:
        yield ""
    yield from _rows(table, cells)
    for task in told.get("speed", {}).get("tasks", []):
        if plots.picture(task).is_file():
            name = plots.picture(task).relative_to(PAGE.parent)
            yield f"\n![Accuracy against latency and size, {task}]({name})"
    yield ""


def _sides(claim: verdicts.Claim) -> tuple[str, ...]:
    return (claim.left, *claim.right)


def _tasks_of(table: Table, name: str) -> list[str]:
    return table.tasks_of(table.rows[name], "small")


def _rows(table: Table, cells: Mapping[tuple[str, str], Cell]) -> Iterator[str]:
    """Write what was measured of each row; all seeds of each task."""
    rows = [row for row in table.rows.values() if "small" in row.scales]
    names = list(dict.fromkeys(t for r in rows for t in table.tasks_of(r, "small")))
    metrics = tasks("small")
    heads = [f"{name}, {metrics[name]['metric']}" for name in names]
    yield f"| row | of | the paper | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 3) + "|"
    for row in rows:
        here = set(table.tasks_of(row, "small"))
        measured = [
            cells.get((row.name, name), Cell()).show() if name in here else ""
            for name in names
        ]
        parts = [row.title, row.of, table.paper_of(row) or "-", *measured]
        yield f"| {' | '.join(parts)} |"


def _by_recipe(tables: Sequence[Table], lines: Mapping[str, Lines]) -> Iterator[str]:
    """Write what was measured with each shipped recipe."""
    yield "## Recipes\n"
    yield "| recipe | table and row | task | metric | small scale |"
    yield "|---|---|---|---|---|"
    found = []
    for table in tables:
        jobs = table.jobs("small", [0])
        every = table.jobs("small")
        cells = results.cells(lines.get(table.name, ()), every)
        for job in jobs:
            recipe, task = job.run.recipe, job.run.task
            if recipe is None or "/" in recipe:
                continue
            cell = cells.get((job.row, task), Cell())
            metric = tasks("small")[task]["metric"]
            where = f"{table.name}, {job.row}"
            found.append(
                f"| `{recipe}` | {where} | {task} | {metric} | {cell.show()} |"
            )
    yield from sorted(found)


def write(path: Path = PAGE) -> bool:
    """Write the page; tell whether it has changed."""
    text = render()
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(text, encoding="utf-8")
    return text != before
