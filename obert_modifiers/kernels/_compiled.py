"""Loops over Fisher blocks, and over masked values, compiled for the CPU by numba.

One block is worked on at a time, in float64, so that it stays in the first-level
cache. Blocks are independent: the result does not depend on the number of threads.
Loops over blocks return how many are not positive definite.

All of them are in one file because numba, when it looks whether its cached code is
still good, looks at the file of the function alone and not at those of its callees.
"""

import numba
import numpy as np
from numba import njit, prange


def use_threads(count: int) -> None:
    """Run the loops on so many threads, or on as many as numba was started with."""
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(count, most))


# Fused multiply-add and no care for the sign of zero; NaN and order are kept.
_FAST = {"contract", "nsz"}


@njit(cache=True)
def _gather(sums, scale, damp, chosen, count, block):
    """Copy the chosen rows and columns of one dampened block into ``block``."""
    for i in range(count):
        row = chosen[i]
        for j in range(count):
            block[i, j] = sums[row, chosen[j]] * scale
        block[i, i] += damp


@njit(cache=True)
def _factor(block, count):
    """Replace the lower triangle by its Cholesky factor; False if there is none."""
    for j in range(count):
        for k in range(j):
            ljk = block[j, k]
            for i in range(j, count):
                block[i, j] -= block[i, k] * ljk
        pivot = block[j, j]
        if not pivot > 0.0:
            return False
        root = np.sqrt(pivot)
        for i in range(j, count):
            block[i, j] /= root
    return True


