"""Weights fitted again over whole rows, against dense least squares."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning import rows
from obert_modifiers.core.pruning.rows import check_linear, solve_rows
from obert_modifiers.core.pruning.sampling import GradientSource
from tests.core import models
from tests.core.models import NAMES, make_batches, make_config, prune


def least_squares(inputs, before, mask, damp) -> np.ndarray:
    """Each row by itself, from the definition, in float64."""
    inputs, before = inputs.astype(np.float64), before.astype(np.float64)
    count = inputs.shape[1]
    ridge = damp * np.trace(inputs.T @ inputs) / count
    stacked = np.vstack([inputs, np.sqrt(ridge) * np.eye(count)])
    fitted = np.zeros_like(before)
    for row, old in enumerate(before):
        kept = np.flatnonzero(mask[row])
        fitted[row, kept] = np.linalg.lstsq(
            stacked[:, kept], stacked @ old, rcond=None
        )[0]
    return fitted


def problem(out=5, width=17, count=40, seed=0, dtype=torch.float64):
    """Correlated inputs of very different sizes; one row loses nothing, one all."""
    make = torch.Generator().manual_seed(seed)
    low = torch.randn(count, 6, generator=make, dtype=torch.float64)
    inputs = low @ torch.randn(6, width, generator=make, dtype=torch.float64)
    inputs += 0.1 * torch.randn(count, width, generator=make, dtype=torch.float64)
    inputs *= torch.logspace(-1, 1, width, dtype=torch.float64)
    inputs[:, 3] = 0.0  # an input that never comes
    before = torch.randn(out, width, generator=make, dtype=torch.float64)
    mask = torch.rand(out, width, generator=make) > 0.6
    mask[0], mask[1] = True, False
    start = before * mask + 0.1 * torch.randn(out, width, generator=make) * mask
    return inputs, *(one.to(dtype) for one in (before, start)), mask


def towards_the_start(gram, before, start, mask, damp):
    """Planted: what the first update left is taken for the weights before."""
    return solve_rows(gram, start, start, mask, damp)


def one_step(gram, before, start, mask, damp):
    """Planted: a step along the gradient, without those that undo its coupling."""
    damped = gram + damp * gram.diagonal().mean() * torch.eye(len(gram))
    gap = (before - start) * mask
    return (start + gap @ damped / damped.diagonal()) * mask


def free_rows(gram, before, start, mask, damp):
    """Planted: the whole row is solved and the mask comes after it."""
    return solve_rows(gram, before, start, torch.ones_like(mask), damp) * mask


@pytest.mark.parametrize("damp", [0.01, 1e-4])
def test_rows_are_those_of_least_squares(damp) -> None:
    inputs, before, start, mask = problem()
    gram = inputs.T @ inputs
    expected = least_squares(*(one.numpy() for one in (inputs, before, mask)), damp)

    def error(solve) -> float:
        found = solve(gram, before, start, mask, damp)
        assert (found[~mask] == 0).all()
        return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())

    assert error(solve_rows) < 1e-5  # what TOLERANCE leaves in small directions
    for wrong in (towards_the_start, one_step, free_rows):
        assert error(wrong) > 1e-2
    # A row that loses nothing goes back to what it was, as far as inputs tell.
    found = solve_rows(gram, before, start, mask, damp)
    assert torch.equal(found, solve_rows(gram, before, start, mask, damp))
    torch.testing.assert_close(found[0], before[0], rtol=0.0, atol=1e-4)


def test_single_precision_has_the_same_output_error() -> None:
    """float32 leaves weights of small inputs open, and no error of the outputs."""
    inputs, before, start, mask = problem(dtype=torch.float32)
    gram = inputs.T @ inputs
    exact = least_squares(*(one.numpy() for one in (inputs, before, mask)), 0.01)
    found = solve_rows(gram.float(), before, start, mask)
    assert found.dtype == torch.float32

    def error(weights) -> float:
        change = torch.as_tensor(weights).double() - before.double()
        ridge = 0.01 * gram.diagonal().mean()
        return float(((change @ gram) * change).sum() + ridge * change.square().sum())

    assert error(exact) <= error(found) < error(exact) * (1 + 1e-4)
    assert error(found) < 0.9 * error(start)


def test_a_row_that_has_lost_nothing_goes_back_to_what_it_was() -> None:
    """To rounding in a few steps, and all others make nothing of it but zeros."""
    inputs, before, start, _ = problem(width=8)
    whole = torch.ones_like(before, dtype=torch.bool)
    found = solve_rows(inputs.T @ inputs, before, start, whole)
    assert torch.isfinite(found).all()
    gap = (inputs @ (found - before).T).norm() / (inputs @ (start - before).T).norm()
    assert gap < 1e-5


def test_nothing_to_fit_changes_nothing() -> None:
    _, before, start, mask = problem()
    nothing = torch.zeros(17, 17, dtype=torch.float64)
    assert torch.equal(solve_rows(nothing, before, start, mask), start * mask)


def with_padding(turned: bool):
    """Batches by name, of which some positions are padding, and their loss."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        models.Conv1D(8, 6) if turned else torch.nn.Linear(6, 8, bias=False),
        torch.nn.Tanh(),
        torch.nn.Linear(8, 3),
    ).double()
    batches = []
    for length in (5, 4, 7):
        mask = torch.ones(4, length, dtype=torch.int64)
        mask[1, 3:] = mask[3, 2:] = 0
        texts = torch.randn(4, length, 6, dtype=torch.float64)
        labels = torch.randint(0, 3, (4,))
        batches.append({"x": texts, "attention_mask": mask, "labels": labels})

    def losses(model, batch):
        words = batch["attention_mask"][..., None]
        logits = (model(batch["x"]) * words).sum(1) / words.sum(1)
        return torch.nn.functional.cross_entropy(
            logits, batch["labels"], reduction="none"
        )

    return model, batches, losses


