"""How a tensor is printed: as PyTorch prints it.

represent(t)         brackets over several lines, corners of large tensors, then what is not the default
set_printoptions()   how many digits, elements and columns: `options`, for all tensors of the process
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flame import dtypes
from flame.primitive import placement


@dataclass(slots=True)
class Options:
    """How tensors are printed."""

    precision: int = 4  #: digits after the point
    threshold: float = 1000  #: what has more elements shows its corners
    edgeitems: int = 3  #: how many of them along a dimension, at either end
    linewidth: int = 80
    sci_mode: bool | None = None  #: exponents; None: where sizes differ much


options = Options()
_PROFILES = {"default": (4, 1000, 3, 80), "short": (2, 1000, 2, 80), "full": (4, math.inf, 3, 80)}


def set_printoptions(
    precision: int | None = None, threshold: float | None = None, edgeitems: int | None = None, linewidth: int | None = None,
    profile: str | None = None, sci_mode: bool | None = None,
) -> None:  # fmt: skip
    """Set how tensors are printed: what is not None, over a profile ("default", "short", "full") if one is given. `sci_mode` is
    set by each call; None lets sizes decide. Raises ValueError for another profile, and for numbers that are none or negative.
    """
    if profile is not None and profile not in _PROFILES:
        raise ValueError(f"set_printoptions(): profile must be one of {', '.join(_PROFILES)}, but got {profile!r}")
    given = {"precision": precision, "threshold": threshold, "edgeitems": edgeitems, "linewidth": linewidth}
    for name, n in given.items():
        if n is not None and (isinstance(n, bool) or not isinstance(n, int | float) or not n >= 0):
            raise ValueError(f"set_printoptions(): {name} must be a number of at least 0, but got {n!r}")
    for i, (name, n) in enumerate(given.items()):
        if n is None and profile is not None:
            n = _PROFILES[profile][i]
        if n is not None:
            setattr(options, name, n)
    options.sci_mode = sci_mode


def get_printoptions() -> dict[str, Any]:
    """The options in force, by name."""
    return asdict(options)


@contextmanager
def printoptions(**given: Any) -> Iterator[None]:
    """`set_printoptions` meanwhile."""
    before = get_printoptions()
    set_printoptions(**given)
    try:
        yield
    finally:
        set_printoptions(**before)


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
        return _with(f"tensor({np.array2string(a, separator=', ', prefix='tensor(')}", extra)
    body = "[]" if not a.size else _laid_out(shown, _spelling(_corners(shown)), len("tensor("), a.size > options.threshold)
    return _with(f"tensor({body}", extra)


def _with(text: str, extra: list[str]) -> str:
    """The text, and what is not the default: on lines of its own where it does not fit."""
    length = len(text) - text.rfind("\n") + 1
    for word in extra:
        wraps = length + len(word) + 2 > options.linewidth
        text += (",\n" + " " * len("tensor(") if wraps else ", ") + word
        length = len("tensor(") + len(word) if wraps else length + len(word) + 2
    return text + ")"


def _corners(a: np.ndarray) -> np.ndarray:
    """The elements that are printed: of a large array, the first and last `edgeitems` along every dimension."""
    n = options.edgeitems
    if a.size > options.threshold:
        for d, size in enumerate(a.shape):
            if size > 2 * n:
                a = np.take(a, [*range(n), *range(size - n, size)], d)
    return a


def _spelling(a: np.ndarray) -> Callable[[Any], str]:
    """How each element is written, so that all take the same width: whole numbers, so many decimals, or exponents."""
    digits = options.precision
    if a.dtype.kind != "f":
        spell: Callable[[Any], str] = str
        width = max(len(str(x)) for x in a.reshape(-1).tolist())
    else:
        finite = a[np.isfinite(a) & (a != 0)]
        size = np.abs(finite)
        whole = bool((finite == np.ceil(finite)).all())
        wide = bool(size.size) and (size.max() / size.min() > 1000 or size.max() > 1e8 or (size.min() < 1e-4 and not whole))
        if options.sci_mode is not None:
            wide = options.sci_mode and bool(size.size)
        if wide:
            spell = lambda x: f"{x:.{digits}e}"
        elif whole:
            spell = lambda x: f"{x:.0f}" + "." * bool(np.isfinite(x))
        else:
            spell = lambda x: f"{x:.{digits}f}"
        width = max((len(spell(x)) for x in finite.tolist()), default=1)
    return lambda x: spell(x).rjust(width)


def _laid_out(a: np.ndarray, spell: Callable[[Any], str], indent: int, cut: bool) -> str:
    """Brackets, lines of at most `linewidth` characters, and an ellipsis in the middle of long dimensions if `cut`."""
    if a.ndim == 0:
        return spell(a.item())
    n = options.edgeitems
    long = cut and len(a) > 2 * n
    last = len(a) - n
    if a.ndim == 1:
        words = [spell(x) for x in (np.concatenate([a[:n], a[last:]]) if long else a).tolist()]
        if long:
            words.insert(n, " ...")
        each = max(1, int((options.linewidth - indent) // (len(words[0]) + 2)))
        lines = [", ".join(words[i : i + each]) for i in range(0, len(words), each)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
    parts = [_laid_out(x, spell, indent + 1, cut) for x in (*a[:n], *a[last:])] if long else []
    parts = parts or [_laid_out(x, spell, indent + 1, cut) for x in a]
    if long:
        parts.insert(n, "...")
    return "[" + ("," + "\n" * (a.ndim - 1) + " " * (indent + 1)).join(parts) + "]"
