"""A tiny study from end to end: it resumes, and a row reruns to the same metric."""

import json
from pathlib import Path

import pytest

from studies import results, runs
from studies.__main__ import main
from studies.tables import read_table
from tests.studies.small import forget, in_this_process, write_model, write_study


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = write_study(tmp_path, monkeypatch)
    write_model(tmp_path)
    yield ["run", str(table), "--data", str(tmp_path / "data"), "--output_dir",
           str(tmp_path / "out"), "--seeds", "0"]  # fmt: skip
    forget()


def test_rows_are_run_once_and_rerun_to_the_same(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made = in_this_process(monkeypatch)
    assert main([*words, "--rows", "pruned 0.8"]) == 0
    assert len(made) == 2  # the dense model, which it starts from, is made too
    kept = [(folder / runs.WEIGHTS).is_file() for folder in made]
    assert kept == [True, False]  # nothing needs the pruned one
    (line,) = results.read(tmp_path / "results" / "words.csv")
    assert (line["row"], line["seed"], line["metric"]) == (
        "pruned 0.8",
        "0",
        "accuracy",
    )
    assert json.loads(line["recipe_args"]) == {"final_sparsity": 0.8}
    figures = json.loads(line["figures"])
    assert figures["sparsity_encoder"] == pytest.approx(0.8, abs=1e-3)
    assert figures["accuracy"] == float(line["value"])
    assert line["versions"] and line["machine"] and float(line["cpu_seconds"]) > 0
    assert main(words) == 0
    assert len(made) == 3  # of three rows two were there: one as a line, one as a model
    lines = results.read(tmp_path / "results" / "words.csv")
    assert [one["row"] for one in lines] == ["pruned 0.8", "dense", "pruned 0.5"]
    assert main([*words]) == 0 and len(made) == 3
    assert "0 of 3 runs are missing" in capsys.readouterr().out
    again = [*words, "--rows", "0.8", "--results", str(tmp_path / "again.csv")]
    again[again.index("--output_dir") + 1] = str(tmp_path / "other")
    assert main(again) == 0 and len(made) == 5
    (rerun,) = results.read(tmp_path / "again.csv")
    assert rerun["value"] == line["value"] and rerun["run"] == line["run"]
    one, other = (json.loads(x["figures"])["loss"] for x in (line, rerun))
    assert one == other


def test_the_clock_and_failures_leave_runs_for_later(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made = in_this_process(monkeypatch)
    assert main([*words, "--limit_minutes", "1e-9"]) == 1
    assert not made and "left for a later call" in capsys.readouterr().err

    def fails(folder: Path) -> int:
        (folder / "log.txt").write_text("ValueError: no\n", encoding="utf-8")
        return 1

    monkeypatch.setattr(runs, "start_process", fails)
    assert main(words) == 1
    assert "ValueError: no" in capsys.readouterr().err
    assert not results.read(tmp_path / "results" / "words.csv")


def test_a_form_that_fails_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """With a process that only pretends, and cannot quantize."""
    forms = {"plain": "onnx", "other": "onnx-dynamic"}
    rows = {
        name: {"seeds": 1, "small": {"start": "dense", "forms": form}}
        for name, form in forms.items()
    }
    table = write_study(tmp_path, monkeypatch, **rows)
    monkeypatch.setattr(runs, "shuffled", lambda source, kept, *others: kept)
    figures = {"figures": {"accuracy": 0.5}, "minutes": 1.0, "cpu_seconds": 60.0}
    facts = {"versions": {}, "commit": "c", "machine": {"cores": 2}, "torch_threads": 1}
    orders = []

    def pretend(folder: Path) -> int:
        order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
        orders.append((order["forms"], order["keep"]))
        made = {"onnx": figures} if "onnx" in order["forms"] else {}
        record = figures | facts | {"forms": made}
        (folder / runs.RECORD).write_text(json.dumps(record), encoding="utf-8")
        (folder / runs.WEIGHTS).touch()
        return 0

    monkeypatch.setattr(runs, "start_process", pretend)
    words = ["--data", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main(["run", str(table), *words, "--jobs", "2"]) == 1
    assert "words, seed 0: no onnx-dynamic" in capsys.readouterr().err
    lines = results.read(tmp_path / "results" / "words.csv")
    assert len(lines) == 7 and "other" not in {line["row"] for line in lines}
    assert len(orders) == 6 and orders.count((["onnx", "onnx-dynamic"], True)) == 1
    forget()


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_jobs(
    words: list[str], tmp_path: Path
) -> None:
    found = []
    for count in ("1", "2"):
        file = tmp_path / f"{count}.csv"
        place = ["--output_dir", str(tmp_path / count), "--results", str(file)]
        assert main([*words, "--jobs", count, *place]) == 0
        found.append({x["row"]: x["figures"] for x in results.read(file)})
    values = [
        {row: json.loads(text)["loss"] for row, text in one.items()} for one in found
    ]
    assert values[0] == values[1] and len(values[0]) == 3


def test_a_changed_recipe_is_another_run(tmp_path: Path, monkeypatch) -> None:
    table = write_study(tmp_path, monkeypatch)
    before = {job.row: job.run.key for job in read_table(str(table)).jobs("small")}
    recipe = tmp_path / "recipes" / "own.yaml"
    text = recipe.read_text(encoding="utf-8")
    for change, changes in (("# more words\n", False), ("num_more: 1\n", True)):
        recipe.write_text(change + text, encoding="utf-8")
        forget()
        after = {job.row: job.run.key for job in read_table(str(table)).jobs("small")}
        assert after["dense"] == before["dense"]
        assert (after["pruned 0.8"] != before["pruned 0.8"]) is changes
    forget()