@pytest.mark.parametrize("text", ["unstructured", "block4", "2:4"])
@pytest.mark.parametrize("turned", [False, True])
def test_an_event_fits_rows_to_the_texts_of_its_fisher(text, turned) -> None:
    pattern = parse_mask_type(text)

    def run(update, keep_padding=False):
        model, batches, losses = with_padding(turned)
        targets = models.targets_of(model, "0.weight", "2.weight")
        targets[0] = type(targets[0])("0.weight", targets[0].parameter, turned)
        if text != "unstructured":
            targets = targets[1:] if not turned else [targets[1]]
        before = models.weights_of(targets)
        inputs = {}
        for number in (0, 2):
            seen = [
                (model[:number](b["x"]) if number else b["x"])[
                    b["attention_mask"].bool() | keep_padding
                ]
                for b in batches
            ]
            inputs[f"{number}.weight"] = torch.cat(seen).detach().numpy()
        config = make_config(update=update, pattern=pattern, fisher_block_size=8)
        source = GradientSource(lambda request: batches, losses)
        result, after = prune(config, source, model=model, targets=targets)
        matrices = [
            [one.T if t.transposed else one for one in tensors]
            for t, *tensors in zip(targets, before, after, result.masks, strict=True)
        ]
        return result, inputs, [t.name for t in targets], matrices

    joint, _, _, _ = run("joint")
    result, inputs, names, matrices = run("row")
    assert models.equal(result.masks, joint.masks)
    assert result.predicted_loss_increase == joint.predicted_loss_increase
    _, padded, _, _ = run("joint", keep_padding=True)
    for name, (before, after, mask) in zip(names, matrices, strict=True):
        values, kept = before.numpy(), mask.numpy()
        expected = least_squares(inputs[name], values, kept, rows.DAMP)
        np.testing.assert_allclose(after.numpy(), expected, atol=1e-5)
        assert (after[~mask] == 0).all() and not mask.all()
        # The negative control: padding counts as a word.
        wrong = least_squares(padded[name], values, kept, rows.DAMP)
        assert np.abs(after.numpy() - wrong).max() > 1e-3


