"""LLVM IR with fewer words: what the kernels are written in."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
Value = Any  # llvmlite's values have no useful static type


def vector(element: ir.Type, count: int) -> ir.VectorType:
    """Return the type of a vector."""
    return ir.VectorType(element, count)


def constant(kind: ir.Type, value: float) -> ir.Constant:
    """Return a number, or a vector that holds it in each lane."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
    return ir.Constant(kind, value)


class Code:
    """The body of one function that returns nothing.

    Args:
        name: Of the function.
        parameters: Their types; addresses and counts are `I64`.
        lanes: 32-bit numbers in a vector register.
    """

    def __init__(self, name: str, parameters: Sequence[ir.Type], lanes: int) -> None:
        self.module = ir.Module(name)
        kind = ir.FunctionType(ir.VoidType(), parameters)
        self.function = ir.Function(self.module, kind, name)
        self.build = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.lanes = lanes
        self.ints, self.floats = vector(I32, lanes), vector(F32, lanes)

    def text(self) -> str:
        """Return the module of the function, which ends here."""
        if not self.build.block.is_terminated:
            self.build.ret_void()
        return str(self.module)

    # -- addresses, in bytes

    def sum(self, *parts: Value | int) -> Value:
        """Add 64-bit integers."""
        total = None
        for part in parts:
            if isinstance(part, int):
                part = constant(I64, part)
            total = part if total is None else self.build.add(total, part)
        return total

    def times(self, left: Value, right: Value | int) -> Value:
        """Multiply 64-bit integers."""
        right = constant(I64, right) if isinstance(right, int) else right
        return self.build.mul(left, right)

    def load(self, kind: ir.Type, *address: Value | int) -> Value:
        """Read from the sum of the parts of an address."""
        place = self.build.inttoptr(self.sum(*address), kind.as_pointer())
        return self.build.load(place, align=1)

    def store(self, value: Value, *address: Value | int) -> None:
        """Write to the sum of the parts of an address."""
        place = self.build.inttoptr(self.sum(*address), value.type.as_pointer())
        self.build.store(value, place, align=1)

    # -- what other threads see, 64-bit integers

    def add_atomic(self, number: Value | int, address: Value) -> Value:
        """Add to what stands there, and return what that was."""
        place = self.build.inttoptr(address, I64.as_pointer())
        return self.build.atomic_rmw("add", place, self.sum(number), "acq_rel")

    def exchange(self, expected: Value, new: Value, address: Value) -> Value:
        """Replace what stands there if it is as expected, and return what it was."""
        place = self.build.inttoptr(address, I64.as_pointer())
        found = self.build.cmpxchg(place, expected, new, "acq_rel", "acquire")
        return self.build.extract_value(found, 0)

    def wait(
        self,
        address: Value,
        least: Value,
        turns: Value,
        spin: Callable[[Value], None],
    ) -> Value:
        """Wait until a number is so large, some turns at most, and return it.

        Args:
            address: Of the number.
            least: What is waited for.
            turns: The most.
            spin: Writes what is done in a turn, of which it is told the number.
        """
        build = self.build
        before = build.block
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        turn = build.phi(I64)
        turn.add_incoming(constant(I64, 0), before)
        place = build.inttoptr(address, I64.as_pointer())
        found = build.load_atomic(place, "acquire", 8)
        short = build.icmp_signed("<", found, least)
        again = build.and_(short, build.icmp_signed("<", turn, turns))
        build.cbranch(again, inside, after)
        build.position_at_end(inside)
        spin(turn)
        turn.add_incoming(self.sum(turn, 1), build.block)
        build.branch(head)
        build.position_at_end(after)
        return found

    # -- control flow

    def loop(
        self,
        start: Value | int,
        stop: Value,
        body: Callable[[Value, list[Value]], Sequence[Value] | None],
        carried: Sequence[Value] = (),
        step: int = 1,
    ) -> list[Value]:
        """Run ``carried = body(i, carried)`` for each i, and return the last of it."""
        build = self.build
        before = build.block
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        index = build.phi(I64)
        index.add_incoming(self.sum(start), before)
        values = []
        for value in carried:
            values.append(build.phi(value.type))
            values[-1].add_incoming(value, before)
        build.cbranch(build.icmp_signed("<", index, stop), inside, after)
        build.position_at_end(inside)
        changed = body(index, list(values)) or ()
        index.add_incoming(self.sum(index, step), build.block)
        for value, new in zip(values, changed, strict=True):
            value.add_incoming(new, build.block)
        build.branch(head)
        build.position_at_end(after)
        return values

    # -- vectors

    def splat(self, value: Value, count: int | None = None) -> Value:
        """Copy a scalar into all lanes."""
        kind = vector(value.type, count or self.lanes)
        unset = ir.Constant(kind, ir.Undefined)
        first = self.build.insert_element(unset, value, constant(I32, 0))
        order = constant(vector(I32, kind.count), 0)
        return self.build.shuffle_vector(first, unset, order)

    def pick(self, value: Value, start: int, step: int) -> Value:
        """Take every `step`-th lane."""
        count = value.type.count // step
        order = ir.Constant(
            vector(I32, count), [constant(I32, start + step * i) for i in range(count)]
        )
        return self.build.shuffle_vector(
            value, ir.Constant(value.type, ir.Undefined), order
        )

    def call(self, name: str, result: ir.Type, *arguments: Value) -> Value:
        """Call an intrinsic."""
        found = self.module.globals.get(name)
        if found is None:
            kind = ir.FunctionType(result, [one.type for one in arguments])
            found = ir.Function(self.module, kind, name)
        return self.build.call(found, arguments)

    def jump(self, address: Value, *arguments: Value) -> None:
        """Call the function at an address with 64-bit integers."""
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(arguments)).as_pointer()
        self.build.call(self.build.inttoptr(address, kind), arguments)

    def number(self, value: float | Value) -> Value:
        """Copy a constant or a scalar into a float register."""
        if isinstance(value, int | float):
            return constant(self.floats, float(value))
        return self.splat(value)

    def fma(self, left: Value, right: Value, plus: Value) -> Value:
        """Return ``left * right + plus``, rounded once."""
        return self.call(f"llvm.fma.v{self.lanes}f32", self.floats, left, right, plus)

    def at_most(self, value: Value, limit: float | Value) -> Value:
        """Return the lesser; the limit for NaN."""
        limit = self.number(limit) if isinstance(limit, int | float) else limit
        return self.build.select(
            self.build.fcmp_ordered("<", value, limit), value, limit
        )

    def at_least(self, value: Value, limit: float | Value) -> Value:
        """Return the greater; the limit for NaN."""
        limit = self.number(limit) if isinstance(limit, int | float) else limit
        return self.build.select(
            self.build.fcmp_ordered(">", value, limit), value, limit
        )

    def to_byte(self, value: Value) -> Value:
        """Round to the nearest of 0 to 255, ties to even; 32-bit integers."""
        held = self.at_most(self.at_least(value, 0.0), 255.0)
        # 2**23 leaves no bits behind the point.
        bits = self.build.bitcast(
            self.build.fadd(held, self.number(2.0**23)), self.ints
        )
        return self.build.and_(bits, constant(self.ints, 255))

    def polynomial(self, value: Value, coefficients: Sequence[float]) -> Value:
        """Evaluate a polynomial, highest power first, by Horner's rule."""
        total = self.number(coefficients[0])
        for coefficient in coefficients[1:]:
            total = self.fma(total, value, self.number(coefficient))
        return total
