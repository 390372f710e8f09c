"""Programs on disk: a known graph compiles nothing, an unknown or damaged one is compiled, and nobody sees the difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs_for_tests import op, random_graph, random_inputs, same_bits

import flame
import flame.nn as nn
from flame import dtypes
from flame.capture import compiled as capture_compiled
from flame.compiler.graph import Builder, Graph
from flame.compiler.pipeline import compile_graph
from flame.compiler.spelling import Unspellable, lines, spelled
from flame.knobs import knobs
from flame.primitive import Primitive, Spec, registered
from flame.runtime import cache, cpu, index, threads
from flame.runtime.cache import DiskCache
from flame.runtime.executable import Executable
from flame.runtime.recipe import Unencodable, decoded, encoded

Function = Callable[[], Any]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskCache]:
    made = DiskCache(tmp_path / "cache")
    monkeypatch.setattr(cache, "_shared", made)
    monkeypatch.setattr(knobs, "verify", False)  # programs are looked for only where passes need not be shown
    forget(monkeypatch)
    yield made


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process would not have: kernels in memory."""
    monkeypatch.setattr(cpu, "_loaded", {})
    monkeypatch.setattr(cpu, "_recalled", {})


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the graphs that were compiled."""
    done: list[str] = []

    def counted(graph: Graph, *args: Any, **kwargs: Any) -> Any:
        done.append(graph.name)
        return compile_graph(graph, *args, **kwargs)

    monkeypatch.setattr(capture_compiled, "compile_graph", counted)
    return done


# ---- what is compiled in one process is found in the next


def forward() -> Function:
    x = flame.arange(1007.0)
    return flame.compile(lambda: [x.sin() * 2, (x + 1).exp().sum()])


def pair() -> Function:
    """Forward and backward in two graphs: the backward is asked for outside."""
    w = flame.linspace(-1, 1, 35).reshape(5, 7).requires_grad_()
    x = flame.linspace(0, 2, 21).reshape(3, 7)
    f = flame.compile(lambda: nn.functional.gelu(x @ w.t()).square().mean())

    def step() -> Any:
        w.grad = None
        loss = f()
        loss.backward()
        return [loss.detach(), w.grad]

    step.compiled = f  # type: ignore[attr-defined]
    return step


def training() -> Function:
    """A step that writes parameters and the optimizer's state where they lie, and checks its indices as it runs."""
    flame.manual_seed(3)
    net = nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11))
    optimizer = flame.optim.AdamW(net.parameters(), lr=0.1)
    codes = flame.tensor([[1, 5, 10], [0, 3, 3]])

    @flame.compile
    def step() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(codes).reshape(-1, 11), (codes.reshape(-1) + 1) % 11)
        loss.backward()
        optimizer.step()
        return [loss.detach(), *(p.detach().clone() for p in net.parameters())]

    return step


def calls() -> Function:
    """A step that no kernel holds, between two that one does."""
    x = flame.linspace(-3, 3, 60).reshape(5, 12).sin()
    return flame.compile(lambda: [(x * 2).sort(dim=1)[0] + 1, (x @ x.t()).argsort(-1)])


PROGRAMS = [forward, pair, training, calls]


