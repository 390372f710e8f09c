"""Attention with several heads and their projections, on PyTorch's parameters."""

from __future__ import annotations

import math
from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import to_dtype
from flame.functions.taking import typed
from flame.nn.functional.activation import dropout, linear, softmax
from flame.nn.functional.normalisation import scaled_dot_product_attention
from flame.primitive import composite, registered
from flame.tensor import Tensor

WHERE, RESHAPE, PERMUTE, MATMUL = map(registered, ("where", "reshape", "permute", "matmul"))


def _additive(mask: Tensor | None, d: Any, name: str) -> Tensor | None:
    """A mask as what is added to the scores; where a boolean one is true, attending is forbidden."""
    if mask is None:
        return None
    if mask.dtype.kind == "b":
        return to_dtype(WHERE(mask, PUBLIC["full"]((), float("-inf"), dtype=d), 0.0), d)
    if mask.dtype.kind != "f":
        raise AssertionError(f"only bool and floating types of {name} are supported")
    return to_dtype(mask, d)


def _projected(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Queries, keys and values by one weight [3 E, E]: one product where all three are the same tensor."""
    if q is k and k is v:
        return list(linear(q, weight, bias).chunk(3, -1))  # type: ignore[attr-defined]
    ws = weight.chunk(3)  # type: ignore[attr-defined]
    bs = (None,) * 3 if bias is None else bias.chunk(3)  # type: ignore[attr-defined]
    return [linear(x, w, b) for x, w, b in zip((q, k, v), ws, bs, strict=True)]


@composite
@typed
def multi_head_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int, in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True, key_padding_mask: Tensor | None = None,
    need_weights: bool = True, attn_mask: Tensor | None = None, use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None, v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None, static_v: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """query [L, N, E], key and value [S, N, ...], or all without N -> output [L, N, E] and, if asked for, weights [N, L, S].

    Masks: key_padding_mask [N, S], attn_mask [L, S] or [N heads, L, S]; true forbids, floats are added.
    """
    if static_k is not None or static_v is not None:
        raise NotImplementedError("multi_head_attention_forward: static_k and static_v are not supported")
    single = query.ndim == 2
    if query.ndim not in (2, 3) or key.ndim != query.ndim or value.ndim != query.ndim:
        raise AssertionError(
            f"query should be unbatched 2D or batched 3D tensor and key and value of the same rank, but received {query.ndim}-D, "
            f"{key.ndim}-D and {value.ndim}-D"
        )
    if single:
        same = query is key and key is value
        query = query.unsqueeze(1)  # type: ignore[attr-defined]
        key, value = (query, query) if same else (key.unsqueeze(1), value.unsqueeze(1))  # type: ignore[attr-defined]
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)  # type: ignore[attr-defined]
    (length, n, e), (source, _, _) = query.shape, key.shape
    if e != embed_dim_to_check:
        raise AssertionError(f"was expecting embedding dimension of {embed_dim_to_check}, but got {e}")
    if e % num_heads:
        raise AssertionError(f"embed_dim {e} not divisible by num_heads {num_heads}")
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    width = e // num_heads

    if not use_separate_proj_weight:
        if in_proj_weight is None:
            raise AssertionError("use_separate_proj_weight is False but in_proj_weight is None")
        q, k, v = _projected(query, key, value, in_proj_weight, in_proj_bias)
    else:
        if q_proj_weight is None or k_proj_weight is None or v_proj_weight is None:
            raise AssertionError("use_separate_proj_weight is True but a projection weight is None")
        bs = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)  # type: ignore[attr-defined]
        ws = (q_proj_weight, k_proj_weight, v_proj_weight)
        q, k, v = (linear(x, w, b) for x, w, b in zip((query, key, value), ws, bs, strict=True))

    mask, padding = _additive(attn_mask, q.dtype, "attn_mask"), _additive(key_padding_mask, q.dtype, "key_padding_mask")
    if mask is not None:
        if mask.ndim == 2:
            if tuple(mask.shape) != (length, source):
                raise RuntimeError(f"The shape of the 2D attn_mask is {list(mask.shape)}, but should be {[length, source]}.")
            mask = RESHAPE(mask, shape=(1, 1, length, source))
        elif tuple(mask.shape) == (n * num_heads, length, source):
            mask = RESHAPE(mask, shape=(n, num_heads, length, source))
        else:
            raise RuntimeError(
                f"The shape of the attn_mask is {list(mask.shape)}, but should be {[length, source]} or "
                f"{[n * num_heads, length, source]}."
            )
    if padding is not None:
        if tuple(padding.shape) != (n, source):
            raise AssertionError(f"expecting key_padding_mask shape of {(n, source)}, but got {tuple(padding.shape)}")
        padding = RESHAPE(padding, shape=(n, 1, 1, source))
        mask = padding if mask is None else mask + padding

    heads = lambda x, size: PERMUTE(RESHAPE(x, shape=(size, n, num_heads, width)), dims=(1, 2, 0, 3))
    cat, extra = PUBLIC["cat"], 0
    if bias_k is not None and bias_v is not None:
        k, v = cat([k, bias_k.expand(1, n, e)]), cat([v, bias_v.expand(1, n, e)])  # type: ignore[attr-defined]
        extra += 1
    q, k, v = heads(q, length), heads(k, source + extra), heads(v, source + extra)
    if add_zero_attn:
        none = PUBLIC["zeros"](n, num_heads, 1, width, dtype=k.dtype, device=k.device)
        k, v = cat([k, none], 2), cat([v, none], 2)
        extra += 1
    if extra and mask is not None:
        mask = PUBLIC["constant_pad_nd"](mask, (0, extra), 0.0)
    rate = dropout_p if training else 0.0

    weights = None
    if need_weights:
        scores = MATMUL(q * (1.0 / math.sqrt(width)), k.transpose(-2, -1))  # type: ignore[attr-defined]
        weights = softmax(scores if mask is None else scores + mask, -1)
        weights = dropout(weights, rate) if rate else weights
        y = MATMUL(weights, v)
        weights = weights.mean(1) if average_attn_weights else weights  # type: ignore[attr-defined]
    else:
        y = scaled_dot_product_attention(q, k, v, mask, rate)
    y = linear(RESHAPE(PERMUTE(y, dims=(2, 0, 1, 3)), shape=(length, n, e)), out_proj_weight, out_proj_bias)
    if single:
        return y.squeeze(1), None if weights is None else weights.squeeze(0)  # type: ignore[attr-defined]
    return y, weights
