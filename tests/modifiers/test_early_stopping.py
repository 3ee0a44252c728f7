"""Early stopping: when it ends a run, and which weights the run ends with."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch

from obert_modifiers.core.snapshot import restore_snapshot_, take_snapshot
from obert_modifiers.modifiers import EarlyStoppingModifier
from obert_modifiers.recipe.manager import RecipeError, RecipeManager
from obert_modifiers.training import TrainConfig, train
from tests.modifiers.driving import copied, same
from tests.modifiers.table import make_model
from tests.training.test_training import make_task
from tests.training.toy import steady

RECIPE = (
    "modifiers:\n  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: {epochs}}}\n"
)
STOP = """\
  - !EarlyStoppingModifier
      metric: accuracy
      patience: 2
      {keys}
"""
GMP = """\
  - !GMPStarPruningModifier
      final_sparsity: 0.8
      start_epoch: 1.0
      end_epoch: 3.0
      update_frequency: 1.0
"""
QAT = "  - !QATModifier {start_epoch: 2.0}\n"
SCRIPT = [0.5, 0.7, 0.7, 0.65, 0.9, 0.9]


def run(folder, epochs, keys=None, script=SCRIPT, extra=""):
    """Train a tiny model whose accuracy is what the script says."""
    left = list(script)
    task = replace(
        make_task(), metrics=lambda logits, labels: {"accuracy": left.pop(0)}
    )
    text = RECIPE.format(epochs=epochs)
    text += "" if keys is None else STOP.format(keys=keys)
    model = make_model()
    torch.manual_seed(7)
    manager = RecipeManager.from_recipe(text + extra)
    result = train(model, task, steady(folder), manager)
    return model, result, (folder / "metrics.jsonl").read_text().splitlines()


BETTER, BACK = [0.1, 0.2, 0.3], [0.1, 0.2, 0.15, 0.2]


@pytest.mark.parametrize(
    ("epochs", "restore", "script", "as_after", "steps", "accuracy"),
    [
        # 0.7, 0.7 and 0.65 are not better than 0.7; the fifth is of the best weights.
        (6.0, "true", SCRIPT, 2.0, 32, 0.9),
        (6.0, "false", SCRIPT, 4.0, 32, 0.65),
        (3.0, "true", BETTER, 3.0, 24, 0.3),  # evaluated three times, no fourth
        (3.0, "true", BACK, 2.0, 24, 0.2),
    ],
)
def test_when_a_run_ends_and_with_which_weights(
    epochs, restore, script, as_after, steps, accuracy, tmp_path
) -> None:
    keys = f"restore_best: {restore}"
    stopped, result, lines = run(tmp_path / "a", epochs, keys, script)
    plain, _, _ = run(tmp_path / "b", as_after)
    assert result.steps == steps and same(stopped, plain)
    assert result.metrics["accuracy"] == accuracy
    if steps == 32:
        texts = [r["text"] for r in map(json.loads, lines) if r["kind"] == "message"]
        assert texts[-1] == (
            "The training ends at epoch 4: accuracy was best (0.7000) at epoch 2."
        )


def test_a_metric_that_is_never_a_number_ends_it_too(tmp_path) -> None:
    _, result, lines = run(tmp_path, 6.0, "restore_best: true", [math.nan] * 6)
    assert result.steps == 2 * 8
    texts = [r["text"] for r in map(json.loads, lines) if r["kind"] == "message"]
    assert texts[-1] == ("The training ends at epoch 2: accuracy was never a number.")


def test_evaluations_before_the_start_do_not_count(tmp_path) -> None:
    keys = "start_epoch: 4.0\n      restore_best: true"
    script = [0.99, 0.9, 0.8, 0.1, 0.2, 0.15, 0.15, 0.2]
    _, result, _ = run(tmp_path, 8.0, keys, script)
    assert result.steps == 7 * 8


def reference(values, patience, delta, mode) -> tuple[int | None, int | None]:
    """Return the evaluation that ends a run and the best one, from the definition."""
    sign = 1.0 if mode == "max" else -1.0
    best = None
    for at, value in enumerate(values):
        if not math.isnan(value) and (
            best is None or sign * (value - values[best]) > delta
        ):
            best = at
        since = at - best if best is not None else at + 1
        if since >= patience:
            return at, best
    return None, best


def differs_somewhere() -> bool:
    """Hold random sequences against the definition."""
    draw = random.Random(3)
    model = make_model()
    for _ in range(200):
        values = [draw.choice([0.1, 0.2, 0.25, 0.3, math.nan]) for _ in range(8)]
        patience, delta = draw.randint(1, 3), draw.choice([0.0, 0.06])
        mode = draw.choice(["max", "min"])
        rules = mode, patience, delta
        modifier = EarlyStoppingModifier("f1", *rules, restore_best=False)
        modifier.initialize(model)
        told = enumerate(values)
        ended = next(
            (i for i, v in told if modifier.evaluated(model, {"f1": v}, i)), None
        )
        best = int(modifier.best_epoch) if modifier.best_epoch >= 0 else None
        modifier.finalize(model)
        if (ended, best) != reference(values, patience, delta, mode):
            return True
    return False


def test_it_agrees_with_its_definition(monkeypatch) -> None:
    assert not differs_somewhere()
    monkeypatch.setattr(
        EarlyStoppingModifier,
        "_better",
        lambda self, value: self.best is None or value >= self.best,
    )
    assert differs_somewhere()  # the negative control


def test_its_state_comes_back_with_the_best_weights() -> None:
    def start():
        model = make_model()
        modifier = EarlyStoppingModifier("f1", patience=2)
        modifier.initialize(model)
        return modifier, model

    modifier, model = start()
    best = copied(model)
    assert not modifier.evaluated(model, {"f1": 0.5}, 1.0)
    with torch.no_grad():
        model.head.weight.add_(1.0)
    assert not modifier.evaluated(model, {"f1": 0.4}, 2.0)
    other, fresh = start()
    other.load_state_dict(modifier.state_dict())
    with torch.no_grad():
        fresh.head.weight.sub_(3.0)
    assert (other.best, other.best_epoch) == (0.5, 1.0)
    assert other.evaluated(fresh, {"f1": 0.45}, 3.0)
    other.finalize(fresh)
    assert same(fresh, best)
    with pytest.raises(RuntimeError, match="uninitialized modifier"):
        EarlyStoppingModifier("f1").load_state_dict(modifier.state_dict())


def test_ranges_of_a_quantized_model_come_back_too(tmp_path) -> None:
    keys = "start_epoch: 3.0\n      restore_best: true"
    script = [0.1, 0.1, 0.5, 0.4, 0.3, 0.5]
    stopped, result, _ = run(tmp_path / "a", 6.0, keys, script, QAT)
    three, _, _ = run(tmp_path / "b", 3.0, None, script, QAT)
    assert result.steps == 5 * 8 and same(stopped, three)
    tokens = torch.arange(10).reshape(2, 5)
    stopped.eval(), three.eval()
    assert torch.equal(stopped(tokens)["logits"], three(tokens)["logits"])


def test_a_snapshot_of_another_structure_is_refused() -> None:
    model = make_model()
    snapshot = take_snapshot(model)
    assert not restore_snapshot_(model, snapshot)
    with torch.no_grad():
        model.embedding.weight.zero_()
    assert restore_snapshot_(model, snapshot)
    assert torch.equal(model.embedding.weight, make_model().embedding.weight)
    del model.layers[1]
    with pytest.raises(ValueError, match="snapshot has 11 tensors"):
        restore_snapshot_(model, snapshot)


@pytest.mark.parametrize(
    ("extra", "keys", "message"),
    [
        (GMP, "start_epoch: 3.0", "does not lie after epoch 3, at which GMPStar"),
        (GMP, "mode: max", "start_epoch=0 does not lie after epoch 3"),
        (QAT, "start_epoch: 2.0", "epoch 2, at which QATModifier .* write 3"),
        (STOP.format(keys="mode: max"), "mode: min", "a second EarlyStoppingModifier"),
    ],
)
def test_a_recipe_that_would_stop_too_early_is_refused(extra, keys, message) -> None:
    text = RECIPE.format(epochs=6.0) + STOP.format(keys=keys) + extra
    with pytest.raises(RecipeError, match=message):
        RecipeManager.from_recipe(text)
    RecipeManager.from_recipe(
        RECIPE.format(epochs=6.0) + STOP.format(keys="start_epoch: 4.0") + GMP
    )


def test_what_cannot_be_stopped_on_is_said(tmp_path, caplog) -> None:
    with pytest.raises(ValueError, match="metric=accuracy is no figure .* write loss"):
        modifier = EarlyStoppingModifier("accuracy")
        modifier.initialize(make_model())
        modifier.evaluated(make_model(), {"loss": 0.1}, 1.0)
    text = RECIPE.format(epochs=2.0) + STOP.format(keys="mode: max")
    config = TrainConfig(tmp_path, eval_each_epoch=False, cpu=True)
    with pytest.raises(ValueError, match="nothing to go by"):
        train(make_model(), make_task(), config, RecipeManager.from_recipe(text))
    modifier = EarlyStoppingModifier("accuracy", start_epoch=2.0)
    with pytest.raises(RuntimeError, match="must be initialized first"):
        modifier.evaluated(make_model(), {"accuracy": 0.1}, 1.0)
    modifier.initialize(make_model())
    modifier.finalize(make_model())
    assert "was told of no evaluation from epoch 2 on" in caplog.text
