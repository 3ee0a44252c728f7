"""Recipe values: what is accepted, what is refused, and with which words."""

# ruff: noqa: E501  the tables hold whole messages

import logging

import pytest
import torch

from obert_modifiers.modifiers import (
    GMPStarPruningModifier,
    LogitDistillationModifier,
    OBERTPruningModifier,
)
from obert_modifiers.modifiers._host import Modifier
from tests.modifiers.table import ENCODER, SCHEDULE, make_batch, make_model, make_source

BROKEN = [
    ({"final_sparsity": 80}, "final_sparsity=80 is outside [0, 1]; expected a fraction; write 0.8, not 80"),
    ({"init_sparsity": -0.1}, "init_sparsity=-0.1 is outside [0, 1]; expected a fraction; write a number between 0 and 1"),
    ({"final_sparsity": "most"}, "final_sparsity=most is not a number; expected a finite number; write it without quotes or units"),
    ({"final_sparsity": {1.5: ["a"]}, "params": []}, "final_sparsity=1.5 is outside [0, 1]; expected a fraction; write 0.015, not 1.5"),
    ({"end_epoch": 0.5}, "end_epoch=0.5 lies before start_epoch=1; expected a schedule that ends after it starts; swap them or raise end_epoch"),
    ({"inter_func": "cubik"}, "inter_func=cubik is unknown; expected one of linear, cubic, inverse_cubic; use cubic"),
    ({"mask_type": "unstructred"}, "mask_type=unstructred is unknown; expected one of unstructured; use unstructured"),
    ({"global_sparsity": "yes"}, "global_sparsity=yes is not a truth value; expected true or false; write it without quotes"),
    ({"update_frequency": 0}, "update_frequency=0 is not positive; expected epochs between events, or -1 for every step; write a fraction of an epoch"),
    ({"params": [3]}, "params=3 is not a name; expected names or re: patterns; write a list of strings"),
    ({"final_sparsity": {0.5: ["a"]}, "params": ["b"]}, "params=['b'] and a mapping in final_sparsity are both given; expected the parameters in one place; write params: []"),
]  # fmt: skip
BROKEN_OBERT = [
    ({"num_grads": 0}, "num_grads=0 is not a positive whole number; expected 1 or more; write a count"),
    ({"fisher_block_size": 2.5}, "fisher_block_size=2.5 is not a positive whole number; expected 1 or more; write a count"),
    ({"damp": 0.0}, "damp=0.0 is not positive; expected a number above 0; raise it"),
    ({"damp": 1e-7, "damp_fraction": 0.1}, "damp=1e-07 and damp_fraction=0.1 are both given; expected one of them; leave damp out"),
    ({"selection": "gready"}, "selection=gready is unknown; expected one of independent, greedy; use greedy"),
    ({"update": "none"}, "update=none is unknown; expected one of joint, independent; use joint"),
    ({"grad_granularity": "token"}, "grad_granularity=token is unknown; expected one of sample, batch; use sample"),
    ({"grad_sampler_kwargs": 8}, "grad_sampler_kwargs=8 is not a mapping; expected options of the loader; write batch_size: 32 below it"),
]  # fmt: skip
assert (len(BROKEN), len(BROKEN_OBERT)) == (11, 8)


@pytest.mark.parametrize(("keys", "message"), BROKEN)
@pytest.mark.parametrize("cls", [GMPStarPruningModifier, OBERTPruningModifier])
def test_broken_values_of_pruning_modifiers(cls, keys, message) -> None:
    with pytest.raises(ValueError) as error:
        cls(**{**SCHEDULE, **keys})
    assert str(error.value) == message


@pytest.mark.parametrize(("keys", "message"), BROKEN_OBERT)
def test_broken_values_of_obert(keys, message) -> None:
    with pytest.raises(ValueError) as error:
        OBERTPruningModifier(**{**SCHEDULE, **keys})
    assert str(error.value) == message


def test_broken_values_of_distillation() -> None:
    with pytest.raises(ValueError, match=r"hardness=2 is outside \[0, 1\]"):
        LogitDistillationModifier(hardness=2)
    with pytest.raises(ValueError, match="temperature=0 is not positive"):
        LogitDistillationModifier(temperature=0)
    modifier = LogitDistillationModifier()
    with pytest.raises(ValueError, match="distillation_teacher=best is unknown"):
        modifier.initialize(make_model(), distillation_teacher="best")


def test_numbers_that_pyyaml_reads_as_strings() -> None:
    text = "!OBERTPruningModifier\n" + "".join(
        f"    {key}: {value}\n" for key, value in SCHEDULE.items()
    )
    modifier = Modifier.load_obj(text + "    damp: 1e-7\n")
    assert modifier.damp == 1e-7
    assert modifier.damp_fraction is None
    assert OBERTPruningModifier(**SCHEDULE).damp_fraction == 0.01


def test_params_as_string_list_pattern_and_token(caplog) -> None:
    model = make_model()

    def names(params):
        modifier = GMPStarPruningModifier(**{**SCHEDULE, "params": params})
        return modifier.resolve_targets(model)

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
    modifier = GMPStarPruningModifier(**{**SCHEDULE, "params": ["layers.0.1.weight"]})
    with pytest.raises(ValueError, match="nearest: layers.0.2.weight") as error:
        modifier.resolve_targets(make_model())
    assert str(error.value).startswith(
        "params=layers.0.1.weight matches no parameter; expected a name, a re: pattern "
        "or one of __ALL__, __ALL_PRUNABLE__, __ALL_ENCODER__; nearest: "
    )
    headless = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="params=__ALL_ENCODER__ matches no parameter"):
        GMPStarPruningModifier(**SCHEDULE).resolve_targets(headless)


