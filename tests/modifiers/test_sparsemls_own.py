"""SparseML's own modifiers that the recipes use: do they work with this torch?

docs/modifiers.md has the table of which need is whose.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from obert_modifiers.host import bases
from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.manager import RecipeError, RecipeManager
from obert_modifiers.recipe.plan import plan_recipe
from obert_modifiers.training import TrainConfig, train
from obert_modifiers.training.optimizer import parameter_groups
from tests.hosts import ON_SPARSEML, on_sparseml
from tests.modifiers import driving
from tests.modifiers.table import make_model
from tests.training.test_training import make_task

STEPS = 8  # optimizer steps of an epoch
ROOT = Path(__file__).parents[2]
HEAD = "modifiers:\n  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: {epochs}}}\n"


def drive(manager, model, steps, optimizer=None, first=0) -> list[float]:
    """Train; return the rate of each step."""
    optimizer, rates = optimizer or driving.adamw(model), []

    def watch(step: int) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    where = manager, model, optimizer, steps, first
    driving.train(*where, per_epoch=STEPS, watch=watch)
    return rates


def rates_of(*schedules, epochs=4.0):
    text = HEAD.format(epochs=epochs)
    for start, end, func, init, final, *cycle in schedules:
        text += f"""\
  - !LearningRateFunctionModifier
      start_epoch: {start}
      end_epoch: {end}
      lr_func: {func}
      init_lr: {init}
      final_lr: {final}
"""
        text += "".join(f"      cycle_epochs: {one}\n" for one in cycle)
    manager, model = RecipeManager.from_recipe(text), make_model()
    manager.initialize(model)
    return drive(manager, model, round(epochs * STEPS))


def test_a_rate_that_falls_and_is_rewound_once() -> None:
    rates = rates_of((0.0, 3.0, "linear", 8e-5, 2e-5), (3.0, 4.0, "linear", 5e-5, 0.0))
    for step, rate in enumerate(rates):
        epoch = step / STEPS
        falls = 8e-5 - 6e-5 * epoch / 3.0
        expected = falls if epoch < 3.0 else 5e-5 * (4.0 - epoch)
        assert rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.skipif(ON_SPARSEML, reason="SparseML goes past the last rate")
@pytest.mark.parametrize("func", ["linear", "cosine"])
def test_a_rate_that_ends_between_two_steps_stays_at_its_last(func) -> None:
    rates = rates_of((0.0, 2.55, func, 1e-2, 0.0))
    assert rates[20] > 0.0 and rates[21:] == pytest.approx([0.0] * 11, abs=1e-12)


@pytest.mark.parametrize("cycle", [0.5, 2.0])
def test_a_rate_that_is_rewound_again_and_again(cycle) -> None:
    rates = rates_of((0.0, 4.0, "cyclic_linear", 5e-4, 5e-6, cycle))
    steps = round(cycle * STEPS)
    # Each cycle's last step has the final rate: the fall is over steps - 1 steps.
    one = [5e-4 - (5e-4 - 5e-6) * i / (steps - 1) for i in range(steps)]
    assert rates == pytest.approx(one * (4 * STEPS // steps), rel=1e-9)


def test_a_cycle_of_a_single_step_is_beyond_sparseml(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError):
        rates_of((0.0, 4.0, "cyclic_linear", 5e-4, 5e-6, 1 / STEPS))
    text = (
        HEAD.format(epochs=4.0)
        + """\
  - !LearningRateFunctionModifier
      start_epoch: 0.0
      end_epoch: 4.0
      lr_func: cyclic_linear
      cycle_epochs: 0.125
      init_lr: 0.1
      final_lr: 0.01
