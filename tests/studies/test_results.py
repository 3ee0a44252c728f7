"""Verdicts by the stated rule, the frontier, and the page that the results make."""

import itertools
from pathlib import Path

import pytest

from studies import page, plots, results, speed, verdicts
from studies.__main__ import main
from studies.results import Cell
from studies.tables import read_table
from studies.verdicts import FAILS, FEW, HOLDS, MISSING, UNDECIDED, Claim
from tests.studies.small import forget, write_study

CLAIM = Claim("better", "none", "a", ("b",))


def by_hand(left: list[float], right: list[float], margin: float) -> int:
    """Compare two rows as the rule says, from the definitions."""
    means = [sum(one) / len(one) for one in (left, right)]
    squares = [
        sum((x - mean) ** 2 for x in one) / (len(one) - 1) / len(one)
        for one, mean in zip((left, right), means, strict=True)
    ]
    difference = means[0] - means[1] - margin
    # 97.5 % of Student's distribution with four degrees of freedom is below this.
    if abs(difference) <= max(2.776445 * sum(squares) ** 0.5, 0.002):
        return 0
    return 1 if difference > 0 else -1


NAMES = {1: HOLDS, 0: UNDECIDED, -1: FAILS}
ROWS = [
    [0.80, 0.80, 0.80],
    [0.80, 0.81, 0.82],
    [0.83, 0.84, 0.82],
    [0.801, 0.801, 0.801],
    [0.70, 0.90, 0.80],
    [0.815, 0.825, 0.82],
]


def test_verdicts_are_those_of_the_rule() -> None:
    found = set()
    for left, right, margin in itertools.product(ROWS, ROWS, (0.0, -0.02, 0.01)):
        claim = Claim("better", "none", "a", ("b",), margin)
        told = verdicts.verdict(claim, Cell(tuple(left)), [Cell(tuple(right))])
        assert told == NAMES[by_hand(left, right, margin)]
        found.add(told)
    assert found == set(NAMES.values())


def test_a_verdict_that_looks_at_means_alone_is_found_out() -> None:
    def means_alone(left: list[float], right: list[float]) -> int:
        return 1 if sum(left) > sum(right) else -1

    differs = [
        pair
        for pair in itertools.product(ROWS, ROWS)
        if NAMES[means_alone(*pair)]
        != verdicts.verdict(CLAIM, *(_cell(pair[0]), [_cell(pair[1])]))
    ]
    assert len(differs) > 10


def test_few_seeds_and_no_numbers_decide_nothing() -> None:
    """Rows of two seeds are told apart at 4.3 standard errors, not at 2."""
    claim = Claim("better", "none", "a", ("b",), seeds=1)
    one, other = _cell([0.9]), _cell([0.1])
    assert verdicts.verdict(claim, one, [other]) == UNDECIDED
    assert verdicts.verdict(claim, _cell([0.9, 0.9]), [other]) == HOLDS
    assert verdicts.verdict(claim, _cell([float("nan"), 0.9]), [other]) == UNDECIDED
    near, far = _cell([0.80, 0.82]), _cell([0.83, 0.85])
    assert verdicts.verdict(claim, far, [near]) == UNDECIDED  # 2.1 errors
    assert verdicts.verdict(claim, _cell([0.87, 0.89]), [near]) == HOLDS  # 4.9


def _cell(values: list[float]) -> Cell:
    return Cell(tuple(values))


def test_what_is_not_measured_is_said() -> None:
    some, few, none = _cell(ROWS[1]), _cell([0.9]), Cell()
    assert verdicts.verdict(CLAIM, some, [none]) == MISSING
    assert verdicts.verdict(CLAIM, none, [some]) == MISSING
    assert verdicts.verdict(CLAIM, few, [some]) == FEW
    several = Claim("best", "none", "a", ("b", "c"))
    low, high = _cell([0.1, 0.1, 0.1]), _cell([0.9, 0.9, 0.9])
    assert verdicts.verdict(several, some, [low, low]) == HOLDS
    assert verdicts.verdict(several, some, [low, high]) == FAILS
    assert verdicts.verdict(several, some, [low, some]) == UNDECIDED


def test_the_frontier_is_what_nothing_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.9), (3.0, 0.8), (4.0, 0.9), (0.5, 0.1)]
    brute = {
        i
        for i, (cost, y) in enumerate(points)
        if not any((c <= cost and z >= y) and (c, z) != (cost, y) for c, z in points)
    }
    assert set(verdicts.frontier(points)) == brute == {0, 2, 5}


