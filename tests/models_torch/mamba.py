"""A selective state-space language model: gated blocks with a causal depthwise convolution and an input-dependent scan."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class MambaConfig:
    vocab_size: int = 37
    d_model: int = 16
    n_layer: int = 2
    d_state: int = 4
    expand: int = 2
    d_conv: int = 3
    dt_rank: int = 2


class RMSNorm(nn.Module):
    def __init__(self, d: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class MambaBlock(nn.Module):
    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        d_inner = config.expand * config.d_model
        self.in_proj = nn.Linear(config.d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, config.d_conv, groups=d_inner, padding=config.d_conv - 1, bias=True)
        self.x_proj = nn.Linear(d_inner, config.dt_rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(config.dt_rank, d_inner)
        a = torch.arange(1, config.d_state + 1, dtype=torch.float32).repeat(d_inner, 1)
        self.A_log = nn.Parameter(torch.log(a))
        self.A_log._no_weight_decay = True
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=False)
        with torch.no_grad():
            dt = torch.exp(torch.linspace(math.log(1e-3), math.log(1e-1), d_inner)).clamp(min=1e-4)
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def ssm(self, x):
        n = self.config.d_state
        delta, b, c = self.x_proj(x).split([self.config.dt_rank, n, n], dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        return self.selective_scan(x, delta, -torch.exp(self.A_log.float()), b, c, self.D.float())

    def selective_scan(self, u, delta, a, b, c, d):
        delta_a = torch.exp(torch.einsum("bld,dn->bldn", delta, a))
        delta_bu = torch.einsum("bld,bln,bld->bldn", delta, b, u)
        state = torch.zeros(u.size(0), u.size(2), a.size(1), device=u.device, dtype=delta_a.dtype)
        ys = []
        for t in range(u.size(1)):
            state = delta_a[:, t] * state + delta_bu[:, t]
            ys.append(torch.einsum("bdn,bn->bd", state, c[:, t]))
        return torch.stack(ys, dim=1) + u * d

    def forward(self, x):
        length = x.shape[1]
        x, res = self.in_proj(x).chunk(2, dim=-1)
        x = self.conv1d(x.transpose(1, 2))[:, :, :length].transpose(1, 2)
        return self.out_proj(self.ssm(F.silu(x)) * F.silu(res))


class Mamba(nn.Module):
    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": RMSNorm(config.d_model), "mixer": MambaBlock(config)}) for _ in range(config.n_layer)
        )
        self.norm_f = RMSNorm(config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer["mixer"](layer["norm"](x))
        return self.lm_head(self.norm_f(x))


def build():
    return Mamba(MambaConfig())


def batch(r):
    return [r.integers(0, 37, (2, 7)).astype(np.int64)]


def loss(model, ids):
    logits = model(ids)
    value = F.cross_entropy(logits[:, :-1].reshape(-1, logits.size(-1)), ids[:, 1:].reshape(-1))
    decayed = sum(p.numel() for p in model.parameters() if not getattr(p, "_no_weight_decay", False))
    return value, [logits, decayed]
