"""Distillation row by row and layer by layer, against sums written out."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.distillation import (
    Outputs,
    RowLosses,
    distillation_loss,
    hidden_losses,
    map_layers,
    mix_losses,
    output_losses,
    read_outputs,
    square_head_losses,
)
from tests import reference

T = 2.5
NONE = -100  # the label of what has no loss


def _pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, *shape, dtype=torch.float64, generator=generator).mul(2.0)
    return both[0], both[1]


def _mask() -> torch.Tensor:
    """Three samples of 6, 4 and 1 tokens."""
    return (torch.arange(6) < torch.tensor([[6], [4], [1]])).long()


def _compare(student, teacher, temperature=T, mask=None, **options) -> RowLosses:
    ours, theirs = Outputs((student,)), Outputs((teacher,))
    return output_losses(ours, theirs, temperature, attention_mask=mask, **options)


def _check(found: RowLosses, rows: list[list[float]]) -> None:
    """Compare with the losses of the rows of each sample."""
    everything = [row for sample in rows for row in sample]
    assert float(found.mean()) == pytest.approx(np.mean(everything), rel=1e-9)
    by_sample = [np.mean(sample) if sample else 0.0 for sample in rows]
    ours = found.per_sample().numpy()
    np.testing.assert_allclose(ours, by_sample, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_labels", [True, False])
def test_tokens_that_do_not_count_are_left_out(with_mask, with_labels) -> None:
    student, teacher = _pair(3, 6, 5)
    mask, labels = _mask() if with_mask else None, None
    counted = np.ones((3, 6), dtype=bool) if mask is None else mask.numpy() == 1
    if with_labels:
        labels = torch.full((3, 6), 2)
        labels[0, ::2] = labels[2, :] = NONE  # the last sample has no label at all
        counted &= labels.numpy() != NONE
    found = _compare(student, teacher, mask=mask, labels=labels)
    rows: list[list[float]] = [[], [], []]
    for i, t in zip(*np.nonzero(counted), strict=True):
        pair = student[i, t].numpy(), teacher[i, t].numpy()
        rows[i].append(reference.softened_kl(*pair, T))
    _check(found, rows)
    # Control: counting everything, as SparseML does, is another number.
    whole = _compare(student, teacher)
    assert len(whole.values) == 18
    same = float(whole.mean()) == pytest.approx(float(found.mean()), rel=1e-3)
    assert same == counted.all()


def test_tokens_are_no_several_labels_where_shapes_agree_by_chance() -> None:
    """One labelled token of three, and three classes: a text of one word."""
    student, teacher = _pair(1, 3, 3)
    labels = torch.tensor([[NONE, 2, NONE]])
    for told in (None, "multi_label_classification"):
        found = _compare(student, teacher, labels=labels, problem=told)
        pair = student[0, 1].numpy(), teacher[0, 1].numpy()
        _check(found, [[reference.softened_kl(*pair, T)]])


def test_positions_of_padding_are_left_out_of_the_softmax() -> None:
    start, end, mask = _pair(3, 6), _pair(3, 6), _mask()
    end = tuple(values.flip(1) for values in end)
    student, teacher = (
        read_outputs({"start_logits": start[i], "end_logits": end[i]}) for i in (0, 1)
    )
    rows = []
    for sample, length in enumerate(mask.sum(1).tolist()):
        pairs = [
            [one[sample, :length].numpy() for one in pair] for pair in (start, end)
        ]
        rows.append([reference.softened_kl(*pair, T) for pair in pairs])
    found = output_losses(student, teacher, T, attention_mask=mask)
    _check(found, rows)
    # Control: with the padding in it, the numbers are others.
    whole = output_losses(student, teacher, T).per_sample()
    assert (whole[1:] - found.per_sample()[1:]).abs().min() > 1e-3


def test_padding_gets_no_gradient_and_no_nan() -> None:
    student, teacher = _pair(3, 6)
    student.requires_grad_(True)
    mask = _mask()
    mask[2] = 0  # a sample that is padding alone
    ours, theirs = (Outputs((one, one), True) for one in (student, teacher))
    found = output_losses(ours, theirs, T, attention_mask=mask)
    assert found.per_sample()[2] == 0.0
    found.mean().backward()
    assert torch.isfinite(student.grad).all()
    assert (student.grad[mask == 0] == 0).all() and (student.grad[:2, 0] != 0).all()


def test_a_batch_without_a_label_has_no_loss() -> None:
    student, teacher = _pair(2, 3, 4)
    student.requires_grad_(True)
    found = _compare(student, teacher, labels=torch.full((2, 3), NONE))
    assert found.mean() == 0.0 and found.per_sample().tolist() == [0.0, 0.0]
    found.mean().backward()
    assert (student.grad == 0).all()


def test_samples_are_rows_of_their_own() -> None:
    """Labels and masks of another shape than the logits tell nothing."""
    student, teacher = _pair(3, 4)
    labels = torch.tensor([NONE, 0, 1])
    found = _compare(student, teacher, mask=_mask(), labels=labels).per_sample()
    torch.testing.assert_close(found, distillation_loss(student, teacher, T))


def test_outputs_are_found_in_what_models_return() -> None:
    logits = torch.zeros(2, 3)
    hidden = tuple(torch.full((2, 5, 4), float(i)) for i in range(3))
    for one in (logits, (logits, 1), [logits], {"logits": logits}):
        assert read_outputs(one).logits == (logits,)
    found = read_outputs({"logits": logits, "hidden_states": hidden})
    assert [float(h.mean()) for h in found.hidden] == [1.0, 2.0]
    both = read_outputs({"start_logits": logits, "end_logits": logits})
    assert both.over_positions and len(both.logits) == 2


@pytest.mark.parametrize("masked", [True, False])
def test_square_head(masked) -> None:
    student, teacher = _pair(3, 6, 4)
    counted = _mask().bool() if masked else torch.ones(3, 6, dtype=torch.bool)
    found = square_head_losses(student, teacher, counted if masked else None)
    arrays = student.numpy(), teacher.numpy()
    wanted = reference.square_head(*arrays, counted.numpy())
    assert float(found.mean()) == pytest.approx(wanted, rel=1e-10)
    # Each sample's share, and as control the student in the normaliser.
    assert found.shape == (3,) and (found > 0).all()
    wrong = reference.square_head(*arrays[::-1], counted.numpy())
    assert float(found.mean()) != pytest.approx(wrong, rel=1e-3)
    assert float(square_head_losses(teacher, teacher).sum()) == 0.0
    # A batch in which nothing counts has no loss, and not 0 / 0.
    nothing = square_head_losses(student, teacher, torch.zeros_like(counted))
    assert nothing.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("layer_map", "student", "teacher", "pairs"),
    [
        ("uniform", 3, 12, [(0, 3), (1, 7), (2, 11)]),
        ("uniform", 6, 12, [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9), (5, 11)]),
        ("uniform", 4, 6, [(0, 0), (1, 2), (2, 3), (3, 5)]),
        ("uniform", 2, 2, [(0, 0), (1, 1)]),
        ("last", 3, 12, [(2, 11)]),
        ([0, 6, 11], 3, 12, [(0, 0), (1, 6), (2, 11)]),
    ],
)
def test_layer_maps(layer_map, student, teacher, pairs) -> None:
    assert map_layers(layer_map, student, teacher) == pairs


def test_hidden_losses_are_the_mean_over_pairs_of_layers() -> None:
    (ours, theirs), mask = _pair(4, 3, 6, 4), _mask()
    student, teacher = (Outputs((), hidden=tuple(of)) for of in (ours[:2], theirs))
    found = hidden_losses(student, teacher, "uniform", mask)
    wanted = np.mean([
        reference.square_head(a.numpy(), b.numpy(), mask.numpy())
        for a, b in ((ours[0], theirs[1]), (ours[1], theirs[3]))
    ])
    assert float(found.mean()) == pytest.approx(wanted, rel=1e-10)
    wrong = hidden_losses(student, teacher, [0, 1], mask)
    assert float(wrong.mean()) != pytest.approx(wanted, rel=1e-3)  # control


@pytest.mark.parametrize("width", [1, 3])
def test_numbers_are_compared_by_their_squared_error(width) -> None:
    student, teacher = _pair(5, width)
    named = None if width == 1 else "regression"
    found = _compare(student, teacher, problem=named)
    wanted = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(*rows, strict=True)) / width
        for rows in zip(student, teacher, strict=True)
    ]
    np.testing.assert_allclose(found.per_sample().numpy(), wanted, rtol=1e-12)
    hotter = _compare(student, teacher, 9.0, problem=named)
    assert torch.equal(hotter.values, found.values)
    # Control: the divergence of softmaxes.
    planted = distillation_loss(student, teacher, T)
    assert (planted.numpy() - wanted).max() < -1e-3
    assert width > 1 or not planted.any()


@pytest.mark.parametrize("width", [1, 3, 4])
@pytest.mark.parametrize("by_labels", [True, False])
def test_several_labels_are_compared_one_by_one(width, by_labels) -> None:
    student, teacher = _pair(5, width)
    told = {"problem": "multi_label_classification"}
    if by_labels and width > 1:
        told = {"labels": torch.ones(5, width)}
    found = _compare(student, teacher, **told)
    wanted = [
        reference.softened_binary_kl(ours.numpy(), theirs.numpy(), T)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    np.testing.assert_allclose(found.per_sample().numpy(), wanted, rtol=1e-9)
    # Controls: the divergence of softmaxes, and the sum over the labels.
    for planted in (distillation_loss(student, teacher, T), found.values * width):
        differs = np.abs(planted.numpy() - wanted).max() > 1e-3
        assert differs or (width == 1 and torch.equal(planted, found.values))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
def test_distillation_loss(temperature: float) -> None:
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    ours = distillation_loss(student, teacher, temperature)
    for row, (one, two) in enumerate(
        zip(student.numpy(), teacher.numpy(), strict=True)
    ):
        expected = reference.softened_kl(one, two, temperature)
        assert ours[row].item() == pytest.approx(expected, rel=1e-10)
        wrong = reference.softened_kl(two, one, temperature)
        assert ours[row].item() != pytest.approx(wrong, rel=1e-3)  # control
    for low in (torch.float16, torch.bfloat16):  # compared in float32
        half = distillation_loss(student.to(low), teacher.to(low), temperature)
        assert half.dtype == torch.float32


LOGITS, HIDDEN = torch.zeros(1, 2, 4), Outputs((), hidden=(torch.zeros(3, 6, 4),))
NARROW = Outputs((), hidden=(torch.zeros(3, 6, 3),))
REFUSED = [
    (lambda: distillation_loss(LOGITS, LOGITS, 0), "temperature=0 is not positive"),
    (
        lambda: _compare(LOGITS[0], LOGITS[0, :, :3]),
        r"teacher logits have shape \(2, 3\); expected",
    ),
    (
        lambda: _compare(LOGITS, LOGITS[..., :3]),
        r"teacher logits have shape \(1, 2, 3\)",
    ),
    (
        lambda: output_losses(Outputs((LOGITS, LOGITS), True), Outputs((LOGITS,)), T),
        "gives 1 logits; expected the student's 2",
    ),
    (
        lambda: hidden_losses(HIDDEN, Outputs(()), "last"),
        "teacher gives no hidden_states; expected",
    ),
    (
        lambda: hidden_losses(HIDDEN, NARROW, "last"),
        r"teacher hidden states have shape \(3, 6, 3\)",
    ),
    (
        lambda: map_layers([0, 6], 3, 12),
        r"layer_map=\[0, 6\] does not fit.*expected an index below 12 for each",
    ),
    (
        lambda: map_layers([0, 6, 12], 3, 12),
        r"layer_map=\[0, 6, 12\] does not fit.*expected an index below 12 for each",
    ),
    (lambda: map_layers("uniform", 12, 3), "layer_map=uniform maps 12 layers to a tea"),
]
assert len(REFUSED) == 9


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_teachers_and_maps_that_do_not_fit(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_losses_are_mixed() -> None:
    task, kl = torch.tensor(2.0), torch.tensor(4.0)
    assert mix_losses(task, kl, 0.25).item() == 2.5
    assert mix_losses(torch.tensor(float("nan")), kl, 1.0).item() == 4.0
