"""Every public function of the sample table: against PyTorch, compiled against eager, and its derivatives against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from surface_samples import CASES, NOT_SMOOTH, NOT_THERE, ONCE, READS, I, T

import flame

EACH = [(n, k) for n, cases in CASES.items() for k in range(len(cases))]
IDS = [f"{n}-{k}" for n, k in EACH]


def function(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def filled(x: Any, module: Any, r: np.random.Generator, dtype: str, leaves: list | None = None) -> Any:
    """Arguments with arrays in the places of T and I, as tensors of `module`."""
    match x:
        case T():
            t = module.tensor(x.draw(r, dtype))
            if leaves is not None and t.is_floating_point() and x.kind != "c":
                t.requires_grad_()
                leaves.append(t)
            return t
        case I():
            return module.tensor(np.asarray(x.values if len(x.values) != 1 or isinstance(x.values[0], list) else x.values))
        case list() | tuple():
            return type(x)(filled(y, module, r, dtype, leaves) for y in x)
        case str() if x in ("float32", "float64", "int64"):
            return getattr(module, x)
        case _:
            return x


def call(name: str, k: int, module: Any, dtype: str, leaves: list | None = None) -> tuple[Any, tuple, dict]:
    args, kwargs = CASES[name][k]
    r = np.random.default_rng(k)
    args = filled(args, module, r, dtype, leaves)
    kwargs = {n: filled(v, module, r, dtype, leaves) for n, v in kwargs.items()}
    f = function(module, name)
    if dtype != "float32":  # indices given as floats are boundaries: in the operand's dtype
        cast = lambda t: t.to(getattr(module, dtype)) if hasattr(t, "dtype") and t.dtype is module.float32 else t
        args = tuple(tuple(map(cast, a)) if isinstance(a, tuple) else cast(a) for a in args)
    else:
        cast = lambda t: t.to(module.float32) if hasattr(t, "dtype") and t.dtype is module.float64 else t
        args = tuple(tuple(map(cast, a)) if isinstance(a, tuple) else cast(a) for a in args)
        kwargs = {n: tuple(map(cast, a)) if isinstance(a, tuple) else cast(a) for n, a in kwargs.items()}
    return f, args, kwargs


def flat(y: Any, module: Any) -> list:
    if isinstance(y, module.Tensor):
        return [y]
    return [t for v in y for t in flat(v, module)] if isinstance(y, list | tuple) else []


def numpy(t: Any) -> np.ndarray:
    return np.asarray(t.detach().numpy())


def gradients(y: Any, leaves: list, module: Any) -> list[np.ndarray | None]:
    outs = [t for t in flat(y, module) if t.requires_grad]
    if not outs:
        return [None] * len(leaves)
    r = np.random.default_rng(9)
    weights = [module.tensor(r.uniform(0.5, 1.5, tuple(t.shape))).to(t.dtype) for t in outs]
    got = module.autograd.grad(outs, leaves, weights, allow_unused=True)
    return [None if g is None else numpy(g) for g in got]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:.*in beta.*", "ignore:.*deprecated.*", "ignore:.*dim arg.*")
@pytest.mark.parametrize(("name", "k"), EACH, ids=IDS)
def test_functions_agree_with_pytorch(torch: Any, name: str, k: int) -> None:
    for dtype, close in (("float32", 2e-4), ("float64", 1e-8)):
        ours, theirs = [], []
        values = []
        for module, leaves in ((flame, ours), (torch, theirs)):
            f, args, kwargs = call(name, k, module, dtype, leaves)
            y = f(*args, **kwargs)
            values.append((y, flat(y, module)))
        (y, mine), (want, others) = values
        assert len(mine) == len(others)
        assert getattr(y, "_fields", None) == (getattr(want, "_fields", None) or _fields(want))
        for a, b in zip(mine, others, strict=True):
            assert str(a.dtype).split(".")[-1] == str(b.dtype).split(".")[-1]
            assert tuple(a.shape) == tuple(b.shape)
            np.testing.assert_allclose(numpy(a), numpy(b), rtol=close, atol=close)
        if dtype == "float64" and name not in NOT_SMOOTH | NOT_THERE:
            for g, h in zip(gradients(y, ours, flame), gradients(want, theirs, torch), strict=True):
                g = np.zeros_like(h) if g is None and h is not None else g
                h = np.zeros_like(g) if h is None and g is not None else h
                if g is not None:
                    np.testing.assert_allclose(g, h, rtol=1e-6, atol=1e-7)


def _fields(y: Any) -> Any:
    """The names of a structseq, PyTorch's kind of named tuple."""
    if not hasattr(y, "n_fields"):
        return None
    return tuple(n for n in type(y).__match_args__)


