"""The manager drives SparseML's modifiers and ours side by side."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from obert_modifiers import RecipeError, RecipeManager
from obert_modifiers.host.bases import ScheduledModifierManager
from obert_modifiers.recipe import load_recipe
from tests.hosts import on_sparseml
from tests.modifiers.table import ENCODER, make_batch, make_model, make_source
from tests.recipe.broken import brief
from tests.recipe.samples import HERE, SAMPLES, STAGED, one_modifier, same_modifiers

STEPS = 10  # optimizer steps in an epoch


def train(manager, model, epochs, start=0.0, optimizer=None):
    """Drive the manager as a training loop does; return sparsity by step."""
    parameters = model.parameters()
    optimizer = optimizer or torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    seen = []
    for step in range(round(start * STEPS), round(epochs * STEPS)):
        place = (model, optimizer, step / STEPS, STEPS)
        batch = make_batch(step)
        labels, inputs = batch.pop("labels"), batch
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs["logits"], labels)
        given = {"student_outputs": outputs, "student_inputs": inputs}
        manager.loss(loss, *place, **given).backward()
        manager.update(*place)
        manager.pre_step(*place)
        optimizer.step()
        optimizer.zero_grad()
        manager.post_step(*place)
        seen.append(manager.sparsity())
    return seen, optimizer


def zero_share(model: nn.Module, *names: str) -> float:
    weights = [model.get_parameter(name) for name in names]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


GMP = """\
num_epochs: 4
target: 0.75
training_modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: eval(num_epochs)
  - !LearningRateFunctionModifier
      lr_func: linear
      init_lr: 0.1
      final_lr: 0.0
      start_epoch: 0.0
      end_epoch: eval(num_epochs)
  - !TrainableParamsModifier
      params: [embedding.weight]
      trainable: False
pruning_modifiers:
  - !GMPruningModifier
      init_sparsity: 0.25
      final_sparsity: eval(target)
      start_epoch: 1.0
      end_epoch: 3.0
      update_frequency: 0.5
      params: ['re:layers.*weight']
"""
OURS = """\
  - !OBERTPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.75
      start_epoch: 0.5
      end_epoch: 1.5
      update_frequency: 0.5
      num_grads: 8
      fisher_block_size: 8
  - !LogitDistillationModifier
      hardness: 0.5
