"""Known calls and inputs that enter in one check: what makes a call the same, and what must not be taken for the same."""

from __future__ import annotations

import gc
import weakref

import pytest

import flame
import flame.nn.functional as F
from flame import nn
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor

# -------------------------------------------------------------------- arguments


@program
def an_index_is_read_from_a_tensor_outside(wrap):
    f = wrap(lambda x, i: x.select(0, i) * 2)
    where = [flame.tensor(i) for i in (0, 1, 1, 2, 0, 0, 2)]
    return drive(f, [(x, i) for x, i in zip(batches(3, n=7), where, strict=True)])


@program
def numbers_that_are_equal_but_not_the_same(wrap):
    f = wrap(lambda x, n: (x.sum(0, n), F.softmax(x * n, -1)))
    return drive(f, [(x, n) for x, n in zip(batches(3, n=9), (1, True, 1, 0, False, 0, True, 1, 0), strict=True)])


@program
def signed_zero_and_nan_as_arguments(wrap):
    f = wrap(lambda x, n: 1 / x.clamp(n, n))
    zero, nan = 0.0, float("nan")
    return drive(
        f, [(x, n) for x, n in zip(batches(3, n=9), (zero, zero, zero, -zero, -zero, nan, nan, zero, -zero), strict=True)]
    )


@program
def a_list_is_not_a_tuple(wrap):
    f = wrap(lambda x, key: x[key])
    return drive(
        f, [(flame.arange(9.0).view(3, 3) + i, k) for i, k in enumerate([[0, 1], (0, 1), [0, 1], (0, 1), [0, 1], (0, 1)])]
    )


@program
def a_list_that_changes_in_place(wrap):
    shape = [3, 1]
    f = wrap(lambda x: x.reshape(shape) + 1)

    def call(x):
        y = f(x)
        shape.reverse()
        return y

    return drive(call, batches(3, n=8))


@program
def slices_that_change(wrap):
    f = wrap(lambda x, a, b: x[a:b] * 2 + x[..., None][0])
    return drive(f, [(x, a, b) for x, (a, b) in zip(batches(3, n=9), [(0, 2), (1, 3), (0, 2)] * 3, strict=True)])


@program
def keywords_and_their_order(wrap):
    f = wrap(lambda x, **k: x.view(1, 3).sum(**k) * 2)
    how = [dict(dim=0, keepdim=True), dict(keepdim=True, dim=0), dict(dim=1, keepdim=True), dict(dim=0)] * 3
    return drive(lambda x, k: f(x, **k), list(zip(batches(3, n=12), how, strict=True)))


@program
def lists_of_tensors(wrap):
    f = wrap(lambda x, y, n: flame.cat([x, y] * n, dim=0) + flame.stack((x, y)).sum())
    return drive(f, [(x, y, n) for x, y, n in zip(batches(3, n=8), batches(3, n=8), (1, 2, 1, 2, 1, 1, 2, 2), strict=True)])


@program
def the_default_dtype_changes(wrap):
    f, n = wrap(lambda n: flame.logsumexp(n, 0)), flame.arange(3)

    def call(n, d):
        flame.set_default_dtype(d)
        try:
            return f(n)
        finally:
            flame.set_default_dtype(flame.float32)

    dtypes = (flame.float32, flame.float32, flame.float64, flame.float64, flame.float32, flame.float64, flame.float32)
    return drive(call, [(n, d) for d in dtypes])


@program
def gradient_mode_changes(wrap):
    @wrap
    def f(x, w, on):
        with flame.set_grad_enabled(on):
            y = F.softmax(F.linear(x, w), -1)
        return y * 2

    w = tensor(3, 3, grad=True)
    return drive(
        f, [(x, w, on) for x, on in zip(batches(3, n=8), (True, True, False, False, True, False, True, False), strict=True)]
    )


# -------------------------------------------------------------------- results


