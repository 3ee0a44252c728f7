"""The average of the weights: its figures, who sees it, and on which masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from obert_modifiers.core import averaging
from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.modifiers import WeightAveragingModifier
from obert_modifiers.recipe.manager import RecipeError, RecipeManager
from obert_modifiers.training import TrainConfig, evaluate, train
from tests.modifiers.driving import copied, half_pruned, same, zeros
from tests.modifiers.table import ENCODER, make_model
from tests.training.toy import each_step, make_task, records, steady

STEPS, EPOCHS = 8, 4
RANGE = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 4.0}\n"
GMP = """\
  - !GMPStarPruningModifier
      {final_sparsity: 0.75, start_epoch: 0.5, end_epoch: 1.5, update_frequency: 0.5}
"""
QAT = "  - !QATModifier {start_epoch: 0.5"
STOP = "  - !EarlyStoppingModifier {metric: loss, mode: min, patience: 9"
CLOSE = {"rtol": 0.0, "atol": 1e-6}  # a few roundings of float32, weights up to 1


def average(keys: str) -> str:
    return f"  - !WeightAveragingModifier {{{keys}}}\n"


def run(folder, *lines: str, model=None, metrics=None, **options):
    """Train; return the model, the states after each step, and the result."""
    model, states = model or make_model(), []
    torch.manual_seed(7)
    config = steady(folder, weight_decay=0.1, **options)
    task = make_task() if metrics is None else replace(make_task(), metrics=metrics)
    manager = RecipeManager.from_recipe(RANGE + "".join(lines))

    def watch(stepper, step):
        advanced = step()
        states.append(copied(model))
        return advanced

    with each_step(watch):
        result = train(model, task, config, manager)
    return model, states, result


def expected(states, decay=None) -> dict[str, np.ndarray]:
    """From the definition: weights of all states, summed in float64."""
    count = len(states)
    shares = [1.0 / count] * count
    if decay is not None:
        shares = [(1 - decay) * decay ** (count - 1 - i) for i in range(count)]
        shares[0] = decay ** (count - 1)
    assert sum(shares) == pytest.approx(1.0)
    return {
        name: sum(
            share * state[name].double().numpy()
            for share, state in zip(shares, states, strict=True)
        )
        for name in states[0]
    }


def agrees(found, states, decay=None) -> bool:
    reference = expected(states, decay)
    return all(
        np.allclose(value.double().numpy(), reference[name], **CLOSE)
        for name, value in found.items()
    )


def lagging(average, model, decay=None) -> None:
    """Planted: the first state counts twice."""
    averaging.add_state_(average, model, decay)
    average.count += average.count == 1


def swapped(average, model, decay=None) -> None:
    """Planted: the shares of average and state are taken for each other."""
    averaging.add_state_(average, model, None if decay is None else 1.0 - decay)


@pytest.mark.parametrize("decay", [None, 0.9, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_average_of_its_definition(decay, dtype) -> None:
    states = [copied(make_model(seed).to(dtype)) for seed in range(7)]

    def found(add):
        made, model = averaging.Average(), make_model().to(dtype)
        for state in states:
            model.load_state_dict(state)
            add(made, model, decay)
        return made.values

    values = found(averaging.add_state_)
    assert values.keys() == states[0].keys()
    wide = torch.promote_types(dtype, torch.float32)
    assert all(value.dtype == wide for value in values.values())
    assert agrees(values, states, decay)
    assert not agrees(found(lagging if decay is None else swapped), states, decay)


@pytest.mark.parametrize(
    ("keys", "counted", "decay"),
    [
        ("start_epoch: 2.0", [23, 31], None),
        ("start_epoch: 1.5", [15, 23, 31], None),
        ("start_epoch: 1.5, decay: 0.8", range(12, 32), 0.8),
        ("start_epoch: 3.0", [31], None),
    ],
)
def test_a_run_trains_on_and_ends_with_the_average(
    keys, counted, decay, tmp_path
) -> None:
    model, states, result = run(tmp_path / "a", GMP, average(keys))
    _, plain, _ = run(tmp_path / "b", GMP)
    assert len(states) == STEPS * EPOCHS
    assert all(same(*pair) for pair in zip(states, plain, strict=True))
    assert agrees(model.state_dict(), [states[at] for at in counted], decay)
    assert result.sparsity == 0.75 and sum(m.sum() for m in zeros(model)) == 0.75 * 384
    assert all(
        torch.equal(model.get_parameter(n) == 0, states[-1][n] == 0) for n in ENCODER
    )
    # Each evaluation from then on is of the average so far.
    config = TrainConfig(tmp_path / "c", per_device_train_batch_size=8, cpu=True)
    for number, record in enumerate(records(tmp_path / "a", "eval"), 1):
        seen = [states[at] for at in counted if at < number * STEPS]
        state = copied(states[number * STEPS - 1])
        if seen:
            state = {
                k: torch.tensor(v).float() for k, v in expected(seen, decay).items()
            }
        other = make_model()
        other.load_state_dict(state)
        loss = evaluate(other, make_task(), config)["loss"]
        assert record["loss"] == pytest.approx(loss, abs=1e-5)
        if number == EPOCHS:
            assert result.metrics["loss"] == record["loss"]
    losses = [r["loss"] for r in records(tmp_path / "b", "eval")]
    assert losses[-1] != record["loss"] or counted == [31]


@pytest.mark.parametrize("order", ["masks first", "average first"])
def test_constant_masks_hold_whoever_comes_first(order, tmp_path) -> None:
    masks = "  - !ConstantMasksModifier {params: __ALL_ENCODER__}\n"
    lines = [masks, average("start_epoch: 1.0, decay: 0.7")]
    model = half_pruned()
    before = zeros(model)
    run(tmp_path, *lines[:: 1 if order == "masks first" else -1], model=model)
    assert all(torch.equal(*pair) for pair in zip(before, zeros(model), strict=True))


def test_a_pruned_weight_that_moved_is_zero_in_the_average() -> None:
    model = half_pruned()
    made, before = averaging.Average(), zeros(model)
    with torch.no_grad():
        moved = [p.add_(0.01) for p in model.parameters()]
    averaging.add_state_(made, model)
    with torch.no_grad():
        for one in moved:
            one.sub_(0.01)
    for name, mask in zip(ENCODER, before, strict=True):
        model.get_parameter(name).data[mask] = 0.0
    averaging.write_average_(model, made)
    assert all(torch.equal(*pair) for pair in zip(before, zeros(model), strict=True))
    # The negative control: what is written without a look at the model's zeros.
    assert all((made.values[n] != 0).all() for n in ENCODER)


@pytest.mark.parametrize("fixed", [True, False])
def test_quantized_weights_stay_on_their_grids(fixed, tmp_path) -> None:
    until = ", disable_observer_epoch: 2.0}\n" if fixed else "}\n"
    model, states, result = run(
        tmp_path / "a", QAT + until, average("start_epoch: 1.0, decay: 0.6")
    )
    other, plain, _ = run(tmp_path / "b", QAT + until)
    # Neither the average nor its evaluations change the training or its ranges.
    assert all(same(*pair) for pair in zip(states, plain, strict=True))
    for name, one in quantizers_of(model).items():
        twin = quantizers_of(other)[name]
        if not name.endswith(":weight"):
            assert torch.equal(one.scale, twin.scale)
            continue
        weight = model.get_parameter(f"{name.rpartition(':')[0]}.weight")
        largest = weight.abs().max()
        assert largest <= one.scale * one.limit * (1 + 1e-6)
        if fixed:
            assert torch.equal(one.scale, twin.scale)
        else:
            torch.testing.assert_close(one.scale[0] * one.limit, largest)
    config = TrainConfig(tmp_path / "c", cpu=True)
    again = evaluate(model, make_task(), config)["loss"]
    assert again == pytest.approx(result.metrics["loss"], abs=1e-6)


def test_a_state_that_is_kept_or_given_stays_as_it_is() -> None:
    model, again = make_model(), make_model()
    one, other = (WeightAveragingModifier(start_epoch=0.0, decay=0.5) for _ in "12")
    one.initialize(model)
    other.initialize(again)
    one.optimizer_post_step(model, None, 0.0, 2)
    saved = one.state_dict()
    before = {k: v.clone() for k, v in saved.items() if isinstance(v, torch.Tensor)}
    with torch.no_grad():
        model.head.weight.add_(1.0)
    one.optimizer_post_step(model, None, 0.5, 2)
    other.load_state_dict(saved)
    other.optimizer_post_step(again, None, 0.5, 2)
    assert before and all(torch.equal(saved[k], v) for k, v in before.items())
    assert not torch.equal(
        one.state_dict()["values.head.weight"], before["values.head.weight"]
    )


def test_a_skipped_step_does_not_count() -> None:
    modifier, model = WeightAveragingModifier(start_epoch=0.0), make_model()
    modifier.initialize(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for skipped in (True, False):
        optimizer.step_was_skipped = skipped
        modifier.optimizer_post_step(model, optimizer, 0.75, 4)
    assert modifier.own_state()["count"] == 1


def test_what_was_not_reached_is_said(caplog) -> None:
    modifier, model = WeightAveragingModifier(start_epoch=5.0), make_model()
    modifier.initialize(model)
    with modifier.averaged(model):
        assert same(model, make_model())
    modifier.finalize(model)
    assert same(model, make_model())
    assert caplog.text.count("start_epoch=5 was not reached") == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GMP, average("start_epoch: 1.0")], "start_epoch=1 lies before epoch 1.5, at"),
        ([QAT + "}\n", average("start_epoch: 0.0")], "epoch 0.5, at which QATModifier"),
        ([average("start_epoch: 4.0")], "start_epoch=4 is not reached"),
        ([average("start_epoch: 2.0")] * 2, "a second WeightAveragingModifier"),
        ([average("start_epoch: 2.0"), STOP + "}\n"], "restore_best=true goes back"),
    ],
)
def test_an_average_in_vain_is_refused(lines, message) -> None:
    with pytest.raises(RecipeError, match=message):
        RecipeManager.from_recipe(RANGE + "".join(lines))


def test_an_average_at_the_end_of_the_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match="where the recipe ends, so that nothing"):
        RecipeManager.from_recipe("modifiers:\n" + average("start_epoch: 2.0"))
    RecipeManager.from_recipe("modifiers:\n" + average("start_epoch: 0.0"))
    RecipeManager.from_recipe(RANGE + GMP + average("start_epoch: 1.5"))
    RecipeManager.from_recipe(
        RANGE + average("start_epoch: 2.0") + STOP + ", restore_best: false}\n"
    )
