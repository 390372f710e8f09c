"""Masks and index tensors, memory shared with NumPy, preallocated caches, generation loops."""

from __future__ import annotations

import numpy as np
import pytest

import flame
from tests.capture_programs import Case, agree, array, batches, cases, drive, program, tensor

# -------------------------------------------------------------------- masks and index tensors


@program
def masked_write(wrap):
    buffer = flame.zeros(4)

    @wrap
    def f(x):
        y = x.clone()
        y[x > 0] = 0.5
        buffer[x < 0] = -1.0
        return y

    return drive(f, batches(4), buffer)


@program
def masked_write_of_a_tensor(wrap):
    @wrap
    def f(x):
        y = x.clone()
        m = x > 0
        y[m] = y[m] * 10
        return y

    return drive(f, batches(6))


@program
def masked_select_changes_size(wrap):
    @wrap
    def f(x):
        y = x * 2
        z = y[y > 0]
        return z * 3, z.shape[0]

    return drive(f, batches(6))


@program
def nonzero_then_index(wrap):
    @wrap
    def f(x):
        (i,) = flame.nonzero(x > 0, as_tuple=True)
        return x[i].sum() + i.numel()

    return drive(f, batches(6))


@program
def index_tensor_read_and_write(wrap):
    table = tensor(5, 3, seed=3)

    @wrap
    def f(i, x):
        table[i] = x
        table[i[0]] += 1
        return table[i] * 2

    given = [
        (flame.tensor(i), tensor(2, 3, seed=k)) for k, i in enumerate([[0, 1], [2, 4], [3, 3], [-1, 0], [1, 1], [0, 2], [4, 0]])
    ]
    return drive(f, given, table)


@program
def index_out_of_range_surfaces(wrap):
    table = tensor(5, 3, seed=3)

    @wrap
    def f(i):
        return table[i] * 2

    return drive(f, [flame.tensor([k]) for k in (0, 1, 2, 7, 3, -9, 4)], table)


@program
def index_add_and_scatter(wrap):
    table = flame.zeros(4, 2)

    @wrap
    def f(i, x):
        table.index_add_(0, i, x)
        y = flame.zeros(3, 4).scatter_(1, i.unsqueeze(1), 1.0)
        return y, table.gather(0, i.unsqueeze(1)), flame.zeros(4).scatter_add(0, i, x[:, 0])

    given = [
        (flame.tensor(i), tensor(3, 2, seed=k))
        for k, i in enumerate([[0, 1, 2], [3, 3, 3], [2, 1, 0], [0, 0, 1], [1, 2, 3], [3, 0, 3]])
    ]
    return drive(f, given, table)


@program
def index_with_none_ellipsis_and_lists(wrap):
    @wrap
    def f(x):
        return x[..., None], x[None, 1], x[[0, 2]], x[:, [1, 0]], x[-1, ..., 0], x[flame.tensor([True, False, True])]

    return drive(f, batches(3, 2))


@program
def index_by_a_python_number_that_changes(wrap):
    @wrap
    def f(x, i):
        y = x.clone()
        y[i] = 0.0
        return y, x[i], x[i:], x[: i + 1]

    return drive(f, [(x, i % 3) for i, x in enumerate(batches(4, n=9))])


@program
def index_by_a_tensor_item(wrap):
    @wrap
    def f(x):
        i = x.argmax()
        y = x.clone()
        y[int(i)] = 0.0
        return y, x[i]

    return drive(f, batches(4))


@program
def a_position_written_that_varies(wrap):
    """What is found out about one position while kernels are made for it does not hold of the others."""

    @wrap
    def f(x, i):
        y = x.clone()
        y[i] = 0.0
        y[i:].mul_(2.0)
        return y

    return drive(f, [(x, i) for x, i in zip(batches(4, n=10), (0, 0, 2, 3, 0, 1, 2, 1, 3, 0), strict=True)])