def test_a_layer_that_runs_twice_is_fitted_to_both_inputs() -> None:
    model = models.make_model()
    before = model.shared.weight.detach().clone().numpy()
    with torch.no_grad():
        model.eval()
        x = torch.cat([batch[0] for batch in make_batches()]).reshape(-1, 6)
        one = torch.tanh(model.first(x))
        two = torch.tanh(model.shared(one))
    targets = models.targets_of(model, *NAMES)
    result, after = prune(make_config(update="row"), model=model, targets=targets)
    both = torch.cat([one, two]).numpy()
    mask = result.masks[1].numpy()
    expected = least_squares(both, before, mask, rows.DAMP)
    np.testing.assert_allclose(after[1].numpy(), expected, atol=1e-5)
    wrong = least_squares(one.numpy(), before, mask, rows.DAMP)
    assert np.abs(after[1].numpy() - wrong).max() > 1e-3
    assert not any(module._forward_pre_hooks for module in model.modules())


class Masked(torch.nn.Module):
    """A mean over words, whose mask it takes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = torch.nn.Linear(6, 10), torch.nn.Linear(10, 2)

    def forward(self, x, attention_mask):
        words = attention_mask[..., None]
        hidden = torch.tanh(self.first(x)) * words
        return self.head(hidden.sum(1) / words.sum(1))


@pytest.mark.parametrize("plain", [False, True])
def test_padding_is_no_word_where_the_model_alone_sees_the_mask(plain) -> None:
    """Batches of SparseML's samplers are tuples."""

    def losses(model, batch):
        named, labels = batch
        logits = (model.forward if plain else model)(**named)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def run(padding: int) -> torch.Tensor:
        torch.manual_seed(5)
        model, x = Masked().double(), torch.randn(8, 4, 6, dtype=torch.float64)
        named = {"x": torch.nn.functional.pad(x, (0, 0, 0, padding), value=3.0)}
        named["attention_mask"] = torch.nn.functional.pad(
            torch.ones(8, 4), (0, padding)
        )
        batch = named, torch.arange(8) % 2
        source = GradientSource(lambda request: [batch], losses)
        config = make_config(update="row", num_grads=8)
        targets = models.targets_of(model, "first.weight")
        return prune(config, source, model=model, targets=targets)[1][0]

    same = torch.allclose(run(12), run(0), rtol=1e-9)
    assert same is not plain  # the negative control hides the mask from hooks


def test_inputs_that_are_changed_in_place_are_not_taken_for_another_layers() -> None:
    class Changing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(6, 6), torch.nn.Linear(6, 2)

        def forward(self, x):
            hidden = x.clone()
            with torch.no_grad():
                hidden += self.one(hidden)
            return self.two(hidden)

    torch.manual_seed(5)
    model, x = Changing().double(), torch.randn(20, 6, dtype=torch.float64)
    weight, bias = (one.detach().clone() for one in model.one.parameters())
    before = model.two.weight.detach().clone().numpy()
    source = GradientSource(
        lambda request: [(x, torch.arange(20) % 2)],
        lambda model, batch: torch.nn.functional.cross_entropy(
            model(batch[0]), batch[1], reduction="none"
        ),
    )
    targets = models.targets_of(model, "two.weight")
    config = make_config(update="row", num_grads=20)
    result, after = prune(config, source, model=model, targets=targets)
    hidden = (x + x @ weight.T + bias).numpy()
    mask = result.masks[0].numpy()
    expected = least_squares(hidden, before, mask, rows.DAMP)
    np.testing.assert_allclose(after[0].numpy(), expected, atol=1e-5)


def test_what_has_no_rows_is_refused() -> None:
    mixed = models.make_mixed()
    targets = models.mixed_targets(mixed)
    check_linear(mixed, targets[:2])
    with pytest.raises(ValueError, match="update=row .* conv.weight is of Conv2d"):
        check_linear(mixed, targets)


def test_inputs_that_are_not_finite_are_said_and_nothing_is_written() -> None:
    model = models.make_model()
    targets = models.targets_of(model, *NAMES)
    batches = make_batches(20)
    batches[0][0][0, 0, 0] = torch.inf
    source = models.make_source(batches)
    with (
        models.unchanged(targets),
        pytest.raises(FloatingPointError, match="inputs of first.weight are not"),
    ):
        prune(
            make_config(update="row", num_grads=80),
            source,
            model=model,
            targets=targets,
        )
