"""Dense float64 oracles, written from the definitions; nothing of ours is imported.

Each one works on one Fisher block or one small problem, with explicit loops, so that
it can be read beside the papers.
"""

import itertools
import math

import numpy as np


def dense_fisher(grads: np.ndarray, damp: float) -> np.ndarray:
    """oBERT equation (2): ``lam I + 1/m sum_i g_i g_i^T``."""
    count, width = grads.shape
    fisher = damp * np.eye(width)
    for grad in grads.astype(np.float64):
        fisher += np.outer(grad, grad) / count
    return fisher


def block_diagonal(fisher: np.ndarray, block: int) -> np.ndarray:
    """Keep the diagonal blocks of a dense matrix, the last one possibly smaller."""
    kept = np.zeros_like(fisher)
    for start in range(0, len(fisher), block):
        part = slice(start, start + block)
        kept[part, part] = fisher[part, part]
    return kept


def group_saliency(fisher: np.ndarray, weights: np.ndarray, group: list[int]) -> float:
    """oBERT section 3.1: ``1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q``."""
    inverse = np.linalg.inv(fisher)
    inner = np.linalg.inv(inverse[np.ix_(group, group)])
    return 0.5 * float(weights[group] @ inner @ weights[group])


def best_update(
    fisher: np.ndarray, weights: np.ndarray, pruned: list[int]
) -> tuple[np.ndarray, float]:
    """Minimise ``1/2 d^T F d`` with ``d_P = -w_P`` through its KKT system."""
    width, held = len(weights), len(pruned)
    system = np.zeros((width + held, width + held))
    system[:width, :width] = fisher
    right = np.zeros(width + held)
    for row, index in enumerate(pruned):
        system[width + row, index] = system[index, width + row] = 1.0
        right[width + row] = -weights[index]
    step = np.linalg.solve(system, right)[:width]
    return weights + step, 0.5 * float(step @ fisher @ step)


def single_updates_added(
    fisher: np.ndarray, weights: np.ndarray, pruned: list[int]
) -> np.ndarray:
    """Sum the update of each pruned weight as if it went alone, then zero them."""
    total = weights.astype(np.float64).copy()
    for index in pruned:
        total += best_update(fisher, weights, [index])[0] - weights
    total[pruned] = 0.0
    return total


def greedy_elimination(
    fisher: np.ndarray, weights: np.ndarray, eligible: list[int]
) -> tuple[list[int], list[float]]:
    """Remove the cheapest weight, re-solve for the rest from scratch, repeat.

    The marginal cost of a removal is the exact loss increase of the whole set so far
    minus that of the set before it.
    """
    order: list[int] = []
    costs: list[float] = []
    spent = 0.0
    while len(order) < len(eligible):
        options = []
        for index in eligible:
            if index not in order:
                increase = best_update(fisher, weights, [*order, index])[1]
                options.append((increase, index))
        increase, index = min(options)
        order.append(index)
        costs.append(increase - spent)
        spent = increase
    return order, costs


def greedy_group_elimination(
    fisher: np.ndarray, weights: np.ndarray, groups: list[list[int]]
) -> tuple[list[int], list[float]]:
    """Remove the cheapest group, re-solve for the rest from scratch, repeat."""
    order: list[int] = []
    costs: list[float] = []
    gone: list[int] = []
    spent = 0.0
    while len(order) < len(groups):
        options = [
            (best_update(fisher, weights, gone + members)[1], g)
            for g, members in enumerate(groups)
            if g not in order
        ]
        increase, best = min(options)
        order.append(best)
        costs.append(increase - spent)
        gone, spent = gone + groups[best], increase
    return order, costs


