"""Object lifetimes and copies: escapes, deletions, results fed back, deepcopy and pickle."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest

import flame
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor

COUNTER = 0
CACHED: Any = None


# -------------------------------------------------------------------- lifetimes


@program
def escaped_then_deleted(wrap):
    kept: list = []

    @wrap
    def f(x):
        y = x * 2
        kept.append(y)
        z = y + 1
        del y
        return z.sum()

    seen = []
    for i, x in enumerate(batches(3, n=9)):
        seen += drive(f, [x], kept)
        if i % 3 == 2:
            kept.clear()
    return seen


@program
def escapes_only_sometimes(wrap):
    kept: list = []

    @wrap
    def f(x, keep):
        y = (x * 2).exp()
        if keep:
            kept.append(y)
        return y.sum()

    return drive(f, [(x, i in (3, 5, 6)) for i, x in enumerate(batches(3, n=9))], kept)


@program
def holds_the_last_result_while_called(wrap):
    @wrap
    def f(x):
        return x * 2, (x * 2).exp()

    seen, y = [], None
    for x in batches(3):
        z = y
        y = f(x)[0]
        seen += drive(lambda y=y, z=z: [y, z], [()])
    return seen


@program
def resurrected_through_a_weak_reference(wrap):
    refs: list = []

    @wrap
    def f(x):
        y = x * 2
        refs.append(weakref.ref(y))
        z = y + 1
        return z

    def g(x):
        z = f(x)
        return [z, refs[-1]() is None]

    return drive(g, batches(3))


@program
def result_feeds_the_next_call(wrap):
    @wrap
    def f(h, x):
        return (h * 0.5 + x).tanh()

    h, seen = flame.zeros(3), []
    for x in batches(3, n=9):
        h = f(h, x)
        seen += drive(lambda h=h: h, [()])
    return seen


@program
def result_feeds_the_next_call_and_is_differentiated(wrap):
    w = tensor(3, seed=9, grad=True)

    @wrap
    def f(h, x):
        return (h * w + x).tanh()

    seen = []
    for _ in range(3):
        h = flame.zeros(3)
        for x in batches(3, n=4):
            h = f(h, x)
        h.sum().backward()
        seen += drive(lambda h=h: [h, w], [()])
    return seen


@program
def object_with_finalizer(wrap):
    log: list = []

    class Guard:
        def __init__(self, y):
            self.y = y

        def __del__(self):
            log.append(float(self.y.detach().sum()))

    @wrap
    def f(x):
        g = Guard(x * 2)
        z = g.y + 1
        return z

    return drive(f, batches(3), log)


@program
def cycles_that_only_the_collector_frees(wrap):
    class Node:
        pass

    @wrap
    def f(x):
        a = Node()
        a.me, a.y = a, x * 2
        return a.y + 1

    def g(x):
        y = f(x)
        gc.collect(1)
        return y

    return drive(g, batches(3))


@program
def caller_keeps_a_view_of_the_last_result(wrap):
    @wrap
    def f(x):
        y = x * 2
        return y, y[1:]

    seen, kept = [], []
    for x in batches(4):
        y, v = f(x)
        kept.append(v)
        v.mul_(3.0)
        seen += drive(lambda y=y: [y, kept[-2:]], [()])
    return seen


@program(follows=False)
def exception_keeps_tensors_in_its_traceback(wrap):
    class Stop(RuntimeError):
        pass

    @wrap
    def f(x):
        e = Stop("stopped")
        e.y = x * 2
        raise e

    def g(x):
        try:
            f(x)
        except Stop as e:
            return e.y
        return None

    return drive(g, batches(3))


# -------------------------------------------------------------------- copies


@program
def deepcopy_of_a_result(wrap):
    @wrap
    def f(x):
        y = x * 2
        z = copy.deepcopy(y)
        z.add_(1.0)
        return y, z

    return drive(f, batches(3))


@program
def deepcopy_of_state_between_calls(wrap):
    class State:
        def __init__(self):
            self.w = tensor(3, seed=4)

    s = State()
    saved: list = []

    @wrap
    def f(x):
        s.w.add_(x)
        return s.w * 2

    def g(x):
        y = f(x)
        saved.append(copy.deepcopy(s))
        return y

    return drive(g, batches(3), lambda: [t.w for t in saved])


@program
def pickle_of_a_result(wrap):
    @wrap
    def f(x):
        return x * 2, x[1:]

    return drive(lambda x: pickle.loads(pickle.dumps(f(x))), batches(3))


@program
def pickle_inside(wrap):
    @wrap
    def f(x):
        y = x * 2
        z = pickle.loads(pickle.dumps(y))
        return y + z

    return drive(f, batches(3))


@program
def deepcopy_of_a_non_leaf_is_refused(wrap):
    w = tensor(3, seed=5, grad=True)

    @wrap
    def f(x):
        y = x * w
        try:
            copy.deepcopy(y)
        except RuntimeError as e:
            return y, str(e)[:40]
        return y, "copied"

    return drive(f, batches(3), w, after=lambda r: r[0].sum().backward())


@program
def copy_copy_shares_memory(wrap):
    box = [tensor(3, seed=6), tensor(3, seed=7)]

    @wrap
    def f(x):
        again = copy.copy(box)
        again[0].add_(x)
        return again[0] + box[0]

    return drive(f, batches(3), box)


@program
def compiled_function_is_reset_between_calls(wrap):
    f = wrap(lambda x: (x * 2).sum())
    seen = []
    for i, x in enumerate(batches(3, n=8)):
        if i == 4 and hasattr(f, "reset"):
            f.reset()
        seen += drive(f, [x])
    return seen


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
