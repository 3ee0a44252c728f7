"""The manager drives SparseML's modifiers and ours side by side."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from obert_modifiers import RecipeError, RecipeManager
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.host.bases import ScheduledModifierManager
from obert_modifiers.recipe import load_recipe
from tests.hosts import on_sparseml
from tests.recipe.samples import HERE, SAMPLES, one_modifier

STEPS = 10  # optimizer steps in an epoch


class Encoder(nn.Module):
    """An embedding, two encoder layers in a list and a head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(6, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, inputs):
        hidden = self.embedding(inputs)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return {"logits": self.head(hidden)}


def gradient_source(batch_size: int = 4) -> GradientSource:
    """Return endless fixed data with a loss for each sample."""

    def batches(request):
        generator = torch.Generator().manual_seed(1)
        while True:
            inputs = torch.randn(batch_size, 6, generator=generator)
            yield {"inputs": inputs, "labels": (inputs[:, 0] > 0).long()}

    def loss(model, batch):
        logits = model(batch["inputs"])["logits"]
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

    return GradientSource(batches=batches, loss=loss)


def train(manager, model, epochs, start=0.0, optimizer=None):
    """Drive the manager as a training loop does; return sparsity by step."""
    parameters = model.parameters()
    optimizer = optimizer or torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    seen = []
    for step, batch in enumerate(gradient_source().batches(None)):
        if step < round(start * STEPS):
            continue
        if step == round(epochs * STEPS):
            break
        place = (model, optimizer, step / STEPS, STEPS)
        outputs = model(batch["inputs"])
        loss = nn.functional.cross_entropy(outputs["logits"], batch["labels"])
        inputs = {"inputs": batch["inputs"]}
        loss = manager.loss(
            loss, *place, student_outputs=outputs, student_inputs=inputs
        )
        loss.backward()
        manager.update(*place)
        manager.pre_step(*place)
        optimizer.step()
        optimizer.zero_grad()
        manager.post_step(*place)
        seen.append(manager.sparsity())
    return seen, optimizer


