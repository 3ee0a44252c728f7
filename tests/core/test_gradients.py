"""Gradient sources against plain autograd, and that training is not disturbed."""

import functools
import random

import pytest
import torch
from torch import nn

from obert_modifiers.core.pruning.gradients import (
    Signals,
    collect_gradients,
)
from obert_modifiers.core.pruning.sampling import GradientSource
from tests.core.models import losses, make_batches, make_model, sample_gradients

NAMES = ("first.weight", "shared.weight", "head.weight", "unused.weight", "first.bias")


def _formed(part):
    if isinstance(part, Signals):
        return torch.einsum("kto,kti->koi", part.output_grads, part.inputs).flatten(1)
    return part


def _collect(model, names, batches, granularity="sample", limit=None, loss=losses):
    parameters = [model.get_parameter(name) for name in names]
    rows = [[] for _ in names]
    count = collect_gradients(
        model,
        parameters,
        batches,
        loss,
        lambda batch: [
            found.append(_formed(part))
            for found, part in zip(rows, batch.parts, strict=True)
        ],
        granularity=granularity,
        limit=limit,
    )
    return [torch.cat(found) if found else None for found in rows], count


def test_sample_gradients_equal_autograd() -> None:
    model, batches = make_model(), make_batches()
    found, count = _collect(model, NAMES, batches)
    assert (count.used, count.skipped) == (12, 0)
    for name, ours in zip(NAMES, found, strict=True):
        expected = sample_gradients(model, batches, model.get_parameter(name))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_control_one_call_of_a_shared_layer_is_not_enough() -> None:
    """The layer that is called twice must count both calls."""
    model, batches = make_model(), make_batches()
    ours = _collect(model, ["shared.weight"], batches)[0][0]
    model.eval()
    x, y = batches[0]
    kept = {}

    def keep(module, args, output):
        kept["x"], kept["out"] = args[0], output  # the last call only

    handle = model.shared.register_forward_hook(keep)
    total = losses(model, (x, y)).sum()
    handle.remove()
    (dy,) = torch.autograd.grad(total, [kept["out"]])
    wrong = torch.einsum("kto,kti->koi", dy, kept["x"]).reshape(4, -1)
    assert not torch.allclose(ours[:4], wrong)


def test_batch_gradients_are_those_of_the_mean_loss() -> None:
    model, batches = make_model(), make_batches()
    found, count = _collect(model, NAMES, batches, "batch")
    assert (count.used, count.skipped) == (3, 0)
    for name, ours in zip(NAMES, found, strict=True):
        expected = sample_gradients(model, batches, model.get_parameter(name))
        expected = expected.reshape(3, 4, -1).mean(dim=1)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("granularity", ["sample", "batch"])
