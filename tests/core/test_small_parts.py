"""Blocks, schedule, selection, distillation and Fisher state, part by part."""

import numpy as np
import pytest
import torch

from obert_modifiers.core import distillation
from obert_modifiers.core.distributed.parallel import share_of
from obert_modifiers.core.pruning import blocks, schedule, selection
from obert_modifiers.core.pruning.fisher import BlockFisher, resolve_damp
from obert_modifiers.core.pruning.saliency import obs_saliency
from obert_modifiers.core.pruning.update import independent_update, joint_update
from tests import reference


@pytest.mark.parametrize(("numel", "width"), [(1, 1), (1, 8), (96, 48), (97, 48)])
def test_blocks_round_trip(numel: int, width: int) -> None:
    values = torch.arange(1.0, numel + 1)
    cut = blocks.to_blocks(values, width)
    assert cut.shape == (blocks.count_blocks(numel, width), width)
    assert cut.sum() == values.sum()  # padding is zero
    assert torch.equal(blocks.from_blocks(cut, numel), values)


def test_blocks_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="fisher_block_size=0 is smaller than 1"):
        blocks.count_blocks(4, 0)
    with pytest.raises(ValueError, match="numel=0 is smaller than 1"):
        blocks.count_blocks(0, 4)


@pytest.mark.parametrize("inter_func", schedule.INTERPOLATIONS)
def test_schedule_endpoints_and_monotony(inter_func: str) -> None:
    at = [
        schedule.interpolate_sparsity(t, 2.0, 8.0, 0.3, 0.9, inter_func)
        for t in np.linspace(0.0, 10.0, 101)
    ]
    assert at[0] == at[20] == 0.3
    assert at[80] == at[100] == 0.9
    assert all(b >= a for a, b in zip(at, at[1:], strict=False))


def test_cubic_schedule_is_zhu_and_guptas() -> None:
    for t in np.linspace(0.0, 5.0, 31):
        ours = schedule.interpolate_sparsity(t, 1.0, 4.0, 0.7, 0.97, "cubic")
        assert ours == pytest.approx(reference.cubic(t, 1.0, 4.0, 0.7, 0.97), abs=1e-12)
    # Control: a schedule that starts at twice the increment is not this one.
    assert schedule.interpolate_sparsity(2.0, 1.0, 4.0, 0.7, 0.97) != pytest.approx(
        reference.cubic(3.0, 1.0, 4.0, 0.7, 0.97)
    )


def test_schedule_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="inter_func=square is unknown"):
        schedule.interpolate_sparsity(0, 0, 1, 0, 1, "square")
    with pytest.raises(ValueError, match="sparsity=80 is outside"):
        schedule.sparsity_to_count(80, 10)
    assert schedule.sparsity_to_count(0.8, 10_616_832) == 8_493_466


def test_pools_group_equal_targets() -> None:
    pools = selection.make_pools([10, 10, 20], [0.5, 0.8, 0.5], True)
    assert [(p.members, p.count) for p in pools] == [((0, 2), 15), ((1,), 8)]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
def test_distillation_loss(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    ours = distillation.distillation_loss(student, teacher, temperature)
    for row in range(5):
        expected = reference.softened_kl(
            student[row].numpy(), teacher[row].numpy(), temperature
        )
        assert ours[row].item() == pytest.approx(expected, rel=1e-10)
        wrong = reference.softened_kl(
            teacher[row].numpy(), student[row].numpy(), temperature
        )
        assert ours[row].item() != pytest.approx(wrong, rel=1e-3)  # control
    half = distillation.distillation_loss(student.half(), teacher.half(), temperature)
    assert half.dtype == torch.float32


def test_distillation_refuses_and_mixes() -> None:
    with pytest.raises(ValueError, match="teacher logits have shape"):
        distillation.distillation_loss(torch.zeros(2, 3), torch.zeros(2, 2), 1.0)
    with pytest.raises(ValueError, match="temperature=0 is not positive"):
        distillation.distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0)
    task, kl = torch.tensor(2.0), torch.tensor(4.0)
    assert distillation.mix_losses(task, kl, 0.25).item() == 2.5
    assert distillation.mix_losses(torch.tensor(float("nan")), kl, 1.0).item() == 4.0


