"""Attention over sequences of different lengths that lie one after the other in one tensor.

    varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, ...)       cu_seq_*: where each sequence begins, and the end

Every query sees a stretch of keys: those of its sequence, within its window. Where the stretch begins and ends is looked up for
each query, and for each key which queries see it; with that a kernel of a GPU walks the keys (and, for the gradient of keys, the
queries) of a tile's sequences alone, and a CPU computes no other scores. Names and meaning are those of PyTorch's module of this
name, whose kernels are those of Dao, "FlashAttention-2" (2023).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from flame.autograd.modes import no_grad
from flame.dtypes import float32, float64, int32
from flame.functions import PUBLIC
from flame.functions.promotion import tensor_operand, to_dtype
from flame.nn.attention.flex_attention import FLEX, with_slope
from flame.ops.flex import Modification, Step, V
from flame.primitive import Spec, force
from flame.tensor import Tensor

ARANGE, CAT, CLAMP, SEARCH = (PUBLIC[n] for n in ("arange", "cat", "clamp", "searchsorted"))


class AuxRequest(NamedTuple):
    """What `varlen_attn` returns besides its output."""

    lse: bool = False


def varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    return_aux: AuxRequest | None = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: Tensor | None = None, block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Any:  # fmt: skip
    """softmax(query @ key^T * scale) @ value within each sequence: query [T, H, D], key [S, K, D], value [S, K, E] -> [T, H, E].

    `cu_seq_q` and `cu_seq_k`, int32 [N + 1], say where each of N sequences begins in T and in S, and where the last one ends; what
    lies behind sees nothing and is 0. `window_size` (left, right): how many keys a query sees before and behind its own place, -1
    for all; the last query of a sequence has the place of its last key, so that (-1, 0) is causal. scale: None is 1 / sqrt(D).
    `enable_gqa` lets heads of the query share heads of key and value. `seqused_k`, int32 [N]: of each sequence only so many keys
    count. `block_table`, int32 [N, P] (with `seqused_k`; `cu_seq_k` may be None): key and value are pages [pages, size, K, D],
    and a row lists those of a sequence. With `return_aux=AuxRequest(lse=True)` also the logarithm of each row's sum of
    exponentials, float32 [H, T]. `max_q`, `max_k` and `num_splits` are taken and not needed: no sum over keys is ever split.

    Raises ValueError for heads and windows that do not fit, RuntimeError for dtypes and shapes that do not, and for `seqused_k`
    and `block_table` where a gradient is wanted.
    """
    q, k, v = (tensor_operand(t, "varlen_attn", n) for t, n in ((query, "query"), (key, "key"), (value, "value")))
    if len(window_size) != 2:
        raise ValueError(f"window_size must have length 2, got {len(window_size)}")
    dims = 3 if block_table is None else 4
    if q.ndim != 3 or k.ndim != dims or v.ndim != dims:
        raise RuntimeError(
            f"varlen_attn: expected a 3-D query and {dims}-D key and value, but got {list(q.shape)}, {list(k.shape)} and "
            f"{list(v.shape)}"
        )
    _check_heads(q.shape[1], k.shape[-2], enable_gqa)
    wants_gradient = force.grad and any(t.requires_grad for t in (q, k, v))
    starts, lengths = _keys_of(k, cu_seq_q, cu_seq_k, seqused_k, block_table, wants_gradient)
    if block_table is not None:
        k, v = (x[block_table].reshape(-1, *x.shape[2:]) for x in (k, v))  # type: ignore[index]
    first, last = _stretches(q.shape[0], cu_seq_q, starts, lengths, window_size)
    tables: tuple[Tensor, ...] = (first, last)
    if wants_gradient:  # (the stretches grow with the queries: what sees a key is a stretch as well)
        at = ARANGE(k.shape[0], dtype=int32, device=q.device)
        tables = (first, last, *(SEARCH(x, at, right=True, out_int32=True) for x in (last, first)))
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    modification = _seen(len(tables), float64 if q.dtype is float64 else float32)
    batch = [x.permute(1, 0, 2).unsqueeze(0) for x in (q, k, v)]  # type: ignore[attr-defined]
    y, lse = FLEX(*batch, *tables, modification=modification, scale=factor)
    y = y.squeeze(0).permute(1, 0, 2)
    return (y, lse.squeeze(0)) if return_aux is not None and return_aux.lse else y


def varlen_attn_out(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    return_aux: AuxRequest | None = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: Tensor | None = None, block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Any:  # fmt: skip
    """`varlen_attn`, written into `out`, which has the shape and dtype of its result. Has no derivatives."""
    with no_grad():
        y, lse = varlen_attn(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, return_aux=AuxRequest(True), scale=scale,
            window_size=window_size, enable_gqa=enable_gqa, seqused_k=seqused_k, block_table=block_table, num_splits=num_splits,
        )  # fmt: skip
        if tuple(out.shape) != tuple(y.shape) or out.dtype is not y.dtype:
            raise RuntimeError(
                f"varlen_attn_out: expected an out of {list(y.shape)} and {y.dtype!r}, but got {list(out.shape)} and {out.dtype!r}"
            )
        out.copy_(y)  # type: ignore[attr-defined]
    return (out, lse) if return_aux is not None and return_aux.lse else out


def _check_heads(queries: int, keys: int, shared: bool) -> None:
    if not shared and queries != keys:
        raise ValueError(
            f"Expect query and key/value to have the same number of heads but got Hq={queries} and Hkv={keys}. "
            "Try setting enable_gqa=True for GQA."
        )
    if shared and queries % keys:
        raise ValueError(
            f"Expect number of query heads to be a multiple of kv heads for GQA but got Hq={queries} and Hkv={keys}."
        )


def _expect(name: str, t: Tensor, shape: tuple[Any, ...]) -> None:
    """Raises unless `t` is int32 of that shape (None: any size)."""
    fits = t.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, t.shape))
    if t.dtype is not int32 or not fits:
        said = ", ".join("*" if n is None else str(n) for n in shape)
        raise RuntimeError(f"varlen_attn: expected {name} to be int32 [{said}], but got {t.dtype!r} {list(t.shape)}")


def _keys_of(
    k: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
    wants_gradient: bool,
) -> tuple[Any, Any]:
    """Where each sequence's keys begin, and how many count; one sequence of none behind them, [N + 1] both."""
    _expect("cu_seq_q", cu_seq_q, (None,))
    count = cu_seq_q.shape[0] - 1
    if count < 0:
        raise RuntimeError("varlen_attn: expected cu_seq_q to have one element more than there are sequences, but it has none")
    for name, t in (("seqused_k", seqused_k), ("block_table", block_table)):
        if t is not None:
            if wants_gradient:
                raise RuntimeError(f"{name} is an inference-only parameter.")
            _expect(name, t, (count,) if name == "seqused_k" else (count, None))
    if block_table is not None and seqused_k is None:
        raise RuntimeError("varlen_attn: block_table needs seqused_k, how many keys of each sequence count")
    if cu_seq_k is not None:
        _expect("cu_seq_k", cu_seq_k, (count + 1,))
    starts: Any = cu_seq_k
    if block_table is not None:
        starts = ARANGE(count + 1, dtype=int32, device=k.device) * (block_table.shape[1] * k.shape[1])
    elif starts is None:
        raise RuntimeError("varlen_attn: expected cu_seq_k, where each sequence's keys begin: only a block_table does without")
    used: Any = starts[1:] - starts[:-1] if seqused_k is None else seqused_k
    return starts, CAT([used, PUBLIC["zeros"](1, dtype=int32, device=k.device)])


