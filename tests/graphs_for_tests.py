"""Graphs to test compilers with: a direct evaluator, random graphs with fixed seeds, and a training step's worth of nodes.

evaluate(graph, arrays)            each node by its primitive's eager function; `precise`: all floats as float64
random_graph(seed, ...)            a graph over many primitives, wasteful on purpose (x * 1, neg of neg, equal nodes)
random_inputs(graph, seed)         arrays that fit its inputs
transformer(layers, ...)           logits and loss of a small GPT, built of primitives
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import flame.ops  # noqa: F401  (fills the registry)
from flame import dtypes as dt
from flame.compiler.graph import Builder, Graph, Value
from flame.dtypes import dtype
from flame.primitive import Spec, registered


def op(name: str, *operands: Any, **params: Any) -> Any:
    """A primitive by name, under the interpreter in force."""
    return registered(name)(*operands, **params)


def wide(d: Any) -> Any:
    return dt.float64 if isinstance(d, dtype) and d.kind == "f" else d


def evaluate(graph: Graph, arrays: Sequence[np.ndarray], precise: bool = False) -> list[np.ndarray]:
    """The results by running node after node, every value C-contiguous (NumPy's sums depend on the layout)."""

    def settled(a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a).reshape(a.shape)

    have: dict[Value, np.ndarray] = {}
    for v, a in zip(graph.inputs, arrays, strict=True):
        have[v] = settled(a.astype(wide(v.dtype).numpy) if precise else a)
    for n in graph.nodes:
        params = {k: wide(x) if precise else x for k, x in n.params.items()}
        got = n.primitive.eager(*(have[x] if isinstance(x, Value) else x for x in n.operands), **params)
        for o, a in zip(n.outputs, got if isinstance(got, tuple) else (got,), strict=True):
            have[o] = settled(a)
            expected = wide(o.dtype) if precise else o.dtype
            assert have[o].shape == o.shape and have[o].dtype == expected.numpy, (n, have[o].dtype, have[o].shape)
    return [have[o] for o in graph.outputs]


def random_inputs(graph: Graph, seed: int = 0, low: float = -2.0, high: float = 2.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    out = []
    for v in graph.inputs:
        if v.dtype.kind == "f":
            out.append(rng.uniform(low, high, v.shape).astype(v.dtype.numpy))
        elif v.dtype.kind == "b":
            out.append(rng.integers(0, 2, v.shape).astype(np.bool_))
        else:
            out.append(rng.integers(0, 4, v.shape).astype(v.dtype.numpy))
    return out


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in every bit, but that NaNs are equal whatever their payload."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind in "fV":
        x, y = a.astype(np.float64), b.astype(np.float64)
        same = (x == y) & (np.signbit(x) == np.signbit(y)) | (np.isnan(x) & np.isnan(y))
        return bool(np.all(same))
    return bool(np.array_equal(a, b))


class _Draw:
    """A random graph under construction."""

    def __init__(self, seed: int, smooth: bool, floats: Sequence[dtype]):
        self.rng = np.random.default_rng(seed)
        self.smooth = smooth
        self.floats = floats
        self.builder = Builder()
        self.pool: list[Value] = []

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, xs: Sequence[Any]) -> Any:
        return xs[int(self.rng.integers(len(xs)))]

    def value(self, condition: Callable[[Value], bool] = lambda v: True) -> Value | None:
        """A value of the pool, recent ones more likely."""
        found = [v for v in self.pool if condition(v)]
        return found[-1 - int(len(found) * self.rng.random() ** 2)] if found else None

    def float_value(self, rank: int = 0) -> Value | None:
        return self.value(lambda v: v.dtype.kind == "f" and v.ndim >= rank)

    def number(self) -> float:
        return self.pick([1.0, -1.0, 0.0, -0.0, 2.0, 0.5, 0.25, 3.0, -0.7, 1.5])

    def partner(self, x: Value) -> Any:
        """Something to combine with x: a value that broadcasts with it, a constant array, or a number."""
        if self.chance(0.2):
            return self.number()
        if self.chance(0.15):
            shape = x.shape if self.chance(0.5) else (1,) * x.ndim
            return op("full", self.number(), shape=shape, dtype=x.dtype)

        def fits(v: Value) -> bool:
            if v.dtype is not x.dtype:
                return False
            return all(a == b or 1 in (a, b) for a, b in zip(v.shape[::-1], x.shape[::-1]))

        y = self.value(fits)
        assert y is not None
        if self.chance(0.15):
            y = op("reshape", y, shape=(1,) * (max(0, x.ndim - y.ndim) + 1) + y.shape)
        return y

    # ------------------------------------------------------------------ steps

    def unary(self) -> Any:
        x = self.float_value()
        smooth = ["neg", "tanh", "sigmoid", "sin", "cos", "square", "copy"]
        rough = ["abs", "floor", "ceil", "relu", "sign", "round", "trunc", "exp", "sqrt", "log", "reciprocal", "rsqrt"]
        return op(self.pick(smooth if self.smooth else smooth + rough), x)

    def bounded(self) -> Any:
        """Functions that need their operand in a range: given one in it."""
        x = self.float_value()
        positive = op("add", op("square", op("tanh", x)), 0.5)
        return op(self.pick(["sqrt", "log", "rsqrt", "reciprocal", "exp"]), positive)

    def binary(self) -> Any:
        x = self.float_value()
        y = self.partner(x)
        name = self.pick(
            ["add", "sub", "mul", "mul", "add"] if self.smooth else ["add", "sub", "mul", "div", "maximum", "minimum"]
        )
        if name == "div" and self.smooth:
            y = op("add", op("square", y), 0.5) if isinstance(y, Value) else 2.0
        return op(name, x, y) if isinstance(y, Value) and self.chance(0.8) or self.chance(0.7) else op(name, y, x)

    def twice(self) -> Any:
        """What an optimizer should see through."""
        x = self.float_value()
        match int(self.rng.integers(6)):
            case 0:
                return op("neg", op("neg", x))
            case 1:
                return op("mul", x, op("full", 1, shape=x.shape, dtype=x.dtype))
            case 2:
                return op("permute", op("permute", x, dims=tuple(range(x.ndim))[::-1]), dims=tuple(range(x.ndim))[::-1])
            case 3:
                return op("reshape", op("reshape", x, shape=(x.spec.numel,)), shape=x.shape)
            case 4:
                return op("expand", x, shape=(2, *x.shape)) if x.spec.numel < 500 else op("copy", x)
            case _:
                y = self.partner(x)
                return op("add", op("mul", x, y), op("mul", y, x) if isinstance(y, Value) else op("mul", x, y))

    def reduce(self) -> Any:
        x = self.float_value(1)
        if x is None:
            return None
        dims = tuple(sorted(int(d) for d in self.rng.choice(x.ndim, int(self.rng.integers(1, x.ndim + 1)), replace=False)))
        name = self.pick(["sum"] if self.smooth else ["sum", "amax", "amin", "prod"])
        if name in ("amax", "amin") and 0 in (x.shape[d] for d in dims):
            name = "sum"
        if name == "sum":
            x = op("tanh", x)
        y = op(name, x, dim=dims, keepdim=self.chance(0.5))
        return y

    def movement(self) -> Any:
        x = self.float_value(1)
        if x is None:
            return None
        match self.pick("permute reshape slice flip pad cat expand".split()):
            case "permute":
                return op("permute", x, dims=tuple(int(d) for d in self.rng.permutation(x.ndim)))
            case "reshape":
                shape = [d for d in x.shape if d != 1]
                if len(shape) > 1 and self.chance(0.5):
                    shape[:2] = [shape[0] * shape[1]]
                if self.chance(0.5):
                    shape.insert(int(self.rng.integers(len(shape) + 1)), 1)
                return op("reshape", x, shape=tuple(shape))
            case "slice":
                starts = tuple(int(self.rng.integers(0, d + 1)) if d > 1 else 0 for d in x.shape)
                starts = tuple(min(a, max(d - 2, 0)) for a, d in zip(starts, x.shape, strict=True))
                steps = tuple(int(self.rng.integers(1, 3)) for _ in x.shape)
                return op("slice", x, starts=starts, stops=x.shape, steps=steps)
            case "flip":
                return op("flip", x, dims=(int(self.rng.integers(x.ndim)),))
            case "pad":
                lo = tuple(int(a) for a in self.rng.integers(0, 2, x.ndim))
                hi = tuple(int(a) for a in self.rng.integers(0, 3, x.ndim))
                return op("pad", x, lo=lo, hi=hi, value=self.pick([0.0, 1.0]))
            case "cat":
                d = int(self.rng.integers(x.ndim))
                y = self.value(
                    lambda v: (
                        v.dtype is x.dtype
                        and v.ndim == x.ndim
                        and v.shape[:d] + v.shape[d + 1 :] == x.shape[:d] + x.shape[d + 1 :]
                    )
                )
                whole = op("cat", x, y, dim=d)
                if self.chance(0.5):
                    return whole
                stops = tuple(x.shape[k] if k == d else n for k, n in enumerate(whole.shape))
                return op("slice", whole, starts=(0,) * x.ndim, stops=stops, steps=(1,) * x.ndim)
            case _:
                y = op("reshape", x, shape=(*x.shape[:1], 1, *x.shape[1:]))
                return op("expand", y, shape=(*x.shape[:1], int(self.rng.integers(1, 4)), *x.shape[1:]))

    def select(self) -> Any:
        x = self.float_value()
        c = op(self.pick(["lt", "ge", "ne"]), x, self.partner(x))
        if self.chance(0.3):
            c = op("logical_not", c)
        y = self.value(lambda v: v.dtype is x.dtype and (v.shape == c.shape or v.spec.numel == 1 and v.ndim <= c.ndim))
        return op("where", c, x, self.number() if y is None or self.chance(0.3) else y)

    def contract(self) -> Any:
        x = self.float_value(2)
        if x is None:
            return None
        k = x.shape[-1]
        y = self.value(lambda v: v.dtype is x.dtype and v.ndim == 2 and k in v.shape)
        if y is None:
            return None
        if y.shape[0] != k:
            y = op("permute", y, dims=(1, 0))
        return op("matmul", op("tanh", x), op("tanh", y))

    def cast(self) -> Any:
        x = self.float_value()
        if self.smooth or self.chance(0.4):
            return op("cast", x, dtype=self.pick(self.floats))
        to = self.pick([dt.bool_, dt.int64, dt.int32])
        return op("cast", op("cast", op("tanh", x), dtype=to), dtype=self.pick([x.dtype, dt.float64]))

    def gather(self) -> Any:
        x = self.float_value(1)
        index = self.value(lambda v: v.dtype is dt.int64 and v.ndim == 1)
        if x is None or index is None or x.shape[0] < 4:
            return None
        return op("index_select", x, index, dim=0)


def random_graph(
    seed: int,
    nodes: int = 14,
    *,
    smooth: bool = False,
    floats: Sequence[dtype] = (dt.float32,),
    sizes: Sequence[int] = (1, 2, 3, 5, 8),
    outputs: int = 2,
    kinds: str = "unary bounded binary twice reduce movement select contract cast gather",
) -> Graph:
    """A graph of about `nodes` steps (each of one or a few nodes), its last values among the results.

    `smooth` keeps to functions with a derivative everywhere.
    """
    draw = _Draw(seed, smooth, floats)
    main = floats[0]
    rank = draw.pick([1, 2, 2, 3])
    shape = tuple(draw.pick(sizes) for _ in range(rank))
    specs = [Spec(shape, main), Spec(shape[-1:], main), Spec(shape[:-1] + (1,), main), Spec((shape[-1], 4), main)]
    specs += [Spec((), main), Spec((3,), dt.int64), Spec(shape, draw.pick(floats))]
    draw.pool = [draw.builder.input(s, f"x{i}") for i, s in enumerate(specs)]
    steps = [getattr(draw, k) for k in kinds.split() for _ in range(3 if k in ("binary", "unary") else 1)]
    made: list[Value] = []
    with draw.builder:
        while len(made) < nodes:
            y = draw.pick(steps)()
            if y is not None and y.spec.numel <= 4096 and y.ndim <= 5:
                made.append(y)
                draw.pool.append(y)
    g = draw.builder.graph
    g.name = f"random_{seed}"
    some = [v for v in made if not smooth or v.dtype.kind == "f"]
    g.outputs = [draw.pick(some) for _ in range(outputs - 1)] + [some[-1]]
    if draw.chance(0.1):
        g.outputs.append(draw.pick(g.inputs[:3]))
    return g


def transformer(
    layers: int = 2, batch: int = 2, length: int = 8, width: int = 16, heads: int = 2, words: int = 32, d: dtype = dt.float32
) -> Graph:
    """Tokens and targets to the loss of a GPT; inputs are the two and then the weights. The result is the mean loss."""
    b = Builder()
    tokens = b.input(Spec((batch, length), dt.int64), "tokens")
    targets = b.input(Spec((batch * length,), dt.int64), "targets")

    def weight(name: str, *shape: int) -> Value:
        return b.input(Spec(shape, d), name)

    def norm(x: Value, name: str) -> Value:
        w, c = weight(f"{name}_w", width), weight(f"{name}_b", width)
        last = (x.ndim - 1,)
        m = op("mul", op("sum", x, dim=last, keepdim=True), 1 / width)
        e = op("sub", x, m)
        v = op("mul", op("sum", op("mul", e, e), dim=last, keepdim=True), 1 / width)
        return op("add", op("mul", op("mul", e, op("rsqrt", op("add", v, 1e-5))), w), c)

    def linear(x: Value, name: str, n: int) -> Value:
        w, c = weight(f"{name}_w", n, x.shape[-1]), weight(f"{name}_b", n)
        return op("add", op("matmul", x, op("permute", w, dims=(1, 0))), c)

    def softmax(x: Value) -> Value:
        last = (x.ndim - 1,)
        e = op("exp", op("sub", x, op("amax", x, dim=last, keepdim=True)))
        return op("div", e, op("sum", e, dim=last, keepdim=True))

    def attention(x: Value, name: str) -> Value:
        size = width // heads
        qkv = linear(x, f"{name}_qkv", 3 * width)

        def part(k: int) -> Value:
            y = op("slice", qkv, starts=(0, 0, k * width), stops=(batch, length, (k + 1) * width), steps=(1, 1, 1))
            return op("permute", op("reshape", y, shape=(batch, length, heads, size)), dims=(0, 2, 1, 3))

        q, k, v = part(0), part(1), part(2)
        s = op("mul", op("matmul", q, op("permute", k, dims=(0, 1, 3, 2))), size**-0.5)
        i = op("iota", size=length, dtype=dt.int64)
        s = op("where", op("le", op("reshape", i, shape=(1, length)), op("reshape", i, shape=(length, 1))), s, -1e9)
        y = op("permute", op("matmul", softmax(s), v), dims=(0, 2, 1, 3))
        return linear(op("reshape", y, shape=(batch, length, width)), f"{name}_out", width)

    def gelu(x: Value) -> Value:
        return op("mul", op("mul", x, 0.5), op("add", op("erf", op("mul", x, 0.5**0.5)), 1.0))

    with b:
        table = weight("table", words, width)
        x = op("add", op("index_select", table, tokens, dim=0), weight("places", length, width))
        for i in range(layers):
            x = op("add", x, attention(norm(x, f"l{i}_norm1"), f"l{i}_attention"))
            x = op("add", x, linear(gelu(linear(norm(x, f"l{i}_norm2"), f"l{i}_up", 4 * width)), f"l{i}_down", width))
        logits = op("matmul", norm(x, "norm"), op("permute", table, dims=(1, 0)))
        logits = op("reshape", logits, shape=(batch * length, words))
        m = op("amax", logits, dim=(1,), keepdim=True)
        total = op("add", op("log", op("sum", op("exp", op("sub", logits, m)), dim=(1,), keepdim=True)), m)
        chosen = op("gather", logits, op("reshape", targets, shape=(batch * length, 1)), dim=1)
        loss = op("mul", op("sum", op("sub", total, chosen), dim=(0, 1), keepdim=False), 1 / (batch * length))
    b.graph.outputs = [loss]
    b.graph.name = "transformer"
    return b.graph
