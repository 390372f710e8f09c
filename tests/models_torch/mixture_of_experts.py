"""A sparse mixture of experts: noisy top-k gating, tokens sent to experts by nonzero and index_add, a load-balancing loss."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Expert(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class SparseMoE(nn.Module):
    def __init__(self, dim=6, hidden=8, num_experts=4, top_k=2):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.experts = nn.ModuleList([Expert(dim, hidden) for _ in range(num_experts)])

    def forward(self, hidden_states):
        batch, length, dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, dim)
        router_logits = self.router(hidden_states)
        routing_weights = F.softmax(router_logits, dim=1, dtype=torch.float)
        routing_weights, selected = torch.topk(routing_weights, self.top_k, dim=-1)
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(hidden_states.dtype)
        final = torch.zeros((batch * length, dim), dtype=hidden_states.dtype, device=hidden_states.device)
        expert_mask = F.one_hot(selected, num_classes=self.num_experts).permute(2, 1, 0)
        for expert_idx in range(self.num_experts):
            idx, top_x = torch.where(expert_mask[expert_idx])
            current_state = hidden_states[None, top_x].reshape(-1, dim)
            current = self.experts[expert_idx](current_state) * routing_weights[top_x, idx, None]
            final.index_add_(0, top_x, current.to(hidden_states.dtype))
        density = expert_mask.float().mean(dim=(1, 2))
        balance = (density * F.softmax(router_logits, -1).mean(0)).sum() * self.num_experts
        return final.reshape(batch, length, dim), balance


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.moe = SparseMoE()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        y, balance = self.moe(self.norm(x))
        return self.head(x + y), balance


def build():
    return Model()


def batch(r):
    return r.standard_normal((2, 5, 6)).astype("float32"), r.standard_normal((2, 5, 3)).astype("float32")


def loss(model, x, target):
    y, balance = model(x)
    return F.smooth_l1_loss(y, target) + 0.01 * balance, [y, balance]
