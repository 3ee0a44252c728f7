"""SparseML's own modifiers that the recipes use: do they work with this torch?

docs/modifiers.md has the table of which need is whose.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.host import bases
from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.manager import RecipeError, RecipeManager
from obert_modifiers.recipe.plan import plan_recipe
from obert_modifiers.training import TrainConfig, train
from obert_modifiers.training.optimizer import parameter_groups
from tests.hosts import on_sparseml
from tests.modifiers.table import ENCODER, make_batch, make_model, sample_loss
from tests.training.test_training import make_task

STEPS = 8  # optimizer steps of an epoch
ROOT = Path(__file__).parents[2]
HEAD = "modifiers:\n  - !EpochRangeModifier\n      start_epoch: 0.0\n"
HEAD += "      end_epoch: {epochs}\n"
MASKS = HEAD + "  - !ConstantPruningModifier\n      params: ['re:layers.*weight']\n"
MASKS += "      start_epoch: 0.0\n"
QAT = "  - !QATModifier\n      start_epoch: 1.0\n      disable_observer_epoch: 2.0\n"


def prune_half(model: nn.Module) -> None:
    with torch.no_grad():
        for name in ENCODER:
            flat = model.get_parameter(name).view(-1)
            flat[flat.abs().argsort()[::2]] = 0.0


def zeros(model: nn.Module) -> list[torch.Tensor]:
    return [model.get_parameter(name) == 0 for name in ENCODER]


def drive(manager, model, steps, optimizer=None, start=0):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    rates = []
    for step in range(start, steps):
        sample_loss(model, make_batch(step)).mean().backward()
        where = (model, optimizer, step / STEPS, STEPS)
        manager.update(*where)
        rates.append(optimizer.param_groups[0]["lr"])
        manager.pre_step(*where)
        optimizer.step()
        manager.post_step(*where)
        optimizer.zero_grad()
    return rates


@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "quantized"])
def test_constant_masks_hold_under_adamw(quantized) -> None:
    model = make_model()
    prune_half(model)
    before = zeros(model)
    manager = RecipeManager.from_recipe(
        MASKS.format(epochs=3.0) + (QAT if quantized else "")
    )
    manager.initialize(model)
    start = model.get_parameter(ENCODER[0]).detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    drive(manager, model, 3 * STEPS, optimizer)
    manager.finalize(model)
    assert all(torch.equal(a, b) for a, b in zip(before, zeros(model), strict=True))
    moved = model.get_parameter(ENCODER[0]) != start
    assert torch.equal(moved, ~before[0])  # all that is left still learns
    assert bool(quantizers_of(model)) is quantized
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_without_constant_masks_the_zeros_grow_back() -> None:
    model = make_model()
    prune_half(model)
    manager = RecipeManager.from_recipe(HEAD.format(epochs=1.0))
    manager.initialize(model)
    drive(manager, model, STEPS)
    assert not any(mask.any() for mask in zeros(model))  # the negative control


def test_constant_masks_are_taken_up_again_from_a_saved_model() -> None:
    model = make_model()
    prune_half(model)
    before = zeros(model)
    text = MASKS.format(epochs=3.0)
    manager = RecipeManager.from_recipe(text)
    manager.initialize(model)
    drive(manager, model, STEPS)
    again, resumed = RecipeManager.from_recipe(text), make_model(1)
    resumed.load_state_dict(model.state_dict())
    again.initialize(resumed, epoch=1.0)
    again.load_state_dict(manager.state_dict())
    drive(again, resumed, 2 * STEPS, start=STEPS)
    assert all(torch.equal(a, b) for a, b in zip(before, zeros(resumed), strict=True))


def rates_of(*schedules, epochs=4.0):
    text = HEAD.format(epochs=epochs)
    for start, end, func, first, last, *cycle in schedules:
        text += f"  - !LearningRateFunctionModifier\n      start_epoch: {start}\n"
        text += f"      end_epoch: {end}\n      lr_func: {func}\n"
        text += f"      init_lr: {first}\n      final_lr: {last}\n"
        text += "".join(f"      cycle_epochs: {one}\n" for one in cycle)
    manager, model = RecipeManager.from_recipe(text), make_model()
    manager.initialize(model)
    return drive(manager, model, round(epochs * STEPS))


def test_a_rate_that_falls_and_is_rewound_once() -> None:
    rates = rates_of((0.0, 3.0, "linear", 8e-5, 2e-5), (3.0, 4.0, "linear", 5e-5, 0.0))
    for step, rate in enumerate(rates):
        epoch = step / STEPS
        first = 8e-5 - 6e-5 * epoch / 3.0
        expected = first if epoch < 3.0 else 5e-5 * (4.0 - epoch)
        assert rate == pytest.approx(expected, rel=1e-12)


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
    text = HEAD.format(epochs=4.0) + "  - !LearningRateFunctionModifier\n"
    text += "      start_epoch: 0.0\n      end_epoch: 4.0\n"
    text += "      lr_func: cyclic_linear\n      cycle_epochs: 0.125\n"
    text += "      init_lr: 0.1\n      final_lr: 0.01\n"
    said = "9: .* cycle_epochs=0.125 is 1 of the 8 steps .* expected two steps"
    manager = RecipeManager.from_recipe(text)
    manager.check_steps(2 * STEPS)
    with pytest.raises(RecipeError, match=said):
        manager.check_steps(STEPS)
    with pytest.raises(RecipeError, match=said):
        plan_recipe(load_recipe(text), steps_per_epoch=STEPS)
    config = TrainConfig(tmp_path, per_device_train_batch_size=8, cpu=True)
    with pytest.raises(RecipeError, match=said):
        train(make_model(), make_task(), config, manager)


def test_weight_decay_of_the_matrices_alone(tmp_path) -> None:
    decay = HEAD.format(epochs=1.0)
    decay += "  - !SetWeightDecayModifier\n      weight_decay: 0.5\n"
    decay += "      param_groups: [0]\n"

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
        manager = RecipeManager.from_recipe(recipe)
        train(model, make_task(), config, manager)
        return torch.cat([p.detach().view(-1) for p in model.parameters()])

    by_recipe, by_flag = trained(decay, 0.0), trained(HEAD.format(epochs=1.0), 0.5)
    assert torch.equal(by_recipe, by_flag)
    everywhere = trained(decay.replace("      param_groups: [0]\n", ""), 0.0)
    assert not torch.equal(everywhere, by_flag)  # biases too: the negative control
    matrices, vectors = parameter_groups(make_model(), 0.0)
    assert all(p.ndim > 1 for p in matrices["params"])
    assert all(p.ndim == 1 for p in vectors["params"])


def test_trainable_params_freezes_and_releases_in_one_process() -> None:
    text = HEAD.format(epochs=3.0) + "  - !TrainableParamsModifier\n"
    text += "      params: ['re:embedding.*']\n      trainable: false\n"
    text += "      start_epoch: 1.0\n      end_epoch: 2.0\n"
    manager, model = RecipeManager.from_recipe(text), make_model()
    manager.initialize(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    seen = [model.embedding.weight.detach().clone()]
    for epoch in range(3):
        drive(
            manager, model, (epoch + 1) * STEPS, optimizer, start=epoch * STEPS
        )  # with momentum from the first epoch on
        seen.append(model.embedding.weight.detach().clone())
    moved = [not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False)]
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
    ours = {"EarlyStoppingModifier"}
    names = {n for n in bases.modifier_classes() if re.search("stop|patien", n, re.I)}
    assert names == ours


@on_sparseml
def test_the_table_names_modifiers_and_tests_that_exist() -> None:
    text = (ROOT / "docs" / "modifiers.md").read_text(encoding="utf-8")
    text = text.partition("\n## ")[0]  # the tables of keys come after it
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line[:2] == "| "]
    assert len(rows) == 10  # a head and nine needs
    for _need, modifier, whose, _why, tests in rows[1:]:
        (name,) = re.findall(r"`!(\w+)`", modifier)
        cls = bases.modifier_classes()[name]
        assert ("SparseML" in whose) == cls.__module__.startswith("sparseml.")
        for path in re.findall(r"`(tests/\S+\.py)`", tests):
            assert name in (ROOT / path).read_text(encoding="utf-8")
        assert "tests/" in tests