@njit(cache=True)
def _solve(block, count, right):
    """Solve with the Cholesky factor in ``block``, in place of ``right``."""
    for i in range(count):
        value = right[i]
        for k in range(i):
            value -= block[i, k] * right[k]
        right[i] = value / block[i, i]
    for i in range(count - 1, -1, -1):
        value = right[i]
        for k in range(i + 1, count):
            value -= block[k, i] * right[k]
        right[i] = value / block[i, i]


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _invert(block, count, column):
    """Return whether a block is positive definite, and invert it by symmetric sweeps.

    A sweep of the pivot p turns ``a_ij`` into ``a_ij - a_ip a_pj / a_pp``, row and
    column p into themselves over ``a_pp``, and ``a_pp`` into ``-1 / a_pp``; after all
    of them the block is minus its inverse. Only the lower triangle is worked on. The
    pivot's column is in a buffer of its own: only then does the compiler know that it
    does not overlap with the rows, and uses vector instructions.
    """
    for p in range(count):
        pivot = block[p, p]
        if not pivot > 0.0:
            return False
        for j in range(p):
            column[j] = block[p, j]
        column[p] = 0.0
        for i in range(p + 1, count):
            column[i] = block[i, p]
        for i in range(count):
            factor = column[i] / pivot
            for j in range(i + 1):
                block[i, j] -= factor * column[j]
        for j in range(p):
            block[p, j] = column[j] / pivot
        for i in range(p + 1, count):
            block[i, p] = column[i] / pivot
        block[p, p] = -1.0 / pivot
    for i in range(count):
        for j in range(i + 1):
            block[i, j] = -block[i, j]
            block[j, i] = block[i, j]
    return True


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _lowest(inverse, weights, chosen, living, doubled):
    """Return the place of the living weight of lowest saliency, ties by its index.

    ``doubled`` gets twice the saliency of each.
    """
    for i in range(living):
        doubled[i] = weights[i] * weights[i] / inverse[i, i]
    best = 0
    for i in range(1, living):
        if doubled[i] < doubled[best] or (
            doubled[i] == doubled[best] and chosen[i] < chosen[best]
        ):
            best = i
    return best


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _drop(inverse, weights, chosen, place, last):
    """Overwrite one row and column of the living part by the last ones."""
    if place != last:
        for j in range(last + 1):
            inverse[place, j] = inverse[last, j]
        for i in range(last):
            inverse[i, place] = inverse[i, last]
        weights[place] = weights[last]
        chosen[place] = chosen[last]


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _remove(inverse, weights, chosen, place, living, column):
    """Remove a weight from the living part: downdate, and let the last take its place.

    The whole square is worked on: the rows of a part that shrinks are too short for
    half of them to take less time.
    """
    last = living - 1
    for j in range(living):
        column[j] = inverse[place, j]
    pivot = column[place]
    step = weights[place] / pivot
    _drop(inverse, weights, chosen, place, last)
    column[place] = column[last]
    for i in range(last):
        weights[i] -= column[i] * step
        factor = column[i] / pivot
        for j in range(last):
            inverse[i, j] -= factor * column[j]


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _eliminate(inverse, weights, chosen, count, left, of, order, saliency, scratch):
    """Return how many weights went, each the lowest whose group may lose one.

    ``left`` holds how many weights each group of ``of`` may still lose. What a group
    keeps for good is dropped without a downdate: it stays in the Fisher, and nobody
    asks for its row again.
    """
    column, doubled = scratch
    living, rank = count, 0
    for i in range(living - 1, -1, -1):
        if left[chosen[i] // of] <= 0:
            living -= 1
            _drop(inverse, weights, chosen, i, living)
    while living > 0:
        best = _lowest(inverse, weights, chosen, living, doubled)
        group = chosen[best] // of
        order[rank] = chosen[best]
        saliency[rank] = 0.5 * doubled[best]
        rank += 1
        _remove(inverse, weights, chosen, best, living, column)
        living -= 1
        left[group] -= 1
        if left[group] == 0:
            for i in range(living - 1, -1, -1):
                if chosen[i] // of == group:
                    living -= 1
                    _drop(inverse, weights, chosen, i, living)
    return rank


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _half_solve(block, count, right):
    """Solve with the lower factor in place; return ``right^T block^-1 right``."""
    total = 0.0
    for i in range(count):
        value = right[i]
        for k in range(i):
            value -= block[i, k] * right[k]
        right[i] = value / block[i, i]
        total += right[i] * right[i]
    return total


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _factor_group(inverse, weights, start, size, block, right):
    """Factor a group and half-solve; return twice its saliency, or NaN."""
    for i in range(size):
        for j in range(i + 1):
            block[i, j] = inverse[start + i, start + j]
        right[i] = weights[start + i]
    if not _factor(block, size):
        return np.nan
    return _half_solve(block, size, right)


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _downdate_group(inverse, weights, end, size, rows, right):
    """Take a removed group's share out of the first ``end`` rows and weights."""
    for i in range(end):
        for q in range(size):
            factor = rows[q, i]
            weights[i] -= factor * right[q]
            for j in range(end):
                inverse[i, j] -= factor * rows[q, j]


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _eliminate_groups(inverse, weights, chosen, groups, size, order, saliency):
    """Return how many groups went, the lowest each time; -1 if one is indefinite.

    As for single weights, the last living group takes the place of the removed one.
    """
    rows = np.empty((size, groups * size), np.float64)
    block = np.empty((size, size), np.float64)
    right = np.empty(size, np.float64)
    doubled = np.empty(groups, np.float64)
    for rank in range(groups):
        last = groups - rank - 1
        best = 0
        for g in range(last + 1):
            doubled[g] = _factor_group(inverse, weights, g * size, size, block, right)
            if np.isnan(doubled[g]):
                return -1
            if doubled[g] < doubled[best] or (
                doubled[g] == doubled[best] and chosen[g] < chosen[best]
            ):
                best = g
        order[rank] = chosen[best]
        saliency[rank] = 0.5 * doubled[best]
        start, end = best * size, last * size
        _factor_group(inverse, weights, start, size, block, right)
        for q in range(size):
            for j in range(end + size):
                rows[q, j] = inverse[start + q, j]
            for k in range(q):
                for j in range(end + size):
                    rows[q, j] -= block[q, k] * rows[k, j]
            for j in range(end + size):
                rows[q, j] /= block[q, q]
        if best != last:
            chosen[best] = chosen[last]
            for q in range(size):
                weights[start + q] = weights[end + q]
                for j in range(end + size):
                    inverse[start + q, j] = inverse[end + q, j]
            for i in range(end):
                for q in range(size):
                    inverse[i, start + q] = inverse[i, end + q]
            for k in range(size):
                for q in range(size):
                    rows[k, start + q] = rows[k, end + q]
        _downdate_group(inverse, weights, end, size, rows, right)
    return groups


@njit(parallel=True, cache=True)
def invert_group_blocks(sums, scale, damp, group_size, found):
    """Keep the diagonal group blocks of every inverted block."""
    num_blocks, width = sums.shape[:2]
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        everything = np.arange(width)
        block = np.empty((width, width), np.float64)
        _gather(sums[b], scale, damp, everything, width, block)
        if not _invert(block, width, np.empty(width, np.float64)):
            failed[b] = 1
            continue
        for i in range(width):
            group, row = i // group_size, i % group_size
            for column in range(group_size):
                value = block[i, group * group_size + column]
                found[b, group, row, column] = value
    return failed.sum()


@njit(parallel=True, cache=True)
def eliminate_blocks(
    sums, scale, damp, weights, eligible, size, kept, of, order, saliency
):
    """Return how many blocks failed; write the order of elimination of the others.

    Groups of ``size`` with an eligible weight go, all but ``kept`` of every ``of``
    consecutive ones; what stays follows by index.
    """
    num_blocks, width = weights.shape
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        chosen = np.empty(width, np.int64)
        living = np.empty(width, np.float64)
        block = np.empty((width, width), np.float64)
        scratch = np.empty((2, width), np.float64)
        names = np.empty(width // size, np.int64)
        left = np.full(width // size // of, -kept, np.int64)
        groups = 0
        for g in range(width // size):
            if eligible[b, g * size : (g + 1) * size].any():
                names[groups] = g
                left[g // of] += 1
                for q in range(size):
                    chosen[groups * size + q] = g * size + q
                    living[groups * size + q] = weights[b, g * size + q]
                groups += 1
        _gather(sums[b], scale, damp, chosen, groups * size, block)
        gone = -1
        if _invert(block, groups * size, scratch[0]):
            found = order[b], saliency[b]
            if size == 1:
                gone = _eliminate(
                    block, living, names, groups, left, of, *found, scratch
                )
            else:
                gone = _eliminate_groups(block, living, names, groups, size, *found)
        if gone < 0:
            failed[b] = 1
            continue
        rest = np.ones(width // size, np.bool_)
        for rank in range(gone):
            rest[order[b, rank]] = False
        for g in range(width // size):
            if rest[g]:
                order[b, gone] = g
                gone += 1
    return failed.sum()


@njit(parallel=True, cache=True)
def solve_group_blocks(groups, weights, members, solved):
    """Solve the system of every group restricted to its members."""
    num_blocks, count, size = weights.shape
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        chosen = np.empty(size, np.int64)
        right = np.empty(size, np.float64)
        block = np.empty((size, size), np.float64)
        for g in range(count):
            held = 0
            for i in range(size):
                if members[b, g, i]:
                    chosen[held] = i
                    right[held] = weights[b, g, i]
                    held += 1
            _gather(groups[b, g], 1.0, 0.0, chosen, held, block)
            if not _factor(block, held):
                failed[b] = 1
                break
            _solve(block, held, right)
            for i in range(held):
                solved[b, g, chosen[i]] = right[i]
    return failed.sum()


@njit(cache=True)
def _holds(pruned, subset):
    """Return whether a subset holds every pruned weight of its group."""
    missing = 0
    for i in range(pruned.shape[0]):
        missing += pruned[i]
    for k in range(subset.shape[0]):
        missing -= pruned[subset[k]]
    return missing == 0


@njit(parallel=True, cache=True)
def find_lowest_subsets(groups, weights, pruned, subsets, saliency, found):
    """Find the lowest subset of every group among those that hold what is pruned."""
    num_blocks, count = weights.shape[:2]
    size = subsets.shape[1]
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        right = np.empty(size, np.float64)
        block = np.empty((size, size), np.float64)
        for g in range(count):
            for s in range(subsets.shape[0]):
                if not _holds(pruned[b, g], subsets[s]):
                    continue
                _gather(groups[b, g], 1.0, 0.0, subsets[s], size, block)
                if not _factor(block, size):
                    failed[b] = 1
                    break
                for k in range(size):
                    right[k] = weights[b, g, subsets[s, k]]
                doubled = 0.5 * _half_solve(block, size, right)
                if doubled < saliency[b, g]:
                    saliency[b, g] = doubled
                    found[b, g] = s
    return failed.sum()


@njit(parallel=True, cache=True)
def solve_joint_blocks(sums, scale, damp, weights, pruned, updated, increases):
    """Compute the best weights of every block once its pruned set is zero."""
    num_blocks, width = weights.shape
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        kept = np.empty(width, np.int64)
        right = np.empty(width, np.float64)
        block = np.empty((width, width), np.float64)
        removed = np.where(pruned[b], weights[b], 0.0)
        pull = damp * removed
        for j in range(width):
            if pruned[b, j]:
                for i in range(width):
                    pull[i] += sums[b, j, i] * scale * removed[j]
        count, increase = 0, 0.0
        for i in range(width):
            if pruned[b, i]:
                updated[b, i] = 0.0
                increase += removed[i] * pull[i]
            else:
                kept[count], right[count] = i, pull[i]
                count += 1
        _gather(sums[b], scale, damp, kept, count, block)
        if not _factor(block, count):
            failed[b] = 1
            continue
        _solve(block, count, right)
        for i in range(count):
            increase -= pull[kept[i]] * right[i]
            updated[b, kept[i]] = weights[b, kept[i]] + right[i]
        increases[b] = 0.5 * max(increase, 0.0)
    return failed.sum()


@njit(parallel=True, cache=True)
def zero_unkept(values, kept):
    """Write zero where ``kept`` is False: one pass, which the compiler vectorises."""
    zero = values.dtype.type(0)
    for i in prange(values.size):
        values[i] = values[i] if kept[i] else zero
    return 0
