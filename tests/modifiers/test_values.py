"""Recipe values: what is accepted, what is refused, and with which words."""

import logging

import pytest
import torch

from obert_modifiers.host.bases import Modifier
from obert_modifiers.modifiers import (
    GMPStarPruningModifier,
    LogitDistillationModifier,
    OBERTPruningModifier,
)
from obert_modifiers.modifiers.keys import REGISTRY
from obert_modifiers.recipe.load import load_recipe
from obert_modifiers.recipe.plan import plan_recipe
from tests.modifiers.broken_values import BROKEN, SAID, SOUND
from tests.modifiers.driving import zeros
from tests.modifiers.table import (
    ENCODER,
    HALF,
    SCHEDULE,
    make_batch,
    make_model,
    make_source,
)


def gmp(**keys) -> GMPStarPruningModifier:
    return GMPStarPruningModifier(**SCHEDULE | keys)


def obert(**keys) -> OBERTPruningModifier:
    return OBERTPruningModifier(**SCHEDULE | keys)


def yaml_of(tag: str, **keys) -> str:
    return f"!{tag}\n" + "".join(
        f"    {k}: {v}\n" for k, v in (SCHEDULE | keys).items()
    )


@pytest.mark.parametrize(("name", "keys", "key", "rule"), BROKEN)
def test_broken_values(name, keys, key, rule) -> None:
    with pytest.raises(ValueError) as error:
        REGISTRY[name](**{**SOUND.get(name, {}), **keys})
    assert [(one.key, one.rule) for one in error.value.faults] == [(key, rule)]


@pytest.mark.parametrize(("keys", "message"), SAID)
def test_what_is_said_of_a_broken_value(keys, message) -> None:
    with pytest.raises(ValueError) as error:
        obert(**keys)
    assert str(error.value) == message


def test_a_teacher_that_is_no_model() -> None:
    modifier = LogitDistillationModifier()
    with pytest.raises(ValueError, match="distillation_teacher=best is unknown"):
        modifier.initialize(make_model(), distillation_teacher="best")


def test_numbers_that_pyyaml_reads_as_strings() -> None:
    modifier = Modifier.load_obj(yaml_of("OBERTPruningModifier", damp="1e-7"))
    assert modifier.damp == 1e-7
    assert modifier.damp_fraction is None
    assert obert().damp_fraction == 0.01


def test_each_parameter_may_keep_just_what_all_keep() -> None:
    for tenths in range(3, 10):
        modifier = gmp(final_sparsity=tenths / 10, min_density=(10 - tenths) / 10)
        assert modifier.min_density == (10 - tenths) / 10


def test_params_as_string_list_pattern_and_token(caplog) -> None:
    model = make_model()

    def names(params):
        return gmp(params=params).resolve_targets(model)

    assert names("__ALL_ENCODER__") == names(["__ALL_ENCODER__"]) == ENCODER
    assert names(None) == names([]) == ENCODER
    assert names(ENCODER[1]) == [ENCODER[1]]
    assert names([ENCODER[2], "re:layers.0.*weight"]) == ENCODER[:3]
    with caplog.at_level(logging.WARNING):
        prunable = names("__ALL_PRUNABLE__")
    assert prunable == ["embedding.weight", *ENCODER, "head.weight"]
    assert "embedding.weight, head.weight" in caplog.text
    assert names("__ALL__") == [n for n, _ in model.named_parameters()]


def test_params_that_match_nothing_name_the_nearest() -> None:
    modifier = gmp(params=["layers.0.1.weight"])
    with pytest.raises(ValueError, match="nearest: layers.0.2.weight") as error:
        modifier.resolve_targets(make_model())
    assert str(error.value).startswith(
        "params=layers.0.1.weight matches no parameter; expected a name, a re: pattern "
        "or one of __ALL__, __ALL_PRUNABLE__, __ALL_ENCODER__; nearest: "
    )
    headless = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="params=__ALL_ENCODER__ matches no parameter"):
        gmp().resolve_targets(headless)


