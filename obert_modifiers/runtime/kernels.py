"""The kernels, as LLVM IR: lanes are tokens, so nothing is summed across lanes.

A tile holds T tokens. Floats stand feature by feature, ``(features, T)``; bytes in
blocks of four features, ``(features / 4, T, 4)``, so that one broadcast block of four
weights multiplies a register of either. In what follows W is ``path.lanes`` and R is
``path.registers``, T = W R; every address is in bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from obert_modifiers.runtime import meeting
from obert_modifiers.runtime.arithmetic import GROUP, activate, add_bytes, pack_byte
from obert_modifiers.runtime.attention import attention
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


# -- products


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
                total = add_bytes(path, code, total, blocks, [w[0] for w in weights])
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
        return [activate(code, one, activation, exact) for one in found]

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
                packed = pack_byte(code, packed, value, k, inverse, zero)
            if outputs == "bytes":
                code.store(packed, out, code.times(feature, tokens), 4 * lanes * r)

    code.loop(0, features, body, step=GROUP)


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
                packed = pack_byte(code, packed, value, k, inverse, zero)
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


_WRITERS: dict[str, Callable[..., None]] = {
    "linear": _linear,
    "norm": _norm,
    "quantize": _quantize,
    "embed": _embed,
    "attention": attention,
} | meeting.WRITERS
