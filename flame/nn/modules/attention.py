"""Attention with several heads as a module, on PyTorch's parameters."""

from __future__ import annotations

from typing import Any

from flame.nn import functional as F
from flame.nn import init
from flame.nn.modules.linear import NonDynamicallyQuantizableLinear, fresh
from flame.nn.modules.module import Module
from flame.tensor import Tensor


class MultiheadAttention(Module):
    """query [L, N, E] (or [N, L, E] with `batch_first`, or [L, E]) attends to key and value -> (output, weights or None)."""

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, add_bias_kv: bool = False,
        add_zero_attn: bool = False, kdim: int | None = None, vdim: int | None = None, batch_first: bool = False,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(
                f"embed_dim and num_heads must be greater than 0, got embed_dim={embed_dim} and num_heads={num_heads} instead"
            )
        if embed_dim % num_heads:
            raise AssertionError("embed_dim must be divisible by num_heads")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        self.head_dim, self.add_zero_attn = embed_dim // num_heads, add_zero_attn
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        make = lambda *shape: fresh(*shape, dtype=dtype, device=device)
        one = self._qkv_same_embed_dim
        self.register_parameter("in_proj_weight", make(3 * embed_dim, embed_dim) if one else None)
        self.register_parameter("q_proj_weight", None if one else make(embed_dim, embed_dim))
        self.register_parameter("k_proj_weight", None if one else make(embed_dim, self.kdim))
        self.register_parameter("v_proj_weight", None if one else make(embed_dim, self.vdim))
        self.register_parameter("in_proj_bias", make(3 * embed_dim) if bias else None)
        self.out_proj = NonDynamicallyQuantizableLinear(embed_dim, embed_dim, bias=bias, dtype=dtype, device=device)
        self.register_parameter("bias_k", make(1, 1, embed_dim) if add_bias_kv else None)
        self.register_parameter("bias_v", make(1, 1, embed_dim) if add_bias_kv else None)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for w in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if w is not None:
                init.xavier_uniform_(w)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        for b in (self.bias_k, self.bias_v):
            if b is not None:
                init.xavier_normal_(b)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        turn = self.batch_first and query.ndim == 3
        if turn:  # the same tensor stays the same, so that one product projects all three
            q = query.transpose(0, 1)  # type: ignore[attr-defined]
            k = q if key is query else key.transpose(0, 1)  # type: ignore[attr-defined]
            v = k if value is key else value.transpose(0, 1)  # type: ignore[attr-defined]
            query, key, value = q, k, v
        y, weights = F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads, self.in_proj_weight, self.in_proj_bias, self.bias_k, self.bias_v,
            self.add_zero_attn, self.dropout, self.out_proj.weight, self.out_proj.bias, self.training, key_padding_mask,
            need_weights, attn_mask, not self._qkv_same_embed_dim, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight,
            average_attn_weights=average_attn_weights, is_causal=is_causal,
        )  # fmt: skip
        return (y.transpose(0, 1) if turn else y), weights  # type: ignore[attr-defined]
