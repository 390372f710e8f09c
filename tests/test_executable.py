"""Programs on the CPU: both backends against the kernel IR's own meaning, from any thread, with any memory they are given."""

from __future__ import annotations

import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs_for_tests import random_graph, random_inputs
from kernels_for_tests import F32, F64, I64, Case, Make, cases, expected, i, j, run
from programs_for_tests import add_one, chain, program_of

from flame import dtypes
from flame.compiler.graph import Builder, Graph, Node
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import Argument, CallStep, KernelStep, Program, Slot, Step
from flame.compiler.program_interpret import run_interpreted
from flame.compiler.target_cpu import CpuTarget
from flame.errors import CompileError
from flame.primitive import REGISTRY, Primitive, Spec
from flame.runtime import cpu, memory, threads
from flame.runtime.cache import DiskCache
from flame.runtime.executable import BACKENDS, Executable

BACKEND = pytest.mark.parametrize("backend", BACKENDS)


#: kernels that leave part of their result unwritten, or write over an input, are no programs by themselves
WHOLE = [n for n, (k, _, _) in cases().items() if n != "write_part" and all(b.role != "inout" for b in k.buffers.values())]


@pytest.mark.parametrize("name", WHOLE)
def test_a_compiled_kernel_gives_what_it_means(name: str) -> None:
    case = cases()[name]
    program, arrays = program_of(case)
    got = Executable(program)(arrays)
    meant, exact = run(case), expected(case)
    for y, (buffer, want) in zip(got, meant.items(), strict=True):
        assert y.dtype == want.dtype and y.flags.c_contiguous
        if y.dtype.kind not in "iub":
            y, scale = y.astype(np.float64).reshape(want.shape), np.abs(exact[buffer].astype(np.float64))
            size = np.max(scale, initial=0, where=np.isfinite(scale))
            bound = {2: 8e-3, 4: 3e-6, 8: 1e-13}[want.dtype.itemsize]
            np.testing.assert_allclose(y, want.astype(np.float64), rtol=bound, atol=bound * size)
        else:
            np.testing.assert_array_equal(y, want.reshape(y.shape))


@pytest.mark.parametrize(
    "name", ["pointwise_float32", "softmax_float32_77", "casts", "embedding", "pointwise_symbolic", "empty"]
)
def test_the_interpreting_backend_gives_the_same(name: str) -> None:
    case = cases()[name]
    program, arrays = program_of(case)
    for y, want in zip(Executable(program, backend="interpret")(arrays), run(case).values(), strict=True):
        np.testing.assert_array_equal(y, want.reshape(y.shape))


@BACKEND
@pytest.mark.parametrize("d", [F32, F64, dtypes.int8, I64], ids=str)
@pytest.mark.parametrize("n, temps", [(0, 1), (1, 0), (7, 3), (1000, 2), (40_000, 1)])
def test_temps_live_in_the_arena(backend: Any, d: dtypes.dtype, n: int, temps: int) -> None:
    x = (np.arange(n) % 100).astype(d.numpy)
    (y,) = Executable(chain(n, temps, d), backend=backend)([x])
    np.testing.assert_array_equal(y, x + temps + 1)
    assert y.dtype == x.dtype


def test_scratch_memory_of_kernels_lies_beside_the_temps(rng: np.random.Generator) -> None:
    """A matmul that packs its operands, which are a temp and an input; its result is a temp too."""
    kernel = cases()["matmul_nn_float32_33x45x29"][0]
    shapes = [Spec(s, F32) for s in ((33, 29), (29, 45), (33, 29), (33, 45), (33, 45))]
    ones = [Make("add_one", i=s.shape[0], j=s.shape[1]) for s in (shapes[0], shapes[3])]
    for m in ones:
        m.store("y", (i, j), m.op("add", m.load("x", (i, j)), m.const(1.0, F32)))
    before, after = (m.case()[0] for m in ones)
    slots = [Slot(shapes[0], "input", 0), Slot(shapes[1], "input", 1), Slot(shapes[2], "temp", 0, 0)]
    slots += [Slot(shapes[3], "temp", 0, 3840), Slot(shapes[4], "output")]
    steps = (
        KernelStep(before, {"x": 0, "y": 2}),
        KernelStep(kernel, {"x": 2, "y": 1, "o": 3}),
        KernelStep(after, {"x": 3, "y": 4}),
    )
    e = Executable(Program("p", Graph(), tuple(slots), steps, (0, 1), (4,), 3840 + 5952))
    assert e.kernels[1].workspace({}) > 0
    x, y = (rng.standard_normal(s.shape).astype(np.float32) for s in shapes[:2])
    np.testing.assert_allclose(e([x, y])[0], (x + 1) @ y + 1, rtol=1e-5, atol=1e-5)


