"""Connectionist temporal classification (Graves et al., 2006): the probability of a sequence, over all its alignments in time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.taking import typed
from flame.nn.functional.loss import reduced
from flame.precision import precise
from flame.primitive import beside, registered
from flame.tensor import Tensor

GATHER, WHERE, EXP, LOG, MAXIMUM, PAD, SLICE = map(registered, ("gather", "where", "exp", "log", "maximum", "pad", "slice"))
NEVER = -1e30  #: the logarithm of a probability of zero, finite so that differences of two such are numbers


def _lengths(x: Any, n: int, what: str) -> list[int]:
    """Lengths as numbers on the host, one a sequence."""
    got = x.tolist() if isinstance(x, Tensor) else x
    got = [got] if isinstance(got, int) else list(got)
    if any(isinstance(v, bool) or not isinstance(v, int) for v in got):
        raise RuntimeError(f"{what} must be integral")
    if len(got) != n:
        raise RuntimeError(f"{what} must be of size batch_size, that is {n}, but got {len(got)}")
    return got


def _rows(targets: Tensor, lengths: list[int]) -> Tensor:
    """Targets [N, S], or one after the other [sum of lengths], as [N, longest]; what is behind a sequence is any class."""
    longest = max(lengths, default=0)
    if targets.ndim == 2:
        if longest > targets.shape[1]:
            raise RuntimeError(
                f"Expected tensor to have size at least {longest} at dimension 1, but got size {targets.shape[1]}"
            )
        return targets[:, :longest]
    if sum(lengths) > targets.shape[0]:
        raise RuntimeError(f"ctc_loss: targets has {targets.shape[0]} elements, but target_lengths add up to {sum(lengths)}")
    starts = np.cumsum([0, *lengths])[:-1].reshape(-1, 1)
    where = np.minimum(starts + np.arange(longest), max(targets.shape[0] - 1, 0))
    return PUBLIC["index_select"](targets, 0, PUBLIC["tensor"](where.reshape(-1))).reshape(len(lengths), longest)


def _later(alpha: Tensor, k: int) -> Tensor:
    """alpha [N, L] moved k places to the right."""
    n, length = alpha.shape
    cut = SLICE(alpha, starts=(0, 0), stops=(n, max(length - k, 0)), steps=(1, 1))
    return PAD(cut, lo=(0, min(k, length)), hi=(0, 0), value=NEVER)


@beside
@precise
@typed
def ctc_loss(
    log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int = 0, reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:  # fmt: skip
    """-log of the probability that log_probs [T, N, C] (or [T, C]), in the first `input_lengths` steps, spell the targets.

    targets [N, S] or one after the other [sum of target_lengths], classes other than `blank`. "mean" divides each loss by its
    target's length first. A target that can't be aligned has the loss inf and no gradient (0 with `zero_infinity`). The gradient
    is that of the loss by log_probs; for log_probs made by log_softmax it leads to the same gradients as PyTorch's.

    Raises RuntimeError for lengths and shapes that do not fit.
    """
    x = tensor_operand(log_probs, "ctc_loss", "log_probs")
    y = to_dtype(tensor_operand(targets, "ctc_loss", "targets"), dtypes.int64)
    if not x.dtype.is_floating_point or x.ndim not in (2, 3):
        raise RuntimeError(f"ctc_loss: expected floating log_probs [T, N, C] or [T, C], but got {x.dtype!r} {list(x.shape)}")
    single = x.ndim == 2
    if single:
        x = x.unsqueeze(1)
    steps, n, classes = x.shape
    if single and y.ndim == 1:
        y = y.unsqueeze(0)
    if y.ndim not in (1, 2) or (y.ndim == 2 and y.shape[0] != n):
        raise RuntimeError(f"ctc_loss: expected targets [{n}, S] or [sum of target_lengths], but got {list(targets.shape)}")
    if not 0 <= blank < classes:
        raise RuntimeError(f"blank must be in label range: got {blank} for {classes} classes")
    ins, outs = _lengths(input_lengths, n, "input_lengths"), _lengths(target_lengths, n, "target_lengths")
    for v in ins:
        if not 0 <= v <= steps:
            raise RuntimeError(f"Expected input_lengths to have value at most {steps}, but got value {v}")
    if any(v < 0 for v in outs):
        raise RuntimeError(f"Expected target_lengths to be at least 0, but got {outs}")
    labels = _rows(y, outs)
    longest = labels.shape[1]
    d = x.dtype
    wide = to_dtype(x, d.accumulator)

    # the target with blanks around each label, and where a blank between two labels may be skipped
    blanks = PUBLIC["full"]((n, longest), blank, dtype=dtypes.int64)
    around = PUBLIC["stack"]([blanks, labels], 2).reshape(n, 2 * longest)
    around = PAD(around, lo=(0, 0), hi=(0, 1), value=blank)
    before = PAD(around, lo=(0, 2), hi=(0, 0), value=blank)[:, : 2 * longest + 1]
    skip = (around != blank) & (around != before)
    emitted = GATHER(wide, around.unsqueeze(0).expand(steps, n, 2 * longest + 1), dim=2)
    emitted = MAXIMUM(emitted, NEVER)

    first = np.zeros((n, 2 * longest + 1), bool)
    first[:, :2] = True
    running = np.arange(steps)[:, None] < np.asarray(ins)[None, :]
    alpha = WHERE(PUBLIC["tensor"](first), emitted[0], NEVER) if steps else PUBLIC["full"](first.shape, NEVER, dtype=wide.dtype)
    start = np.where(np.arange(2 * longest + 1) == 0, 0.0, NEVER)
    if not all(ins):  # no time at all: only the empty target is spelled
        none = PUBLIC["tensor"](np.asarray(ins).reshape(-1, 1) == 0)
        alpha = WHERE(none, PUBLIC["tensor"](start, dtype=wide.dtype), alpha)
    for t in range(1, max(ins, default=0)):
        a, b, c = alpha, _later(alpha, 1), WHERE(skip, _later(alpha, 2), NEVER)
        top = MAXIMUM(MAXIMUM(a, b), c).detach()
        moved = top + LOG(EXP(a - top) + EXP(b - top) + EXP(c - top)) + emitted[t]
        moved = MAXIMUM(moved, NEVER)
        alpha = moved if running[t].all() else WHERE(PUBLIC["tensor"](running[t].reshape(-1, 1)), moved, alpha)
    ends = PUBLIC["tensor"]([[2 * v] for v in outs])
    last = GATHER(alpha, ends, dim=1).squeeze(1)
    if longest:
        also = PUBLIC["tensor"]([[max(2 * v - 1, 0)] for v in outs])
        other = WHERE(PUBLIC["tensor"]([v > 0 for v in outs]), GATHER(alpha, also, dim=1).squeeze(1), NEVER)
        top = MAXIMUM(last, other).detach()
        last = top + LOG(EXP(last - top) + EXP(other - top))
    impossible = last < NEVER / 2
    loss = to_dtype(WHERE(impossible, 0.0 if zero_infinity else math.inf, -last), d)
    if reduction == "mean":
        loss = loss / PUBLIC["tensor"]([float(max(v, 1)) for v in outs], dtype=d)
        return reduced(loss, "mean")
    loss = reduced(loss, reduction)
    return loss.squeeze(0) if single and reduction == "none" else loss
