"""Arithmetic, comparison, logic and mathematics, as PyTorch names them: functions, methods, operators, in-place forms.

One-operand functions and their methods are made from the registry: an elementwise primitive with one operand is a function and
a method of its name and of its name with an underscore; integers become the default floating dtype where its shape rule refuses
them. What has an argument more, an alias or a default of its own stands below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame import dtypes
from flame.autograd.tape import Direct, assign, eager
from flame.functions.promotion import (
    BOOLEAN,
    as_floating,
    cast,
    deliver,
    for_difference,
    inplace,
    number,
    of_booleans,
    operand,
    promoted,
    result_type,
    tensor_operand,
    to_dtype,
    with_tensor,
    without_booleans,
)
from flame.precision import precise
from flame.primitive import REGISTRY, Primitive, Spec, followed, force, registered, synonymous
from flame.tensor import Tensor

ADD, SUB, MUL, DIV, NEG, POW, WHERE = map(registered, ("add", "sub", "mul", "div", "neg", "pow", "where"))
MAXIMUM, MINIMUM = registered("maximum"), registered("minimum")

PUBLIC: dict[str, Any] = {}
#: functions of one operand -> how they run on floats
DIRECT: dict[Callable, Direct] = {}


def public(*names: str) -> Callable:
    """Enter a function in flame's namespace, and hang it on Tensor under the same names."""

    def enter(f: Callable) -> Callable:
        f = synonymous(precise(f))
        for n in names or (f.__name__,):
            PUBLIC[n] = f
            setattr(Tensor, n, f)
        return f

    return enter


# -------------------------------------------------------------------- one operand, from the registry


def takes_integers(p: Primitive) -> bool:
    try:
        p.infer(Spec((1,), dtypes.int64))
    except (RuntimeError, TypeError):
        return False
    return True


def _takes_booleans(p: Primitive) -> bool:
    try:
        p.infer(Spec((1,), dtypes.bool_))
    except (RuntimeError, TypeError):
        return False
    return True


def operand_count(p: Primitive) -> int:
    """How many operands an elementwise primitive takes."""
    for n in (1, 2, 3):
        for d in (dtypes.float32, dtypes.int32, dtypes.bool_):
            try:
                p.infer(*[Spec((1,), d)] * n)
            except (TypeError, RuntimeError):
                continue
            return n
    return 0


def unary(p: Primitive, name: str) -> None:
    floats_only = not takes_integers(p) and not _takes_booleans(p)
    no_booleans = not floats_only and not _takes_booleans(p)

    whole = name in _WHOLE_ALREADY
    refused = "b" if whole else _FRACTIONS.get(name, "")
    direct = Direct.of(p)

    def function(input: Tensor, *, out: Tensor | None = None) -> Tensor:
        run = force.interpreter
        if run is not None and run.next is not None and out is None and isinstance(input, Tensor):
            got = run.plain(p, input)
            if got is not None:
                return got
        elif (
            run is None
            and out is None
            and isinstance(input, Tensor)
            and (a := input._array) is not None
            and a.dtype.kind == "f"
        ):
            return eager.one(direct, input, a)
        x = tensor_operand(input, name)
        if x.dtype.kind in refused:
            raise NotImplementedError(f'"{name}" not implemented for {x.dtype!r}: cast to a floating dtype first')
        if whole and x.dtype.kind in "ui":
            return deliver(registered("copy")(x), out, name)
        if name == "square" and x.dtype.kind == "b":
            x = cast(x, dtype=dtypes.int64)
        if floats_only and x.dtype.kind not in "fc":
            x = cast(x, dtype=dtypes.get_default_dtype())
        elif no_booleans and x.dtype.kind == "b":
            p.infer(x.spec)  # says it in the primitive's own words
        return deliver(p(x), out, name) if out is not None else p(x)

    def in_place(self: Tensor) -> Tensor:
        if whole and self.dtype.kind in "ui":
            return self
        if floats_only and self.dtype.kind not in "fc":
            raise RuntimeError(
                f"result type {dtypes.get_default_dtype()!r} can't be cast to the desired output type {self.dtype!r}"
            )
        return inplace(p, self)

    function.__name__ = function.__qualname__ = name
    in_place.__name__ = name + "_"
    function.__doc__ = p.doc or f"{name} of each element."
    PUBLIC[name] = known = precise(function)
    DIRECT[known] = direct
    setattr(Tensor, name, known)
    PUBLIC[name + "_"] = in_place
    setattr(Tensor, name + "_", in_place)