"""


@on_sparseml
def test_sparseml_modifiers_train_to_the_sparsity_of_the_recipe():
    manager = RecipeManager.from_recipe(GMP)
    model = make_model()
    manager.check_model(model)
    frozen = model.embedding.weight.clone()
    assert manager.sparsity() == 0.0
    manager.initialize(model)
    assert not model.embedding.weight.requires_grad
    seen, optimizer = train(manager, model, 4.0)
    cubic = [0.75 - 0.5 * (1 - x) ** 3 for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
    steps = [seen[round(epoch * STEPS)] for epoch in (1.0, 1.5, 2.0, 2.5, 3.0)]
    assert steps == pytest.approx([round(s * 96) / 96 for s in cubic])
    assert seen[:STEPS] == [0.0] * STEPS
    assert seen == sorted(seen) and seen[-1] == 0.75
    assert [zero_share(model, name) for name in ENCODER] == [0.75] * 4
    assert zero_share(model, "head.weight") == 0.0
    assert torch.equal(model.embedding.weight, frozen)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / (4 * STEPS))
    manager.finalize(model)
    assert manager.sparsity() == 0.75
    assert manager.events == []
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@on_sparseml
def test_ours_and_sparsemls_modifiers_run_side_by_side():
    manager = RecipeManager.from_recipe(
        GMP.replace("['re:layers.*weight']", "[head.weight]") + OURS
    )

    def names(modifiers):
        return [type(modifier).__name__ for modifier in modifiers]

    training = ["EpochRange", "LearningRateFunction", "TrainableParams"]
    pruning = ["OBERTPruningModifier", "GMPruningModifier"]
    distillation = ["LogitDistillationModifier"]
    everyone = [*(f"{name}Modifier" for name in training), *pruning, *distillation]
    assert sorted(names(manager.modifiers)) == sorted(everyone)
    assert names(manager.pruning) == pruning
    assert names(manager.distillation) == distillation
    assert manager.max_epochs == 4.0 and manager.sets_learning_rate
    model, teacher = make_model(), make_model(1)
    manager.check_model(model)
    manager.check_data(8)
    manager.check_teacher(teacher)
    manager.initialize(model, gradient_source=make_source(), teacher=teacher)
    seen, _ = train(manager, model, 4.0)
    assert zero_share(model, *ENCODER) == zero_share(model, "head.weight") == 0.75
    assert seen[-1] == zero_share(model, *ENCODER, "head.weight")
    assert [event.modifier for event in manager.events] == ["OBERTPruningModifier"] * 3
    assert [event.step for event in manager.events] == [5, 10, 15]
    assert manager.events[-1].sparsity_after == 0.75


@on_sparseml
def test_a_constant_modifier_holds_what_is_pruned_and_counts_weights_once():
    constant = "  - !ConstantPruningModifier\n      params: __ALL_PRUNABLE__\n"
    # SparseML cannot mask what does not require gradients.
    manager = RecipeManager.from_recipe(
        GMP.replace("able: False", "able: True") + constant
    )
    model = make_model()
    with torch.no_grad():
        model.head.weight[0] = 0.0
    manager.initialize(model)
    seen, _ = train(manager, model, 4.0)
    everything = [
        f"{n}.weight" for n, m in model.named_modules() if hasattr(m, "weight")
    ]
    pruned = zero_share(model, *everything)
    assert pruned == (0.75 * 384 + 8) / (88 + 384 + 16)
    assert seen[-1] == manager.sparsity() == pytest.approx(pruned)


def refused(check, *given) -> list[str]:
    """Return the problems of a check, as `brief` has them, and what is to be done."""
    with pytest.raises(RecipeError) as caught:
        check(*given)
    return [f"{brief(one)}: {one.message}" for one in caught.value.problems]


def test_weights_that_two_modifiers_prune_are_found_in_the_model():
    ours = "  - !GMPStarPruningModifier {final_sparsity: 0.8, start_epoch: 2.0, "

    def manager(params):
        text = f"{GMP}{ours}end_epoch: 3.5, params: {params}}}\n"
        return RecipeManager.from_recipe(text.replace("GMPruning", "GMPStarPruning"))

    manager("['re:head']").check_model(make_model())
    shared = manager(r"['re:layers\.1\.2.*weight']")
    (problem,) = refused(shared.check_model, make_model())
    assert problem.startswith("24 GMPStarPruningModifier.params CONFLICT: ")
    shown = "params=layers.1.2.weight (1 in all)", "on line 17", "from epoch 1 to 3"
    assert all(part in problem for part in shown)


@on_sparseml
def test_masks_that_are_switched_off_prune_nothing():
    # Without the modifiers that say that training goes on, which would be refused.
    alone = GMP[: GMP.index("training_modifiers")] + GMP[GMP.index("pruning_mod") :]
    manager = RecipeManager.from_recipe(alone + "      leave_enabled: False\n")
    model = make_model()
    manager.initialize(model)
    seen, _ = train(manager, model, 3.2)
    assert seen[29] > 0.7 and seen[30:] == [0.0, 0.0]


def test_one_shot_applies_the_whole_recipe():
    manager = RecipeManager.from_recipe("modifiers:\n" + OURS)
    model = make_model()
    given = {"gradient_source": make_source(), "teacher": "disable"}
    manager.initialize(model, epoch=math.inf, **given)
    assert manager.sparsity() == 0.75
    manager.finalize(model)
    assert zero_share(model, *ENCODER) == 0.75


def test_state_continues_a_run_bit_for_bit():
    text = GMP.split("pruning_modifiers:\n")[0] + "pruning_modifiers:\n" + OURS
    source, teacher = make_source(), make_model(2)
    given = {"gradient_source": source, "teacher": teacher}
    whole, model = RecipeManager.from_recipe(text), make_model(1)
    whole.initialize(model, **given)
    seen, _ = train(whole, model, 2.0)

    half, other = RecipeManager.from_recipe(text), make_model(1)
    half.initialize(other, **given)
    before, optimizer = train(half, other, 1.2)
    state = half.state_dict()
    assert set(state) == {modifier.identifier() for modifier in half.modifiers}

    again = RecipeManager.from_recipe(half.text)
    again.initialize(other, epoch=1.2, **given)
    again.load_state_dict(state)
    assert again.sparsity() == before[-1]
    after, _ = train(again, other, 2.0, start=1.2, optimizer=optimizer)
    assert before + after == seen
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@on_sparseml
def test_state_of_another_recipe_is_refused():
    manager = RecipeManager.from_recipe(GMP)
    other = RecipeManager.from_recipe(GMP, "target=0.5")
    for one in (manager, other):
        one.initialize(make_model())
    mine, theirs = (m.pruning[0].identifier() for m in (manager, other))
    with pytest.raises(ValueError, match="another recipe") as caught:
        manager.load_state_dict(other.state_dict())
    assert f"(missing: {mine}; extra: {theirs})" in str(caught.value)


@on_sparseml
def test_stages_run_one_after_the_other():
    manager = RecipeManager.from_recipe(STAGED)
    assert list(manager.host.modifiers) == ["dense", "sparse"]
    assert manager.max_epochs == 6.0 and not manager.sets_learning_rate
    model = make_model()
    manager.initialize(model)
    seen, _ = train(manager, model, 5.1)
    assert [seen[39], seen[40], seen[50]] == [0.0, 0.25, 0.5]
    manager.load_state_dict(manager.state_dict())
    manager.finalize(model)


@on_sparseml
@pytest.mark.parametrize("text", [GMP, STAGED], ids=["flat", "staged"])
def test_a_manager_of_sparseml_is_taken_over(text):
    host = ScheduledModifierManager.from_yaml(text)
    manager = RecipeManager.from_sparseml(host)
    assert manager.host is host
    assert manager.source == "<SparseML manager>"
    again = RecipeManager.from_recipe(manager.text)
    assert same_modifiers(again.modifiers, manager.modifiers)
    if text == STAGED:
        assert list(again.host.modifiers) == list(host.modifiers)
    with pytest.raises(RecipeError) as caught:
        manager.check_model(nn.Sequential(nn.Linear(2, 2)))
    lines = manager.text.split("\n")
    for problem in caught.value.problems:
        assert lines[problem.line - 1].strip().startswith("params:")


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
@pytest.mark.parametrize("name", HERE)
def test_every_modifier_is_written_as_it_is(name):
    groups = load_recipe(one_modifier(name, SAMPLES[name])).groups[""]
    manager = RecipeManager.from_sparseml(ScheduledModifierManager(modifiers=groups))
    again = RecipeManager.from_recipe(manager.text)
    assert same_modifiers(again.modifiers, groups)
    assert type(again.modifiers[0]) is type(groups[0])


@on_sparseml
def test_pruning_modifiers_that_are_the_same_are_refused_of_sparseml_too():
    host = ScheduledModifierManager.from_yaml(
        GMP + GMP.split("pruning_modifiers:\n")[1]
    )
    with pytest.raises(RecipeError, match="the modifier repeats the one on line"):
        RecipeManager.from_sparseml(host)


@on_sparseml
def test_all_names_that_the_model_lacks_are_listed():
    text = GMP.replace("[embedding.w", "[embeding.weight, 're:pooler.*', embedding.w")
    text += """\
  - !MagnitudePruningModifier
      init_sparsity: 0.0
      final_sparsity:
        0.5: [layers.0.0.weights]
      start_epoch: 0.0
      end_epoch: 1.0
      update_frequency: 1.0
      params: []
  - !LayerPruningModifier
      layers: [layers.2]
  - !TrainableParamsModifier
      params: [nothing]
      params_strict: False
      trainable: True