def test_training_is_not_disturbed(granularity: str) -> None:
    model, batches = make_model(), make_batches()
    model.train()
    model.drop.eval()  # a mode of its own, which has to come back
    model.first.bias.requires_grad_(False)
    losses(model, batches[0]).mean().backward()
    grads = {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state, python_state = torch.get_rng_state(), random.getstate()
    _collect(model, NAMES[:3], batches, granularity)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    now = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert now.keys() == grads.keys()
    assert all(torch.equal(now[n], grads[n]) for n in grads)
    assert not any(m._forward_hooks for m in model.modules())


def test_state_comes_back_after_an_error() -> None:
    model = make_model()
    model.train()

    def broken(model, batch):
        losses(model, batch)
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        _collect(model, NAMES[:1], make_batches(), loss=broken)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_non_finite_samples_are_left_out_and_counted() -> None:
    model, batches = make_model(), make_batches()
    clean = _collect(model, NAMES[:4], batches)[0]
    batches[1][0][2] = float("nan")
    found, count = _collect(model, NAMES[:4], batches)
    assert (count.used, count.skipped) == (11, 1)
    kept = [i for i in range(12) if i != 6]
    for ours, all_of_them in zip(found, clean, strict=True):
        torch.testing.assert_close(ours, all_of_them[kept], rtol=1e-12, atol=1e-14)


def test_batch_mates_of_a_bad_sample_on_the_slow_way() -> None:
    model, batches = make_model(), make_batches()
    batches[1][0][2] = float("nan")
    found, count = _collect(model, ["first.bias"], batches)
    assert (count.used, count.skipped) == (8, 4)
    assert torch.isfinite(found[0]).all()


def test_limit_counts_gradients() -> None:
    model, batches = make_model(), make_batches()
    found, count = _collect(model, NAMES[:1], batches, limit=6)
    assert count.used == 6
    assert found[0].shape[0] == 6
    assert _collect(model, NAMES[:1], batches, "batch", limit=2)[1].used == 2


def test_scalar_mean_loss_gives_the_same_linear_gradients() -> None:
    model, batches = make_model(), make_batches()
    source = GradientSource(
        lambda request: batches,
        lambda m, batch: losses(m, batch).mean(),
        batch_size=lambda batch: len(batch[1]),
    )
    names = NAMES[:3]
    ours = _collect(model, names, batches, loss=source.sample_losses, limit=6)[0]
    expected = _collect(model, names, batches, limit=6)[0]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="gives single gradients of Linear weights"):
        _collect(model, ["first.bias"], batches, loss=source.sample_losses)
    nameless = GradientSource(lambda request: batches, source.loss)
    with pytest.raises(ValueError, match="does not tell the samples apart"):
        _collect(model, names, batches, loss=nameless.sample_losses)


