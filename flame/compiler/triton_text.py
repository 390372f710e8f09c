"""Words of Triton source: names, literals, the spelling of every operation, and functions written out from `Scalar.define`.

`spell(op, arguments, dtype, functions)` is the text of one operation on texts. `Functions` collects the small `@triton.jit`
functions that a module needs: what the language has no exact word for (floor division, a maximum that carries NaN), and the
elementwise primitives, whose definition runs once on the `TritonMachine` and becomes a function of its own, so that kernels
stay readable.

Triton's own words differ from the kernel IR's in places, which is why they are not used as they are: `/` and `tl.sqrt` on
float32 are approximate, `-x` is `0 - x` in some versions (so -0.0 is lost), `//` and `%` truncate, a bare literal passed to a
function is float32 or int32 whatever stands beside it.
"""

from __future__ import annotations

import keyword
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from flame.compiler.triton_far import ANY, FAR_QUADRANT, far_turns
from flame.dtypes import FLOAT8, bool_, by_name, float32, float64, uint8
from flame.dtypes import dtype as DType
from flame.ops import float8
from flame.ops.machine import BASIC, COMPARISONS, Machine
from flame.primitive import REGISTRY

#: dtype -> its name in `tl`, and the letters that a kernel's signature knows it by
LANGUAGE = {
    "bool": ("int1", "i1"), "uint8": ("uint8", "u8"), "uint16": ("uint16", "u16"), "uint32": ("uint32", "u32"),
    "uint64": ("uint64", "u64"), "int8": ("int8", "i8"), "int16": ("int16", "i16"), "int32": ("int32", "i32"),
    "int64": ("int64", "i64"), "float16": ("float16", "fp16"), "bfloat16": ("bfloat16", "bf16"),
    "float32": ("float32", "fp32"), "float64": ("float64", "fp64"),
    "float8_e4m3fn": ("uint8", "u8"), "float8_e5m2": ("uint8", "u8"),  # held as bits: not every GPU knows them
}  # fmt: skip


def tl(d: DType) -> str:
    """The dtype as a Triton expression."""
    return f"tl.{LANGUAGE[d.name][0]}"


class Names:
    """Python identifiers, each given out once."""

    def __init__(self, *taken: str):
        self._taken = {"tl", "triton", "libdevice", "range", "min", "max", "float", *taken, *keyword.kwlist}

    def fresh(self, hint: str) -> str:
        base = re.sub(r"\W+", "_", hint, flags=re.ASCII).strip("_") or "v"
        if base[0].isdigit():
            base = "v" + base
        name, i = base, 0
        while name in self._taken:
            i += 1
            name = f"{base}_{i}"
        self._taken.add(name)
        return name


def literal(value: bool | int | float, d: DType) -> str:
    """A number as it is written beside a value of dtype `d`, which it takes on."""
    if d is bool_:
        return "True" if value else "False"
    if d in FLOAT8:
        return str(np.asarray(value, d.numpy).view(np.uint8).item())
    if d.kind != "f":
        return str(int(value))
    value = float(value)
    if is_negative_zero(value):  # as a number it is 0.0 in some versions
        bits = 8 * d.itemsize
        return f"tl.full([], {-(2 ** (bits - 1))}, tl.int{bits}).to({tl(d)}, bitcast=True)"
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def is_negative_zero(value: bool | int | float) -> bool:
    return type(value) is float and value == 0 and math.copysign(1.0, value) < 0


def typed(value: bool | int | float, d: DType) -> str:
    """A number that has dtype `d` by itself."""
    if d.kind == "f" and d not in FLOAT8 and is_negative_zero(value):
        return literal(value, d)
    if d is float32:
        size = abs(float(value))
        if size == 0 or not math.isfinite(size) or 2.0**-126 <= size <= 3.4e38:  # a bare float in this range is float32
            return literal(value, d)
    return f"tl.full([], {literal(value, d)}, {tl(d)})"


