"""The algebra of graphs: equations that hold bit for bit, each beside its reason, and `simplify`, which applies them all.

"Bit for bit" means against running the nodes one by one: nothing is reassociated, and an equation that changes the sign of a
zero or turns an infinity into something else is not here (x + 0.0 is not x where x is -0.0; x * 0 is not 0). The one liberty
is the payload of a NaN. Equations take `(rw, n)`, the rewriter and the node, whose operands are already rewritten.

An operand is UNIFORM if all its elements are one known number: a Python number, or a `full` of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from flame.compiler.graph import Graph, Node, Operand, Value
from flame.compiler.rewrite import Equation, Rewriter, rebuild
from flame.dtypes import bool_, dtype, int32, int64
from flame.ops.declare import as_operand
from flame.primitive import Number, Spec

#: f(x, y) is f(y, x) in every bit
COMMUTATIVE = frozenset("add mul eq ne logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor".split())
#: f(f(x)) is f(x)
IDEMPOTENT = "abs sign floor ceil trunc round relu".split()
#: f(f(x)) is x
INVOLUTIONS = "neg logical_not bitwise_not".split()
#: f(x, x) is x
ABSORBING = "maximum minimum fmax fmin logical_and logical_or bitwise_and bitwise_or".split()

EQUATIONS: dict[str, list[Equation]] = {}


def simplify(graph: Graph) -> Graph:
    """An equal graph, on the same inputs, with no more work in it. Results have the same bits and specs."""
    return rebuild(graph, EQUATIONS, COMMUTATIVE)


def equation(*names: str) -> Callable[[Equation], Equation]:
    def enter(f: Equation) -> Equation:
        for name in names:
            EQUATIONS.setdefault(name, []).append(f)
        return f

    return enter


# ---------------------------------------------------------------------------------------------------------- words


def made_by(x: Operand, name: str) -> Node | None:
    """The node that made `x`, if it is an application of that primitive."""
    return x.node if isinstance(x, Value) and x.node is not None and x.node.primitive.name == name else None


def uniform(x: Operand) -> Number | None:
    """The number that every element of `x` is, as it reads in the dtype of `x`, or None."""
    if not isinstance(x, Value):
        return x
    n = made_by(x, "full")
    if n is None or isinstance(n.operands[0], Value):
        return None
    return read(n.operands[0], x.dtype)


def read(number: Number, d: dtype) -> Number:
    """A number as an element of dtype `d`: integers wrap, float16 and bfloat16 round. (float32 rounds wherever it is used,
    but a number beside a narrow float is computed with in float32, so it must not be more than the element that it was.)"""
    if d.is_narrow_float:
        return float(np.asarray(number, d.numpy))
    if d.kind == "f":
        return float(number)
    return np.asarray(as_operand(number, d.numpy)).item()


def is_number(x: Operand, number: float) -> bool:
    """`x` is uniform and equal to `number`, the sign of a zero included."""
    u = uniform(x)
    return u is not None and u == number and math.copysign(1, u) == math.copysign(1, number)


def full(rw: Rewriter, number: Number, spec: Spec) -> Value:
    return rw.apply("full", number, shape=spec.shape, dtype=spec.dtype)


def reshaped(rw: Rewriter, x: Value, shape: tuple[int, ...]) -> Value:
    return x if x.shape == shape else rw.apply("reshape", x, shape=shape)


def as_result(rw: Rewriter, x: Operand, n: Node) -> Value | None:
    """`x` broadcast to the result of elementwise node `n`, if it has its dtype already."""
    out = n.output.spec
    if not isinstance(x, Value):
        return full(rw, x, out)
    if x.dtype is not out.dtype:
        return None
    x = reshaped(rw, x, (1,) * (out.ndim - x.ndim) + x.shape)
    return x if x.shape == out.shape else rw.apply("expand", x, shape=out.shape)


# --------------------------------------------------------------------------------- constants and broadcasting


@equation("*")
def fold(rw: Rewriter, n: Node) -> Value | None:
    """An elementwise primitive of uniform operands is uniform: its eager function says of what."""
    if n.primitive.kind != "elementwise":
        return None
    values = [uniform(x) for x in n.operands]
    if None in values or not any(True for _ in n.values):
        return None
    operands = [np.asarray(v, x.dtype.numpy) if isinstance(x, Value) else v for x, v in zip(n.operands, values, strict=True)]
    try:
        with np.errstate(all="ignore"):
            got = np.asarray(n.primitive.eager(*operands, **n.params))
    except ArithmeticError:  # an integer divided by zero: it is raised when the graph runs
        return None
    return full(rw, got.item(), n.output.spec) if got.dtype == n.output.dtype.numpy else None


@equation("*")
def number_operand(rw: Rewriter, n: Node) -> Value | None:
    """f(x, full(c)) is f(x, c), expanded if x is smaller than the result; x must be there to say what the dtype is."""
    if n.primitive.kind != "elementwise" or len(n.operands) < 2:
        return None
    first = 1 if n.primitive.name == "where" else 0  # the condition's dtype is not that of the others
    operands = list(n.operands)
    for i in range(first, len(operands)):
        x = operands[i]
        if isinstance(x, Value) and (u := uniform(x)) is not None:
            if any(j != i and isinstance(y, Value) and y.dtype is x.dtype for j, y in enumerate(operands) if j >= first):
                operands[i] = u
    if all(a is b for a, b in zip(operands, n.operands, strict=True)):
        return None
    return as_result(rw, rw.apply(n.primitive, *operands, **n.params), n)


def unexpanded(x: Operand) -> Operand:
    """What `x` is a broadcast of: elementwise primitives broadcast by themselves."""
    while True:
        if (e := made_by(x, "expand")) is not None:
            x = e.operands[0]
        elif (e := made_by(x, "reshape")) is not None and leading_ones(e):
            x = e.operands[0]
        elif (e := made_by(x, "full")) is not None and isinstance(v := e.operands[0], Value) and v.dtype is e.output.dtype:
            x = v
        else:
            return x


def leading_ones(reshape: Node) -> bool:
    """The reshape only puts dimensions of size 1 in front."""
    (x,) = reshape.values
    shape = reshape.output.shape
    return shape == (1,) * (len(shape) - x.ndim) + x.shape


@equation("*")
def expanded_operand(rw: Rewriter, n: Node) -> Value | None:
    """f(x, expand(y)) is f(x, y), expanded itself if x is smaller than the result."""
    if n.primitive.kind != "elementwise":
        return None
    plain = [unexpanded(x) for x in n.operands]
    if all(a is b for a, b in zip(plain, n.operands, strict=True)):
        return None
    return as_result(rw, rw.apply(n.primitive, *plain, **n.params), n)


@equation("permute", "reshape", "expand", "slice", "flip", "copy")
def movement_of_uniform(rw: Rewriter, n: Node) -> Value | None:
    """Moving equal elements about gives equal elements."""
    u = uniform(n.operands[0])
    return None if u is None else full(rw, u, n.output.spec)


@equation("amax", "amin", "any", "all")
def extreme_of_uniform(rw: Rewriter, n: Node) -> Value | None:
    """The extreme of equal elements is that element (an empty reduction is left to raise or give its identity)."""
    (x,) = n.values
    u = uniform(x)
    return None if u is None or x.spec.numel == 0 or n.output.dtype is not x.dtype else full(rw, u, n.output.spec)


@equation("sum")
def sum_of_zeros(rw: Rewriter, n: Node) -> Value | None:
    """Zeros add up to zero; so does nothing at all."""
    (x,) = n.values
    return full(rw, 0, n.output.spec) if is_number(x, 0) or x.spec.numel == 0 else None


@equation("pad")
def pad_of_fill(rw: Rewriter, n: Node) -> Value | None:
    """Padding with what is there already."""
    (x,) = n.values
    u = uniform(x)
    fill = read(n.params["value"], x.dtype)
    return full(rw, fill, n.output.spec) if u is not None and is_number(u, fill) else None


# ---------------------------------------------------------------------------------------------------- arithmetic


@equation("mul", "div")
def times_one(rw: Rewriter, n: Node) -> Value | None:
    """x * 1 = x and x / 1 = x, for NaN, infinities and zeros too."""
    x, y = n.operands
    if is_number(y, 1):
        return as_result(rw, x, n)
    return as_result(rw, y, n) if n.primitive.name == "mul" and is_number(x, 1) else None


@equation("add", "sub")
def plus_zero(rw: Rewriter, n: Node) -> Value | None:
    """x + -0.0 = x and x - 0.0 = x; the other two signs turn -0.0 into 0.0. For integers any zero does."""
    x, y = n.operands
    if not n.output.dtype.is_floating_point:
        if uniform(y) == 0:
            return as_result(rw, x, n)
        return as_result(rw, y, n) if n.primitive.name == "add" and uniform(x) == 0 else None
    if is_number(y, -0.0 if n.primitive.name == "add" else 0.0):
        return as_result(rw, x, n)
    return as_result(rw, y, n) if n.primitive.name == "add" and is_number(x, -0.0) else None


@equation("mul")
def integer_times_zero(rw: Rewriter, n: Node) -> Value | None:
    """x * 0 = 0 where there is neither NaN nor infinity nor -0.0."""
    if n.output.dtype.is_floating_point or not any(uniform(x) == 0 for x in n.operands):
        return None
    return full(rw, 0, n.output.spec)


@equation("div")
def by_power_of_two(rw: Rewriter, n: Node) -> Value | None:
    """x / 2^k = x * 2^-k: both round the same real number. 2^-k must be normal, as targets differ on subnormal constants."""
    x, y = n.operands
    if not isinstance(x, Value) or isinstance(y, Value) or not n.output.dtype.is_floating_point:
        return None
    if y == 0 or not math.isfinite(y) or abs(math.frexp(y)[0]) != 0.5:
        return None
    least = {2: -14, 4: -126, 8: -1022}[n.output.dtype.itemsize]
    inverse = math.ldexp(math.copysign(1, y), 1 - math.frexp(y)[1])
    return rw.apply("mul", x, inverse) if least <= math.frexp(inverse)[1] - 1 <= -least else None


@equation("sub", "bitwise_xor")
def integer_minus_itself(rw: Rewriter, n: Node) -> Value | None:
    """x - x = 0 where there is neither NaN nor infinity."""
    x, y = n.operands
    return full(rw, 0, n.output.spec) if x is y and not n.output.dtype.is_floating_point else None


@equation(*INVOLUTIONS)
def twice_is_nothing(rw: Rewriter, n: Node) -> Value | None:
    """f(f(x)) = x. (`logical_not` gives bool: so must x be.)"""
    inner = made_by(n.operands[0], n.primitive.name)
    return None if inner is None else as_result(rw, inner.operands[0], n)


@equation(*IDEMPOTENT)
def twice_is_once(rw: Rewriter, n: Node) -> Value | None:
    """f(f(x)) = f(x)."""
    x = n.operands[0]
    return x if isinstance(x, Value) and made_by(x, n.primitive.name) is not None else None


@equation("abs")
def sign_dropped(rw: Rewriter, n: Node) -> Value | None:
    """|-x| = |x| (for the least integer too: negation wraps to itself)."""
    inner = made_by(n.operands[0], "neg")
    return None if inner is None else rw.apply("abs", *inner.operands)


@equation("add", "sub")
def plus_negation(rw: Rewriter, n: Node) -> Value | None:
    """x + -y = x - y and x - -y = x + y: IEEE subtraction is addition of the negation."""
    x, y = n.operands
    if (inner := made_by(y, "neg")) is not None:
        return rw.apply("sub" if n.primitive.name == "add" else "add", x, inner.operands[0])
    if n.primitive.name == "add" and (inner := made_by(x, "neg")) is not None:
        return rw.apply("sub", y, inner.operands[0])
    return None


@equation("mul")
def product_of_negations(rw: Rewriter, n: Node) -> Value | None:
    """-x * -y = x * y: signs are exclusive-ored."""
    x, y = (made_by(v, "neg") for v in n.operands)
    return None if x is None or y is None else rw.apply("mul", x.operands[0], y.operands[0])


@equation(*ABSORBING)
def of_itself(rw: Rewriter, n: Node) -> Value | None:
    """f(x, x) = x. (The logical ones give bool: so must x be.)"""
    x, y = n.operands
    return as_result(rw, x, n) if x is y else None


@equation("where")
def where_known(rw: Rewriter, n: Node) -> Value | None:
    """Equal branches need no condition, and a known condition takes its branch."""
    c, a, b = n.operands
    if a is b:
        return as_result(rw, a, n)
    u = uniform(c)
    return None if u is None else as_result(rw, a if u else b, n)


@equation("where")
def where_not(rw: Rewriter, n: Node) -> Value | None:
    """where(not c, a, b) = where(c, b, a)."""
    c, a, b = n.operands
    inner = made_by(c, "logical_not")
    if inner is None or not isinstance(inner.operands[0], Value) or inner.operands[0].dtype is not bool_:
        return None
    return rw.apply("where", inner.operands[0], b, a)


# --------------------------------------------------------------------------------------------------------- casts

_MANTISSA = {"float8_e4m3fn": 4, "float8_e5m2": 3, "float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
_EXPONENT = {"float8_e4m3fn": 4, "float8_e5m2": 5, "float16": 5, "bfloat16": 8, "float32": 8, "float64": 11}


def holds(b: dtype, a: dtype) -> bool:
    """Every value of `a` is a value of `b`, exactly."""
    if a is b or a.kind == "b":
        return True
    if b.kind == "b":
        return False
    bits_a = 8 * a.itemsize - (a.kind == "i")
    if a.kind == "f":
        return b.kind == "f" and _MANTISSA[b.name] >= _MANTISSA[a.name] and _EXPONENT[b.name] >= _EXPONENT[a.name]
    if b.kind == "f":
        return bits_a <= _MANTISSA[b.name]
    return 8 * b.itemsize - (b.kind == "i") >= bits_a and (b.kind == "i" or a.kind == "u")


@equation("cast")
def cast_to_itself(rw: Rewriter, n: Node) -> Value | None:
    """A cast to its own dtype."""
    (x,) = n.values
    return x if x.dtype is n.output.dtype else None


@equation("cast")
def cast_of_cast(rw: Rewriter, n: Node) -> Value | None:
    """a -> b -> c is a -> c where b holds all of a. By way of a float to an integer, c must hold all of a as well: out of
    range such casts are not defined, and integers wrap."""
    inner = made_by(n.operands[0], "cast")
    if inner is None:
        return None
    (x,) = inner.values
    a, b, c = x.dtype, inner.output.dtype, n.output.dtype
    if not holds(b, a) or (b.kind == "f" and c.kind in "iu" and not holds(c, a)):
        return None
    return x if c is a else rw.apply("cast", x, dtype=c)


# ------------------------------------------------------------------------------------------------------ movement


@equation("copy")
def copy_of_value(rw: Rewriter, n: Node) -> Value | None:
    """Values do not alias: a copy is the value."""
    (x,) = n.values
    return x


@equation("reshape", "expand", "permute", "slice", "flip", "pad")
def moved_nowhere(rw: Rewriter, n: Node) -> Value | None:
    """A movement that leaves every element where it is."""
    (x,) = n.values
    match n.primitive.name:
        case "reshape" | "expand" | "pad":  # of the same shape
            still = x.shape == n.output.shape and not any(n.params.get("lo", ()))
        case "permute":
            still = n.params["dims"] == tuple(range(x.ndim))
        case "slice":  # steps > 0 and ranges in bounds: all of every dimension
            still = x.shape == n.output.shape
        case _:  # flip
            still = all(x.shape[d] == 1 for d in n.params["dims"])
    return x if still else None


@equation("reshape")
def reshape_of_reshape(rw: Rewriter, n: Node) -> Value | None:
    """The last shape counts."""
    inner = made_by(n.operands[0], "reshape")
    return None if inner is None else reshaped(rw, next(inner.values), n.output.shape)


@equation("expand")
def expand_of_expand(rw: Rewriter, n: Node) -> Value | None:
    """The last shape counts."""
    inner = made_by(n.operands[0], "expand")
    return None if inner is None else rw.apply("expand", *inner.values, shape=n.output.shape)


@equation("permute")
def permute_of_permute(rw: Rewriter, n: Node) -> Value | None:
    """Permutations compose."""
    inner = made_by(n.operands[0], "permute")
    if inner is None:
        return None
    return rw.apply("permute", *inner.values, dims=tuple(inner.params["dims"][d] for d in n.params["dims"]))


@equation("grouped_mm")
def grouped_of_transposed(rw: Rewriter, n: Node) -> Value | None:
    """A product by groups reads a matrix that lies turned as it lies."""
    operands, turned = list(n.operands), list(n.params.get("turned", (False, False)))
    before = tuple(turned)
    for i in (0, 1):
        inner = made_by(operands[i], "permute")
        if inner is not None and inner.params["dims"] in ((1, 0), (0, 2, 1)):
            operands[i], turned[i] = inner.operands[0], not turned[i]
    return None if tuple(turned) == before else rw.apply("grouped_mm", *operands, turned=tuple(turned))


@equation("permute")
def permute_of_ones(rw: Rewriter, n: Node) -> Value | None:
    """Moving only dimensions of size 1 is a reshape (which needs no index arithmetic)."""
    (x,) = n.values
    rest = [d for d in n.params["dims"] if x.shape[d] != 1]
    return reshaped(rw, x, n.output.shape) if rest == sorted(rest) else None


@equation("flip")
def flip_of_flip(rw: Rewriter, n: Node) -> Value | None:
    """Dimensions flipped twice are not flipped."""
    inner = made_by(n.operands[0], "flip")
    if inner is None:
        return None
    dims = tuple(sorted(set(inner.params["dims"]) ^ set(n.params["dims"])))
    return rw.apply("flip", *inner.values, dims=dims) if dims else next(inner.values)


@equation("slice")
def slice_of_slice(rw: Rewriter, n: Node) -> Value | None:
    """start + step * (start' + step' * i): slices compose."""
    inner = made_by(n.operands[0], "slice")
    if inner is None or n.output.spec.numel == 0:
        return None
    starts, stops, steps = [], [], []
    for a, s, b, t, k in zip(
        inner.params["starts"], inner.params["steps"], n.params["starts"], n.params["steps"], n.output.shape, strict=True
    ):
        starts.append(a + s * b)
        steps.append(s * t)
        stops.append(starts[-1] + s * t * (k - 1) + 1)
    return rw.apply("slice", *inner.values, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


@equation("slice")
def slice_of_cat(rw: Rewriter, n: Node) -> Value | None:
    """A slice that lies in one piece of a concatenation is a slice of that piece."""
    inner = made_by(n.operands[0], "cat")
    if inner is None or n.output.spec.numel == 0:
        return None
    dim, begin = inner.params["dim"], 0
    starts, stops = list(n.params["starts"]), list(n.params["stops"])
    last = starts[dim] + n.params["steps"][dim] * (n.output.shape[dim] - 1) + 1
    for piece in inner.values:
        end = begin + piece.shape[dim]
        if begin <= starts[dim] and last <= end:
            starts[dim], stops[dim] = starts[dim] - begin, last - begin
            return rw.apply("slice", piece, starts=tuple(starts), stops=tuple(stops), steps=n.params["steps"])
        begin = end
    return None


@equation("cat")
def cat_of_nothing(rw: Rewriter, n: Node) -> Value | None:
    """Empty pieces add nothing, and one piece is itself."""
    pieces = [x for x in n.values if x.shape[n.params["dim"]] > 0] or [next(n.values)]
    if len(pieces) == len(n.operands) > 1:
        return None
    return pieces[0] if len(pieces) == 1 else rw.apply("cat", *pieces, dim=n.params["dim"])


@equation("slice_scatter")
def scatter_over_all(rw: Rewriter, n: Node) -> Value | None:
    """Writing over everything leaves what was written."""
    _, v = n.operands
    return v if isinstance(v, Value) and v.spec == n.output.spec else None


@equation("scatter", "scatter_add")
def scatter_of_one_a_row(rw: Rewriter, n: Node) -> Value | None:
    """With one index a row nothing is written twice: where(place == index, v, x), or x + v. (gather's derivative, mostly.)"""
    x, index, v = n.operands
    if not (isinstance(x, Value) and isinstance(index, Value) and isinstance(v, Value)) or index.dtype not in (int32, int64):
        return None
    dim = n.params["dim"]
    row = tuple(1 if d == dim else k for d, k in enumerate(x.shape))
    adds = n.primitive.name == "scatter_add"
    if not index.shape == v.shape == row or x.shape[dim] < 1 or (adds and x.dtype is bool_):
        return None
    places = rw.apply("iota", size=x.shape[dim], dtype=index.dtype)
    here = rw.apply("eq", reshaped(rw, places, tuple(k if d == dim else 1 for d, k in enumerate(x.shape))), index)
    return rw.apply("where", here, rw.apply("add", x, v) if adds else v, x)


# ---------------------------------------------------------------------------------------------------- reductions


@equation("sum", "prod", "amax", "amin", "any", "all")
def reduction_of_one(rw: Rewriter, n: Node) -> Value | None:
    """Over dimensions of size 1 a reduction is a reshape; a sum also turns -0.0 into 0.0, as it begins from 0.0."""
    (x,) = n.values
    if any(x.shape[d] != 1 for d in n.params["dim"]):
        return None
    y = reshaped(rw, x, n.output.shape)
    y = y if y.dtype is n.output.dtype else rw.apply("cast", y, dtype=n.output.dtype)
    return rw.apply("add", y, 0.0) if n.primitive.name == "sum" and y.dtype.is_floating_point else y


@equation("argmax", "argmin")
def place_of_one(rw: Rewriter, n: Node) -> Value | None:
    """Among one there is only the first."""
    (x,) = n.values
    return full(rw, 0, n.output.spec) if all(x.shape[d] == 1 for d in n.params["dim"]) else None