"""
    )
    said = "7: .* cycle_epochs=0.125 is 1 of the 8 steps .* expected two steps"
    manager = RecipeManager.from_recipe(text)
    manager.check_steps(2 * STEPS)
    config = TrainConfig(tmp_path, per_device_train_batch_size=8, cpu=True)
    for call in (
        lambda: manager.check_steps(STEPS),
        lambda: plan_recipe(load_recipe(text), steps_per_epoch=STEPS),
        lambda: train(make_model(), make_task(), config, manager),
    ):
        with pytest.raises(RecipeError, match=said):
            call()


def test_weight_decay_of_the_matrices_alone(tmp_path) -> None:
    plain = HEAD.format(epochs=1.0)
    decay = f"{plain}  - !SetWeightDecayModifier\n      weight_decay: 0.5\n"

    def trained(recipe, weight_decay):
        model = make_model()
        torch.manual_seed(7)
        config = TrainConfig(
            tmp_path,
            num_train_epochs=1.0,
            learning_rate=1e-2,
            weight_decay=weight_decay,
            per_device_train_batch_size=8,
            cpu=True,
        )
        train(model, make_task(), config, RecipeManager.from_recipe(recipe))
        return model

    by_recipe = trained(f"{decay}      param_groups: [0]\n", 0.0)
    by_flag, everywhere = trained(plain, 0.5), trained(decay, 0.0)
    assert driving.same(by_recipe, by_flag)
    assert not driving.same(everywhere, by_flag)  # biases too: the negative control
    matrices, vectors = parameter_groups(make_model(), 0.0)
    assert all(p.ndim > 1 for p in matrices["params"])
    assert all(p.ndim == 1 for p in vectors["params"])


def test_trainable_params_freezes_and_releases_in_one_process() -> None:
    text = (
        HEAD.format(epochs=3.0)
        + """\
  - !TrainableParamsModifier
      params: ['re:embedding.*']
      trainable: false
      start_epoch: 1.0
      end_epoch: 2.0
"""
    )
    manager, model = RecipeManager.from_recipe(text), make_model()
    manager.initialize(model)
    optimizer = driving.adamw(model)  # with momentum from the first epoch on
    moved = []
    for epoch in range(3):
        before = model.embedding.weight.detach().clone()
        drive(manager, model, (epoch + 1) * STEPS, optimizer, epoch * STEPS)
        moved.append(not torch.equal(before, model.embedding.weight))
    assert moved == [True, False, True]


@on_sparseml
def test_layer_pruning_leaves_a_model_that_does_not_run() -> None:
    """The reason for a `LayerDropModifier` of ours."""
    text = HEAD.format(epochs=1.0) + "  - !LayerPruningModifier\n"
    text += "      layers: ['bert.encoder.layer.1']\n      start_epoch: 0.0\n"
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=40, num_hidden_layers=3, **shape)
    manager, model = RecipeManager.from_recipe(text), BertModel(config)
    model = nn.ModuleDict({"bert": model})
    manager.initialize(model)
    manager.update(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.0, STEPS)
    assert type(model["bert"].encoder.layer[1]).__name__ == "Identity"
    assert model["bert"].config.num_hidden_layers == 3
    with pytest.raises(AttributeError, match="'tuple' object"):
        model["bert"](input_ids=torch.ones(2, 4, dtype=torch.long))


def test_sparseml_has_no_early_stopping() -> None:
    names = {n for n in bases.modifier_classes() if re.search("stop|patien", n, re.I)}
    assert names == {"EarlyStoppingModifier"}


@on_sparseml
def test_the_table_names_modifiers_and_tests_that_exist() -> None:
    text = (ROOT / "docs" / "modifiers.md").read_text(encoding="utf-8")
    text = text.partition("\n## ")[0]  # the tables of keys come after it
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line[:2] == "| "]
    assert len(rows) == 11  # a head and ten needs
    for _need, modifier, whose, _why, tests in rows[1:]:
        (name,) = re.findall(r"`!(\w+)`", modifier)
        cls = bases.modifier_classes()[name]
        assert ("SparseML" in whose) == cls.__module__.startswith("sparseml.")
        for path in re.findall(r"`(tests/\S+\.py)`", tests):
            assert name in (ROOT / path).read_text(encoding="utf-8")
        assert "tests/" in tests