@program
def a_call_that_gives_its_argument(wrap):
    @wrap
    def f(x):
        y = F.dropout(x, 0.5, training=False)
        z = (x * 2).contiguous()
        return [y is x, z.contiguous() is z, x.contiguous() is x, z + y]

    return drive(f, batches(3, n=6))


@program
def parts_are_views_of_the_argument(wrap):
    @wrap
    def f(x):
        y = x * 2
        a, b, c = y.split(1)
        t = y.view(3, 1).t()
        b.mul_(10)
        t.add_(1)
        return [y, a, b, c, t]

    return drive(f, batches(3, n=6))


@program
def parts_of_a_tensor_from_outside(wrap):
    @wrap
    def f(x):
        a, b, c = x.split(1)
        first = x[0]
        b.mul_(10)
        return [a + 1, c, first]

    xs = batches(3, n=6)
    return drive(f, xs, *xs)


@program
def views_that_nobody_looked_at_before_the_write(wrap):
    kept: list = []

    @wrap
    def f(x):
        y = x.exp()
        v = y.view(1, 3).transpose(0, 1)
        w = v[1:].reshape(-1).detach()
        y.mul_(2)
        kept[:] = [v, w]
        y[0] = 5.0
        return v.sum() + w.sum()

    return drive(f, batches(3, n=6), kept)


@program
def a_view_and_then_a_write(wrap):
    @wrap
    def f(x):
        y = x.exp()
        v = y.view(1, 3)
        w = v.t()
        y.mul_(2)
        z = y[1:]
        y.add_(w.sum())
        return [v, w + 1, z.sum()]

    return drive(f, batches(3, n=6))


@program
def gradients_through_known_views(wrap):
    w = tensor(6, 3, grad=True)

    @wrap
    def f(x):
        q, k = F.linear(x.view(1, 3), w).chunk(2, dim=-1)
        y = F.softmax(q.transpose(0, 1) @ k, dim=-1)
        loss = (y.reshape(-1)[1:] * 2).sum() + q.mean()
        loss.backward()
        return loss

    def call(x):
        w.grad = None
        return f(x).detach()

    return drive(call, batches(3, n=6), lambda: w.grad)


@program
def strides_of_a_view_that_is_pending(wrap):
    @wrap
    def f(x):
        y = (x * 2).view(3, 1).expand(3, 4)
        z = y.transpose(0, 1)
        return [y.stride(), z.stride(), z.is_contiguous(), z.contiguous().stride(), y[1:].t().stride(), z]

    return drive(f, batches(3, n=5))


@program
def pairs_with_names(wrap):
    @wrap
    def f(x):
        top = x.view(1, 3).max(dim=1)
        return [type(top).__name__, top.values, top.indices, x.sort().values]

    return drive(f, batches(3, n=5))


@program
def the_same_call_at_two_places(wrap):
    @wrap
    def f(x, deep):
        y = F.gelu(x)
        if deep:
            y = F.gelu(y)
            y = F.gelu(y)
        return F.gelu(x) + y

    return drive(f, [(x, d) for x, d in zip(batches(3, n=9), (0, 1, 0, 1, 1, 0, 0, 1, 1), strict=True)])


# -------------------------------------------------------------------- inputs


@program(host=True)
def an_input_that_changes_in_all_ways(wrap):
    w = nn.Parameter(flame.ones(2, 3))
    f = wrap(lambda x: (x * w).sum())

    def call(i):
        match i:
            case 3:
                w.requires_grad_(False)
            case 5:
                w.data = flame.ones(1, 3)
            case 7:
                w.requires_grad_(True)
            case 9:
                w.data = flame.ones(3, 2).t()
            case 11:
                w.detach().numpy()[0, 0] = 7.0
            case 13:
                w.data = flame.ones(2, 3, dtype=flame.float64)
        loss = f(tensor(3))
        if loss.requires_grad:
            w.grad = None
            loss.backward()
        return [loss.detach(), w.grad]

    return drive(call, [(i,) for i in range(16)])


