"""Merging axes and splitting reductions keep what a kernel means, and do what they are for."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_for_tests import BF16, BOOL, F32, I32, Case, Make, cases, random_array, run
from random_kernels import random_case

from flame.compiler.index_math import evaluate, ex, var
from flame.compiler.interpret import empty_buffers, interpret
from flame.compiler.kernel import Contract, Kernel, Load, Reduce, verify
from flame.compiler.transform import fresh, merge_axes, split_reduction
from flame.ops.access import Cond

CASES = cases()
i, j, k = map(var, "ijk")


def close(case: Case, got: dict[str, np.ndarray], want: dict[str, np.ndarray], label: str) -> None:
    """Equal where no reduction was done in another order."""
    kernel = case[0]
    reorders = any(isinstance(s, Contract) or (isinstance(s, Reduce) and s.op in ("sum", "prod")) for s in kernel.statements)
    for name, w in want.items():
        g = got[name].reshape(w.shape)
        if not reorders or kernel.buffers[name].dtype.kind != "f":
            np.testing.assert_array_equal(g, w, label)
            continue
        tolerance = 0.02 if kernel.buffers[name].dtype.is_narrow_float else 1e-4
        g, w = g.astype(np.float64), w.astype(np.float64)
        scale = max(1.0, float(np.max(np.abs(w), initial=0, where=np.isfinite(w))))
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance * scale, err_msg=label)


def check_merge(case: Case, label: str) -> Kernel:
    kernel, arrays, symbols = case
    merged = merge_axes(kernel)
    verify(merged, "merge_axes")
    close(case, run((merged, arrays, symbols)), run(case), label)
    return merged


def run_parts(case: Case, both: tuple[Kernel, Kernel]) -> dict[str, np.ndarray]:
    kernel, arrays, symbols = case
    every = {n: a.copy() for n, a in arrays.items()}
    for half in both:
        verify(half, "split_reduction")
        every |= {n: a for n, a in empty_buffers(half, symbols).items() if n not in arrays}
        interpret(half, every, symbols)
    return {n: every[n] for n in kernel.outputs}


def check_split(case: Case, parts: int, label: str) -> tuple[Kernel, Kernel] | None:
    both = split_reduction(case[0], parts)
    if both is not None:
        close(case, run_parts(case, both), run(case), f"{label} in {parts}")
    return both


@pytest.mark.parametrize("name", CASES)
def test_the_cases_keep_their_meaning(name: str) -> None:
    check_merge(CASES[name], name)
    for parts in (2, 3, 7):
        check_split(CASES[name], parts, name)


@pytest.mark.parametrize("block", range(5))
def test_random_kernels_keep_their_meaning(block: int) -> None:
    merged = split = 0
    for seed in range(1000 * block, 1000 * block + 60):
        case = random_case(seed)
        merged += len(check_merge(case, str(seed)).axes) < len(case[0].axes)
        split += check_split(case, 2 + seed % 4, str(seed)) is not None
        check_split((merge_axes(case[0]), *case[1:]), 3, f"{seed} merged")
    assert merged > 3 and split > 15


def merged_axes(m: Make) -> dict[str, int]:
    case = m.case()
    got = check_merge(case, m.name)
    return {a: int(evaluate(n, case[2])) for a, n in got.axes.items()}


def test_contiguous_axes_become_one() -> None:
    m = Make("whole", i=3, j=4, k=5)
    m.store("o", (i, j, k), m.op("add", m.load("x", (i, j, k)), m.load("y", (i, j, k))))
    assert merged_axes(m) == {"ijk": 60}
    m = Make("symbolic")
    m.axes = {"i": m.symbol("n", 5), "j": ex(4), "k": m.symbol("m", 3)}
    m.store("o", (i, j, k), m.op("neg", m.load("x", (i, j, k))))
    assert merged_axes(m) == {"ijk": 60}
    m = Make("swapped", i=3, j=4, k=5)
    m.store("o", (k, j, i), m.op("neg", m.load("x", (k, j, i))))
    assert list(merged_axes(m).values()) == [60]


def test_only_what_every_address_allows_becomes_one() -> None:
    m = Make("bias", i=3, j=4, k=5)
    m.store("o", (i, j, k), m.op("add", m.load("x", (i, j, k)), m.load("y", (k,))))
    assert merged_axes(m) == {"ij": 12, "k": 5}
    m = Make("transposed", i=3, j=4, k=5)
    m.store("o", (i, j, k), m.op("add", m.load("x", (i, j, k)), m.load("y", (k, i, j))))
    assert merged_axes(m) == {"ij": 12, "k": 5}
    m = Make("rows", i=3, j=4, k=5)
    m.store("o", (i,), m.reduce("sum", m.load("x", (i, j, k)), "j", "k"))
    assert merged_axes(m) == {"i": 3, "jk": 20}
    m = Make("padded", i=3, j=4, k=5)
    m.store("o", (i, j, k), m.load("x", (i, j, k - 1), shape=(3, 4, 4), mask=(Cond(k - 1),)))
    assert merged_axes(m) == {"ij": 12, "k": 5}
    m = Make("counted", i=3, j=4)
    m.store("o", (i, j), m.op("add", m.load("x", (i, j)), m.op("cast", m.index(j), d=F32)))
    assert merged_axes(m) == {"i": 3, "j": 4}


def test_an_axis_that_is_reduced_elsewhere_stays() -> None:
    m = Make("reduced elsewhere", i=3, j=4, k=5)
    total = m.reduce("sum", m.load("y", (k,)), "j")
    m.store("o", (i, j, k), m.op("add", m.load("x", (i, j, k)), total))
    assert merged_axes(m) == {"i": 3, "j": 4, "k": 5}


def test_views_that_cancel_merge_too() -> None:
    m = Make("unfolded", i=6, j=8)
    m.store("o", (i, j), m.op("neg", m.load("x", (i, j // 4, j % 4), shape=(6, 2, 4))))
    assert merged_axes(m) == {"ij": 48}


def test_arg_reductions_merge_in_their_own_order_only() -> None:
    def argmax(*axes: str) -> Make:
        m = Make("arg", i=3, j=4, k=5)
        m.store("o", (i,), m.reduce("argmax", m.load("x", (i, j, k)), *axes))
        return m

    assert merged_axes(argmax("j", "k")) == {"i": 3, "jk": 20}
    assert merged_axes(argmax("k", "j")) == {"i": 3, "j": 4, "k": 5}


def test_axes_of_one_point_go_away() -> None:
    m = Make("ones", i=1, j=4, k=1)
    m.store("o", (i, j, k), m.op("neg", m.load("x", (i, j, k))))
    assert merged_axes(m) == {"j": 4}
    m = Make("reduced_ones", i=4, j=1, k=1)
    m.store("o", (i,), m.reduce("sum", m.load("x", (i, j, k)), "j", "k"))
    assert list(merged_axes(m).values()) == [4, 1]


def test_untouched_buffers_keep_their_dimensions() -> None:
    m = Make("keep", i=3, j=4, k=5)
    m.store("o", (i, j, k), m.op("add", m.load("x", (i, j, k)), m.load("y", (k, ex(1)), shape=(5, 2))))
    got = merge_axes(m.case()[0])
    assert [len(b.shape) for b in got.buffers.values()] == [1, 2, 1]


def test_conditions_that_say_nothing_go_away() -> None:
    m = Make("masks", i=3, j=4)
    m.store("o", (i, j), m.load("x", (i, j), mask=(Cond(i), Cond(5 - j), Cond(j - 1), Cond(j)), shape=(3, 4)))
    load = check_merge(m.case(), "masks").statements[0]
    assert isinstance(load, Load) and load.mask == (Cond(j - 1),)


# ---- splitting


def test_parts_are_whole_where_they_can_be_and_never_empty() -> None:
    both = check_split(CASES["whole_sum"], 9, "whole_sum")
    assert both is not None
    first, second = both
    assert list(first.axes.items())[:2] == [("j_part", 9), ("i", 23)] and first.axes["j_in"] == 5
    assert not any(isinstance(s, Load) and s.mask for s in first.statements)
    assert second.axes == {"j_part": 9} and second.outputs == ("o",) and first.outputs == second.inputs == ("part",)
    both = check_split(CASES["row_sum_float32"], 30, "row_sum")
    assert both is not None and both[0].axes["j_part"] == 25 and both[0].axes["j_in"] == 4


def test_guards_keep_what_a_prologue_makes_of_nothing_out() -> None:
    """exp(0) is 1, and 1 / 0 infinite: neither may enter a sum through the last part."""
    m = Make("prologue", i=3, j=11)
    x = m.op("add", m.op("exp", m.load("x", (i, j))), m.op("div", m.const(1.0, F32), m.op("abs", m.load("y", (i, j)))))
    m.store("o", (i,), m.reduce("sum", x, "j"))
    m.store("low", (i,), m.reduce("min", x, "j"))
    case = m.case()
    assert check_split(case, 4, "prologue") is not None
    m = Make("factors", i=3, j=11, k=4)
    left = m.op("div", m.const(1.0, F32), m.op("abs", m.load("x", (i, j))))
    m.store("o", (i, k), m.contract(left, m.load("y", (j, k)), "j"))
    assert check_split(m.case(), 4, "factors") is not None
    m = Make("one load, two neutral elements", i=3, j=11)
    x = m.load("x", (i, j), array=random_array((3, 11), F32, 3) - 20)
    m.store("s", (i,), m.reduce("sum", x, "j"))
    m.store("m", (i,), m.reduce("max", x, "j"))
    assert check_split(m.case(), 4, "two") is not None


def test_narrow_factors_stay_narrow() -> None:
    m = Make("narrow", i=5, j=7, k=10)
    x = m.load("x", (i, k), BF16, wide=False)
    y = m.op("cast", m.op("exp", m.load("y", (k, j), BF16)), d=BF16)
    m.store("o", (i, j), m.contract(x, y, "k"))
    both = check_split(m.case(), 3, "narrow")
    assert both is not None
    factors = [both[0].definitions[v].dtype for s in both[0].statements if isinstance(s, Contract) for v in s.operands]
    assert factors == [BF16, BF16]


@pytest.mark.parametrize("op", ["argmax", "argmin"])
@pytest.mark.parametrize("kind", ["ties", "nan", "infinite", "bool", "ints"])
def test_arg_reductions_still_give_the_first(op: str, kind: str) -> None:
    m = Make(f"{op}_{kind}", i=6, j=23, k=2)
    x = np.round(random_array((6, 23, 2), F32, 9))
    if kind == "nan":
        x[1, 20, 1] = x[1, 7, 0] = x[3, 0, 0] = np.nan
    if kind == "infinite":
        x[:] = -np.inf if op == "argmax" else np.inf
    d = {"bool": BOOL, "ints": I32}.get(kind, F32)
    m.store("o", (i,), m.reduce(op, m.load("x", (i, j, k), d, array=x.astype(d.numpy)), "j", "k"))
    for parts in (2, 5, 11):
        assert check_split(m.case(), parts, m.name) is not None


def test_any_all_and_products_split() -> None:
    for op, d in (("any", BOOL), ("all", BOOL), ("prod", I32), ("min", I32), ("max", BF16)):
        m = Make(op, i=8, j=13)
        m.store("o", (i,), m.reduce(op, m.load("x", (i, j), d), "j"))
        assert check_split(m.case(), 4, op) is not None


def test_the_longest_shared_axis_is_cut() -> None:
    both = split_reduction(CASES["convolution_weight"][0], 2)
    assert both is not None and "x_part" in both[0].axes
    both = check_split(CASES["layer_norm_backward"], 2, "both ways")
    assert both is None


@pytest.mark.parametrize("name", ["softmax_float32_77", "attention", "pointwise_float32", "embedding", "cross_entropy"])
def test_what_cannot_be_split_is_refused(name: str) -> None:
    assert split_reduction(CASES[name][0], 4) is None


def test_one_part_is_no_split() -> None:
    assert split_reduction(CASES["row_sum_float32"][0], 1) is None
    assert split_reduction(CASES["empty_sum"][0], 4) is None


def test_a_parameter_updated_by_a_reduction() -> None:
    """The first kernel only reads the buffer that the second updates."""
    m = Make("update", i=6, j=20)
    p = m.load("p", (i,), role="inout")
    m.store("p", (i,), m.op("sub", p, m.reduce("sum", m.op("mul", m.load("g", (i, j)), p), "j")))
    case = m.case()
    both = check_split(case, 4, "update")
    assert both is not None and both[0].buffers["p"].role == "in" and both[1].buffers["p"].role == "inout"


def test_new_names_do_not_clash() -> None:
    assert fresh("a", ["b"]) == "a" and fresh("a", ["a", "a_2"]) == "a_3"
    m = Make("clash", i=4, j=9)
    m.store("part", (i,), m.reduce("sum", m.load("j_part", (i, j)), "j"))
    both = check_split(m.case(), 2, "clash")
    assert both is not None and len({*both[0].buffers}) == 2
