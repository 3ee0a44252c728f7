"""Distillation row by row and layer by layer, against sums written out."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.distillation import (
    Outputs,
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


def _pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(
        2, *shape, dtype=torch.float64, generator=generator
    ).mul(2.0)
    return student, teacher


def _mask() -> torch.Tensor:
    """Three samples of 6, 4 and 1 tokens."""
    return (torch.arange(6) < torch.tensor([[6], [4], [1]])).long()


def _rows(student, teacher, counted) -> list[list[float]]:
    """The divergence of each counted token, by sample."""
    return [
        [
            reference.softened_kl(student[i, t].numpy(), teacher[i, t].numpy(), T)
            for t in range(counted.shape[1])
            if counted[i, t]
        ]
        for i in range(len(counted))
    ]


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_labels", [True, False])
def test_tokens_that_do_not_count_are_left_out(with_mask, with_labels) -> None:
    student, teacher = _pair(3, 6, 5)
    mask = _mask() if with_mask else None
    labels = torch.full((3, 6), 2)
    labels[0, ::2] = labels[2, :] = -100  # the last sample has no label at all
    labels = labels if with_labels else None
    counted = np.ones((3, 6), dtype=bool)
    if with_mask:
        counted &= mask.numpy() == 1
    if with_labels:
        counted &= labels.numpy() != -100
    rows = _rows(student, teacher, counted)
    found = output_losses(
        Outputs((student,)),
        Outputs((teacher,)),
        T,
        attention_mask=mask,
        labels=labels,
    )
    everything = [one for sample in rows for one in sample]
    assert float(found.mean()) == pytest.approx(np.mean(everything), rel=1e-10)
    by_sample = [np.mean(sample) if sample else 0.0 for sample in rows]
    np.testing.assert_allclose(found.per_sample().numpy(), by_sample, rtol=1e-10)
    # Control: counting everything, as SparseML does, is another number.
    whole = output_losses(Outputs((student,)), Outputs((teacher,)), T)
    assert len(whole.values) == 18
    same = float(whole.mean()) == pytest.approx(float(found.mean()), rel=1e-3)
    assert same == counted.all()


def test_positions_of_padding_are_left_out_of_the_softmax() -> None:
    start, end = _pair(3, 6), _pair(3, 6)
    end = tuple(values.flip(1) for values in end)
    mask = _mask()
    student, teacher = (
        read_outputs({"start_logits": start[i], "end_logits": end[i]}) for i in (0, 1)
    )
    wanted = []
    for sample in range(3):
        length = int(mask[sample].sum())
        wanted.append([
            reference.softened_kl(
                one[0][sample, :length].numpy(), one[1][sample, :length].numpy(), T
            )
            for one in (start, end)
        ])
    found = output_losses(student, teacher, T, attention_mask=mask)
    np.testing.assert_allclose(
        found.per_sample().numpy(), np.mean(wanted, axis=1), rtol=1e-9, atol=1e-12
    )
    assert float(found.mean()) == pytest.approx(np.mean(wanted), rel=1e-9)
    # Control: with the padding in it, the numbers are others.
    whole = output_losses(student, teacher, T).per_sample()
    assert (whole[1:] - found.per_sample()[1:]).abs().min() > 1e-3


def test_padding_gets_no_gradient_and_no_nan() -> None:
    student, teacher = _pair(3, 6)
    student.requires_grad_(True)
    mask = _mask()
    mask[2] = 0  # a sample that is padding alone
    ours, theirs = (
        Outputs((one, one), over_positions=True) for one in (student, teacher)
    )
    found = output_losses(ours, theirs, T, attention_mask=mask)
    assert found.per_sample()[2] == 0.0
    found.mean().backward()
    assert torch.isfinite(student.grad).all()
    assert (student.grad[mask == 0] == 0).all() and (student.grad[:2, 0] != 0).all()


def test_a_batch_without_a_label_has_no_loss() -> None:
    student, teacher = _pair(2, 3, 4)
    student.requires_grad_(True)
    labels = torch.full((2, 3), -100)
    found = output_losses(Outputs((student,)), Outputs((teacher,)), T, labels=labels)
    assert found.mean() == 0.0 and found.per_sample().tolist() == [0.0, 0.0]
    found.mean().backward()
    assert (student.grad == 0).all()


def test_half_precision_is_compared_in_float32() -> None:
    student, teacher = _pair(2, 3, 4)
    half = output_losses(
        Outputs((student.bfloat16(),)), Outputs((teacher.bfloat16(),)), T
    )
    assert half.values.dtype == torch.float32


def test_samples_are_rows_of_their_own() -> None:
    """Labels and masks of another shape than the logits tell nothing."""
    student, teacher = _pair(3, 4)
    labels, mask = torch.tensor([-100, 0, 1]), _mask()
    found = output_losses(
        Outputs((student,)), Outputs((teacher,)), T, attention_mask=mask, labels=labels
    )
    torch.testing.assert_close(
        found.per_sample(), distillation_loss(student, teacher, T)
    )


def test_outputs_are_found_in_what_models_return() -> None:
    logits = torch.zeros(2, 3)
    hidden = tuple(torch.full((2, 5, 4), float(i)) for i in range(3))
    for one in (logits, (logits, 1), [logits], {"logits": logits}):
        assert read_outputs(one).logits == (logits,)
    found = read_outputs({"logits": logits, "hidden_states": hidden})
    assert [float(h.mean()) for h in found.hidden] == [1.0, 2.0]
    both = read_outputs({"start_logits": logits, "end_logits": logits})
    assert both.over_positions and len(both.logits) == 2


def test_a_teacher_of_another_task_is_refused() -> None:
    student, teacher = _pair(3, 6)
    with pytest.raises(ValueError, match="gives 1 logits; expected the student's 2"):
        output_losses(Outputs((student, student), True), Outputs((teacher,)), T)
    with pytest.raises(ValueError, match=r"teacher logits have shape \(3, 5\); expe"):
        output_losses(Outputs((student,)), Outputs((teacher[:, :5],)), T)
    with pytest.raises(ValueError, match=r"teacher logits have shape \(1, 2, 3\)"):
        output_losses(
            Outputs((torch.zeros(1, 2, 4),)), Outputs((torch.zeros(1, 2, 3),)), T
        )


@pytest.mark.parametrize("masked", [True, False])
def test_square_head(masked) -> None:
    student, teacher = _pair(3, 6, 4)
    counted = _mask().bool() if masked else torch.ones(3, 6, dtype=torch.bool)
    found = square_head_losses(student, teacher, counted if masked else None)
    wanted = reference.square_head(student.numpy(), teacher.numpy(), counted.numpy())
    assert float(found.mean()) == pytest.approx(wanted, rel=1e-10)
    # Each sample's share, and as control the student in the normaliser.
    assert found.shape == (3,) and (found > 0).all()
    wrong = reference.square_head(teacher.numpy(), student.numpy(), counted.numpy())
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


def test_layer_maps_that_do_not_fit() -> None:
    for layer_map in ([0, 6], [0, 6, 12]):
        with pytest.raises(
            ValueError, match="expected an index below 12 for each"
        ) as e:
            map_layers(layer_map, 3, 12)
        assert f"layer_map={layer_map} does not fit" in str(e.value)
    with pytest.raises(ValueError, match="layer_map=uniform maps 12 layers to a teach"):
        map_layers("uniform", 12, 3)


def test_hidden_losses_are_the_mean_over_pairs_of_layers() -> None:
    ours, theirs = _pair(4, 3, 6, 4)
    mask = _mask()
    student = Outputs((), hidden=(ours[0], ours[1]))
    teacher = Outputs((), hidden=tuple(theirs))
    found = hidden_losses(student, teacher, "uniform", mask)
    wanted = np.mean([
        reference.square_head(a.numpy(), b.numpy(), mask.numpy())
        for a, b in ((ours[0], theirs[1]), (ours[1], theirs[3]))
    ])
    assert float(found.mean()) == pytest.approx(wanted, rel=1e-10)
    wrong = hidden_losses(student, teacher, [0, 1], mask)
    assert float(wrong.mean()) != pytest.approx(wanted, rel=1e-3)  # control
    with pytest.raises(ValueError, match="teacher gives no hidden_states; expected"):
        hidden_losses(student, Outputs(()), "last")
    narrow = Outputs((), hidden=(theirs[0, ..., :3],))
    with pytest.raises(ValueError, match="teacher hidden states have shape"):
        hidden_losses(student, narrow, "last")


@pytest.mark.parametrize("width", [1, 3])
def test_numbers_are_compared_by_their_squared_error(width) -> None:
    student, teacher = _pair(5, width)
    named = None if width == 1 else "regression"
    found = output_losses(Outputs((student,)), Outputs((teacher,)), T, problem=named)
    wanted = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(*rows, strict=True)) / width
        for rows in zip(student, teacher, strict=True)
    ]
    np.testing.assert_allclose(found.per_sample().numpy(), wanted, rtol=1e-12)
    hotter = output_losses(Outputs((student,)), Outputs((teacher,)), 9.0, problem=named)
    assert torch.equal(hotter.values, found.values)
    # Control: the divergence of softmaxes.
    planted = distillation_loss(student, teacher, T)
    assert (planted.numpy() - wanted).max() < -1e-3
    assert width > 1 or not planted.any()


@pytest.mark.parametrize("width", [1, 3, 4])
@pytest.mark.parametrize("by_labels", [True, False])
def test_several_labels_are_compared_one_by_one(width, by_labels) -> None:
    student, teacher = _pair(5, width)
    labels = torch.ones(5, width) if by_labels and width > 1 else None
    found = output_losses(
        Outputs((student,)),
        Outputs((teacher,)),
        T,
        labels=labels,
        problem=None if labels is not None else "multi_label_classification",
    )
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
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    ours = distillation_loss(student, teacher, temperature)
    for row in range(5):
        expected = reference.softened_kl(
            student[row].numpy(), teacher[row].numpy(), temperature
        )
        assert ours[row].item() == pytest.approx(expected, rel=1e-10)
        wrong = reference.softened_kl(
            teacher[row].numpy(), student[row].numpy(), temperature
        )
        assert ours[row].item() != pytest.approx(wrong, rel=1e-3)  # control
    half = distillation_loss(student.half(), teacher.half(), temperature)
    assert half.dtype == torch.float32


def test_distillation_refuses_and_mixes() -> None:
    with pytest.raises(ValueError, match="teacher logits have shape"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 2), 1.0)
    with pytest.raises(ValueError, match="temperature=0 is not positive"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0)
    task, kl = torch.tensor(2.0), torch.tensor(4.0)
    assert mix_losses(task, kl, 0.25).item() == 2.5
    assert mix_losses(torch.tensor(float("nan")), kl, 1.0).item() == 4.0
