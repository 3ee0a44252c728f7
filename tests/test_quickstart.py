"""The quickstart on the tiny model: four runs, one table, one summary."""

import io
import json
import os
import re
import shlex
import signal

import pytest
from datasets import Dataset
from rich.console import Console

from obert_modifiers import cli, embedded, quickstart
from obert_modifiers.cli.progress import Reporter
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.resources import recipe_path
from obert_modifiers.training.stepper import RecipeStepper
from tests import tiny

PRUNING = [quickstart.STEPS[name].recipe for name in ("gmp", "obert")]
FIGURES = "accuracy loss sparsity size_mb gzip_mb speed minutes"
SMALL = quickstart.Settings(sentences=64, batch_size=8, dense_epochs=1.0)


@pytest.fixture
def embedded_tiny(tmp_path, monkeypatch):
    """Put a tiny model, tiny data and small recipes in the place of what ships."""
    model = tiny.save_model(tmp_path / "model")
    files = {}
    for seed, name in enumerate(("train", "validation")):
        files[name] = tmp_path / f"{name}.parquet"
        Dataset.from_list(tiny.sentences(80, seed)).to_parquet(files[name])
    for name in filter(None, (step.recipe for step in quickstart.STEPS.values())):
        text = recipe_path(name).read_text().replace("num_grads: 512", "num_grads: 16")
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(
        quickstart, "EFFORT", {"seconds": 0.1, "rounds": 2, "warm_up": 0}
    )
    monkeypatch.setattr(embedded, "encoder_path", lambda: model)
    monkeypatch.setattr(embedded, "movie_snippets", lambda: files)
    monkeypatch.setattr(quickstart, "recipe_path", lambda name: tmp_path / name)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_four_runs_one_table(embedded_tiny):
    out, stream = embedded_tiny / "out", io.StringIO()
    reporter = Reporter(Console(file=stream, width=100))
    summary = quickstart.run(out, settings=SMALL, reporter=reporter)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert list(summary) == ["dense", "gmp", "obert", "int8", "sparse"]
    assert abs(summary["sparse"]["accuracy"] - summary["int8"]["accuracy"]) <= 1 / 80
    for name, figures in summary.items():
        assert list(figures) == FIGURES.split()
        assert figures["speed"] > 0
        assert figures["sparsity"] == (0.0 if name == "dense" else 13107 / 16384)
        assert name == "sparse" or (out / name / "report.html").is_file()
    obert, int8 = (
        json.loads((out / name / "metrics.json").read_text())
        for name in ("obert", "int8")
    )
    assert obert["model"] == obert["teacher"] == str(out / "dense")
    assert int8["model"] == str(out / "obert")
    file = out / "int8" / "export" / "onnxruntime.onnx"
    assert summary["int8"]["size_mb"] == file.stat().st_size / 1e6
    assert (out / "report.html").is_file() and (out / "report.png").is_file()
    shown = stream.getvalue()
    for part in ("GMP★", "recovery", "100.0 %", "80.00 %", "num_grads 16", "seed 0"):
        assert part in shown
    assert "the first 64 training" in shown

    stream.truncate(0)
    again = quickstart.run(out, only=("gmp",), settings=SMALL, reporter=reporter)
    assert "== GMP★" in stream.getvalue() and "== dense" not in stream.getvalue()
    for figures in (again["obert"], summary["obert"]):
        figures.pop("speed")  # measured anew
    assert again["obert"] == summary["obert"]
    assert again["gmp"]["loss"] == summary["gmp"]["loss"]


def test_without_the_engine_there_is_no_speed(embedded_tiny, monkeypatch):
    def missing(name):
        raise ValueError(name)

    monkeypatch.setattr(quickstart, "import_engine", missing)
    out = embedded_tiny / "out"
    summary = quickstart.run(out, only=("dense",), settings=SMALL)
    assert summary["dense"]["speed"] is None
    assert quickstart.table(summary)[1][-2] == "-"


def test_what_is_needed_is_run(embedded_tiny):
    out = embedded_tiny / "out"
    summary = quickstart.run(out, only=("gmp",), settings=SMALL, seed=1)
    assert list(summary) == ["dense", "gmp"]
    summary = quickstart.run(out, only=("int8",), settings=SMALL, seed=1)
    assert list(summary) == ["dense", "gmp", "obert", "int8", "sparse"]
    assert quickstart._earlier(out / "dense", 2, SMALL) is None


def terminate_at(monkeypatch, number) -> None:
    """Send SIGTERM to this process at an optimizer step, counted over all runs."""
    original, made = RecipeStepper.step, iter(range(1, 1000))

    def step(self):
        if next(made) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(RecipeStepper, "step", step)


@pytest.mark.parametrize(
    ("number", "title", "left"), [(3, "dense", 4), (12, "GMP★", 3)]
)
def test_sigterm_ends_it_with_the_command_that_goes_on(
    embedded_tiny, monkeypatch, capsys, number, title, left
):
    out = embedded_tiny / "out"
    monkeypatch.setattr(quickstart, "Settings", lambda: SMALL)
    words = ["quickstart", "--output_dir", str(out), "--seed", "3"]
    with monkeypatch.context() as patched:
        terminate_at(patched, number)
        assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert f"stopped by SIGTERM while it trained {title}; what was" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert not (out / "summary.json").exists()
    command = shlex.split(shown.out.strip().splitlines()[-1])
    only = ",".join(list(quickstart.STEPS)[-left:])
    assert command == ["obert", *words, "--only", only]
    assert cli.main(command[1:]) == 0
    shown = capsys.readouterr().out
    assert shown.count("== ") == left + 1  # and sizes and speeds
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary) == [*quickstart.STEPS, "sparse"]
    assert not list(out.glob("*/checkpoint-*"))
    if title == "dense":
        assert cli.main(words) == 0  # and from the start once more
        again = json.loads((out / "summary.json").read_text())
        for name, figures in summary.items():
            assert again[name]["loss"] == figures["loss"]


def test_events_fall_on_whole_optimizer_steps():
    settings = quickstart.Settings()
    steps, rest = divmod(settings.sentences, settings.batch_size)
    assert rest == 0
    for name in PRUNING:
        (modifier,) = RecipeManager.from_recipe(recipe_path(name)).pruning
        for key in ("start_epoch", "end_epoch", "update_frequency"):
            assert (getattr(modifier, key) * steps).is_integer()
        assert modifier.final_sparsity == 0.8
        assert getattr(modifier, "num_grads", 0) <= settings.sentences


def test_both_recipes_differ_only_in_the_method():
    recipes = [RecipeManager.from_recipe(recipe_path(name)).text for name in PRUNING]
    about_method = re.compile("^#.*|.*PruningModifier.*", re.MULTILINE)
    gmp, obert = (set(about_method.sub("", text).splitlines()) for text in recipes)
    assert gmp <= obert
