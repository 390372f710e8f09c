"""How a tensor is printed: as PyTorch prints it.

represent(t)    brackets over several lines, corners of large tensors, then what is not the default
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flame import dtypes
from flame.primitive import placement


def represent(t: Any) -> str:
    """The text of a tensor, whose values are read for it."""
    a = t._read()
    extra = []
    if a.size == 0 and a.ndim != 1:
        extra.append(f"size={tuple(a.shape)}")
    if placement.gpu and t.is_cuda:
        extra.append(f"device='{t.device}'")
    if t.dtype not in (dtypes.get_default_dtype(), dtypes.int64, dtypes.bool_):
        extra.append(f"dtype={t.dtype!r}")
    if t.grad_fn is not None:
        extra.append(f"grad_fn=<{t.grad_fn.name()}>")
    elif t.requires_grad:
        extra.append("requires_grad=True")
    shown = a.astype(np.float64) if t.dtype.kind == "f" else a
    if t.dtype.kind == "c":
        return f"tensor({np.array2string(a, separator=', ', prefix='tensor(')}{', '.join(['', *extra])})"
    body = "[]" if not a.size else _laid_out(shown, _spelling(_corners(shown)), len("tensor("), a.size > 1000)
    return f"tensor({', '.join([body, *extra])})"


def _corners(a: np.ndarray, n: int = 3) -> np.ndarray:
    """The elements that are printed: of a large array, the first and last `n` along every dimension."""
    if a.size > 1000:
        for d, size in enumerate(a.shape):
            if size > 2 * n:
                a = np.take(a, [*range(n), *range(size - n, size)], d)
    return a


def _spelling(a: np.ndarray) -> Callable[[Any], str]:
    """How each element is written, so that all take the same width: whole numbers, four decimals, or exponents."""
    if a.dtype.kind != "f":
        spell: Callable[[Any], str] = str
        width = max(len(str(x)) for x in a.reshape(-1).tolist())
    else:
        finite = a[np.isfinite(a) & (a != 0)]
        size = np.abs(finite)
        whole = bool((finite == np.ceil(finite)).all())
        wide = bool(size.size) and (size.max() / size.min() > 1000 or size.max() > 1e8 or (size.min() < 1e-4 and not whole))
        if wide:
            spell = lambda x: f"{x:.4e}"
        elif whole:
            spell = lambda x: f"{x:.0f}" + "." * bool(np.isfinite(x))
        else:
            spell = lambda x: f"{x:.4f}"
        width = max((len(spell(x)) for x in finite.tolist()), default=1)
    return lambda x: spell(x).rjust(width)


def _laid_out(a: np.ndarray, spell: Callable[[Any], str], indent: int, cut: bool) -> str:
    """Brackets, lines of at most 80 characters, and an ellipsis in the middle of long dimensions if `cut`."""
    if a.ndim == 0:
        return spell(a.item())
    long = cut and len(a) > 6
    if a.ndim == 1:
        words = [spell(x) for x in (np.concatenate([a[:3], a[-3:]]) if long else a).tolist()]
        if long:
            words.insert(3, " ...")
        each = max(1, (80 - indent) // (len(words[0]) + 2))
        lines = [", ".join(words[i : i + each]) for i in range(0, len(words), each)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
    parts = [_laid_out(x, spell, indent + 1, cut) for x in (*a[:3], *a[-3:])] if long else []
    parts = parts or [_laid_out(x, spell, indent + 1, cut) for x in a]
    if long:
        parts.insert(3, "...")
    return "[" + ("," + "\n" * (a.ndim - 1) + " " * (indent + 1)).join(parts) + "]"