#: what leaves integers as they are
_WHOLE_ALREADY = {"ceil", "floor", "round", "trunc"}
#: what has no meaning for whole numbers, by the kinds that are refused
_FRACTIONS = {"frac": "bui"}
_NOT_PUBLIC = {"copy", "cast", "philox_word"}
for _p in list(REGISTRY.values()):
    if (_p.kind == "elementwise" or "scalar" in _p.refused) and _p.name not in _NOT_PUBLIC and operand_count(_p) == 1:
        unary(_p, _p.name)


def _alias(new: str, old: str) -> None:
    for suffix in ("", "_"):
        if old + suffix in PUBLIC:
            PUBLIC[new + suffix] = PUBLIC[old + suffix]
            setattr(Tensor, new + suffix, PUBLIC[old + suffix])


for _new, _old in {
    "absolute": "abs", "arccos": "acos", "arcsin": "asin", "arctan": "atan", "arccosh": "acosh", "arcsinh": "asinh",
    "arctanh": "atanh", "negative": "neg", "fix": "trunc",
}.items():  # fmt: skip
    _alias(_new, _old)


# -------------------------------------------------------------------- two operands


_PREPARE = {
    "sub": for_difference, "floor_divide": without_booleans, "remainder": without_booleans, "fmod": without_booleans,
    "trunc_divide": without_booleans, "pow": without_booleans,
}  # fmt: skip


#: functions whose first, or second, argument must be a tensor
_TENSOR_FIRST = set("eq ne lt le gt ge copysign fmod".split())
_TENSORS = set("atan2 fmax fmin maximum minimum hypot nextafter gcd lcm igamma igammac".split())


def _overwritten(self: Tensor, value: Tensor, op: str) -> Tensor:
    """`self` with `value` in its memory, which must have its shape."""
    if value.shape != self.shape:
        raise RuntimeError(f"{op}: output with shape {list(self.shape)} doesn't match the broadcast shape {list(value.shape)}")
    return assign(self, to_dtype(value, self.dtype))


