"""flame.testing: comparing tensors in tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flame import dtypes
from flame.functions import PUBLIC
from flame.functions.creation import tensor
from flame.tensor import Tensor

_TOLERANCES = {
    "float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float32": (1.3e-6, 1e-5), "float64": (1e-7, 1e-7),
    "complex64": (1.3e-6, 1e-5), "complex128": (1e-7, 1e-7),
}  # fmt: skip


def _values(t: Tensor) -> np.ndarray:
    a = t.detach()._read()
    wide = np.complex128 if a.dtype.kind == "c" else np.float64 if t.dtype.kind == "f" else a.dtype
    return a.astype(wide)


def assert_close(
    actual: Any,
    expected: Any,
    *,
    allow_subclasses: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = False,
    check_device: bool = True,
    check_dtype: bool = True,
    check_layout: bool = True,
    check_stride: bool = False,
    msg: str | Callable[[str], str] | None = None,
) -> None:
    """Raise AssertionError unless |actual - expected| <= atol + rtol * |expected| for every element.

    Takes tensors, arrays, numbers, and sequences and mappings of these. The tolerances are by dtype where they are not given
    (both or neither must be). Raises ValueError for one tolerance alone, TypeError for things that can't be compared.
    """
    if (rtol is None) != (atol is None):
        raise ValueError(
            f"rtol and atol must both be specified or both be unspecified, but got no {'rtol' if rtol is None else 'atol'}"
        )
    try:
        _compare(actual, expected, "", rtol, atol, equal_nan, check_dtype, check_stride, allow_subclasses)
    except AssertionError as e:
        text = str(e)
        raise AssertionError(text if msg is None else msg(text) if callable(msg) else msg) from None


def _compare(a: Any, b: Any, at: str, rtol: Any, atol: Any, nan: bool, dtype: bool, stride: bool, subclasses: bool) -> None:
    more = (rtol, atol, nan, dtype, stride, subclasses)
    where = f"\n\nThe failure occurred for item {at}" if at else ""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if set(a) != set(b):
            raise AssertionError(
                f"The keys of the mappings do not match: {sorted(map(str, a))} and {sorted(map(str, b))}{where}"
            )
        for k in a:
            _compare(a[k], b[k], f"{at}[{k!r}]", *more)
        return
    plain = lambda v: isinstance(v, Sequence) and not isinstance(v, str)
    if plain(a) and plain(b):
        if len(a) != len(b):
            raise AssertionError(f"The length of the sequences mismatch: {len(a)} != {len(b)}{where}")
        for k, (v, w) in enumerate(zip(a, b, strict=True)):
            _compare(v, w, f"{at}[{k}]", *more)
        return
    if a is None or b is None:
        if a is not b:
            raise AssertionError(f"None mismatch: {a!r} is not {b!r}{where}")
        return
    if not subclasses and type(a) is not type(b):
        raise TypeError(f"No comparison pair was able to handle inputs of type {type(a)} and {type(b)}.")
    numbers = not isinstance(a, Tensor | np.ndarray) and not isinstance(b, Tensor | np.ndarray)
    what = "Scalars" if numbers else "Tensor-likes"
    xs = []
    for v in (a, b):
        if not isinstance(v, Tensor | np.ndarray | np.generic | bool | int | float | complex):
            raise TypeError(f"No comparison pair was able to handle inputs of type {type(a)} and {type(b)}.")
        if numbers:
            d = dtypes.bool_ if isinstance(v, bool) else dtypes.int64 if isinstance(v, int) else None
            xs.append(tensor(v, dtype=d or (dtypes.float64 if isinstance(v, float) else None)))
        else:
            xs.append(v if isinstance(v, Tensor) else tensor(v))
    x, y = xs
    if x.shape != y.shape:
        raise AssertionError(f"The values for attribute 'shape' do not match: {x.shape} != {y.shape}.{where}")
    if dtype and x.dtype is not y.dtype and not numbers:
        raise AssertionError(f"The values for attribute 'dtype' do not match: {x.dtype!r} != {y.dtype!r}.{where}")
    if stride and x.stride() != y.stride():
        raise AssertionError(f"The values for attribute 'stride()' do not match: {x.stride()} != {y.stride()}.{where}")
    r, t = (rtol, atol) if rtol is not None else tuple(map(max, *(_TOLERANCES.get(v.dtype.name, (0.0, 0.0)) for v in xs)))
    p, q = _values(x), _values(y)
    if p.dtype != q.dtype:
        p, q = p.astype(np.float64), q.astype(np.float64)
    if p.dtype.kind == "b":
        p, q = p.astype(np.int64), q.astype(np.int64)
    with np.errstate(all="ignore"):
        same = (p == q) | (nan & np.isnan(p) & np.isnan(q)) if p.dtype.kind in "fc" else p == q
        apart = np.abs(p - q)
        ok = same | (np.isfinite(p) & np.isfinite(q) & (apart <= t + r * np.abs(q)))
    if ok.all():
        return
    wrong = ~ok
    worst = np.where(wrong, np.where(np.isnan(apart), np.inf, apart), -1)
    with np.errstate(all="ignore"):
        relative = np.where(wrong, np.where(np.isnan(apart / np.abs(q)), np.inf, apart / np.abs(q)), -1)
    i, j = (tuple(int(k) for k in np.unravel_index(v.argmax(), v.shape)) for v in (worst, relative))
    exact = r == 0 and t == 0
    head = f"{what} are not {'equal' if exact else 'close'}!"
    if p.ndim == 0 and numbers:
        raise AssertionError(f"{head}\n\nExpected {b} but got {a}.\nAbsolute difference: {apart} (up to {t} allowed)\n"
                             f"Relative difference: {relative} (up to {r} allowed){where}")  # fmt: skip
    raise AssertionError(
        f"{head}\n\nMismatched elements: {int(wrong.sum())} / {wrong.size} ({100 * wrong.mean():.1f}%)\n"
        f"Greatest absolute difference: {apart[i]} at index {i} (up to {t} allowed)\n"
        f"Greatest relative difference: {relative[j]} at index {j} (up to {r} allowed){where}"
    )


def make_tensor(
    *shape: Any, dtype: Any, device: Any = "cpu", low: float | None = None, high: float | None = None,
    requires_grad: bool = False, noncontiguous: bool = False, exclude_zero: bool = False,
) -> Tensor:  # fmt: skip
    """A tensor of random elements in [low, high): by default [-9, 9), [0, 10) for unsigned, any for booleans."""
    s = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    if dtype.kind == "b":
        t = PUBLIC["randint"](0, 2, s, device=device).to(dtype)
    elif dtype.kind in "ui":
        t = PUBLIC["randint"](
            int(-9 if low is None and dtype.kind == "i" else low or 0), int(10 if high is None else high), s
        ).to(dtype)
    else:
        a, b = -9.0 if low is None else low, 9.0 if high is None else high
        t = (PUBLIC["rand"](s, dtype=dtypes.float64) * (b - a) + a).to(dtype)
    if exclude_zero:
        t = PUBLIC["where"](t == 0, PUBLIC["ones_like"](t), t)
    if noncontiguous and t.numel() > 1:
        t = PUBLIC["repeat_interleave"](t, 2, -1)[..., ::2]
    return t.requires_grad_() if requires_grad else t
