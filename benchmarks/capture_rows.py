"""What `benchmarks/capture.py` measures, in one framework: `python benchmarks/capture_rows.py FRAMEWORK [first]`.

A row is a function that returns seconds. Started without `first`, this process prints its versions as JSON, then answers each
row's name on stdin with that row's seconds on stdout (null: not measured here). With `first` it times import, and a small
network's first compiled result, and ends.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

OPS = 200  #: operations of one kind in a row, in a function that is followed
WIDTH, HEADS, LAYERS, TIME, VOCABULARY = 64, 4, 12, 16, 64  #: of the GPT
MATRICES = 75  #: of the training step: as many weights and biases, 150 parameters
now = time.perf_counter

Row = Callable[[], float]


def each(f: Callable[[], Any], seconds: float = 0.3) -> float:
    """Median seconds of a call, once warm."""
    for _ in range(5):
        f()
    took, begun = [], now()
    while now() - begun < seconds or len(took) < 5:
        t = now()
        f()
        took.append(now() - t)
    return statistics.median(took)


def inside(call: Callable[[], Any], spans: list[float]) -> float:
    """Median of the spans that calls of a function note themselves, once warm."""
    for _ in range(4):
        call()
    spans.clear()
    for _ in range(15):
        call()
    return statistics.median(spans)


def torch_like(torch: Any, compile: Callable) -> dict[str, Row]:
    """The rows that PyTorch and flame share, line by line the same."""
    nn = torch.nn
    torch.manual_seed(0)
    a, b = torch.ones(2, 2), torch.ones(2, 2)
    mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    batch, single = torch.randn(32, 64), torch.randn(1, 64)
    gpt = _gpt(torch)
    codes = torch.zeros(1, TIME, dtype=torch.int64)

    def no_grad(f: Callable) -> Callable:
        def quiet(*xs: Any) -> Any:
            with torch.no_grad():
                return f(*xs)

        return quiet

    add, gpt_c = compile(lambda x, y: x + y), no_grad(compile(gpt))
    mlp_c, mlp_1 = (no_grad(compile(lambda x: mlp(x))) for _ in range(2))  # (one for each shape, as if the other never came)
    mlp_e, gpt_e = no_grad(mlp), no_grad(gpt)

    def broken(x: Any, y: Any) -> Any:
        z = x + y
        z.sum().item()
        return z * y

    def whole(x: Any, y: Any) -> Any:
        z = x + y
        z.sum()
        return z * y

    broken, whole = compile(broken), compile(whole)
    step_e, step_c = _training(torch, lambda f: f), _training(torch, compile)
    return {
        "a + b on 2 x 2, eager": lambda: each(lambda: a + b),
        "a + b on 2 x 2": lambda: each(lambda: add(a, b)),
        "3-layer MLP, inference, eager": lambda: each(lambda: mlp_e(batch)),
        "3-layer MLP, inference": lambda: each(lambda: mlp_c(batch)),
        "3-layer MLP, inference at batch 1, eager": lambda: each(lambda: mlp_e(single)),
        "3-layer MLP, inference at batch 1": lambda: each(lambda: mlp_1(single)),
        "12-layer GPT, forward, eager": lambda: each(lambda: gpt_e(codes), 1.0),
        "12-layer GPT, forward": lambda: each(lambda: gpt_c(codes), 1.0),
        "AdamW step, 150 parameters, eager": lambda: each(step_e, 1.0),
        "AdamW step, 150 parameters": lambda: each(step_c, 1.0),
        "a break (item), round trip": lambda: each(lambda: broken(a, b)) - each(lambda: whole(a, b)),
    }


def _gpt(torch: Any) -> Any:
    nn, F = torch.nn, torch.nn.functional

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
            self.out = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            n, t, c = x.shape
            q, k, v = (part.view(n, t, HEADS, -1).transpose(1, 2) for part in self.qkv(x).split(c, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(y.transpose(1, 2).reshape(n, t, c))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Attention()
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    layers = [nn.Embedding(VOCABULARY, WIDTH), *(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, VOCABULARY, bias=False))


def _training(torch: Any, compile: Callable) -> Callable[[], Any]:
    nn = torch.nn
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(MATRICES)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, y = torch.randn(4, 8), torch.randn(4, 8)

    def step() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    if torch.__name__ == "flame":
        return compile(step)
    # PyTorch does not trace into backward(): forward is compiled (and backward with it), the optimizer runs as it comes
    forward = compile(lambda: nn.functional.mse_loss(model(x), y))

    def in_parts() -> Any:
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return in_parts


def flame_rows() -> dict[str, Row]:
    import numpy as np

    import flame
    from flame.capture import native

    often = flame.compile(lambda t: t + 1)
    for _ in range(2 * native.OFTEN):
        often(flame.ones(2))
    native.wait()
    x, w = flame.ones(8, 8), flame.ones(8, 8)
    F = flame.nn.functional

    class Same(flame.nn.Module):
        def forward(self, t: Any) -> Any:
            return t

    same = Same()

    def following(op: Callable[[Any], Any], before: Callable[[Any], Any] = lambda t: t) -> Row:
        """Seconds of one operation while it is followed: nothing is computed before the return."""
        spans: list[float] = []

        @flame.compile
        def f(t: Any) -> Any:
            t = before(t)
            begun = now()
            for _ in range(OPS):
                y = op(t)
            spans.append((now() - begun) / OPS)
            return y

        def row() -> float:
            with flame.no_grad():
                return inside(lambda: f(x), spans)

        return row

    gpt = _gpt(flame)
    codes = flame.zeros(1, TIME, dtype=flame.int64)
    spans: list[float] = []

    @flame.compile
    def forward(c: Any) -> Any:
        begun = now()
        y = gpt(c)
        spans.append(now() - begun)
        return y

    def follow_gpt() -> float:
        with flame.no_grad():
            return inside(lambda: forward(codes), spans)

    def alone(f: Any, call: Callable[[], Any], seconds: float = 0.3) -> float:
        """Seconds of a compiled function's one program by itself, called with arrays: what of its row is no Python of capture."""
        for _ in range(4):
            call()
        *_, program = f.compiled_graphs()  # (the last: what was recorded first may have been compiled with other constants)
        arrays = [np.full(s.shape, 0.01, s.dtype.numpy) for s in (v.spec for v in program.graph.inputs)]
        return each(lambda: program(arrays), seconds)

    def small_mlp() -> Any:
        nn = flame.nn
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def mlp_alone(rows: int) -> Row:
        mlp = small_mlp()
        f, given = flame.compile(lambda x: mlp(x)), flame.randn(rows, 64)

        def row() -> float:
            with flame.no_grad():
                return alone(f, lambda: f(given))

        return row

    def gpt_alone() -> float:
        f = flame.compile(gpt)
        with flame.no_grad():
            return alone(f, lambda: f(codes), 1.0)

    def step_alone() -> float:
        step = _training(flame, flame.compile)
        return alone(step, step, 1.0)

    a, b = flame.ones(2, 2), flame.ones(2, 2)

    def add_alone() -> float:
        f = flame.compile(lambda x, y: x + y)
        return alone(f, lambda: f(a, b))

    def replayed(make: Callable[[], Callable[..., Any]], *given: Any) -> Row:
        """Seconds of a call that skips Python, audits at powers of two included."""

        def row() -> float:
            f = flame.compile(make(), mode="replay")
            with flame.no_grad():
                for _ in range(100):
                    f(*given)
                return each(lambda: f(*given))

        return row

    return torch_like(flame, flame.compile) | {
        "following t * w": following(lambda t: t * w),
        "following t * 2.0": following(lambda t: t * 2.0),
        "following a view, t.t()": following(lambda t: t.t()),
        "following an in-place operation, t.add_(w)": following(lambda t: t.add_(w), lambda t: t * 2),
        "following linear": following(lambda t: F.linear(t, w)),
        "following gelu": following(F.gelu),
        "following softmax": following(lambda t: F.softmax(t, -1)),
        "following layer_norm": following(lambda t: F.layer_norm(t, (8,))),
        "calling a module that does nothing": following(same),
        "12-layer GPT, the Python of forward": follow_gpt,
        "a + b on 2 x 2, its program alone": add_alone,
        "a + b on 2 x 2, replayed": replayed(lambda: lambda x, y: x + y, a, b),
        "3-layer MLP, inference at batch 1, replayed": replayed(small_mlp, flame.randn(1, 64)),
        "12-layer GPT, forward, replayed": replayed(lambda: _gpt(flame), codes),
        "3-layer MLP, inference, its program alone": mlp_alone(32),
        "3-layer MLP, inference at batch 1, its program alone": mlp_alone(1),
        "12-layer GPT, forward, its program alone": gpt_alone,
        "AdamW step, 150 parameters, its program alone": step_alone,
    }


