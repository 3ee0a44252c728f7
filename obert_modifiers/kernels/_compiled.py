"""Loops over Fisher blocks compiled for the CPU by numba.

One block is worked on at a time, in float64, so that it stays in the first-level
cache. Blocks are independent: the result does not depend on the number of threads.
"""

import numpy as np
from numba import njit, prange

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
    """Replace the lower triangle by its Cholesky factor.

    Returns:
        False if there is none.
    """
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
def _invert(block, count, pivot_row):
    """Invert a symmetric positive definite block by sweeps.

    The pivot's row is worked on in a buffer of its own: only then does the compiler
    know that rows do not overlap, and uses vector instructions.

    Returns:
        False if the block is not positive definite.
    """
    for p in range(count):
        pivot = block[p, p]
        if not pivot > 0.0:
            return False
        for j in range(count):
            pivot_row[j] = block[p, j] / pivot
        pivot_row[p] = 1.0 / pivot
        for i in range(count):
            factor = block[i, p]
            block[i, p] = 0.0
            for j in range(count):
                block[i, j] -= factor * pivot_row[j]
        for j in range(count):
            block[p, j] = pivot_row[j]
    return True


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _eliminate(inverse, weights, chosen, count, order, costs, column, price):
    """Remove the cheapest weight again and again, downdating the inverse.

    Row and column of a removed weight are overwritten by the last living ones, so
    that the living part stays dense and shrinks.
    """
    for rank in range(count):
        living = count - rank
        last = living - 1
        for i in range(living):
            price[i] = weights[i] * weights[i] / inverse[i, i]
        best = 0
        for i in range(1, living):
            if price[i] < price[best] or (
                price[i] == price[best] and chosen[i] < chosen[best]
            ):
                best = i
        order[rank] = chosen[best]
        costs[rank] = 0.5 * price[best]
        pivot = inverse[best, best]
        step = weights[best] / pivot
        for j in range(living):
            column[j] = inverse[best, j]
        if best != last:
            for j in range(living):
                inverse[best, j] = inverse[last, j]
            for i in range(last):
                inverse[i, best] = inverse[i, last]
            inverse[best, best] = inverse[last, last]
            column[best] = column[last]
            weights[best] = weights[last]
            chosen[best] = chosen[last]
        for i in range(last):
            weights[i] -= column[i] * step
            factor = column[i] / pivot
            for j in range(last):
                inverse[i, j] -= factor * column[j]


@njit(parallel=True, cache=True)
def invert_group_blocks(sums, scale, damp, group_size, found):
    """Keep the diagonal group blocks of every inverted block.

    Returns:
        The number of blocks that are not positive definite.
    """
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
def eliminate_blocks(sums, scale, damp, weights, eligible, order, costs):
    """Order the eligible weights of every block by greedy elimination.

    Returns:
        The number of blocks that are not positive definite.
    """
    num_blocks, width = weights.shape
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        chosen = np.empty(width, np.int64)
        living = np.empty(width, np.float64)
        block = np.empty((width, width), np.float64)
        count, rest = 0, width
        for i in range(width):
            if eligible[b, i]:
                chosen[count] = i
                living[count] = weights[b, i]
                count += 1
        for i in range(width - 1, -1, -1):
            if not eligible[b, i]:
                rest -= 1
                order[b, rest] = i
        _gather(sums[b], scale, damp, chosen, count, block)
        scratch = np.empty((2, width), np.float64)
        if _invert(block, count, scratch[0]):
            _eliminate(
                block, living, chosen, count, order[b], costs[b], scratch[0], scratch[1]
            )
        else:
            failed[b] = 1
    return failed.sum()


@njit(parallel=True, cache=True)
def solve_joint_blocks(sums, scale, damp, weights, pruned, updated, costs):
    """Compute the best weights of every block once its pruned set is zero.

    Returns:
        The number of blocks that are not positive definite.
    """
    num_blocks, width = weights.shape
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        kept = np.empty(width, np.int64)
        right = np.empty(width, np.float64)
        saved = np.empty(width, np.float64)
        block = np.empty((width, width), np.float64)
        count = 0
        for i in range(width):
            if not pruned[b, i]:
                kept[count] = i
                count += 1
        cost = 0.0
        for i in range(width):
            if pruned[b, i] and weights[b, i] != 0.0:
                wi = np.float64(weights[b, i])
                cost += damp * wi * wi
                for j in range(width):
                    if pruned[b, j]:
                        cost += wi * sums[b, i, j] * scale * weights[b, j]
        for i in range(count):
            value = 0.0
            for j in range(width):
                if pruned[b, j]:
                    value += sums[b, kept[i], j] * scale * weights[b, j]
            right[i] = value
            saved[i] = value
        _gather(sums[b], scale, damp, kept, count, block)
        if not _factor(block, count):
            failed[b] = 1
            continue
        _solve(block, count, right)
        for i in range(width):
            updated[b, i] = 0.0
        for i in range(count):
            cost -= saved[i] * right[i]
            updated[b, kept[i]] = weights[b, kept[i]] + right[i]
        costs[b] = 0.5 * max(cost, 0.0)
    return failed.sum()