@BACKEND
def test_results_are_fresh_and_inputs_untouched(backend: Any) -> None:
    e = Executable(chain(20_000, 1), backend=backend)
    x = np.zeros(20_000, np.float32)
    kept = [e([x])[0] for _ in range(3)]
    assert not any(np.shares_memory(a, b) for a in [*kept, x] for b in [*kept, x] if a is not b)
    assert not x.any()
    kept[0][...] = 7
    assert (kept[1] == 2).all() and (e([x])[0] == 2).all()


def test_large_results_are_made_in_memory_that_was_used_before() -> None:
    e = Executable(chain(1 << 20, 0))
    x = np.zeros(1 << 20, np.float32)
    (y,) = e([x])
    address = y.ctypes.data
    view = y[5:]
    del y
    assert e([x])[0].ctypes.data != address
    del view
    gc.collect()
    assert address in {e([x])[0].ctypes.data for _ in range(3)}


@BACKEND
def test_inputs_of_any_layout_are_taken(backend: Any) -> None:
    case = cases()["transpose_add_float32"]
    program, (x, y) = program_of(case)
    e = Executable(program, backend=backend)
    want = e([x, y])[0]
    raw = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(x.dtype).reshape(x.shape)
    misaligned[...] = x

    class Sub(np.ndarray):
        pass

    read_only = x.copy()
    read_only.flags.writeable = False
    unpickled = pickle.loads(pickle.dumps(x))
    for form in (
        x.T.copy().T,
        np.repeat(x, 2, axis=1)[:, ::2],
        x[::-1].copy()[::-1],
        misaligned,
        x.view(Sub),
        read_only,
        unpickled,
    ):
        (got,) = e([form, y])
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, want)
        (got,) = e([x, np.asfortranarray(y)])
        np.testing.assert_array_equal(got, want)


@BACKEND
def test_inputs_that_do_not_fit_are_refused_by_name(backend: Any) -> None:
    e = Executable(chain(6, 1), backend=backend)
    good = np.zeros(6, np.float32)
    for wrong in (
        np.zeros(5, np.float32),
        np.zeros((6, 1), np.float32),
        np.zeros(6),
        np.zeros(6, np.int32),
        good.astype(">f4"),
    ):
        with pytest.raises(RuntimeError, match=r"chain: input 0 must be float32\[6\], got"):
            e([wrong])
    for wrong in ([0.0] * 6, None, 3):
        with pytest.raises(TypeError, match="input 0 must be an array"):
            e([wrong])  # type: ignore[list-item]
    for count in (0, 2):
        with pytest.raises(TypeError, match="takes 1 arrays"):
            e([good] * count)


def test_an_array_of_one_number_may_be_a_numpy_scalar() -> None:
    m = Make("twice")
    m.store("o", (), m.op("mul", m.load("x", (), F32, shape=()), m.const(2.0, F32)), shape=())
    program, _ = program_of(m.case())
    for backend in BACKENDS:
        (y,) = Executable(program, backend=backend)([np.float32(1.5)])  # type: ignore[list-item]
        assert y.shape == () and y == 3


@BACKEND
def test_results_that_repeat_or_are_inputs(backend: Any) -> None:
    p = chain(5, 0)
    p = Program("p", p.graph, p.slots, p.steps, (0,), (1, 0, 1), 0)
    x = np.arange(5, dtype=np.float32)
    a, b, c = Executable(p, backend=backend)([x])
    assert a is c and not np.shares_memory(b, x)
    np.testing.assert_array_equal(a, x + 1)
    np.testing.assert_array_equal(b, x)


@BACKEND
def test_a_program_without_steps(backend: Any) -> None:
    p = Program("nothing", Graph(), (), (), (), ())
    assert Executable(p, backend=backend)([]) == []