@dataclass(frozen=True, slots=True)
class Text:
    """A value in source: a name, or a number (`value`) that is written where it is used."""

    text: str
    dtype: DType
    value: bool | int | float | None = None

    @classmethod
    def number(cls, value: bool | int | float, d: DType) -> Text:
        return cls(literal(value, d), d, value)

    @property
    def alone(self) -> str:
        """The text where nothing beside it says what dtype a number has."""
        return self.text if self.value is None else typed(self.value, self.dtype)

    @property
    def tensor(self) -> str:
        """The text as a value that has methods."""
        return self.text if self.value is None or self.text.startswith("tl.") else f"tl.full([], {self.text}, {tl(self.dtype)})"


#: operators that read a bare number in the other operand's dtype
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "logical_and": "&", "logical_or": "|", "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^",
    "shift_left": "<<", "shift_right": ">>",
}  # fmt: skip
_BOOLEAN = {"add": "|", "mul": "&", "maximum": "|", "minimum": "&"}

#: functions of a module, by name: what they call, and their text
#: (none has the name that a primitive's function may take: those of maximum and minimum are basic operations)
_LIBRARY = {
    "_floor_divide_int": '''
@triton.jit
def _floor_divide_int(a, b):
    """a // b rounded down, where Triton's rounds towards zero."""
    q = a // b
    r = a - q * b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), q - 1, q)
''',
    "_remainder_int": '''
@triton.jit
def _remainder_int(a, b):
    """The remainder of a // b rounded down: it has the sign of b."""
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)
''',
    "_maximum": '''
@triton.jit
def _maximum(a, b):
    """The greater; NaN if either is."""
    return tl.where((a > b) | (a != a), a, b)
''',
    "_minimum": '''
@triton.jit
def _minimum(a, b):
    """The lesser; NaN if either is."""
    return tl.where((a < b) | (a != a), a, b)
''',
    "_multiply": """
@triton.jit
def _multiply(a, b):
    return a * b
""",
    "_first_greatest": '''
@triton.jit
def _first_greatest(a, i, b, j):
    """The greater value and its place; NaN is the greatest, the first of equals wins."""
    better = (a > b) | ((a != a) & (b == b))
    equal = (a == b) | ((a != a) & (b != b))
    left = better | (equal & (i < j))
    return tl.where(left, a, b), tl.where(left, i, j)
''',
    "_first_least": '''
@triton.jit
def _first_least(a, i, b, j):
    """The lesser value and its place; NaN is the least, the first of equals wins."""
    better = (a < b) | ((a != a) & (b == b))
    equal = (a == b) | ((a != a) & (b != b))
    left = better | (equal & (i < j))
    return tl.where(left, a, b), tl.where(left, i, j)
''',
}


_LIBRARY |= {"_any": ANY, "_far_turns": far_turns(), "_far_quadrant": FAR_QUADRANT}


class Functions:
    """The functions that a module needs, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._longer: set[tuple[str, ...]] = set()

    def library(self, name: str) -> str:
        """The name of one of the functions above."""
        self.texts.setdefault(name, _LIBRARY[name].strip("\n"))
        return name

    def expression(self, name: str, args: tuple[Text, ...]) -> str:
        """A primitive that is one operation, written where it is used; nothing for one that is more."""
        kinds = (name, *(a.dtype.name for a in args))
        if kinds in self._longer:
            return ""
        scalar = REGISTRY[name].scalar
        machine = TritonMachine(Functions())
        result = scalar.define(machine, *args) if scalar is not None and scalar.define is not None else None
        if len(machine.lines) == 1 and not machine.functions.texts and isinstance(result, Text):
            left, _, right = machine.lines[0].strip().partition(" = ")
            if left == result.text:
                return right
        self._longer.add(kinds)
        return ""

    def float8(self, how: str, d: DType) -> str:
        """The name of the function that casts from an 8-bit float (`widened`, `halved`) or to it (`narrowed`)."""
        name = f"_{d.name}_{how}"
        if name not in self.texts:
            machine = TritonMachine(self)
            x = Text(machine.names.fresh("x"), float32 if how == "narrowed" else uint8)
            result = getattr(float8, how)(machine, x, d)
            lines = [f"def {name}({x.text}):", *machine.lines, f"    return {result.alone}"]
            self.texts[name] = "\n".join(("@triton.jit", *lines))
        return name

    def primitive(self, name: str, arguments: tuple[DType, ...]) -> str:
        """The name of the function that an elementwise primitive's definition becomes for operands of these dtypes."""
        kinds = {d for d in arguments if d is not bool_} or {bool_}
        function = f"_{name}" if kinds == {float32} else "_".join((f"_{name}", *sorted(d.name for d in kinds)))
        if function in self.texts:
            return function
        scalar = REGISTRY[name].scalar
        if scalar is None or scalar.define is None:
            raise ValueError(f"{name}: neither a basic operation nor defined by them")
        machine = TritonMachine(self)
        parameters = [machine.names.fresh(p) for p, _ in zip("xyzuvw" if len(arguments) < 7 else "", arguments)]
        result = scalar.define(machine, *(Text(p, d) for p, d in zip(parameters, arguments)))
        lines = [f"def {function}({', '.join(parameters)}):", *machine.lines, f"    return {result.alone}"]
        self.texts[function] = "\n".join(("@triton.jit", *lines))
        return function

    @property
    def uses_libdevice(self) -> bool:
        return any("libdevice." in t for t in self.texts.values())


