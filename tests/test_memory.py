"""Programs: linking, in-place writes and the memory plan, run in NumPy on the planned arena, against the graph itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from graphs_for_tests import evaluate, op, random_graph, random_inputs, same_bits, transformer

from flame import dtypes as dt
from flame.compiler.graph import Builder, Graph, Node, Value
from flame.compiler.index_math import ex, var
from flame.compiler.kernel import Buffer, Const, Kernel, Load, Op, Reduce, Store, verify
from flame.compiler.link import link, own_results, verify_program
from flame.compiler.memory import in_place, lifetimes, pairs_in_place, plan
from flame.compiler.program import Argument, CallStep, Fused, FusedKernel, KernelStep, Program
from flame.compiler.program_interpret import run_interpreted
from flame.compiler.simplify import simplify
from flame.errors import VerificationError
from flame.primitive import Primitive, Spec

V = Spec((3, 4), dt.float32)


def kernel_of(n: Node) -> FusedKernel | None:
    """A kernel for one float32 or float64 elementwise node without broadcasting, written by hand."""
    spec = n.output.spec
    if n.primitive.kind != "elementwise" or spec.dtype not in (dt.float32, dt.float64) or n.params:
        return None
    if any(v.spec != spec for v in n.values):
        return None
    axes = {f"i{k}": ex(d) for k, d in enumerate(spec.shape)}
    index = tuple(map(var, axes))
    names = {v: f"b{k}" for k, v in enumerate(dict.fromkeys(n.values))}
    buffers = {b: Buffer(b, spec.dtype, tuple(axes.values())) for b in names.values()}
    buffers["out"] = Buffer("out", spec.dtype, tuple(axes.values()), "out")
    statements: list = [Load(f"x{b}", b, index, (), 0, spec.dtype) for b in names.values()]
    operands = []
    for k, x in enumerate(n.operands):
        if isinstance(x, Value):
            operands.append("x" + names[x])
        else:
            statements.append(Const(f"c{k}", float(x), spec.dtype))
            operands.append(f"c{k}")
    statements += [Op("y", n.primitive.name, tuple(operands), spec.dtype, n.note), Store("out", index, "y")]
    kernel = Kernel(n.primitive.name, buffers, axes, {}, statements)
    verify(kernel)
    return kernel, {b: v for v, b in names.items()} | {"out": n.output}, None


def fuse_nothing(graph: Graph) -> Fused:
    """One step a node: a kernel where that is easy, else a call."""
    return Fused([kernel_of(n) or n for n in graph.nodes])


def compiled(graph: Graph) -> Program:
    program = link(graph, fuse_nothing(graph))
    verify_program(program, "link")
    joined = in_place(program)
    for k in joined.kernels:
        verify(k, "in place")
    planned = plan(joined)
    verify_program(planned, "plan")
    return planned


def graph_of(f, *specs: Spec) -> Graph:
    b = Builder()
    xs = [b.input(s, "xyzw"[i]) for i, s in enumerate(specs)]
    with b:
        out = f(*xs)
    b.graph.outputs = [out] if isinstance(out, Value) else list(out)
    return b.graph


@pytest.mark.parametrize("floats", [(dt.float32,), (dt.float64, dt.bfloat16), (dt.float16, dt.float32)])
def test_programs_of_random_graphs_give_the_graphs_results(floats: tuple) -> None:
    joined = 0
    for seed in range(60):
        g = own_results(simplify(random_graph(3000 + seed, nodes=20, floats=floats, outputs=3)))
        g.verify("own results")
        arrays = random_inputs(g, seed)
        before = [a.copy() for a in arrays]
        program = compiled(g)
        joined += sum(b.role == "inout" for k in program.kernels for b in k.buffers.values())
        with np.errstate(all="ignore"):
            got, expected = run_interpreted(program, arrays), evaluate(g, arrays)
        for v, a, b in zip(g.outputs, got, expected, strict=True):
            assert close(a, b), f"seed {seed}: {v}\n{program}"
        assert all(same_bits(a, b) for a, b in zip(arrays, before, strict=True)), "an input was written"
    assert joined > 0 or dt.float32 not in floats[:1]


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """A kernel's own functions differ from NumPy's by ULPs (and by more where values cancel)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind not in "fV":
        return bool(np.mean(a == b) > 0.9) if a.size else True
    x, y = a.astype(np.float64), b.astype(np.float64)
    size = max(1.0, float(np.max(np.abs(y[np.isfinite(y)]), initial=0)))
    tolerance = {2: 2e-2, 4: 2e-4, 8: 1e-9}[a.dtype.itemsize]
    return bool(np.allclose(x, y, rtol=tolerance, atol=tolerance * size, equal_nan=True))


def test_a_deep_chain_needs_two_temps() -> None:
    def chain(x: Value) -> Value:
        for _ in range(50):
            x = op("sin", x)
        return x

    g = graph_of(chain, V)
    calls = plan(link(g, Fused(list(g.nodes))))
    verify_program(calls)
    assert calls.arena_bytes == 2 * 64, "48 bytes each, aligned; calls do not write in place"
    assert compiled(g).arena_bytes == 64, "each kernel writes over its operand"


