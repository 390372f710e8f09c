"""What a kernel's text says of its values' ranges is true, and code that relies on it gives what code that does not would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernels_for_tests import Make

import flame
from flame.compiler.index_math import var
from flame.compiler.kernel import Kernel, Op, Reduce
from flame.compiler.value_ranges import at_most_zero, from_one
from flame.ops import vector_math
from flame.ops.machine import NumpyMachine

Programs = dict[str, tuple[Callable[[Any], Any], bool, bool]]
#: program, is an exponent known to be at most 0, and a sum to be from 1 on
PROGRAMS: Programs = {
    "softmax": (lambda x: flame.softmax(x, -1), True, True),
    "over columns": (lambda x: flame.softmax(x, 0), True, True),
    "sum of more": (lambda x: (e := (x - x.amax(-1, keepdim=True)).exp()) / e.sum(), True, True),
    "gaussian": (lambda x: (-(x * x)).exp(), True, False),
    "laplacian": (lambda x: (-x.abs()).exp(), True, False),
    "largest less each": (lambda x: (e := (x.amax(-1, keepdim=True) - x).exp()) / e.sum(-1, keepdim=True), False, False),
    "least": (lambda x: (e := (x - x.amin(-1, keepdim=True)).exp()) / e.sum(-1, keepdim=True), False, False),
    "sum of fewer": (lambda x: (e := (x - x.amax()).exp()) / e.sum(-1, keepdim=True), True, False),
    "plain": (lambda x: (e := x.exp()) / e.sum(-1, keepdim=True), False, False),
    "product": (lambda x: (-(x * x.abs())).exp(), False, False),
}


def kernels(f: Callable[[Any], Any], *x: Any) -> tuple[Any, list[Kernel]]:
    compiled = flame.compile(f)
    for _ in range(2):
        got = compiled(*x)
    return got, [k.kernel for k in compiled.kernels]


@pytest.mark.parametrize("name", PROGRAMS)
def test_ranges_are_those_that_the_text_proves(name: str) -> None:
    f, negative, one = PROGRAMS[name]
    _, found = kernels(f, flame.randn(6, 40))
    powers = [
        at_most_zero(k, s.operands[0]) for k in found for s in k.definitions.values() if isinstance(s, Op) and s.op == "exp"
    ]
    sums = [from_one(k, s.name) for k in found for s in k.definitions.values() if isinstance(s, Reduce) and s.op == "sum"]
    # (kernels that were split see only what is in them: never more than is true)
    assert set(powers) == {negative} or (len(found) > 1 and not set(powers) - {negative, False}), powers
    assert any(sums) == one or (len(found) > 1 and not any(sums)), sums


@pytest.mark.parametrize(("largest_of", "sum_of", "proved"), [("j", "j", True), ("j", "ij", True), ("ij", "j", False)])
def test_the_sum_has_to_hold_the_largest(largest_of: str, sum_of: str, proved: bool) -> None:
    m = Make("ranges", i=4, j=8)
    x = m.load("x", (var("i"), var("j")))
    e = m.op("exp", m.op("sub", x, m.reduce("max", x, *largest_of)))
    total = m.reduce("sum", e, *sum_of)
    m.store("o", (var("i"), var("j")), m.op("div", e, total))
    kernel = m.case()[0]
    sums = [s.name for s in kernel.definitions.values() if isinstance(s, Reduce) and s.op == "sum"]
    assert [from_one(kernel, v) for v in sums] == [proved]


SHAPES = [(1, 1), (3, 7), (5, 16), (4, 33), (9, 300), (40, 1024), (3, 2500), (700, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1])
def test_softmax_is_right_in_rows_of_every_kind(shape: tuple[int, int], dim: int) -> None:
    r = np.random.default_rng(sum(shape))
    x = (r.standard_normal(shape) * r.choice([0.1, 3, 60], shape)).astype(np.float32)
    flat = x.reshape(-1)
    flat[r.integers(0, flat.size, flat.size // 9)] = -np.inf
    if shape[1 - dim] > 2:
        np.moveaxis(x, dim, 1)[0] = -np.inf  # NaN
        np.moveaxis(x, dim, 1)[1, 0] = np.inf
        np.moveaxis(x, dim, 1)[2, -1] = np.nan
    with np.errstate(invalid="ignore"):
        e = np.exp((x - x.max(dim, keepdims=True)).astype(np.float64))  # (the difference is rounded, as eager's is)
        want = e / e.sum(dim, keepdims=True)
    got, _ = kernels(lambda x: flame.softmax(x, dim), flame.tensor(x))
    np.testing.assert_allclose(got.numpy(), want, 2e-6, 1e-44)


def test_an_exponent_at_most_zero_gives_what_any_other_does() -> None:
    r = np.random.default_rng(0)
    x = np.concatenate(
        [-r.uniform(0, 110, 200_000), [0.0, -0.0, -np.inf, np.nan, -1e-45, -3e38, -103.97, -103.98, -87.34, 60.0]]
    )
    x = x.astype(np.float32)
    got, want = vector_math.exp_of_negative(NumpyMachine(), x), np.exp(x.astype(np.float64))
    with np.errstate(divide="ignore"):
        unit = np.maximum(2.0 ** (np.floor(np.log2(want)) - 23), 2.0**-149)
    assert np.array_equal(np.isnan(got), np.isnan(x))
    assert np.nanmax(np.abs(got - want) / unit) < 1.5
