"""A corpus of small programs that between them use every kind of kernel: what tests compile for GPUs and run there in spirit.

PROGRAMS        name -> a function that gives (step, arguments)
captured(name)  the graphs that the compiled step was captured as, each with arrays that it really was called with
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame.compiler.graph import Graph

Program = tuple[Callable, tuple]


def training(model: nn.Module, optimizer: Any, loss_of: Callable, *batch: Any) -> Program:
    """A whole training step as one function: forward, loss, backward, optimizer."""

    def step(*batch: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_of(model, *batch)
        loss.backward()
        optimizer.step()
        return loss

    return step, batch


def mlp() -> Program:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = flame.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return training(model, optimizer, lambda m, x, y: F.mse_loss(m(x), y), flame.randn(9, 12), flame.randn(9, 3))


def cnn() -> Program:
    """Convolutions (one with stride 2), batch normalisation in training mode, pooling."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),  # a norm follows: the gradient of a bias would be rounding alone
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    optimizer = flame.optim.Adam(model.parameters(), lr=1e-2)
    x, y = flame.randn(3, 1, 8, 8), flame.randint(0, 5, (3,))
    return training(model, optimizer, lambda m, x, y: F.cross_entropy(m(x), y), x, y)


class Block(nn.Module):
    """Causal attention and a feed-forward part, each after a norm and with dropout."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width), nn.Dropout(0.1))

    def forward(self, x: Any) -> Any:
        b, t, c = x.shape
        q, k, v = (
            p.reshape(b, t, self.heads, c // self.heads).transpose(1, 2)
            for p in self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.out(y)
        return x + self.mlp(self.before_mlp(x))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int, heads: int):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.block, self.norm = Block(width, heads), nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, codes: Any) -> Any:
        x = self.token(codes) + self.position(flame.arange(codes.shape[1]))
        return self.head(self.norm(self.block(x)))


def gpt() -> Program:
    model = GPT(11, 6, width=16, heads=2)
    # (the gradient of a key's bias is 0 but for rounding: with the usual eps its update would be that rounding, enlarged)
    optimizer = flame.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5)
    x, y = flame.randint(0, 11, (2, 6)), flame.randint(0, 11, (2, 6))
    return training(model, optimizer, lambda m, x, y: F.cross_entropy(m(x).reshape(-1, 11), y.reshape(-1)), x, y)


def low_precision() -> Program:
    """bfloat16 throughout, with a loss in float32."""
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4)).to(flame.bfloat16)
    optimizer = flame.optim.SGD(model.parameters(), lr=0.05)
    x, y = flame.randn(8, 16).to(flame.bfloat16), flame.randint(0, 4, (8,))
    return training(model, optimizer, lambda m, x, y: F.cross_entropy(m(x).float(), y), x, y)


def convolutions() -> Program:
    """Depthwise, dilated and transposed convolution; average pooling; group normalisation."""
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.Conv2d(4, 3, 3, dilation=2, padding=2),
        nn.AvgPool2d(2),
        nn.ConvTranspose2d(3, 2, 2, stride=2),
    )
    optimizer = flame.optim.RMSprop(model.parameters(), lr=1e-3)
    return training(model, optimizer, lambda m, x: m(x).square().mean(), flame.randn(2, 4, 6, 6))


def metrics() -> Program:
    """No gradients: sorting out predictions, integers, cumulative sums, masks, indexing, float64."""

    @flame.no_grad()
    def step(logits: Any, labels: Any, weights: Any) -> Any:
        p = logits.softmax(-1)
        right = (p.argmax(-1) == labels).float()
        entropy = -(p * p.clamp(min=1e-9).log()).sum(-1)
        picked = p.gather(1, labels[:, None]).squeeze(1)
        running = (weights * picked.double()).cumsum(0)
        masked = p.masked_fill(p < 0.2, 0.0)
        return right.mean(), entropy.std(), running, masked.amax(0), (labels * 3 + 1) % 5, p.var(0), flame.logsumexp(logits, 1)

    return step, (flame.randn(7, 5), flame.randint(0, 5, (7,)), flame.rand(7, dtype=flame.float64))


PROGRAMS: dict[str, Callable[[], Program]] = {f.__name__: f for f in (mlp, cnn, gpt, low_precision, convolutions, metrics)}


@cache
def captured(name: str) -> list[tuple[Graph, list[np.ndarray]]]:
    """Run a program compiled until every call is followed, then note what each compiled graph is called with."""
    flame.manual_seed(11)
    step, arguments = PROGRAMS[name]()
    compiled = flame.compile(step)
    for _ in range(5):
        compiled(*arguments)
    assert not compiled.stats.fallbacks, compiled.stats.fallbacks
    seen: dict[int, tuple[Graph, list[np.ndarray]]] = {}

    def noting(c: Any) -> Callable:
        run = c.executable

        def call(arrays: Any) -> Any:
            seen[id(c)] = (c.graph, [np.array(a, order="C") for a in arrays])
            return run(arrays)

        return call

    recorded = compiled.stats.recorded
    for c in compiled.compiled_graphs():
        c.executable = noting(c)
    compiled(*arguments)
    assert compiled.stats.recorded == recorded, f"{name}: the last call was not followed"
    return list(seen.values())
