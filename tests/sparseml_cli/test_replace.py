"""SparseML's own recipes, unedited, on our modifiers."""

import json

import pytest

from tests.sparseml_cli import made
from tests.sparseml_cli.recipes import OBS_SPARSITY
from tests.sparseml_cli.test_scripts import METRICS, each_task, zeros


@each_task("replaced")
def test_sparsemls_recipe_reaches_the_promised_sparsity(run, task):
    done = run(f"{task}_replaced")
    assert done.figures()[METRICS[task]] >= 0.0
    count, weights = zeros(done.folder)
    assert weights == made.ENCODER_WEIGHTS // (2 if task == "qa" else 1)
    assert abs(count - OBS_SPARSITY[task] * weights) < 4  # whole blocks of four
    assert "SparseML's modifiers: same" in done.text
    recipe = (done.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "!OBERTPruningModifier" in recipe
    assert "!OBSPruningModifier" not in recipe


@each_task("replaced", "replaced_again")
def test_a_new_process_measures_the_same(run, task):
    first = run(f"{task}_replaced").figures()
    second = run(f"{task}_replaced_again").figures()
    shared = {"eval_accuracy", "eval_f1", "eval_loss", "eval_exact_match"} & set(first)
    assert METRICS[task] in shared
    assert {k: first[k] for k in shared} == {k: second[k] for k in shared}


@pytest.mark.runs("int8", "int8_again")
def test_a_pruned_model_is_quantized_with_sparsemls_second_recipe(run):
    before, after = run("text_replaced").folder, run("int8")
    figures = after.figures()
    assert zeros(before)[0] == zeros(after.folder)[0]
    saved = json.loads((after.folder / "quantization.json").read_text("utf-8"))
    assert "classifier:weight" in saved["tensors"]
    recipe = (after.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "!ConstantMasksModifier" in recipe and "!QATModifier" in recipe
    assert run("int8_again").figures()["eval_loss"] == figures["eval_loss"]


@pytest.mark.runs("text_ours_replaced")
def test_our_defaults_are_told(run):
    done = run("text_ours_replaced")
    assert done.figures()["eval_loss"] >= 0.0
    assert "num_grads" in done.text
    count, weights = zeros(done.folder)
    assert abs(count - 0.8 * weights) < 4
