"""Every class of kernels held to the interpreter and to float64: random shapes and strides, every float dtype, 1 to 8 threads.

One row of `CLASSES` is a class: a function of tensors and how to draw its operands. Its result and the gradients of its operands
are computed eagerly, compiled, by the interpreter of kernels, and in float64. The compiled error may be twice eager's, and a unit
of the result's dtype; results do not depend on the number of threads, to the bit. Of float64, for which eager is the reference
itself, it may be 64 units.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn.functional as F
from flame import dtypes
from flame.runtime import executable

Draw = Callable[[np.random.Generator, int], list[tuple[int, ...]]]


def matrix(r: np.random.Generator, large: int) -> list[tuple[int, ...]]:
    return [(int(r.integers(1, 40)) * (1 + 9 * large), int(r.integers(1, 70)) * (1 + 9 * large))]


def like(n: int) -> Draw:
    """So many operands of one shape, some of them broadcast."""

    def draw(r: np.random.Generator, large: int) -> list[tuple[int, ...]]:
        (shape,) = matrix(r, large)
        return [shape] + [tuple(1 if r.random() < 0.3 else s for s in shape) for _ in range(n - 1)]

    return draw


def product(r: np.random.Generator, large: int) -> list[tuple[int, ...]]:
    m, n, k = (int(x) * (1 + 2 * large) for x in r.integers(1, 70, 3))
    return [(m, k), (k, n), (n,)]


def batched(r: np.random.Generator, large: int) -> list[tuple[int, ...]]:
    b, m, n, k = (int(x) for x in r.integers(1, 12 + 28 * large, 4))
    return [(b, m, k), (b, k, n)]


def vector(r: np.random.Generator, large: int) -> list[tuple[int, ...]]:
    n, k = (int(x) * (1 + 4 * large) for x in r.integers(1, 120, 2))
    return [(1, k), (n, k)]


def image(groups: bool, kernel: int) -> Draw:
    def draw(r: np.random.Generator, large: int) -> list[tuple[int, ...]]:
        c, o = (int(x) for x in r.integers(1, 9 + 24 * large, 2))
        y, x = (int(s) for s in r.integers(kernel, 12 + 12 * large, 2))
        return [(2, c, y, x), (c, 1, kernel, kernel) if groups else (o, c, kernel, kernel)]

    return draw


def heads(r: np.random.Generator, large: int) -> list[tuple[int, ...]]:
    t, s, d = int(r.integers(1, 30 + 60 * large)), int(r.integers(1, 30 + 60 * large)), int(r.integers(1, 4)) * 8
    return [(2, 3, t, d), (2, 3, s, d), (2, 3, s, d)]


def norm(r: np.random.Generator, large: int) -> list[tuple[int, ...]]:
    rows, columns = int(r.integers(1, 20)) * (1 + 9 * large), int(r.integers(2, 90)) * (1 + 4 * large)
    return [(rows, columns), (columns,), (columns,)]


CLASSES: dict[str, tuple[Callable[..., Any], Draw]] = {
    "pointwise": (lambda x, y, z: flame.where(x > y, x * y + z, flame.sigmoid(x) * flame.tanh(z)), like(3)),
    "movement": (lambda x, y: flame.cat([x.t(), (x - y).t()], 1).flip(0)[:, ::2] * 1.5, like(2)),
    "row reduction": (lambda x: x.sum(1) + x.amax(1) * x.square().mean(1), matrix),
    "column reduction": (lambda x: x.sum(0) * x.amin(0), matrix),
    "whole reduction": (lambda x: (x * x).sum() + x.amax(), matrix),
    "softmax": (lambda x: flame.softmax(x, 1) * flame.log_softmax(x, 0), matrix),
    "norm": (lambda x, w, b: F.layer_norm(x, x.shape[1:], w, b), norm),
    "loss": (lambda x: F.cross_entropy(x, flame.arange(x.shape[0]) % x.shape[1]), matrix),
    "gather": (lambda x: F.embedding(flame.arange(37) * 7 % x.shape[0], x), matrix),
    "scan": (lambda x: flame.cumsum(x, 1) * 0.125, matrix),
    "product": (lambda x, y, b: flame.relu(x @ y + b), product),
    "prologue": (lambda x, y, b: (flame.tanh(x) * 0.5) @ y.exp() * b, product),
    "batched product": (lambda x, y: flame.einsum("bmk,bkn->bnm", x, y), batched),
    "vector product": (lambda x, w: F.gelu(F.linear(x, w)), vector),
    "convolution": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), image(False, 3)),
    "depthwise": (lambda x, w: F.conv2d(x, w, padding=1, groups=x.shape[1]), image(True, 3)),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w.transpose(0, 1), stride=2), image(False, 2)),
    "pooling": (lambda x, w: F.max_pool2d(x, 2, 1) * F.avg_pool2d(x, 2, 1), image(False, 2)),
    "attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), heads),
}
KINDS = (dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.float16)
UNIT = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def drawn(r: np.random.Generator, shape: tuple[int, ...], d: dtypes.dtype) -> Any:
    """A tensor of that shape, whose memory is in order, turned, or a part of a larger one."""
    how = r.integers(3) if shape else 0
    if how == 0:
        return flame.tensor(r.standard_normal(shape)).to(d)
    if how == 1:
        order = r.permutation(len(shape))
        whole = flame.tensor(r.standard_normal([shape[a] for a in order])).to(d)
        return whole.permute(*(int(a) for a in np.argsort(order)))
    whole = flame.tensor(r.standard_normal([2 * s + 1 for s in shape])).to(d)
    return whole[tuple(slice(1, None, 2) for _ in shape)]


def with_gradients(f: Callable[..., Any]) -> Callable[..., list[Any]]:
    """The result, and the gradients of its operands under weights that differ everywhere."""

    def step(*xs: Any) -> list[Any]:
        xs = tuple(x.detach().requires_grad_() for x in xs)
        y = f(*xs)
        w = flame.linspace(0.5, 1.5, max(1, y.numel()), dtype=y.dtype)[: y.numel()].reshape(y.shape)
        got = flame.autograd.grad((y * w).sum(), xs, allow_unused=True)
        return [y.detach(), *(g for g in got if g is not None)]

    return step


def wide(xs: list[Any]) -> list[np.ndarray]:
    return [x.double().numpy() for x in xs]


def hold(name: str, seed: int, d: dtypes.dtype, large: int, thread_counts: tuple[int, ...]) -> None:
    f, draw = CLASSES[name]
    r = np.random.default_rng([zlib.crc32(name.encode()), seed])
    xs = [drawn(r, shape, d) for shape in draw(r, large)]
    step = with_gradients(f)
    with np.errstate(all="ignore"):
        exact, eager = wide(step(*(x.double() for x in xs))), wide(step(*xs))
    compiled = flame.compile(step, backend="llvm", dynamic=False)
    for _ in range(2):
        got = compiled(*xs)
    assert compiled.stats.compiled >= 1, compiled.stats
    results = {n: [] for n in thread_counts}  # type: dict[int, list[bytes]]
    before = flame.get_num_threads()
    try:
        for n in thread_counts:
            flame.set_num_threads(n)
            got = compiled(*xs)
            results[n] = [a.tobytes() for a in wide(got)]
    finally:
        flame.set_num_threads(before)
    assert len({tuple(b) for b in results.values()}) == 1, "results depend on the number of threads"
    others = {"compiled": wide(got)}
    if not large:
        by_definition = flame.compile(step, backend="interpret", dynamic=False)
        for _ in range(3):
            meant = by_definition(*xs)
        others["interpreted"] = wide(meant)
    for which, ours in others.items():
        for k, (a, b, c) in enumerate(zip(ours, eager, exact, strict=True)):
            assert a.shape == c.shape
            scale = np.abs(c).max(initial=0.0)
            mine, theirs = (np.abs(x - c).max(initial=0.0) for x in (a, b))
            limit = 2 * theirs + UNIT[d.name] * max(scale, 1e-3) * (64 if d is dtypes.float64 else 1)
            what = f"{name} {which}, result {k}, {d}, {[tuple(x.shape) for x in xs]}"
            assert mine <= limit, f"{what}: error {mine / UNIT[d.name]:.3g} units, eager {theirs / UNIT[d.name]:.3g}"


@pytest.mark.parametrize("d", KINDS, ids=lambda d: d.name)
@pytest.mark.parametrize("name", CLASSES)
def test_compiled_is_as_exact_as_eager(name: str, d: dtypes.dtype) -> None:
    hold(name, KINDS.index(d), d, 0, (1, 2))


@pytest.mark.parametrize("name", CLASSES)
def test_threads_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every phase of several chunks is run in parallel, by 1 to 8 threads."""
    monkeypatch.setattr(executable, "PARALLEL_MICROSECONDS", 0.0)
    hold(name, 9, KINDS[list(CLASSES).index(name) % 3], 1, tuple(range(1, 9)))