def spell(op: str, args: tuple[Text, ...], out: DType, functions: Functions) -> str:
    """The text of a basic operation, a cast, or an elementwise primitive, on values and numbers."""
    if op == "cast":
        return _cast(args[0], out, functions)
    if op == "bitcast":
        return f"{args[0].tensor}.to({tl(out)}, bitcast=True)"
    if op not in BASIC:
        return _call(op, args, functions)
    kind = args[-1].dtype
    if kind is bool_ and op in _BOOLEAN:
        return _infix(_BOOLEAN[op], args)
    if kind is bool_ and op in COMPARISONS and op not in ("eq", "ne"):
        wide = by_name("int32")
        args = tuple(Text(f"{a.tensor}.to({tl(wide)})", wide) for a in args)
    if op in _INFIX:
        return _infix(_INFIX[op], args)
    x, *rest = (a.alone for a in args)
    match op:
        case "div":
            return f"tl.div_rn({x}, {rest[0]})" if kind is float32 else _infix("/", args)
        case "fma":
            return f"tl.fma({x}, {', '.join(rest)})"
        case "neg":
            return f"{x} * -1.0" if kind.kind == "f" else f"-{x}"
        case "sqrt":
            return f"tl.sqrt_rn({x})" if kind is float32 else f"tl.sqrt({x})"
        case "abs" | "floor" | "ceil":
            return f"tl.{op}({x})"
        case "trunc":
            return f"tl.where({x} < 0, tl.ceil({x}), tl.floor({x}))"
        case "rint":
            return f"libdevice.nearbyint({x})"
        case "maximum" | "minimum":
            nan = ", propagate_nan=tl.PropagateNan.ALL" if kind.kind == "f" else ""
            return f"tl.{op}({x}, {rest[0]}{nan})"
        case "logical_not" | "bitwise_not":
            return f"~{x}"
        case "mul_high":
            return f"tl.umulhi({x}, {rest[0]})"
        case "floor_divide_int" if kind.kind == "u":
            return _infix("//", args)
        case "remainder_int" if kind.kind == "u":
            return _infix("%", args)
        case "floor_divide_int":
            return f"{functions.library('_floor_divide_int')}({x}, {rest[0]})"
        case "remainder_int":
            return f"{functions.library('_remainder_int')}({x}, {rest[0]})"
        case "where":
            chosen = args[1].text if args[2].value is None else args[1].alone
            return f"tl.where({x}, {chosen}, {args[2].text})"
    raise ValueError(f"no spelling for {op}")


def _infix(symbol: str, args: tuple[Text, ...]) -> str:
    a, b = args
    left = a.alone if b.value is not None else a.text
    if a.value is not None and b.value is None and symbol in ("<<", ">>"):
        left = a.alone  # a shift takes the dtype of its left operand
    return f"{left} {symbol} {b.text}"


