"""Gradient sources against plain autograd, and that training is not disturbed."""

import functools
import random

import pytest
import torch
from torch import nn

from obert_modifiers.core.pruning.gradients import collect_gradients
from obert_modifiers.core.pruning.layer_signals import Signals
from obert_modifiers.core.pruning.sampling import GradientSource
from tests.core.models import losses, make_batches, make_model, sample_gradients

NAMES = ("first.weight", "shared.weight", "head.weight", "unused.weight", "first.bias")


def _formed(part):
    if isinstance(part, Signals):
        return torch.einsum("kto,kti->koi", part.output_grads, part.inputs).flatten(1)
    return part


def _collect(model, names, batches, granularity="sample", limit=None, loss=losses):
    rows = [[] for _ in names]

    def consume(batch) -> None:
        for found, part in zip(rows, batch.parts, strict=True):
            found.append(_formed(part))

    parameters = [model.get_parameter(name) for name in names]
    options = {"granularity": granularity, "limit": limit}
    count = collect_gradients(model, parameters, batches, loss, consume, **options)
    return [torch.cat(found) if found else None for found in rows], count


def _close(ours, expected) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def _check(model, names, batches, loss=losses, plain=None, limit=None, count=12):
    """Compare with the gradients of each sample by plain autograd."""
    found, counted = _collect(model, names, batches, loss=loss, limit=limit)
    assert (counted.used, counted.skipped) == (count, 0)
    for name, ours in zip(names, found, strict=True):
        parameter = model.get_parameter(name).requires_grad_(True)
        _close(ours, sample_gradients(model, batches, parameter, plain or loss)[:count])


def test_sample_gradients_equal_autograd() -> None:
    _check(make_model(), NAMES, make_batches())


def test_control_one_call_of_a_shared_layer_is_not_enough() -> None:
    """The layer that is called twice must count both calls."""
    model, batches = make_model(), make_batches()
    ours = _collect(model, ["shared.weight"], batches)[0][0]
    model.eval()
    kept = {}

    def keep(module, args, output):
        kept["x"], kept["out"] = args[0], output  # the last call only

    handle = model.shared.register_forward_hook(keep)
    total = losses(model, batches[0]).sum()
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
        _close(ours, expected.reshape(3, 4, -1).mean(dim=1))


@pytest.mark.parametrize("granularity", ["sample", "batch"])
def test_training_is_not_disturbed(granularity: str) -> None:
    model, batches = make_model(), make_batches()
    model.train()
    model.drop.eval()  # a mode of its own, which has to come back
    model.first.bias.requires_grad_(False)
    losses(model, batches[0]).mean().backward()
    named = dict(model.named_parameters())
    grads = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state, python_state = torch.get_rng_state(), random.getstate()
    _collect(model, NAMES[:3], batches, granularity)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    now = {n: p.grad for n, p in named.items() if p.grad is not None}
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


def test_batch_mates_of_a_bad_sample_on_the_slow_way() -> None:
    model, batches = make_model(), make_batches()
    batches[1][0][2] = float("nan")
    found, count = _collect(model, ["first.bias"], batches)
    assert (count.used, count.skipped) == (8, 4)
    assert torch.isfinite(found[0]).all()


def test_limit_counts_gradients() -> None:
    model, batches = make_model(), make_batches()
    _check(model, NAMES[:1], batches, limit=6, count=6)
    assert _collect(model, NAMES[:1], batches, "batch", limit=2)[1].used == 2


def _mean(batches, loss, size=lambda batch: len(batch[1])) -> GradientSource:
    def mean(model, batch):
        return loss(model, batch).mean()

    return GradientSource(lambda request: batches, mean, batch_size=size)


def test_scalar_mean_loss_gives_the_same_linear_gradients() -> None:
    model, batches = make_model(), make_batches()
    source, names = _mean(batches, losses), NAMES[:3]
    _check(model, names, batches, source.sample_losses, losses, limit=6, count=6)
    with pytest.raises(ValueError, match="gives single gradients of Linear weights"):
        _collect(model, ["first.bias"], batches, loss=source.sample_losses)
    nameless = _mean(batches, losses, size=None)
    with pytest.raises(ValueError, match="does not tell the samples apart"):
        _collect(model, names, batches, loss=nameless.sample_losses)


def test_tied_and_frozen_weights() -> None:
    model, batches = make_model(), make_batches()
    model.unused = nn.Linear(10, 10, dtype=torch.float64)
    model.unused.weight = model.shared.weight  # tied
    model.first.weight.requires_grad_(False)  # frozen, and still prunable
    _check(model, ("first.weight", "shared.weight"), batches)


def test_weights_that_are_used_without_a_call_of_their_layer() -> None:
    """As MobileBERT's head uses one of its layers."""

    def plain(m, batch):
        hidden = torch.tanh(batch[0] @ m.first.weight.T + m.first.bias)
        return _classified(m, torch.tanh(m.shared(hidden)), batch[1])

    _check(make_model(), NAMES, make_batches(), plain)
    model, batches = make_model(), make_batches()
    with pytest.raises(ValueError, match="gives single gradients of Linear weights"):
        _collect(model, NAMES[:1], batches, loss=_mean(batches, plain).sample_losses)


