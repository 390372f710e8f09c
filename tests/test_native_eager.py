"""Eager operations that are native do what Python's do: values, views, history, versions, errors; and they keep nothing."""

from __future__ import annotations

import gc
import itertools
import operator
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import flame
from flame.autograd import tape
from flame.autograd.watch import watching
from flame.capture import native
from flame.native import layout
from flame.primitive import REGISTRY

pytestmark = pytest.mark.skipif(bool(layout.usable()), reason=layout.usable())

SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (4,), (2, 3), (3, 1), (0, 2), (2, 1, 3))
ONE: dict[str, Callable[[Any], Any]] = {
    **{n: (lambda x, n=n: getattr(x, n)()) for n in ("exp", "sqrt", "neg", "abs", "sigmoid", "square", "sum", "t", "isnan")},
    "-x": operator.neg, "sum of rows": lambda x: x.sum(0), "kept": lambda x: x.sum(keepdim=True), "mean": lambda x: x.mean(),
    "view": lambda x: x.view(-1), "view()": lambda x: x.view(), "view 6": lambda x: x.view(3, 2),
    "view tuple": lambda x: x.view((1, -1)),
    "view 7": lambda x: x.view(7), "view float": lambda x: x.view(2.0), "reshape": lambda x: x.reshape(3, 2),
    "reshape 2": lambda x: x.reshape(2, 3, 1), "x[0]": lambda x: x[0], "x[-1]": lambda x: x[-1], "x[9]": lambda x: x[9],
    "x[1][0]": lambda x: x[1][0], "x[True]": lambda x: x[True], "x[1:]": lambda x: x[1:], "exp out": lambda x: flame.exp(x, out=x),
    "sum of wrong": lambda x: x.sum(5), "sum of more": lambda x: x.sum(0, False, 3), "x + None": lambda x: x + None,
    "copies": lambda x: flame.cat([x, x]), "positions": lambda x: x.argmax(), "pair": lambda x: x.max(0),
    **{
        f"{n}{given}": (lambda x, n=n, given=given: getattr(x, n)(*given))
        for n in ("sum", "mean", "amax", "amin", "argmax", "argmin", "cumsum")
        for given in ((0,), (-1,), (1, True), (0, False), (5,), ([0],), (True,), (0, 1), (None,))
    },
    "x**2.5": lambda x: x**2.5, "x**2.0": lambda x: x**2.0, "x**0.5": lambda x: x**0.5, "x**True": lambda x: x**True,
    "along dim=": lambda x: x.amax(dim=-1, keepdim=True), "turned": lambda x: x.t().cumsum(0) + x.t().amax(-1),
    "written view": lambda x: written(x), "row written": lambda x: row_written(x), "late view": lambda x: late(x),
}  # fmt: skip
TWO = {n: getattr(operator, n) for n in ("add", "sub", "mul", "truediv", "pow", "mod", "floordiv", "lt", "eq", "matmul")}


def written(x: Any) -> Any:
    """In place through a view, of a copy that has a history."""
    y = x * 2
    y.view(-1)[1:].mul_(3)
    return y


def row_written(x: Any) -> Any:
    y = x.clone()
    y[0].add_(1)
    return y.sum()


def late(x: Any) -> Any:
    """A view whose base was written since."""
    y = flame.zeros(x.shape, dtype=x.dtype)
    v = y.view(-1)
    y.copy_(x * 2)
    return v + 1


@pytest.fixture(scope="module", autouse=True)
def _as_before() -> Iterator[None]:
    was = native._State.force
    yield
    native.switch("on" if "capture" in was else "eager" if was else "off")


def told(t: Any) -> Any:
    """All that can be seen of a tensor."""
    if isinstance(t, tuple):
        return [told(x) for x in t]
    if not isinstance(t, flame.Tensor):
        return repr(t)
    a = t.detach().numpy() if t.dtype is not flame.bfloat16 else t.detach().float().numpy()
    v = t._view
    return (
        repr(t.dtype), tuple(t.shape), t.stride(), a.tobytes(), t.requires_grad, t.is_leaf, t._version, history(t.grad_fn),
        None if v is None else (v.chain, type(v).__name__, v.base._version, v.version, v.base is t),
    )  # fmt: skip


def history(node: Any) -> Any:
    if node is None or not hasattr(node, "operands"):
        return type(node).__name__
    kept = [(type(o).__name__, getattr(o, "shape", o)) for o in node.operands]
    return node.name(), node.params, kept, node.outputs, len(node.results), [history(e and e[0]) for e in node.edges]


def outcome(f: Callable, grad: bool, *xs: Any) -> Any:
    given = [x() if callable(x) else x for x in xs]
    try:
        with flame.set_grad_enabled(grad):
            y = f(*given)
            seen = told(y)
            if isinstance(y, flame.Tensor) and y.requires_grad:
                y.backward(flame.ones_like(y), retain_graph=True)
            return seen, [told(x) + ((None if x.grad is None else told(x.grad)),) for x in given if isinstance(x, flame.Tensor)]
    except Exception as e:
        return type(e).__name__, str(e)