def _cast(x: Text, out: DType, functions: Functions) -> str:
    if out is x.dtype:
        return x.tensor
    if x.dtype in FLOAT8:
        wide = f"{functions.float8('widened', x.dtype)}({x.tensor})"
        return wide if out is float32 else _cast(Text(wide, float32), out, functions)
    if out in FLOAT8:
        wide = x.tensor if x.dtype is float32 else _cast(x, float32, functions)
        return f"{functions.float8('narrowed', out)}({wide})"
    if out is bool_:
        return f"{x.tensor} != 0"
    text = x.tensor
    if out.is_narrow_float and x.dtype is not float32 and not x.dtype.is_narrow_float:
        text = f"{text}.to(tl.float32)"
    if x.dtype.is_narrow_float and out is not float32:
        text = f"{text}.to(tl.float32)"
    return f"{text}.to({tl(out)})"


def _call(op: str, args: tuple[Text, ...], functions: Functions) -> str:
    primitive = REGISTRY.get(op)
    if primitive is None or primitive.scalar is None:
        raise ValueError(f"{op}: neither a basic operation nor an elementwise primitive")
    given = primitive.scalar.triton
    if given is not None:
        return given.format(*(a.alone for a in args))
    if primitive.scalar.define is None:
        return spell(op, args, args[-1].dtype, functions)
    alone = functions.expression(op, args)
    return alone or f"{functions.primitive(op, tuple(a.dtype for a in args))}({', '.join(a.tensor for a in args)})"


class TritonMachine(Machine):
    """The abstract machine that writes Triton: values are `Text`s, each operation is a line."""

    # CUDA's mathematics library states 1 or 2 units in the last place for these; each is some ten instructions where the
    # definitions written for vectors take 25 to 40. (Its sin and cos keep a table on the stack, its erfc is off by 4.)
    native = frozenset(("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "tanh", "erf"))

    #: (the library's float64 ones keep a table on the stack too)
    written = frozenset(("sin", "cos", "tan"))

    def __init__(self, functions: Functions):
        self.functions = functions
        self.lines: list[str] = []
        self.names = Names()

    def _line(self, text: str, d: DType) -> Text:
        name = self.names.fresh(f"t{len(self.lines)}")
        self.lines.append(f"    {name} = {text}")
        return Text(name, d)

    def _read(self, x: Any, d: DType) -> Text:
        return x if isinstance(x, Text) else Text.number(x, d)

    def emit(self, op: str, *operands: Any) -> Text:
        kind = next((x.dtype for x in reversed(operands) if isinstance(x, Text)), None)
        if kind is None:
            raise TypeError(f"{op}: at least one operand is a value, the numbers take on its dtype")
        if op == "where":
            args = (self._read(operands[0], bool_), *(self._read(x, kind) for x in operands[1:]))
        else:
            args = tuple(self._read(x, kind) for x in operands)
        out = bool_ if op in COMPARISONS else args[0].dtype if op.startswith("shift") else kind
        return self._line(spell(op, args, out, self.functions), out)

    def const(self, value: bool | int | float, d: DType) -> Text:
        return Text.number(value if isinstance(value, bool | int | float) else np.asarray(value).item(), d)

    def cast(self, x: Text, d: DType) -> Text:
        return self._line(_cast(x, d, self.functions), d)

    def bitcast(self, x: Text, d: DType) -> Text:
        return self._line(spell("bitcast", (x,), d, self.functions), d)

    def far_quadrant(self, x: Text, q: Text, r: Text, low: Text) -> tuple[Text, Text, Text]:
        for name in ("_any", "_far_turns"):
            self.functions.library(name)
        f = self.functions.library("_far_quadrant")
        names = [self.names.fresh(n) for n in ("turns", "r", "low")]
        self.lines.append(f"    {', '.join(names)} = {f}({', '.join(v.tensor for v in (x, q, r, low))})")
        turns, left, tail = names
        return Text(turns, q.dtype), Text(left, float64), Text(tail, float64)

    def dtype(self, x: Text) -> DType:
        return x.dtype

    def libm(self, name: str, *x: Any) -> Text:
        kind = next(a.dtype for a in x if isinstance(a, Text))
        if kind not in (float32, float64):
            raise TypeError(f"{name}: takes float32 or float64, got {kind.name}")
        return self._line(f"libdevice.{name}({', '.join(self._read(a, kind).alone for a in x)})", kind)