@pytest.mark.parametrize("global_sparsity", [True, False])
def test_final_sparsity_by_parameter(global_sparsity: bool) -> None:
    goals = {0.5: [ENCODER[0], ENCODER[1]], 0.25: ["re:layers.1.*weight"]}
    model = make_model()
    modifier = gmp(final_sparsity=goals, params=[], global_sparsity=global_sparsity)
    assert modifier.final_sparsity == goals
    modifier.apply(model)
    found = [int(mask.sum()) for mask in zeros(model)]
    if global_sparsity:
        assert found[0] + found[1] == 96 and found[2] + found[3] == 48
    else:
        assert found == [48, 48, 24, 24]


def test_a_goal_below_the_first_sparsity_is_reached_at_once() -> None:
    goals = {0.25: [ENCODER[0]], 0.75: [ENCODER[1]]}
    model, keys = make_model(), {"init_sparsity": 0.5, "global_sparsity": False}
    modifier = gmp(final_sparsity=goals, params=[], **keys)
    modifier.initialize(model)
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for epoch in (1.0, 3.0):
        modifier.scheduled_update(model, optimizer, epoch, 4)
        found.append([int(mask.sum()) for mask in zeros(model)][:2])
    assert found == [[24, 48], [24, 72]]
    text = f"modifiers:\n  - {modifier}\n".replace("\n    ", "\n      ")
    (plan,) = plan_recipe(load_recipe(text)).pruning
    assert plan.events[0].sparsities == (0.25, 0.5)


def test_init_sparsity_from_the_parameters() -> None:
    model, shares = make_model(), [0.25, 0.5, 0.75, 0.0]
    with torch.no_grad():
        for name, share in zip(ENCODER, shares, strict=True):
            flat = model.get_parameter(name).view(-1)
            flat[: int(share * flat.numel())] = 0.0
    before = zeros(model)
    modifier = gmp(init_sparsity="__FROM_PARAM__", final_sparsity=0.9)
    assert modifier.init_sparsity == "__FROM_PARAM__"
    modifier.initialize(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modifier.scheduled_update(model, optimizer, 1.0, 4)
    assert modifier.applied_sparsity == shares
    for zero, mask in zip(before, modifier.module_masks.param_masks, strict=True):
        assert torch.equal(~mask, zero)


def test_sparsity_zero_makes_no_event() -> None:
    modifier = gmp(init_sparsity=0.0, final_sparsity=0.0)
    modifier.apply(make_model(), finalize=False)
    assert modifier.events == []
    assert modifier.module_masks.sparsity() == 0.0


def test_obert_needs_a_source_of_gradients() -> None:
    with pytest.raises(RuntimeError, match="to initialize GradSampler"):
        obert().initialize(make_model())
    with pytest.raises(RuntimeError, match="grad_sampler has no loss_function"):
        given = {"data_loader_builder": list}
        obert().initialize(make_model(), grad_sampler=given)


def test_sparsemls_grad_sampler_gives_the_same_masks_as_ours() -> None:
    def build(options):
        assert options == {"batch_size": 8}
        for i in range(4):
            batch = make_batch(i)
            yield [batch["tokens"]], {}, batch["labels"]

    def mean_loss(outputs, target):
        return torch.nn.functional.cross_entropy(outputs["logits"], target)

    keys = {"num_grads": 32, "fisher_block_size": 10}
    keys["grad_sampler_kwargs"] = {"batch_size": 8}
    ours, theirs = make_model(), make_model()
    obert(**keys).apply(ours, gradient_source=make_source())
    sampler = {"data_loader_builder": build, "loss_function": mean_loss}
    obert(**keys).apply(theirs, grad_sampler=sampler)
    for name in ENCODER:
        pair = ours.get_parameter(name), theirs.get_parameter(name)
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)


def test_too_few_gradients_are_said(caplog) -> None:
    modifier = obert(num_grads=64, fisher_block_size=10)
    with caplog.at_level(logging.WARNING):
        modifier.apply(make_model(), gradient_source=make_source())
    assert "num_grads=64: only 32 gradients could be used" in caplog.text


