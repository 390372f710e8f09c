"""T5's attention with buckets of relative positions, its norm without means, and a tied encoder and decoder stack."""

import math

import torch
import torch.nn as nn


class T5LayerNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in [torch.float16, torch.bfloat16]:
            hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states


class T5Attention(nn.Module):
    def __init__(self, d_model=8, d_kv=4, n_heads=2, num_buckets=8, max_distance=16, is_decoder=False, has_bias=False):
        super().__init__()
        self.is_decoder, self.has_bias = is_decoder, has_bias
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.n_heads, self.d_kv, self.inner_dim = n_heads, d_kv, n_heads * d_kv
        for name in ("q", "k", "v"):
            setattr(self, name, nn.Linear(d_model, self.inner_dim, bias=False))
        self.o = nn.Linear(self.inner_dim, d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(num_buckets, n_heads)

    @staticmethod
    def _relative_position_bucket(relative_position, bidirectional=True, num_buckets=32, max_distance=128):
        relative_buckets = 0
        if bidirectional:
            num_buckets //= 2
            relative_buckets += (relative_position > 0).to(torch.long) * num_buckets
            relative_position = torch.abs(relative_position)
        else:
            relative_position = -torch.min(relative_position, torch.zeros_like(relative_position))
        max_exact = num_buckets // 2
        is_small = relative_position < max_exact
        relative_position_if_large = max_exact + (
            torch.log(relative_position.float() / max_exact) / math.log(max_distance / max_exact) * (num_buckets - max_exact)
        ).to(torch.long)
        relative_position_if_large = torch.min(
            relative_position_if_large, torch.full_like(relative_position_if_large, num_buckets - 1)
        )
        relative_buckets += torch.where(is_small, relative_position, relative_position_if_large)
        return relative_buckets

    def compute_bias(self, query_length, key_length):
        device = self.relative_attention_bias.weight.device
        context_position = torch.arange(query_length, dtype=torch.long, device=device)[:, None]
        memory_position = torch.arange(key_length, dtype=torch.long, device=device)[None, :]
        bucket = self._relative_position_bucket(
            memory_position - context_position, not self.is_decoder, self.num_buckets, self.max_distance
        )
        return self.relative_attention_bias(bucket).permute([2, 0, 1]).unsqueeze(0)

    def forward(self, hidden_states, mask=None, key_value_states=None, position_bias=None):
        batch_size, seq_length = hidden_states.shape[:2]
        source = hidden_states if key_value_states is None else key_value_states
        shape = lambda states: states.view(batch_size, -1, self.n_heads, self.d_kv).transpose(1, 2)
        query, key, value = shape(self.q(hidden_states)), shape(self.k(source)), shape(self.v(source))
        scores = torch.matmul(query, key.transpose(3, 2))
        if position_bias is None:
            if self.has_bias:
                position_bias = self.compute_bias(seq_length, source.shape[1])
            else:
                position_bias = torch.zeros((1, self.n_heads, seq_length, source.shape[1]), dtype=scores.dtype)
            if mask is not None:
                position_bias = position_bias + mask
        scores += position_bias
        weights = nn.functional.softmax(scores.float(), dim=-1).type_as(scores)
        output = torch.matmul(weights, value).transpose(1, 2).contiguous().view(batch_size, -1, self.inner_dim)
        return self.o(output), position_bias


class T5(nn.Module):
    def __init__(self, vocab=11, d_model=8):
        super().__init__()
        self.shared = nn.Embedding(vocab, d_model)
        self.encoder = nn.ModuleList([T5Attention(has_bias=i == 0) for i in range(2)])
        self.decoder = nn.ModuleList([T5Attention(is_decoder=True, has_bias=True), T5Attention(is_decoder=True)])
        self.norms = nn.ModuleList([T5LayerNorm(d_model) for _ in range(4)])
        self.scale = d_model**-0.5

    def forward(self, input_ids, decoder_ids, attention_mask):
        extended = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
        hidden, bias = self.shared(input_ids), None
        for i, layer in enumerate(self.encoder):
            out, bias = layer(self.norms[i](hidden), extended, position_bias=bias)
            hidden = hidden + out
        ids = torch.arange(decoder_ids.shape[1])
        causal = ids[None, None, :].repeat(decoder_ids.shape[0], len(ids), 1) <= ids[None, :, None]
        causal = (1.0 - causal[:, None, :, :].float()) * torch.finfo(torch.float32).min
        y = self.shared(decoder_ids)
        y = y + self.decoder[0](self.norms[2](y), causal)[0]
        y = y + self.decoder[1](self.norms[3](y), extended, key_value_states=hidden)[0]
        return torch.nn.functional.linear(y * self.scale, self.shared.weight)


def build():
    return T5()


def batch(r):
    mask = (r.random((2, 6)) < 0.8).astype("int64")
    mask[:, 0] = 1
    return r.integers(0, 11, (2, 6)), r.integers(0, 11, (2, 5)), mask, r.integers(0, 11, (2, 5))


def loss(model, x, y, mask, labels):
    logits = model(x, y, mask)
    return nn.CrossEntropyLoss(ignore_index=-100)(logits.view(-1, logits.size(-1)), labels.view(-1)), [logits]
