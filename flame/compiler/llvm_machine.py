"""The abstract machine that writes LLVM IR: every basic operation on scalars and on vectors of lanes.

A `Value` is the text of an SSA value or constant, its dtype, and how many lanes it has: 1, or as many as the other vectors at
hand. An operation with a vector among its operands gives a vector; the scalars are splat. Arithmetic carries no fast-math
flags. Narrow floats are only loaded, stored and cast; where the CPU cannot convert float16, integer arithmetic does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flame import dtypes
from flame.compiler.llvm_text import Function, Int, element, literal, repeat, suffix, wide
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import bfloat16, bool_, float16, float32, float64, int32, int64, uint32
from flame.dtypes import dtype as DType
from flame.ops import float8
from flame.ops.machine import BASIC, LIBM, Machine
from flame.primitive import REGISTRY


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA value or constant."""

    text: str
    dtype: DType
    lanes: int = 1

    @property
    def type(self) -> str:
        return wide(element(self.dtype), self.lanes)


_FLOAT = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT = {"add": "add", "sub": "sub", "mul": "mul", "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"}
_BOOL = {
    "add": "or", "maximum": "or", "logical_or": "or", "bitwise_or": "or", "mul": "and", "minimum": "and",
    "logical_and": "and", "bitwise_and": "and", "bitwise_xor": "xor",
}  # fmt: skip
_FLOAT_PREDICATE = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_ROUND = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "roundeven"}


#: 0, 1, 2 and their negatives: instructions that have one are often simplified to others without
_WRITTEN = frozenset(literal(s * x, float64) for s in (1.0, -1.0) for x in (0.0, 1.0, 2.0))


def is_number(x: Any) -> bool:
    """Is an operand a constant, and not NaN?"""
    if not isinstance(x, Value):
        return x == x
    if x.lanes > 1 or x.text.startswith("%"):
        return False
    return not (x.dtype.kind == "f" and x.text[2:5] in ("7FF", "FFF"))