def test_distillation_without_outputs_and_disabled(caplog) -> None:
    model, loss = make_model(), torch.tensor(1.5)
    modifier = LogitDistillationModifier(start_epoch=1.0, end_epoch=2.0, hardness=1.0)
    modifier.initialize(model, distillation_teacher=make_model(1))
    with pytest.raises(ValueError, match="student_outputs and student_inputs are"):
        modifier.loss_update(loss, model, None, 1.0, 4)
    disabled = LogitDistillationModifier()
    with caplog.at_level(logging.WARNING):
        disabled.initialize(model)
    assert "distillation_teacher=disable" in caplog.text
    assert float(disabled.loss_update(loss, model, None, 1.0, 4)) == 1.5


MIXED = {0.5: [ENCODER[0]], 0.75: [ENCODER[1]]}


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({}, "final_sparsity=0.75", "expected 0.5; write 0.5"),
        ({"init_sparsity": 0.7, **HALF}, "init_sparsity=0.7", "expected at most 0.5"),
        ({"final_sparsity": MIXED, "params": []}, "final_sparsity=0.75", "write 0.5"),
    ],
)
def test_n_m_has_one_final_sparsity(keys, key, words) -> None:
    with pytest.raises(ValueError) as error:
        gmp(**{"mask_type": "2:4", **keys})
    said = str(error.value)
    assert key in said and "the sparsity of mask_type=2:4" in said and words in said


def test_n_m_that_has_no_end_in_decimals() -> None:
    assert gmp(mask_type="1:3", final_sparsity=0.667).final_sparsity == 2 / 3


def test_n_m_of_yaml_without_quotes() -> None:
    """YAML 1.1 reads 2:4 as 2 * 60 + 4."""
    text = yaml_of("GMPStarPruningModifier", **HALF)
    assert Modifier.load_obj(text).mask_type == "2:4"
    for number in (5, 60, 120, True):
        with pytest.raises(ValueError, match=f"mask_type={number} is unknown|keeps 2"):
            gmp(mask_type=number)


@pytest.mark.parametrize("mask_type", ["block:5x1", "block:1x5", "3:5"])
def test_groups_that_do_not_divide_a_parameter(mask_type: str) -> None:
    final = 0.4 if mask_type == "3:5" else 0.75
    with pytest.raises(ValueError, match="of layers.0.0.weight, shape"):
        gmp(mask_type=mask_type, final_sparsity=final).initialize(make_model())


@pytest.mark.parametrize("make", [gmp, obert])
@pytest.mark.parametrize("final_sparsity", [0.5, {0.5: ["re:layers.*weight"]}])
def test_every_group_ends_in_the_pattern(make, final_sparsity) -> None:
    model = make_model()
    keys = HALF | {"init_sparsity": "__FROM_PARAM__", "final_sparsity": final_sparsity}
    make(**keys, params=[]).apply(model, gradient_source=make_source())
    for name in ENCODER:
        groups = model.get_parameter(name).detach().reshape(-1, 4)
        assert ((groups != 0).sum(dim=1) == 2).all()


def test_blocks_of_rows_and_columns_live_or_die_together() -> None:
    model = make_model()
    obert(mask_type="block:2x4").apply(model, gradient_source=make_source())
    for name in ENCODER:
        weight = model.get_parameter(name).detach()
        tiles = weight.unfold(0, 2, 2).unfold(1, 4, 4).reshape(-1, 8)
        assert set((tiles != 0).sum(dim=1).tolist()) <= {0, 8}


def test_transposed_weights_are_grouped_along_the_input() -> None:
    class Conv1D(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(8, 6))  # input x output

    model = torch.nn.Sequential(Conv1D())
    gmp(**HALF, params=["0.weight"]).apply(model)
    groups = model[0].weight.detach().T.reshape(-1, 4)
    assert ((groups != 0).sum(dim=1) == 2).all()
