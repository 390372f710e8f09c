"""Products have the threads of NumPy's BLAS only where these can help, and leave their number as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import flame
from flame.ops import blas


class Threads:
    """A BLAS that counts: the number of threads in force, and at every product."""

    def __init__(self, number: int):
        self.number = number
        self.seen: list[int] = []

    def matmul(self, a: np.ndarray, b: np.ndarray) -> Any:
        self.seen.append(self.number)
        if a.shape[-1] != b.shape[-2]:
            raise ValueError("sizes do not match")
        return a @ b

    def put(self, number: int) -> None:
        self.number = number


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    counted = Threads(4)
    monkeypatch.setattr(blas, "_threads", blas._Threads(lambda: counted.number, counted.put))
    monkeypatch.setattr(blas.np, "matmul", counted.matmul)
    return counted


@pytest.mark.parametrize(
    "a, b, used",
    [
        ((64, 64), (64, 64), 4),  # (it gives such products one thread itself)
        ((65, 64), (64, 64), 1),
        ((128, 64), (64, 256), 1),
        ((3, 128, 64), (3, 64, 192), 1),
        ((128, 128), (128, 129), 4),
        ((9, 32, 32), (9, 32, 32), 4),
        ((0, 64), (64, 64), 4),
    ],
)
def test_products_of_middling_size_have_one_thread(threads: Threads, a: tuple, b: tuple, used: int) -> None:
    x, y = flame.ones(a), flame.ones(b)
    assert (x @ y).shape == (*a[:-1], b[-1])
    assert threads.seen == [used]
    assert threads.number == 4


def test_an_error_leaves_the_number_of_threads_as_it_was(threads: Threads) -> None:
    with pytest.raises(ValueError, match="sizes"):
        blas.product(np.ones((128, 64)), np.ones((65, 128)))
    assert threads.seen == [1] and threads.number == 4


def test_one_thread_is_left_alone(threads: Threads) -> None:
    threads.number = 1
    blas.product(np.ones((128, 64)), np.ones((64, 128)))
    assert threads.seen == [1] and threads.number == 1


@pytest.mark.skipif(blas._threads is None, reason="NumPy has another BLAS here")
def test_products_on_many_python_threads_leave_openblas_as_it_was() -> None:
    assert blas._threads is not None
    before = blas._threads.get()
    blas._threads.set(2)
    try:
        now = blas._threads.get()
        r = np.random.default_rng(0)
        a, b = r.standard_normal((100, 64)), r.standard_normal((64, 150))
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda _: blas.product(a, b), range(100)))
        assert blas._threads.get() == now
        assert all(np.allclose(y, np.einsum("ij,jk", a, b)) for y in got)
    finally:
        blas._threads.set(before)
