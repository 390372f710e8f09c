"""What the files of this folder share: how an elementwise record is written in one row, quiet NumPy, and sample operands.

A row names what the operation takes (`FLOAT`, `NUMBER`, ...), its meaning on NumPy arrays, its derivative rules and its
spelling in kernels; the shape rule and everything about element types is made here, once.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype
from flame.primitive import Primitive, Scalar, Spec, broadcast_shapes, register

#: kinds of element type (`dtype.kind`) that an operation takes
FLOAT, INTEGER, NUMBER, BITS, BOOL, ANY = "f", "ui", "uif", "bui", "b", "buif"
_IN_WORDS = {
    FLOAT: "floating-point tensors",
    INTEGER: "integer tensors",
    NUMBER: "integer or floating-point tensors",
    BITS: "integer or boolean tensors",
    BOOL: "boolean tensors (compare with 0 first)",
}
#: elementwise primitives that take complex tensors too; no kernel spells that
COMPLEX_TOO = frozenset(
    "add sub mul div neg square reciprocal sqrt rsqrt exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh "
    "tanh asinh acosh atanh pow eq ne where copy cast isnan isinf isfinite".split()
)


class _Quiet(threading.local):
    """NumPy's floating-point warnings off, for one call: `quiet.run(f, *operands)`.

    A context entered once a thread costs 0.2 us a call where `np.errstate` costs 2. Calls do not nest.
    """

    def __init__(self) -> None:
        context = copy_context()
        context.run(np.seterr, all="ignore")
        self.run = context.run


quiet = _Quiet()


def as_operand(x: Any, d: np.dtype) -> Any:
    """An operand of dtype `d`: arrays are left as they are, Python numbers become NumPy scalars (integers wrap)."""
    if isinstance(x, np.ndarray):
        return x
    if d.kind == "c":
        return d.type(x)
    if d.kind in "ui":
        width = 8 * d.itemsize
        x = int(x) & ((1 << width) - 1)
        return d.type(x - (1 << width) if d.kind == "i" and x >> (width - 1) else x)
    return d.type(x) if -60000.0 < x < 60000.0 else quiet.run(d.type, x)  # only conversions that overflow warn


def is_narrow(d: np.dtype) -> bool:
    """float16, bfloat16 (whose NumPy kind is V) or an 8-bit float."""
    return d.itemsize <= 2 and d.kind in "fV"


def widened(x: np.ndarray) -> np.ndarray:
    """A narrow float as float32."""
    return quiet.run(x.astype, np.float32)


def _widened(x: Any, narrow: np.dtype) -> Any:
    if isinstance(x, np.ndarray):
        return widened(x) if x.dtype == narrow else x
    return as_operand(x, np.dtype(np.float32))


def meaning(f: Callable[..., Any], *, ordered: bool = False) -> Callable[..., Any]:
    """The eager meaning made of a NumPy function: warnings off, C-contiguous, narrow floats computed in float32.

    `ordered`: f is a ufunc and is asked for a C-contiguous result, else the result is copied where it is not one. What is
    made has `f` as its attribute `numpy`, or what f itself has there.
    """
    kwargs = {"order": "C"} if ordered else {}

    def eager(*xs: Any) -> np.ndarray:
        like: Any = None
        numbers = False
        for x in xs:
            if isinstance(x, np.ndarray):
                like = x.dtype
            else:
                numbers = True
        if like.itemsize <= 2 and like.kind in "fV":
            out = quiet.run(f, *[_widened(x, like) for x in xs], **kwargs)
            if out.dtype == np.float32:
                out = quiet.run(out.astype, like)
        elif numbers and not (ordered and like.kind == "f"):  # a ufunc reads a Python number in the array's float dtype
            out = quiet.run(f, *[as_operand(x, like) for x in xs], **kwargs)
        elif ordered:
            out = quiet.run(f, *xs, order="C")
            return out if type(out) is np.ndarray else np.asarray(out)
        else:
            out = quiet.run(f, *xs)
        return out if isinstance(out, np.ndarray) and out.flags.c_contiguous else np.asarray(out, order="C")

    eager.numpy = getattr(f, "numpy", f)  # type: ignore[attr-defined]
    return eager


def infer_elementwise(name: str, takes: str, gives: dtype | None) -> Callable[..., Spec]:
    """The shape rule: operands broadcast, and share one dtype, which is of a kind in `takes`."""
    kinds = takes + "c" if name in COMPLEX_TOO else takes

    def infer(*operands: Spec | bool | int | float) -> Spec:
        d: dtype | None = None
        shapes = []
        for x in operands:
            if isinstance(x, Spec):
                if d is None:
                    d = x.dtype
                elif x.dtype is not d:
                    raise RuntimeError(f"{name}: expected operands of one dtype, but got {d} and {x.dtype}")
                shapes.append(x.shape)
        if d is None:
            raise TypeError(f"{name}: expected a tensor among its operands, but got {', '.join(map(repr, operands))}")
        if d.kind not in kinds:
            raise NotImplementedError(f'"{name}" not implemented for {d}: it takes {_IN_WORDS.get(takes, "real tensors")}')
        if d.kind not in "fc" and any(isinstance(x, float) for x in operands):
            raise RuntimeError(f"{name}: a float among its operands can't be read as {d}; cast the tensor first")
        return Spec(shapes[0] if len(shapes) == 1 else broadcast_shapes(*shapes, op=name), gives or d)

    return infer


def elementwise(
    name: str,
    takes: str,
    eager: Callable[..., Any],
    *,
    vjp: Sequence[Callable[..., Any] | None] | str,
    scalar: Callable[..., Any] | None = None,
    triton: str | None = None,
    opaque: str = "",
    gives: dtype | None = None,
    infer: Callable[..., Any] | None = None,
    samples: Callable[[], Iterator[tuple[tuple, dict]]],
    doc: str = "",
) -> Primitive:
    """Register an elementwise primitive.

    `eager` is a ufunc or a function of arrays; `vjp` a rule an operand, or the reason why there is none; `scalar` its
    definition on a machine (None: its name is a basic operation); `opaque`, if given, the reason why no kernel spells it.
    """
    refused = {"vjp": vjp} if isinstance(vjp, str) else {}
    if opaque:
        refused["scalar"] = opaque
    return register(
        name,
        kind="opaque" if opaque else "elementwise",
        infer=infer or infer_elementwise(name, takes, gives),
        eager=meaning(eager, ordered=isinstance(eager, np.ufunc) and eager.nout == 1),
        vjp=None if isinstance(vjp, str) else vjp,
        scalar=None if opaque else Scalar(scalar, triton),
        samples=samples,
        refused=refused,
        doc=doc,
    )


def draws(seed: str) -> np.random.Generator:
    """A generator of its own for each primitive, the same on every run."""
    return np.random.default_rng(zlib.crc32(seed.encode()))


def draw(r: np.random.Generator, d: dtype, shape: tuple[int, ...], low: float = -4.0, high: float = 4.0) -> np.ndarray:
    """A random array: floats in [low, high), integers in the part of it (times 3) that the dtype has, booleans."""
    if d.kind == "b":
        return r.integers(0, 2, shape).astype(np.bool_)
    if d.kind == "f":
        return np.asarray(r.uniform(low, high, shape)).astype(d.numpy)
    least = max(int(low * 3), 0) if d.kind == "u" else int(low * 3)
    return np.asarray(r.integers(least, max(int(high * 3), least + 1), shape)).astype(d.numpy)


def operands(takes: str, *ranges: tuple[float, float]) -> Callable[[], Iterator[tuple[tuple, dict]]]:
    """Samples of an elementwise primitive with an operand in each range: every dtype, shapes that broadcast, 0-d, empty."""

    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(takes + repr(ranges))
        n = len(ranges)
        for d in dtypes.ALL:
            if d.kind not in takes:
                continue
            shapes: list[list[tuple[int, ...]]] = [[(3, 5)] * n, [()] * n, [(0, 4)] * n, [(257,)] * n]
            if n > 1:
                shapes += [[(4, 1, 3)] + [(5, 1)] * (n - 1), [(1,)] * (n - 1) + [(2, 3)]]
            for given in shapes:
                yield tuple(draw(r, d, s, *span) for s, span in zip(given, ranges, strict=True)), {}
            for i in range(n if n > 1 else 0):  # a number in each place
                xs: list[Any] = [draw(r, d, (2, 3), *span) for span in ranges]
                xs[i] = draw(r, d, (), *ranges[i]).item()
                yield tuple(xs), {}

    return samples
