"""Exceptions, generators, recursion, nesting, methods, threads."""

from __future__ import annotations

import contextlib
import functools
import threading

import pytest

import flame
from tests.capture_programs import Case, agree, batches, cases, drive, of_sizes, program, tensor, watch

# -------------------------------------------------------------------- exceptions


@program
def raises_on_some_calls(wrap):
    log: list = []

    @wrap
    def f(x, bad):
        y = x * 2
        log.append(y)
        if bad:
            raise KeyError("bad")
        return y + 1

    return drive(f, [(x, i in (2, 3, 6)) for i, x in enumerate(batches(3, n=9))], log)


@program
def raises_on_the_first_call(wrap):
    @wrap
    def f(x, bad):
        y = x * 2
        if bad:
            raise KeyError("bad")
        return y + 1

    return drive(f, [(x, i in (0, 1, 4)) for i, x in enumerate(batches(3))])


@program
def raises_after_a_write(wrap):
    buffer = flame.zeros(3)

    @wrap
    def f(x, bad):
        buffer.add_(x)
        if bad:
            raise ValueError("after the write")
        buffer.mul_(2.0)
        return buffer * 1

    return drive(f, [(x, i in (0, 3, 4, 6)) for i, x in enumerate(batches(3, n=9))], buffer)


@program
def raises_after_backward(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, bad):
        loss = (x * w).exp().sum()
        loss.backward()
        if bad:
            raise ValueError("after backward")
        return loss

    return drive(f, [(x, i in (0, 3, 4, 6)) for i, x in enumerate(batches(3, n=9))], w)


@program
def caught_and_retried_inside(wrap):
    @wrap
    def f(x):
        for n in (5, 4, 3):
            try:
                return x.reshape(n, -1) * n
            except RuntimeError:
                x = x + 1
        return x

    return drive(f, of_sizes((6, 6, 10, 8, 6, 7, 6)))


@program
def caught_with_finally_and_else(wrap):
    log: list = []

    @wrap
    def f(x, y):
        try:
            z = x @ y
        except RuntimeError:
            z = x.sum()
        else:
            z = z + 1
        finally:
            log.append((x * 1).sum())
        return z

    good, bad = tensor(3, 2), tensor(4, 2)
    return drive(f, [(tensor(2, 3, seed=i), bad if i in (2, 5) else good) for i in range(8)], log)


@program
def shape_error_after_following(wrap):
    f = wrap(lambda x, y: (x * 2 + 1) @ y)
    return drive(f, [(tensor(2, 3), tensor(n, 2)) for n in (3, 3, 4, 3, 5, 3)])


@program
def type_error_of_an_operand(wrap):
    f = wrap(lambda x, y: x * 2 + y)
    return drive(f, [(tensor(3), y) for y in (1.0, 1.0, "a", 1.0, None, [1], 2.0)])


@program
def error_deep_inside_keeps_earlier_effects(wrap):
    log: list = []
    a, b = flame.zeros(3), flame.zeros(3)

    @wrap
    def f(x):
        a.add_(x)
        log.append(a.sum().item())
        b.add_(a[:2].sum())
        return b.view(4) if x.shape[0] == 3 and len(log) % 3 == 0 else b * 1

    return drive(f, batches(3, n=9), a, b, log)


@program
def keyboard_interrupt_like(wrap):
    class Stop(BaseException):
        pass

    @wrap
    def f(x, stop):
        y = x * 2
        if stop:
            raise Stop
        return y

    def g(x, stop):
        try:
            return f(x, stop)
        except Stop:
            return "stopped"

    return drive(g, [(x, i in (1, 3, 4)) for i, x in enumerate(batches(3))])


@program
def context_managers(wrap):
    log: list = []

    @contextlib.contextmanager
    def scope(y):
        log.append("in")
        try:
            yield y * 2
        finally:
            log.append(y.sum())

    @wrap
    def f(x):
        with scope(x) as a, scope(a) as b:
            return a + b

    return drive(f, batches(3), log)


@program
def suppressed_exception(wrap):
    @wrap
    def f(x, n):
        y = x * 2
        with contextlib.suppress(RuntimeError):
            y = y.view(n)
            y = y + 1
        return y

    return drive(f, [(x, n) for x, n in zip(batches(3), (3, 3, 4, 3, 4, 4, 3), strict=True)])


# -------------------------------------------------------------------- callables