"""
    text += OURS.replace("block_size: 8\n", "block_size: 8\n      params: [pool]\n")
    manager = RecipeManager.from_recipe(text + "      end_epoch: 3.0\n")
    found = refused(manager.check_model, nn.DataParallel(make_model()))
    expected = {
        "14 TrainableParamsModifier.params MODEL: params=embeding.weight matches no "
        "parameter": "embedding.weight, head.weight, layers.1.2.weight",
        "14 TrainableParamsModifier.params MODEL: params=re:pooler.* matches no "
        "parameter": "layers.1.2.bias, layers.1.0.bias, layers.0.2.bias",
        "26 MagnitudePruningModifier.final_sparsity MODEL: params=layers.0.0.weights "
        "matches no parameter": "layers.0.0.weight, ",
        "33 LayerPruningModifier.layers MODEL: layers=layers.2 matches no layer": "",
        "46 OBERTPruningModifier.params MODEL: params=pool matches no parameter": "",
    }
    for problem, (said, near) in zip(found, expected.items(), strict=True):
        assert problem.startswith(f"{said}; expected a name")
        assert f"; nearest: {near}" in problem


@on_sparseml
def test_too_little_data_and_no_teacher_are_refused_with_the_line():
    manager = RecipeManager.from_recipe(GMP + OURS)
    manager.check_data(8)
    (problem,) = refused(manager.check_data, 7)
    assert problem.startswith("30 OBERTPruningModifier.num_grads DATA: num_grads=8 ")
    for teacher in ("self", "disable", make_model()):
        manager.check_teacher(teacher)
    for teacher in (None, "bert-base"):
        (problem,) = refused(manager.check_teacher, teacher)
        said = f"32 LogitDistillationModifier TEACHER: teacher={teacher} "
        assert problem.startswith(said)
    RecipeManager.from_recipe(GMP).check_teacher(None)
    RecipeManager.from_recipe(GMP).check_data(0)


@on_sparseml
def test_saved_recipe_is_the_one_that_ran(tmp_path: Path):
    manager = RecipeManager.from_recipe(GMP, {"num_epochs": 6})
    path = tmp_path / "out" / "recipe.yaml"
    manager.save(path)
    assert path.read_text() == manager.text and "eval(" not in manager.text
    again = RecipeManager.from_recipe(path)
    assert again.source == str(path)
    assert again.max_epochs == manager.max_epochs == 6.0
    host = ScheduledModifierManager.from_yaml(str(path))
    assert same_modifiers(host.iter_modifiers(), manager.modifiers)


def test_open_end_has_no_last_epoch():
    text = "modifiers:\n  - !SetLearningRateModifier\n      learning_rate: 0.1\n"
    manager = RecipeManager.from_recipe(text)
    assert manager.max_epochs is None and manager.sets_learning_rate


@on_sparseml
def test_nothing_is_sent_anywhere(monkeypatch):
    started = []

    class Thread:
        def __init__(self, **kwargs):
            started.append(kwargs)

        def start(self):
            pass

    monkeypatch.setattr("sparsezoo.analytics.threading.Thread", Thread)
    RecipeManager.from_recipe(GMP)
    assert not started
    # The same with analytics on, to see that the test would notice.
    monkeypatch.setattr("sparseml.analytics.sparseml_analytics._disabled", False)
    RecipeManager.from_recipe(GMP)
    assert started