def test_memory_is_near_what_is_alive() -> None:
    g = simplify(transformer(layers=4))
    program = compiled(g)
    live = lifetimes(program)
    most = max(
        sum(-(-program.slots[i].bytes // 64) * 64 for i, (a, b) in live.items() if a <= k <= b)
        for k in range(len(program.steps))
    )
    assert most <= program.arena_bytes <= 1.5 * most


def test_random_lifetimes_never_overlap_and_pack_well() -> None:
    """Calls that read earlier values at random; the verifier checks addresses, the sum of live bytes is the bound."""
    tie = Primitive("tie", "opaque", lambda *xs, n: Spec((n,), dt.uint8), lambda *xs, n: np.zeros(n, np.uint8))
    ratios = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        b = Builder()
        made = [b.input(Spec((5,), dt.uint8))]
        with b:
            for _ in range(120):
                near = made[-int(rng.integers(1, 30)) :]
                operands = [near[int(rng.integers(len(near)))] for _ in range(3)]
                made.append(tie(*operands, n=int(rng.choice([0, 1, 64, 65, 1000, 4096, int(rng.integers(10000))]))))
        b.graph.outputs = made[-1:]
        program = plan(link(b.graph, Fused(list(b.graph.nodes))))
        verify_program(program)
        live = lifetimes(program)
        sizes = {i: -(-program.slots[i].bytes // 64) * 64 for i in live}
        most = max(sum(sizes[i] for i, (p, q) in live.items() if p <= k <= q) for k in range(len(program.steps)))
        assert all(program.slots[i].offset % 64 == 0 for i in live)
        ratios.append(program.arena_bytes / most)
    assert max(ratios) < 1.5 and np.mean(ratios) < 1.2, ratios


def test_results_that_are_inputs_are_copied_and_repeated_ones_share_a_slot() -> None:
    g = own_results(graph_of(lambda x, y: [x, op("add", x, y), x], V, V))
    g.verify()
    program = compiled(g)
    x, y = random_inputs(g)
    a, b, c = run_interpreted(program, [x, y])
    assert a is c and a is not x and same_bits(a, x) and same_bits(b, x + y)
    assert program.outputs[0] == program.outputs[2] and len(program.output_slots) == 2


def test_unused_inputs_and_unused_results_of_a_call() -> None:
    two = Primitive("two", "opaque", lambda x: (x, x), lambda x: (x + 1, x + 2))
    g = graph_of(lambda x, y: two(y)[1], V, V)
    program = compiled(g)
    assert [s.outputs for s in program.steps if isinstance(s, CallStep)] == [(-1, program.outputs[0])]
    arrays = random_inputs(g)
    np.testing.assert_array_equal(run_interpreted(program, arrays)[0], arrays[1] + 2)


def test_a_graph_without_nodes_inputs_or_elements() -> None:
    empty = compiled(Graph())
    assert run_interpreted(empty, []) == [] and empty.arena_bytes == 0
    g = graph_of(lambda x: op("exp", op("sin", x)), Spec((0, 4), dt.float32))
    (out,) = run_interpreted(compiled(g), [np.zeros((0, 4), np.float32)])
    assert out.shape == (0, 4)


def test_a_wrong_input_is_refused() -> None:
    program = compiled(graph_of(lambda x: op("sin", x), V))
    for bad in (np.zeros((3, 5), np.float32), np.zeros((3, 4))):
        with pytest.raises(TypeError, match="input 0"):
            run_interpreted(program, [bad])


def matmul_step(transposed: bool) -> tuple[Graph, FusedKernel]:
    """relu-less linear layer: x @ permute(reshape(w)), and a stand-in kernel that reads x and w."""

    def f(x: Value, w: Value) -> Value:
        w = op("permute", op("reshape", w, shape=(5, 4)), dims=(1, 0)) if transposed else op("sin", w)
        return op("matmul", x, w)

    g = graph_of(f, V, Spec((20,), dt.float32) if transposed else Spec((4, 5), dt.float32))
    out = g.outputs[0]
    x, w = g.inputs
    buffers = {
        "x": Buffer("x", dt.float32, (ex(12),)),
        "w": Buffer("w", dt.float32, (ex(20),)),
        "y": Buffer("y", dt.float32, (ex(15),), "out"),
    }
    i = var("i")
    kernel = Kernel("k", buffers, {"i": ex(15)}, {}, [Const("c", 0.0, dt.float32), Store("y", (i,), "c")])
    return g, (kernel, {"x": x, "w": w, "y": out}, out.node)


def test_a_library_call_sees_its_operands_through_views() -> None:
    g, step = matmul_step(transposed=True)
    program = plan(link(g, Fused([step])))
    (only,) = program.steps
    assert isinstance(only, KernelStep) and only.library is not None
    second = only.library.arguments[1]
    assert isinstance(second, Argument) and [p.name for p, _ in second.views] == ["reshape", "permute"]
    arrays = random_inputs(g)
    np.testing.assert_array_equal(run_interpreted(program, arrays, library=True)[0], evaluate(g, arrays)[0])


def test_a_library_call_on_a_computed_operand_is_dropped_with_a_reason() -> None:
    g, step = matmul_step(transposed=False)
    program = link(g, Fused([step]))
    assert isinstance(program.steps[0], KernelStep) and program.steps[0].library is None
    assert [d.verdict for d in program.decisions] == ["refused"]


def two_axes(*statements: object, buffers: Sequence[Buffer]) -> Kernel:
    return Kernel("k", {b.name: b for b in buffers}, {"i": ex(4), "j": ex(4)}, {}, statements)  # type: ignore[arg-type]


def test_a_kernel_writes_in_place_only_where_one_loop_reads_what_it_writes() -> None:
    i, j = var("i"), var("j")
    f, square = dt.float32, (ex(4), ex(4))
    x, y = Buffer("x", f, square), Buffer("y", f, square, "out")
    t, row = Buffer("t", f, square, "out"), Buffer("row", f, (ex(4),), "out")
    load, twin = Load("a", "x", (i, j), (), 0, f), Load("b", "x", (j, i), (), 0, f)
    double, total = Op("c", "add", ("a", "a"), f), Reduce("r", "sum", ("a",), ("j",), f)
    store = Store("y", (i, j), "c")
    assert pairs_in_place(two_axes(load, double, store, buffers=[x, y])) == [("x", "y")]
    assert pairs_in_place(two_axes(load, twin, Op("c", "add", ("a", "b"), f), store, buffers=[x, y])) == [], "transposed too"
    assert pairs_in_place(two_axes(load, double, Store("y", (j, i), "c"), buffers=[x, y])) == [], "written elsewhere"
    assert pairs_in_place(two_axes(load, double, total, store, Store("row", (i,), "r"), buffers=[x, y, row])) == [], "sums"
    both = two_axes(load, double, store, Store("t", (i, j), "a"), buffers=[x, y, t])
    assert pairs_in_place(both) == [("x", "y")], "each buffer once"
    other = Buffer("y", dt.int32, square, "out")
    cast = Op("c", "cast", ("a",), dt.int32)
    assert pairs_in_place(two_axes(load, cast, store, buffers=[x, other])) == [], "another dtype"


def test_an_operand_that_lives_on_is_not_written_over() -> None:
    g = graph_of(lambda x: op("add", op("sin", a := op("cos", x)), op("exp", a)), V)
    arrays = random_inputs(g)
    assert close(run_interpreted(compiled(g), arrays)[0], evaluate(g, arrays)[0])


def broken(program: Program, kind: str) -> Program:
    """The program with one thing wrong."""
    steps, slots = list(program.steps), list(program.slots)
    temps = [i for i, s in enumerate(slots) if s.kind == "temp"]
    match kind:
        case "order":
            steps = steps[::-1]
        case "overlap":
            slots = [replace(s, offset=0) if s.kind == "temp" else s for s in slots]
        case "arena":
            return replace(program, arena_bytes=64)
        case "unwritten result":
            steps = steps[:-1]
        case "size":
            slots[temps[0]] = replace(slots[temps[0]], spec=Spec((2,), dt.float32))
        case "dtype":
            slots[temps[0]] = replace(slots[temps[0]], spec=Spec((3, 4), dt.int32))
        case "input written":
            first = steps[0]
            assert isinstance(first, KernelStep)
            steps[0] = replace(first, buffers={**first.buffers, "out": 1})
        case "unbound":
            first = steps[0]
            assert isinstance(first, KernelStep)
            steps[0] = replace(first, buffers={"out": first.buffers["out"]})
    return replace(program, steps=tuple(steps), slots=tuple(slots))


KINDS = ["order", "overlap", "arena", "unwritten result", "size", "dtype", "input written", "unbound"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_verifier_sees(kind: str) -> None:
    def f(x: Value, y: Value) -> Value:
        a, b, c = op("sin", x), op("cos", x), op("exp", y)
        return op("add", op("mul", a, b), op("mul", c, op("mul", a, y)))

    program = plan(link(g := graph_of(f, V, V), fuse_nothing(g)))
    verify_program(program, "plan")
    with pytest.raises(VerificationError):
        verify_program(broken(program, kind), "breaking it")


def test_a_step_that_reads_what_nobody_makes_is_refused() -> None:
    g = graph_of(lambda x: op("exp", op("sin", x)), V)
    with pytest.raises(VerificationError, match="no step before it has made"):
        link(g, Fused([g.nodes[1]]))


def test_a_program_prints_its_slots_and_steps() -> None:
    def f(x: Value) -> Sequence[Value]:
        return [op("exp", op("sin", x)), op("sum", x, dim=(0,), keepdim=False)]

    text = str(compiled(graph_of(f, V)))
    for part in (
        "program graph(s0)",
        "float32[3, 4] input 0",
        "temp+0",
        "sin(b0=s0, out=s1)",
        "sum(s0, dim=(0,), keepdim=False)",
    ):
        assert part in text, text