def greedy_n_m_elimination(
    fisher: np.ndarray, weights: np.ndarray, eligible: list[int], n_m: tuple[int, int]
) -> tuple[list[int], list[float]]:
    """As for single weights, but N of every M consecutive weights have to stay."""
    kept, size = n_m
    order: list[int] = []
    costs: list[float] = []
    spent = 0.0
    while True:
        left = [i for i in eligible if i not in order]
        options = [
            (best_update(fisher, weights, [*order, i])[1], i)
            for i in left
            if sum(j // size == i // size for j in left) > kept
        ]
        if not options:
            return order, costs
        increase, best = min(options)
        order.append(best)
        costs.append(increase - spent)
        spent = increase


def cheapest_subset(
    fisher: np.ndarray,
    weights: np.ndarray,
    group: list[int],
    pruned: list[int],
    size: int,
) -> tuple[tuple[int, ...], float]:
    """Try every set of ``size`` weights of a group that holds what is pruned."""
    sets = itertools.combinations(group, size)
    priced = [
        (best_update(fisher, weights, list(s))[1], s)
        for s in sets
        if set(pruned) <= set(s)
    ]
    price, found = min(priced)
    return found, price


def group_updates_added(
    fisher: np.ndarray, weights: np.ndarray, sets: list[list[int]]
) -> np.ndarray:
    """Sum the update of each set of weights as if it went alone, then zero them."""
    total = weights.astype(np.float64).copy()
    for members in sets:
        total += best_update(fisher, weights, members)[0] - weights
    for members in sets:
        total[members] = 0.0
    return total


def group_indices(
    shape: tuple[int, int], rows: int, columns: int, transposed: bool
) -> list[list[int]]:
    """List the flat indices of each group of a weight matrix, one by one.

    ``shape`` is that of the parameter; output by input, or the reverse if transposed.
    """
    out, width = shape[::-1] if transposed else shape
    groups = []
    for top in range(0, out, rows):
        for left in range(0, width, columns):
            cells = itertools.product(
                range(top, top + rows), range(left, left + columns)
            )
            groups.append([
                j * out + i if transposed else i * width + j for i, j in cells
            ])
    return groups


def best_set(
    fisher: np.ndarray, weights: np.ndarray, count: int
) -> tuple[tuple[int, ...], float]:
    """Try every set of ``count`` weights; only for a handful of weights."""
    sets = itertools.combinations(range(len(weights)), count)
    priced = [(best_update(fisher, weights, list(s))[1], s) for s in sets]
    price, found = min(priced)
    return found, price


def lowest(saliency: np.ndarray, living: np.ndarray, count: int) -> np.ndarray:
    """Mark the ``count`` living entries of lowest saliency, ties by index."""
    ranked = sorted(
        (i for i in range(len(saliency)) if living[i]), key=lambda i: (saliency[i], i)
    )
    chosen = np.zeros(len(saliency), dtype=bool)
    chosen[ranked[:count]] = True
    return chosen


def cubic(epoch: float, start: float, end: float, first: float, last: float) -> float:
    """Zhu and Gupta 2018: ``s_f + (s_i - s_f) (1 - x)^3``."""
    x = min(max((epoch - start) / (end - start), 0.0), 1.0)
    return last + (first - last) * (1.0 - x) ** 3


def softened_kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Hinton et al. 2015: ``T^2 KL(p_teacher || p_student)`` for one row."""
    p = np.exp(teacher / temperature)
    q = np.exp(student / temperature)
    p, q = p / p.sum(), q / q.sum()
    return temperature**2 * sum(
        a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)
    )


def softened_binary_kl(
    student: np.ndarray, teacher: np.ndarray, temperature: float
) -> float:
    """``T^2 KL(Bernoulli_teacher || Bernoulli_student)``, the mean over the labels."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        p = 1.0 / (1.0 + math.exp(-theirs / temperature))
        q = 1.0 / (1.0 + math.exp(-ours / temperature))
        total += p * math.log(p / q) + (1.0 - p) * math.log((1.0 - p) / (1.0 - q))
    return temperature**2 * total / len(student)


def square_head(student: np.ndarray, teacher: np.ndarray, counted: np.ndarray) -> float:
    """Kurtic et al. 2023: ``MSE(student, teacher) / MSE(teacher, 0)``, one by one."""
    error, norm, count = 0.0, 0.0, 0
    for sample, token in zip(*np.nonzero(counted), strict=True):
        for ours, theirs in zip(
            student[sample, token], teacher[sample, token], strict=True
        ):
            error += (ours - theirs) ** 2
            norm += theirs**2
            count += 1
    return (error / count) / (norm / count)


def best_step_from_slope(
    fisher: np.ndarray, slope: np.ndarray, weights: np.ndarray, pruned: list[int]
) -> tuple[np.ndarray, float]:
    """Minimise ``g^T d + 1/2 d^T F d`` with ``d_P = -w_P`` through its KKT system."""
    width, held = len(weights), len(pruned)
    system = np.zeros((width + held, width + held))
    system[:width, :width] = fisher
    right = np.zeros(width + held)
    right[:width] = -slope
    for row, index in enumerate(pruned):
        system[width + row, index] = system[index, width + row] = 1.0
        right[width + row] = -weights[index]
    step = np.linalg.solve(system, right)[:width]
    return weights + step, float(slope @ step + 0.5 * step @ fisher @ step)


def rank_one_recursion(grads: np.ndarray, damp: float, dtype: type) -> np.ndarray:
    """oBERT section 3.2.2, one gradient at a time, in the precision given."""
    count, width = grads.shape
    inverse = np.eye(width, dtype=dtype) / dtype(damp)
    for grad in grads.astype(dtype):
        pulled = inverse @ grad
        inverse -= np.outer(pulled, pulled) / (dtype(count) + grad @ pulled)
    return inverse


def symmetric_grid(values: np.ndarray) -> tuple[float, int]:
    """Scale and zero point of a weight: ``max |w| / 127`` and 0 (Jacob et al. 2018)."""
    return max(abs(float(v)) for v in values.flat) / 127.0, 0


def asymmetric_grid(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of an activation in 0..255, for a range that holds 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255.0
    return scale, min(max(round(-low / scale), 0), 255)


def moving_range(batches: list[np.ndarray], share: float) -> tuple[float, float]:
    """Least and largest value, each an exponential moving average over batches."""
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches[1:]:
        low += share * (float(batch.min()) - low)
        high += share * (float(batch.max()) - high)
    return low, high


def fake_quantize(
    values: np.ndarray, scale: float, zero_point: int, limits: tuple[int, int]
) -> np.ndarray:
    """Jacob et al. 2018, equation (12): round to the grid, clamp, and come back."""
    found = np.empty(values.shape)
    for index, value in np.ndenumerate(values.astype(np.float64)):
        step = round(value / scale) + zero_point  # ties to even
        found[index] = (min(max(step, limits[0]), limits[1]) - zero_point) * scale
    return found
