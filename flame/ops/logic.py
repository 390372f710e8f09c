"""The elementwise primitives that decide and convert: comparisons, logic, bits, selection, copies and casts, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import bool_
from flame.dtypes import dtype as DType
from flame.ops.declare import (
    ANY,
    BITS,
    BOOL,
    FLOAT,
    INTEGER,
    as_operand,
    draw,
    draws,
    elementwise,
    infer_elementwise,
    is_narrow,
    quiet,
    widened,
)
from flame.ops.declare import operands as sampled
from flame.primitive import Primitive, Scalar, Spec, broadcast_shapes, register

_STEP = "its result does not vary smoothly with its operands"
_INTEGERS = "it takes integers and booleans only"
_floats = sampled(FLOAT, (-4, 4))

# ---------------------------------------------------------------------------------------------- comparisons and logic


def _comparison(name: str, f: np.ufunc) -> Primitive:
    return elementwise(name, ANY, f, vjp=_STEP, gives=bool_, samples=sampled(ANY, (-4, 4), (-4, 4)))


eq: Primitive = _comparison("eq", np.equal)
ne: Primitive = _comparison("ne", np.not_equal)
lt: Primitive = _comparison("lt", np.less)
le: Primitive = _comparison("le", np.less_equal)
gt: Primitive = _comparison("gt", np.greater)
ge: Primitive = _comparison("ge", np.greater_equal)

isnan: Primitive = elementwise(
    "isnan", FLOAT, np.isnan, vjp=_STEP, gives=bool_, scalar=lambda m, x: m.ne(x, x), samples=_floats
)
isinf: Primitive = elementwise(
    "isinf", FLOAT, np.isinf, vjp=_STEP, gives=bool_, scalar=lambda m, x: m.eq(m.abs(x), math.inf), samples=_floats
)
isfinite: Primitive = elementwise(
    "isfinite", FLOAT, np.isfinite, vjp=_STEP, gives=bool_, scalar=lambda m, x: m.lt(m.abs(x), math.inf), samples=_floats
)


def _logic(name: str, f: np.ufunc, arity: int, scalar: Callable[..., Any] | None = None) -> Primitive:
    return elementwise(name, BOOL, f, vjp=_INTEGERS, gives=bool_, scalar=scalar, samples=sampled(BOOL, *[(0, 2)] * arity))


logical_and: Primitive = _logic("logical_and", np.logical_and, 2)
logical_or: Primitive = _logic("logical_or", np.logical_or, 2)
logical_xor: Primitive = _logic("logical_xor", np.logical_xor, 2, lambda m, a, b: m.ne(a, b))
logical_not: Primitive = _logic("logical_not", np.logical_not, 1)


def _bits(name: str, f: np.ufunc, arity: int = 2, takes: str = BITS, high: float = 4) -> Primitive:
    return elementwise(name, takes, f, vjp=_INTEGERS, samples=sampled(takes, *[(-4, 4), (0, high)][:arity]))


bitwise_and: Primitive = _bits("bitwise_and", np.bitwise_and)
bitwise_or: Primitive = _bits("bitwise_or", np.bitwise_or)
bitwise_xor: Primitive = _bits("bitwise_xor", np.bitwise_xor)
bitwise_not: Primitive = _bits("bitwise_not", np.bitwise_not, 1)
shift_left: Primitive = _bits("shift_left", np.left_shift, 2, INTEGER, 7 / 3)
shift_right: Primitive = _bits("shift_right", np.right_shift, 2, INTEGER, 7 / 3)

# ---------------------------------------------------------------------------------------- selection, copies and casts

_branches = infer_elementwise("where", ANY, None)


def _where_infer(condition: Spec, a: Any, b: Any) -> Spec:
    if not isinstance(condition, Spec) or condition.dtype is not bool_:
        raise RuntimeError(f"where expected condition to be a boolean tensor, but got {condition}")
    spec = _branches(a, b)
    return Spec(broadcast_shapes(condition.shape, spec.shape, op="where"), spec.dtype)


def _where_eager(condition: np.ndarray, a: Any, b: Any) -> np.ndarray:
    d = (a if isinstance(a, np.ndarray) else b).dtype
    return np.asarray(np.where(condition, as_operand(a, d), as_operand(b, d)), order="C")


def _where_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("where")
    for d in dtypes.ALL:
        for c, a, b in (((3, 5),) * 3, ((),) * 3, ((0, 4),) * 3, ((2, 1), (3,), (2, 3)), ((4,), (2, 1), (1,))):
            yield (draw(r, bool_, c), draw(r, d, a), draw(r, d, b)), {}
        yield (draw(r, bool_, (2, 3)), draw(r, d, (2, 3)), draw(r, d, ()).item()), {}
        yield (draw(r, bool_, (2, 3)), draw(r, d, ()).item(), draw(r, d, (2, 1))), {}


where: Primitive = register(
    "where",
    kind="elementwise",
    infer=_where_infer,
    eager=_where_eager,
    vjp=(None, lambda g, _y, c, _a, _b: where(c, g, 0.0), lambda g, _y, c, _a, _b: where(c, 0.0, g)),
    scalar=Scalar(),
    samples=_where_samples,
    doc="where(condition, a, b): a where the condition holds, else b.",
)

copy: Primitive = register(
    "copy",
    kind="elementwise",
    infer=infer_elementwise("copy", ANY, None),
    eager=lambda x: np.array(x, order="C"),
    vjp=(lambda g, _y, _x: g,),
    scalar=Scalar(lambda m, x: x),
    samples=sampled(ANY, (-4, 4)),
    doc="The same values in memory of their own.",
)


transfer: Primitive = register(
    "transfer",
    kind="opaque",
    infer=lambda x, *, device, source: x,
    eager=lambda x, *, device, source: np.array(x, order="C"),
    vjp=(lambda g, _y, _x, *, device, source: transfer(g, device=source, source=device),),
    refused={"lower": "a move between devices is a copy by the driver"},
    samples=lambda: ((operands, {"device": "cpu", "source": "cpu"}) for operands, _ in sampled(ANY, (-4, 4))()),
    doc="transfer(x, *, device, source): the same values in the memory of another device.",
)


def _cast_eager(x: np.ndarray, *, dtype: DType) -> np.ndarray:
    if is_narrow(x.dtype) and dtype.kind != "f":
        x = widened(x)
    if x.dtype.kind == "c" and dtype.kind != "c":
        x = x.real if dtype.kind != "b" else x != 0
    if dtype in dtypes.FLOAT8:
        x = widened(x)
    return quiet.run(x.astype, dtype.numpy, order="C")


def _cast_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("cast")
    for source in dtypes.ALL:
        for target in dtypes.ALL:
            low = 0.0 if target.kind == "u" else -4.0  # what a negative float becomes in an unsigned dtype is undefined
            for shape in ((3, 5), (), (0, 2)):
                yield (draw(r, source, shape, low),), {"dtype": target}


cast: Primitive = register(
    "cast",
    kind="elementwise",
    infer=lambda x, *, dtype: Spec(x.shape, dtype),
    eager=_cast_eager,
    vjp=(lambda g, _y, _x, *, dtype: cast(g, dtype=_x.dtype),),
    scalar=Scalar(),
    samples=_cast_samples,
    doc="cast(x, *, dtype): floats to integers truncate (undefined out of range); to bool is `!= 0`.",
)


def _bitcast_infer(x: Spec, *, dtype: DType) -> Spec:
    if dtype.itemsize != x.dtype.itemsize or "b" in (dtype.kind, x.dtype.kind):
        raise RuntimeError(f"bitcast: {x.dtype} can't be read as {dtype}: both must have one width, and neither be bool")
    return Spec(x.shape, dtype)


def _bitcast_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("bitcast")
    everything = [d for d in dtypes.ALL + dtypes.BITS if d.kind != "b"]
    for source in everything:
        for target in everything:
            if source.itemsize == target.itemsize:
                yield (draw(r, source, (3, 5), 0.1),), {"dtype": target}


bitcast: Primitive = register(
    "bitcast",
    kind="elementwise",
    infer=_bitcast_infer,
    eager=lambda x, *, dtype: np.ascontiguousarray(x).view(dtype.numpy).reshape(x.shape),
    scalar=Scalar(),
    samples=_bitcast_samples,
    refused={"vjp": "bits have no derivative"},
    doc="bitcast(x, *, dtype): the same bits read as another dtype of the same width.",
)