@program
def generator_consumed_inside(wrap):
    @wrap
    def f(x):
        def rows():
            for i in range(x.shape[0]):
                yield x[i] * i

        return sum(rows(), flame.zeros(2))

    return drive(f, of_sizes((3, 3, 2, 3, 0, 4), 2))


@program
def generator_that_outlives_the_call(wrap):
    @wrap
    def f(x):
        y = x * 2
        return (y[i] + i for i in range(3))

    return drive(lambda x: list(f(x)), batches(3))


@program
def lazy_closure_returned(wrap):
    @wrap
    def f(x):
        y = x * 2
        return lambda k: y + k

    return drive(lambda x: f(x)(3.0), batches(3))


@program
def recursion(wrap):
    @wrap
    def f(x, n):
        return x if n == 0 else f(x * 0.5 + n, n - 1)

    return drive(f, [(x, n) for x, n in zip(batches(3, n=8), (2, 2, 3, 0, 2, 5, 3, 1), strict=True)])


@program
def recursion_over_a_tree(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(tree):
        return tree * w if isinstance(tree, flame.Tensor) else sum((f(t) for t in tree), flame.zeros(3)).tanh()

    def made(i):
        a, b, c = batches(3, n=3, seed=i)
        return [a, [a, b], [[a], b, c]][i % 3]

    return drive(f, [(made(i),) for i in range(9)], w, after=lambda y: y.sum().backward())


@program
def nested_compiled_functions(wrap):
    inner = wrap(lambda x, k: (x * k).tanh())

    @wrap
    def outer(x):
        return inner(x, 2.0) + inner(x, 3.0)

    seen = drive(outer, batches(3))
    seen += drive(inner, [(x, 2.0) for x in batches(3)])
    return seen + drive(outer, batches(3))


@program
def compiled_function_passed_as_an_argument(wrap):
    act = wrap(lambda x: x.sin())
    apply = wrap(lambda g, x: g(x * 2) + 1)
    return drive(lambda x, i: apply(act if i % 2 else flame.cos, x), [(x, i) for i, x in enumerate(batches(3, n=8))])


@program
def disabled_function_inside(wrap):
    log: list = []

    @flame.disable
    def aside(y):
        log.append(y.sum().item())
        return y * 2

    @wrap
    def f(x):
        return aside(x + 1) - 1

    return drive(f, batches(3), log)


@program
def partial_and_bound_methods(wrap):
    class Scale:
        def __init__(self, k):
            self.k = k

        def __call__(self, x):
            return x * self.k

        def shifted(self, x, by=0.0):
            return self(x) + by

    s = Scale(2.0)
    fs = [wrap(functools.partial(s.shifted, by=1.0)), wrap(s.shifted), wrap(s.__call__), wrap(Scale.shifted)]
    seen = []
    for i, x in enumerate(batches(3)):
        s.k = 2.0 + i // 3
        seen += [watch(lambda x=x: [fs[0](x), fs[1](x), fs[2](x), fs[3](s, x, 5.0)])]
    return seen


@program
def compiled_method_of_two_instances(wrap):
    class Net:
        def __init__(self, seed):
            self.w = tensor(3, seed=seed, grad=True)

        def forward(self, x):
            return (x * self.w).sum()

    Net.forward = wrap(Net.forward)
    nets = [Net(1), Net(2)]
    seen = []
    for i, x in enumerate(batches(3, n=10)):
        n = nets[(i // 2) % 2]
        seen += drive(n.forward, [x], n.w, after=lambda y: y.backward())
    return seen


@program
def instances_made_anew_each_call(wrap):
    class Net:
        def __init__(self, seed):
            self.w = tensor(3, seed=seed)

        def forward(self, x):
            return (x * self.w).sum()

    f = wrap(lambda n, x: n.forward(x) * 2)
    return drive(f, [(Net(i), x) for i, x in enumerate(batches(3))])


@program
def map_filter_and_comprehensions(wrap):
    @wrap
    def f(xs):
        ys = [x * i for i, x in enumerate(xs) if x.ndim]
        zs = {i: y.sum() for i, y in enumerate(map(lambda t: t + 1, ys))}
        return functools.reduce(lambda a, b: a + b, zs.values(), flame.zeros(())), list(filter(None, [1, 0, 2]))

    return drive(f, [(batches(3, n=n, seed=i),) for i, n in enumerate((2, 2, 3, 0, 1, 2, 3))])


@program
def decorators_and_closures_that_change(wrap):
    hooks: list = []

    def traced(g):
        @functools.wraps(g)
        def inside(*a):
            y = g(*a)
            for h in hooks:
                y = h(y)
            return y

        return inside

    f = wrap(traced(lambda x: x * 2))
    seen = []
    for i, x in enumerate(batches(3, n=9)):
        if i == 3:
            hooks.append(lambda y: y + 1)
        if i == 5:
            hooks.append(lambda y: y.exp())
        if i == 7:
            hooks.clear()
        seen += drive(f, [x])
    return seen


@program
def callback_given_by_the_caller(wrap):
    log: list = []

    @wrap
    def f(x, callback):
        y = x * 2
        callback(y)
        return y + 1

    calls = [lambda y: None, lambda y: log.append(y), lambda y: log.append(y.sum().item()), lambda y: y.add_(5.0)]
    return drive(f, [(x, calls[(i // 2) % 4]) for i, x in enumerate(batches(3, n=14))], log)


@program
def data_loader_as_a_generator(wrap):
    def loader():
        for i in range(8):
            yield tensor(4 if i < 7 else 2, 3, seed=i), i

    w = tensor(3, seed=1, grad=True)

    @wrap
    def step(x, i):
        w.grad = None
        ((x @ w) - i).square().mean().backward()
        with flame.no_grad():
            w.sub_(w.grad, alpha=0.01)

    return drive(step, loader(), w)


@program
def compiled_training_loop_over_a_generator(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def epoch(xs):
        losses = []
        for x in xs:
            w.grad = None
            loss = (x * w).tanh().square().sum()
            loss.backward()
            with flame.no_grad():
                w.sub_(w.grad, alpha=0.1)
            losses.append(loss.item())
        return losses

    return drive(epoch, [(iter(batches(3, n=n, seed=i)),) for i, n in enumerate((3, 3, 3, 2, 4, 3))], w)


# -------------------------------------------------------------------- threads


@program
def called_from_several_threads_in_turn(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp().sum())
    seen: list = []
    for x in batches(3, n=9):
        t = threading.Thread(target=lambda x=x: seen.extend(drive(f, [x], w, after=lambda y: y.backward())))
        t.start()
        t.join()
    return seen


@program
def called_from_several_threads_at_once(wrap):
    f = wrap(lambda x: ((x * 2).exp() + x.sum()).tanh())
    out: list = [None] * 4

    def work(k):
        out[k] = drive(f, batches(3, n=20, seed=1000 * k))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return out


@program
def two_compiled_functions_on_two_threads(wrap):
    w = tensor(3, seed=1)
    fs = [wrap(lambda x: (x * w).exp()), wrap(lambda x: (x + w).sin())]
    out: list = [None, None]

    def work(k):
        out[k] = drive(fs[k], batches(3, n=30, seed=k))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return out


@program
def thread_started_inside(wrap):
    @wrap
    def f(x):
        box: list = []
        t = threading.Thread(target=lambda: box.append(x * 2))
        t.start()
        t.join()
        return box[0] + x.sin()

    return drive(f, batches(3))


@program
def an_operation_that_always_raises(wrap):
    def f(x):
        y = (x * 2).tanh()
        return y @ flame.ones(7, 2)

    return drive(wrap(f), batches(3, 3))


@program
def an_error_that_is_always_caught(wrap):
    def f(x):
        y = x * 2
        for other in (flame.ones(7, 2), flame.ones(3, 3) > 0):
            try:
                y = y @ other
            except RuntimeError as e:
                y = y + len(str(e)) * 0.0
        return y.tanh()

    return drive(wrap(f), batches(3, 3))


def test_what_always_raises_is_recorded_once() -> None:
    def caught(x):
        y = x * 2
        with contextlib.suppress(RuntimeError):
            y @ flame.ones(7, 2)
        return y.tanh()

    def raised(x):
        (x * 2).tanh() @ flame.ones(7, 2)

    for f in (caught, raised):
        g = flame.compile(f, backend="eager")
        counts = []
        for x in batches(3, 3, n=6):
            with contextlib.suppress(RuntimeError):
                g(x)
            counts.append(g.stats.recorded)
        assert counts == counts[:1] * 6 and not g.stats.diverged, g.stats


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