def torch_rows() -> dict[str, Row]:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch_like(torch, torch.compile)


def jax_rows() -> dict[str, Row]:
    import jax
    import jax.numpy as jnp

    def ready(f: Callable, *xs: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(f(*xs))

    def normal(*shape: int) -> Any:
        return jax.random.normal(jax.random.key(0), shape) * 0.05

    a = jnp.ones((2, 2))
    sizes = (64, 128, 128, 10)
    mlp_p = [(normal(i, o), jnp.zeros(o)) for i, o in zip(sizes, sizes[1:], strict=False)]
    batch, single = normal(32, 64), normal(1, 64)

    def mlp(ps: list, x: Any) -> Any:
        for w, b in ps[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ ps[-1][0] + ps[-1][1]

    def norm(x: Any) -> Any:
        m = x.mean(-1, keepdims=True)
        return (x - m) / jnp.sqrt(((x - m) ** 2).mean(-1, keepdims=True) + 1e-5)

    weights = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    layer = {k: normal(*s) for k, s in weights.items()} | {f"b{k}": jnp.zeros(s[1]) for k, s in weights.items()}
    gpt_p = [layer | {k: jnp.ones(WIDTH) for k in ("g1", "h1", "g2", "h2")} for _ in range(LAYERS)]
    table, head, codes = normal(VOCABULARY, WIDTH), normal(WIDTH, VOCABULARY), jnp.zeros((1, TIME), jnp.int32)

    def gpt(ps: list, codes: Any) -> Any:
        x = table[codes]
        for p in ps:
            qkv = (norm(x) * p["g1"] + p["h1"]) @ p["qkv"] + p["bqkv"]
            q, k, v = (t.reshape(1, TIME, HEADS, -1) for t in jnp.split(qkv, 3, -1))
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(1, TIME, WIDTH)
            x = x + y @ p["out"] + p["bout"]
            h = jax.nn.gelu((norm(x) * p["g2"] + p["h2"]) @ p["up"] + p["bup"], approximate=False)
            x = x + h @ p["down"] + p["bdown"]
        return norm(x) @ head

    train_p = [(normal(8, 8), jnp.zeros(8)) for _ in range(MATRICES)]
    moments = jax.tree.map(jnp.zeros_like, (train_p, train_p))
    xs, ys = normal(4, 8), normal(4, 8)

    def loss(ps: list) -> Any:
        x = xs
        for w, b in ps:
            x = x @ w + b
        return ((x - ys) ** 2).mean()

    @jax.jit
    def step(state: tuple) -> tuple:
        ps, (ms, vs), n = state
        value, gs = jax.value_and_grad(loss)(ps)
        ms = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, ms, gs)
        vs = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, vs, gs)
        c1, c2 = 1 - 0.9**n, 1 - 0.999**n
        ps = jax.tree.map(lambda p, m, v: p * (1 - 1e-6) - 1e-4 * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), ps, ms, vs)
        return (ps, (ms, vs), n + 1), value

    state = [(train_p, moments, jnp.float32(1))]

    def train() -> None:
        state[0], _ = jax.block_until_ready(step(state[0]))

    add, mlp_c, gpt_c = jax.jit(lambda x, y: x + y), jax.jit(mlp), jax.jit(gpt)
    return {
        "a + b on 2 x 2, eager": lambda: each(ready(lambda: a + a)),
        "a + b on 2 x 2": lambda: each(ready(add, a, a)),
        "3-layer MLP, inference, eager": lambda: each(ready(mlp, mlp_p, batch)),
        "3-layer MLP, inference": lambda: each(ready(mlp_c, mlp_p, batch)),
        "3-layer MLP, inference at batch 1, eager": lambda: each(ready(mlp, mlp_p, single)),
        "3-layer MLP, inference at batch 1": lambda: each(ready(mlp_c, mlp_p, single)),
        "12-layer GPT, forward, eager": lambda: each(ready(gpt, gpt_p, codes), 1.0),
        "12-layer GPT, forward": lambda: each(ready(gpt_c, gpt_p, codes), 1.0),
        "AdamW step, 150 parameters": lambda: each(train, 1.0),
    }