@pytest.mark.parametrize("floats", [(F32,), (F64,), (dtypes.bfloat16, F32), (dtypes.float16,)], ids=str)
def test_compiled_random_graphs_give_what_their_programs_mean(floats: tuple[dtypes.dtype, ...]) -> None:
    for seed in range(7000, 7008):
        graph = random_graph(seed, outputs=3, floats=floats, **({"sizes": (0, 1, 1, 7)} if seed % 4 == 0 else {}))
        program = compile_graph(graph, cpu.target())
        arrays = random_inputs(graph, seed)
        e = Executable(program)
        assert all(d.verdict != "interpreted" for d in e.decisions)
        e(arrays)
        for value, got, want in zip(graph.outputs, e(arrays), run_interpreted(program, arrays), strict=True):
            assert got.shape == value.shape and got.dtype == value.dtype.numpy and got.flags.c_contiguous
            if value.dtype.kind != "f":  # a float beside a step may fall on its other side
                assert not got.size or np.mean(got == want) > 0.9
                continue
            y = want.astype(np.float64)
            bound = {2: 2e-2, 4: 1e-4, 8: 1e-9}[got.dtype.itemsize]
            size = max(1.0, float(np.max(np.abs(y), initial=0, where=np.isfinite(y))))
            np.testing.assert_allclose(got.astype(np.float64), y, rtol=bound, atol=bound * size, err_msg=f"{seed}: {value}")


# ---- calls between kernels


def node(primitive: Primitive, *operand_specs: Spec | float, **params: Any) -> Node:
    b = Builder()
    b.source = "model.py:31"
    return b.append(primitive, tuple(b.input(s) if isinstance(s, Spec) else s for s in operand_specs), params)


def mixed_program(matrix: Spec, step: Step) -> Program:
    """x -> x + 1 -> step -> + 1 -> result, on square matrices."""
    n = matrix.shape[0]
    m = Make("add_one", i=n, j=n)
    m.store("y", (i, j), m.op("add", m.load("x", (i, j)), m.const(1.0, F32)))
    k = m.case()[0]
    room = -(-matrix.nbytes // 64) * 64
    slots = (Slot(matrix, "input"), Slot(matrix, "temp", 0, 0), Slot(matrix, "temp", 0, room), Slot(matrix, "output"))
    steps = (KernelStep(k, {"x": 0, "y": 1}), step, KernelStep(k, {"x": 2, "y": 3}))
    return Program("mixed", Graph(), slots, steps, (0,), (3,), 2 * room)


@BACKEND
@pytest.mark.parametrize("n", [0, 1, 33])
def test_primitives_are_called_between_kernels(backend: Any, n: int, rng: np.random.Generator) -> None:
    matrix = Spec((n, n), F32)
    x = rng.standard_normal((n, n)).astype(np.float32)
    turned = Argument(1, ((REGISTRY["permute"], {"dims": (1, 0)}),))
    call = CallStep(node(REGISTRY["matmul"], matrix, matrix), (Argument(1), turned), (2,))
    e = Executable(mixed_program(matrix, call), backend=backend)
    (y,) = e([x])
    np.testing.assert_allclose(y, (x + 1) @ (x + 1).T + 1, rtol=1e-5, atol=1e-5)
    (y,) = e([np.asfortranarray(x)])
    np.testing.assert_allclose(y, (x + 1) @ (x + 1).T + 1, rtol=1e-5, atol=1e-5)


def test_a_result_that_is_a_view_of_scratch_memory_is_copied() -> None:
    matrix = Spec((8, 8), F32)
    call = CallStep(node(REGISTRY["permute"], matrix, dims=(1, 0)), (Argument(1),), (2,))
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    e = Executable(mixed_program(matrix, call))
    first = e([x])[0]
    e([x * 0])
    np.testing.assert_array_equal(first, x.T + 2)


def test_an_error_in_a_call_names_the_users_line_and_leaves_the_program_usable() -> None:
    matrix = Spec((8, 8), F32)
    answers: list[Any] = [
        ValueError("not positive"),
        np.zeros((8, 7), np.float32),
        np.zeros((8, 8)),
        np.ones((8, 8), np.float32),
    ]

    def eager(x: np.ndarray) -> np.ndarray:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    moody = Primitive("moody", "opaque", lambda s: s, eager)
    e = Executable(mixed_program(matrix, CallStep(node(moody, matrix), (Argument(1),), (2,))))
    x = np.zeros((8, 8), np.float32)
    with pytest.raises(ValueError, match="not positive") as caught:
        e([x])
    assert any("model.py:31" in note and "moody" in note for note in caught.value.__notes__)
    for _ in range(2):
        with pytest.raises(CompileError, match="moody.*shape rule"):
            e([x])
    assert (e([x])[0] == 2).all()


def test_a_library_call_takes_the_kernels_place_if_it_may(rng: np.random.Generator) -> None:
    program, arrays = program_of(cases()["matmul_nn_float32_33x45x29"])
    (step,) = program.steps
    assert isinstance(step, KernelStep)
    a, b = (program.slots[s].spec for s in program.inputs)
    call = CallStep(node(REGISTRY["matmul"], a, b), (Argument(0), Argument(1)), program.outputs)
    both = Program(
        "p", Graph(), program.slots, (KernelStep(step.kernel, step.buffers, {}, call),), program.inputs, program.outputs
    )
    with_it, without = Executable(both), Executable(both, library=False)
    assert [d.verdict for d in with_it.decisions] == ["library"] and not with_it.kernels
    assert without.decisions == [] and len(without.kernels) == 1
    np.testing.assert_allclose(with_it(arrays)[0], without(arrays)[0], rtol=1e-5, atol=1e-5)


# ---- threads


def big_case() -> Case:
    m = Make("big", i=257, j=2048)
    x = m.load("x", (i, j))
    total = m.reduce("sum", m.op("mul", x, x), "j")
    m.store("y", (i, j), m.op("div", x, m.op("add", total, m.const(1.0, F32))))
    return m.case()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    program, arrays = program_of(big_case())
    e = Executable(program)
    before = threads.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3, 1, 4):
            threads.set_num_threads(n)
            results.append(e(arrays)[0])
    finally:
        threads.set_num_threads(before)
    assert all(np.array_equal(results[0], r) for r in results[1:])