@program
def where_and_masked_fill(wrap):
    @wrap
    def f(x):
        m = x > 0
        y = x.masked_fill(m, float("-inf")).clamp(min=-5)
        y.masked_fill_(~m, 2.0)
        return y, flame.where(m, x, y), flame.where(m, 1.0, x)

    return drive(f, batches(4))


@program
def top_k_and_sort(wrap):
    @wrap
    def f(x):
        v, i = x.topk(2)
        s, j = x.sort(descending=True)
        y = x.clone()
        y[i] = 9.0
        return v, i, s, j, y

    return drive(f, batches(6))


@program
def empty_index_and_empty_mask(wrap):
    @wrap
    def f(x, n):
        y = x.clone()
        y[flame.zeros(0, dtype=flame.int64)] = 5.0
        y[y > n] = 1.0
        return y, y[y > n], x[:0]

    return drive(f, [(x, n) for x, n in zip(batches(4), (0.0, 9.0, 9.0, 0.0, -9.0, 9.0, 0.0), strict=True)])


# -------------------------------------------------------------------- NumPy


@program(host=True)
def numpy_of_a_result_then_written(wrap):
    f = wrap(lambda x: x * 2)

    def g(x):
        y = f(x)
        a = y.numpy()
        a += 1
        return y * 1

    return drive(g, batches(3))


@program(host=True)
def numpy_inside_then_written_inside(wrap):
    @wrap
    def f(x):
        y = x * 2
        a = y.numpy()
        a[0] = 100.0
        z = y + 1
        a[1] = 200.0
        return z, y

    return drive(f, batches(3))


@program(host=True)
def from_numpy_changes_between_calls(wrap):
    a = array(3)
    shared = flame.from_numpy(a)
    f = wrap(lambda x: x + shared)
    seen = []
    for i, x in enumerate(batches(3)):
        a[:] = i
        seen += drive(f, [x])
    return seen


@program(host=True)
def from_numpy_changes_inside(wrap):
    a = array(3)
    shared = flame.from_numpy(a)

    @wrap
    def f(x):
        y = x + shared
        a[:] += 1
        z = x + shared
        return y, z

    return drive(f, batches(3), a)


@program(host=True)
def tensor_write_is_seen_by_numpy(wrap):
    a = array(3)
    shared = flame.from_numpy(a)
    log: list = []

    @wrap
    def f(x):
        shared.add_(x)
        log.append(a.copy())
        shared[0] = 0.0
        return shared * 2

    return drive(f, batches(3), lambda: a.copy(), log)


@program(host=True)
def numpy_array_operand(wrap):
    @wrap
    def f(x):
        a = np.array([1.0, 2.0, 3.0], np.float32)
        return x + flame.tensor(a), x * flame.from_numpy(a * 2)

    return drive(f, batches(3))


@program
def constant_tensor_made_inside_from_changing_data(wrap):
    @wrap
    def f(x, data):
        return x + flame.tensor(data)

    return drive(f, [(x, [float(i), 2.0, 3.0]) for i, x in enumerate(batches(3))])


@program(host=True)
def as_tensor_shares(wrap):
    a = array(3)

    @wrap
    def f(x):
        t = flame.as_tensor(a)
        t.add_(x)
        return t * 2

    return drive(f, batches(3), lambda: a.copy())


@program
def tolist_and_back(wrap):
    @wrap
    def f(x):
        values = (x * 2).tolist()
        return flame.tensor(sorted(values)) + 1, len(values)

    return drive(f, batches(3))


@program(host=True)
def numpy_function_on_a_tensor(wrap):
    @wrap
    def f(x):
        y = x * 2
        return flame.from_numpy(np.sort(np.asarray(y))) + y

    return drive(f, batches(4))