def _fisher(numel: int = 23, width: int = 5, m: int = 40):
    torch.manual_seed(0)
    grads = torch.randn(m, numel, dtype=torch.float64)
    fisher = BlockFisher(numel, width, dtype=torch.float64)
    for part in grads.split(16):
        fisher.add_(part)
    return fisher, grads, torch.randn(numel, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 5, 23, 40])
def test_saliency_of_single_weights(width: int) -> None:
    fisher, grads, weights = _fisher(width=width)
    dense = reference.dense_fisher(grads.numpy(), 0.1)
    dense = reference.block_diagonal(dense, width)
    ours = obs_saliency(weights, fisher, 0.1)
    for j in range(len(weights)):
        expected = reference.group_saliency(dense, weights.numpy(), [j])
        assert ours[j].item() == pytest.approx(expected, rel=1e-9)
    if width == 1:  # the diagonal formula
        diagonal = grads.square().mean(dim=0) + 0.1
        torch.testing.assert_close(ours, weights.square() * diagonal / 2)


def test_large_damping_gives_the_magnitude_order() -> None:
    fisher, _, weights = _fisher()
    ours = obs_saliency(weights, fisher, 1e6).argsort()
    assert ours.tolist() == weights.abs().argsort().tolist()


def test_updates() -> None:
    fisher, grads, weights = _fisher()
    dense = reference.dense_fisher(grads.numpy(), 0.1)
    dense = reference.block_diagonal(dense, 5)
    mask = torch.rand(23) > 0.4
    gone = (~mask).nonzero().flatten().tolist()
    joint, price = joint_update(weights, fisher, 0.1, mask)
    expected, best = reference.best_update(dense, weights.numpy(), gone)
    np.testing.assert_allclose(joint.numpy(), expected, atol=1e-10)
    assert price == pytest.approx(best, rel=1e-9)
    added, sum_of_saliencies = independent_update(weights, fisher, 0.1, mask)
    expected = reference.single_updates_added(dense, weights.numpy(), gone)
    np.testing.assert_allclose(added.numpy(), expected, atol=1e-10)
    singles = [reference.group_saliency(dense, weights.numpy(), [j]) for j in gone]
    assert sum_of_saliencies == pytest.approx(sum(singles), rel=1e-9)
    assert (joint[~mask] == 0).all() and (added[~mask] == 0).all()
    # Control: the two rules differ, and the joint one is cheaper.
    step, other = (joint - weights).numpy(), (added - weights).numpy()
    assert step @ dense @ step < other @ dense @ other


def test_fisher_counts_what_was_added_and_drops_pruned_weights() -> None:
    fisher, grads, _ = _fisher()
    assert fisher.num_grads == 40
    torch.testing.assert_close(fisher.diagonal(), grads.square().mean(dim=0))
    kept = torch.ones(23, dtype=torch.bool)
    kept[3] = False
    masked = BlockFisher(23, 5, dtype=torch.float64)
    masked.add_(grads.clone(), kept)
    assert masked.diagonal()[3] == 0
    assert (masked.sums[0, 3] == 0).all() and (masked.sums[0, :, 3] == 0).all()


def test_damping() -> None:
    fisher, grads, _ = _fisher()
    mask = torch.rand(23) > 0.5
    mean = grads.square().mean(dim=0)[mask].mean().item()
    trace, living = fisher.living_trace(mask)
    assert living == int(mask.sum())
    assert resolve_damp([trace], living, None, 0.01) == pytest.approx(0.01 * mean)
    total, everything = fisher.living_trace(None)
    assert everything == 23
    assert total == pytest.approx(grads.square().mean(dim=0).sum().item())
    assert resolve_damp([], 0, 1e-7, None) == 1e-7
    with pytest.raises(ValueError, match="are both given"):
        resolve_damp([1.0], 1, 1e-7, 0.01)
    with pytest.raises(ValueError, match="are both missing"):
        resolve_damp([1.0], 1, None, None)
    silent = BlockFisher(23, 5)
    with pytest.raises(ValueError, match="no gradient was added"):
        silent.living_trace(mask)
    silent.add_(torch.zeros(4, 23))
    with pytest.raises(ValueError, match="every sampled gradient is zero"):
        resolve_damp([silent.living_trace(mask)[0]], living, None, 0.01)


def test_shares_sum_up() -> None:
    for ranks in (1, 2, 3, 7):
        assert sum(share_of(10, rank, ranks) for rank in range(ranks)) == 10
