"""Aliasing, views, in-place writes: one memory under several names, inside and outside."""

from __future__ import annotations

import pytest

import flame
from tests.capture_programs import Case, agree, batches, cases, drive, of_sizes, program, tensor

# -------------------------------------------------------------------- views


@program
def returns_only_a_view_of_its_argument(wrap):
    f = wrap(lambda x: x[1:])
    return drive(f, batches(4), after=lambda y: y.add_(1.0))


@program
def returns_a_view_of_a_view_and_the_whole(wrap):
    f = wrap(lambda x: (x.view(2, 2)[1], x.t() if x.ndim == 2 else x, x))
    return drive(f, batches(4), after=lambda r: r[0].mul_(2.0))


@program
def view_of_a_temporary_survives_it(wrap):
    f = wrap(lambda x: (x * 2).view(2, 3).t()[1:, 0])
    return drive(f, batches(6), after=lambda y: y.add_(1.0))


@program
def two_views_of_one_temporary_share_memory(wrap):
    @wrap
    def f(x):
        y = x * 2
        return y[:3], y[1:]

    return drive(f, batches(4), after=lambda r: r[0].fill_(7.0))


@program
def write_through_a_view_is_seen_by_the_whole(wrap):
    @wrap
    def f(x):
        y = x * 2
        y[1:3].add_(10.0)
        return y, y[2]

    return drive(f, batches(4))


@program
def write_to_the_whole_is_seen_by_views(wrap):
    @wrap
    def f(x):
        y = x * 2
        v, u = y[1:], y.view(2, 2).t()
        before = v + 0
        y.mul_(3.0)
        return before, v * 1, u * 1, v, u

    return drive(f, batches(4))


@program
def write_through_overlapping_views(wrap):
    @wrap
    def f(x):
        y = x * 2
        y[:3].add_(1.0)
        y[1:].mul_(2.0)
        y[2:3].copy_(y[0:1])
        return y

    return drive(f, batches(4))


@program
def shifts_within_one_memory(wrap):
    @wrap
    def f(x):
        y = x * 1.0
        y[1:] = y[:-1].clone()
        y[:-1] = y[1:] * 2
        return y

    return drive(f, batches(5))


@program
def copies_between_overlapping_windows(wrap):
    @wrap
    def f(x):
        x[1:].copy_(x[:-1].clone())
        return x * 2

    return drive(f, batches(5))


@program
def transposed_write(wrap):
    @wrap
    def f(x):
        y = x * 1.0
        y.t()[0].fill_(9.0)
        y.permute(1, 0)[1:, 1] = 4.0
        return y

    return drive(f, batches(3, 4))


@program
def strided_write(wrap):
    @wrap
    def f(x):
        y = x + 0
        y[::2] = 0.0
        y[1::3] += 5
        return y

    return drive(f, batches(7))


@program
def squeeze_unsqueeze_write(wrap):
    @wrap
    def f(x):
        y = x * 1
        y.unsqueeze(0).squeeze(0).unsqueeze(-1).add_(1.0)
        return y

    return drive(f, batches(3))


@program
def flatten_may_or_may_not_copy(wrap):
    @wrap
    def f(x, turned):
        y = x * 1
        z = y.t() if turned else y
        z.reshape(-1).add_(1.0)
        z.flatten()[0] = 3.0
        return y

    return drive(f, [(x, i in (2, 3, 6)) for i, x in enumerate(batches(2, 3, n=9))])


@program
def contiguous_of_contiguous_is_itself(wrap):
    @wrap
    def f(x):
        y = x * 1
        c = y.contiguous()
        c.add_(1)
        d = y.t().contiguous()
        d.add_(5)
        return y, c is y, d

    return drive(f, batches(2, 3))


@program
def expanded_memory_refuses_writes(wrap):
    @wrap
    def f(x):
        y = x.unsqueeze(0).expand(3, -1)
        try:
            y.add_(1.0)
        except RuntimeError as e:
            return y * 1, type(e).__name__
        return y

    return drive(f, batches(3))


@program
def chunks_written_one_by_one(wrap):
    @wrap
    def f(x):
        y = x * 1
        for i, c in enumerate(y.chunk(3)):
            c.mul_(i + 1)
        a, b = y.split([2, 4])
        a.sub_(b[:2])
        return y

    return drive(f, batches(6))


