"""Loops over Fisher blocks, and over masked values, compiled for the CPU by numba.

One block is worked on at a time, in float64, so that it stays in the first-level
cache. Blocks are independent: the result does not depend on the number of threads.
Loops over blocks return how many are not positive definite.

What takes the time is written in vectors of :data:`LANES`, which every CPU has in
registers of its own width: a compiler that is given plain loops over rows of 48 spends
as long on finding out that they do not overlap. Rows are padded to whole vectors.

All of them are in one file because numba, when it looks whether its cached code is
still good, looks at the file of the function alone and not at those of its callees.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, prange
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8  # float64 values of a vector
PANEL = 4  # pivots that are swept at a time
# Rows of a triangle, and vectors of each, that are summed in registers at a time: 24 of
# the 32 vectors of 512 bits, 12 of the 16 of 256.
ROWS, VECTORS = (4, 6) if get_host_cpu_features().get("avx512f") else (2, 3)
_CACHED = 3072  # float64 values, 24 KiB, of gradients that are worked on at a time
_CHUNK = 8  # vectors of a row that are summed in registers at a time
_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_INDICES = ir.VectorType(ir.IntType(64), LANES)
_INDEX = ir.IntType(64)
_intrinsic: Any = intrinsic  # its type would ask callers for the typing context


def use_threads(count: int) -> None:
    """Run the loops on so many threads, or on as many as numba was started with."""
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(count, most))


# Fused multiply-add and no care for the sign of zero; NaN and order are kept.
_FAST = {"contract", "nsz"}


def _data(context: Any, builder: Any, signature: Any, args: Any, place: int) -> Any:
    """Return an array argument of an intrinsic: its memory, and its shape."""
    array = context.make_array(signature.args[place])(context, builder, args[place])
    return array.data, cgutils.unpack_tuple(builder, array.shape)


def _load(builder: Any, pointer: Any) -> Any:
    value = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
    value.align = 8
    return value


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, _VECTOR.as_pointer())).align = 8


def _spread(builder: Any, value: Any, kind: Any = _VECTOR) -> Any:
    """Return a vector of equal values."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INDEX(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
    return builder.shuffle_vector(one, one, zeros)


