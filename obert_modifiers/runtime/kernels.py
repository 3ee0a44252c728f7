"""The kernels, as LLVM IR: lanes are tokens, so nothing is summed across lanes.

A tile holds T tokens. Floats stand feature by feature, ``(features, T)``; bytes in
blocks of four features, ``(features / 4, T, 4)``, so that one broadcast block of four
weights multiplies a register of either. In what follows W is ``path.lanes`` and R is
``path.registers``, T = W R; every address is in bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from obert_modifiers.runtime import meeting
from obert_modifiers.runtime.code import (
    F32,
    I8,
    I16,
    I32,
    I64,
    Code,
    Value,
    constant,
    vector,
)
from obert_modifiers.runtime.paths import Path

GROUP = 4  # weights of a block: products that one instruction adds
_LOG2_E = 1.4426950408889634
# 2**f for f in -0.5 to 0.5, relative error 7.5e-8: a minimax fit.
_EXP2 = (
    0.00132768019,
    0.00967555866,
    0.0555071197,
    0.240221202,
    0.693146944,
    1.00000012,
)
# (Phi(x) - 0.5) / x in powers of x**2, for |x| <= 4: a minimax fit of x Phi(x), whose
# error is 2e-4, a hundredth of an 8-bit step.
_GELU = (
    *(2.27811014e-08, -1.59858359e-06, 4.79551200e-05, -0.000814011379),
    *(0.00877236947, -0.0645730793, 0.397883385),
)
_GELU_END = 4.0
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: error 1.5e-7.
_ERF_P = 0.3275911
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0)
_MASKED = -1e30
_AT_ONCE = 16  # features of an embedding

ACTIVATIONS = ("none", "gelu", "gelu_new", "relu", "tanh")


@dataclass(frozen=True)
class Kernel:
    """A compiled function's name and parameters."""

    kind: str
    options: tuple[str, ...] = ()

    @cached_property
    def name(self) -> str:
        """Its symbol."""
        return "_".join((self.kind, *self.options))

    def write(self, path: Path) -> Code:
        """Write it for a path.

        It finds its parameters in words of 8 bytes at the address that it is given.
        """
        code = Code(self.name, [I64], path.lanes)
        (words,) = code.function.args
        types = [I64 if letter == "i" else F32 for letter in self.parameters]
        args = [code.load(one, words, 8 * i) for i, one in enumerate(types)]
        _WRITERS[self.kind](path, code, args, *self.options)
        return code

    @property
    def parameters(self) -> str:
        """Its parameters: ``i`` an integer or address, ``f`` a float32."""
        return _PARAMETERS[self.kind]


def linear(
    inputs: str, outputs: str, activation: str = "none", chunks: int = 1
) -> Kernel:
    """Name the kernel of a linear layer whose columns come in chunks."""
    chunked = "chunks" if chunks > 1 else "once"
    return Kernel("linear", (inputs, outputs, activation, chunked))


_PARAMETERS = {
    # x, values, columns, starts, scale, bias, chunks, rows, sums of chunks, first row,
    # last, out, inverse step, zero
    "linear": "iiiiiiiiiiii" + "ff",
    # tile, gain, bias, bytes, features, eps, 1 / features, inverse step, zero
    "norm": "iiiii" + "ffff",
    # tile, bytes, features, inverse step, zero
    "quantize": "iii" + "ff",
    # query tile, keys, values, segments of keys and queries, first key, last key,
    # features, features of a head, first head, last head, scratch, out,
    # scale, 1 / step of probabilities, factor, zero
    "attention": "i" * 13 + "ffff",
    # ids, types, positions, their tables, features, out, scales
    "embed": "i" * 8 + "fff",
} | meeting.PARAMETERS
assert max(map(len, _PARAMETERS.values())) < meeting.RECORD


# -- functions of a register


