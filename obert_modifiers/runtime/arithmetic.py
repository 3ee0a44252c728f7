"""What kernels compute in registers, with the instructions of a path."""

from collections.abc import Sequence

from obert_modifiers.runtime.code import I8, I16, Code, Value, constant, vector
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


# -- functions of a register


def exp(code: Code, value: Value) -> Value:
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
    power = exp(code, code.at_most(build.fmul(value, code.number(2.0)), 80.0))
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
    tail = exp(code, build.fneg(build.fmul(size, size)))
    found = build.fsub(code.number(1.0), build.fmul(code.polynomial(t, _ERF), tail))
    return build.bitcast(build.or_(build.bitcast(found, code.ints), sign), code.floats)


def activate(code: Code, value: Value, activation: str, exact: bool) -> Value:
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


def add_words(path: Path, code: Code, total: Value, left: Value, right: Value) -> Value:
    if path.name == "avx512vnni":
        left, right = (code.build.bitcast(one, code.ints) for one in (left, right))
        name = "llvm.x86.avx512.vpdpwssd.512"
        return code.call(name, code.ints, total, left, right)
    return code.build.add(total, _dot_words(path, code, left, right))


def add_bytes(
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


def pack_byte(
    code: Code, packed: Value | None, value: Value, k: int, inverse: Value, zero: Value
) -> Value:
    found = code.to_byte(code.fma(value, inverse, zero))
    found = code.build.shl(found, constant(code.ints, 8 * k))
    return found if packed is None else code.build.or_(packed, found)
