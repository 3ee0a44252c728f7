"""LLVM IR computed by NumPy: what a kernel does on a CPU that is not at hand."""

import ctypes
import operator
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
from llvmlite import ir

from obert_modifiers.runtime.code import Code

_INTS = {1: np.bool_, 8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def dtype(kind: ir.Type, unsigned: bool = False) -> np.dtype:
    if isinstance(kind, ir.VectorType):
        return dtype(kind.element, unsigned)
    if isinstance(kind, ir.FloatType):
        return np.dtype(np.float32)
    return np.dtype((_UNSIGNED if unsigned else _INTS)[kind.width])


def as_unsigned(value: np.ndarray) -> np.ndarray:
    return value.view(f"u{value.dtype.itemsize}")


def four_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left.astype(np.int64) * right.astype(np.int64)).reshape(-1, 4).sum(1)


def vpdpbusd(total: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return total + four_products(x.view(np.uint8), w.view(np.int8)).astype(np.int32)


def sdot(total: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return total + four_products(x, w).astype(np.int32)


def pmaddubs(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    found = x.view(np.uint8).astype(np.int64) * w.astype(np.int64)
    return found.reshape(-1, 2).sum(1).clip(-(2**15), 2**15 - 1).astype(np.int16)


def pmaddwd(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    found = left.astype(np.int64) * right.astype(np.int64)
    return found.reshape(-1, 2).sum(1).astype(np.int32)


def vpdpwssd(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return total + pmaddwd(left.view(np.int16), right.view(np.int16))


def fma(left: np.ndarray, right: np.ndarray, plus: np.ndarray) -> np.ndarray:
    # A product of two float32 is exact in float64.
    return (left.astype(np.float64) * right + plus).astype(np.float32)


def nothing(*_: np.ndarray) -> np.ndarray:
    return np.zeros(1, np.int64)


INTRINSICS: dict[str, Callable[..., np.ndarray]] = {
    "llvm.x86.sse2.pause": nothing,
    "llvm.aarch64.hint": nothing,
    "llvm.fma": fma,
    "llvm.sqrt": np.sqrt,
    "llvm.x86.avx512.vpdpbusd": vpdpbusd,
    "llvm.x86.avx512.vpdpwssd": vpdpwssd,
    "llvm.x86.avx2.pmadd.ub.sw": pmaddubs,
    "llvm.x86.avx512.pmaddubs": pmaddubs,
    "llvm.x86.avx2.pmadd.wd": pmaddwd,
    "llvm.x86.avx512.pmaddw": pmaddwd,
    "llvm.aarch64.neon.sdot": sdot,
}
COMPARE = {
    "<": operator.lt,
    ">": operator.gt,
    "eq": operator.eq,
    "ne": operator.ne,
    "slt": operator.lt,
    "sgt": operator.gt,
    "sge": operator.ge,
    "olt": operator.lt,
    "ogt": operator.gt,
}
ARITHMETIC = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "shl": operator.lshift,
    "ashr": operator.rshift,
    "fadd": operator.add,
    "fsub": operator.sub,
    "fmul": operator.mul,
    "fdiv": operator.truediv,
}


ATOMIC = Lock()


class Interpreter:
    """Runs a function on the addresses of NumPy arrays.

    Args:
        code: Of the function.
        functions: Stand for those at addresses that it calls.
    """

    def __init__(
        self, code: Code, functions: dict[int, Callable[..., None]] | None = None
    ) -> None:
        code.text()  # which ends it
        self.function = code.function
        self.functions = functions or {}
        self.values: dict[Any, np.ndarray] = {}

    def __call__(self, *arguments: float) -> None:
        for given, argument in zip(arguments, self.function.args, strict=True):
            self.values[argument] = np.array([given]).astype(dtype(argument.type))
        before, block = None, self.function.blocks[0]
        with np.errstate(all="ignore"):
            while block is not None:
                before, block = block, self.run(block, before)

    def run(self, block: Any, before: Any) -> Any:
        phis = [one for one in block.instructions if one.opname == "phi"]
        found = {
            phi: self.value(next(v for v, b in phi.incomings if b is before))
            for phi in phis
        }
        self.values |= found
        for one in block.instructions[len(phis) :]:
            if one.opname == "ret void":
                return None
            if one.opname == "br":
                targets = [t for t in one.operands if isinstance(t, ir.Block)]
                if len(targets) == 1:
                    return targets[0]
                return targets[0 if self.value(one.operands[0])[0] else 1]
            self.values[one] = self.compute(one)
        raise AssertionError("a block without an end")

    def value(self, operand: Any) -> np.ndarray:
        if not isinstance(operand, ir.Constant):
            return self.values[operand]
        kind = operand.type
        count = kind.count if isinstance(kind, ir.VectorType) else 1
        numbers = operand.constant if count > 1 else [operand.constant]
        plain = [getattr(one, "constant", one) for one in numbers]
        known = [0 if one is ir.Undefined else one for one in plain]
        return np.array(known).astype(dtype(kind))

    def compute(self, one: Any) -> np.ndarray:
        name, kind = one.opname, one.type
        if isinstance(one, ir.CallInstr):
            if one.callee in self.values:
                address = int(self.values[one.callee][0])
                self.functions[address](*(int(self.value(a)[0]) for a in one.args))
                return nothing()
            names = [key for key in INTRINSICS if one.callee.name.startswith(key)]
            chosen = max(names, key=len)
            return INTRINSICS[chosen](*(self.value(a) for a in one.args))
        given = [self.value(operand) for operand in one.operands]
        if name in ("atomicrmw", "cmpxchg"):
            assert name == "cmpxchg" or one.operation == "add"
            return self.replace(int(given[0][0]), *given[1:])
        if name == "extractvalue":
            assert list(one.indices) == [0]
            return given[0]
        if name in ARITHMETIC:
            return ARITHMETIC[name](*given).astype(dtype(kind))
        if name == "lshr":
            return (as_unsigned(given[0]) >> as_unsigned(given[1])).view(dtype(kind))
        if name == "fneg":
            return -given[0]
        if name in ("icmp", "fcmp"):
            return COMPARE[one.op](*given)
        if name == "select":
            return np.where(*given).astype(dtype(kind))
        if name == "bitcast":
            return given[0].view(dtype(kind))
        if name == "zext":
            return as_unsigned(given[0]).astype(dtype(kind))
        if name in ("sext", "trunc", "sitofp", "fptosi", "inttoptr"):
            return given[0].astype(np.int64 if name == "inttoptr" else dtype(kind))
        if name in ("load", "load atomic"):
            count = kind.count if isinstance(kind, ir.VectorType) else 1
            size = count * dtype(kind).itemsize
            read = ctypes.string_at(int(given[0][0]), size)
            return np.frombuffer(read, dtype(kind)).copy()
        if name == "store":
            data = np.ascontiguousarray(given[0]).tobytes()
            ctypes.memmove(int(given[1][0]), data, len(data))
            return given[0]
        if name == "insertelement":
            found = given[0].copy()
            found[int(given[2][0])] = given[1][0]
            return found
        if name == "extractelement":
            return given[0][int(given[1][0])].reshape(1)
        if name == "shufflevector":
            return np.concatenate(given[:2])[given[2]]
        raise AssertionError(f"unknown instruction {name}")

    def replace(self, address: int, number: np.ndarray, *new: np.ndarray) -> np.ndarray:
        """Add a number to what stands there, or put a new one in its place."""
        with ATOMIC:
            place = ctypes.c_int64.from_address(address)
            found = np.array([place.value])
            if not new:
                place.value += int(number[0])
            elif found[0] == number[0]:
                place.value = int(new[0][0])
        return found
