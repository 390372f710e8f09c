"""What `benchmarks/cpu.py` measures, in one framework: `python benchmarks/cpu_rows.py FRAMEWORK THREADS`, or what
`benchmarks/conv.py` does: `... THREADS layers`.

A row is made when it is asked for. This process prints its versions as JSON, then answers each name on stdin on stdout: {} where
it has no such row, else by variant ("", "eager", "compiled") the seconds of a call and of the first one, which compiles. A variant
that fails is left out. flame and PyTorch run the same lines; JAX has its own, of the same arithmetic (a loss's value counted).
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks import cpu_models as models
from benchmarks.conv_layers import layers

#: one thread is measured in the processor's time, in which neighbours count less; several in the clock's
now = time.process_time if sys.argv[2:3] == ["1"] else time.perf_counter
Call = Callable[[], Any]
Answer = dict[str, list[float]]  #: by variant, seconds of a call, and of the first one
Compile = Callable[[Callable], Callable]


def each(f: Call, seconds: float = 0.15) -> float:
    """The least seconds of a call, once warm: what neighbours on the machine take is not what is measured."""
    for _ in range(4):
        f()
    took: list[float] = []
    begun = now()
    while now() - begun < seconds or len(took) < 5:
        t = now()
        f()
        took.append(now() - t)
    return min(took)


# ---- flame and PyTorch


class TorchLike:
    """Rows written against PyTorch's names. `whole`: a compiled function may hold backward and the optimizer."""

    def __init__(self, torch: Any, whole: bool):
        self.torch, self.whole = torch, whole
        self.F, self.nn = torch.nn.functional, torch.nn
        torch.manual_seed(0)

    def inference(self, f: Callable, *xs: Any) -> Callable[[Compile], Call]:
        def make(compile: Compile) -> Call:
            g = compile(f)

            def call() -> Any:
                with self.torch.no_grad():
                    return g(*xs)

            return call

        return make

    def training(self, loss: Callable, leaves: list, optimizer: Any = None) -> Callable[[Compile], Call]:
        """Gradients of a loss, and a step of the optimizer if there is one."""

        def make(compile: Compile) -> Call:
            forward = loss if self.whole else compile(loss)

            def step() -> Any:
                for p in leaves:
                    p.grad = None
                value = forward()
                value.backward()
                if optimizer is not None:
                    optimizer.step()
                return value.detach()

            return compile(step) if self.whole else step

        return make

    def randn(self, *shape: int, grad: bool = False) -> Any:
        x = self.torch.randn(*shape)
        return x.requires_grad_() if grad else x

    def layer(self, f: Callable, *xs: Any) -> Callable[[Compile], Call]:
        """Forward and backward of a function of leaves, under a random cotangent."""
        g = self.randn(*f(*xs).shape)
        return self.training(lambda: (f(*xs) * g).sum(), [x for x in xs if x.requires_grad])

    def rows(self) -> dict[str, Callable[[], Callable[[Compile], Call]]]:
        torch, F, nn, r = self.torch, self.F, self.nn, self.randn
        fwd, both = self.inference, self.layer

        def conv(n: int, c: int, size: int, o: int, k: int, s: int = 1, groups: int = 1, train: bool = False) -> Callable:
            def make() -> Any:
                x, w = r(n, c, size, size, grad=train), r(o, c // groups, k, k, grad=train)
                f = lambda x, w: F.conv2d(x, w, None, s, k // 2, 1, groups)
                return (both if train else fwd)(f, x, w)

            return make

        def product(*shape: int) -> Callable:
            m, k, n = shape
            return lambda: fwd(lambda a, b: a @ b, r(m, k), r(k, n))

        def linear(m: int, k: int, n: int) -> Callable:
            return lambda: fwd(F.linear, r(m, k), r(n, k), r(n))

        def norm(train: bool) -> Callable:
            x, w, b = r(2048, 1024, grad=train), r(1024, grad=train), r(1024, grad=train)
            return (both if train else fwd)(lambda x, w, b: F.layer_norm(x, (1024,), w, b), x, w, b)

        def attention(train: bool) -> Callable:
            q, k, v = (r(2, 8, 512, 64, grad=train) for _ in range(3))
            return (both if train else fwd)(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)

        def cross_entropy() -> Any:
            x, y = r(1024, 8192, grad=True), torch.randint(0, 8192, (1024,))
            return self.training(lambda: F.cross_entropy(x, y), [x])

        def embedding() -> Any:
            w, at = r(8192, 512, grad=True), torch.randint(0, 8192, (8, 256))
            return both(lambda w: F.embedding(at, w), w)

        def batch_norm() -> Any:
            x, w, b = r(16, 64, 32, 32, grad=True), r(64, grad=True), r(64, grad=True)
            mean, var = torch.zeros(64), torch.ones(64)
            return both(lambda x, w, b: F.relu(F.batch_norm(x, mean, var, w, b, True)), x, w, b)

        def adamw() -> Any:
            ps = [
                nn.Parameter(r(*s)) for _ in range(12) for s in ((256, 256), (256,), (1024, 256), (1024,), (256, 1024), (256,))
            ]
            for p in ps:
                p.grad = torch.randn(*p.shape)
            optimizer = torch.optim.AdamW(ps, lr=1e-4)

            def make(compile: Compile) -> Call:
                return compile(lambda: optimizer.step())

            return make

        def mlp(train: bool, batch: int = 128) -> Any:
            net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
            x, y = r(batch, 784), torch.randint(0, 10, (batch,))
            if not train:
                return fwd(net, x)
            ps = list(net.parameters())
            return self.training(lambda: F.cross_entropy(net(x), y), ps, torch.optim.AdamW(ps, lr=1e-4))

        def gpt(train: bool) -> Any:
            net, at = models.gpt(torch, 256, 8, 2, 1024), torch.randint(0, 1024, (4, 256))
            if not train:
                return fwd(net, at)
            ps = list(net.parameters())
            y = torch.randint(0, 1024, (4 * 256,))
            return self.training(lambda: F.cross_entropy(net(at).view(-1, 1024), y), ps, torch.optim.AdamW(ps, lr=1e-4))

        def image(build: Callable, channels: int, size: int, train: bool) -> Any:
            net, x = build(nn, F), r(8, channels, size, size)
            if not train:
                net.eval()
                return fwd(net, x)
            ps = list(net.parameters())
            return self.training(lambda: net(x).square().mean(), ps, torch.optim.SGD(ps, lr=1e-3, momentum=0.9))

        def gelu_chain(x: Any, b: Any, y: Any) -> Any:
            return F.gelu(x + b) * torch.sigmoid(y)

        def lstm(train: bool) -> Any:
            net, x = models.tagger(torch, 64, 128, 10), r(16, 32, 64)
            if not train:
                return fwd(net, x)
            ps, y = list(net.parameters()), torch.randint(0, 10, (16 * 32,))
            return self.training(lambda: F.cross_entropy(net(x).reshape(-1, 10), y), ps, torch.optim.AdamW(ps, lr=1e-4))

        def heat(u: Any) -> Any:
            for _ in range(4):
                u = u + 0.1 * (u.roll(1, 0) + u.roll(-1, 0) + u.roll(1, 1) + u.roll(-1, 1) - 4 * u)
            return u

        def bodies(x: Any, m: Any) -> Any:
            d = x[None, :, :] - x[:, None, :]
            far = (d * d).sum(-1) + 1e-3
            return (d * (m / (far * far.sqrt()))[:, :, None]).sum(1)

        def wave(x: Any) -> Any:
            return torch.exp(-0.1 * x * x) * torch.sin(3 * x) + torch.tanh(x)

        def real(*shape: int) -> Any:
            return r(*shape).double()

        def stepped(build: Callable) -> Any:
            loss, ps = build(torch, r)
            return self.training(loss, ps, torch.optim.Adam(ps, lr=1e-4))

        return {
            "gelu(x + b) * sigmoid(y), 2048 x 1024": lambda: fwd(gelu_chain, r(2048, 1024), r(1024), r(2048, 1024)),
            "softmax, 2048 x 1024": lambda: fwd(lambda x: F.softmax(x, -1), r(2048, 1024)),
            "softmax, 2048 x 1024, training": lambda: both(lambda x: F.softmax(x, -1), r(2048, 1024, grad=True)),
            "layer_norm, 2048 x 1024": lambda: norm(False),
            "layer_norm, 2048 x 1024, training": lambda: norm(True),
            "batch_norm + relu, 16 x 64 x 32 x 32, training": batch_norm,
            "cross_entropy, 1024 x 8192, training": cross_entropy,
            "embedding, 2048 of 8192 x 512, training": embedding,
            "sum of columns, 4096 x 1024": lambda: fwd(lambda x: x.sum(0), r(4096, 1024)),
            "x.t() + y, 1024 x 1024": lambda: fwd(lambda x, y: x.t() + y, r(1024, 1024), r(1024, 1024)),
            "attention, causal, 2 x 8 x 512 x 64": lambda: attention(False),
            "attention, causal, 2 x 8 x 512 x 64, training": lambda: attention(True),
            "matmul, 64 x 64 x 64": product(64, 64, 64),
            "matmul, 256 x 256 x 256": product(256, 256, 256),
            "matmul, 1024 x 1024 x 1024": product(1024, 1024, 1024),
            "linear, 1 x 768 -> 3072": linear(1, 768, 3072),
            "linear, 8 x 768 -> 3072": linear(8, 768, 3072),
            "linear + gelu, 512 x 768 -> 3072": lambda: fwd(
                lambda x, w, b: F.gelu(F.linear(x, w, b)), r(512, 768), r(3072, 768), r(3072)
            ),
            "linear, 512 x 768 -> 768, training": lambda: both(
                F.linear, r(512, 768, grad=True), r(768, 768, grad=True), r(768, grad=True)
            ),
            "batched matmul, 64 x 128 x 64 x 128": lambda: fwd(lambda a, b: a @ b, r(64, 128, 64), r(64, 64, 128)),
            "conv 3x3, 4 x 64 x 56 x 56": conv(4, 64, 56, 64, 3),
            "conv 3x3, 4 x 64 x 56 x 56, training": conv(4, 64, 56, 64, 3, train=True),
            "conv 3x3, 4 x 256 x 14 x 14": conv(4, 256, 14, 256, 3),
            "conv 3x3, 4 x 256 x 14 x 14, training": conv(4, 256, 14, 256, 3, train=True),
            "conv 7x7 / 2, 4 x 3 x 224 x 224": conv(4, 3, 224, 64, 7, 2),
            "conv 3x3 / 2, 4 x 64 x 56 x 56": conv(4, 64, 56, 128, 3, 2),
            "conv 3x3 / 2, 4 x 64 x 56 x 56, training": conv(4, 64, 56, 128, 3, 2, train=True),
            "conv 1x1, 4 x 256 -> 64 x 56 x 56": conv(4, 256, 56, 64, 1),
            "conv 1x1, 4 x 256 -> 64 x 56 x 56, training": conv(4, 256, 56, 64, 1, train=True),
            "depthwise 3x3, 4 x 144 x 56 x 56": conv(4, 144, 56, 144, 3, 1, 144),
            "depthwise 3x3, 4 x 144 x 56 x 56, training": conv(4, 144, 56, 144, 3, 1, 144, train=True),
            "depthwise 3x3 / 2, 4 x 144 x 56 x 56": conv(4, 144, 56, 144, 3, 2, 144),
            "max_pool 3x3 / 2, 4 x 64 x 112 x 112": lambda: fwd(lambda x: F.max_pool2d(x, 3, 2, 1), r(4, 64, 112, 112)),
            "max_pool 3x3 / 2, 4 x 64 x 112 x 112, training": lambda: both(
                lambda x: F.max_pool2d(x, 3, 2, 1), r(4, 64, 112, 112, grad=True)
            ),
            "AdamW, 72 parameters, 7 million numbers": adamw,
            "MLP 784-512-512-10, batch 128": lambda: mlp(False),
            "MLP 784-512-512-10, batch 128, AdamW step": lambda: mlp(True),
            "GPT, 2 blocks of 256, 4 x 256 tokens": lambda: gpt(False),
            "GPT, 2 blocks of 256, 4 x 256 tokens, AdamW step": lambda: gpt(True),
            "ResNet-18 block 64, 8 images of 32 x 32": lambda: image(models.residual, 64, 32, False),
            "ResNet-18 block 64, 8 images of 32 x 32, SGD step": lambda: image(models.residual, 64, 32, True),
            "MobileNetV2 block 24, 8 images of 28 x 28": lambda: image(models.inverted, 24, 28, False),
            "MobileNetV2 block 24, 8 images of 28 x 28, SGD step": lambda: image(models.inverted, 24, 28, True),
            "MLP 784-512-512-10, batch 1": lambda: mlp(False, 1),
            "RL policy 8-64-64-4, batch 1": lambda: fwd(models.policy(torch), r(1, 8)),
            "RL policy 8-64-64-4, batch 32": lambda: fwd(models.policy(torch), r(32, 8)),
            "LSTM 64-128, 16 x 32 steps": lambda: lstm(False),
            "LSTM 64-128, 16 x 32 steps, AdamW step": lambda: lstm(True),
            "PINN 2-64-64-64-1, 1024 points, second derivatives, Adam step": lambda: stepped(models.pinn),
            "GAN 64-256-784, batch 64, Adam step of both": lambda: stepped(models.gan),
            "U-Net 32-64, 4 images of 32 x 32, Adam step": lambda: stepped(models.unet),
            "float64 heat equation, 512 x 512, 4 steps": lambda: fwd(heat, real(512, 512)),
            "float64 forces of 512 bodies": lambda: fwd(bodies, real(512, 3), real(512)),
            "float64 exp, sin and tanh, 1 million": lambda: fwd(wave, real(1000, 1000)),
        }


# ---- JAX


def jax_rows() -> dict[str, Callable[[], Call]]:
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0)

    def r(*shape: int) -> Any:
        return jax.random.normal(key, shape)

    def fwd(f: Callable, *xs: Any) -> Callable[[], Call]:
        def make() -> Call:
            g, arrays = jax.jit(f), [x() if callable(x) else x for x in xs]
            return lambda: jax.block_until_ready(g(*arrays))

        return make

    def both(f: Callable, *xs: Any) -> Callable[[], Call]:
        def make() -> Call:
            arrays = [x() if callable(x) else x for x in xs]
            g = r(*jax.eval_shape(f, *arrays).shape)
            d = jax.jit(jax.value_and_grad(lambda *a: (f(*a) * g).sum(), argnums=tuple(range(len(arrays)))))
            return lambda: jax.block_until_ready(d(*arrays))

        return make

    def conv(n: int, c: int, size: int, o: int, k: int, s: int = 1, groups: int = 1, train: bool = False) -> Callable:
        def f(x: Any, w: Any) -> Any:
            pad = [(k // 2, k // 2)] * 2
            return jax.lax.conv_general_dilated(x, w, (s, s), pad, feature_group_count=groups)

        return (both if train else fwd)(f, lambda: r(n, c, size, size), lambda: r(o, c // groups, k, k))

    def norm(x: Any, w: Any, b: Any) -> Any:
        m = x.mean(-1, keepdims=True)
        return (x - m) * jax.lax.rsqrt(((x - m) ** 2).mean(-1, keepdims=True) + 1e-5) * w + b

    def batch_norm(x: Any, w: Any, b: Any) -> Any:
        m = x.mean((0, 2, 3), keepdims=True)
        y = (x - m) * jax.lax.rsqrt(((x - m) ** 2).mean((0, 2, 3), keepdims=True) + 1e-5)
        return jax.nn.relu(y * w[:, None, None] + b[:, None, None])

    def attention(q: Any, k: Any, v: Any) -> Any:
        swap = lambda x: jnp.swapaxes(x, 1, 2)
        return swap(jax.nn.dot_product_attention(swap(q), swap(k), swap(v), is_causal=True))

    def entropy(logits: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))

    def dense(n: int, m: int) -> tuple:
        return r(m, n) * n**-0.5, jnp.zeros(m)

    def apply(p: tuple, x: Any) -> Any:
        return x @ p[0].T + p[1]

    def adamw(ps: Any, gs: Any, ms: Any, vs: Any, n: Any) -> tuple:
        tree = jax.tree.map
        ms = tree(lambda m, g: 0.9 * m + 0.1 * g, ms, gs)
        vs = tree(lambda v, g: 0.999 * v + 0.001 * g * g, vs, gs)
        c1, c2 = 1 - 0.9**n, 1 - 0.999**n
        ps = tree(lambda p, m, v: p * (1 - 1e-6) - 1e-4 * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), ps, ms, vs)
        return ps, ms, vs

    def trained(loss: Callable, ps: Any) -> Call:
        zeros = jax.tree.map(jnp.zeros_like, ps)
        state = [ps, zeros, jax.tree.map(jnp.zeros_like, ps), jnp.float32(1)]

        def step(ps: Any, ms: Any, vs: Any, n: Any) -> tuple:
            value, gs = jax.value_and_grad(loss)(ps)
            return (*adamw(ps, gs, ms, vs, n), n + 1), value

        g = jax.jit(step, donate_argnums=(0, 1, 2))

        def call() -> None:
            state[:], _ = jax.block_until_ready(g(*state))

        return call

    def only_adamw() -> Call:
        shapes = [s for _ in range(12) for s in ((256, 256), (256,), (1024, 256), (1024,), (256, 1024), (256,))]
        ps, gs = [r(*s) for s in shapes], [r(*s) for s in shapes]
        state = [ps, [jnp.zeros_like(p) for p in ps], [jnp.zeros_like(p) for p in ps]]
        g = jax.jit(adamw, donate_argnums=(0, 2, 3))

        def call() -> None:
            state[:] = jax.block_until_ready(g(state[0], gs, state[1], state[2], jnp.float32(7)))

        return call

    def mlp(train: bool) -> Callable[[], Call]:
        def forward(ps: list, x: Any) -> Any:
            for p in ps[:-1]:
                x = jax.nn.relu(apply(p, x))
            return apply(ps[-1], x)

        def make() -> Call:
            ps, x, y = [dense(784, 512), dense(512, 512), dense(512, 10)], r(128, 784), jnp.zeros(128, jnp.int32)
            return trained(lambda ps: entropy(forward(ps, x), y), ps) if train else fwd(forward, ps, x)()

        return make

    def gpt(train: bool) -> Callable[[], Call]:
        width, heads, vocabulary = 256, 8, 1024

        def forward(ps: dict, at: Any) -> Any:
            x = ps["table"][at]
            n, t, c = x.shape
            for p in ps["blocks"]:
                q, k, v = (y.reshape(n, t, heads, -1) for y in jnp.split(apply(p["qkv"], norm(x, *p["norm1"])), 3, -1))
                y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(n, t, c)
                x = x + apply(p["out"], y)
                x = x + apply(p["down"], jax.nn.gelu(apply(p["up"], norm(x, *p["norm2"])), approximate=False))
            return norm(x, *ps["norm"]) @ ps["head"].T

        def make() -> Call:
            unit = lambda: (jnp.ones(width), jnp.zeros(width))
            block = lambda: {"qkv": dense(width, 3 * width), "out": dense(width, width), "up": dense(width, 4 * width),
                             "down": dense(4 * width, width), "norm1": unit(), "norm2": unit()}  # fmt: skip
            ps = {
                "table": r(vocabulary, width),
                "head": r(vocabulary, width) * width**-0.5,
                "norm": unit(),
                "blocks": [block(), block()],
            }
            at, y = jax.random.randint(key, (4, 256), 0, vocabulary), jnp.zeros(4 * 256, jnp.int32)
            if not train:
                return fwd(forward, ps, at)()
            return trained(lambda ps: entropy(forward(ps, at).reshape(-1, vocabulary), y), ps)

        return make

    def cross_entropy() -> Call:
        x, y = r(1024, 8192), jax.random.randint(key, (1024,), 0, 8192)
        g = jax.jit(jax.value_and_grad(entropy))
        return lambda: jax.block_until_ready(g(x, y))

    def embedding() -> Call:
        w, at = r(8192, 512), jax.random.randint(key, (8, 256), 0, 8192)
        return both(lambda w: w[at], w)()

    def gelu_chain(x: Any, b: Any, y: Any) -> Any:
        return jax.nn.gelu(x + b, approximate=False) * jax.nn.sigmoid(y)

    def big() -> Any:
        return r(2048, 1024)

    def lin(x: Any, w: Any, b: Any) -> Any:
        return x @ w.T + b

    def product(m: int, k: int, n: int) -> Callable:
        return fwd(lambda a, b: a @ b, lambda: r(m, k), lambda: r(k, n))

    def linear(m: int, k: int, n: int) -> Callable:
        return fwd(lin, lambda: r(m, k), lambda: r(n, k), lambda: r(n))

    qkv = [lambda: r(2, 8, 512, 64)] * 3
    scale = [lambda: r(1024), lambda: r(1024)]
    return {
        "gelu(x + b) * sigmoid(y), 2048 x 1024": fwd(gelu_chain, big, lambda: r(1024), big),
        "softmax, 2048 x 1024": fwd(jax.nn.softmax, big),
        "softmax, 2048 x 1024, training": both(jax.nn.softmax, big),
        "layer_norm, 2048 x 1024": fwd(norm, big, *scale),
        "layer_norm, 2048 x 1024, training": both(norm, big, *scale),
        "batch_norm + relu, 16 x 64 x 32 x 32, training": both(
            batch_norm, lambda: r(16, 64, 32, 32), lambda: r(64), lambda: r(64)
        ),
        "cross_entropy, 1024 x 8192, training": cross_entropy,
        "embedding, 2048 of 8192 x 512, training": embedding,
        "sum of columns, 4096 x 1024": fwd(lambda x: x.sum(0), lambda: r(4096, 1024)),
        "x.t() + y, 1024 x 1024": fwd(lambda x, y: x.T + y, lambda: r(1024, 1024), lambda: r(1024, 1024)),
        "attention, causal, 2 x 8 x 512 x 64": fwd(attention, *qkv),
        "attention, causal, 2 x 8 x 512 x 64, training": both(attention, *qkv),
        "matmul, 64 x 64 x 64": product(64, 64, 64),
        "matmul, 256 x 256 x 256": product(256, 256, 256),
        "matmul, 1024 x 1024 x 1024": product(1024, 1024, 1024),
        "linear, 1 x 768 -> 3072": linear(1, 768, 3072),
        "linear, 8 x 768 -> 3072": linear(8, 768, 3072),
        "linear + gelu, 512 x 768 -> 3072": fwd(
            lambda x, w, b: jax.nn.gelu(lin(x, w, b), approximate=False),
            lambda: r(512, 768),
            lambda: r(3072, 768),
            lambda: r(3072),
        ),
        "linear, 512 x 768 -> 768, training": both(lin, lambda: r(512, 768), lambda: r(768, 768), lambda: r(768)),
        "batched matmul, 64 x 128 x 64 x 128": fwd(lambda a, b: a @ b, lambda: r(64, 128, 64), lambda: r(64, 64, 128)),
        "conv 3x3, 4 x 64 x 56 x 56": conv(4, 64, 56, 64, 3),
        "conv 3x3, 4 x 64 x 56 x 56, training": conv(4, 64, 56, 64, 3, train=True),
        "conv 3x3, 4 x 256 x 14 x 14": conv(4, 256, 14, 256, 3),
        "conv 3x3, 4 x 256 x 14 x 14, training": conv(4, 256, 14, 256, 3, train=True),
        "conv 7x7 / 2, 4 x 3 x 224 x 224": conv(4, 3, 224, 64, 7, 2),
        "conv 3x3 / 2, 4 x 64 x 56 x 56": conv(4, 64, 56, 128, 3, 2),
        "conv 3x3 / 2, 4 x 64 x 56 x 56, training": conv(4, 64, 56, 128, 3, 2, train=True),
        "conv 1x1, 4 x 256 -> 64 x 56 x 56": conv(4, 256, 56, 64, 1),
        "conv 1x1, 4 x 256 -> 64 x 56 x 56, training": conv(4, 256, 56, 64, 1, train=True),
        "depthwise 3x3, 4 x 144 x 56 x 56": conv(4, 144, 56, 144, 3, 1, 144),
        "depthwise 3x3 / 2, 4 x 144 x 56 x 56": conv(4, 144, 56, 144, 3, 2, 144),
        "max_pool 3x3 / 2, 4 x 64 x 112 x 112": fwd(pool, lambda: r(4, 64, 112, 112)),
        "max_pool 3x3 / 2, 4 x 64 x 112 x 112, training": both(pool, lambda: r(4, 64, 112, 112)),
        "AdamW, 72 parameters, 7 million numbers": only_adamw,
        "MLP 784-512-512-10, batch 128": mlp(False),
        "MLP 784-512-512-10, batch 128, AdamW step": mlp(True),
        "GPT, 2 blocks of 256, 4 x 256 tokens": gpt(False),
        "GPT, 2 blocks of 256, 4 x 256 tokens, AdamW step": gpt(True),
    }


# ---- the process


Rows = dict[str, Callable[[], dict[str, Callable[[], Call]]]]  #: name -> variants, each made when it is asked for


def variants_of(torch: Any, whole: bool, variants: dict[str, Compile], which: list[str]) -> Rows:
    here = TorchLike(torch, whole)
    rows = layers(here.F, here.randn, here.inference, here.layer) if which else here.rows()
    if which:
        variants = {v: how for v, how in variants.items() if (v == "") is whole and v != "compiled"}

    def variant(make: Callable, how: Compile) -> Callable[[], Call]:
        return lambda: make()(how)

    return {name: lambda make=make: {v: variant(make, how) for v, how in variants.items()} for name, make in rows.items()}  # type: ignore[misc]


class Measured:
    """The rows of this process: the calls that were made, what their first took, and what failed."""

    def __init__(self, rows: Rows):
        self.rows = rows
        self.calls: dict[str, dict[str, tuple[Call, float]]] = {}

    def __call__(self, name: str) -> Answer:
        if name not in self.rows:
            return {}
        if name not in self.calls:
            self.calls[name] = {v: made for v, make in self.rows[name]().items() if (made := self._first(name, v, make))}
        answer: Answer = {}
        for v, (call, first) in list(self.calls[name].items()):
            try:
                answer[v] = [each(call), first]
            except Exception:
                del self.calls[name][v]
                self._failed(name, v)
        return answer

    def _first(self, name: str, variant: str, make: Callable[[], Call]) -> tuple[Call, float] | None:
        """The call, and the seconds of its first two rounds (flame records in the first and compiles in the second)."""
        try:
            call = make()
            begin = time.perf_counter()
            call()
            call()
            return call, time.perf_counter() - begin
        except Exception:
            self._failed(name, variant)
            return None

    def _failed(self, name: str, variant: str) -> None:
        print(f"{name}, {variant or 'compiled'}: failed\n{traceback.format_exc(limit=3)}", file=sys.stderr, flush=True)


def main() -> None:
    framework, threads = sys.argv[1], int(sys.argv[2])
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        # One thread is one processor, whatever a framework's pool does; and the time of threads that run elsewhere at the
        # moment of asking is counted late, which made a pool's work seem to take less than the hardware can.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = os.environ["FLAME_NUM_THREADS"] = str(threads)
    if framework == "jax":
        rows: Rows = {name: lambda make=make: {"": make} for name, make in jax_rows().items()}  # type: ignore[misc]
    elif framework == "torch":
        import torch

        torch.set_num_threads(threads)
        rows = variants_of(torch, False, {"eager": lambda f: f, "compiled": torch.compile}, sys.argv[3:])
    else:
        import flame

        rows = variants_of(flame, True, {"": flame.compile, "eager": lambda f: f}, sys.argv[3:])
    measured = Measured(rows)
    print(json.dumps({"version": __import__(framework).__version__, "rows": list(rows)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measured(line.rstrip("\n"))), flush=True)


if __name__ == "__main__":
    main()
