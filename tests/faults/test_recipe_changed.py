"""An edited recipe: what differs is shown, and only what is to come may differ."""

import json
import logging

import pytest
import torch

from obert_modifiers.recipe.changes import pair_up
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import train
from tests.faults import world
from tests.faults.test_checkpoint import light, run, steps_in  # noqa: F401
from tests.hosts import ON_SPARSEML
from tests.training.toy import records

GMP = f"""{world.HEAD}
  - !GMPStarPruningModifier
      init_sparsity: 0.3
      final_sparsity: 0.7
      start_epoch: 0.4
      end_epoch: 2.0
      update_frequency: 0.4
"""
QUANTIZED = "  - !QATModifier\n      start_epoch: {start}\n"
# The checkpoint is that of step 8, epoch 1.6; events were at steps 2, 4, 6 (and 7).
STEP, NEXT = 8, 9


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    run(folder, GMP, save_steps=STEP)
    return folder


def resume(saved, tmp_path, recipe: str, **options):
    options = {"recipe_changed": "allow", "save_strategy": "no", **options}
    options["resume_from_checkpoint"] = saved / f"checkpoint-{STEP}"
    return run(tmp_path, recipe, **options)


def edit(old: str, new: str, text: str = GMP) -> str:
    assert old in text
    return text.replace(old, new)


def test_it_is_refused_and_shown(saved, tmp_path) -> None:
    recipe = edit("final_sparsity: 0.7", "final_sparsity: 0.8")
    with pytest.raises(ValueError, match="another one than the checkpoint's") as error:
        resume(saved, tmp_path, recipe, recipe_changed="refuse")
    shown = ("-      final_sparsity: 0.7", "+      final_sparsity: 0.8")
    for part in (*shown, "--recipe_changed allow"):
        assert part in str(error.value)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_comments_and_defaults_make_no_other_recipe(saved, tmp_path) -> None:
    recipe = "# a comment\n" + GMP + "      leave_enabled: true\n"
    _, result = resume(saved, tmp_path, recipe, recipe_changed="refuse")
    assert result.sparsity == pytest.approx(0.7, abs=2e-3)


ALLOWED = {
    "higher": edit("final_sparsity: 0.7", "final_sparsity: 0.9"),
    "longer": edit("end_epoch: 2.0", "end_epoch: 2.6"),
    "more often": edit("update_frequency: 0.4", "update_frequency: 0.2"),
    "less often": edit("update_frequency: 0.4", "update_frequency: 0.8"),
    "learning rate": edit("final_lr: 1e-3", "final_lr: 1e-2"),
    "quantized later": GMP + QUANTIZED.format(start=2.2),
    "distilled": GMP + world.SELF,
    "more epochs": GMP.replace("end_epoch: 3.0", "end_epoch: 4.0"),
}


