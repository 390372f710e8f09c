"""Updates that are followed in one check: which numbers are meant, which memory is written, and what has to go the long way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import flame
from flame import nn, optim
from flame.autograd.tape import assign, update
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor


def rule(tensors, numbers):
    rate, kept, shift = numbers
    for i in range(0, len(tensors), 3):
        p, g, m = tensors[i : i + 3]
        new = m * kept + g * 2.0
        assign(m, new)
        assign(p, p - new * rate + shift)
        assign(m, m * 0.5)


def driven(wrap, numbers, n: int = 3, between=None, make=tensor):
    """`rule` on a few parameters, with other numbers at each call."""
    ps, ms = [make(3, seed=i) for i in range(n)], [make(3, seed=9 + i) for i in range(n)]

    @wrap
    def f(x, *given):
        with flame.no_grad():
            update(rule, [t for p, m in zip(ps, ms, strict=True) for t in (p, x * 2, m)], given)
        return ps[0] + 1

    def call(x, i, given):
        if between is not None:
            between(i, ps, ms)
        return f(x, *given)

    xs = batches(3, n=len(numbers))
    return drive(call, [(x, i, given) for i, (x, given) in enumerate(zip(xs, numbers, strict=True))], *ps, *ms)


@program(native=True)
def numbers_that_change(wrap):
    return driven(wrap, [(0.1 * i, 0.9, 0.25) for i in range(1, 8)])


@program
def equal_numbers_that_part(wrap):
    return driven(wrap, [(0.1 * min(i, 9), 0.1 * i, 0.5) for i in range(1, 14)] + [(0.3, 0.7, 0.5), (0.2, 0.2, 0.5)])


@program
def a_number_that_was_always_the_same(wrap):
    return driven(wrap, [(0.1 * i, 0.9, 0.25 if i < 6 else 0.75) for i in range(1, 10)])


@program
def a_number_that_a_literal_has_too(wrap):
    return driven(wrap, [(0.1, x, 0.25) for x in (1.5, 2.0, 0.5, 2.0, 2.5, 0.5, 1.25, 2.0, 3.5)])


@program
def whole_numbers_zeros_and_nan(wrap):
    odd = (1, 1.0, 0.0, -0.0, 0, float("nan"), float("inf"), 2, 2.0, 0.0, -0.0)
    return driven(wrap, [(x, 0.9, 0.25) for x in odd] + [(0.5, x, -0.0) for x in odd])


@program(native=True, host=True)
def memory_that_numpy_shows(wrap):
    shown = []

    def between(i, ps, ms):
        if i == 4:
            shown.append(ms[1].numpy())
        if i == 6:
            shown[0][:] = 7.0
        if i == 8:
            shown.clear()

    return driven(wrap, [(0.1 * i, 0.9, 0.25) for i in range(1, 12)], between=between)


@program
def memory_seen_through_others(wrap):
    others = []

    def between(i, ps, ms):
        if i == 4:
            others.append(ms[0].detach())
        if i == 6:
            ps[1] = ms[0].view(3)
        if i == 8:
            ps[1] = ms[1][:]
        if i == 10:
            ps[1] = ps[0]

    return [driven(wrap, [(0.1 * i, 0.9, 0.25) for i in range(1, 14)], between=between), [o.tolist() for o in others]]


@program
def tensors_that_are_new_each_time(wrap):
    def between(i, ps, ms):
        ms[i % 3] = tensor(3, seed=20 + i)
        if i == 7:
            ps.pop()
            ms.pop()

    return driven(wrap, [(0.1 * i, 0.9, 0.25) for i in range(1, 12)], between=between)


@program(native=True)
def views_made_before_the_update(wrap):
    p, m = tensor(3), tensor(3, seed=1)

    @wrap
    def f(x, rate):
        v, w = p.view(3, 1), m[1:]
        before = v + 0
        with flame.no_grad():
            update(rule, [p, x * 2, m], (rate, 0.9, 0.25))
        return [before, v + 1, w, p * m]

    return drive(f, [(x, 0.1 * i) for i, x in enumerate(batches(3, n=8), 1)], p, m)


@program(native=True)
def what_was_read_before_stays(wrap):
    net = nn.Linear(3, 2)
    o = optim.AdamW(net.parameters(), lr=0.1)

    @wrap
    def f(x):
        o.zero_grad()
        y = net(x)
        loss = (y * y).sum()
        loss.backward()
        o.step()
        return [loss.detach(), net(x).detach(), net.weight.grad * 2]

    return drive(f, batches(4, 3, n=7), *net.parameters(), lambda: net.weight.grad)


@program
def the_rate_is_scheduled_and_some_gradients_are_missing(wrap):
    a, b = nn.Parameter(tensor(3)), nn.Parameter(tensor(3, seed=1))
    o = optim.Adam([{"params": [a], "lr": 0.1}, {"params": [b], "weight_decay": 0.1}], lr=0.01, amsgrad=True)
    schedule = optim.lr_scheduler.StepLR(o, 2, 0.5)

    @wrap
    def f(x, both):
        o.zero_grad()
        ((a * x).sum() + ((b * x * a).sum() if both else 0.0)).square().backward()
        o.step()

    def call(x, both):
        f(x, both)
        schedule.step()

    wanted = (1, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1)
    return drive(call, [(x, w) for x, w in zip(batches(3, n=12), wanted, strict=True)], a, b)


@program
def settings_change_between_steps(wrap):
    p = nn.Parameter(tensor(3))
    o = optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True)
    group = o.param_groups[0]

    @wrap
    def f(x):
        o.zero_grad()
        (p * x).square().sum().backward()
        o.step()

    def call(x, i):
        group["lr"] = 0.1 if i % 3 else 0.05
        group["nesterov"] = i % 4 < 2
        group["maximize"] = i == 9
        if i == 6:
            o.state[p].clear()
        if i == 8:
            o.load_state_dict(o.state_dict())
        f(x)

    return drive(call, [(x, i) for i, x in enumerate(batches(3, n=12))], p, lambda: o.state[p].get("momentum_buffer"))


def test_read_only_memory_is_refused_as_eagerly() -> None:
    a = np.ones(3, np.float32)
    m = flame.from_numpy(a)
    f = flame.compile(lambda x, r: update(rule, [x, x * 2, m], (r, 0.9, 0.25)), backend="eager")
    with flame.no_grad():
        for i in range(5):
            f(flame.ones(3), 0.1 * (i + 1))
        a.flags.writeable = False
        for _ in range(2):
            with pytest.raises(RuntimeError, match="read-only"):
                f(flame.ones(3), 0.9)


OPTIMIZERS: list[tuple[str, dict, int]] = [  # and how many tensors each writes for a parameter
    ("SGD", dict(momentum=0.9, nesterov=True, weight_decay=0.1), 2),
    ("AdamW", dict(amsgrad=True), 4),
    ("Adamax", dict(weight_decay=0.1), 3),
    ("NAdam", dict(weight_decay=0.1), 3),
    ("RAdam", dict(weight_decay=0.1, decoupled_weight_decay=True), 3),
    ("RMSprop", dict(momentum=0.5, centered=True), 4),
    ("Adagrad", dict(lr_decay=0.1), 2),
    ("Adadelta", {}, 3),
    ("Rprop", {}, 3),
    ("ASGD", dict(t0=2.0), 2),
    ("Adafactor", dict(weight_decay=0.1), 3),
    ("Muon", dict(ns_steps=1), 2),
]


@pytest.mark.parametrize(("name", "settings", "writes"), OPTIMIZERS, ids=lambda v: v if isinstance(v, str) else "")
def test_one_check_for_all_parameters(name: str, settings: dict, writes: int) -> None:
    """Every optimizer's step over a group is one update, whose varying numbers (a bias correction) are slots."""
    ps = [nn.Parameter(flame.ones(2, i + 2)) for i in range(5)]
    o = getattr(optim, name)(ps, lr=0.1, **settings)

    @flame.compile(backend="eager")
    def step() -> None:
        o.step()

    for i in range(12):
        before = step.stats.recorded
        for p in ps:
            p.grad = flame.full(tuple(p.shape), 0.5 + i)
        step()
    assert step.stats.flushed >= 4 and step.stats.recorded == before and not step.given_up
    known = [m for s in _steps(step._capture.root) for m in s.macros or () if hasattr(m, "written")]
    assert any(len(m.written) == 5 * writes for m in known)


def _steps(root: Any) -> Iterator[Any]:
    todo = [root]
    while todo:
        s = todo.pop()
        yield s
        todo += s.children


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_agrees_with_eager(case: Case, backend: str) -> None:
    agree(case, backend)