def lines_of(table, values: dict[str, list[float]]) -> list[dict[str, str]]:
    """Write lines as the driver does, with given accuracies."""
    found = []
    for job in table.jobs("small"):
        if job.run.seed < len(values.get(job.row, ())):
            value = values[job.row][job.run.seed]
            line = dict(zip(results.IDENTITY, job.identity, strict=True))
            figures = f'{{"accuracy": {value}, "gzip_mb": {10 * value}}}'
            found.append(line | {"value": str(value), "figures": figures})
    return found


def test_the_page_says_what_the_lines_say(tmp_path: Path, monkeypatch) -> None:
    table = read_table(str(write_study(tmp_path, monkeypatch)))
    empty = page.render([table], {table.name: []})
    assert f"| words | - / - | {MISSING} |" in empty
    assert f"1 {MISSING}" in empty and "0 holds here" in empty
    lines = lines_of(table, {"dense": [0.9, 0.9], "pruned 0.5": [0.8, 0.81]})
    full = page.render([table], {table.name: lines})
    assert "| words | 0.8050 (2) / 0.9000 (2) | holds here |" in full
    assert "0.8050 ± 0.0071 (2 seeds)" in full
    planted = [line | {"value": "0.1"} for line in lines]
    assert page.render([table], {table.name: planted}) != full
    older = [line | {"run": "another"} for line in lines]
    assert page.render([table], {table.name: older}) == empty
    path = tmp_path / "words.png"
    assert plots.draw(table, lines, [], "words", path) and path.stat().st_size > 1000
    assert not plots.draw(table, [], [], "words", path)
    forget()


def test_of_a_rows_engines_the_fastest_counts(tmp_path: Path, monkeypatch) -> None:
    table = read_table(str(write_study(tmp_path, monkeypatch)))
    lines = lines_of(table, {"dense": [0.9], "pruned 0.5": [0.8]})
    runs = {job.row: job.run.key for job in table.jobs("small", [0])}
    timed = [
        {"task": "words", "row": row, "bf16": half, "batch": "1", "p50_ms": p50}
        | {"run": runs.get(row, run), "engine": engine, "machine": machine}
        for row, half, p50, run, engine, machine in (
            ("dense", "0", "0.1", "", "one", "another"),
            ("dense", "0", "1.5", "", "one", "this"),
            ("dense", "0", "2.5", "", "one", "this"),  # the latest of its engine
            ("dense", "0", "2.0", "", "two", "this"),
            ("dense", "1", "1.0", "", "two", "this"),
            ("pruned 0.5", "0", "0.5", "", "one", "this"),
            ("gone", "0", "0.1", "", "one", "this"),
        )
    ]
    older = timed[-2] | {"run": "of another recipe", "p50_ms": "0.1"}
    timed.insert(1, older)
    found = plots.points(table, lines, timed, "words")
    assert found["p50 of a batch of 1, ms"] == [
        ("dense", 2.0, 0.9),
        ("dense, bf16", 1.0, 0.9),
        ("pruned 0.5", 0.5, 0.8),
    ]
    assert found["gzip MB"] == [("dense", 9.0, 0.9), ("pruned 0.5", 8.0, 0.8)]
    forget()


def test_the_page_is_that_of_the_results() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render(), (
        "run `python -m studies results`"
    )


def test_lines_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    line = dict.fromkeys(results.COLUMNS, "") | {"row": "a, b", "figures": '{"x": 1.5}'}
    results.append(path, line)
    results.append(path, line | {"seed": "1"})
    assert results.read(path) == [line, line | {"seed": "1"}]


@pytest.mark.parametrize("words", [["list"], ["table", "gradual"], ["plot", "rivals"]])
def test_commands_answer(words: list[str], capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(plots, "FOLDER", tmp_path)  # where pictures go
    assert main(words) == 0
    assert capsys.readouterr().out
    assert main(["run"]) == 2 and main(["run", "nothing"]) == 2


def test_a_file_that_is_missing_is_not_timed_by_another(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.onnx").touch()
    dense = tmp_path / "onnxruntime.onnx"
    assert speed.file_of(tmp_path, "onnx", "openvino") == dense
    assert speed.file_of(tmp_path, "onnx-dynamic", "onnxruntime") is None
    assert speed.file_of(tmp_path, "sparse", "sparse") is None
    (tmp_path / "onnx-dynamic.onnx").touch()
    found = speed.file_of(tmp_path, "onnx-dynamic", "onnxruntime")
    assert found == tmp_path / "onnx-dynamic.onnx"


def test_every_seed_has_a_dense_model_of_its_own() -> None:
    table = read_table("rivals")
    jobs = [job for job in table.jobs("small") if job.row == "int8"]
    assert {job.run.seed for job in jobs} == {0, 1, 2}
    assert all(job.run.start.seed == job.run.seed for job in jobs)
    assert all(job.run.teacher == job.run.start for job in jobs)