class LlvmMachine(Machine):
    """Writes to `function`. Primitives that are `called` are functions of their own, where they are applied to vectors."""

    vectors = True

    def __init__(self, function: Function, target: CpuTarget, called: frozenset[str] = frozenset()):
        self.function = function
        self.target = target
        self.called = called

    def store_some(self, t: str, lanes: int, value: str, place: str, align: int, mask: str) -> None:
        """Store the lanes of a vector of `t` that `mask` has."""
        f = self.function
        if t.startswith("i") and t != "i64" and "avx512f" in self.target.features:
            # LLVM 22 stores all bits of the element before it was cut to `t` where a mask that it knows has one lane: beyond
            # the lane, and so beyond a buffer. Behind an empty instruction it knows no mask.
            bits = f.emit(f"bitcast {wide('i1', lanes)} {mask} to i{lanes}")
            known = bits if lanes == 64 else f.emit(f"zext i{lanes} {bits} to i64")
            unknown = f.emit(f'call i64 asm "", "=r,0"(i64 {known})')
            bits = unknown if lanes == 64 else f.emit(f"trunc i64 {unknown} to i{lanes}")
            mask = f.emit(f"bitcast i{lanes} {bits} to {wide('i1', lanes)}")
        given: list[tuple[str, Int]] = [(wide(t, lanes), value), (f"ptr align {align}", place), (wide("i1", lanes), mask)]
        f.call("void", f"llvm.masked.store.{suffix(t, lanes)}.p0", given)

    # -- constants and shapes

    def const(self, value: bool | int | float, d: DType) -> Value:
        return Value(literal(value, d), d)

    def dtype(self, x: Value) -> DType:
        return x.dtype

    def widen(self, x: Value, lanes: int) -> Value:
        """`x` with that many lanes."""
        if x.lanes == lanes:
            return x
        if self.target.folds_constants and x.dtype.kind == "f" and is_number(x) and x.text not in _WRITTEN:
            return Value(self.function.constant(x.text, element(x.dtype), lanes), x.dtype, lanes)
        return Value(self.function.splat(x.text, element(x.dtype), lanes), x.dtype, lanes)

    def operands(self, operands: tuple) -> list[Value]:
        """Numbers made constants of the last value's dtype, and all as wide as the widest."""
        like = next(x.dtype for x in reversed(operands) if isinstance(x, Value))
        values = [x if isinstance(x, Value) else self.const(x, like) for x in operands]
        lanes = max(x.lanes for x in values)
        return [self.widen(x, lanes) for x in values]

    def _repeated(self, x: Any, like: Value) -> Value:
        """A number as wide as `like`, written out."""
        x = x if isinstance(x, Value) else self.const(x, like.dtype)
        return Value(self.function.splat(x.text, element(x.dtype), like.lanes), x.dtype, like.lanes)

    # -- operations

    def apply(self, op: str, operands: list[Value], d: DType) -> Value:
        """An `Op` statement: a basic operation, a cast, or an elementwise primitive by its definition."""
        if op == "cast":
            return self.cast(operands[0], d)
        if op == "bitcast":
            return self.bitcast(operands[0], d)
        if op in BASIC:
            return self.emit(op, *operands)
        scalar = REGISTRY[op].scalar
        if scalar is None or scalar.define is None:
            raise NotImplementedError(f"{op} has no scalar definition")
        if op in self.called and any(x.lanes > 1 for x in operands):
            return self._call(op, operands, d)
        return scalar.define(self, *operands)

    def _call(self, op: str, operands: list[Value], d: DType) -> Value:
        """A primitive on vectors by a function, which is written once."""
        lanes = max(x.lanes for x in operands)
        xs = [self.widen(x, lanes) for x in operands]
        name = f"{op}_{'_'.join(x.dtype.name for x in xs)}_{lanes}"
        if name not in self.function.helpers:
            gives = wide(element(d), lanes)
            f = Function(
                name,
                [(x.type, f"x{i}") for i, x in enumerate(xs)],
                attributes="nounwind noinline",
                linkage="internal",
                gives=gives,
            )
            define = REGISTRY[op].scalar.define  # type: ignore[union-attr]
            got = define(LlvmMachine(f, self.target), *(Value(f"%x{i}", x.dtype, lanes) for i, x in enumerate(xs)))  # type: ignore[misc]
            f.result = LlvmMachine(f, self.target).widen(got, lanes).text
            self.function.helpers |= {**f.helpers, name: f}
            self.function.externals |= f.externals
        arguments = ", ".join(f"{x.type} {x.text}" for x in xs)
        return Value(self.function.emit(f"call {wide(element(d), lanes)} @{name}({arguments})"), d, lanes)

    def emit(self, op: str, *operands: Any) -> Value:
        if op == "where":
            return self._where(*operands)
        if op == "div" and is_number(operands[1]):  # (LLVM multiplies instead where that is the same, if it sees the number)
            operands = (operands[0], self._repeated(operands[1], operands[0]))
        xs = self.operands(operands)
        d, t, lanes = xs[-1].dtype, xs[-1].type, xs[-1].lanes
        a, f = xs[0].text, self.function
        b = xs[1].text if len(xs) > 1 else ""

        def out(text: str, kind: DType = d) -> Value:
            return Value(f.emit(text), kind, lanes)

        def intrinsic(name: str, *arguments: str) -> Value:
            name = f"llvm.{name}.{suffix(element(d), lanes)}"
            return Value(f.call(t, name, [(t, x) for x in arguments]), d, lanes)

        if op in _FLOAT_PREDICATE:
            return out(f"{self._predicate(op, d)} {t} {a}, {b}", bool_)
        if d is bool_:
            if op in ("logical_not", "bitwise_not"):
                return out(f"xor {t} {a}, {repeat('true', 'i1', lanes)}")
            return out(f"{_BOOL[op]} {t} {a}, {b}")
        if op in ("maximum", "minimum"):
            if is_number(operands[0]):
                xs.reverse()
            return self._limit(op, *xs) if any(map(is_number, operands)) else self._extreme(op, *xs)
        if op == "fma":
            if d.kind == "f":
                return intrinsic("fma", a, b, xs[2].text)
            return self.emit("add", self.emit("mul", xs[0], xs[1]), xs[2])
        if d.kind == "f":
            if op in _FLOAT:
                return out(f"{_FLOAT[op]} {t} {a}, {b}")
            if op == "neg":
                return out(f"fneg {t} {a}")
            if op in _ROUND:
                return intrinsic(_ROUND[op], a)
            return intrinsic({"abs": "fabs", "sqrt": "sqrt"}[op], a)
        if op in _INT:
            return out(f"{_INT[op]} {t} {a}, {b}")
        if op in _ROUND:
            return xs[0]
        match op:
            case "neg":
                return out(f"sub {t} zeroinitializer, {a}" if lanes > 1 else f"sub {t} 0, {a}")
            case "abs":
                return xs[0] if d.kind == "u" else out(f"call {t} @{self._declared_abs(d, lanes)}({t} {a}, i1 false)")
            case "bitwise_not":
                return out(f"xor {t} {a}, {repeat('-1', element(d), lanes)}")
            case "shift_left":
                return out(f"shl {t} {a}, {b}")
            case "shift_right":
                return out(f"{'ashr' if d.kind == 'i' else 'lshr'} {t} {a}, {b}")
            case "mul_high":
                return self._mul_high(xs[0], xs[1])
            case "floor_divide_int":
                return self.divide(xs[0], xs[1])[0]
            case "remainder_int":
                return self.divide(xs[0], xs[1])[1]
        raise NotImplementedError(f"{op} of {d.name}")

    def _declared_abs(self, d: DType, lanes: int) -> str:
        t, name = wide(element(d), lanes), f"llvm.abs.{suffix(element(d), lanes)}"
        self.function.declarations.add(f"declare {t} @{name}({t}, i1)")
        return name

    def _predicate(self, op: str, d: DType) -> str:
        if d.kind == "f":
            return f"fcmp {_FLOAT_PREDICATE[op]}"
        sign = "" if op in ("eq", "ne") else "s" if d.kind == "i" else "u"
        return f"icmp {sign}{op}"

    def _where(self, condition: Value, a: Any, b: Any) -> Value:
        x, y = self.operands((a, b))
        lanes = max(x.lanes, condition.lanes)
        x, y = self.widen(x, lanes), self.widen(y, lanes)
        chosen = f"{condition.type} {condition.text}"
        return Value(self.function.emit(f"select {chosen}, {x.type} {x.text}, {y.type} {y.text}"), x.dtype, lanes)

    def _extreme(self, op: str, a: Value, b: Value) -> Value:
        """NaN where either is NaN: the comparison takes b when unordered, so that only a NaN in a is left to see to.

        `b` is the better place for an accumulator: the test for NaN is then off its chain.
        """
        greater = "gt" if op == "maximum" else "lt"
        if a.dtype.kind != "f":
            return self._where(self.emit(greater, a, b), a, b)
        best = self._where(self.emit(greater, a, b), a, b)
        return self._where(self.emit("ne", a, a), a, best)

    def _limit(self, op: str, x: Value, bound: Value) -> Value:
        """With a constant that is not NaN: one comparison, false for a NaN, which therefore passes."""
        return self._where(self.emit("lt" if op == "maximum" else "gt", x, bound), bound, x)

    def _mul_high(self, a: Value, b: Value) -> Value:
        f, lanes = self.function, a.lanes
        t, long = wide("i32", lanes), wide("i64", lanes)
        x, y = f.emit(f"zext {t} {a.text} to {long}"), f.emit(f"zext {t} {b.text} to {long}")
        upper = f.emit(f"lshr {long} {f.emit(f'mul {long} {x}, {y}')}, {repeat('32', 'i64', lanes)}")
        return Value(f.emit(f"trunc {long} {upper} to {t}"), uint32, lanes)

    def divide(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Floor quotient and remainder (with the divisor's sign). By zero: 0 and 0; the least integer by -1 wraps.

        The divisors that would trap are replaced before the division and their results put in after it.
        """
        f, t, d, lanes = self.function, a.type, a.dtype, a.lanes
        one, zero = self.const(1, d), self.widen(self.const(0, d), lanes)
        is_zero = self.emit("eq", b, zero)
        safe = self._where(is_zero, one, b)
        if d.kind == "u":
            q = Value(f.emit(f"udiv {t} {a.text}, {safe.text}"), d, lanes)
            r = Value(f.emit(f"urem {t} {a.text}, {safe.text}"), d, lanes)
            return self._where(is_zero, zero, q), self._where(is_zero, zero, r)
        negated = self.emit("eq", b, -1)
        safe = self._where(negated, one, safe)
        q = Value(f.emit(f"sdiv {t} {a.text}, {safe.text}"), d, lanes)
        r = self.emit("sub", a, self.emit("mul", q, safe))
        uneven = self.emit("ne", r, zero)
        apart = self.emit("lt", self.emit("bitwise_xor", r, safe), zero)
        down = self.emit("logical_and", uneven, apart)
        q = self._where(down, self.emit("sub", q, 1), q)
        r = self._where(down, self.emit("add", r, safe), r)
        q = self._where(negated, self.emit("neg", a), q)
        return self._where(is_zero, zero, q), self._where(is_zero, zero, r)

    def libm(self, name: str, *x: Any) -> Value:
        """One call of the C library a lane."""
        if name not in LIBM:
            raise NotImplementedError(f"{name} is not among the C library's functions that flame uses")
        f, xs = self.function, self.operands(x)
        d, lanes = xs[0].dtype, xs[0].lanes
        symbol, t = name + ("f" if d is float32 else ""), element(d)
        f.externals.add(symbol)
        if lanes == 1:
            return Value(f.call(t, symbol, [(t, v.text) for v in xs]), d)
        out = "poison"
        for i in range(lanes):
            arguments = [(t, f.emit(f"extractelement {v.type} {v.text}, i64 {i}")) for v in xs]
            out = f.emit(f"insertelement {wide(t, lanes)} {out}, {t} {f.call(t, symbol, arguments)}, i64 {i}")
        return Value(out, d, lanes)

    def rarely(self, name: str, condition: Value, value: Value, *x: Any) -> Value:
        """By a function, so that there is no branch where this is written."""
        xs = [self.widen(v, value.lanes) for v in self.operands(x)]
        key, t = f"rarely_{name}_{value.dtype.name}_{value.lanes}", value.type
        if key not in self.function.helpers:
            given = [(wide("i1", value.lanes), "where"), (t, "value"), *((t, f"x{i}") for i in range(len(xs)))]
            f = Function(key, given, attributes="nounwind noinline", linkage="internal", gives=t)
            m = LlvmMachine(f, self.target)
            inside = Value("%where", bool_, value.lanes), Value("%value", value.dtype, value.lanes)
            place, align = f.scratch(element(value.dtype), value.lanes), value.lanes * value.dtype.itemsize
            f.store(t, "%value", place, align)

            def slow() -> None:
                got = m.libm(name, *(Value(f"%x{i}", v.dtype, v.lanes) for i, v in enumerate(xs)))
                f.store(t, m._where(inside[0], got, inside[1]).text, place, align)

            some = "%where"
            if value.lanes > 1:
                some = f.call("i1", f"llvm.vector.reduce.or.v{value.lanes}i1", [(wide("i1", value.lanes), "%where")])
            f.when(some, slow)
            f.result = f.load(t, place, align)
            self.function.helpers[key] = f
            self.function.externals |= f.externals
        mask = self.widen(condition, value.lanes)
        arguments = ", ".join(f"{v.type} {v.text}" for v in (mask, value, *xs))
        return Value(self.function.emit(f"call {t} @{key}({arguments})"), value.dtype, value.lanes)

    # -- conversions

    def bitcast(self, x: Value, d: DType) -> Value:
        y = Value("", d, x.lanes)
        if x.type == y.type:
            return Value(x.text, d, x.lanes)
        return Value(self.function.emit(f"bitcast {x.type} {x.text} to {y.type}"), d, x.lanes)

    def cast(self, x: Value, d: DType) -> Value:
        """Between any two dtypes, as NumPy does on values in range."""
        s = x.dtype
        if s is d:
            return x
        if d is bool_:
            return self.emit("ne", self._computable(x), 0)
        if s.kind == "f":
            return self._float_to_float(x, d) if d.kind == "f" else self._float_to_int(self._computable(x), d)
        if d.kind != "f":
            if s.kind == "b":
                return self._convert("zext", x, d)
            if s.itemsize == d.itemsize:
                return Value(x.text, d, x.lanes)
            return self._convert("trunc" if d.itemsize < s.itemsize else "sext" if s.kind == "i" else "zext", x, d)
        if d.is_narrow_float:
            return self.cast(self.cast(x, float32), d)
        return self._convert("sitofp" if s.kind == "i" else "uitofp", x, d)

    def _convert(self, how: str, x: Value, d: DType) -> Value:
        return Value(self.function.emit(f"{how} {x.type} {x.text} to {wide(element(d), x.lanes)}"), d, x.lanes)

    def _computable(self, x: Value) -> Value:
        return self.cast(x, float32) if x.dtype.is_narrow_float else x

    def _float_to_int(self, x: Value, d: DType) -> Value:
        """Through int32 or int64, so that the narrow and the unsigned ones wrap as C compilers make them."""
        if d.itemsize == 8:
            return self._convert("fptosi" if d.kind == "i" else "fptoui", x, d)
        through = int64 if d is uint32 else int32
        return self.cast(self._convert("fptosi", x, through), d)

    def _float_to_float(self, x: Value, d: DType) -> Value:
        s = x.dtype
        if s in dtypes.FLOAT8:
            return self.cast(float8.widened(self, Value(x.text, dtypes.uint8, x.lanes), s), d)
        if d in dtypes.FLOAT8:
            return Value(float8.narrowed(self, self.cast(x, float32), d).text, d, x.lanes)
        if s is bfloat16:
            wider = self._shift(self._convert("zext", Value(x.text, dtypes.uint16, x.lanes), int32), "shl", 16)
            return self.cast(self.bitcast(wider, float32), d)
        if s is float16:
            wide_value = self._convert("fpext", x, float32) if self.target.has_half else self._half_to_single(x)
            return self.cast(wide_value, d)
        if d is bfloat16:
            return self._to_bfloat16(self.cast(x, float32))
        if d is float16:
            if s is float64:
                x = self._round_to_odd(x)
            return self._convert("fptrunc", x, float16) if self.target.has_half else self._single_to_half(x)
        return self._convert("fptrunc" if d.itemsize < s.itemsize else "fpext", x, d)

    def _shift(self, x: Value, how: str, by: int) -> Value:
        f, t = self.function, element(x.dtype)
        return Value(f.emit(f"{how} {x.type} {x.text}, {repeat(str(by), t, x.lanes)}"), x.dtype, x.lanes)

    def _to_bfloat16(self, x: Value) -> Value:
        """Round to nearest even on the bits; a NaN becomes the quiet one of its sign."""
        bits = self.bitcast(x, int32)
        upper = self._shift(bits, "lshr", 16)
        odd = self.emit("bitwise_and", upper, 1)
        rounded = self._shift(self.emit("add", self.emit("add", bits, 0x7FFF), odd), "lshr", 16)
        nan = self.emit("bitwise_or", upper, 0x0040)
        chosen = self._where(self.emit("ne", x, x), nan, rounded)
        return Value(self._convert("trunc", chosen, dtypes.int16).text, bfloat16, x.lanes)

    def _round_to_odd(self, x: Value) -> Value:
        """float64 -> float32, truncated and made odd if inexact: rounding that again gives what rounding `x` once does."""
        y = self._convert("fptrunc", x, float32)
        back = self._convert("fpext", y, float64)
        inexact = self.emit("logical_and", self.emit("ne", back, x), self.emit("eq", x, x))
        away = self.emit("gt", self.emit("abs", back), self.emit("abs", x))
        bits = self.bitcast(y, int32)
        bits = self.emit("sub", bits, self.cast(away, int32))
        return self.bitcast(self.emit("bitwise_or", bits, self.cast(inexact, int32)), float32)

    def _half_to_single(self, x: Value) -> Value:
        bits = self._convert("zext", Value(self.bitcast(x, dtypes.int16).text, dtypes.uint16, x.lanes), int32)
        magnitude = self.emit("bitwise_and", bits, 0x7FFF)
        scaled = self.emit("mul", self.bitcast(self._shift(magnitude, "shl", 13), float32), 2.0**112)
        special = self.emit("bitwise_or", self._shift(magnitude, "shl", 13), 0x7F800000)
        is_special = self.emit("ge", magnitude, 0x7C00)
        found = self._where(is_special, special, self.bitcast(scaled, int32))
        sign = self._shift(self.emit("bitwise_and", bits, 0x8000), "shl", 16)
        return self.bitcast(self.emit("bitwise_or", found, sign), float32)

    def _single_to_half(self, x: Value) -> Value:
        """Round to nearest even. Subnormal halves are rounded by adding a power of two whose last place is theirs."""
        bits = self.bitcast(x, int32)
        magnitude = self.emit("bitwise_and", bits, 0x7FFFFFFF)
        odd = self.emit("bitwise_and", self._shift(magnitude, "lshr", 13), 1)
        rounded = self.emit("add", self.emit("add", magnitude, ((15 - 127) << 23) + 0xFFF), odd)
        normal = self._shift(rounded, "lshr", 13)
        small = self.emit("sub", self.bitcast(self.emit("add", self.bitcast(magnitude, float32), 0.5), int32), 0x3F000000)
        found = self._where(self.emit("lt", magnitude, 0x38800000), small, normal)
        found = self._where(self.emit("ge", magnitude, 0x47800000), self.const(0x7C00, int32), found)
        found = self._where(self.emit("gt", magnitude, 0x7F800000), self.const(0x7E00, int32), found)
        sign = self.emit("bitwise_and", self._shift(bits, "lshr", 16), 0x8000)
        short = self._convert("trunc", self.emit("bitwise_or", found, sign), dtypes.int16)
        return self.bitcast(short, float16)