def _exp(code: Code, value: Value) -> Value:
    """Compute exp of what is at most 88; e**-69 for all below that.

    A product with 2**-100 is no denormal, which would be slow, and vanishes beside 1.
    """
    # 2**n 2**f by adding n to the exponent's bits.
    build = code.build
    power = code.at_least(build.fmul(value, code.number(_LOG2_E)), -100.0)
    shifted = build.fadd(power, code.number(1.5 * 2**23))
    rest = build.fsub(power, build.fsub(shifted, code.number(1.5 * 2**23)))
    bits = build.shl(build.bitcast(shifted, code.ints), constant(code.ints, 23))
    found = build.bitcast(code.polynomial(rest, _EXP2), code.ints)
    return build.bitcast(build.add(found, bits), code.floats)


def _tanh(code: Code, value: Value) -> Value:
    build = code.build
    power = _exp(code, code.at_most(build.fmul(value, code.number(2.0)), 80.0))
    part = build.fdiv(code.number(2.0), build.fadd(power, code.number(1.0)))
    return build.fsub(code.number(1.0), part)


def _erf(code: Code, value: Value) -> Value:
    build = code.build
    bits = build.bitcast(value, code.ints)
    sign = build.and_(bits, constant(code.ints, -(2**31)))
    size = build.bitcast(build.xor(bits, sign), code.floats)
    t = build.fdiv(
        code.number(1.0), code.fma(size, code.number(_ERF_P), code.number(1.0))
    )
    tail = _exp(code, build.fneg(build.fmul(size, size)))
    found = build.fsub(code.number(1.0), build.fmul(code.polynomial(t, _ERF), tail))
    return build.bitcast(build.or_(build.bitcast(found, code.ints), sign), code.floats)


def _activate(code: Code, value: Value, activation: str, exact: bool) -> Value:
    build = code.build
    if activation == "relu":
        return code.at_least(value, 0.0)
    if activation == "tanh":
        return _tanh(code, value)
    half = code.number(0.5)
    if activation == "gelu" and exact:
        found = _erf(code, build.fmul(value, code.number(0.5**0.5)))
        return build.fmul(build.fmul(value, half), build.fadd(found, code.number(1.0)))
    if activation == "gelu":
        held = code.at_most(code.at_least(value, -_GELU_END), _GELU_END)
        share = build.fmul(held, code.polynomial(build.fmul(held, held), _GELU))
        return code.fma(value, share, build.fmul(value, half))
    if activation == "gelu_new":
        cube = build.fmul(build.fmul(value, value), value)
        inner = code.fma(cube, code.number(0.044715), value)
        share = _tanh(code, build.fmul(inner, code.number(0.7978845608028654)))
        return build.fmul(build.fmul(value, half), build.fadd(share, code.number(1.0)))
    return value


# -- products


def _dot_bytes(
    path: Path, code: Code, inputs: Sequence[Value], weights: Sequence[Value]
):
    """Return ``sum(u8 * s8)`` of blocks, to be added to a register of int32 sums.

    `inputs` are registers of ``(W, 4)`` bytes, `weights` four bytes in all lanes.
    """
    build, lanes = code.build, path.lanes
    bytes_, words = vector(I8, 4 * lanes), vector(I16, 2 * lanes)
    if path.pairs:
        wide = lanes == 16
        multiply = (
            "llvm.x86.avx512.pmaddubs.w.512" if wide else "llvm.x86.avx2.pmadd.ub.sw"
        )
        total = None
        for x, w in zip(inputs, weights, strict=True):
            found = code.call(multiply, words, x, build.bitcast(w, bytes_))
            total = found if total is None else build.add(total, found)
        return _dot_words(path, code, total, constant(words, 1))
    total = None
    for x, w in zip(inputs, weights, strict=True):
        for k in range(GROUP):
            left = build.zext(code.pick(x, k, GROUP), code.ints)
            shifted = build.shl(w, constant(code.ints, 24 - 8 * k))
            right = build.ashr(shifted, constant(code.ints, 24))
            found = build.mul(left, right)
            total = found if total is None else build.add(total, found)
    return total


def _dot_words(path: Path, code: Code, left: Value, right: Value) -> Value:
    """Return the sums of two neighbouring products of 16 bits."""
    wide = path.lanes == 16
    name = "llvm.x86.avx512.pmaddw.d.512" if wide else "llvm.x86.avx2.pmadd.wd"
    return code.call(name, code.ints, left, right)