def results(step: Function, times: int = 4) -> list[np.ndarray]:
    return [np.asarray(t.numpy()).copy() for _ in range(times) for t in step()]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_a_known_program_is_not_compiled_again(
    program: Callable[[], Function], compilations: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    first_step = program()
    first = results(first_step)
    assert compilations
    compilations.clear()
    forget(monkeypatch)
    monkeypatch.setattr(capture_compiled, "differentiate", None)
    monkeypatch.setattr(knobs, "log", frozenset({"cache"}))
    step = program()
    again = results(step)
    assert compilations == [] and "found on disk" in capsys.readouterr().err
    assert len(first) == len(again) and all(map(same_bits, first, again))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_a_program_from_disk_can_be_read_like_any_other(
    program: Callable[[], Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for _ in range(2):
        forget(monkeypatch)
        step = program()
        results(step)
        f = getattr(step, "compiled", step)
        kernels = [(k.digest, k.notes, k.uses, k.runs_by, k.llvm) for k in f.kernels]
        graphs = [str(g) for g in f.graphs]
        decisions = [str(d) for c in f.compiled_graphs() for d in c.decisions]
        programs = [str(c.program) for c in f.compiled_graphs()]
        shown.append((kernels, graphs, decisions, programs))
    assert shown[0] == shown[1] and shown[0][0]


def test_a_second_process_finds_it(store: DiskCache, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import flame\n"
        "x = flame.arange(999.0)\n"
        "f = flame.compile(lambda: (x.tanh() + 3).sum())\n"
        "for _ in range(2): y = f()\n"
        "print(y.item().hex())\n"
    )
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"FLAME_CACHE_DIR": str(tmp_path / "shared"), "FLAME_VERIFY": "0", "FLAME_LOG": "cache", "PYTHONPATH": path}
    runs = [
        subprocess.run(
            [sys.executable, str(script)], env={**os.environ, **variables}, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    assert ["found on disk" in r.stderr for r in runs] == [False, True]


# ---- misses


def files(store: DiskCache) -> list[Path]:
    return [p for p in store.folder.rglob("*") if p.is_file()]


def test_a_program_whose_kernels_are_gone_is_compiled(
    store: DiskCache, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = results(forward())
    for path in files(store):
        if b'"recipes"' not in path.read_bytes():
            path.unlink()
    compilations.clear()
    forget(monkeypatch)
    assert all(map(same_bits, first, results(forward()))) and compilations


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"null", b'{"recipes":[],"facts":null,"lines":""}', b"\xff\xfe"])
def test_an_entry_that_says_nothing_is_a_miss(
    damage: bytes, store: DiskCache, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = results(forward())
    for path in files(store):
        if b'"recipes"' in path.read_bytes():
            name = path.parent.name + path.name
            store.put(name, damage)
    compilations.clear()
    forget(monkeypatch)
    assert all(map(same_bits, first, results(forward()))) and compilations


def test_a_full_disk_costs_time_and_nothing_else(store: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    first = results(training())
    monkeypatch.setattr(cache, "_shared", DiskCache(store.folder.parent / "other"))
    monkeypatch.setattr(cache.tempfile, "mkstemp", full)
    forget(monkeypatch)
    assert all(map(same_bits, first, results(training())))
    assert "No space left" in cache.shared().disabled


def test_threads_are_part_of_the_name(compilations: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = threads.get_num_threads()
    names = set()
    try:
        for n in (1, 2, 3):
            threads.set_num_threads(n)
            names.add(index.name("text"))
    finally:
        threads.set_num_threads(before)
    assert len(names) == 3 and index.name("text") != index.name("text", "") != index.name("text2")


def test_nothing_is_looked_up_where_passes_are_to_be_shown_or_verified(
    compilations: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    results(forward())
    for knob, value in (("verify", True), ("log", frozenset({"passes"})), ("log", frozenset({"kernels", "capture"}))):
        with monkeypatch.context() as m:
            m.setattr(knobs, knob, value)
            compilations.clear()
            results(forward())
            assert compilations
    capsys.readouterr()
    compilations.clear()
    for backend in ("interpret", "eager"):
        x = flame.arange(1007.0)
        flame_function = flame.compile(lambda x=x: [x.sin() * 2, (x + 1).exp().sum()], backend=backend)
        results(flame_function)
    assert len(compilations) == 1  # interpreted; eager compiles nothing


def test_the_lines_of_a_program_matter_where_an_error_would_show_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, found in ((forward, True), (calls, False)):
        kept: list[tuple[str, str]] = []
        with monkeypatch.context() as m:
            real = index.enter
            m.setattr(index, "enter", lambda name, lines, *a: (kept.append((name, lines)), real(name, lines, *a)))
            results(program())
        [(name, its_lines)] = kept
        assert index.look_up(name, its_lines, ["f"]) is not None
        assert (index.look_up(name, "elsewhere", ["f"]) is not None) == found


# ---- graphs of sizes that vary


def of_sizes_segment() -> Callable[[int], list]:
    f = flame.compile(lambda x: [(x.sin() * x.shape[0]).sum(0), x.exp() + 1])
    return lambda n: f(flame.linspace(-1, 1, 7 * n).reshape(n, 7))


def of_sizes_pair() -> Callable[[int], list]:
    w = flame.linspace(-1, 1, 35).reshape(5, 7).requires_grad_()
    f = flame.compile(lambda x: nn.functional.gelu(x @ w.t()).softmax(-1).square().mean())

    def step(n: int) -> list:
        w.grad = None
        loss = f(flame.linspace(-2, 2, 7 * n).reshape(n, 7))
        loss.backward()
        return [loss.detach(), w.grad]

    return step


def of_sizes_training() -> Callable[[int], list]:
    flame.manual_seed(3)
    net = nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11))
    optimizer = flame.optim.AdamW(net.parameters(), lr=0.1)

    @flame.compile
    def step(codes: Any) -> list:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(codes[:-1]), codes[1:])
        loss.backward()
        optimizer.step()
        return [loss.detach(), *(p.detach().clone() for p in net.parameters())]

    return lambda n: step(flame.arange(n) * 3 % 11)


OF_SIZES = [of_sizes_segment, of_sizes_pair, of_sizes_training]
SIZES = (4, 4, 4, 5, 5, 6, 9, 5)


def walked(step: Callable[[int], list], sizes: tuple[int, ...]) -> list[list[np.ndarray]]:
    return [[np.asarray(t.numpy()).copy() for t in step(n)] for n in sizes]


@pytest.mark.parametrize("program", OF_SIZES, ids=lambda p: p.__name__)
def test_a_program_of_sizes_is_found_at_sizes_that_were_met(
    program: Callable, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = walked(program(), SIZES)
    assert compilations
    compilations.clear()
    forget(monkeypatch)
    got = walked(program(), SIZES)
    assert compilations == []
    for a, b in zip(want, got, strict=True):
        for x, y in zip(a, b, strict=True):
            assert same_bits(x, y)


@pytest.mark.parametrize("program", OF_SIZES, ids=lambda p: p.__name__)
def test_a_program_of_sizes_is_compiled_for_a_size_that_was_not_met(
    program: Callable, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on serving the others; met in another order."""
    walked(program(), SIZES)
    others = (4, 4, 4, 9, 9, 7, 6, 8, 9, 5, 7)
    with monkeypatch.context() as m:
        m.setattr(cache, "_shared", DiskCache(None))
        want = walked(program(), others)
    compilations.clear()
    forget(monkeypatch)
    got = walked(program(), others)
    assert 1 <= len(compilations) <= 2, "one graph, or a forward and its backward"
    for a, b in zip(want, got, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_programs_of_sizes_are_kept_for_some_sizes_only(store: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    real = index.enter
    monkeypatch.setattr(index, "enter", lambda name, *a: (kept.append(name), real(name, *a)))
    walked(of_sizes_segment(), (4, 4, 4, 5, *range(5, 60)))
    assert len(set(kept)) == len(kept) == 1 + capture_compiled.KEPT_SIZES


# ---- the text of a graph


def graph_of(build: Callable[[Any], Any], *shapes: tuple[int, ...], d: dtypes.dtype = dtypes.float32, name: str = "g") -> Graph:
    b = Builder(Graph(name=name))
    inputs = [b.input(Spec(s, d)) for s in shapes]
    with b:
        got = build(*inputs)
    b.graph.outputs = list(got) if isinstance(got, tuple) else [got]
    return b.graph


def test_the_text_of_a_graph_leaves_out_names_and_lines() -> None:
    one = graph_of(lambda x, y: op("mul", op("add", x, y), 2.0), (3,), (3,))
    two = graph_of(lambda x, y: op("mul", op("add", x, y), 2.0), (3,), (3,), name="other")
    for v in two.values():
        v.name = f"renamed_{v.name}"
    two.nodes[0].note, two.nodes[1].source = "softmax", "file.py:3"
    assert spelled(one) == spelled(two) and lines(one) != lines(two)


def test_the_text_of_a_graph_tells_apart_what_computes_differently() -> None:
    x3, x4 = (3,), (4,)
    different = [
        graph_of(lambda x, y: op("mul", x, y), x3, x3),
        graph_of(lambda x, y: op("mul", y, x), x3, x3),
        graph_of(lambda x, y: op("mul", x, x), x3, x3),
        graph_of(lambda x, y: op("add", x, y), x3, x3),
        graph_of(lambda x, y: op("mul", x, y), x4, x4),
        graph_of(lambda x, y: op("mul", x, y), x3, x3, d=dtypes.float64),
        graph_of(lambda x, y: (op("mul", x, y), x), x3, x3),
        graph_of(lambda x, y: (x, op("mul", x, y)), x3, x3),
        *(graph_of(lambda x, k=k: op("mul", x, k), x3, d=dtypes.float32) for k in (0.0, -0.0, 1.0, 2.0, float("nan"))),
        graph_of(lambda x: op("cast", x, dtype=dtypes.float16), x3),
        graph_of(lambda x: op("cast", x, dtype=dtypes.bfloat16), x3),
        graph_of(lambda x: op("sum", x, dim=(0,), keepdim=False), (1, 1)),
        graph_of(lambda x: op("sum", x, dim=(1,), keepdim=False), (1, 1)),
        graph_of(lambda x: op("sum", x, dim=(1,), keepdim=True), (1, 1)),
    ]
    integers = [graph_of(lambda x, k=k: op("mul", x, k), x3, d=dtypes.int64) for k in (1, True)]
    texts = [spelled(g) for g in (*different, *integers)]
    assert len(set(texts)) == len(texts)
    g = different[0]
    assert len({spelled(g), spelled(g, g.inputs[:1]), spelled(g, g.inputs[1:]), spelled(g, g.inputs)}) == 4


def test_a_parameter_without_a_spelling_is_not_guessed() -> None:
    g = graph_of(lambda x: op("sum", x, dim=(0,), keepdim=False), (3,))
    g.nodes[0].params["dim"] = (object(),)
    with pytest.raises(Unspellable, match="object"):
        spelled(g)


def test_random_graphs_have_texts_of_their_own() -> None:
    graphs = [random_graph(seed, nodes=12) for seed in range(40)]
    assert len({spelled(g) for g in graphs}) == len({str(g) for g in graphs})


# ---- recipes


@pytest.mark.parametrize("seed", range(12))
def test_a_recipe_comes_back_from_its_text(seed: int) -> None:
    graph = random_graph(seed, nodes=25)
    program = compile_graph(graph, cpu.target())
    arrays = random_inputs(graph, seed)
    made = Executable(program)
    text = encoded(made.recipe)
    again = Executable.of(decoded(text))
    assert again is not None and encoded(again.recipe) == text and again.decisions == made.decisions
    for a, b in zip(made([x.copy() for x in arrays]), again([x.copy() for x in arrays]), strict=True):
        assert same_bits(a, b)


def test_what_has_no_text_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(lambda x: op("sort", x, dim=0, descending=False), (5,))
    program = compile_graph(graph, cpu.target())
    interpreted = Executable(compile_graph(graph_of(lambda x: op("exp", x), (5,)), cpu.target()), backend="interpret")
    with pytest.raises(Unencodable, match="interpreted"):
        encoded(interpreted.recipe)
    e = Executable(program)
    (use,) = [u for u in e.recipe.uses if hasattr(u, "primitive")]
    use.params["dim"] = {1, 2}
    with pytest.raises(Unencodable, match="set"):
        encoded(e.recipe)
    use.params["dim"] = 0
    encoded(e.recipe)
    known = registered("sort")
    monkeypatch.setitem(sys.modules["flame.primitive"].REGISTRY, "sort", Primitive("sort", "opaque", known.infer, known.eager))
    with pytest.raises(Unencodable, match="registry"):
        encoded(e.recipe)


def test_a_recipe_that_reaches_outside_its_memory_is_none() -> None:
    graph = graph_of(lambda x: (op("sort", op("exp", x), dim=0, descending=False), op("sin", x)), (5,))
    e = Executable(compile_graph(graph, cpu.target()))
    good = json.loads(encoded(e.recipe))
    decoded(json.dumps(good))

    def broken(change: Callable[[Any], Any]) -> str:
        facts = json.loads(json.dumps(good))
        change(facts)
        return json.dumps(facts)

    native = next(i for i, u in enumerate(good["uses"]) if isinstance(u, list))
    call = next(i for i, u in enumerate(good["uses"]) if isinstance(u, dict))
    changes: list[Callable[[Any], Any]] = [
        lambda f: f["uses"][native][2].__setitem__(0, 99),
        lambda f: f["uses"][native][2].__setitem__(0, -2 - f["arena"]),
        lambda f: f["uses"][native].__setitem__(0, 7),
        lambda f: f["uses"][native].pop(),
        lambda f: f["uses"].append(99),
        lambda f: f["uses"].append(-1),
        lambda f: f["uses"][call].update(call="no such primitive"),
        lambda f: f["uses"][call]["results"].__setitem__(0, [99, ["float32", 5]]),
        lambda f: f["uses"][call]["specs"].__setitem__(0, ["float99", 5]),
        lambda f: f["inputs"].__setitem__(0, ["float32", -5]),
        lambda f: f["inputs"].__setitem__(0, ["float32", "5"]),
        lambda f: f["results"].__setitem__(0, [-1, False]),
        lambda f: f["updated"].append(99),
        lambda f: f.pop("owned"),
        lambda f: f.update(arena="many"),
    ]
    for change in changes:
        with pytest.raises(Unencodable):
            decoded(broken(change))
    for text in ("", "[]", "1", "{", "null", '"x"'):
        with pytest.raises(Unencodable):
            decoded(text)
