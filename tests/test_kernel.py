"""The kernel IR: what kernels mean (against NumPy), what the verifier refuses, names, printing and counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from kernels_for_tests import BF16, BOOL, F16, F32, F64, I32, I64, Case, Make, cases, expected, random_array, run
from random_kernels import random_case

from flame import dtypes
from flame.compiler.index_math import ex, val, var
from flame.compiler.interpret import empty_buffers, interpret
from flame.compiler.kernel import (
    Buffer,
    Const,
    Contract,
    IndexOf,
    Kernel,
    Load,
    Op,
    Reduce,
    Statement,
    Store,
    bytes_moved,
    canonical,
    digest,
    flat,
    identity,
    reads,
    rename,
    stage,
    strides,
    users,
    verify,
)
from flame.errors import VerificationError
from flame.ops.access import Cond

CASES = cases()
i, j = var("i"), var("j")


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def convolution(a: dict[str, np.ndarray], stride: int) -> np.ndarray:
    x = np.pad(a["image"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bcyxrs,ocrs->boyx", windows, a["weight"])


def layer_norm(a: dict[str, np.ndarray]) -> np.ndarray:
    x = a["x"]
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * a["w"] + a["bias"]


def attention(a: dict[str, np.ndarray]) -> np.ndarray:
    return softmax(a["q"] @ a["key"].transpose(0, 2, 1)) @ a["v"]


def cross_entropy(a: dict[str, np.ndarray]) -> np.ndarray:
    return -np.log(softmax(a["x"]))[np.arange(14), a["label"].astype(int)]


def max_pool_at(a: dict[str, np.ndarray]) -> np.ndarray:
    x = a["image"][:, :, :10].reshape(3, 6, 2, 5, 2).transpose(0, 1, 3, 2, 4)
    return x.reshape(3, 6, 5, 4).argmax(-1)


MEANING: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]] = {
    "pointwise_float32": lambda a: np.where(a["x"] < a["z"], a["x"] * a["y"] + a["z"], np.maximum(abs(a["x"]), a["y"])),
    "pointwise_bool": lambda a: np.where((a["x"] != 0) & (a["y"] != 0), True, a["z"] == 0),
    "transpose_add_float16": lambda a: a["x"].T + a["y"],
    "permute": lambda a: -a["x"].transpose(0, 2, 1, 3),
    "slice": lambda a: a["x"][1:20:2, 3:][:, ::-1],
    "pad": lambda a: np.pad(a["x"], ((2, 1), (1, 1)), constant_values=-1.5) ** 2,
    "concatenate": lambda a: np.concatenate((a["x"], a["y"]), 1),
    "repeat": lambda a: np.tile(np.repeat(a["x"], 3, 1), (3, 1)),
    "arange": lambda a: np.where(np.tri(9, 11, dtype=bool), a["x"], -np.inf),
    "whole_sum": lambda a: a["x"].sum(),
    "middle_sum": lambda a: a["x"].sum(1),
    "row_sum_bfloat16": lambda a: a["x"].sum(1),
    "row_max_int8": lambda a: a["x"].max(1),
    "row_prod_float32": lambda a: a["x"].prod(1),
    "row_argmax_int32": lambda a: a["x"].argmax(1),
    "row_argmin_bfloat16": lambda a: a["x"].argmin(1),
    "row_max_nan": lambda a: a["x"].max(1),
    "row_argmax_nan": lambda a: a["x"].argmax(1),
    "row_argmin_nan": lambda a: a["x"].argmin(1),
    "row_any": lambda a: (a["x"] != 0).any(1),
    "row_all": lambda a: (a["x"] != 0).all(1),
    "column_argmax_float32": lambda a: a["x"].argmax(0),
    "softmax_float32_77": lambda a: softmax(a["x"]),
    "softmax_symbolic": lambda a: softmax(a["x"]),
    "softmax_float32_1": lambda a: np.ones_like(a["x"]),
    "layer_norm_bfloat16": layer_norm,
    "layer_norm_float64": layer_norm,
    "layer_norm_backward": lambda a: (
        a["g"] * a["w"] - (a["g"] * a["w"]).mean(1, keepdims=True) - a["x"] * (a["g"] * a["w"] * a["x"]).mean(1, keepdims=True)
    ),
    "cross_entropy": cross_entropy,
    "embedding": lambda a: a["table"][a["token"].astype(int)],
    "gather": lambda a: np.take_along_axis(a["x"], a["index"].astype(int) % 12, 1),
    "bitcast": lambda a: abs(a["x"]),
    "inout": lambda a: a["p"] - 0.1 * a["g"],
    "matmul_nn_float32_33x45x29": lambda a: a["x"] @ a["y"],
    "matmul_tt_float32_33x45x29": lambda a: a["x"].T @ a["y"].T,
    "matmul_nn_bfloat16_33x45x29": lambda a: a["x"] @ a["y"],
    "matmul_nn_int8_33x45x29": lambda a: a["x"] @ a["y"],
    "matmul_symbolic": lambda a: a["x"] @ a["y"],
    "matmul_prologue": lambda a: np.exp(a["x"] * a["s"][:, None]) @ np.pad(a["y"], ((3, 3), (0, 0))),
    "batched_matmul_float16": lambda a: np.einsum("bihk,bjhk->bhij", a["x"], a["y"]) / 4,
    "empty_matmul": lambda a: np.zeros((4, 5)),
    "empty_max": lambda a: np.full(7, -np.inf),
    "empty_prod": lambda a: np.ones(7),
    "attention": attention,
    "convolution_stride1_float32": lambda a: convolution(a, 1),
    "convolution_stride2_float32": lambda a: convolution(a, 2),
    "max_pool": lambda a: a["image"][:, :, :10].reshape(3, 6, 2, 5, 2).max((2, 4)),
}


@pytest.mark.parametrize("name", MEANING)
def test_a_kernel_means_what_numpy_says(name: str) -> None:
    case = CASES[name]
    want = MEANING[name]({n: a.astype(np.float64) for n, a in case[1].items()})
    first = case[0].outputs[0]
    np.testing.assert_allclose(expected(case)[first].astype(np.float64), want, rtol=1e-6, atol=1e-9)
    wide = case[0].buffers[first].dtype.is_narrow_float
    got = run(case)[first]
    assert got.dtype == case[0].buffers[first].dtype.numpy
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=0.01 if wide else 2e-5, atol=0.05 if wide else 2e-5)


def test_second_outputs() -> None:
    case = CASES["max_pool"]
    np.testing.assert_array_equal(run(case)["at"], max_pool_at(case[1]))
    g, x = (CASES["layer_norm_backward"][1][n].astype(np.float64) for n in "gx")
    got = expected(CASES["layer_norm_backward"])
    np.testing.assert_allclose(got["dw"], (g * x).sum(0))
    np.testing.assert_allclose(got["db"], g.sum(0))
    casts = CASES["casts"]
    x, got = casts[1]["x"], run(casts)
    np.testing.assert_array_equal(got["to_bool"], x != 0)
    np.testing.assert_array_equal(got["to_half"], x.astype(BF16.numpy))
    np.testing.assert_array_equal(got["to_long"], (casts[1]["y"] * 9).astype(np.int64))


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_verified_and_hashes_by_meaning_alone(name: str) -> None:
    kernel, arrays, symbols = CASES[name]
    verify(kernel)
    once, mapping = canonical(kernel)
    verify(once)
    assert digest(once) == digest(kernel) and str(canonical(once)[0]) == str(once)
    moved = {mapping[b]: a.copy() for b, a in arrays.items()}
    interpret(once, moved, {mapping[n]: v for n, v in symbols.items()})
    for b, a in run((kernel, arrays, symbols)).items():
        np.testing.assert_array_equal(moved[mapping[b]], a)


def test_every_case_is_another_kernel() -> None:
    assert len({digest(kernel) for kernel, _, _ in CASES.values()}) == len(CASES)


def test_names_and_notes_do_not_count_and_everything_else_does() -> None:
    kernel = CASES["pad"][0]
    load, op, store = kernel.statements
    assert isinstance(load, Load) and isinstance(op, Op) and isinstance(store, Store)

    def other(*statements: Statement, **parts: object) -> Kernel:
        fields = {"name": "k", "buffers": kernel.buffers, "axes": kernel.axes, "symbols": {}, **parts}
        return Kernel(statements=statements, **fields)  # type: ignore[arg-type]

    same = [
        rename(kernel, {"i": "row", "x": "source", "%t0": "%t9"}),
        other(replace(load, note="elsewhere"), op, store),
    ]
    unlike = [
        other(replace(load, other=1.5), op, store),
        other(replace(load, other=True), op, store),
        other(replace(load, mask=load.mask[1:]), op, store),
        other(replace(load, index=load.index[::-1]), op, store),
        other(load, replace(op, op="add"), store),
        other(load, op, replace(store, mask=(Cond(i - 1),))),
        other(load, op, store, axes={"i": ex(12), "j": ex(14)}),
        other(load, op, store, buffers={**kernel.buffers, "x": replace(kernel.buffers["x"], shape=(ex(10), ex(13)))}),
    ]
    assert {digest(k) for k in same} == {digest(kernel)}
    assert len({digest(k) for k in (kernel, *unlike)}) == 1 + len(unlike)

    def constant(value: float) -> str:
        return digest(Kernel("k", {"o": Buffer("o", F32, (), "out")}, {}, {}, [Const("c", value, F32), Store("o", (), "c")]))

    assert len({constant(v) for v in (0.0, -0.0, 0, False, 1.0, True, float("nan"), float("inf"))}) == 8


def test_printing() -> None:
    kernel = CASES["softmax_float16_77"][0]
    assert (
        str(rename(kernel, {}, "softmax"))
        == """kernel softmax(in x: float16[11, 77], out o: float16[11, 77])
  i < 11, j < 77
    t0 = load x[i, j]           float16<i, j>  # x of softmax_float16_77
    t1 = cast(t0)               float32<i, j>
    t2 = reduce.max(t1) over j  float32<i>
    t3 = sub(t1, t2)            float32<i, j>
    t4 = exp(t3)                float32<i, j>
    t5 = reduce.sum(t4) over j  float32<i>
    t6 = div(t4, t5)            float32<i, j>
    t7 = cast(t6)               float16<i, j>
    store o[i, j] = t7"""
    )
    assert "load x[i - 2, j - 1] if i - 2 >= 0 and 10 - i >= 0 and j - 1 >= 0 and 13 - j >= 0 else -1.5" in str(CASES["pad"][0])
    assert "over k  float32<i, j>" in str(CASES["matmul_symbolic"][0]) and "n >= 2" in str(CASES["matmul_symbolic"][0])


def test_what_is_derived() -> None:
    kernel = CASES["layer_norm_float32"][0]
    assert kernel.outputs == ("o", "mean", "scale") and kernel.inputs == ("x", "w", "bias")
    assert kernel.reduce_axes == ("j",) and kernel.contraction is None and len(kernel.stores) == 3
    depth = stage(kernel)
    sums = [s.name for s in kernel.statements if isinstance(s, Reduce)]
    assert [depth[s] for s in sums] == [1, 2] and depth[kernel.stores[0].value] == 2
    assert kernel.domains[sums[0]] == {"i"} and kernel.domains[kernel.stores[0].value] == {"i", "j"}
    gather = CASES["gather"][0]
    load = gather.definitions[gather.stores[0].value]
    assert isinstance(load, Load) and len(reads(load)) == 1 and gather.domains[load.name] == {"i", "j"}
    assert users(gather)[reads(load)[0]] == [load]
    pad = CASES["pad"][0]
    assert strides(pad.buffers["x"]) == (13, 1) and flat(pad, pad.statements[0]) is 13 * i + j - 27  # type: ignore[arg-type]


def test_bytes_moved_counts_each_element_once() -> None:
    assert bytes_moved(CASES["softmax_float32_77"][0]) == 2 * 11 * 77 * 4
    assert bytes_moved(CASES["layer_norm_float32"][0]) == (2 * 9 * 96 + 2 * 96 + 2 * 9) * 4
    assert bytes_moved(CASES["matmul_nn_float16_33x45x29"][0]) == (33 * 29 + 29 * 45 + 33 * 45) * 2
    assert bytes_moved(CASES["convolution_stride1_float32"][0]) == (2 * 5 * 11 * 13 + 6 * 5 * 9 + 2 * 6 * 11 * 13) * 4
    assert bytes_moved(CASES["softmax_symbolic"][0], {"n": 10, "m": 20}) == 2 * 200 * 4
    assert bytes_moved(CASES["inout"][0]) == 3 * 70 * 4


# ---- the interpreter


def test_a_mask_is_not_touched_outside() -> None:
    """Padding is read as `other`, and nothing but what the mask allows is stored."""
    case = CASES["write_part"]
    case[1]["o"][:] = 7
    got = run(case)["o"]
    case[1]["o"][:] = 0
    assert (got[::2] == 7).all() and (got[1::2, :3] == 7).all()
    np.testing.assert_array_equal(got[1::2, 3:], case[1]["x"][:, 3:])


def test_leaving_a_buffer_or_storing_twice_is_an_error() -> None:
    m = Make("leaves", i=4)
    m.store("o", (i,), m.load("x", (i + 1,), shape=(4,)), shape=(4,))
    with pytest.raises(IndexError, match=r"i \+ 1 leaves \[0, 4\) of x"):
        run(m.case())
    m = Make("twice", i=4, j=4)
    m.store("o", (i + j,), m.load("x", (i, j)), shape=(7,))
    with pytest.raises(IndexError, match="two points"):
        run(m.case())
    case = CASES["embedding"]
    case[1]["token"][3] = 10
    with pytest.raises(IndexError, match="leaves"):
        run(case)
    case[1]["token"][3] = 0


def test_arrays_must_be_contiguous() -> None:
    kernel, arrays, _ = CASES["permute"]
    with pytest.raises(ValueError, match="contiguous"):
        interpret(kernel, {**arrays, "x": np.asfortranarray(arrays["x"])})


def test_integers_wrap_and_narrow_floats_round_once() -> None:
    m = Make("wrap", i=3)
    x = m.load("x", (i,), dtypes.int8, array=np.array([100, -100, 7], np.int8))
    m.store("o", (i,), m.op("add", x, x))
    m.store("s", (), m.reduce("sum", x, "i"), shape=())
    m.store("p", (), m.reduce("prod", x, "i"), shape=())
    got = run(m.case())
    assert got["o"].tolist() == [-56, 56, 14] and got["s"] == 7 and got["p"] == np.int8((100 * -100 * 7 + 128) % 256 - 128)
    m = Make("narrow", i=300)
    x = m.load("x", (i,), F16, array=np.full(300, 1000, np.float16))
    m.store("o", (), m.op("mul", m.reduce("sum", x, "i"), m.const(1e-3, F32)), d=F16, shape=())
    assert run(m.case())["o"] == 300  # the sum passes float16's largest


def test_a_reduction_over_an_axis_that_its_operand_does_not_have() -> None:
    m = Make("broadcast", i=3, j=5, k=2)
    x = m.load("x", (i,))
    m.store("s", (i,), m.reduce("sum", x, "j"))
    m.store("a", (i,), m.reduce("argmax", x, "j"))
    m.store("c", (i,), m.contract(x, m.load("y", (var("k"),)), "j", "k"))
    case = m.case()
    verify(case[0])
    got = expected(case)
    np.testing.assert_allclose(got["s"], case[1]["x"].astype(float) * 5)
    assert not got["a"].any()
    np.testing.assert_allclose(got["c"], case[1]["x"].astype(float) * case[1]["y"].astype(float).sum() * 5)


@pytest.mark.parametrize("order", [("i", "j"), ("j", "i")])
def test_arg_reductions_count_in_the_order_of_their_axes(order: tuple[str, str]) -> None:
    m = Make("order", i=4, k=3, j=5)
    x = m.load("x", (i, j, var("k")), I32)
    m.store("o", (var("k"),), m.reduce("argmin", x, *order))
    case = m.case()
    x_ = case[1]["x"].transpose(2, 0, 1) if order == ("i", "j") else case[1]["x"].transpose(2, 1, 0)
    np.testing.assert_array_equal(run(case)["o"], x_.reshape(3, -1).argmin(1))


@pytest.mark.parametrize("d", [d for d in dtypes.ALL if not d.is_narrow_float])
def test_the_neutral_element_is_neutral(d: dtypes.dtype) -> None:
    x = random_array((40,), d, 1)
    ops = {"any": np.logical_or, "all": np.logical_and} if d is BOOL else {"sum": np.add, "prod": np.multiply}
    for op, f in {**ops, "max": np.maximum, "min": np.minimum}.items():
        np.testing.assert_array_equal(f(x, d.numpy.type(identity(op, d))), x)
    with pytest.raises(ValueError, match="mean"):
        identity("mean", d)


def test_precise_keeps_float64_until_the_stores() -> None:
    case = CASES["row_sum_float32"]
    np.testing.assert_allclose(expected(case)["o"], case[1]["x"].astype(np.float64).sum(1), rtol=1e-15)
    assert (expected(case)["o"] != run(case)["o"]).any()


def test_symbols_and_outputs() -> None:
    kernel, arrays, symbols = CASES["softmax_symbolic"]
    made = empty_buffers(kernel, symbols)
    assert {n: a.shape for n, a in made.items()} == {"o": arrays["x"].shape}
    bigger = {"x": random_array((5, 12), F32, 0), "o": np.zeros((5, 12), np.float32)}
    interpret(kernel, bigger, {"n": 5, "m": 12})
    np.testing.assert_allclose(bigger["o"], softmax(bigger["x"]), rtol=1e-6)


# ---- the verifier


def small(*statements: Statement, **parts: object) -> Kernel:
    fields: dict = {
        "name": "small",
        "buffers": {"x": Buffer("x", F32, (ex(4), ex(5))), "o": Buffer("o", F32, (ex(4), ex(5)), "out")},
        "axes": {"i": ex(4), "j": ex(5)},
        "symbols": {},
    }
    return Kernel(statements=statements, **{**fields, **parts})


X = Load("x0", "x", (i, j), (), 0.0, F32)
KEEP = Store("o", (i, j), "x0")
SUM = Reduce("r", "sum", ("x0",), ("j",), F32)
WIDE = Op("y", "cast", ("x0",), F64)
HALVES = {**small().buffers, "h": Buffer("h", F16, (ex(4), ex(5)))}
H = Load("h0", "h", (i, j), (), 0, F16)
INT = Load("n", "t", (i,), (), 0, I64)
TOKENS = {"t": Buffer("t", I64, (ex(4),)), "x": Buffer("x", F32, (ex(4), ex(5))), "o": Buffer("o", F32, (ex(4), ex(5)), "out")}

WRONG: dict[str, tuple[Kernel, str]] = {
    "undefined value": (small(X, Op("y", "neg", ("z",), F32), KEEP), "z is used before it is made"),
    "undefined store": (small(X, Store("o", (i, j), "z")), "z is used before it is made"),
    "later value": (small(Op("y", "neg", ("x0",), F32), X, KEEP), "x0 is used before it is made"),
    "made twice": (small(X, X, KEEP), "made twice"),
    "no such axis": (small(replace(X, index=(i, var("k"))), KEEP), "no axis or symbol is named k"),
    "no such buffer": (small(replace(X, buffer="y"), KEEP), "there is no buffer y"),
    "dimensions": (small(replace(X, index=(i,)), KEEP), "1 indices for 2 dimensions"),
    "above": (small(replace(X, index=(i, j + 1)), KEEP), "may leave"),
    "below": (small(replace(X, index=(i - 1, j)), KEEP), "may leave"),
    "mask too weak": (small(replace(X, index=(i - 1, j), mask=(Cond(i),)), KEEP), "may leave"),
    "store above": (small(X, Store("o", (i + 1, j), "x0")), "may leave"),
    "race": (small(X, Store("o", (i, ex(0)), "x0")), "varies with j"),
    "race through a mask": (small(X, SUM, Store("o", (i, ex(0)), "r", (Cond(j - 1),))), "varies with j"),
    "store to an input": (small(X, KEEP, Store("x", (i, j), "x0")), "only read"),
    "load from an output": (small(X, replace(X, name="y", buffer="o"), KEEP), "only written"),
    "output never stored": (small(X), "nothing is stored"),
    "other dtype stored": (small(X, Op("y", "cast", ("x0",), F64), Store("o", (i, j), "y")), "float64 is stored"),
    "other dtype loaded": (small(replace(X, dtype=F64), KEEP), "another dtype"),
    "mixed operands": (small(X, Const("c", 1.0, F64), Op("y", "add", ("x0", "c"), F32), KEEP), "operands' dtype"),
    "comparison of floats in float": (small(X, Op("y", "lt", ("x0", "x0"), F32), KEEP), "gives bool"),
    "where on floats": (small(X, Op("y", "where", ("x0", "x0", "x0"), F32), KEEP), "where"),
    "logic on floats": (small(X, Op("y", "logical_and", ("x0", "x0"), F32), KEEP), "is of bool"),
    "shift of floats": (small(X, Op("y", "shift_left", ("x0", "x0"), F32), KEEP), "shifts integers"),
    "arity": (small(X, Op("y", "add", ("x0",), F32), KEEP), "takes 2 operands"),
    "bitcast width": (small(X, Op("y", "bitcast", ("x0",), I64), KEEP), "widths differ"),
    "mul_high of int32": (small(Const("c", 1, I32), Op("y", "mul_high", ("c", "c"), I32), X, KEEP), "uint32"),
    "no such op": (small(X, Op("y", "frobnicate", ("x0",), F32), KEEP), "neither a basic operation"),
    "primitive's dtype": (small(X, Op("y", "exp", ("x0",), F64), KEEP), "the primitive gives float32"),
    "narrow arithmetic": (
        small(H, Op("y", "neg", ("h0",), F16), X, KEEP, buffers=HALVES),
        "storage",
    ),
    "narrow reduce": (
        small(H, Reduce("y", "sum", ("h0",), ("j",), F16), X, KEEP, buffers=HALVES),
        "storage",
    ),
    "narrow accumulator": (
        small(H, Contract("y", ("h0", "h0"), ("j",), F16), X, KEEP, buffers=HALVES),
        "storage",
    ),
    "mixed factors": (small(X, WIDE, Contract("c", ("x0", "y"), ("j",), F64), KEEP), "factors differ"),
    "accumulator too small": (small(X, WIDE, Contract("c", ("y", "y"), ("j",), F32), KEEP), "not an accumulator"),
    "no such reduction": (small(X, Reduce("r", "mean", ("x0",), ("j",), F32), KEEP), "no such reduction"),
    "sum into another dtype": (small(X, Reduce("r", "sum", ("x0",), ("j",), F64), KEEP), "keeps its operand's dtype"),
    "any of floats": (small(X, Reduce("r", "any", ("x0",), ("j",), BOOL), KEEP), "are of bool"),
    "argmax in int32": (small(X, Reduce("r", "argmax", ("x0",), ("j",), I32), KEEP), "int64"),
    "reduced axis": (small(X, Reduce("r", "sum", ("x0",), ("k",), F32), KEEP), "no such axis"),
    "reduced twice": (small(X, Reduce("r", "sum", ("x0",), ("j", "j"), F32), KEEP), "named twice"),
    "reduces nothing": (small(X, Reduce("r", "sum", ("x0",), (), F32), KEEP), "reduces nothing"),
    "float index": (small(X, Load("y", "x", (i, val("x0")), (), 0, F32), KEEP), "not an integer"),
    "index before it is made": (small(replace(X, index=(i, val("n"))), INT, KEEP, buffers=TOKENS), "%n is used before"),
    "gathered store races": (small(X, INT, Store("o", (val("n"), ex(0)), "x0"), buffers=TOKENS), "varies with j"),
    "extent names an axis": (small(X, KEEP, axes={"i": ex(4), "j": ex(5), "k": i + 1}), "symbols alone"),
    "negative extent": (small(X, KEEP, axes={"i": ex(4), "j": ex(5), "k": ex(-1)}), "not known to be 0 or more"),
    "shared name": (small(X, KEEP, axes={"i": ex(4), "j": ex(5), "x": ex(2)}), "share a name"),
    "role": (small(X, KEEP, buffers={**small().buffers, "y": Buffer("y", F32, (), "output")}), "role"),
    "in place elsewhere": (
        small(replace(X, index=(i, 4 - j)), Store("x", (i, j), "x0"), buffers={"x": Buffer("x", F32, (ex(4), ex(5)), "inout")}),
        "different addresses",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", WRONG)
def test_the_verifier_refuses(rule: str) -> None:
    kernel, message = WRONG[rule]
    with pytest.raises(VerificationError, match=message) as caught:
        verify(kernel, "some pass")
    assert "after some pass" in str(caught.value) and "kernel small" in str(caught.value)


def test_the_verifier_accepts() -> None:
    verify(small(X, KEEP))
    verify(small(replace(X, index=(i - 1, j), mask=(Cond(i - 1),)), KEEP))
    verify(small(replace(X, index=(i, j + 9), mask=(Cond(ex(-1)),)), KEEP))
    verify(small(X, INT, Store("o", (val("n"), j), "x0"), buffers=TOKENS))
    verify(small(X, IndexOf("c", 7 * i + j, I64), Op("y", "cast", ("c",), F32), Store("o", (i, j), "y")))
    at_once = Kernel("k", {"x": Buffer("x", F32, (ex(4),), "inout")}, {"i": ex(4)}, {}, [
        Load("a", "x", (i,), (), 0, F32), Op("b", "neg", ("a",), F32), Store("x", (i,), "b"),
    ])  # fmt: skip
    verify(at_once)


def test_promised_ranges_of_indices_are_used() -> None:
    m = Make("promise", i=6)
    raw = m.load("index", (i,), I64)
    m.store("o", (i,), m.load("x", (val(raw) // 12,), shape=(1,)))
    kernel = m.case()[0]
    promised = Kernel(kernel.name, kernel.buffers, kernel.axes, {}, kernel.statements, {raw: (ex(0), ex(11))})
    verify(promised)
    assert digest(promised) != digest(kernel) and "in [0, 11]" in str(promised)
    assert promised.bounds.values[raw] == (ex(0), ex(11))
    assert canonical(promised)[0].values == {"v0": (ex(0), ex(11))}


@pytest.mark.parametrize("block", range(4))
def test_random_kernels_are_verified_and_run_close_to_float64(block: int) -> None:
    for seed in range(100 * block, 100 * block + 60):
        case: Case = random_case(seed)
        verify(case[0])
        assert digest(case[0]) == digest(random_case(seed)[0])
        rough, fine = run(case), expected(case)
        for b, x in rough.items():
            tolerance = 0.02 if case[0].buffers[b].dtype.is_narrow_float else 1e-4
            want = fine[b].astype(np.float64)
            scale = max(1.0, float(np.max(np.abs(want), initial=0, where=np.isfinite(want))))
            if np.isfinite(x.astype(np.float64)).all():
                np.testing.assert_allclose(
                    x.astype(np.float64), want, rtol=tolerance, atol=tolerance * scale, err_msg=f"{seed} {b}"
                )