@program
def unbind_then_write(wrap):
    @wrap
    def f(x):
        y = x * 1
        for i, r in enumerate(y.unbind(0)):
            r[i % 2] = float(i)
        return y

    return drive(f, of_sizes((3, 3, 3, 2, 2, 4, 3), 2))


@program
def iterating_rows(wrap):
    @wrap
    def f(x):
        total = flame.zeros(2)
        for row in x:
            total += row * 2
        return total

    return drive(f, of_sizes((3, 3, 3, 1, 0, 0, 4, 3), 2))


@program
def diagonal_and_unfold_views(wrap):
    @wrap
    def f(x):
        return x.diagonal() * 2, x.unfold(0, 2, 1).sum(-1), x.trace()

    return drive(f, batches(3, 3))


@program
def narrow_and_select_write(wrap):
    @wrap
    def f(x):
        y = x.clone()
        y.narrow(1, 1, 2).fill_(0.0)
        y.select(0, 1).add_(2.0)
        return y

    return drive(f, batches(3, 4))


# -------------------------------------------------------------------- writing to what is outside


@program
def buffer_accumulates(wrap):
    buffer = flame.zeros(3)

    @wrap
    def f(x):
        buffer.add_(x)
        return buffer * 2

    return drive(f, batches(3), buffer)


@program
def argument_is_written(wrap):
    @wrap
    def f(x):
        x.mul_(2.0).add_(1.0)
        return x.sum()

    xs = batches(3)
    return drive(f, xs, xs)


@program
def argument_is_written_and_returned(wrap):
    @wrap
    def f(x):
        return x.relu_()

    def g(x):
        y = f(x)
        return [y is x, y, x]

    return drive(g, batches(3))


@program
def same_argument_twice(wrap):
    @wrap
    def f(a, b):
        a.add_(1.0)
        return a * b, b - a

    seen = []
    for i, x in enumerate(batches(3, n=8)):
        y = x if i in (0, 1, 4, 5) else tensor(3, seed=i)
        seen += drive(f, [(x, y)], x, y)
    return seen


@program
def two_views_of_one_memory_as_arguments(wrap):
    @wrap
    def f(a, b):
        a.add_(1.0)
        return a * 2, b * 2

    seen = []
    for i in range(8):
        x = tensor(6, seed=i)
        a, b = (x[:3], x[3:]) if i in (0, 1, 5) else (x[:3], x[1:4]) if i in (2, 3, 6) else (x[:3], x[:3])
        seen += drive(f, [(a, b)], x)
    return seen


@program
def whole_and_view_as_arguments(wrap):
    @wrap
    def f(a, b):
        b.mul_(2.0)
        c = a + 1
        a[0] = 5.0
        return c, b * 1

    seen = []
    for i in range(7):
        x = tensor(4, seed=i)
        seen += drive(f, [(x, x[:2] if i % 3 else x.detach())], x)
    return seen


@program
def detached_alias_as_argument(wrap):
    @wrap
    def f(a, b):
        y = a * 2
        b.add_(1.0)
        return y, a * 2

    seen = []
    for i in range(7):
        x = tensor(4, seed=i)
        seen += drive(f, [(x, x.detach())], x)
    return seen


@program
def view_of_a_buffer_made_outside(wrap):
    buffer = flame.zeros(2, 3)
    row = buffer[1]

    @wrap
    def f(x):
        row.add_(x)
        return buffer.sum(0)

    return drive(f, batches(3), buffer, row)


@program
def buffer_and_its_outside_view_both_written(wrap):
    buffer = flame.zeros(2, 3)
    row = buffer[1]

    @wrap
    def f(x):
        buffer.add_(1.0)
        row.mul_(2.0)
        buffer[0] = x
        return row + buffer[0]

    return drive(f, batches(3), buffer, row)


@program
def swap_two_buffers(wrap):
    a, b = tensor(3, seed=1), tensor(3, seed=2)

    @wrap
    def f(x):
        t = a.clone()
        a.copy_(b)
        b.copy_(t)
        return a * x

    return drive(f, batches(3), a, b)


@program
def written_between_calls(wrap):
    buffer = flame.zeros(3)
    f = wrap(lambda x: x + buffer)
    seen = []
    for i, x in enumerate(batches(3)):
        buffer.add_(float(i))
        seen += drive(f, [x])
    return seen


