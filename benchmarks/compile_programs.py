"""What `benchmarks/compile_time.py` compiles: `python benchmarks/compile_programs.py FRAMEWORK PROGRAM` runs one, once, and
prints what its first calls took as one line of JSON.

A program is a function that takes the framework (flame and PyTorch are written alike) and `compile`, and returns a step to call.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

now = time.perf_counter
Step = Callable[[], Any]


def training(torch: Any, compile: Callable, model: Any, loss: Callable[[], Any], optimizer: Any = None) -> Step:
    """A compiled training step. PyTorch does not trace into backward(): there forward is compiled (and backward with it), and
    the optimizer's step by itself."""
    parameters = list(model.parameters())

    def backward(loss: Callable[[], Any], update: Callable[[], Any]) -> Any:
        for p in parameters:
            p.grad = None
        value = loss()
        value.backward()
        update()
        return value.detach()

    update = (lambda: None) if optimizer is None else optimizer.step
    if torch.__name__ == "flame":
        return compile(lambda: backward(loss, update))
    forward, stepped = compile(loss), update if optimizer is None else compile(update)
    return lambda: backward(forward, stepped)


def chain(n: int, live: int = 1) -> Callable[[Any, Callable], Step]:
    """`n` elementwise operations one after another, on 64 numbers; every `live`-th but one reads a value of long ago."""

    def build(torch: Any, compile: Callable) -> Step:
        x, w = torch.ones(64), torch.ones(64) * 0.5

        def f(x: Any) -> Any:
            kept = [x]
            for i in range(n // 2):
                other = w if live == 1 or i % 3 else kept[(i * 7919) % len(kept)]
                x = torch.sin(x + other) if i % 4 == 0 else torch.tanh(x * other)
                if live > 1 and i % 10 == 0:
                    kept = [*kept[-live + 1 :], x]
            return x

        f = compile(f)
        return lambda: f(x)

    return build


def mlp(layers: int) -> Callable[[Any, Callable], Step]:
    """Forward and backward of equal layers."""

    def build(torch: Any, compile: Callable) -> Step:
        nn = torch.nn
        model = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(32, 32), nn.ReLU())))
        x, y = torch.randn(16, 32), torch.randn(16, 32)
        return training(torch, compile, model, lambda: nn.functional.mse_loss(model(x), y))

    return build


def rnn(steps: int) -> Callable[[Any, Callable], Step]:
    """An unrolled cell with backward and AdamW."""

    def build(torch: Any, compile: Callable) -> Step:
        nn = torch.nn
        cell = nn.Linear(32, 32)
        x = torch.randn(8, steps, 16)

        def loss() -> Any:
            h = torch.zeros(8, 16)
            for t in range(steps):
                h = torch.tanh(cell(torch.cat([h, x[:, t]], 1)))[:, :16]
            return (h * h).mean()

        return training(torch, compile, cell, loss, torch.optim.AdamW(cell.parameters(), lr=1e-3))

    return build


def gpt(layers: int, width: int = 64, heads: int = 4, time: int = 32, batch: int = 4, vocabulary: int = 64) -> Any:
    """A training step of a GPT with AdamW."""

    def build(torch: Any, compile: Callable) -> Step:
        nn, F = torch.nn, torch.nn.functional

        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.qkv = nn.Linear(width, 3 * width)
                self.out = nn.Linear(width, width)

            def forward(self, x: Any) -> Any:
                n, t, c = x.shape
                q, k, v = (part.view(n, t, heads, -1).transpose(1, 2) for part in self.qkv(x).split(c, dim=2))
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                return self.out(y.transpose(1, 2).reshape(n, t, c))

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention()
                self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

            def forward(self, x: Any) -> Any:
                x = x + self.attention(self.norm1(x))
                return x + self.mlp(self.norm2(x))

        blocks = [Block() for _ in range(layers)]
        last = [nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)]
        model = nn.Sequential(nn.Embedding(vocabulary, width), *blocks, *last)
        codes = torch.randint(0, vocabulary, (batch, time + 1))
        x, y = codes[:, :-1], codes[:, 1:].reshape(-1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        return training(torch, compile, model, lambda: F.cross_entropy(model(x).view(-1, vocabulary), y), optimizer)

    return build


def digits(torch: Any, compile: Callable) -> Step:
    """A training step of a small convolutional classifier with AdamW."""
    nn, channels = torch.nn, 32

    def block(i: int, o: int) -> list[Any]:
        return [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]

    features = [*block(1, channels), *block(channels, 2 * channels), nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*features, nn.Linear(2 * channels * 16, 128), nn.GELU(), nn.Linear(128, 10))
    x, y = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return training(torch, compile, model, lambda: nn.functional.cross_entropy(model(x), y), optimizer)


PROGRAMS: dict[str, Callable[[Any, Callable], Step]] = {
    "digits, training step": digits,
    "GPT of 3 layers, training step": gpt(3),
    "GPT of 12 layers, training step": gpt(12),
    "GPT of 48 layers, training step": gpt(48),
    "1,000 elementwise operations": chain(1000),
    "3,000 elementwise operations": chain(3000),
    "10,000 elementwise operations": chain(10000),
    "1,000 elementwise operations, 50 long-lived": chain(1000, 50),
    "3,000 elementwise operations, 50 long-lived": chain(3000, 50),
    "10,000 elementwise operations, 50 long-lived": chain(10000, 50),
    "MLP of 50 layers, forward and backward": mlp(50),
    "MLP of 150 layers, forward and backward": mlp(150),
    "MLP of 500 layers, forward and backward": mlp(500),
    "RNN of 100 steps, training step": rnn(100),
    "RNN of 300 steps, training step": rnn(300),
    "RNN of 1,000 steps, training step": rnn(1000),
}


def memory() -> float:
    """The most memory that this process has had so far, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20) if sys.platform == "darwin" else most / 1024


def run(framework: str, program: str) -> dict[str, Any]:
    begun = now()
    torch: Any = importlib.import_module(framework)
    imported = now() - begun
    if framework == "torch":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    sys.setrecursionlimit(10000 if framework == "torch" else sys.getrecursionlimit())
    made: list[Any] = []

    def compile(f: Callable) -> Callable:
        made.append(torch.compile(f))
        return made[-1]

    torch.manual_seed(0)
    step = PROGRAMS[program](torch, compile)
    before, took, busy = memory(), [], []
    for _ in range(4):
        begun, begun_busy = now(), time.process_time()
        step()
        took.append(now() - begun)
        busy.append(time.process_time() - begun_busy)
    facts: dict[str, Any] = {"import": imported, "calls": took, "busy": busy, "memory": memory() - before}
    facts["version"] = torch.__version__
    if framework == "flame":
        kernels = [s.kernel for c in made[0].compiled_graphs() if c.program for s in c.program.steps if hasattr(s, "kernel")]
        facts |= {
            "operations": sum(len(g.nodes) for g in made[0].graphs),
            "launches": len(kernels),
            "kernels": len(made[0].kernels),
            "fallbacks": sum(made[0].stats.fallbacks.values()),
        }
    return facts


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2])))