def _add_words(
    path: Path, code: Code, total: Value, left: Value, right: Value
) -> Value:
    if path.name == "avx512vnni":
        left, right = (code.build.bitcast(one, code.ints) for one in (left, right))
        name = "llvm.x86.avx512.vpdpwssd.512"
        return code.call(name, code.ints, total, left, right)
    return code.build.add(total, _dot_words(path, code, left, right))


def _add_bytes(
    path: Path,
    code: Code,
    total: Value,
    inputs: Sequence[Value],
    weights: Sequence[Value],
) -> Value:
    build, lanes = code.build, path.lanes
    if "vnni" in path.name:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        for x, w in zip(inputs, weights, strict=True):
            total = code.call(name, code.ints, total, build.bitcast(x, code.ints), w)
        return total
    if path.name == "sdot":
        # Signed by signed: x - 128 here, and 128 times the weights' sum in the bias.
        flip = constant(vector(I8, 4 * lanes), -128)
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        for x, w in zip(inputs, weights, strict=True):
            signed = build.xor(x, flip)
            total = code.call(
                name, code.ints, total, signed, build.bitcast(w, flip.type)
            )
        return total
    return build.add(total, _dot_bytes(path, code, inputs, weights))


def blocks_at_once(path: Path, inputs: str) -> int:
    """Say of how many blocks the rows of a packed weight are multiples."""
    return 2 if path.pairs and inputs == "int8" else 1


def _row(
    path: Path,
    code: Code,
    inputs: str,
    x: Value,
    values: Value,
    columns: Value,
    at: Value,
    totals: list[Value],
) -> list[Value]:
    """Add a row of packed blocks times a tile: R registers of int32 or float32.

    The first and the last of its blocks stand at ``at``.
    """
    build, lanes, tokens = code.build, path.lanes, path.tokens
    at_once = blocks_at_once(path, inputs)
    group = 1 if inputs == "float1" else GROUP
    width = 4 if inputs == "int8" else 4 * group  # bytes of a block's weights

    def body(i: Value, totals: list[Value]) -> list[Value]:
        weights, places = [], []
        for k in range(at_once):
            column = code.load(I16, columns, code.times(i, 2), 2 * k)
            # A block of bytes and a feature of floats are as large: 4 T bytes.
            size = 4 * tokens * (1 if inputs == "int8" else group)
            places.append(code.sum(x, code.times(build.zext(column, I64), size)))
            at = code.sum(values, code.times(i, width), width * k)
            if inputs == "int8":
                weights.append([code.splat(code.load(I32, at))])
            else:
                weights.append([
                    code.splat(code.load(F32, at, 4 * g)) for g in range(group)
                ])
        found = []
        for r in range(path.registers):
            total = totals[r]
            if inputs == "int8":
                blocks = [
                    code.load(vector(I8, 4 * lanes), place, 4 * lanes * r)
                    for place in places
                ]
                total = _add_bytes(path, code, total, blocks, [w[0] for w in weights])
            else:
                for g in range(group):
                    feature = code.load(
                        code.floats, places[0], 4 * tokens * g + 4 * lanes * r
                    )
                    total = code.fma(feature, weights[0][g], total)
            found.append(total)
        return found

    start, stop = code.load(I64, at), code.load(I64, at, 8)
    return code.loop(start, stop, body, totals, step=at_once)