def operands(dtype: str) -> list[Callable[[], Any]]:
    r = np.random.default_rng(5)
    made: list[Callable[[], Any]] = []
    for shape in SHAPES:
        a = r.uniform(-3, 3, shape)
        made.append(lambda a=a: flame.tensor(a).to(getattr(flame, dtype)))
    a = r.uniform(-3, 3, (3, 2))
    made.append(lambda: flame.tensor(a).to(getattr(flame, dtype)).t())
    if dtype.startswith("float"):
        made.append(lambda: flame.tensor(a, dtype=getattr(flame, dtype), requires_grad=True))
        made.append(lambda: flame.nn.Parameter(flame.tensor(a[0], dtype=getattr(flame, dtype))))
    return made


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bool"])
def test_native_and_python_operations_are_the_same(dtype: str) -> None:
    xs = operands(dtype)
    cases: list[tuple] = [(f, grad, x) for f in ONE.values() for x in xs for grad in (True, False)]
    others = [*xs[::2], lambda: 2, lambda: 0.5, lambda: -1.5, lambda: True, lambda: "no"]
    cases += [(f, True, x, y) for f in TWO.values() for x, y in itertools.product(xs, others)]
    cases += [(f, True, y, x) for f in TWO.values() for x, y in itertools.product(xs[-3:], others[-4:])]
    native.switch("off")
    python = [outcome(*c) for c in cases]
    native.switch("eager")
    assert type(vars(flame.Tensor)["__add__"]).__name__ == "method_descriptor"
    for c, want in zip(cases, python, strict=True):
        assert repr(outcome(*c)) == repr(want), c


def test_who_watches_sees_native_operations_too() -> None:
    native.switch("eager")
    x = flame.ones(3)
    seen: list[str] = []

    def watcher(process: Any, p: Any, xs: tuple, params: dict) -> Any:
        seen.append(p.name)
        return process(p, xs, params)

    with watching(watcher):
        (x + x).exp().sum(), x.view(3, 1), x[0]
    assert seen == ["add", "exp", "sum", "reshape", "slice", "reshape"]


def test_automatic_casts_are_heard() -> None:
    native.switch("eager")
    x = flame.ones(2, 2)
    with flame.autocast("cpu", dtype=flame.bfloat16):
        assert (x @ x).dtype is flame.bfloat16


def test_operations_keep_no_references() -> None:
    native.switch("eager")
    x, g = flame.ones(2, 3), flame.ones(2, 3, requires_grad=True)

    def turn() -> tuple[int, ...]:
        for _ in range(200):
            y = (g * x + 1.0).exp().view(6)
            y.sum().backward()
            x[1][0], x.view(3, 2), x.t(), x.sum(), g.exp().max(0)
            for wrong in (lambda: x + flame.ones(5), lambda: x.view(7), lambda: x[5], lambda: x.exp(3), lambda: x + "a"):
                with pytest.raises((RuntimeError, IndexError, TypeError)):
                    wrong()
        gc.collect()
        return len(gc.get_objects()), *(
            sys.getrefcount(t) for t in (x, g, x._array, None if x._storage is None else x._storage)
        )

    turn()
    before, after = turn(), turn()
    assert before[1:] == after[1:] and after[0] - before[0] < 20


PROGRAM = """
import flame
from flame.capture import native
x = flame.ones(3)
for _ in range(100):
    y = x + 1.0
native.wait()
print(native._State.force, y.tolist())
"""


@pytest.mark.parametrize(("knob", "said"), [("0", "() [2.0"), ("1", "('eager',) [2.0")])
def test_the_knob_decides(knob: str, said: str) -> None:
    env = {**os.environ, "FLAME_NATIVE": knob}
    got = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert said in got.stdout + got.stderr


def test_native_code_is_made_once_there_were_many_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    native.switch("off")
    monkeypatch.setattr(native, "OFTEN_EAGER", 3)
    monkeypatch.setattr(native.knobs, "native", "auto")
    monkeypatch.setattr(native._State, "jobs", {})
    native._count(True)
    x = flame.ones(3)
    for _ in range(2):
        x + x
    assert not native._State.jobs
    x + x
    native.wait()
    assert native._State.force == ("eager",)


@pytest.mark.parametrize("kind", [IndexError, ValueError, RuntimeError])
def test_an_operation_that_raises_is_not_run_again(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU found out about an earlier operation is raised once, and an operator of the user's may write to something."""
    runs = []

    def raises(*_: object, **__: object) -> None:
        runs.append(kind)
        raise kind("no")

    x, exp = flame.ones(3), REGISTRY["exp"]
    exp(x)
    monkeypatch.setitem(tape._MEANINGS, exp, (raises, tape._MEANINGS[exp][1]))
    with pytest.raises(kind, match="^no$"):
        exp(x)
    assert len(runs) == 1
