"""Every primitive keeps the promises of its record: one body over the registry, with the records' own samples.

Shape rule against result, meaning against an independent one, kernel spelling and index reading against the meaning,
derivative rules against differences; each in every dtype that the samples have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import flame.ops  # noqa: F401  (fills the registry)
from flame import dtypes
from flame.dtypes import dtype, from_numpy_dtype
from flame.ops.access import Choice, Contraction, Read, Reduction
from flame.ops.machine import BASIC, NumpyMachine
from flame.primitive import REGISTRY, Primitive, Spec

ALL = sorted(REGISTRY.values(), key=lambda p: p.name)
KINDS = {"elementwise", "reduce", "movement", "contract", "index", "create", "random", "opaque"}


def each(primitives: Any) -> Any:
    return pytest.mark.parametrize("p", list(primitives), ids=lambda p: p.name)


def spec_of(x: Any) -> Any:
    return Spec(x.shape, from_numpy_dtype(x.dtype)) if isinstance(x, np.ndarray) else x


def results(y: Any) -> tuple:
    return y if isinstance(y, tuple) else (y,)


def tolerance(d: dtype) -> float:
    return {"float64": 1e-11, "float32": 3e-5, "float16": 4e-3, "bfloat16": 3e-2}.get(d.name, 0.0)


def wide(x: Any) -> Any:
    return x.astype(np.float64) if isinstance(x, np.ndarray) and spec_of(x).dtype.kind == "f" else x


def assert_close(got: np.ndarray, want: np.ndarray, d: dtype, scale: float = 1.0) -> None:
    got, want = np.asarray(wide(got)), np.asarray(wide(want))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=tolerance(d) * scale, atol=tolerance(d) * scale)


# ------------------------------------------------------------------------------------------------------- the record's cells


@each(ALL)
def test_no_cell_is_empty_without_a_reason(p: Primitive) -> None:
    assert p.kind in KINDS
    assert p.samples is not None and next(p.samples(), None) is not None
    assert p.vjp is not None or p.refused.get("vjp")
    match p.kind:
        case "elementwise":
            assert p.scalar is not None
            assert p.scalar.define is not None or p.name in BASIC or p.name in ("cast", "bitcast")
        case "opaque":
            assert p.scalar is None and p.lower is None and (p.refused.get("scalar") or p.refused.get("lower"))
        case "reduce":
            assert isinstance(p.lower, Reduction)
        case _:
            assert p.lower is not None or p.refused.get("lower")
    for cell in p.refused:
        assert getattr(p, cell) is None, f"{cell} is there and refused"


def test_the_derivatives_asked_for_are_there() -> None:
    smooth = {p.name for p in ALL if p.vjp is not None}
    assert {"add", "mul", "div", "pow", "exp", "erf", "sum", "amax", "prod", "matmul", "conv", "gather", "window"} <= smooth
    assert {p.name for p in ALL if p.vjp is None} == {
        *("eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_xor logical_not nextafter".split()),
        *("bitwise_and bitwise_or bitwise_xor bitwise_not shift_left shift_right bitcast any all argmax argmin".split()),
        *"argsort iota philox_word random_bits gcd lcm searchsorted cummax_index cummin_index".split(),
        *"geqrf lu_pivots pivot_order ldl_factor xor_bits".split(),
        *"poisson_sample binomial_sample von_mises_sample gamma_slope".split(),
    }


# ------------------------------------------------------------------------------------------------------------ the meaning


@each(ALL)
def test_shape_rule_agrees_with_result(p: Primitive) -> None:
    for operands, params in p.samples():
        specs = results(p.infer(*map(spec_of, operands), **params))
        for spec, y in zip(specs, results(p.eager(*operands, **params)), strict=True):
            assert isinstance(y, np.ndarray)
            assert (y.shape, y.dtype) == (spec.shape, spec.dtype.numpy), (operands, params)
            assert p.view or y.flags.c_contiguous


def scattered(x: Any) -> Any:
    """The same values, neither contiguous nor in order in memory."""
    if not isinstance(x, np.ndarray):
        return x
    room = np.empty(tuple(2 * n + 1 for n in reversed(x.shape)), x.dtype).T
    view = room[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)] if x.ndim else room
    view[...] = x
    return view


@each(ALL)
def test_memory_layout_does_not_matter(p: Primitive) -> None:
    for operands, params in p.samples():
        before = [np.array(x) for x in operands]
        for a, b in zip(
            results(p.eager(*operands, **params)), results(p.eager(*map(scattered, operands), **params)), strict=True
        ):
            assert_close(b, a, spec_of(a).dtype, scale=0.1)
            assert p.view or (
                b.flags.c_contiguous and not any(np.shares_memory(b, x) for x in operands if isinstance(x, np.ndarray))
            )
        for x, was in zip(operands, before, strict=True):
            np.testing.assert_array_equal(x, was)  # operands are not written to


@each(p for p in ALL if p.kind != "random" and p.name not in ("bitcast", "philox_word", "nextafter"))
def test_every_float_dtype_means_what_float64_does(p: Primitive) -> None:
    for operands, params in p.samples():
        ds = {spec_of(x).dtype for x in operands if isinstance(x, np.ndarray)} | {params.get("dtype", dtypes.bool_)}
        narrowest = max((d for d in ds if d.kind == "f"), key=tolerance, default=None)
        if narrowest is None or narrowest is dtypes.float64:
            continue
        target = {k: dtypes.float64 if isinstance(v, dtype) and v.kind == "f" else v for k, v in params.items()}
        for y, want in zip(
            results(p.eager(*operands, **params)), results(p.eager(*map(wide, operands), **target)), strict=True
        ):
            if p.name in ("floor_divide", "trunc_divide", "remainder", "fmod", "frac"):  # a step may move by rounding
                close = np.isclose(wide(y), wide(want), rtol=tolerance(narrowest), atol=tolerance(narrowest))
                assert close.mean() > 0.9 if y.size else True
            else:
                assert_close(y, want, narrowest, scale=20 if p.name in ("pow", "tan", "cumprod", "prod") else 4)


def naive_conv(x: np.ndarray, w: np.ndarray, *, stride: Any, padding: Any, dilation: Any, groups: int) -> np.ndarray:
    """The definition, place by place."""
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], w.shape[2:], stride, dilation, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *out), x.dtype)
    for n, o in itertools.product(range(x.shape[0]), range(w.shape[0])):
        first = o // (w.shape[0] // groups) * w.shape[1]
        for t in np.ndindex(*out):
            at = [slice(i * s, i * s + d * (k - 1) + 1, d) for i, s, d, k in zip(t, stride, dilation, w.shape[2:], strict=True)]
            y[(n, o, *t)] = (x[(n, slice(first, first + w.shape[1]), *at)] * w[o]).sum(dtype=x.dtype)
    return y


def naive_gather(x: np.ndarray, index: np.ndarray, *, dim: int) -> np.ndarray:
    y = np.empty(index.shape, x.dtype)
    for at in np.ndindex(*index.shape):
        y[at] = x[at[:dim] + (index[at],) + at[dim + 1 :]]
    return y


def naive_scatter(x: np.ndarray, index: np.ndarray, src: np.ndarray, *, dim: int, add: bool) -> np.ndarray:
    y = x.copy()
    for at in np.ndindex(*index.shape):
        to = at[:dim] + (index[at],) + at[dim + 1 :]
        y[to] = y[to] + src[at] if add else src[at]
    return y


def naive_index_add(x: np.ndarray, index: np.ndarray, src: np.ndarray, *, dim: int) -> np.ndarray:
    y = np.moveaxis(x.copy(), dim, 0)
    rows = np.moveaxis(src.reshape(x.shape[:dim] + (index.size,) + x.shape[dim + 1 :]), dim, 0)
    for i, row in zip(index.flat, rows, strict=True):
        y[i] = y[i] + row
    return np.moveaxis(y, 0, dim)


def naive_cat(*xs: np.ndarray, dim: int) -> np.ndarray:
    rows = [row for x in xs for row in np.moveaxis(x, dim, 0)]
    return np.moveaxis(np.array(rows).reshape(len(rows), *np.moveaxis(xs[0], dim, 0).shape[1:]), 0, dim)


def naive_window(x: np.ndarray, *, dim: int, size: int, step: int, dilation: int) -> np.ndarray:
    x = np.moveaxis(x, dim, -1)
    starts = range(0, x.shape[-1] - (size - 1) * dilation, step)
    rows = np.array([x[..., s : s + (size - 1) * dilation + 1 : dilation] for s in starts])
    return np.moveaxis(rows, 0, dim)


def naive_window_grad(g: np.ndarray, one: int, *, shape: Any, dim: int, step: int, dilation: int) -> np.ndarray:
    y = np.zeros(shape, g.dtype)
    for at in np.ndindex(*g.shape):
        to = at[:dim] + (at[dim] * step + at[-1] * dilation,) + at[dim + 1 : -1]
        y[to] = y[to] + g[at]
    return y


def naive_digamma(x: np.ndarray) -> np.ndarray:
    h = 1e-5
    return np.vectorize(lambda v: (math.lgamma(v + h) - math.lgamma(v - h)) / (2 * h), otypes=[float])(x)


def each_element(f: Any) -> Any:
    return np.vectorize(f, otypes=[float])


def argument(f: Any) -> Any:
    def at(x: np.ndarray, *, dim: Any, keepdim: bool) -> np.ndarray:
        if len(dim) == 1:
            return np.asarray(f(x, axis=dim[0], keepdims=keepdim))
        return np.asarray(f(x)).reshape((1,) * x.ndim if keepdim else ())

    return at


def put(x: np.ndarray, v: np.ndarray, *indices: np.ndarray, dims: Any, accumulate: bool) -> np.ndarray:
    y = x.copy()
    where = tuple(indices[dims.index(d)] if d in dims else slice(None) for d in range(x.ndim))
    if accumulate:
        np.add.at(y, where, v)
    else:
        y[where] = v
    return y


#: what each primitive computes, said in another way than its record says it
MEANING: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda x: -x,
    "abs": lambda x: np.where(x < 0, -x, x),
    "square": lambda x: x * x,
    "reciprocal": lambda x: 1 / x,
    "sqrt": each_element(math.sqrt),
    "rsqrt": each_element(lambda v: 1 / math.sqrt(v)),
    "sign": np.sign,
    "floor_divide": lambda a, b: a // b,
    "trunc_divide": lambda a, b: np.trunc(np.asarray(a, np.float64) / b),
    "remainder": lambda a, b: a % b,
    "fmod": lambda a, b: np.vectorize(math.fmod, otypes=[float])(a, b),
    "pow": lambda a, b: np.vectorize(math.pow, otypes=[float])(a, b),
    "hypot": lambda a, b: np.vectorize(math.hypot, otypes=[float])(a, b),
    "maximum": lambda a, b: np.where(a > b, a, b),
    "minimum": lambda a, b: np.where(a < b, a, b),
    "fmax": lambda a, b: np.where(a > b, a, b),
    "fmin": lambda a, b: np.where(a < b, a, b),
    "relu": lambda x: np.where(x > 0, x, 0),
    "copysign": lambda a, b: np.vectorize(math.copysign, otypes=[float])(a, b),
    "floor": each_element(math.floor),
    "ceil": each_element(math.ceil),
    "trunc": each_element(math.trunc),
    "round": each_element(round),
    "frac": each_element(lambda v: math.modf(v)[0]),
    **{n: each_element(getattr(math, n)) for n in "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan".split()},
    **{n: each_element(getattr(math, n)) for n in "sinh cosh tanh asinh acosh atanh erf erfc lgamma".split()},
    "atan2": lambda a, b: np.vectorize(math.atan2, otypes=[float])(a, b),
    "sigmoid": lambda x: (np.tanh(x / 2) + 1) / 2,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "logical_and": lambda a, b: np.asarray(a) & b,
    "logical_or": lambda a, b: np.asarray(a) | b,
    "logical_xor": lambda a, b: np.asarray(a) ^ b,
    "logical_not": lambda a: ~a,
    "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b,
    "bitwise_xor": lambda a, b: a ^ b,
    "bitwise_not": lambda a: ~a,
    "where": lambda c, a, b: np.where(c, a, b),
    "copy": lambda x: x,
    "permute": lambda x, *, dims: np.einsum(x, list(range(x.ndim)), list(dims)),
    "reshape": lambda x, *, shape: np.array(list(x.flat), x.dtype).reshape(shape),
    "expand": lambda x, *, shape: x + np.zeros(shape, x.dtype),
    "slice": lambda x, *, starts, stops, steps: x[np.ix_(*map(range, starts, stops, steps))] if starts else x,
    "flip": lambda x, *, dims: x[tuple(slice(None, None, -1) if d in dims else slice(None) for d in range(x.ndim))],
    "pad": lambda x, *, lo, hi, value: np.pad(x, list(zip(lo, hi, strict=True)), constant_values=value) if lo else x,
    "cat": naive_cat,
    "window": naive_window,
    "window_grad": naive_window_grad,
    "sum": lambda x, *, dim, keepdim: np.einsum("...->...", x).sum(axis=dim, keepdims=keepdim),
    "prod": lambda x, *, dim, keepdim: x.prod(axis=dim, keepdims=keepdim),
    "amax": lambda x, *, dim, keepdim: x.max(axis=dim, keepdims=keepdim),
    "amin": lambda x, *, dim, keepdim: x.min(axis=dim, keepdims=keepdim),
    "any": lambda x, *, dim, keepdim: x.sum(axis=dim, keepdims=keepdim) > 0,
    "all": lambda x, *, dim, keepdim: (~x).sum(axis=dim, keepdims=keepdim) == 0,
    "argmax": argument(np.argmax),
    "argmin": argument(np.argmin),
    "matmul": lambda a, b: np.einsum("...mk,...kn->...mn", a, b),
    "contract": lambda a, b, *, spec: np.einsum(spec, a, b),
    "conv": naive_conv,
    "gather": naive_gather,
    "scatter": lambda x, i, s, *, dim: naive_scatter(x, i, s, dim=dim, add=False),
    "scatter_add": lambda x, i, s, *, dim: naive_scatter(x, i, s, dim=dim, add=True),
    "index_select": lambda x, i, *, dim: x[(slice(None),) * dim + (i,)],
    "index_add": naive_index_add,
    "index_nd": lambda x, *i, dims: x[tuple(i[dims.index(d)] if d in dims else slice(None) for d in range(x.ndim))],
    "index_put": put,
    "cumsum": lambda x, *, dim: np.cumsum(x, dim, dtype=np.int64 if x.dtype.kind in "bui" else None),
    "cumprod": lambda x, *, dim: np.cumprod(x, dim, dtype=np.int64 if x.dtype.kind in "bui" else None),
    "sort": lambda x, *, dim, descending: -np.sort(-1.0 * x, dim) if descending else np.sort(x, dim),
    "iota": lambda *, size, dtype: np.array(list(range(size)), dtype.numpy),
    "full": lambda value, *, shape, dtype: np.broadcast_to(np.asarray(value).astype(dtype.numpy), shape),
    "digamma": naive_digamma,
    "trigamma": lambda x: (naive_digamma(x + 1e-3) - naive_digamma(x - 1e-3)) / 2e-3,
}
_LOOSE = {"digamma": 1e4, "trigamma": 2e7}


@each(REGISTRY[n] for n in sorted(MEANING))
def test_meaning_against_an_independent_one(p: Primitive) -> None:
    for operands, params in p.samples():
        ds = [spec_of(x).dtype for x in operands if isinstance(x, np.ndarray)]
        if any(d.kind == "f" and d is not dtypes.float64 for d in ds + [params.get("dtype", dtypes.bool_)]):
            continue  # test_every_float_dtype_means_what_float64_does compares these with float64
        with np.errstate(all="ignore"):
            want = np.asarray(MEANING[p.name](*operands, **params))
        y = p.eager(*operands, **params)
        if y.dtype.kind in "ui":  # integers wrap
            want = want.astype(np.int64).astype(y.dtype)
        assert_close(y, want, spec_of(y).dtype, scale=_LOOSE.get(p.name, 1))


def random_convolutions(count: int) -> Iterator[tuple[np.ndarray, np.ndarray, dict]]:
    r = np.random.default_rng(3)
    while count:
        rank, groups, c, o = (int(v) for v in r.integers(1, 4, 4))
        how: dict[str, Any] = {
            "stride": tuple(int(v) for v in r.integers(1, 4, rank)) if r.random() < 0.5 else (1,) * rank,
            "padding": tuple((int(lo), int(hi)) for lo, hi in r.integers(0, 4, (rank, 2))),
            "dilation": tuple(int(v) for v in r.integers(1, 3, rank)),
            "groups": groups,
        }
        x = r.standard_normal((int(r.integers(1, 3)), c * groups, *r.integers(1, 7, rank)))
        w = r.standard_normal((o * groups, c, *r.integers(1, 4, rank)))
        reach = [d * (k - 1) for d, k in zip(how["dilation"], w.shape[2:], strict=True)]
        if all(n + lo + hi > d for n, (lo, hi), d in zip(x.shape[2:], how["padding"], reach, strict=True)):
            count -= 1
            yield x, w, how


def test_convolutions_of_every_kind() -> None:
    """Against the definition; and <conv(x, w), g> = <x, input_grad(g, w)> = <w, weight_grad(x, g)> for x and w of their own."""
    conv, back_x, back_w = (REGISTRY[n].eager for n in ("conv", "conv_input_grad", "conv_weight_grad"))
    r = np.random.default_rng(4)
    for x, w, how in random_convolutions(120):
        y = conv(x, w, **how)
        np.testing.assert_allclose(y, naive_conv(x, w, **how), atol=1e-10)
        g, v, u = (r.standard_normal(a.shape) for a in (y, x, w))
        np.testing.assert_allclose(
            (back_x(g, w, input_shape=x.shape, **how) * v).sum(), (conv(v, w, **how) * g).sum(), atol=1e-9
        )
        np.testing.assert_allclose(
            (back_w(x, g, weight_shape=w.shape, **how) * u).sum(), (conv(x, u, **how) * g).sum(), atol=1e-9
        )


def test_special_values() -> None:
    nan, inf = np.nan, np.inf

    def run(name: str, *xs: Any, **params: Any) -> list:
        return REGISTRY[name].eager(*[np.asarray(x) if isinstance(x, list) else x for x in xs], **params).tolist()

    assert run("relu", [-1.0, 2.0, nan])[:2] == [0.0, 2.0] and math.isnan(run("relu", [nan])[0])
    assert [math.copysign(1, x) for x in run("relu", [-0.0, 0.0, -1.0])] == [-1, 1, 1]  # -0.0 stays
    assert run("sign", [nan, -0.0, -inf]) == [0.0, 0.0, -1.0]
    assert all(map(math.isnan, run("maximum", [nan, 1.0], [1.0, nan])))
    assert run("fmax", [nan, 1.0, 2.0], [1.0, nan, 3.0]) == [1.0, 1.0, 3.0]
    assert run("fmin", [nan, 1.0, 2.0], [1.0, nan, 3.0]) == [1.0, 1.0, 2.0]
    assert run("round", [0.5, 1.5, 2.5, -0.5]) == [0.0, 2.0, 2.0, -0.0]
    assert run("div", [1.0, -1.0], [0.0, 0.0]) == [inf, -inf]
    assert run("floor_divide", [-7, 7, -7], [2, -2, -2]) == [-4, -4, 3]
    assert run("trunc_divide", [-7, 7, -7], [2, -2, -2]) == [-3, -3, 3]
    assert run("remainder", [-7, 7, -7], [2, -2, -2]) == [1, -1, -1]
    assert run("fmod", [-7, 7, -7], [2, -2, -2]) == [-1, 1, -1]
    assert run("argmax", [1.0, nan, 3.0, nan], dim=(0,), keepdim=False) == 1
    assert run("argmin", [1.0, 0.0, 0.0], dim=(0,), keepdim=False) == 1
    assert run("sort", [1.0, nan, 3.0], dim=0, descending=True)[1:] == [3.0, 1.0]
    assert run("argsort", [1, 0, 1, 0], dim=0, descending=True) == [0, 2, 1, 3]
    assert run("lgamma", [0.0, -1.0, 1.0]) == [inf, inf, 0.0]
    assert run("digamma", [0.0])[0] == -inf and math.isnan(run("digamma", [-2.0])[0])
    assert run("sum", np.full((4,), 200, np.uint8), dim=(0,), keepdim=False) == 800
    assert run("add", np.asarray([100], np.int8), 200) == [44]  # a number wraps into the tensor's dtype
    assert REGISTRY["sum"].eager(np.ones(4096, np.float16), dim=(0,), keepdim=False) == 4096  # in float16 it would stop at 2048


# ------------------------------------------------------------------------------------------ how kernels spell and read it

MACHINE = NumpyMachine()


@each(p for p in ALL if p.kind == "elementwise")
def test_kernel_spelling_computes_the_meaning(p: Primitive) -> None:
    for operands, params in p.samples():
        ds = [from_numpy_dtype(x.dtype) for x in operands if isinstance(x, np.ndarray)]
        if any(d.is_narrow_float for d in ds):
            continue  # storage only: kernels compute these in float32
        want = p.eager(*operands, **params)
        values = [x if isinstance(x, np.ndarray) else np.asarray(x, ds[-1].numpy) for x in operands]
        values = list(np.broadcast_arrays(*values)) if len(values) > 1 else values
        if p.name in ("cast", "bitcast"):
            got = getattr(MACHINE, p.name)(*values, params["dtype"])
        else:
            got = p.scalar.define(MACHINE, *values) if p.scalar.define else MACHINE.emit(p.name, *values)
        assert from_numpy_dtype(np.asarray(got).dtype) is from_numpy_dtype(want.dtype)
        assert_close(np.asarray(got), want, spec_of(want).dtype, scale=1)


class Reader:
    """The lowering in progress, in NumPy: an index is a tuple of integer arrays that broadcast."""

    def __init__(self, operands: tuple):
        self.operands = operands

    def load_index(self, operand: int, index: tuple, extent: int) -> np.ndarray:
        i = np.asarray(self.value(operand, index)).astype(np.int64)
        return np.where(i < 0, i + extent, i)

    def value(self, operand: int, index: tuple) -> Any:
        x = self.operands[operand]
        return x[index] if isinstance(x, np.ndarray) else np.asarray(x)

    def index_value(self, expr: Any, d: dtype) -> np.ndarray:
        return np.asarray(expr).astype(d.numpy)

    def const(self, value: Any, d: dtype) -> np.ndarray:
        return np.asarray(value).astype(d.numpy)

    def op(self, name: str, *values: Any, dtype: dtype) -> Any:
        p = REGISTRY[name]
        return p.scalar.define(MACHINE, *values) if p.scalar.define else MACHINE.emit(name, *values)

    def holds(self, choice: Choice) -> np.ndarray:
        out = np.asarray(True)
        for c in choice.conds:
            out = out & (np.asarray(c.expr) >= 0 if c.kind == "ge" else np.asarray(c.expr) == 0)
        return out

    def chosen(self, choice: Choice) -> np.ndarray:
        """The element, which must be in range wherever the conditions hold."""
        ok = self.holds(choice)
        x = self.operands[choice.operand]
        if not isinstance(x, np.ndarray):
            return np.asarray(x)
        if not x.size:
            assert not np.any(np.broadcast_arrays(ok, *choice.index)[0]), "an element of an empty operand is read"
            return np.zeros((), x.dtype)
        index = np.broadcast_arrays(ok, *map(np.asarray, choice.index))[1:]
        for i, n in zip(index, x.shape, strict=True):
            assert np.all(~np.broadcast_to(ok, i.shape) | ((0 <= i) & (i < n))), "read out of range"
        return x[tuple(np.clip(i, 0, n - 1) for i, n in zip(index, x.shape, strict=True))]


@each(p for p in ALL if p.kind in ("movement", "index", "contract", "create", "random") and p.lower is not None)
def test_kernel_reading_finds_the_meaning(p: Primitive) -> None:
    for operands, params in p.samples():
        want = p.eager(*operands, **params)
        if not want.size:
            continue
        index = tuple(np.ogrid[tuple(slice(n) for n in want.shape)])
        reader, specs = Reader(operands), tuple(map(spec_of, operands))
        d = spec_of(want).dtype
        if p.kind in ("create", "random"):
            got = p.lower(reader, index, **params)
        elif p.kind == "contract":
            if d.is_narrow_float:
                continue
            c = p.lower(index, *specs, **params)
            assert isinstance(c, Contraction)
            got = np.zeros(want.shape, want.dtype)
            with np.errstate(over="ignore"):
                for axes in np.ndindex(*c.extents):
                    left, right = c.left(axes), c.right(axes)
                    ok = reader.holds(left) & reader.holds(right)
                    factors = reader.chosen(left).astype(want.dtype) * reader.chosen(right).astype(want.dtype)
                    got = got + np.where(ok, factors, want.dtype.type(0))
        else:
            read = p.lower(reader, index, *specs, **params)
            assert isinstance(read, Read)
            got = np.full(want.shape, read.fill, want.dtype)
            taken = np.zeros(want.shape, bool)
            for choice in read.choices:
                ok = np.broadcast_to(reader.holds(choice), want.shape) & ~taken
                operand = operands[choice.operand]
                if isinstance(operand, np.ndarray) and not operand.size:
                    assert not ok.any()
                    continue
                got = np.where(ok, reader.chosen(Choice(choice.operand, choice.index, choice.conds)), got)
                taken |= ok
        assert_close(np.broadcast_to(got, want.shape), want, d)


# ------------------------------------------------------------------------------------------------------------------ errors

F, I, B = dtypes.float32, dtypes.int64, dtypes.bool_


@pytest.mark.parametrize(
    ("name", "operands", "params", "error", "words"),
    [
        ("add", (Spec((2,), F), Spec((3,), F)), {}, RuntimeError, "add: the size of tensor a"),
        ("add", (Spec((2,), F), Spec((2,), I)), {}, RuntimeError, "one dtype"),
        ("sub", (Spec((2,), B), Spec((2,), B)), {}, RuntimeError, '"sub" not implemented for flame.bool'),
        ("add", (1, 2), {}, TypeError, "expected a tensor"),
        ("add", (Spec((2,), I), 1.5), {}, RuntimeError, "can't be read as"),
        ("floor_divide", (Spec((2,), I), 0), {}, RuntimeError, "ZeroDivisionError"),
        ("pow", (Spec((2,), I), -1), {}, RuntimeError, "negative integer powers"),
        ("where", (Spec((2,), F), Spec((2,), F), 0), {}, RuntimeError, "boolean"),
        ("reshape", (Spec((2, 3), F),), {"shape": (4,)}, RuntimeError, r"shape '\[4\]' is invalid for input of size 6"),
        ("expand", (Spec((3,), F),), {"shape": (4,)}, RuntimeError, r"expanded size of the tensor \(4\) must match"),
        ("cat", (Spec((2, 3), F), Spec((2, 4), F)), {"dim": 0}, RuntimeError, "Sizes of tensors must match"),
        ("matmul", (Spec((2, 3), F), Spec((4, 5), F)), {}, RuntimeError, r"cannot be multiplied \(2x3 and 4x5\)"),
        ("amax", (Spec((0,), F),), {"dim": (0,), "keepdim": False}, IndexError, "non-zero size"),
        ("gather", (Spec((2,), F), Spec((2,), F)), {"dim": 0}, RuntimeError, "for index"),
        ("window", (Spec((2,), F),), {"dim": 0, "size": 3, "step": 1, "dilation": 1}, RuntimeError, "maximum size"),
        ("full", (1,), {"shape": (-1,), "dtype": F}, RuntimeError, "negative dimension"),
    ],
)
def test_shape_rules_refuse_in_words(name: str, operands: tuple, params: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        REGISTRY[name].infer(*operands, **params)


@pytest.mark.parametrize("bad", [3, -1, 100])
def test_positions_out_of_range_raise(bad: int) -> None:
    x, at, v = np.zeros((3, 2)), np.array([[0, bad]]), np.zeros((1, 2))
    with pytest.raises(IndexError, match=f"index {bad} is out of bounds for dimension 0 with size 3"):
        REGISTRY["gather"].eager(x, at, dim=0)
    for name in ("scatter", "scatter_add"):
        with pytest.raises(IndexError, match="out of bounds"):
            REGISTRY[name].eager(x, at, v, dim=0)
    if bad > 0:
        for name, operands, params in (
            ("index_select", (x, at), {"dim": 0}),
            ("index_add", (x, at, np.zeros((1, 2, 2))), {"dim": 0}),
            ("index_nd", (x, at), {"dims": (0,)}),
            ("index_put", (x, np.zeros((1, 2, 2)), at), {"dims": (0,), "accumulate": False}),
        ):
            with pytest.raises(IndexError, match="out of bounds"):
                REGISTRY[name].eager(*operands, **params)


def test_integer_division_by_zero_raises() -> None:
    for name in ("floor_divide", "trunc_divide", "remainder", "fmod"):
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            REGISTRY[name].eager(np.array([1, 2]), np.array([1, 0]))
    got = REGISTRY["pow"].eager(np.array([2, 1, -1, -1, 0]), np.array([-1, -2, -3, -2, 3]))
    assert got.tolist() == [0, 1, -1, 1, 0]  # (as in PyTorch: a reciprocal that is no integer is 0)


# ------------------------------------------------------------------------------------------------------------------ random


def test_philox_is_the_published_one() -> None:
    """The known answers that Random123 ships for philox4x32-10 with a zero counter and key."""
    words = REGISTRY["random_bits"].eager(0, 0, shape=(4,))
    assert [hex(w) for w in words] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


def test_draws_do_not_depend_on_how_they_are_cut() -> None:
    bits = REGISTRY["random_bits"].eager
    whole = bits(9, 3, shape=(5000,))
    parts = np.concatenate([bits(9, 3 + a, shape=(b - a,)) for a, b in itertools.pairwise((0, 1, 7, 4000, 4097, 5000))])
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(whole, REGISTRY["philox_word"].eager(9, np.arange(3, 5003)))
    assert abs(whole.mean() / 2**32 - 0.5) < 0.02 and len(np.unique(whole)) > 4990