def first(framework: str) -> dict[str, float]:
    """Seconds of the import, and from there to a small network's first compiled result (of a forward and backward pass)."""
    begun = now()
    if framework == "jax":
        import jax
        import jax.numpy as jnp

        imported = now()
        ps = [jnp.full((64, 64), 0.01) for _ in range(3)]

        def loss(ps: list, x: Any) -> Any:
            for w in ps:
                x = jnp.tanh(x @ w)
            return (x * x).mean()

        jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(ps, jnp.ones((32, 64))))
        return {"import": imported - begun, "first compiled result": now() - imported}
    torch: Any = __import__(framework)
    imported = now()
    nn = torch.nn
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    x = torch.ones(32, 64)
    f = torch.compile(lambda: (net(x) ** 2).mean())
    for _ in range(2 if framework == "flame" else 1):  # flame records once before it compiles
        value = f()
        value.backward()
    assert math.isfinite(value.item())
    return {"import": imported - begun, "first compiled result": now() - imported}


ROWS = {"flame": flame_rows, "torch": torch_rows, "jax": jax_rows}


def main() -> None:
    framework = sys.argv[1]
    if sys.argv[2:] == ["first"]:
        print(json.dumps(first(framework)))
        return
    rows = ROWS[framework]()
    print(json.dumps({"version": __import__(framework).__version__, "rows": list(rows)}), flush=True)
    for line in sys.stdin:
        row = rows.get(line.strip())
        print(json.dumps(None if row is None else row()), flush=True)


if __name__ == "__main__":
    main()