@pytest.mark.parametrize("global_sparsity", [True, False])
def test_final_sparsity_by_parameter(global_sparsity: bool) -> None:
    goals = {0.5: [ENCODER[0], ENCODER[1]], 0.25: ["re:layers.1.*weight"]}
    model = make_model()
    modifier = GMPStarPruningModifier(
        **{**SCHEDULE, "final_sparsity": goals, "params": []},
        global_sparsity=global_sparsity,
    )
    assert modifier.final_sparsity == goals
    modifier.apply(model)
    zeros = [int((model.get_parameter(n) == 0).sum()) for n in ENCODER]
    if global_sparsity:
        assert zeros[0] + zeros[1] == 96 and zeros[2] + zeros[3] == 48
    else:
        assert zeros == [48, 48, 24, 24]


def test_init_sparsity_from_the_parameters() -> None:
    model = make_model()
    with torch.no_grad():
        for name, share in zip(ENCODER, (0.25, 0.5, 0.75, 0.0), strict=True):
            flat = model.get_parameter(name).view(-1)
            flat[: int(share * flat.numel())] = 0.0
    before = {n: (model.get_parameter(n) == 0) for n in ENCODER}
    modifier = GMPStarPruningModifier(**{
        **SCHEDULE,
        "init_sparsity": "__FROM_PARAM__",
        "final_sparsity": 0.9,
    })
    assert modifier.init_sparsity == "__FROM_PARAM__"
    modifier.initialize(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modifier.scheduled_update(model, optimizer, 1.0, 4)
    assert modifier.applied_sparsity == [0.25, 0.5, 0.75, 0.0]
    for name, mask in zip(ENCODER, modifier.module_masks.param_masks, strict=True):
        assert torch.equal(~mask, before[name])


def test_sparsity_zero_makes_no_event() -> None:
    model = make_model()
    modifier = GMPStarPruningModifier(**{
        **SCHEDULE,
        "init_sparsity": 0.0,
        "final_sparsity": 0.0,
    })
    modifier.apply(model, finalize=False)
    assert modifier.events == []
    assert modifier.module_masks.sparsity() == 0.0


def test_obert_needs_a_source_of_gradients() -> None:
    with pytest.raises(RuntimeError, match="to initialize GradSampler"):
        OBERTPruningModifier(**SCHEDULE).initialize(make_model())
    with pytest.raises(RuntimeError, match="grad_sampler has no loss_function"):
        OBERTPruningModifier(**SCHEDULE).initialize(
            make_model(), grad_sampler={"data_loader_builder": list}
        )


def test_sparsemls_grad_sampler_gives_the_same_masks_as_ours() -> None:
    def build(options):
        assert options == {"batch_size": 8}
        for i in range(4):
            batch = make_batch(i)
            yield [batch["tokens"]], {}, batch["labels"]

    def mean_loss(outputs, target):
        return torch.nn.functional.cross_entropy(outputs["logits"], target)

    keys = {
        **SCHEDULE,
        "num_grads": 32,
        "fisher_block_size": 10,
        "grad_sampler_kwargs": {"batch_size": 8},
    }
    ours, theirs = make_model(), make_model()
    OBERTPruningModifier(**keys).apply(ours, gradient_source=make_source())
    sampler = {"data_loader_builder": build, "loss_function": mean_loss}
    OBERTPruningModifier(**keys).apply(theirs, grad_sampler=sampler)
    for name in ENCODER:
        torch.testing.assert_close(
            ours.get_parameter(name), theirs.get_parameter(name), rtol=1e-4, atol=1e-6
        )


def test_too_few_gradients_are_said(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        OBERTPruningModifier(**SCHEDULE, num_grads=64, fisher_block_size=10).apply(
            make_model(), gradient_source=make_source()
        )
    assert "num_grads=64: only 32 gradients could be used" in caplog.text


def test_distillation_outside_its_epochs_and_disabled(caplog) -> None:
    model, batch = make_model(), make_batch()
    loss = torch.tensor(1.5)
    modifier = LogitDistillationModifier(start_epoch=1.0, end_epoch=2.0, hardness=1.0)
    modifier.initialize(model, distillation_teacher=make_model(1))
    model.forward = lambda tokens: make_model().forward(tokens)
    arguments = {
        "student_outputs": model(batch["tokens"]),
        "student_inputs": batch,
    }
    found = [
        modifier.loss_update(loss, model, None, epoch, 4, **arguments).item()
        for epoch in (0.5, 1.0, 1.5, 2.0)
    ]
    assert found[0] == found[3] == 1.5
    assert found[1] == found[2] != 1.5
    with pytest.raises(ValueError, match="student_outputs and student_inputs are"):
        modifier.loss_update(loss, model, None, 1.0, 4)
    disabled = LogitDistillationModifier()
    with caplog.at_level(logging.WARNING):
        disabled.initialize(model)
    assert "distillation_teacher=disable" in caplog.text
    assert float(disabled.loss_update(loss, model, None, 1.0, 4)) == 1.5
