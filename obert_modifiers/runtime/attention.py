"""The kernel of attention: from a tile of queries to the keys of their sentences."""

from obert_modifiers.runtime.arithmetic import GROUP, add_words, exp, pack_byte
from obert_modifiers.runtime.code import (
    F32,
    I16,
    I32,
    I64,
    Code,
    Value,
    constant,
    vector,
)
from obert_modifiers.runtime.paths import Path

_MASKED = -1e30


def attention(
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
                            found[n] = add_words(path, code, found[n], left, one)
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
                value = exp(code, value)
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
                            found[n] = add_words(path, code, found[n], chances[r], one)
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
                            packed[r] = pack_byte(
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