def binary(name: str, p: Primitive, *, floating: bool = False, compare: bool = False) -> Callable:
    """A function of two tensors or numbers, promoted; with its in-place method."""
    first = tensor_operand if name in _TENSOR_FIRST | _TENSORS else operand
    second = tensor_operand if name in _TENSORS else operand
    prepare = as_floating if floating else _PREPARE.get(p.name, promoted)

    direct = Direct.of(p)

    def function(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
        if out is None and force.interpreter is None and isinstance(input, Tensor) and isinstance(other, Tensor):
            x, y = input._array, other._array
            if x is not None and y is not None and x.dtype is y.dtype and x.dtype.kind == "f":
                return eager.two(direct, input, other)
        a, b = first(input, name, "input"), second(other, name, "other")
        a, b = prepare(*with_tensor(a, b, op=name))
        y = of_booleans(p, a, b)(a, b)
        return y if out is None else deliver(y, out, name)

    def in_place(self: Tensor, other: Any) -> Tensor:
        b = second(other, name + "_", "other")
        if floating and self.dtype.kind not in "fc":
            raise RuntimeError(
                f"result type {dtypes.get_default_dtype()!r} can't be cast to the desired output type {self.dtype!r}"
            )
        if compare:
            return _overwritten(self, function(self, b), name + "_")
        return inplace(p, self, b, op=name + "_")

    function.__name__ = function.__qualname__ = name
    in_place.__name__ = name + "_"
    function.__doc__ = p.doc or f"{name} of two tensors or numbers, element by element, with broadcasting."
    PUBLIC[name] = known = followed(function)
    setattr(Tensor, name, known)
    PUBLIC[name + "_"] = in_place
    setattr(Tensor, name + "_", in_place)
    return known


def dunder(name: str, p: Primitive, *, floating: bool = False, swap: bool = False, compare: bool = False) -> None:
    prepare = as_floating if floating else _PREPARE.get(p.name, promoted)

    first, second = (1, 0) if swap else (0, 1)
    boolean = BOOLEAN.get(p)
    direct = Direct.of(p)

    def op(self: Tensor, other: Any) -> Any:
        run = force.interpreter
        if run is not None:
            if run.next is not None:  # the next step of a captured path, with these very operands: nothing else to find out
                r = self._ref
                if r is None:
                    r = run.enter(self)
                if isinstance(other, Tensor):
                    o = other._ref
                    if o is None and r is not None:  # (inputs enter in order)
                        o = run.enter(other)
                else:
                    o = other
                step = run.next
                if step is not None and step.plain is p and step.grad is force.grad:
                    want = step.operands
                    if want[first] is r:
                        it = want[second]
                        if it is o or run.takes(it, o):
                            return run.follow(step)
        else:
            x = self._array
            if x is not None and x.dtype.kind == "f":  # two of one floating dtype: nothing to prepare
                y = other._array if isinstance(other, Tensor) else None
                t = type(other)
                if (t is float or t is int) if y is None else y.dtype is x.dtype:
                    return eager.two(direct, other, self) if swap else eager.two(direct, self, other)
        if not isinstance(other, Tensor):
            other = number(other)
            if other is None:
                return NotImplemented
        a, b = prepare(self, other)
        if boolean is not None and a.dtype.kind == "b":
            return boolean(b, a) if swap else boolean(a, b)
        return p(b, a) if swap else p(a, b)

    op.__name__ = name
    setattr(Tensor, name, precise(op, name.strip("_").removeprefix("r")))


for _n, _prim, _floating in (
    ("add", ADD, False), ("sub", SUB, False), ("mul", MUL, False), ("truediv", DIV, True), ("pow", POW, False),
    ("floordiv", registered("floor_divide"), False), ("mod", registered("remainder"), False),
    ("and", registered("bitwise_and"), False), ("or", registered("bitwise_or"), False),
    ("xor", registered("bitwise_xor"), False), ("lshift", registered("shift_left"), False),
    ("rshift", registered("shift_right"), False),
):  # fmt: skip
    dunder(f"__{_n}__", _prim, floating=_floating)
    dunder(f"__r{_n}__", _prim, floating=_floating, swap=True)
for _n in ("eq", "ne", "lt", "le", "gt", "ge"):
    dunder(f"__{_n}__", registered(_n), compare=True)
    binary(_n, registered(_n), compare=True)
Tensor.__hash__ = object.__hash__  # type: ignore[method-assign, assignment]

for _new, _name, _floating in (
    ("mul", "mul", False), ("atan2", "atan2", True), ("maximum", "maximum", False), ("minimum", "minimum", False),
    ("fmax", "fmax", False), ("fmin", "fmin", False), ("fmod", "fmod", False), ("remainder", "remainder", False),
    ("floor_divide", "floor_divide", False), ("hypot", "hypot", True), ("copysign", "copysign", True),
    ("nextafter", "nextafter", False), ("bitwise_and", "bitwise_and", False), ("bitwise_or", "bitwise_or", False),
    ("bitwise_xor", "bitwise_xor", False), ("bitwise_left_shift", "shift_left", False),
    ("bitwise_right_shift", "shift_right", False),
):  # fmt: skip
    if _name in REGISTRY:
        binary(_new, registered(_name), floating=_floating)
for _new, _old in {
    "multiply": "mul", "arctan2": "atan2", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt",
    "greater_equal": "ge",
}.items():  # fmt: skip
    _alias(_new, _old)


@public()
@followed
def add(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """input + alpha * other."""
    a, b = operand(input, "add", "input"), operand(other, "add")
    b = _scaled(b, alpha, "add")
    a, b = promoted(*with_tensor(a, b, op="add"))
    return deliver(of_booleans(ADD, a, b)(a, b), out, "add")


@public("sub", "subtract")
@followed
def sub(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """input - alpha * other. Raises RuntimeError for boolean tensors."""
    a, b = operand(input, "sub", "input"), operand(other, "sub")
    b = _scaled(b, alpha, "sub")
    a, b = for_difference(*with_tensor(a, b, op="sub"))
    return deliver(SUB(a, b), out, "sub")


def _scaled(x: Any, alpha: Any, op: str) -> Any:
    if type(alpha) is int and alpha == 1:
        return x
    alpha = number(alpha)
    if alpha is None:
        raise TypeError(f"{op}(): argument 'alpha' must be Number")
    if type(alpha) is float and isinstance(x, Tensor) and x.dtype.kind not in "fc":
        raise RuntimeError("For integral input tensors, argument alpha must not be a floating point number.")
    if isinstance(x, Tensor) and x.dtype.kind == "b":
        return registered("logical_and")(x, bool(alpha))
    return MUL(x, alpha) if isinstance(x, Tensor) else x * alpha


@public()
def add_(self: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    return inplace(ADD, self, _scaled(operand(other, "add_"), alpha, "add_"))


@public("sub_", "subtract_")
def sub_(self: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    for_difference(self, other)
    return inplace(SUB, self, _scaled(operand(other, "sub_"), alpha, "sub_"))


@public()
def rsub(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    """other - alpha * input."""
    tensor_operand(input, "rsub")
    return sub(other, input, alpha=alpha)


@public("div", "divide")
@followed
def div(input: Any, other: Any, *, rounding_mode: str | None = None, out: Tensor | None = None) -> Tensor:
    """input / other; `rounding_mode` None (true division), "trunc" or "floor"."""
    a, b = with_tensor(operand(input, "div", "input"), operand(other, "div"), op="div")
    match rounding_mode:
        case None:
            r = DIV(*as_floating(a, b))
        case "trunc":
            r = registered("trunc_divide")(*without_booleans(a, b))
        case "floor":
            r = registered("floor_divide")(*without_booleans(a, b))
        case _:
            raise RuntimeError(f"div expected rounding_mode to be one of None, 'trunc', or 'floor' but found '{rounding_mode}'")
    return deliver(r, out, "div")


@public("div_", "divide_")
def div_(self: Tensor, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    b = operand(other, "div_")
    if rounding_mode is None:
        if self.dtype.kind not in "fc":
            raise RuntimeError(
                f"result type {dtypes.get_default_dtype()!r} can't be cast to the desired output type {self.dtype!r}"
            )
        return inplace(DIV, self, b)
    return inplace(registered({"trunc": "trunc_divide", "floor": "floor_divide"}[rounding_mode]), self, b, op="div_")


PUBLIC["true_divide"] = Tensor.true_divide = lambda input, other, *, out=None: div(input, other, out=out)  # type: ignore[attr-defined]


@public()
@followed
def pow(input: Any, exponent: Any, *, out: Tensor | None = None) -> Tensor:
    """input ** exponent. Raises RuntimeError for an integer tensor to a negative integer number."""
    a, b = with_tensor(operand(input, "pow", "self"), operand(exponent, "pow", "exponent"), op="pow")
    return deliver(_pow(*_pow_operands(a, b)), out, "pow")


def _pow_operands(a: Any, b: Any) -> tuple:
    """As PyTorch has it, booleans are raised to Python booleans but not to boolean tensors."""
    if type(b) is bool and isinstance(a, Tensor) and a.dtype.kind == "b":
        return a, b
    return without_booleans(a, b)


def _pow(a: Any, b: Any) -> Tensor:
    if type(b) is int and b < 0 and isinstance(a, Tensor) and a.dtype.kind not in "fc":
        raise RuntimeError("Integers to negative integer powers are not allowed.")
    if b is True or b is False:
        if not b and isinstance(a, Tensor) and a.dtype.kind == "b":
            return registered("full")(True, shape=tuple(a.shape), dtype=a.dtype)
        b = int(b)
    if isinstance(a, Tensor):  # the powers that programs really use, at the accuracy and speed of a multiplication
        if type(b) in (int, float):
            if b == 2:
                return MUL(a, a)
            if b == 1:
                return registered("copy")(a)
            if b == 0.5 and a.dtype.kind in "fc":
                return registered("sqrt")(a)
            if b == 3:
                return MUL(MUL(a, a), a)
    return POW(a, b)


@public()
def pow_(self: Tensor, exponent: Any) -> Tensor:
    b = operand(exponent, "pow_", "exponent")
    _pow_operands(self, b)
    d = result_type(self, b)
    if d.category > self.dtype.category:
        raise RuntimeError(f"result type {d!r} can't be cast to the desired output type {self.dtype!r}")
    return _overwritten(self, _pow(registered("copy")(self), to_dtype(b, self.dtype)), "pow_")


@followed
def _pow_op(self: Tensor, other: Any) -> Any:
    if not isinstance(other, Tensor):
        other = number(other)
        if other is None:
            return NotImplemented
    return _pow(*_pow_operands(self, other))


Tensor.__pow__ = precise(_pow_op, "pow")  # type: ignore[attr-defined]


@public()
@followed
def float_power(input: Any, exponent: Any) -> Tensor:
    """input ** exponent in float64."""
    a, b = with_tensor(operand(input, "float_power", "input"), operand(exponent, "float_power"), op="float_power")
    d = dtypes.complex128 if result_type(a, b).kind == "c" else dtypes.float64
    number_of = complex if d.kind == "c" else float
    return _pow(*(to_dtype(x, d) if isinstance(x, Tensor) else number_of(x) for x in (a, b)))


def _logical(name: str) -> None:
    p = registered(name)

    def as_bool(x: Any) -> Any:
        return x != 0 if isinstance(x, Tensor) and x.dtype.kind != "b" else x if isinstance(x, Tensor) else bool(x)

    def function(input: Tensor, other: Any, *, out: Tensor | None = None) -> Tensor:
        return deliver(p(as_bool(tensor_operand(input, name)), as_bool(tensor_operand(other, name, "other"))), out, name)

    def in_place(self: Tensor, other: Any) -> Tensor:
        return _overwritten(self, function(self, other), name + "_")

    function.__name__ = function.__qualname__ = name
    public(name)(function)
    public(name + "_")(in_place)


for _n in ("logical_and", "logical_or", "logical_xor"):
    _logical(_n)


@public()
def logical_not(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """True where the element is zero."""
    x = tensor_operand(input, "logical_not")
    return deliver(registered("logical_not")(x) if x.dtype.kind == "b" else registered("eq")(x, 0), out, "logical_not")


@public("logical_not_")
def _logical_not_in_place(self: Tensor) -> Tensor:
    """One where the element is zero, zero elsewhere."""
    return assign(self, to_dtype(logical_not(self), self.dtype))


@public()
def bitwise_not(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    x = tensor_operand(input, "bitwise_not")
    return deliver(registered("logical_not")(x) if x.dtype.kind == "b" else registered("bitwise_not")(x), out, "bitwise_not")


Tensor.__invert__ = lambda self: bitwise_not(self)  # type: ignore[attr-defined]
Tensor.__neg__ = PUBLIC["neg"]  # type: ignore[attr-defined]
Tensor.__pos__ = lambda self: self
Tensor.__abs__ = PUBLIC["abs"]  # type: ignore[attr-defined]
Tensor.__iadd__ = lambda self, o: add_(self, o)  # type: ignore[attr-defined]
Tensor.__isub__ = lambda self, o: sub_(self, o)  # type: ignore[attr-defined]
Tensor.__imul__ = lambda self, o: self.mul_(o)  # type: ignore[attr-defined]
Tensor.__itruediv__ = lambda self, o: div_(self, o)  # type: ignore[attr-defined]
Tensor.__ipow__ = lambda self, o: pow_(self, o)  # type: ignore[attr-defined]
for _n, _m in (("and", "bitwise_and_"), ("or", "bitwise_or_"), ("xor", "bitwise_xor_"), ("floordiv", "floor_divide_"),
               ("mod", "remainder_")):  # fmt: skip
    setattr(Tensor, f"__i{_n}__", getattr(Tensor, _m))
