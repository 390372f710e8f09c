"""Side effects, object lifetimes and copies: what a compiled function does to the world outside of its tensors."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import gc
import io
import itertools
import pickle
import weakref
from contextlib import redirect_stdout
from typing import Any

import pytest

import flame
from tests.capture_programs import Case, agree, batches, cases, drive, of_sizes, program, tensor, watch

COUNTER = 0
CACHED: Any = None


# -------------------------------------------------------------------- lists, dicts, attributes, globals


@program(native=True)
def appends_results_to_a_list(wrap):
    seen: list = []

    @wrap
    def f(x):
        y = x * 2
        seen.append(y)
        return y.sum()

    return drive(f, batches(3), seen)


@program
def appends_views_to_a_list(wrap):
    seen: list = []

    @wrap
    def f(x):
        y = x * 2
        seen.append(y[1:])
        seen.append(y.view(3, 1))
        y.add_(1.0)
        return y.sum()

    return drive(f, batches(3), seen)


@program
def pops_from_a_list_that_it_fills(wrap):
    queue: list = []

    @wrap
    def f(x):
        queue.append(x.exp())
        return queue.pop(0) + x if len(queue) > 3 else x

    return drive(f, batches(3, n=9), queue)


@program
def reads_what_the_last_call_left_in_a_dict(wrap):
    memory: dict = {}

    @wrap
    def f(x):
        before = memory.get("h")
        memory["h"] = x.tanh() if before is None else (x + before).tanh()
        return memory["h"].sum()

    return drive(f, batches(4), memory)


@program
def moving_average_as_an_attribute(wrap):
    class State:
        mean = flame.zeros(3)
        steps = 0

    s = State()

    @wrap
    def f(x):
        s.mean = s.mean * 0.9 + x * 0.1
        s.steps += 1
        return x - s.mean

    return drive(f, batches(3), lambda: [s.mean, s.steps])


@program
def bias_corrected_average(wrap):
    class State:
        mean = flame.zeros(3)
        steps = 0

    s = State()

    @wrap
    def f(x):
        s.steps += 1
        s.mean = s.mean * 0.9 + x * 0.1
        return s.mean / (1 - 0.9**s.steps)

    return drive(f, batches(3, n=10), lambda: [s.mean, s.steps])


@program
def counts_in_a_global(wrap):
    global COUNTER
    COUNTER = 0

    @wrap
    def f(x):
        global COUNTER
        COUNTER += 1
        return x * COUNTER

    return drive(f, batches(3), lambda: COUNTER)


@program
def keeps_a_tensor_in_a_global(wrap):
    global CACHED
    CACHED = None

    @wrap
    def f(x):
        global CACHED
        if CACHED is None:
            CACHED = flame.ones(3) * 2
        CACHED = CACHED + x
        return CACHED * 2

    return drive(f, batches(3), lambda: CACHED)


@program
def nonlocal_tensor(wrap):
    total = flame.zeros(())

    @wrap
    def f(x):
        nonlocal total
        total = total + x.sum()
        return x / total

    return drive(f, batches(3), lambda: total)


@program
def memoises_on_the_first_call(wrap):
    @functools.lru_cache(None)
    def mask(n):
        return flame.arange(n).unsqueeze(0) <= flame.arange(n).unsqueeze(1)

    @wrap
    def f(x):
        return flame.where(mask(x.shape[0]), x, 0.0)

    return drive(f, [tensor(n, n, seed=n) for n in (3, 3, 3, 4, 4, 3, 4, 3)])


@program
def lazily_built_parameter(wrap):
    made: list = []

    @wrap
    def f(x):
        if not made:
            made.append(flame.ones(x.shape[-1], requires_grad=True))
        return (made[0] * x).sum()

    return drive(f, batches(3), made, after=lambda y: y.backward())


@program
def prints_every_call(wrap):
    out = io.StringIO()

    @wrap
    def f(x):
        y = x * 3
        with redirect_stdout(out):
            print("y is", y, "of", tuple(y.shape))
        return y + 1

    return drive(f, batches(2), out.getvalue)


@program
def formats_a_value(wrap):
    log: list = []

    @wrap
    def f(x):
        y = x.sum()
        log.append(f"{y.item():.3f} {y:.2f} {y!r}")
        return y * 2

    return drive(f, batches(3), log)


@program
def itertools_state(wrap):
    ticks = itertools.count(1)

    @wrap
    def f(x):
        return x * next(ticks)

    return drive(f, batches(3))


@program
def deque_of_tensors(wrap):
    window: collections.deque = collections.deque(maxlen=3)

    @wrap
    def f(x):
        window.append(x.square())
        return flame.stack(list(window)).mean(0)

    return drive(f, batches(3, n=8), lambda: list(window))


@program
def defaultdict_accumulation(wrap):
    sums: Any = collections.defaultdict(float)

    @wrap
    def f(x, key):
        sums[key] = sums[key] + x.sum()
        return x

    return drive(f, [(x, "ab"[i % 2]) for i, x in enumerate(batches(3, n=8))], lambda: dict(sums))


@program
def returns_nested_structures(wrap):
    @dataclasses.dataclass
    class Out:
        y: Any
        parts: dict

    @wrap
    def f(x):
        return Out(x + 1, {"a": [x * 2, (x * 3,)], "b": None, "c": "text"})

    def g(x):
        out = f(x)
        return [out.y, out.parts]

    return drive(g, batches(3))


@program(follows=False)
def returns_its_argument(wrap):
    @wrap
    def f(x):
        return x, x

    def g(x):
        a, b = f(x)
        return [a is x, b is x, a]

    return drive(g, batches(3))


@program
def returns_the_same_tensor_twice(wrap):
    @wrap
    def f(x):
        y = x * 2
        return y, y, [y]

    def g(x):
        a, b, c = f(x)
        a.add_(1.0)
        return [a is b, c[0] is a, a, b]

    return drive(g, batches(3))


@program
def returns_nothing(wrap):
    box = flame.zeros(3)

    @wrap
    def f(x):
        box.add_(x)

    return drive(f, batches(3), box)


@program(follows=False)
def does_nothing(wrap):
    @wrap
    def f(x):
        return 5

    return drive(f, batches(3))


@program
def mutates_its_argument_list(wrap):
    @wrap
    def f(xs):
        xs.append(xs[-1] * 2)
        xs[0] = xs[0] + 1
        return len(xs)

    given = batches(3, n=1)
    return drive(f, [(given,) for _ in range(6)], given)


@program
def mutates_a_dict_argument(wrap):
    @wrap
    def f(d):
        d["y"] = d["x"] * 2
        d.setdefault("count", 0)
        d["count"] += 1
        return d["y"] * d["count"]

    shared = {"x": tensor(3)}
    return drive(f, [(shared,) for _ in range(7)], shared)


@program
def closure_over_a_loop_variable(wrap):
    functions = []
    for k in range(3):
        functions.append(lambda x, k=k: x * k)

    @wrap
    def f(x, i):
        return functions[i](x) + 1

    return drive(f, [(x, i % 3) for i, x in enumerate(batches(3, n=9))])


@program
def closure_rebound_between_calls(wrap):
    scale = 1.0

    @wrap
    def f(x):
        return x * scale

    seen = []
    for i, x in enumerate(batches(3)):
        scale = (1.0, 1.0, 2.0, 2.0, 1.0, -1.0, 0.0)[i]
        seen += drive(f, [x])
    return seen


@program
def default_argument_is_a_tensor(wrap):
    @wrap
    def f(x, total=flame.zeros(3)):  # noqa: B008
        total.add_(x)
        return total * 1.0

    return drive(f, batches(3))


@program
def keyword_and_star_arguments(wrap):
    @wrap
    def f(*xs, scale=1.0, **more):
        y = sum(xs, flame.zeros(3)) * scale
        for k in sorted(more):
            y = y - more[k]
        return y

    a, b, c = batches(3, n=3)
    calls = [
        ((a,), {}),
        ((a, b), {}),
        ((a, b), {"scale": 2.0}),
        ((a,), {"z": c}),
        ((a,), {"z": b, "y": c}),
        ((a, b), {}),
        ((a,), {}),
    ]
    return [watch(lambda p=p, k=k: f(*p, **k)) for p, k in calls * 2]


@program
def method_that_swaps_its_own_state(wrap):
    class Net:
        def __init__(self):
            self.a, self.b = tensor(3, seed=1), tensor(3, seed=2)

        def step(self, x):
            self.a, self.b = self.b, self.a * 0.5
            return x + self.a

    n = Net()
    return drive(wrap(n.step), batches(3), lambda: [n.a, n.b])


@program
def setattr_and_property(wrap):
    class Net:
        reads = 0

        @property
        def weight(self):
            self.reads += 1
            return self.w * 2

        def __init__(self):
            self.w = tensor(3, seed=3)

        def __call__(self, x):
            setattr(self, f"last_{self.reads % 3}", x.sum())
            return self.weight + self.weight + x

    n = Net()
    return drive(wrap(n.__call__), batches(3), lambda: dict(sorted(vars(n).items())))


@program
def monkeypatched_function(wrap):
    class Ops:
        act = staticmethod(lambda x: x.relu())

    @wrap
    def f(x):
        return Ops.act(x) * 2

    seen = []
    for i, x in enumerate(batches(3, n=8)):
        if i == 3:
            Ops.act = staticmethod(lambda x: x.tanh())
        if i == 6:
            Ops.act = staticmethod(lambda x: x.relu())
        seen += drive(f, [x])
    return seen


@program
def logs_only_every_third_call(wrap):
    log: list = []
    n = 0

    @wrap
    def f(x):
        nonlocal n
        y = x * 2
        if n % 3 == 2:
            log.append(y.mean().item())
        n += 1
        return y + 1

    return drive(f, batches(3, n=10), log)


@program
def warns_and_goes_on(wrap):
    log: list = []

    @wrap
    def f(x):
        try:
            return x.view(7)
        except RuntimeError as e:
            log.append(type(e).__name__)
            return x * 2

    return drive(f, of_sizes((3, 3, 7, 3, 7, 7, 3)), log)


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


@program(native=True)
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
        gc.collect()
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