def _stretches(count: Any, cu_seq_q: Any, starts: Any, lengths: Any, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The first key that each query sees, and the one after the last; both grow with the queries."""
    at = ARANGE(count, dtype=int32, device=cu_seq_q.device)
    one = SEARCH(cu_seq_q[1:], at, right=True)  # its sequence
    queries = CAT([cu_seq_q[1:] - cu_seq_q[:-1], cu_seq_q[:1] * 0])
    begin, keys = starts[one], lengths[one]
    place = at - cu_seq_q[one] + keys - queries[one]
    left, right = window
    first = begin if left < 0 else begin + CLAMP(place - left, min=0)
    last = keys if right < 0 else PUBLIC["minimum"](CLAMP(place + right + 1, min=0), keys)
    return to_dtype(first, int32), to_dtype(begin + last, int32)


def _seen(tables: int, d: Any) -> Modification:
    """s where first[i] <= j < last[i], and minus infinity elsewhere. With four tables also where not since[j] <= i < until[j],
    which says the same once more, for those who walk queries."""
    steps: list[Step] = []
    result = V(0)

    def step(name: str, *operands: Any, **params: Any) -> V:
        steps.append(Step(name, operands, tuple(params.items())))
        return V(4 + tables + len(steps))

    for n, (row, seen) in enumerate(((V(3), V(4)), (V(4), V(3)))[: tables // 2]):
        low, high = (step("index_nd", V(5 + 2 * n + side), row, dims=(0,)) for side in (0, 1))
        inside = step("bitwise_and", step("ge", seen, low), step("lt", seen, high))
        result = step("where", inside, result, -math.inf)
    specs = tuple(Spec((0,), int32) for _ in range(tables))
    return replace(with_slope(tuple(steps), result, specs, Spec((), d)), bounds=(0, 1))


__all__ = ["AuxRequest", "varlen_attn", "varlen_attn_out"]