def zero_share(*weights: torch.Tensor) -> float:
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
    model = Encoder()
    manager.check_model(model)
    frozen = model.embedding.weight.clone()
    assert manager.sparsity() == 0.0
    manager.initialize(model)
    assert not model.embedding.weight.requires_grad
    seen, optimizer = train(manager, model, 4.0)
    cubic = [0.75 - 0.5 * (1 - x) ** 3 for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
    steps = [seen[round(epoch * STEPS)] for epoch in (1.0, 1.5, 2.0, 2.5, 3.0)]
    assert steps == pytest.approx([round(s * 64) / 64 for s in cubic])
    assert seen[:STEPS] == [0.0] * STEPS
    assert seen == sorted(seen)
    assert seen[-1] == 0.75
    weights = [layer.weight for layer in model.layers]
    assert [zero_share(weight) for weight in weights] == [0.75, 0.75]
    assert zero_share(model.head.weight) == 0.0
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
    names = [type(modifier).__name__ for modifier in manager.modifiers]
    assert sorted(names) == [
        "EpochRangeModifier",
        "GMPruningModifier",
        "LearningRateFunctionModifier",
        "LogitDistillationModifier",
        "OBERTPruningModifier",
        "TrainableParamsModifier",
    ]
    assert [type(m).__name__ for m in manager.pruning] == [
        "OBERTPruningModifier",
        "GMPruningModifier",
    ]
    assert [type(m).__name__ for m in manager.distillation] == [
        "LogitDistillationModifier"
    ]
    assert manager.max_epochs == 4.0
    assert manager.sets_learning_rate
    model, teacher = Encoder(), Encoder()
    manager.check_model(model)
    manager.check_data(8)
    manager.check_teacher(teacher)
    manager.initialize(model, gradient_source=gradient_source(), teacher=teacher)
    seen, _ = train(manager, model, 4.0)
    layers = [layer.weight for layer in model.layers]
    assert zero_share(*layers) == 0.75
    assert zero_share(model.head.weight) == 0.75
    assert seen[-1] == zero_share(*layers, model.head.weight)
    assert [event.modifier for event in manager.events] == ["OBERTPruningModifier"] * 3
    assert [event.step for event in manager.events] == [5, 10, 15]
    assert [event.sparsity_after for event in manager.events][-1] == 0.75


@on_sparseml
def test_a_constant_modifier_holds_what_is_pruned_and_counts_weights_once():
    constant = "  - !ConstantPruningModifier\n      params: __ALL_PRUNABLE__\n"
    # SparseML cannot mask what does not require gradients.
    manager = RecipeManager.from_recipe(
        GMP.replace("able: False", "able: True") + constant
    )
    model = Encoder()
    with torch.no_grad():
        model.head.weight[0] = 0.0
    manager.initialize(model)
    seen, _ = train(manager, model, 4.0)
    everything = [
        module.weight for module in model.modules() if isinstance(module, nn.Linear)
    ]
    pruned = zero_share(*everything)
    assert pruned == (0.75 * 128 + 8) / (48 + 128 + 16)
    assert seen[-1] == pytest.approx(pruned)
    assert manager.sparsity() == pytest.approx(pruned)


def test_weights_that_two_modifiers_prune_are_found_in_the_model():
    ours = "  - !GMPStarPruningModifier {final_sparsity: 0.8, start_epoch: 2.0, "
    for params, shared in ((r"['re:layers\.1.*weight']", 1), ("['re:head']", 0)):
        text = f"{GMP}{ours}end_epoch: 3.5, params: {params}}}\n"
        manager = RecipeManager.from_recipe(text.replace("GMPruning", "GMPStarPruning"))
        if not shared:
            manager.check_model(Encoder())
            continue
        with pytest.raises(RecipeError) as caught:
            manager.check_model(Encoder())
        assert str(caught.value) == (
            "<recipe text>:24: GMPStarPruningModifier.params: params=layers.1.weight (1"
            " in all) is pruned by GMPStarPruningModifier on line 17 at the same time, "
            "from epoch 1 to 3; expected one pruning modifier for a weight at a time; "
            "name other parameters, or begin where the other ends"
        )


@on_sparseml
def test_masks_that_are_switched_off_prune_nothing():
    # Without the modifiers that say that training goes on, which would be refused.
    alone = GMP[: GMP.index("training_modifiers")] + GMP[GMP.index("pruning_mod") :]
    manager = RecipeManager.from_recipe(alone + "      leave_enabled: False\n")
    model = Encoder()
    manager.initialize(model)
    seen, _ = train(manager, model, 3.2)
    assert seen[29] > 0.7
    assert seen[30:] == [0.0, 0.0]


def test_one_shot_applies_the_whole_recipe():
    manager = RecipeManager.from_recipe("modifiers:\n" + OURS)
    model = Encoder()
    manager.initialize(
        model, epoch=math.inf, gradient_source=gradient_source(), teacher="disable"
    )
    assert manager.sparsity() == 0.75
    manager.finalize(model)
    assert zero_share(*(layer.weight for layer in model.layers)) == 0.75


def test_state_continues_a_run_bit_for_bit():
    def start(text):
        manager = RecipeManager.from_recipe(text)
        model, teacher = Encoder(), Encoder()
        for one, seed in ((model, 1), (teacher, 2)):
            torch.manual_seed(seed)
            for parameter in one.parameters():
                nn.init.normal_(parameter)
        return manager, model, teacher

    text = GMP.split("pruning_modifiers:\n")[0] + "pruning_modifiers:\n" + OURS
    whole, model, teacher = start(text)
    whole.initialize(model, gradient_source=gradient_source(), teacher=teacher)
    seen, _ = train(whole, model, 2.0)

    half, other, teacher = start(text)
    half.initialize(other, gradient_source=gradient_source(), teacher=teacher)
    before, optimizer = train(half, other, 1.2)
    state = half.state_dict()
    assert set(state) == {modifier.identifier() for modifier in half.modifiers}

    again = RecipeManager.from_recipe(half.text)
    again.initialize(
        other, epoch=1.2, gradient_source=gradient_source(), teacher=teacher
    )
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
        one.initialize(Encoder())
    mine, theirs = (m.pruning[0].identifier() for m in (manager, other))
    with pytest.raises(ValueError) as caught:
        manager.load_state_dict(other.state_dict())
    assert str(caught.value) == (
        f"state is of another recipe (missing: {mine}; extra: {theirs}); expected the "
        "modifiers of <recipe text>; resume with the recipe that the state was saved "
        "with"
    )


STAGED = """\
num_epochs: 2
one:
  one_modifiers:
    - !EpochRangeModifier
        start_epoch: 0.0
        end_epoch: eval(num_epochs)
two:
  two_modifiers:
    - !GMPruningModifier
        init_sparsity: 0.25
        final_sparsity: 0.5
        start_epoch: 2.0
        end_epoch: 3.0
        update_frequency: 0.5
        params: ['re:layers.*weight']
"""


@on_sparseml
def test_stages_run_one_after_the_other():
    manager = RecipeManager.from_recipe(STAGED)
    assert list(manager.host.modifiers) == ["one", "two"]
    assert manager.max_epochs == 3.0
    assert not manager.sets_learning_rate
    model = Encoder()
    manager.initialize(model)
    seen, _ = train(manager, model, 3.1)
    assert [seen[19], seen[20], seen[30]] == [0.0, 0.25, 0.5]
    manager.load_state_dict(manager.state_dict())
    manager.finalize(model)


@on_sparseml
@pytest.mark.parametrize("staged", [False, True])
def test_a_manager_of_sparseml_is_taken_over(staged):
    text = STAGED if staged else GMP
    host = ScheduledModifierManager.from_yaml(text)
    manager = RecipeManager.from_sparseml(host)
    assert manager.host is host
    assert manager.source == "<SparseML manager>"
    again = RecipeManager.from_recipe(manager.text)
    assert [m.identifier() for m in again.modifiers] == [
        m.identifier() for m in manager.modifiers
    ]
    assert list(again.host.modifiers) == list(host.modifiers) or not staged
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
    assert again.modifiers[0].identifier() == groups[0].identifier()
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
    text = (
        GMP.replace("[embedding.weight]", "[embeding.weight, 're:pooler.*', head.bias]")
        + "  - !MagnitudePruningModifier\n"
        "      init_sparsity: 0.0\n"
        "      final_sparsity:\n"
        "        0.5: [layers.0.weights]\n"
        "      start_epoch: 0.0\n"
        "      end_epoch: 1.0\n"
        "      update_frequency: 1.0\n"
        "      params: []\n"
        "  - !LayerPruningModifier\n"
        "      layers: [layers.2]\n"
        "  - !TrainableParamsModifier\n"
        "      params: [nothing]\n"
        "      params_strict: False\n"
        "      trainable: True\n" + OURS + "      end_epoch: 3.0\n"
    ).replace("fisher_block_size: 8\n", "fisher_block_size: 8\n      params: [pool]\n")
    manager = RecipeManager.from_recipe(text)
    expected = "expected a name in the model, a re: pattern or one of __ALL__, "
    with pytest.raises(RecipeError) as caught:
        manager.check_model(nn.DataParallel(Encoder()))
    found = str(caught.value).split("\n")
    assert found[:4] == [
        "<recipe text>:14: TrainableParamsModifier.params: params=embeding.weight "
        f"matches no parameter; {expected}__ALL_PRUNABLE__; nearest: embedding.weight, "
        "head.weight, embedding.bias",
        "<recipe text>:14: TrainableParamsModifier.params: params=re:pooler.* matches "
        f"no parameter; {expected}__ALL_PRUNABLE__; nearest: layers.1.bias, "
        "layers.0.bias, layers.1.weight",
        "<recipe text>:26: MagnitudePruningModifier.final_sparsity: "
        f"params=layers.0.weights matches no parameter; {expected}__ALL_PRUNABLE__; "
        "nearest: layers.0.weight, layers.1.weight, layers.0.bias",
        "<recipe text>:33: LayerPruningModifier.layers: layers=layers.2 matches no "
        f"layer; {expected}__ALL_PRUNABLE__; nearest: layers.1, layers.0, layers",
    ]
    assert len(found) == 5
    assert found[4].startswith(
        "<recipe text>:46: OBERTPruningModifier.params: params=pool matches no "
    )


@on_sparseml
def test_too_little_data_and_no_teacher_are_refused_with_the_line():
    manager = RecipeManager.from_recipe(GMP + OURS)
    manager.check_data(8)
    with pytest.raises(RecipeError) as caught:
        manager.check_data(7)
    assert str(caught.value) == (
        "<recipe text>:30: OBERTPruningModifier.num_grads: num_grads=8 is more than "
        "the 7 training samples; expected a sample for each gradient; lower num_grads "
        "to 7 or train on more samples"
    )
    for teacher in ("self", "disable", Encoder()):
        manager.check_teacher(teacher)
    for teacher in (None, "bert-base"):
        with pytest.raises(RecipeError) as caught:
            manager.check_teacher(teacher)
        assert str(caught.value) == (
            f"<recipe text>:32: LogitDistillationModifier: teacher={teacher} cannot be "
            "distilled from; expected a model; pass one, as with --distill_teacher, or "
            "'disable', or remove this modifier"
        )
    RecipeManager.from_recipe(GMP).check_teacher(None)
    RecipeManager.from_recipe(GMP).check_data(0)


@on_sparseml
def test_saved_recipe_is_the_one_that_ran(tmp_path: Path):
    manager = RecipeManager.from_recipe(GMP, {"num_epochs": 6})
    path = tmp_path / "out" / "recipe.yaml"
    manager.save(path)
    assert path.read_text() == manager.text
    again = RecipeManager.from_recipe(path)
    assert again.source == str(path)
    assert again.max_epochs == manager.max_epochs == 6.0
    assert "eval(" not in manager.text
    host = ScheduledModifierManager.from_yaml(str(path))
    assert [m.identifier() for m in host.iter_modifiers()] == [
        m.identifier() for m in manager.modifiers
    ]


def test_open_end_has_no_last_epoch():
    text = "modifiers:\n  - !SetLearningRateModifier\n      learning_rate: 0.1\n"
    manager = RecipeManager.from_recipe(text)
    assert manager.max_epochs is None
    assert manager.sets_learning_rate


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