@pytest.mark.parametrize("what", ALLOWED, ids=str)
def test_what_is_still_to_come_may_change(what, saved, tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING, "obert_modifiers"):
        _, result = resume(saved, tmp_path, ALLOWED[what])
    assert "going on with an edited recipe" in caplog.text
    steps = records(tmp_path, "step")
    sparsities = [record["sparsity"] for record in steps]
    assert sparsities == sorted(sparsities)
    final = 0.9 if what == "higher" else 0.7
    assert result.sparsity == pytest.approx(final, abs=2e-3)
    assert result.steps == (20 if what == "more epochs" else 15)
    # No event but those of the edited schedule from here on.
    whole = tmp_path / "whole"
    _, fresh = run(whole, ALLOWED[what], save_strategy="no")
    due = [event.step for event in fresh.events if event.step >= STEP]
    made = [event.step for event in result.events if event.step >= STEP]
    # So little later that not a single weight more was to go.
    assert made == [step for step in due if (what, step) != ("longer", 9)]
    if what in ("learning rate", "more epochs"):
        rates = [record["learning_rate"] for record in steps]
        expected = [record["learning_rate"] for record in records(whole, "step")]
        assert rates[STEP // 2 :] == expected[STEP // 2 :]


def test_weights_that_are_to_be_pruned_too_may_be_added(saved, tmp_path) -> None:
    recipe = f"""{GMP}
  - !GMPStarPruningModifier
      init_sparsity: 0.1
      final_sparsity: 0.2
      start_epoch: 2.2
      end_epoch: 2.6
      update_frequency: 0.4
      params: [head.weight]
"""
    model, _ = resume(saved, tmp_path, recipe)
    assert float((model.head.weight == 0).float().mean()) == pytest.approx(0.2, abs=0.1)
    steps = records(tmp_path, "step")
    assert steps[-1]["sparsity"] < 0.7  # of more weights


def test_another_teacher_may_teach_from_here_on(tmp_path) -> None:
    def distil(folder, name, bias, **options):
        teacher = world.make_model()
        with torch.no_grad():
            teacher.head.bias += bias
        recipe = world.HEAD + world.SELF.replace("teacher: self", f"teacher: {name}")
        manager = RecipeManager.from_recipe(recipe)
        config = world.config_of(folder, **options)
        return train(world.make_model(), world.make_task(), config, manager, teacher)

    saving = {"save_strategy": "steps", "save_steps": STEP}
    distil(tmp_path / "a", "old", 0.0, **saving)
    at = {"resume_from_checkpoint": tmp_path / "a" / f"checkpoint-{STEP}"}
    at |= {"recipe_changed": "allow"}
    assert distil(tmp_path / "b", "new", 1.0, **at).steps == 15
    with pytest.raises(ValueError, match="distillation_teacher has the hash"):
        distil(tmp_path / "c", "old", 1.0, **at)


def added(line: str) -> str:
    """Give the pruning modifier one more key."""
    return GMP + f"      {line}\n"


LOWER = r"would go to sparsity 0.4996 at epoch 1.8, below the 0.6789"
SLOWER = edit("end_epoch: 2.0\n      update", "end_epoch: 2.8\n      update")
GONE = "GMPStarPruningModifier has begun and is gone"
FOREIGN = GMP.replace("GMPStarPruningModifier", "MagnitudePruningModifier")
OVER = GMP.replace("end_epoch: 2.0", "end_epoch: 1.2")
FEWER = GMP.replace("end_epoch: 3.0", "end_epoch: 1.5").replace("2.0", "1.4")
DROPPED = GMP + "  - !LayerDropModifier {keep: [0, 2]}\n"
REFUSED = {
    "lower": (edit("final_sparsity: 0.7", "final_sparsity: 0.5"), LOWER),
    "slower": (SLOWER, "below the 0.6"),
    "gone": (world.HEAD, GONE),
    "another kind": (
        FOREIGN + "      params: ['re:layers.*weight']\n",
        # Without SparseML ours takes its place, but with other parameters.
        GONE if ON_SPARSEML else "params cannot change",
    ),
    "other parameters": (added("params: [layers.0.0.weight]"), "params cannot change"),
    "other structure": (added("mask_type: block4"), "mask_type cannot change"),
    "masks off": (added("leave_enabled: false"), "lets go of the masks"),
    "another start": (
        edit("start_epoch: 0.4", "start_epoch: 0.2"),
        "has begun, and start_epoch cannot change",
    ),
    "over": (OVER, "GMPStar.* ends at epoch 1.2, before the checkpoint's 1.6"),
    "quantized before": (
        GMP + QUANTIZED.format(start=1.0),
        "QATModifier is new and starts at epoch 1, before",
    ),
    "layers dropped": (DROPPED, "LayerDropModifier is new|is of another model"),
    "fewer epochs": (FEWER, "EpochRangeModifier ends at epoch 1.5, before"),
}


@pytest.mark.parametrize("what", REFUSED, ids=str)
def test_what_is_done_may_not_change(what, saved, tmp_path) -> None:
    recipe, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        resume(saved, tmp_path, recipe)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_pairs() -> None:
    One, Two = (type(name, (), {}) for name in ("One", "Two"))
    a, b, c, d, e = One(), One(), Two(), One(), Two()
    pairs = pair_up({"a": a, "b": b, "c": c}, {"b": b, "d": d})
    found = [(pair.name, pair.old, pair.new) for pair in pairs]
    assert found == [("b", b, b), ("a", a, d), ("c", c, None)]
    (pair,) = pair_up({}, {"e": e})
    assert (pair.name, pair.old, pair.new) == (None, None, e)


def test_the_checkpoint_of_an_edited_run_has_the_edited_recipe(saved, tmp_path) -> None:
    recipe = ALLOWED["higher"]
    _, first = resume(saved, tmp_path, recipe, save_strategy="steps", save_steps=10)
    assert steps_in(tmp_path) == [10]
    options = {"resume_from_checkpoint": "last", "recipe_changed": "refuse"}
    _, second = run(tmp_path, recipe, **options)
    assert json.dumps(first.metrics) == json.dumps(second.metrics)