def _linear(
    path: Path,
    code: Code,
    args: list[Value],
    inputs: str,
    outputs: str,
    activation: str,
    chunked: str,
) -> None:
    """Multiply rows ``first`` to ``last`` of a packed weight with a tile.

    ``y = scale[row] * sum + bias[row]``, through the activation, then by `outputs`:

    - ``bytes``: rounded to the next layer's grid, in blocks of four rows;
    - ``floats``: as it is; ``add``: added to what stands there;
    - ``grid``: rounded to a grid, as a float integer less the zero point;
    - ``words``: the same as 16-bit integers, two rows side by side;
    - ``halves``: the same as 16-bit integers, row by row.

    Of a weight with many columns a tile does not fit the first-level cache. Its blocks
    are sorted into chunks of columns, and all rows go through one chunk before the
    next; their sums wait in memory.
    """
    x, values, columns, starts, scale, bias = args[:6]
    chunks, height, sums, first, last, out, inverse, zero = args[6:]
    build, lanes, tokens = code.build, path.lanes, path.tokens
    together = {"bytes": GROUP, "words": 2}.get(outputs, 1)
    inverse, zero = code.splat(inverse), code.splat(zero)

    kind = code.ints if inputs == "int8" else code.floats
    zeros = [constant(kind, 0)] * path.registers
    final = build.sub(chunks, constant(I64, 1))

    def start(n: Value, chunk: Value) -> Value:
        return code.sum(starts, code.times(build.add(build.mul(chunk, height), n), 8))

    def kept(n: Value) -> list[tuple[Value, ...]]:
        at = code.times(n, 4 * tokens)
        return [(sums, at, constant(I64, 4 * lanes * r)) for r in range(path.registers)]

    def multiply(n: Value, chunk: Value, totals: list[Value]) -> list[Value]:
        at = start(n, chunk)
        return _row(path, code, inputs, x, values, columns, at, totals)

    def all_rows(chunk: Value, _: list[Value]) -> None:
        fresh = build.icmp_signed("==", chunk, constant(I64, 0))

        def one(n: Value, _: list[Value]) -> None:
            places = kept(n)
            totals = [
                build.select(fresh, zeros[0], code.load(kind, *place))
                for place in places
            ]
            found = multiply(n, chunk, totals)
            for place, value in zip(places, found, strict=True):
                code.store(value, *place)

        code.loop(first, last, one)

    def row(n: Value) -> list[Value]:
        totals = zeros
        if chunked == "chunks":
            totals = [code.load(kind, *place) for place in kept(n)]
        totals = multiply(n, final, totals)
        factor = code.splat(code.load(F32, scale, code.times(n, 4)))
        plus = code.splat(code.load(F32, bias, code.times(n, 4)))
        if inputs == "int8":
            totals = [build.sitofp(total, code.floats) for total in totals]
        found = [code.fma(total, factor, plus) for total in totals]
        exact = outputs != "bytes"
        return [_activate(code, one, activation, exact) for one in found]

    def rows(n: Value, _: list[Value]) -> None:
        packed = None
        for k in range(together):
            found = row(code.sum(n, k))
            if outputs not in ("floats", "add"):
                found = [code.to_byte(code.fma(one, inverse, zero)) for one in found]
            if outputs in ("words", "halves"):
                offset = build.fptosi(zero, code.ints)
                found = [build.sub(one, offset) for one in found]
                if k == 0 and outputs == "words":
                    low = constant(code.ints, 65535)
                    found = [build.and_(one, low) for one in found]
            shift = constant(code.ints, (8 if outputs == "bytes" else 16) * k)
            if together > 1:
                found = [build.shl(one, shift) for one in found]
                if packed is not None:
                    found = [build.or_(*two) for two in zip(packed, found, strict=True)]
                packed = found
        size = 2 if outputs == "halves" else 4
        base = code.sum(out, code.times(n, size * tokens // together))
        for r, one in enumerate(found):
            if outputs == "halves":
                one = build.trunc(one, vector(I16, lanes))
            if outputs == "grid":
                one = build.fsub(build.sitofp(one, code.floats), zero)
            if outputs == "add":
                one = build.fadd(one, code.load(code.floats, base, 4 * lanes * r))
            code.store(one, base, size * lanes * r)

    if chunked == "chunks":
        code.loop(0, final, all_rows)
    code.loop(first, last, rows, step=together)


# -- the rest of a layer


def _norm(path: Path, code: Code, args: list[Value], outputs: str) -> None:
    """Normalise a tile in place over its features; ``bytes``: and round it to them."""
    tile, gain, bias, out, features, eps, share, inverse, zero = args
    build, lanes, tokens = code.build, path.lanes, path.tokens
    share, eps = code.splat(share), code.splat(eps)
    inverse, zero = code.splat(inverse), code.splat(zero)
    registers = range(path.registers)

    def place(feature: Value, r: int) -> tuple[Value, ...]:
        return tile, code.times(feature, 4 * tokens), constant(I64, 4 * lanes * r)

    def total(part: Callable[[Value, int], Value]) -> list[Value]:
        def body(feature: Value, sums: list[Value]) -> list[Value]:
            return [
                build.fadd(sums[r], part(code.load(code.floats, *place(feature, r)), r))
                for r in registers
            ]

        start = [code.number(0.0)] * path.registers
        return [build.fmul(one, share) for one in code.loop(0, features, body, start)]

    mean = total(lambda value, r: value)

    def squared(value: Value, r: int) -> Value:
        away = build.fsub(value, mean[r])
        return build.fmul(away, away)

    variance = total(squared)
    root = f"llvm.sqrt.v{lanes}f32"
    spread = [
        build.fdiv(code.number(1.0), code.call(root, code.floats, build.fadd(one, eps)))
        for one in variance
    ]

    def body(feature: Value, _: list[Value]) -> None:
        for r in registers:
            packed = None
            for k in range(GROUP):
                this = code.sum(feature, k)
                value = code.load(code.floats, *place(this, r))
                value = build.fmul(build.fsub(value, mean[r]), spread[r])
                factor = code.splat(code.load(F32, gain, code.times(this, 4)))
                plus = code.splat(code.load(F32, bias, code.times(this, 4)))
                value = code.fma(value, factor, plus)
                code.store(value, *place(this, r))
                packed = _pack_byte(code, packed, value, k, inverse, zero)
            if outputs == "bytes":
                code.store(packed, out, code.times(feature, tokens), 4 * lanes * r)

    code.loop(0, features, body, step=GROUP)


def _pack_byte(
    code: Code, packed: Value | None, value: Value, k: int, inverse: Value, zero: Value
) -> Value:
    found = code.to_byte(code.fma(value, inverse, zero))
    found = code.build.shl(found, constant(code.ints, 8 * k))
    return found if packed is None else code.build.or_(packed, found)


def _quantize(path: Path, code: Code, args: list[Value]) -> None:
    """Round a tile of floats to bytes."""
    tile, out, features, inverse, zero = args
    lanes, tokens = path.lanes, path.tokens
    inverse, zero = code.splat(inverse), code.splat(zero)

    def body(feature: Value, _: list[Value]) -> None:
        for r in range(path.registers):
            packed = None
            for k in range(GROUP):
                at = code.times(code.sum(feature, k), 4 * tokens)
                value = code.load(code.floats, tile, at, 4 * lanes * r)
                packed = _pack_byte(code, packed, value, k, inverse, zero)
            code.store(packed, out, code.times(feature, tokens), 4 * lanes * r)

    code.loop(0, features, body, step=GROUP)


def _embed(path: Path, code: Code, args: list[Value], *tables: str) -> None:
    """Add rows of three tables, each ``int8`` or ``float``, for a tile of tokens."""
    indices, places, (features, out), scales = args[:3], args[3:6], args[6:8], args[8:]
    build, tokens = code.build, path.tokens

    sizes = [1 if table == "int8" else 4 for table in tables]

    def some(feature: Value, t: Value, count: int) -> None:
        total = None
        for index, place, size, scale in zip(
            indices, places, sizes, scales, strict=True
        ):
            row = build.sext(code.load(I32, index, code.times(t, 4)), I64)
            at = build.add(build.mul(row, features), feature)
            kind = vector(I8 if size == 1 else F32, count)
            value = code.load(kind, place, code.times(at, size))
            if size == 1:
                value = build.sitofp(value, vector(F32, count))
                value = build.fmul(value, code.splat(scale, count))
            total = value if total is None else build.fadd(total, value)
        for k in range(count):
            one = build.extract_element(total, constant(I32, k))
            at = code.times(code.sum(feature, k), 4 * tokens)
            code.store(one, out, at, code.times(t, 4))

    def every(start: Value | int, stop: Value, count: int) -> None:
        # Tokens inside: what is written then stays in the first-level cache.
        def body(feature: Value, _: list[Value]) -> None:
            end = constant(I64, tokens)
            code.loop(0, end, lambda t, _: some(feature, t, count))

        code.loop(start, stop, body, step=count)

    wide = build.and_(features, constant(I64, -_AT_ONCE))
    every(0, wide, _AT_ONCE)
    every(wide, features, GROUP)


def _attention(
    path: Path, code: Code, args: list[Value], numbers: str, outputs: str
) -> None:
    """Attend from a tile of queries to the keys of the same segments.

    `numbers`: ``floats``; ``grid``, floats that are integers, with the probabilities
    rounded to a grid of 8 bits; ``words``, the same in 16 bits. The arithmetic of the
    last two is the same to the last bit: all sums are whole numbers below 2**24.
    `outputs`: ``bytes`` or ``floats``.
    """
    query, keys, values, segments, own, first, last = args[:7]
    features, size, head0, head1, scratch, out = args[7:13]
    scale, step, factor, zero = args[13:]
    build, lanes, tokens = code.build, path.lanes, path.tokens
    registers = range(path.registers)
    at_once = path.at_once  # keys, and features, in registers
    words = numbers == "words"
    number = 2 if words else 4  # bytes of a query, key or value
    paired = vector(I16, 2 * lanes)
    mine = [code.load(code.ints, own, 4 * lanes * r) for r in registers]
    factor, zero = code.splat(factor), code.splat(zero)

    def of_tile(tile: Value, key: Value, feature: Value) -> Value:
        # Where the numbers of a feature (words: of two) of a key are.
        shift = constant(I64, tokens.bit_length() - 1)
        inside = build.and_(key, constant(I64, tokens - 1))
        row = build.add(build.mul(build.lshr(key, shift), features), feature)
        at = code.times(row, number * tokens)
        return code.sum(tile, at, code.times(inside, 4 if words else number))

    def head(h: Value, _: list[Value]) -> None:
        feature0 = build.mul(h, size)
        mine_query = code.sum(query, code.times(feature0, number * tokens))

        def score(key: Value, most: list[Value]) -> list[Value]:
            base = of_tile(keys, key, feature0)

            def product(f: Value, sums: list[Value]) -> list[Value]:
                at = code.times(f, number * tokens)
                found = list(sums)
                for k in range(at_once):
                    if words:
                        one = code.splat(code.load(I32, base, at, 4 * k))
                        one = build.bitcast(one, paired)
                    else:
                        one = code.splat(code.load(F32, base, at, 4 * k))
                    for r in registers:
                        n = k * path.registers + r
                        place = mine_query, at, constant(I64, 4 * lanes * r)
                        if words:
                            left = code.load(paired, *place)
                            found[n] = _add_words(path, code, found[n], left, one)
                        else:
                            found[n] = code.fma(
                                code.load(code.floats, *place), one, found[n]
                            )
                return found

            start = constant(code.ints if words else code.floats, 0)
            count = at_once * path.registers
            sums = code.loop(0, size, product, [start] * count, step=2 if words else 1)
            found = list(most)
            for k in range(at_once):
                at = code.sum(key, k)
                segment = code.splat(code.load(I32, segments, code.times(at, 4)))
                row = code.times(build.sub(at, first), 4 * tokens)
                for r in registers:
                    total = sums[k * path.registers + r]
                    if words:
                        total = build.sitofp(total, code.floats)
                    total = build.fmul(total, code.splat(scale))
                    same = build.icmp_signed("==", segment, mine[r])
                    total = build.select(same, total, code.number(_MASKED))
                    code.store(total, scratch, row, 4 * lanes * r)
                    found[r] = code.at_least(total, found[r])
            return found

        lowest = [code.number(_MASKED)] * path.registers
        most = code.loop(first, last, score, lowest, step=at_once)
        count = build.sub(last, first)

        def exponential(n: Value, sums: list[Value]) -> list[Value]:
            found = []
            for r in registers:
                place = scratch, code.times(n, 4 * tokens), constant(I64, 4 * lanes * r)
                value = build.fsub(code.load(code.floats, *place), most[r])
                value = _exp(code, value)
                code.store(value, *place)
                found.append(build.fadd(sums[r], value))
            return found

        sums = code.loop(0, count, exponential, [code.number(0.0)] * path.registers)
        share = [build.fdiv(code.number(1.0), one) for one in sums]
        if numbers != "floats":
            share = [build.fmul(one, code.splat(step)) for one in share]

            def rounded(n: Value, _: list[Value]) -> None:
                for r in registers:
                    found = []
                    for k in range(2):
                        at = code.times(code.sum(n, k), 4 * tokens)
                        value = code.load(code.floats, scratch, at, 4 * lanes * r)
                        found.append(code.to_byte(build.fmul(value, share[r])))
                    place = scratch, code.times(n, 4 * tokens)
                    if words:  # two keys side by side, where the first stood
                        high = build.shl(found[1], constant(code.ints, 16))
                        code.store(build.or_(found[0], high), *place, 4 * lanes * r)
                        continue
                    for k in range(2):
                        value = build.sitofp(found[k], code.floats)
                        code.store(value, *place, 4 * (tokens * k + lanes * r))

            code.loop(0, count, rounded, step=2)

        def mix(feature: Value) -> list[list[Value]]:
            """Return `at_once` features of the output."""

            def body(key: Value, totals: list[Value]) -> list[Value]:
                # Features stand side by side only with their own keys.
                row = code.times(build.sub(key, first), 4 * tokens)
                kind = paired if words else code.floats
                chances = [
                    code.load(kind, scratch, row, 4 * lanes * r) for r in registers
                ]
                found = list(totals)
                for k in range(at_once):
                    if words:
                        base = word_value(key, code.sum(feature, k))
                        one = build.bitcast(code.splat(code.load(I32, base)), paired)
                    else:
                        base = of_tile(values, key, code.sum(feature, k))
                        one = code.splat(code.load(F32, base))
                    for r in registers:
                        n = k * path.registers + r
                        if words:
                            found[n] = _add_words(path, code, found[n], chances[r], one)
                        else:
                            found[n] = code.fma(chances[r], one, found[n])
                return found

            start = constant(code.ints if words else code.floats, 0)
            zeros = [start] * (at_once * path.registers)
            found = code.loop(first, last, body, zeros, step=2 if words else 1)
            if words:
                found = [build.sitofp(one, code.floats) for one in found]
            wide = path.registers
            return [found[k * wide : (k + 1) * wide] for k in range(at_once)]

        def word_value(key: Value, feature: Value) -> Value:
            # Values are rows of 16-bit numbers, two keys side by side.
            shift = constant(I64, tokens.bit_length() - 1)
            inside = build.and_(key, constant(I64, tokens - 1))
            row = build.add(build.mul(build.lshr(key, shift), features), feature)
            return code.sum(values, code.times(row, 2 * tokens), code.times(inside, 2))

        def outputs_of(f: Value, _: list[Value]) -> None:
            feature = build.add(feature0, f)
            packed = [None] * path.registers
            for part in range(0, GROUP, at_once):
                found = mix(code.sum(feature, part))
                for k in range(at_once):
                    for r in registers:
                        value = found[k][r]
                        if numbers == "floats":
                            value = build.fmul(value, share[r])
                        if outputs == "bytes":
                            packed[r] = _pack_byte(
                                code, packed[r], value, part + k, factor, zero
                            )
                        else:
                            at = code.times(code.sum(feature, part + k), 4 * tokens)
                            value = build.fmul(value, factor)
                            code.store(value, out, at, 4 * lanes * r)
            if outputs == "bytes":
                for r in registers:
                    at = code.times(feature, tokens)
                    code.store(packed[r], out, at, 4 * lanes * r)

        code.loop(0, size, outputs_of, step=GROUP)

    code.loop(head0, head1, head)


_WRITERS: dict[str, Callable[..., None]] = {
    "linear": _linear,
    "norm": _norm,
    "quantize": _quantize,
    "embed": _embed,
    "attention": _attention,
} | meeting.WRITERS