def test_hooks_of_others_that_change_inputs_and_outputs() -> None:
    """The gradient of the weight is that of the layer's own output."""
    model = make_model()
    model.first.register_forward_pre_hook(lambda layer, args: (2.0 * args[0],))
    model.first.register_forward_hook(lambda layer, args, output: 3.0 * output)
    _check(model, NAMES[:2], make_batches())


def test_unknown_granularity() -> None:
    with pytest.raises(ValueError, match="grad_granularity=token is unknown"):
        _collect(make_model(), NAMES[:1], make_batches(), "token")


def _classified(model, hidden, labels):
    logits = model.head(hidden.mean(dim=1))
    return nn.functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_right_or_refused(reentrant, together) -> None:
    from torch.utils.checkpoint import checkpoint

    model, batches = make_model(), make_batches()

    def checkpointed(m, batch):
        def twice(hidden):
            return torch.tanh(m.shared(torch.tanh(m.shared(hidden))))

        hidden = torch.tanh(m.first(batch[0])).requires_grad_(True)
        if together:
            hidden = checkpoint(twice, hidden, use_reentrant=reentrant)
        for _ in range(0 if together else 2):
            hidden = torch.tanh(checkpoint(m.shared, hidden, use_reentrant=reentrant))
        return _classified(m, hidden, batch[1])

    if reentrant:
        with pytest.raises(ValueError, match="use_reentrant=True hides"):
            _collect(model, ["shared.weight"], batches, loss=checkpointed)
    else:
        _check(model, ["shared.weight"], batches, checkpointed, losses)


@pytest.mark.parametrize("what", ["input", "output", "output of a frozen input"])
def test_changes_in_place_change_no_gradient(what: str) -> None:
    """The gradients would be those of other inputs, or of what follows."""
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
        return _classified(m, found, y)

    plain = functools.partial(losses_of, in_place=False)
    _check(make_model(), NAMES[:2], make_batches(), losses_of, plain)


def _with_positions(rows: int, dims: int):
    """Positions that all samples share go through the layer of their tokens."""
    generator = torch.Generator().manual_seed(5)
    places = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    places = places if dims == 2 else places[None]

    def found(m, batch):
        shared = torch.tanh(m.first(places)).reshape(rows, -1)
        hidden = torch.tanh(m.first(batch[0])) @ shared.T @ shared
        return _classified(m, torch.tanh(m.shared(hidden)), batch[1])

    return found


def _tokens_first(m, batch):
    hidden = torch.tanh(m.first(batch[0].transpose(0, 1)))  # (T, k, 10)
    hidden = torch.tanh(m.shared(hidden)) + m.shared(hidden.mean(0, keepdim=True))
    return _classified(m, hidden.transpose(0, 1), batch[1])


def _unpadded(m, batch):  # the tokens of all samples, one after the other
    real = (batch[0] != 0).any(dim=2)
    hidden = torch.tanh(m.first(batch[0][real])).split(real.sum(dim=1).tolist())
    pooled = torch.stack([tokens.mean(dim=0, keepdim=True) for tokens in hidden])
    return _classified(m, torch.tanh(m.shared(pooled)), batch[1])


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
    batches, count = make_batches(size=size), 3 * size - 1
    _check(make_model(), NAMES, batches, loss, limit=count, count=count)


def test_long_and_short_samples_without_padding() -> None:
    """Gradients of some are formed, as they are smaller, and of others are not."""
    batches = make_batches()
    for x, _ in batches:
        x[1:3, 2:] = 0.0
    _check(make_model(), NAMES[:2], batches, _unpadded)


def test_a_mean_loss_of_samples_that_share_rows() -> None:
    batches, (loss, _) = make_batches(), SHARED["positions"]
    source = _mean(batches, loss)
    _check(make_model(), NAMES[:2], batches, source.sample_losses, loss)


@pytest.mark.parametrize(
    ("loss", "names"), [(losses, NAMES[:4]), (SHARED["positions"][0], NAMES[:1])]
)
def test_non_finite_samples_are_left_out_and_counted(loss, names) -> None:
    model, batches = make_model(), make_batches()
    clean = _collect(model, names, batches, loss=loss)[0]
    batches[1][0][2] = float("nan")
    found, count = _collect(model, names, batches, loss=loss)
    assert (count.used, count.skipped) == (11, 1)
    kept = [i for i in range(12) if i != 6]
    for ours, all_of_them in zip(found, clean, strict=True):
        _close(ours, all_of_them[kept])


def _in_pairs(model, batch):  # more losses than rows of the batch
    return losses(model, batch).repeat(2)


def _together(model, batch):
    found = losses(model, batch)
    return found * found.sum()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (_in_pairs, "layer input has 4 rows for 8 samples"),
        (_together, "without the rest of its batch"),
    ],
)
def test_samples_that_cannot_be_told_apart_are_refused(loss, message) -> None:
    """Batch gradients are what is left."""
    model, batches = make_model(), make_batches()
    with pytest.raises(ValueError, match=message):
        _collect(model, NAMES[:1], batches, loss=loss)
    assert _collect(model, NAMES[:1], batches, "batch", loss=loss)[1].used == 3
