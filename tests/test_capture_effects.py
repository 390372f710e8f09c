"""Side effects: what a compiled function does to lists, dicts, attributes, closures and globals, and prints."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import itertools
from contextlib import redirect_stdout
from typing import Any

import pytest

import flame
from tests.capture_programs import Case, agree, batches, cases, drive, of_sizes, program, tensor, watch

COUNTER = 0
CACHED: Any = None


# -------------------------------------------------------------------- lists, dicts, attributes, globals


@program
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


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