def test_tied_and_frozen_weights() -> None:
    model, batches = make_model(), make_batches()
    model.unused = nn.Linear(10, 10, dtype=torch.float64)
    model.unused.weight = model.shared.weight  # tied
    model.first.weight.requires_grad_(False)  # frozen, and still prunable
    names = ("first.weight", "shared.weight")
    found, _ = _collect(model, names, batches)
    model.first.weight.requires_grad_(True)
    for name, ours in zip(names, found, strict=True):
        expected = sample_gradients(model, batches, model.get_parameter(name))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_unknown_granularity() -> None:
    with pytest.raises(ValueError, match="grad_granularity=token is unknown"):
        _collect(make_model(), NAMES[:1], make_batches(), "token")


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_right_or_refused(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    model, batches = make_model(), make_batches()
    expected = sample_gradients(model, batches, model.shared.weight)

    def checkpointed(m, batch):
        x, y = batch
        hidden = torch.tanh(m.first(x)).requires_grad_(True)
        for _ in range(2):
            hidden = torch.tanh(checkpoint(m.shared, hidden, use_reentrant=reentrant))
        logits = m.head(hidden.mean(dim=1))
        return nn.functional.cross_entropy(logits, y, reduction="none")

    if reentrant:
        with pytest.raises(ValueError, match="use_reentrant=True hides"):
            _collect(model, ["shared.weight"], batches, loss=checkpointed)
        return
    ours = _collect(model, ["shared.weight"], batches, loss=checkpointed)[0][0]
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("what", ["input", "output", "output of a frozen input"])
def test_changes_in_place_change_no_gradient(what: str) -> None:
    """The gradients would be those of other inputs, or of what follows."""
    model, batches = make_model(), make_batches()
    frozen = what == "output of a frozen input"

    def losses_of(m, batch, in_place: bool = True):
        x, y = batch
        hidden = 2.0 * m.first(x)  # nothing that autograd itself would miss
        found = m.shared(x.new_ones(len(x), 5, 10) if frozen else hidden)
        if what == "input" and in_place:
            hidden.detach().add_(1.0)
        elif what != "input":
            turned = found.transpose(1, 2)  # a view, as DeBERTa changes it
            found = (turned.mul_(2.0) if in_place else 2.0 * turned).transpose(1, 2)
        return nn.functional.cross_entropy(
            m.head(found.mean(dim=1)), y, reduction="none"
        )

    names = NAMES[:2]
    ours = _collect(model, names, batches, loss=losses_of)[0]
    plain = functools.partial(losses_of, in_place=False)
    for name, found in zip(names, ours, strict=True):
        expected = sample_gradients(model, batches, model.get_parameter(name), plain)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def _with_positions(rows: int, dims: int):
    """Positions that all samples share go through the layer of their tokens."""
    generator = torch.Generator().manual_seed(5)
    places = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    places = places if dims == 2 else places[None]

    def found(m, batch):
        x, y = batch
        shared = torch.tanh(m.first(places)).reshape(rows, -1)
        hidden = torch.tanh(m.first(x)) @ shared.T @ shared
        hidden = torch.tanh(m.shared(hidden))
        return nn.functional.cross_entropy(
            m.head(hidden.mean(dim=1)), y, reduction="none"
        )

    return found


def _tokens_first(m, batch):
    x, y = batch
    hidden = torch.tanh(m.first(x.transpose(0, 1)))  # (T, k, 10)
    hidden = torch.tanh(m.shared(hidden)) + m.shared(hidden.mean(0, keepdim=True))
    return nn.functional.cross_entropy(m.head(hidden.mean(dim=0)), y, reduction="none")


SHARED = {
    "positions": (_with_positions(7, 3), 4),
    "as many positions as samples": (_with_positions(4, 2), 4),
    "one position and one sample": (_with_positions(1, 2), 1),
    "tokens first": (_tokens_first, 4),
    "as many tokens as samples": (_tokens_first, 5),
}


@pytest.mark.parametrize("case", SHARED)
def test_layers_in_which_samples_share_rows(case: str) -> None:
    loss, size = SHARED[case]
    model, batches = make_model(), make_batches(size=size)
    found, count = _collect(model, NAMES, batches, loss=loss, limit=3 * size - 1)
    assert (count.used, count.skipped) == (3 * size - 1, 0)
    for name, ours in zip(NAMES, found, strict=True):
        parameter = model.get_parameter(name)
        expected = sample_gradients(model, batches, parameter, loss)[:-1]
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_a_mean_loss_of_samples_that_share_rows() -> None:
    model, batches = make_model(), make_batches()
    loss = SHARED["positions"][0]
    source = GradientSource(
        lambda request: batches,
        lambda m, batch: loss(m, batch).mean(),
        batch_size=lambda batch: len(batch[1]),
    )
    ours = _collect(model, NAMES[:2], batches, loss=source.sample_losses)[0]
    for name, found in zip(NAMES[:2], ours, strict=True):
        expected = sample_gradients(model, batches, model.get_parameter(name), loss)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_bad_samples_among_those_that_share_rows() -> None:
    model, batches = make_model(), make_batches()
    loss = SHARED["positions"][0]
    expected = sample_gradients(model, batches, model.first.weight, loss)
    batches[1][0][2] = float("nan")
    found, count = _collect(model, NAMES[:1], batches, loss=loss)
    assert (count.used, count.skipped) == (11, 1)
    kept = [i for i in range(12) if i != 6]
    torch.testing.assert_close(found[0], expected[kept], rtol=1e-12, atol=1e-14)


def test_samples_that_cannot_be_told_apart_are_refused() -> None:
    """Batch gradients are what is left."""
    model, batches = make_model(), make_batches()

    def in_pairs(m, batch):  # more losses than rows of the batch
        return losses(m, batch).repeat(2)

    def together(m, batch):
        found = losses(m, batch)
        return found * found.sum()

    with pytest.raises(ValueError, match="layer input has 4 rows for 8 samples"):
        _collect(model, NAMES[:1], batches, loss=in_pairs)
    with pytest.raises(ValueError, match="without the rest of its batch"):
        _collect(model, NAMES[:1], batches, loss=together)
    for loss in (in_pairs, together):
        assert _collect(model, NAMES[:1], batches, "batch", loss=loss)[1].used == 3