@program
def buffer_replaced_by_another_size(wrap):
    box = {"b": flame.zeros(3)}

    @wrap
    def f(x):
        if box["b"].shape != x.shape:
            box["b"] = flame.zeros(x.shape)
        box["b"].add_(x)
        return box["b"].sum()

    return drive(f, of_sizes((3, 3, 3, 5, 5, 3, 3, 5)), box)


@program
def writes_in_a_loop_over_rows(wrap):
    grid = flame.zeros(4, 3)

    @wrap
    def f(x):
        for i in range(4):
            grid[i] = x * i
        return grid.sum()

    return drive(f, batches(3), grid)


@program
def ring_buffer(wrap):
    ring = flame.zeros(4, 3)
    at = 0

    @wrap
    def f(x):
        nonlocal at
        ring[at % 4] = x
        at += 1
        return ring.mean(0)

    return drive(f, batches(3, n=12), ring)


@program
def in_place_chain_returns_self(wrap):
    buffer = flame.ones(3)

    @wrap
    def f(x):
        y = buffer.mul_(0.5).add_(x).clamp_(-1, 1)
        return y

    def g(x):
        return f(x) is buffer

    return drive(g, batches(3), buffer)


@program
def augmented_assignment_on_outside_and_inside(wrap):
    buffer = flame.zeros(3)

    @wrap
    def f(x):
        nonlocal buffer
        y = x * 1
        y += 1
        y *= buffer + 2
        y /= 3
        y -= x
        y **= 2
        buffer += y
        return y

    return drive(f, batches(3), lambda: buffer)


@program
def zeroed_and_refilled(wrap):
    scratch = flame.ones(3)

    @wrap
    def f(x):
        scratch.zero_()
        for i in range(3):
            scratch.add_(x, alpha=i)
        return scratch.clone()

    return drive(f, batches(3), scratch)


@program
def copy_with_a_cast(wrap):
    whole, half = flame.zeros(3, dtype=flame.int64), flame.zeros(3, dtype=flame.float16)

    @wrap
    def f(x):
        whole.copy_(x * 10)
        half.copy_(x)
        whole.add_(1)
        return whole + half

    return drive(f, batches(3), whole, half)


@program
def dtype_of_an_in_place_result_is_checked(wrap):
    counts = flame.zeros(3, dtype=flame.int64)

    @wrap
    def f(x):
        counts.add_(1)
        try:
            counts.add_(x)
        except RuntimeError as e:
            return type(e).__name__, counts * 1
        return counts

    return drive(f, batches(3), counts)


@program
def shape_of_an_in_place_result_is_checked(wrap):
    b = flame.zeros(3)

    @wrap
    def f(x):
        b.add_(1)
        b.add_(x)
        return b * 1

    return drive(f, [tensor(3), tensor(3), tensor(2, 3), tensor(3), tensor(1), tensor(4), tensor(3)], b)


@program
def out_arguments(wrap):
    out = flame.zeros(3)

    @wrap
    def f(x):
        flame.add(x, 1.0, out=out)
        y = out * 2
        flame.mul(out, x, out=out)
        return y

    return drive(f, batches(3), out)


@program
def resized_argument_memory_layouts(wrap):
    f = wrap(lambda x: (x * 2 + 1).sum(0))
    x = tensor(4, 4)
    given = [x, x, x.t(), x.t(), x[::2], x[:, 1:], x.t()[1:], x]
    return drive(f, given)


@program
def strides_of_results(wrap):
    @wrap
    def f(x):
        y = x.t()
        return y + 1, flame.zeros_like(y), y.clone(), y.contiguous(), x.permute(1, 0).exp()

    return drive(f, batches(2, 3))


@program
def alias_of_written_memory_when_the_path_is_left(wrap):
    table, w = tensor(4, seed=1), tensor(4, seed=2, grad=True)
    seen = table.detach()

    @wrap
    def f(x, k):
        table.mul_(0.9)
        total = table.sum() + x
        y = seen * 3.0
        z = seen + k
        return y * w, z, total

    return drive(
        f,
        [(tensor(4, seed=i), float(k)) for i, k in enumerate((1, 1, 2, 2, 3, 3))],
        table,
        seen,
        w,
        after=lambda r: r[0].sum().backward(),
    )


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