def _multiply_add(builder: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v8f64")


def _loop(
    builder: Any, end: Any, step: int, body: Callable[..., list[Any]], *state: Any
) -> list[Any]:
    """Emit a loop from 0 to before ``end``.

    ``body`` gets the place and the state, and returns the next state.

    Returns:
        The state behind the loop.
    """
    entry, loop, inside, done = (
        builder.block,
        *(builder.append_basic_block() for _ in range(3)),
    )
    builder.branch(loop)
    builder.position_at_end(loop)
    begin = (_INDEX(0), *state)
    values = [builder.phi(value.type) for value in begin]
    builder.cbranch(builder.icmp_signed("<", values[0], end), inside, done)
    builder.position_at_end(inside)
    after = [builder.add(values[0], _INDEX(step)), *body(*values)]
    last = builder.block
    for value, first, later in zip(values, begin, after, strict=True):
        value.add_incoming(first, entry)
        value.add_incoming(later, last)
    builder.branch(loop)
    builder.position_at_end(done)
    return values[1:]


def _in_chunks(
    builder: Any, width: Any, most: int, chunk: Callable[[int, Any, Any], None]
) -> None:
    """Emit a row's vectors, at most so many at a time.

    ``chunk`` is called with a number of vectors, the element that they begin at, and
    the block to go to after them.
    """
    full = builder.mul(builder.sdiv(width, _INDEX(most * LANES)), _INDEX(most * LANES))
    entry, head, big, following, rest, end = (
        builder.block,
        *(builder.append_basic_block() for _ in range(5)),
    )
    builder.branch(head)
    builder.position_at_end(head)
    at = builder.phi(_INDEX)
    at.add_incoming(_INDEX(0), entry)
    builder.cbranch(builder.icmp_signed("<", at, full), big, rest)
    builder.position_at_end(big)
    chunk(most, at, following)
    builder.position_at_end(following)
    at.add_incoming(builder.add(at, _INDEX(most * LANES)), following)
    builder.branch(head)
    builder.position_at_end(rest)
    left = builder.sdiv(builder.sub(width, full), _INDEX(LANES))
    cases = builder.switch(left, end)
    for count in range(1, most):
        case = builder.append_basic_block()
        cases.add_case(_INDEX(count), case)
        builder.position_at_end(case)
        chunk(count, full, end)
    builder.position_at_end(end)


@_intrinsic
def _subtract_panel(
    typing: Any, rows: Any, place: Any, panel: Any, factors: Any
) -> Any:
    """``rows[place : place + PANEL] -= factors @ panel``, all of whole vectors."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        into, (_, width) = _data(context, builder, signature, args, 0)
        source, _ = _data(context, builder, signature, args, 2)
        scalars, _ = _data(context, builder, signature, args, 3)
        fma, each = _multiply_add(builder), range(PANEL)

        def row(base: Any, number: Any) -> Any:
            return builder.gep(base, [builder.mul(number, width)])

        targets = [row(into, builder.add(args[1], _INDEX(r))) for r in each]
        sources = [row(source, _INDEX(q)) for q in each]
        minus = [
            builder.fneg(builder.load(builder.gep(scalars, [_INDEX(i)])))
            for i in range(PANEL * PANEL)
        ]
        spread = [_spread(builder, value) for value in minus]

        def step(at: Any) -> list[Any]:
            found = [_load(builder, builder.gep(one, [at])) for one in sources]
            for r in each:
                pointer = builder.gep(targets[r], [at])
                value = _load(builder, pointer)
                for q in each:
                    value = builder.call(fma, [spread[PANEL * r + q], found[q], value])
                _store(builder, value, pointer)
            return []

        _loop(builder, width, LANES, step)
        return context.get_dummy_value()

    return types.void(rows, place, panel, factors), emit


@_intrinsic
def _downdated_row(typing: Any, rows: Any, rank: Any, matrix: Any, column: Any) -> Any:
    """``rows[rank] = matrix[column] - sum_{s<rank} rows[s, column] rows[s]``."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base, (_, width) = _data(context, builder, signature, args, 0)
        source, _ = _data(context, builder, signature, args, 2)
        rank, column = args[1], args[3]
        fma = _multiply_add(builder)
        target = builder.gep(base, [builder.mul(rank, width)])
        source = builder.gep(source, [builder.mul(column, width)])

        def chunk(count: int, start: Any, after: Any) -> None:
            # So many vectors, from an element on, kept in registers over all rows.
            places = [builder.add(start, _INDEX(v * LANES)) for v in range(count)]

            def take(s: Any, *sums: Any) -> list[Any]:
                row = builder.gep(base, [builder.mul(s, width)])
                factor = builder.fneg(builder.load(builder.gep(row, [column])))
                factor = _spread(builder, factor)
                found = [_load(builder, builder.gep(row, [at])) for at in places]
                pairs = zip(sums, found, strict=True)
                return [builder.call(fma, [factor, value, one]) for one, value in pairs]

            values = [_load(builder, builder.gep(source, [at])) for at in places]
            sums = _loop(builder, rank, 1, take, *values)
            for one, at in zip(sums, places, strict=True):
                _store(builder, one, builder.gep(target, [at]))
            builder.branch(after)

        _in_chunks(builder, width, _CHUNK, chunk)
        return context.get_dummy_value()

    return types.void(rows, rank, matrix, column), emit


@_intrinsic
def _lowest(typing: Any, weights: Any, diagonal: Any, barred: Any, doubled: Any) -> Any:
    """Return the place of the lowest ``w^2 / a + barred``, ties by place.

    ``doubled[0]`` gets it; infinity where there is none.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given = [_data(context, builder, signature, args, i) for i in range(4)]
        pointers, (width,) = [pointer for pointer, _ in given], given[0][1]

        def step(at: Any, least: Any, where: Any) -> list[Any]:
            w, a, more = (
                _load(builder, builder.gep(one, [at])) for one in pointers[:3]
            )
            value = builder.fadd(builder.fdiv(builder.fmul(w, w), a), more)
            less = builder.fcmp_ordered("<", value, least)
            here = _spread(builder, at, _INDICES)
            return [
                builder.select(less, value, least),
                builder.select(less, here, where),
            ]

        least, where = _loop(
            builder,
            width,
            LANES,
            step,
            ir.Constant(_VECTOR, [float("inf")] * LANES),
            ir.Constant(_INDICES, None),
        )
        where = builder.add(where, ir.Constant(_INDICES, list(range(LANES))))
        best, place = (builder.extract_element(x, _INDEX(0)) for x in (least, where))
        for lane in range(1, LANES):
            value = builder.extract_element(least, _INDEX(lane))
            index = builder.extract_element(where, _INDEX(lane))
            equal = builder.fcmp_ordered("==", value, best)
            earlier = builder.and_(equal, builder.icmp_signed("<", index, place))
            better = builder.or_(builder.fcmp_ordered("<", value, best), earlier)
            best = builder.select(better, value, best)
            place = builder.select(better, index, place)
        builder.store(best, pointers[3])
        return place

    return types.int64(weights, diagonal, barred, doubled), emit


@njit(cache=True)
def _gather(sums, scale, damp, chosen, count, block):
    """Copy the chosen rows and columns of one dampened block into ``block``."""
    for i in range(count):
        row = chosen[i]
        for j in range(count):
            block[i, j] = sums[row, chosen[j]] * scale
        block[i, i] += damp


@njit(cache=True)
def _gather_packed(packed, scale, damp, chosen, count, block):
    """Copy the chosen rows and columns, ascending, of a packed dampened block."""
    for i in range(count):
        start = chosen[i] * (chosen[i] + 1) // 2
        for j in range(i + 1):
            value = packed[start + chosen[j]] * scale
            block[i, j] = value
            block[j, i] = value
        block[i, i] += damp


@_intrinsic
def _add_rows(
    typing: Any, packed: Any, row: Any, width: Any, values: Any, fresh: Any, tails: Any
) -> Any:
    """Add ``sum_k values[k, row + r] values[k]`` to a triangle's rows; see ``tails``.

    ``tails[r]`` gets the vector with a row's diagonal, which reaches behind the row.

    Returns:
        Nothing.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, _ = _data(context, builder, signature, args, 0)
        source, (count, padded) = _data(context, builder, signature, args, 3)
        tails, _ = _data(context, builder, signature, args, 5)
        row, width, fma = args[1], args[2], _multiply_add(builder)
        fresh = builder.trunc(args[4], ir.IntType(1))
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        diagonal = builder.mul(builder.sdiv(row, _INDEX(LANES)), _INDEX(LANES))

        def keep(sums: Sequence[Any], places: Sequence[Any], r: int) -> None:
            number = builder.add(row, _INDEX(r))
            start = builder.mul(number, builder.add(number, _INDEX(1)))
            line = builder.gep(target, [builder.ashr(start, _INDEX(1))])
            with builder.if_then(builder.icmp_signed("<", number, width)):
                for total, at in zip(sums, places, strict=True):
                    before = builder.icmp_signed("<", at, diagonal)
                    with builder.if_else(before) as (whole, tail):
                        with whole:
                            place = builder.gep(line, [at])
                            more = builder.fadd(total, _load(builder, place))
                            _store(builder, builder.select(fresh, total, more), place)
                        with tail:
                            place = builder.gep(tails, [_INDEX(r * LANES)])
                            _store(builder, total, place)

        def chunk(vectors: int, start: Any, after: Any) -> None:
            # So many vectors of all rows, kept in registers over all k.
            places = [builder.add(start, _INDEX(v * LANES)) for v in range(vectors)]

            def add(k: Any, *sums: Any) -> list[Any]:
                base = builder.gep(source, [builder.mul(k, padded)])
                given = [_load(builder, builder.gep(base, [at])) for at in places]
                found = []
                for r in range(ROWS):
                    place = builder.gep(base, [builder.add(row, _INDEX(r))])
                    factor = _spread(builder, builder.load(place))
                    own = sums[r * vectors : (r + 1) * vectors]
                    pairs = zip(own, given, strict=True)
                    found += [builder.call(fma, [factor, v, one]) for one, v in pairs]
                return found

            sums = _loop(builder, count, 1, add, *[zero] * (ROWS * vectors))
            for r in range(ROWS):
                keep(sums[r * vectors : (r + 1) * vectors], places, r)
            builder.branch(after)

        end = builder.add(diagonal, _INDEX(LANES))
        _in_chunks(builder, end, VECTORS, chunk)
        return context.get_dummy_value()

    return types.void(packed, row, width, values, fresh, tails), emit


@_intrinsic
def _fetch(typing: Any, grads: Any, k: Any, b: Any) -> Any:
    """Ask for the row ``grads[k, b]``, whose neighbours are far from it in memory."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, (_, blocks, width) = _data(context, builder, signature, args, 0)
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        row = builder.mul(builder.add(builder.mul(args[1], blocks), args[2]), width)
        row = builder.gep(data, [row])

        def step(at: Any) -> list[Any]:
            place = builder.bitcast(builder.gep(row, [at]), byte)
            builder.call(fetch, [place, flag(0), flag(3), flag(1)])
            return []

        _loop(builder, width, LANES, step)
        return context.get_dummy_value()

    return types.void(grads, k, b), emit


@njit(parallel=True, cache=True)
def add_outer_products(packed, grads, fresh):
    """Add gradients' outer products to packed blocks, which may be fresh."""
    count, num_blocks, width = grads.shape
    padded = (width + LANES - 1) // LANES * LANES
    step = max(LANES, _CACHED // padded)
    for b in prange(num_blocks):
        tails = np.empty((ROWS, LANES), np.float64)
        values = np.zeros((min(step, count), padded), np.float64)
        for first in range(0, count, step):
            size, new = min(step, count - first), fresh and first == 0
            for k in range(size):
                for j in range(width):
                    values[k, j] = grads[first + k, b, j]
            following, whose = first + step, np.int64(b)
            if following >= count:
                following, whose = 0, whose + 1
            waiting = min(step, count - following) if whose < num_blocks else 0
            for i in range(0, width, ROWS):
                for k in range(i * waiting // width, (i + ROWS) * waiting // width):
                    _fetch(grads, following + k, whose)
                _add_rows(packed[b], i, width, values[:size], new, tails)
                for r in range(min(ROWS, width - i)):
                    start = (i + r) * (i + r + 1) // 2
                    at = i // LANES * LANES
                    for j in range(at, i + r + 1):
                        if new:
                            packed[b, start + j] = tails[r, j - at]
                        else:
                            packed[b, start + j] += tails[r, j - at]
    return 0


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
def _padded(packed, scale, damp, chosen, count):
    """Return the chosen part of a dampened block, the identity behind it."""
    rows = (count + PANEL - 1) // PANEL * PANEL
    block = np.zeros((rows, (rows + LANES - 1) // LANES * LANES), np.float64)
    _gather_packed(packed, scale, damp, chosen, count, block)
    for i in range(count, rows):
        block[i, i] = 1.0
    return block


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _pivot_rows(block, p, panel):
    """Return whether a panel's pivots are positive, after the steps in its own rows.

    ``panel`` gets each pivot's row, over the pivot, as it was at its own step.
    """
    width = block.shape[1]
    for q in range(PANEL):
        pivot = block[p + q, p + q]
        if not pivot > 0.0:
            return False
        block[p + q, p + q] = 1.0
        for j in range(width):
            panel[q, j] = block[p + q, j] / pivot
        for r in range(PANEL):
            if r == q:
                for j in range(width):
                    block[p + r, j] = panel[q, j]
            else:
                factor = block[p + r, p + q]
                block[p + r, p + q] = 0.0
                for j in range(width):
                    block[p + r, j] -= factor * panel[q, j]
    return True


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _invert(block):
    """Return whether a padded block is positive definite, and invert it in place.

    Gauss-Jordan steps with :data:`PANEL` pivots at a time. A step takes its pivot's row
    times ``f`` out of every other row, with f what stands there in the pivot's column;
    f of a later step of the panel is brought up to date first, as one step after the
    other would, which an inverse of the pivots' square would not be as accurate as.
    """
    rows, width = block.shape
    panel = np.empty((PANEL, width), np.float64)
    among = np.empty((PANEL, PANEL), np.float64)
    factors = np.empty((PANEL, PANEL), np.float64)
    for p in range(0, rows, PANEL):
        if not _pivot_rows(block, p, panel):
            return False
        for r in range(PANEL):
            for q in range(r + 1, PANEL):
                among[r, q] = panel[r, p + q]
                panel[r, p + q] = 0.0  # is in the factor of step q
        for i in range(0, rows, PANEL):
            if i != p:
                for r in range(PANEL):
                    for q in range(PANEL):
                        factor = block[i + r, p + q]
                        for s in range(q):
                            factor -= factors[r, s] * among[s, q]
                        factors[r, q] = factor
                        block[i + r, p + q] = 0.0
                _subtract_panel(block, i, panel, factors)
    return True


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _remove(inverse, rows, rank, column, weights):
    """Return whether the pivot of a weight is positive, and take the weight out.

    Its row goes into ``rows``, over the root of the pivot; weights are updated. No
    other row of the inverse is downdated: each is when it is needed, from the rows of
    all that went before, so that nothing is written twice.
    """
    _downdated_row(rows, rank, inverse, column)
    row = rows[rank]
    if not row[column] > 0.0:
        return False
    root = 1.0 / np.sqrt(row[column])
    step = weights[column] * root
    for j in range(len(row)):
        row[j] *= root
        weights[j] -= row[j] * step
    return True


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _eliminate(inverse, weights, count, names, left, of, order, saliency):
    """Return how many weights went, each the lowest whose group may lose one; or -1.

    ``left`` holds how many weights each group of ``of`` may still lose. What a group
    keeps for good stays in the Fisher.
    """
    width = inverse.shape[1]
    rows = np.empty((count, width), np.float64)
    diagonal = np.ones(width, np.float64)
    barred = np.full(width, np.inf)
    doubled = np.empty(1, np.float64)
    removable = 0
    for i in range(count):
        diagonal[i] = inverse[i, i]
        if left[names[i] // of] > 0:
            barred[i] = 0.0
            removable += 1
    rank = 0
    while removable > 0:
        best = _lowest(weights, diagonal, barred, doubled)
        if doubled[0] == np.inf:  # what is left is NaN or infinite: the caller's error
            saliency[rank] = np.nan
            return rank
        order[rank] = names[best]
        saliency[rank] = 0.5 * doubled[0]
        if not _remove(inverse, rows, rank, best, weights):
            return -1
        row = rows[rank]
        for j in range(width):
            diagonal[j] -= row[j] * row[j]
        diagonal[best], barred[best] = 1.0, np.inf
        rank += 1
        removable -= 1
        group = names[best] // of
        left[group] -= 1
        if left[group] == 0:
            for i in range(count):
                if names[i] // of == group and barred[i] == 0.0:
                    barred[i], diagonal[i] = np.inf, 1.0
                    removable -= 1
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
def _doubled_of_group(diagonal, weights, start, size, block, right):
    """Return twice the saliency of a group, or NaN."""
    for i in range(size):
        for j in range(i + 1):
            block[i, j] = diagonal[i, start + j]
        right[i] = weights[start + i]
    if not _factor(block, size):
        return np.nan
    return _half_solve(block, size, right)


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def _eliminate_groups(inverse, weights, groups, size, names, order, saliency):
    """Return how many groups went, the lowest each time; -1 if one is indefinite."""
    width, count = inverse.shape[1], groups * size
    rows = np.empty((count, width), np.float64)
    block = np.empty((size, size), np.float64)
    right = np.empty(size, np.float64)
    diagonal = np.empty((size, width), np.float64)  # rows of the groups' own squares
    living = np.ones(groups, np.bool_)
    for i in range(count):
        for j in range(size):
            diagonal[i % size, i - i % size + j] = inverse[i, i - i % size + j]
    for rank in range(groups):
        best, least = -1, np.inf
        for g in range(groups):
            if living[g]:
                found = _doubled_of_group(
                    diagonal, weights, g * size, size, block, right
                )
                if np.isnan(found):
                    return -1
                if best < 0 or found < least:
                    best, least = g, found
        order[rank] = names[best]
        saliency[rank] = 0.5 * least
        living[best] = False
        for q in range(size):
            nth = rank * size + q
            if not _remove(inverse, rows, nth, best * size + q, weights):
                return -1
            row = rows[nth]
            for g in range(groups):
                if living[g]:
                    at = g * size
                    for i in range(size):
                        for j in range(i + 1):
                            diagonal[i, at + j] -= row[at + i] * row[at + j]
    return groups


@njit(parallel=True, cache=True)
def invert_group_blocks(packed, scale, damp, group_size, found):
    """Keep the diagonal group blocks of every inverted block."""
    num_blocks, width = len(found), found.shape[1] * group_size
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        everything = np.arange(width)
        block = _padded(packed[b], scale, damp, everything, width)
        if not _invert(block):
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
    packed, scale, damp, weights, eligible, size, kept, of, order, saliency
):
    """Return how many blocks failed; write the order of elimination of the others.

    Groups of ``size`` with an eligible weight go, all but ``kept`` of every ``of``
    consecutive ones; what stays follows by index.
    """
    num_blocks, width = weights.shape
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        chosen = np.empty(width, np.int64)
        names = np.empty(width // size, np.int64)
        left = np.full(width // size // of, -kept, np.int64)
        groups = 0
        for g in range(width // size):
            if eligible[b, g * size : (g + 1) * size].any():
                names[groups] = g
                left[g // of] += 1
                for q in range(size):
                    chosen[groups * size + q] = g * size + q
                groups += 1
        count = groups * size
        block = _padded(packed[b], scale, damp, chosen, count)
        living = np.zeros(block.shape[1], np.float64)
        for i in range(count):
            living[i] = weights[b, chosen[i]]
        gone = -1
        if _invert(block):
            found = order[b], saliency[b]
            if size == 1:
                gone = _eliminate(block, living, count, names, left, of, *found)
            else:
                gone = _eliminate_groups(block, living, groups, size, names, *found)
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
def solve_joint_blocks(packed, scale, damp, weights, pruned, updated, increases):
    """Compute the best weights of every block once its pruned set is zero."""
    num_blocks, width = weights.shape
    failed = np.zeros(num_blocks, np.int64)
    for b in prange(num_blocks):
        kept = np.empty(width, np.int64)
        right = np.empty(width, np.float64)
        block = np.empty((width, width), np.float64)
        removed = np.where(pruned[b], weights[b], 0.0)
        pull = damp * removed
        for i in range(width):
            start, total = i * (i + 1) // 2, pull[i]
            for j in range(i + 1):
                total += packed[b, start + j] * scale * removed[j]
            pull[i] = total
            if pruned[b, i]:
                for j in range(i):
                    pull[j] += packed[b, start + j] * scale * removed[i]
        count, increase = 0, 0.0
        for i in range(width):
            if pruned[b, i]:
                updated[b, i] = 0.0
                increase += removed[i] * pull[i]
            else:
                kept[count], right[count] = i, pull[i]
                count += 1
        _gather_packed(packed[b], scale, damp, kept, count, block)
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
