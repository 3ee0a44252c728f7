"""SparseML's four training scripts with our modifiers, and what fails without us."""

import json

import pytest
from safetensors.torch import load_file

from tests.sparseml_cli import made
from tests.sparseml_cli.commands import TASKS
from tests.sparseml_cli.recipes import SPARSITY

METRICS = {"text": "eval_loss", "qa": "eval_f1", "token": "eval_f1", "mlm": "eval_loss"}


def each_task(*names: str) -> pytest.MarkDecorator:
    """Parametrise by the four tasks, and start the commands of each."""
    assert len(TASKS) == 4
    rows = [
        pytest.param(task, marks=pytest.mark.runs(*(f"{task}_{n}" for n in names)))
        for task in TASKS
    ]
    return pytest.mark.parametrize("task", rows)


def zeros(folder) -> tuple[int, int]:
    """Count the zeros of the saved encoder's matrices, and its weights."""
    found = [
        values
        for name, values in load_file(folder / "model.safetensors").items()
        if ".encoder.layer." in name and name.endswith("weight") and values.ndim == 2
    ]
    return sum(int((v == 0).sum()) for v in found), sum(v.numel() for v in found)


@each_task("ours")
def test_our_recipe_reaches_the_promised_sparsity(run, task):
    done = run(f"{task}_ours")
    assert done.figures()[METRICS[task]] >= 0.0
    count, weights = zeros(done.folder)
    # The text recipe drops half of the layers.
    assert weights == made.ENCODER_WEIGHTS // (2 if task == "text" else 1)
    # Rounded to whole blocks of four, or in each of the matrices.
    assert abs(count - SPARSITY[task] * weights) < 6 * made.LAYERS
    assert "fixes: local-metrics" in done.text


@pytest.mark.runs("ranks", "whole")
def test_two_processes_of_torchrun_take_half_of_the_steps(run):
    done, alone = run("ranks"), run("whole")
    assert done.status == alone.status == 0, done.text[-3000:]
    count, weights = zeros(done.folder)
    assert weights == made.ENCODER_WEIGHTS // 2
    assert abs(count - SPARSITY["text"] * weights) < 6 * made.LAYERS
    steps = [
        json.loads((one.folder / "trainer_state.json").read_text())["global_step"]
        for one in (done, alone)
    ]
    assert steps == [8, 16]


@each_task("ours", "ours_again")
def test_a_new_process_measures_the_same(run, task):
    first = run(f"{task}_ours").figures()
    second = run(f"{task}_ours_again").figures()
    assert first[METRICS[task]] == second[METRICS[task]]
    shared = {"eval_accuracy", "eval_f1", "eval_loss", "eval_exact_match"} & set(first)
    assert shared
    assert {k: first[k] for k in shared} == {k: second[k] for k in shared}


@each_task("plain")
def test_without_us_the_same_command_fails_for_want_of_its_metric(run, task):
    done = run(f"{task}_plain")
    assert done.status != 0
    assert "metric" in done.text.splitlines()[-1]
    assert not (done.folder / "config.json").exists()


@pytest.mark.runs("plain_obs")
def test_without_us_sparsemls_obert_fails_at_its_first_step(run):
    done = run("plain_obs")
    assert done.status != 0
    assert "_data_loader_builder" in done.text
    assert "unexpected keyword argument" in done.text


@pytest.mark.runs("plain_quantization")
def test_without_us_sparsemls_quantization_fails(run):
    done = run("plain_quantization")
    assert done.status != 0
    assert "'QConfig' object has no attribute" in done.text


def test_the_four_recipes_hold_all_our_modifiers(repo):
    from obert_modifiers import modifiers
    from tests.sparseml_cli.conftest import RECIPES

    text = "".join(RECIPES.values())
    missing = [name for name in modifiers.__all__ if f"!{name}" not in text]
    # SparseML's ConstantPruningModifier runs on it: see test_replace.py.
    assert missing == ["ConstantMasksModifier"]
    assert json.dumps(sorted(SPARSITY)) == json.dumps(sorted(TASKS))