@program(host=True)
def numpy_view_kept_across_calls(wrap):
    buffer = flame.zeros(3)
    kept: list = []

    @wrap
    def f(x):
        buffer.add_(x)
        return buffer * 2

    seen = []
    for i, x in enumerate(batches(3)):
        if i == 3:
            kept.append(buffer.numpy())
        seen += drive(f, [x], buffer, lambda: [k.copy() for k in kept])
    return seen


@program(host=True)
def input_shares_memory_with_a_numpy_slice(wrap):
    a = array(6)

    @wrap
    def f(p, q):
        p.add_(1.0)
        return q * 2

    return drive(f, [(flame.from_numpy(a[:4]), flame.from_numpy(a[2:])) for _ in range(6)], lambda: a.copy())


@program
def read_only_memory(wrap):
    a = array(3)
    a.flags.writeable = False
    t = flame.tensor(a)

    @wrap
    def f(x):
        y = t + x
        t.add_(1.0)
        return y

    return drive(f, batches(3), t)


# -------------------------------------------------------------------- caches of keys and values


@program
def key_value_cache_by_slices(wrap):
    cache = flame.zeros(2, 8, 4)

    @wrap
    def f(q, at):
        cache[0, at] = q
        cache[1, at : at + 1] = q * 2
        k, v = cache[0, : at + 1], cache[1, : at + 1]
        return ((k @ q).softmax(-1) @ v).sum()

    seen = []
    for turn in range(2):
        cache.zero_()
        seen += drive(f, [(q, i) for i, q in enumerate(batches(4, n=6, seed=300 + turn))], cache)
    return seen


@program
def key_value_cache_with_a_position_tensor(wrap):
    cache = flame.zeros(6, 4)
    position = flame.zeros((), dtype=flame.int64)

    @wrap
    def f(q):
        cache[position] = q
        mask = flame.arange(6) <= position
        position.add_(1)
        return ((cache @ q).masked_fill(~mask, float("-inf")).softmax(-1) @ cache).sum()

    return drive(f, batches(4, n=6), cache, position)


@program
def key_value_cache_by_index_copy(wrap):
    cache = flame.zeros(6, 4)

    @wrap
    def f(q, i):
        cache.index_copy_(0, i, q.unsqueeze(0))
        return cache.sum(0)

    return drive(f, [(q, flame.tensor([i])) for i, q in enumerate(batches(4, n=6))], cache)


@program(follows=False)
def cache_that_grows_by_cat(wrap):
    cache = [flame.zeros(0, 4)]

    @wrap
    def f(q):
        cache[0] = flame.cat([cache[0], q.unsqueeze(0)], 0)
        return (cache[0] @ q).softmax(0) @ cache[0]

    return drive(f, batches(4, n=8), cache)


@program
def autoregressive_loop(wrap):
    table = tensor(5, 4, seed=1)
    head = tensor(4, 5, seed=2)

    @wrap
    def step(token, h):
        h = (h * 0.5 + table[token]).tanh()
        return (h @ head).argmax(), h

    seen = []
    for start in range(3):
        token, h, out = flame.tensor(start), flame.zeros(4), []
        for _ in range(5):
            token, h = step(token, h)
            out.append(token.item())
        seen.append(out)
    return seen


@program
def autoregressive_loop_inside(wrap):
    table = tensor(5, 4, seed=1)
    head = tensor(4, 5, seed=2)

    @wrap
    def generate(token, n):
        out = [token]
        for _ in range(n):
            out.append((table[out[-1]] @ head).argmax())
        return flame.stack(out)

    return drive(generate, [(flame.tensor(i % 5), n) for i, n in enumerate((3, 3, 3, 5, 4, 3, 5, 0))])


@program
def stops_at_an_end_token(wrap):
    table = tensor(5, 5, seed=8)

    @wrap
    def generate(token):
        out = [int(token)]
        for _ in range(6):
            token = (table[token]).argmax()
            out.append(token.item())
            if out[-1] == 2:
                break
        return out

    return drive(generate, [flame.tensor(i % 5) for i in range(8)])


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
