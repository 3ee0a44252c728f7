"""SparseML's four training scripts with our modifiers, and what fails without us."""

import pytest

from tests.sparseml_cli import made
from tests.sparseml_cli.commands import COMMANDS, TASKS
from tests.sparseml_cli.conftest import Done, each_task
from tests.sparseml_cli.recipes import OBS_SPARSITY, RECIPES, SPARSITY

METRICS = {"text": "eval_loss", "qa": "eval_f1", "token": "eval_f1", "mlm": "eval_loss"}
FAILING = [name for name, command in COMMANDS.items() if command.fails]


def check_sparsity(done: Done, sparsity: float, layers: int, off: int) -> None:
    """Count the saved encoder's zeros; they may be `off` by roundings."""
    count, weights = done.zeros()
    assert weights == made.ENCODER_WEIGHTS * layers // made.LAYERS
    assert abs(count - sparsity * weights) < off


@each_task("ours")
def test_our_recipe_reaches_the_promised_sparsity(run, task):
    done = run(f"{task}_ours")
    assert done.figures()[METRICS[task]] >= 0.0
    assert "fixes: local-metrics" in done.text
    # The text recipe drops half of the layers. Rounded to whole blocks of four, or in
    # each of the matrices.
    layers = made.LAYERS // (2 if task == "text" else 1)
    check_sparsity(done, SPARSITY[task], layers, off=6 * made.LAYERS)


@each_task("replaced")
def test_sparsemls_recipe_reaches_the_promised_sparsity(run, task):
    """SparseML's own recipes, unedited, on our modifiers."""
    done = run(f"{task}_replaced")
    assert done.figures()[METRICS[task]] >= 0.0
    assert "SparseML's modifiers: same" in done.text
    layers = made.LAYERS // (2 if task == "qa" else 1)
    check_sparsity(done, OBS_SPARSITY[task], layers, off=4)  # whole blocks of four
    recipe = (done.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "!OBERTPruningModifier" in recipe
    assert "!OBSPruningModifier" not in recipe


@pytest.mark.parametrize("recipe", ["ours", "replaced"])
@each_task("ours", "ours_again", "replaced", "replaced_again")
def test_a_new_process_measures_the_same(run, task, recipe):
    first = run(f"{task}_{recipe}").figures()
    second = run(f"{task}_{recipe}_again").figures()
    shared = {"eval_accuracy", "eval_f1", "eval_loss", "eval_exact_match"} & set(first)
    assert METRICS[task] in shared
    assert {k: first[k] for k in shared} == {k: second[k] for k in shared}


@pytest.mark.runs("int8", "int8_again")
def test_a_pruned_model_is_quantized_with_sparsemls_second_recipe(run):
    before, after = run("text_replaced"), run("int8")
    figures = after.figures()
    assert before.zeros()[0] == after.zeros()[0]
    assert "classifier:weight" in after.json("quantization.json")["tensors"]
    recipe = (after.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "!ConstantMasksModifier" in recipe and "!QATModifier" in recipe
    assert run("int8_again").figures()["eval_loss"] == figures["eval_loss"]


@pytest.mark.runs("text_ours_replaced")
def test_our_defaults_are_told(run):
    done = run("text_ours_replaced")
    assert done.figures()["eval_loss"] >= 0.0
    assert "num_grads" in done.text
    check_sparsity(done, 0.8, made.LAYERS, off=4)


@pytest.mark.runs("ranks", "whole")
def test_two_processes_of_torchrun_take_half_of_the_steps(run):
    done, whole = run("ranks"), run("whole")
    assert (done.steps(), whole.steps()) == (8, 16)
    check_sparsity(done, SPARSITY["text"], made.LAYERS // 2, off=6 * made.LAYERS)


@each_task("plain")
def test_without_us_the_same_command_fails_for_want_of_its_metric(run, task):
    done = run(f"{task}_plain")
    assert done.status != 0
    assert "metric" in done.text.splitlines()[-1]
    assert not (done.folder / "config.json").exists()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.runs(name)) for name in FAILING]
)
def test_without_us_or_a_fix_it_fails(run, name):
    assert len(FAILING) == 9
    command, done = COMMANDS[name], run(name)
    assert done.status == command.status, done.text[-3000:]
    assert all(words in done.text for words in command.fails)


def test_the_four_recipes_hold_all_our_modifiers():
    from obert_modifiers import modifiers

    text = "".join(RECIPES.values())
    missing = [name for name in modifiers.__all__ if f"!{name}" not in text]
    # SparseML's ConstantPruningModifier runs on the first; none of its scripts trains
    # embeddings.
    assert missing == ["ConstantMasksModifier", "EmbeddingDistillationModifier"]
    assert set(SPARSITY) == set(OBS_SPARSITY) == set(METRICS) == set(TASKS)