@program
def one_memory_twice(wrap):
    f = wrap(lambda x, y: x * 2 + y)
    pairs = []
    for i in range(9):
        x, y = tensor(3), tensor(3)
        pairs.append([(x, y), (x, x), (x, x.detach()), (x, x[:]), (y, x)][i % 5])
    return drive(f, pairs)


@program
def two_tensors_of_one_memory_that_are_both_known(wrap):
    x, y = tensor(3), tensor(3)
    d = x.detach()

    @wrap
    def f(a, b):
        c = a - b * 3
        a.add_(1.0)
        return [c, a * 2 + b]

    pairs = [(x, y), (d, y), (x, y), (d, y), (x, d), (d, x), (x, d), (x, y), (d, y), (y, x)]
    return drive(f, pairs, x, y)


@program
def new_tensors_beside_known_ones(wrap):
    w, v = tensor(3), tensor(3)
    f = wrap(lambda x: (x - w) / v)
    return drive(f, [x for x in batches(3, n=4)] + [w, w, v, v] + [x for x in batches(3, n=3)])


@program
def an_input_that_is_written(wrap):
    state, other = tensor(3), tensor(3)

    @wrap
    def f(x):
        state.add_(x)
        y = state * 2
        other.copy_(state)
        state.mul_(0.5)
        return y

    return drive(f, batches(3, n=7), state, other)


# -------------------------------------------------------------------- who is alive


@program
def results_kept_in_all_ways(wrap):
    kept: dict = {}

    class Holder:
        pass

    holder = Holder()

    @wrap
    def f(x, i):
        a = x * 2
        b = a.view(3, 1)
        c = b.t() + 1
        kept["view"] = b if i % 2 else None
        holder.c = c if i % 3 else None
        kept["closure"] = (lambda: c.sum()) if i % 4 == 1 else None
        d = c.exp()
        d.mine = a  # an attribute of what is dropped
        return a.sum()

    def world():
        again = kept.get("closure")
        return [kept.get("view"), getattr(holder, "c", None), again() if again else None]

    return drive(f, [(x, i) for i, x in enumerate(batches(3, n=14))], world)


@program
def results_that_are_watched_as_they_go(wrap):
    @wrap
    def f(x):
        y = x * 2
        v = y.view(1, 3)
        seen = [weakref.ref(y), weakref.ref(v), weakref.ref(F.gelu(y))]
        gone = [r() is None for r in seen]
        del y
        gone += [r() is None for r in seen]
        del v
        return gone + [r() is None for r in seen]

    return drive(f, batches(3, n=5))


def test_only_what_is_kept_is_computed() -> None:
    @flame.compile(backend="eager")
    def f(x: flame.Tensor) -> flame.Tensor:
        y = x.exp()
        z = y.view(-1)
        (z * 3).sum()
        return y * 2

    for _ in range(4):
        f(flame.ones(2, 2))
    (graph,) = f.graphs
    assert len(graph.outputs) == 1, graph


def test_nothing_is_held_between_calls() -> None:
    f = flame.compile(lambda x, y: x * 2 + y, backend="eager")
    y = flame.ones(3)
    for _ in range(4):
        x = flame.ones(3)
        alive = weakref.ref(x)
        result = f(x, y)
        out = weakref.ref(result)
        del x, result
        gc.collect()
        assert alive() is None and out() is None
    assert f.stats.recorded < 10 and f.stats.flushed


def test_arguments_that_never_repeat_are_not_piled_up() -> None:
    f = flame.compile(lambda x, i: x[i : i + 1] * 2, backend="eager")
    x = flame.arange(40.0)
    for i in range(30):
        assert f(x, i).item() == 2 * i
    step = f._capture.root
    while step.children:
        assert step.macros is None or len(step.macros) <= 8
        step = step.children[0]


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_agrees_with_eager(case: Case, backend: str) -> None:
    agree(case, backend)