def test_many_threads_call_one_program() -> None:
    program, (x,) = program_of(big_case())
    single = Executable(program)
    multi = Executable(chain(30_000, 2))
    want = [single([x * s])[0] for s in range(4)]

    def work(s: int) -> bool:
        mine, small = x * s, np.full(30_000, s, np.float32)
        for _ in range(25):
            if not np.array_equal(single([mine])[0], want[s]) or not (multi([small])[0] == s + 3).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_nothing_is_left_behind_by_calls() -> None:
    program, arrays = program_of(big_case())
    e = Executable(program)
    e(arrays)
    before = memory.shared.statistics()
    for _ in range(50):
        e(arrays)
    gc.collect()
    after = memory.shared.statistics()
    assert after.live <= before.live and after.cached <= before.cached


def test_code_for_another_cpu_is_refused_by_nothing_but_its_own_limits() -> None:
    """A target with fewer features than this machine's runs here: nothing is hard-wired to the host."""
    host = cpu.host()
    plain = CpuTarget(host.triple, "")
    for name in ("softmax_float32_77", "pointwise_float32", "pointwise_float16", "casts", "matmul_nn_bfloat16_33x45x29"):
        program, arrays = program_of(cases()[name])
        for a, b in zip(Executable(program, target=plain)(arrays), Executable(program)(arrays), strict=True):
            np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-5, atol=1e-6)


def test_a_symbol_below_its_least_value_is_refused() -> None:
    program, _ = program_of(cases()["pointwise_symbolic"])
    (step,) = program.steps
    assert isinstance(step, KernelStep)
    small = KernelStep(step.kernel, step.buffers, {"n": 1})
    wrong = Program("p", Graph(), program.slots, (small,), program.inputs, program.outputs)
    with pytest.raises(CompileError, match="was made for .*'n': 2.* and more, not for .*'n': 1"):
        Executable(wrong)


def test_it_is_known_what_kernels_cost(tmp_path: Path) -> None:
    store = DiskCache(tmp_path)
    for from_disk in (False, True):
        cpu._loaded.clear()
        kernel = cpu.load(add_one(4322), store=store)
        assert kernel.from_disk == from_disk and kernel.seconds > 0 and "define" in kernel.llvm
