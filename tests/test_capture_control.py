"""Control flow that values decide: branches, loops, breaks of the graph."""

from __future__ import annotations

import pytest

import flame
from tests.capture_programs import Case, agree, batches, cases, drive, of_sizes, program, tensor

# -------------------------------------------------------------------- values that decide


@program
def branch_on_a_value(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = x * w
        if y.sum() > 0:
            return (y * 2).sum()
        return (y - 1).exp().sum()

    return drive(f, batches(3, n=10), w, after=lambda y: y.backward())


@program
def branch_on_an_item(wrap):
    @wrap
    def f(x):
        m = x.max().item()
        return x / m if m > 0.5 else x * 3, m

    return drive(f, batches(3, n=10))


@program
def several_breaks_in_a_row(wrap):
    @wrap
    def f(x):
        a = (x * 2).sum().item()
        y = x + a
        b = y.mean().item()
        z = y * b
        if z.sum() > 0:
            z = z - 1
        c = z.tolist()
        return z, a, b, c

    return drive(f, batches(3, n=10))


@program
def breaks_with_gradient_flowing_across(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x * w).tanh()
        scale = h.detach().abs().max().item()
        y = h / scale
        if y.sum().item() > 0:
            y = y * w
        return y.sum()

    return drive(f, batches(3, n=10), w, after=lambda y: y.backward())


@program
def backward_inside_across_a_break(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x * w).exp()
        log = h.sum().item()
        loss = (h * w).sum()
        loss.backward()
        return log, loss

    return drive(f, batches(3, n=8), w)


@program
def write_before_and_after_a_break(wrap):
    buffer = flame.zeros(3)

    @wrap
    def f(x):
        buffer.add_(x)
        s = buffer.sum().item()
        buffer.mul_(0.5)
        v = buffer[1:]
        v.add_(s)
        return buffer * 2, v

    return drive(f, batches(3, n=8), buffer)


@program
def view_made_before_a_break_written_after(wrap):
    @wrap
    def f(x):
        y = x * 2
        v = y[1:]
        v.sum().item()
        v.add_(1.0)
        y.mul_(2.0)
        return y, v

    return drive(f, batches(3, n=8))


@program
def loop_until_converged(wrap):
    @wrap
    def f(x):
        n = 0
        while x.norm() > 0.5:
            x = x * 0.7
            n += 1
        return x, n

    return drive(f, [x * (i % 4 + 1) for i, x in enumerate(batches(3, n=10))])


@program
def loop_with_an_early_return(wrap):
    @wrap
    def f(x):
        for i, row in enumerate(x):
            if row.sum() > 0.4:
                return row * 2, i
        return x.sum(0), -1

    return drive(f, batches(4, 2, n=10))


@program
def loop_over_tokens(wrap):
    @wrap
    def f(tokens, table):
        out = flame.zeros(3)
        for t in tokens:
            if t == 0:
                continue
            if t == 9:
                break
            out = out * 0.5 + table[t]
        return out

    table = tensor(10, 3, seed=1)
    return drive(f, [(flame.tensor(t), table) for t in ([1, 2], [1, 2], [0, 3], [9, 1], [1, 9], [0, 0], [1, 2], [4, 5])])


@program
def assert_on_a_value(wrap):
    @wrap
    def f(x):
        y = x * 2
        if not (y.abs() < 1.9).all():
            raise ValueError("too large")
        return y + 1

    return drive(f, batches(6, n=10))


@program
def any_and_all_and_chained_comparison(wrap):
    @wrap
    def f(x):
        s = x.sum()
        return (x * 2 if -0.5 < s < 0.5 else x), any(v > 0.8 for v in x), max(x), sorted(x.tolist())

    return drive(f, batches(4, n=8))


@program
def truth_of_several_elements_raises(wrap):
    @wrap
    def f(x):
        y = x * 2
        if y:
            return y
        return y - 1

    return drive(f, of_sizes((1, 1, 2, 1, 0, 1, 3)))


@program
def index_by_value_in_python(wrap):
    functions = [flame.exp, flame.sin, lambda x: x * 2]
    f = wrap(lambda x, i: functions[int(i)](x) + 1)
    return drive(f, [(x, flame.tensor(i % 3)) for i, x in enumerate(batches(3, n=9))])


@program
def match_statement(wrap):
    @wrap
    def f(x, how):
        match how:
            case {"act": "exp", "scale": k}:
                return x.exp() * k
            case ["add", *ks]:
                return x + sum(ks)
            case str():
                return getattr(x, how)()
            case _:
                return x

    hows = [
        {"act": "exp", "scale": 2.0},
        ["add", 1, 2],
        "tanh",
        None,
        {"act": "exp", "scale": 3.0},
        ["add", 1, 2],
        "sin",
        "tanh",
    ]
    return drive(f, list(zip(batches(3, n=8), hows, strict=True)))


@program
def many_branches(wrap):
    @wrap
    def f(x, bits):
        for i in range(4):
            x = x * 2 if bits >> i & 1 else x - 1
        return x

    return drive(f, [(x, (i * 7) % 16) for i, x in enumerate(batches(3, n=40))])


@program(native=False)
def more_branches_than_are_kept(wrap):
    f = wrap(lambda x, name: getattr(x, name)().sum())
    names = [
        "exp", "sin", "cos", "tanh", "abs", "neg", "relu", "sigmoid", "square", "floor", "ceil", "sign", "erf", "expm1", "atan",
        "asinh", "sinh", "cosh", "round", "trunc", "exp2", "frac", "isnan", "isfinite", "isinf", "logical_not", "clone", "t",
    ]  # fmt: skip
    return drive(f, [(x, names[i % len(names)]) for i, x in enumerate(batches(3, n=70))])


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