@pytest.mark.parametrize(("name", "k"), EACH, ids=IDS)
def test_functions_compile_to_what_they_do_eagerly(name: str, k: int) -> None:
    f, args, kwargs = call(name, k, flame, "float32")
    compiled = flame.compile(lambda *a: f(*a, **kwargs), fullgraph=name not in READS)
    want = [numpy(t) for t in flat(f(*args, **kwargs), flame)]
    for _ in range(3):
        got = [numpy(t) for t in flat(compiled(*args), flame)]
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def towards(r: np.random.Generator, a: np.ndarray) -> np.ndarray:
    """A random direction; a symmetric one from symmetric matrices, of which functions may read one triangle."""
    step = r.standard_normal(a.shape)
    square = a.ndim > 1 and a.shape[-1] == a.shape[-2]
    if square and np.array_equal(a, np.swapaxes(a, -1, -2)):
        step = (step + np.swapaxes(step, -1, -2)) / 2
    return np.tril(step) if square and np.array_equal(a, np.tril(a)) else step


SMOOTH = [(n, k) for n, k in EACH if n not in NOT_SMOOTH]


@pytest.mark.parametrize(("name", "k"), SMOOTH, ids=[f"{n}-{k}" for n, k in SMOOTH])
def test_derivatives_of_first_and_second_order_against_differences(name: str, k: int) -> None:
    leaves: list = []
    f, args, kwargs = call(name, k, flame, "float64", leaves)
    r = np.random.default_rng(5)

    def total() -> Any:
        outs = [t for t in flat(f(*args, **kwargs), flame) if t.requires_grad]
        weights = np.random.default_rng(9)
        parts = [(t * flame.tensor(weights.uniform(0.5, 1.5, tuple(t.shape)))).sum() for t in outs]
        return sum(parts[1:], parts[0]) if parts else None

    if not leaves or total() is None:
        pytest.skip("no floating argument, or a result that does not depend on it smoothly")
    steps = [flame.tensor(towards(r, numpy(t))) for t in leaves]

    def slope(order: int) -> Any:
        """The directional derivative, as a tensor that may be differentiated."""
        gs = flame.autograd.grad(total(), leaves, create_graph=order > 1, allow_unused=True)
        return sum(((g * s).sum() for g, s in zip(gs, steps, strict=True) if g is not None), flame.zeros(()))

    def moved(h: float, what: Any) -> float:
        with flame.no_grad():
            for t, s in zip(leaves, steps, strict=True):
                t.add_(s * h)
        out = float(what())
        with flame.no_grad():
            for t, s in zip(leaves, steps, strict=True):
                t.sub_(s * h)
        return out

    h = 1e-6
    first = float(slope(1))
    want = (moved(h, total) - moved(-h, total)) / (2 * h)
    np.testing.assert_allclose(first, want, rtol=1e-5, atol=1e-5)
    if name in ONCE:
        return
    once = slope(2)
    if not once.requires_grad:
        return
    gs = flame.autograd.grad(once, leaves, allow_unused=True)
    second = sum(float((g * s).sum()) for g, s in zip(gs, steps, strict=True) if g is not None)
    want = (moved(h, lambda: slope(1)) - moved(-h, lambda: slope(1))) / (2 * h)
    np.testing.assert_allclose(second, want, rtol=2e-4, atol=2e-4)
