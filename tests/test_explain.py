"""What a compiled function shows of itself: kernels to hold and read, `explain`, pictures of graphs, the log; state kept."""

from __future__ import annotations

import ast
import functools
import io
import math
import random
import re
import sys
import types
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import graphs_for_tests as made
import ml_dtypes
import numpy as np
import pytest
import rich.console

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame import kernels
from flame.capture import compiled as capture_compiled
from flame.compiler.graph import Builder, Graph
from flame.compiler.kernel import Contract
from flame.drawing import draw
from flame.errors import CompileError, MissingTargetError
from flame.explain import distance
from flame.explanation_text import gathered, size
from flame.knobs import knobs
from flame.primitive import Spec
from flame.reasons import REASONS
from flame.runtime import llvm_jit, triton_tools

HERE = __file__


def line_of(text: str) -> str:
    """ "file:line" of the only line of this file that ends in a mark."""
    with open(HERE) as f:
        [n] = [i for i, line in enumerate(f, 1) if line.rstrip().endswith(f"# mark: {text}")]
    return f"{HERE}:{n}"


def loss_of(x: Any, target: Any, weight: Any) -> Any:
    hidden = F.gelu(x @ weight)  # mark: gelu
    return F.mse_loss(hidden.softmax(dim=-1), target)


def arguments() -> tuple:
    return flame.randn(32, 2), flame.rand(32, 16), flame.randn(2, 16)


def run(f: Any, *args: Any, times: int = 3) -> Any:
    for _ in range(times):
        f(*args)
    return f


# ---- kernels


def test_kernels_are_listed_once_in_order_and_stay_the_same_objects() -> None:
    def step(x: Any) -> Any:
        for _ in range(3):
            x = (x @ x).tanh() * 0.5
        return x.softmax(-1)

    f = flame.compile(step)
    assert f.kernels == [] and f.graphs == []
    f(flame.randn(8, 8))
    assert f.kernels == []  # the first call only records
    run(f, flame.randn(8, 8))
    found = f.kernels
    assert [k.digest for k in found] == list(dict.fromkeys(k.digest for k in found))
    assert all(a is b for a, b in zip(found, f.kernels, strict=True))
    [program] = [c.program for c in f.compiled_graphs()]
    assert sum(k.uses for k in found) == len(program.kernels)
    assert [k.name for k in found] == list(dict.fromkeys(k.name for k in program.kernels))
    assert any(k.uses == 3 for k in found), "the three equal layers are one kernel"


def test_a_kernel_shows_its_sources_and_where_it_comes_from() -> None:
    f = run(flame.compile(loss_of), *arguments())
    assert len(f.graphs) == 1 and str(f.graphs[0]).startswith("loss_of(")
    for k in f.kernels:
        module = ast.parse(k.triton)
        assert any(isinstance(n, ast.FunctionDef) and n.name == k.triton_source().entry for n in module.body)
        assert f"define void @{k.name}" in k.llvm
        assert k.name in k.asm and ".text" in k.asm
        assert str(k) == str(k.kernel) and k.name in repr(k)
        assert k.bytes_moved > 0 and k.runs_by == "native"
    assert any(line_of("gelu") in note and note.startswith("gelu") for k in f.kernels for note in k.notes)


def test_a_kernel_compiles_for_gpus_that_are_not_there() -> None:
    pytest.importorskip("triton")
    k = run(flame.compile(lambda x: (x * 2 + 1).exp()), flame.randn(100)).kernels[0]
    assert ".target sm_90" in k.ptx("sm_90") and ".target sm_80" in k.ptx("sm_80")
    assert k.cubin("sm_80")[:4] == b"\x7fELF"
    assert k.binary("sm_80") is k.binary("sm_80")
    with pytest.raises(ValueError, match="no GPU architecture"):
        k.ptx("pentium")


def test_gpu_kernels_are_fused_for_the_gpu() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
    compiled = run(flame.compile(model), flame.randn(256, 64))
    found = compiled.gpu_kernels("sm_80")
    [product] = [k for k in found if {"linear", "relu"} <= {n.split("  ")[0] for n in k.notes}]
    assert any(isinstance(s, Contract) for s in product.kernel.statements), "the product and what follows are one kernel"
    assert "tl.dot" in product.triton and product.target.arch == "sm_80" and product.runs_by == ""


def test_gpu_kernels_are_priced_for_the_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    f = run(flame.compile(loss_of), *arguments())
    asked = []
    ordinary = kernels.compile_graph
    monkeypatch.setattr(kernels, "compile_graph", lambda graph, target: asked.append(target) or ordinary(graph, target))
    found = f.gpu_kernels("gfx942")
    assert asked == [kernels.gpu("gfx942")] and {k.target for k in found} == set(asked)


def test_a_compiled_module_shows_kernels_too() -> None:
    model = flame.compile(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)))
    run(model, flame.randn(3, 4))
    assert model.kernels and model.graphs and model.stats.calls == 3
    assert model.kernels[0].triton.startswith("import triton")


def test_kernels_of_the_backward_pass_are_there() -> None:
    f = flame.compile(lambda x, w: (x @ w).tanh().sum())
    x, w = flame.randn(5, 4), flame.randn(4, 3, requires_grad=True)
    for _ in range(3):
        f(x, w).backward()
    assert {c.role for c in f.compiled_graphs()} == {"forward", "backward"}
    assert [g.name for g in f.graphs] == [f.graphs[0].name, f.graphs[0].name + "_backward"]
    forward = {k.digest for k in run(flame.compile(lambda x, w: (x @ w).tanh().sum()), x, w.detach()).kernels}
    assert {k.digest for k in f.kernels} - forward


def test_reset_forgets_kernels() -> None:
    f = run(flame.compile(loss_of), *arguments())
    f.reset()
    assert f.kernels == [] and f.graphs == [] and f.stats.calls == 0


def test_interpreted_and_eager_backends_say_so() -> None:
    f = run(flame.compile(loss_of, backend="interpret"), *arguments())
    assert {k.runs_by for k in f.kernels} == {"interpreted"}
    g = run(flame.compile(loss_of, backend="eager"), *arguments())
    assert g.kernels == [] and len(g.graphs) == 1
    assert g.gpu_kernels(), "what a GPU would run can be seen without a program for the CPU"


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    k = run(flame.compile(lambda x: x.exp() + 1), flame.randn(10)).kernels[0]
    monkeypatch.setattr(llvm_jit, "llvm", None)
    for read in (lambda: k.llvm, lambda: k.asm):
        with pytest.raises(MissingTargetError, match="llvmlite"):
            read()
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    triton_tools.load_triton.cache_clear()
    try:
        assert "tl.load" in k.triton, "writing source needs nothing installed"
        with pytest.raises(MissingTargetError, match="Triton"):
            k.ptx()
    finally:
        monkeypatch.undo()
        triton_tools.load_triton.cache_clear()


def test_gpus_are_known_by_their_architecture() -> None:
    assert kernels.gpu("sm_90").units == 132 and kernels.gpu("sm_90").lanes == 32
    assert kernels.gpu("sm_87").units == kernels.gpu("sm_86").units and kernels.gpu("sm_87").arch == "sm_87"
    assert kernels.gpu("sm_50").arch == "sm_50" and kernels.gpu("sm_999").cache == kernels.gpu("sm_120").cache
    assert kernels.gpu("gfx942").lanes == 64 and kernels.gpu("gfx9ff").lanes == 64 and kernels.gpu("gfx1201").lanes == 32
    for wrong in ("", "h100", "sm90", "sm_", "gfx"):
        with pytest.raises(ValueError, match="no GPU architecture"):
            kernels.gpu(wrong)


# ---- explain


def trained() -> tuple[Any, nn.Module, Any]:
    """A training step, its model and optimizer."""
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = flame.optim.AdamW(model.parameters(), lr=1e-2)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step, model, optimizer


def test_explain_reports_a_training_step_and_leaves_it_as_it_was() -> None:
    flame.manual_seed(4)
    step, model, optimizer = trained()
    x, y = flame.randn(10, 6), flame.randint(0, 3, (10,))
    before = {n: t.clone().numpy() for n, t in model.state_dict().items()}
    stream = flame.get_rng_state().tolist(), random.getstate()
    e = flame.explain(step, x, y)
    for n, t in model.state_dict().items():
        np.testing.assert_array_equal(t.numpy(), before[n], err_msg=n)
    assert not optimizer.state and all(p.grad is None for p in model.parameters())
    assert (flame.get_rng_state().tolist(), random.getstate()) == stream
    assert e.name == "step" and len(e.graphs) >= 1 and len(e.kernels) >= 3 and not e.fallbacks and not e.breaks
    assert e.difference.repeatable, "dropout draws the same numbers, and the state is the same"
    assert 0 <= e.difference.relative < 1e-4 and e.difference.absolute < 1e-3
    assert e.eager_ms > 0 and e.compiled_ms > 0 and e.compile_seconds > 0
    assert e.first_compiled_seconds > 0 and 2 <= e.calls <= 8
    segment = e.segments[0]
    assert segment.operations == len(segment.graph.nodes) and segment.kernels and segment.bytes_moved < segment.bytes_eager
    assert {"fused", "refused"} <= {d.verdict for d in e.decisions} and set(e.refused) <= set(e.decisions)


def test_explain_names_breaks_with_the_users_line() -> None:
    def f(x: Any) -> Any:
        y = x * 2
        if y.sum() > 1e9:  # mark: break
            y = y + 1
        return y.exp()

    e = flame.explain(f, flame.rand(6))
    [event] = e.breaks
    assert event.source == line_of("break") and "value is read" in event.reason and event.count == e.calls
    assert len(e.graphs) == 2
    assert event.code == "FL1001" and event.remedy in REASONS["FL1001"].remedy and "What to do" in str(e)
    assert 2 <= e.calls <= 8 and max(map(len, str(e).splitlines())) <= 120
    assert "Breaks, in" in str(e) and "test_explain.py" in str(e) and "value is read" in str(e)


def test_lines_in_a_notebook_are_named_by_their_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"/somewhere/ipykernel_7/123.py": ("Cell", "In[3]")}
    shell = types.SimpleNamespace(compile=types.SimpleNamespace(format_code_name=names.get))
    notebook = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", notebook)  # type: ignore[arg-type]
    scope: dict[str, Any] = {}
    exec(compile("def f(x):\n    return (x + 1).exp() if x.sum() > 0 else x\n", "/somewhere/ipykernel_7/123.py", "exec"), scope)
    (graph_break,) = flame.explain(scope["f"], flame.ones(3)).breaks
    assert "In[3]:2" in str(graph_break) and "ipykernel" not in str(graph_break)
    notebook.get_ipython = lambda: None  # type: ignore[assignment]  (the library alone, without a notebook)
    assert "123.py:2" in str(flame.explain(scope["f"], flame.ones(3)).breaks[0])


def test_explain_shows_where_a_call_left_the_recorded_path() -> None:
    calls = []

    def f(x: Any) -> Any:
        calls.append(0)
        return x.exp() if len(calls) % 2 else x.tanh()  # mark: paths

    e = flame.explain(f, flame.rand(6))
    assert calls == [], "a list that the function reaches is put back"
    assert [d.source for d in e.divergences] == [line_of("paths")] and "exp was recorded" in e.divergences[0].reason
    assert e.difference.repeatable


def test_explain_takes_modules_and_compiled_functions() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    x = flame.randn(3, 4)
    for given in (model, flame.compile(model)):
        e = flame.explain(given, x)
        assert e.name == "Sequential" and e.kernels
    f = run(flame.compile(loss_of, backend="interpret"), *arguments())
    followed = f.stats.followed
    e = flame.explain(f, *arguments())
    assert e.kernels[0].runs_by == "interpreted" and f.stats.followed == followed, "its options, on a capture of its own"
    e = flame.explain(functools.partial(loss_of, *arguments()))
    assert len(e.kernels) >= 1
    assert flame.explain(lambda *, x: x + 1, x=x).difference.absolute == 0


def test_explain_runs_compiled_functions_inside_eagerly_to_compare() -> None:
    inner = flame.compile(lambda x: x.exp() * 2)
    x = flame.rand(4)
    run(inner, x)
    flushed = inner.stats.flushed
    e = flame.explain(lambda x: inner(x) + 1, x)
    assert inner.stats.flushed == flushed and e.kernels

    class Model:
        @flame.compile
        def double(self, x: Any) -> Any:
            return x * 2

    model = Model()
    e = flame.explain(model.double, x)
    assert e.name == "double" and len(e.kernels) == 1 and model.double.__func__.stats.calls == 0


def test_explain_does_not_mind_a_stance() -> None:
    with flame.compiler.set_stance("fail_on_recompile"):
        assert flame.explain(lambda x: x + 1, flame.rand(3)).kernels
        with pytest.raises(RuntimeError, match="never captured"):
            flame.compile(lambda x: x + 1)(flame.rand(3))


def test_explain_of_what_captures_nothing() -> None:
    e = flame.explain(lambda: 3)
    assert e.graphs == [] and e.kernels == [] and math.isnan(e.first_compiled_seconds) and "no call ran kernels" in str(e)
    with pytest.raises(IndexError, match="no graph was captured"):
        e.draw()
    assert flame.explain(lambda x: x, flame.rand(2)).kernels == []


def test_explain_raises_what_the_function_raises_and_puts_back() -> None:
    seen: list = []
    x = flame.zeros(3)

    def f() -> None:
        seen.append(1)
        x.add_(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        flame.explain(f)
    assert seen == [] and x.tolist() == [0, 0, 0]


def test_explain_notices_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Any) -> Any:
        return {"near": x * 2, "far": x + 1}

    right = flame.explain(f, flame.ones(5))
    assert right.difference.ulp == right.difference.absolute == 0 and "equal to the bit" in str(right)
    ordinary = capture_compiled.Compiled.__call__

    def wrong(self: Any, arrays: Any, *sizes: Any) -> Any:
        got = ordinary(self, arrays, *sizes)
        got[-1][2] = np.nextafter(np.float32(got[-1][2]), np.float32(9))
        return got

    monkeypatch.setattr(capture_compiled.Compiled, "__call__", wrong)
    e = flame.explain(f, flame.ones(5))
    assert e.difference.ulp == 1 and e.difference.absolute == 2**-22 and e.difference.where == "result.far"
    assert "1 ULP" in str(e)


def test_explain_says_where_results_cannot_be_compared() -> None:
    clock = iter(range(10**6))
    e = flame.explain(lambda x: x * next(clock), flame.ones(2))
    assert not e.difference.repeatable and "two eager calls differ as well" in str(e)


def test_explain_shows_what_could_not_be_compiled(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise CompileError("the pass 'fuse' failed")

    monkeypatch.setattr(capture_compiled, "compile_graph", broken)
    monkeypatch.setattr(knobs, "verify", False)
    e = flame.explain(loss_of, *arguments())
    [event] = e.fallbacks
    assert "the pass 'fuse' failed" in event.reason and e.kernels == [] and "the pass 'fuse' failed" in e.segments[0].failure
    assert "Ran op by op" in str(e) and e.difference.absolute == 0
    assert "could not be compiled" in capfd.readouterr().err


def test_explain_is_not_called_inside_a_compiled_function() -> None:
    f = flame.compile(lambda x: flame.explain(loss_of, *arguments()) and x)
    with pytest.raises(RuntimeError, match="inside a compiled function"):
        f(flame.ones(1))


# ---- how it looks


class _Reader(HTMLParser):
    """Every tag that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_an_explanation_prints_as_text_in_a_terminal_and_as_a_page(tmp_path: Any) -> None:
    e = flame.explain(loss_of, *arguments())
    text = str(e)
    assert max(map(len, text.splitlines())) <= 120
    for part in ("loss_of: eager and compiled", "Graphs", "Kernels", "Decisions", "largest difference", e.kernels[0].name):
        assert part in text
    screen = rich.console.Console(file=io.StringIO(), width=100, color_system=None)
    screen.print(e)
    assert isinstance(screen.file, io.StringIO) and "Kernels" in screen.file.getvalue() and "\x1b" not in screen.file.getvalue()
    page = e.to_html(tmp_path / "e.html")
    assert (tmp_path / "e.html").read_text(encoding="utf-8") == page
    for html in (page, e._repr_html_()):
        reader = _Reader()
        reader.feed(html)
        assert not reader.open and e.kernels[0].name in reader.text
    assert "@triton.jit" in page and "define void" in page and "<svg" in page and str(e.decisions[0]).split()[0] in page
    assert "loss_of" in repr(e) and "\n" not in repr(e)
    svg = e.draw(tmp_path / "g.svg")
    assert (tmp_path / "g.svg").read_text(encoding="utf-8") == svg and "matmul" in svg
    with pytest.raises(IndexError):
        e.draw(graph=7)


def test_the_examples_of_the_page_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("triton")
    text = (Path(HERE).parent.parent / "docs" / "explain.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    flame.manual_seed(0)
    names: dict[str, Any] = {"__name__": "example", "flame": flame, "F": F}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.S | re.M)
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "<explain.md>", "exec"), names)
    said = capsys.readouterr().out
    [shown] = [block for language, block in blocks if not language]
    for line in shown.splitlines():
        if not re.search(r"\d|^-+$", line):
            words = r"\s+".join(map(re.escape, line.split()))
            assert re.search(words, said), "the page shows other headings than an explanation has"
    assert ".target sm_80" in said and "@triton.jit" in said and (tmp_path / "loss_of.svg").exists()
    topics = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.M))
    assert topics == {"capture", "breaks", "recompiles", "graph", "fusion", "kernels", "passes", "cache"}


def test_refusals_are_counted_by_reason() -> None:
    step, _, _ = trained()
    e = flame.explain(step, flame.randn(10, 6), flame.randint(0, 3, (10,)))
    lines = re.search(r"Not fused\n-+\n.*\n((?:\d+ .*\n)+)", str(e))
    assert lines is not None
    counts = [int(line.split()[0]) for line in lines[1].splitlines()]
    assert counts == sorted(counts, reverse=True) and sum(counts) <= len(e.refused)


def test_notes_of_one_line_are_gathered_and_sizes_are_readable() -> None:
    assert gathered(("linear  a.py:1", "gelu  a.py:1", "gelu  a.py:1", "b.py:2")) == "linear, gelu (a.py:1); b.py:2"
    assert [size(n) for n in (0, 1023, 1024, 3 << 20, 5 << 40)] == ["0 B", "1023 B", "1.0 KiB", "3.0 MiB", "5120.0 GiB"]


# ---- distance


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_distance_counts_representable_numbers(kind: Any) -> None:
    bits = np.dtype(f"i{np.dtype(kind).itemsize}")
    a = np.array([1.0, -2.0, 0.0, 3.0], kind)
    assert distance(a, a) == (0, 0, 0)
    for steps in (1, 2, 7):
        b = (a.view(bits) + bits.type(steps)).view(kind)
        ulp, absolute, relative = distance(a, b)
        far = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
        assert ulp == steps and absolute == far and relative == far / 3
    least = np.array([1], bits).view(kind)
    assert distance(-least, least)[0] == 2, "through zero"
    small = np.array([1.0, 2**-12], kind)
    more = (small.view(bits) + np.array([0, 1], bits)).view(kind)
    assert distance(small, more)[0] == 0.25, "what is small beside the rest counts less"
    assert distance(np.array([0.0], kind), np.array([-0.0], kind)) == (0, 0, 0)


def test_distance_of_nan_infinity_integers_and_nothing() -> None:
    nan, inf = np.float32("nan"), np.float32("inf")
    f = lambda *x: np.array(x, np.float32)
    assert distance(f(nan, inf, -inf), f(nan, inf, -inf)) == (0, 0, 0)
    assert distance(f(nan, 1), f(1, 1))[:2] == (math.inf, math.inf)
    assert distance(f(inf, 1), f(1, 1))[1] == math.inf
    assert distance(np.array([3, 4]), np.array([3, 6])) == (2, 2, 0.5)
    assert distance(np.array(True), np.array(False)) == (1, 1, 1)
    assert distance(f(), f()) == (0, 0, 0)
    assert distance(np.float32(2.0), np.float32(2.0)) == (0, 0, 0)


# ---- pictures


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    space = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(svg)
    found = [g.find(f"{space}rect") for g in root.iter(f"{space}g") if g.find(f"{space}title") is not None]
    assert all(r is not None for r in found)
    return [tuple(float(r.get(k) or 0) for k in ("x", "y", "width", "height")) for r in found if r is not None]  # type: ignore[misc]


def check_picture(graph: Graph) -> None:
    svg = draw(graph)
    found = boxes(svg)
    assert len(found) == len(graph.inputs) + len(graph.nodes) + len(graph.outputs)
    _, _, width, height = map(float, re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', svg).groups())  # type: ignore[union-attr]
    rows: dict[float, list[tuple[float, float]]] = {}
    for x, y, w, h in found:
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        rows.setdefault(y, []).append((x, x + w))
    for row in rows.values():
        row.sort()
        assert all(a[1] <= b[0] for a, b in zip(row, row[1:])), "boxes overlap"
    edges = re.findall(r'<path d="M\S+?,(\S+) C\S+ \S+ \S+?,(\S+?)[" ]', svg)
    [drop] = {round(float(b) - float(a), 1) for a, b in edges} or {1.0}
    assert drop > 0, "every edge runs down, from one rank to the next"
    ends = len(graph.outputs) + sum(len({v.node or v for v in n.values}) for n in graph.nodes)
    assert len(edges) >= ends


@pytest.mark.parametrize("seed", range(6))
def test_pictures_of_random_graphs_have_every_box_once_and_no_overlap(seed: int) -> None:
    check_picture(made.random_graph(seed, outputs=1 + seed % 3))


def test_pictures_of_odd_graphs() -> None:
    check_picture(Graph(name="empty <&>"))
    builder = Builder(Graph(name="through"))
    x = builder.input(Spec((0, 3), flame.float32))
    builder.graph.outputs[:] = [x, x]
    check_picture(builder.graph)
    with builder:
        made.op("exp", x)  # nobody reads it
    check_picture(builder.graph)


def test_pictures_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.drawing.MOST", 3)
    with pytest.raises(ValueError, match="a picture shows 3 at most"):
        draw(made.random_graph(0))


# ---- the log


def test_the_log_has_one_line_an_event(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(knobs, "log", frozenset({"capture", "breaks", "recompiles"}))

    def f(x: Any, n: float) -> Any:
        y = x.exp()
        y.sum().item()  # mark: read
        return y * n  # mark: number

    g = flame.compile(f)
    x = flame.rand(3)
    for n in (2.0, 2.0, 3.0, 4.0):
        g(x, n)
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"\[flame (capture|breaks|recompiles)\] f: ", line) for line in lines), lines
    topics = [re.match(r"\[flame (\w+)\]", line)[1] for line in lines]  # type: ignore[index]
    assert topics.count("capture") == topics.count("breaks") == 4
    assert lines[0].startswith(f"[flame breaks] f: {line_of('read')}: ") and lines[0].endswith("a value is read")
    assert re.search(r"call 1: 0 steps followed, [1-9]\d* recorded; 0 segments", lines[1])
    assert re.search(r"call 4: [1-9]\d* steps followed, 0 recorded; [1-9]\d* segments", lines[-1])
    assert any(line_of("number") in line and "mul" in line for line in lines if "recompiles" in line)
    monkeypatch.setattr(knobs, "log", frozenset({"passes", "fusion", "kernels", "graph"}))
    run(flame.compile(loss_of), *arguments())
    said = capsys.readouterr().err
    for topic in ("passes", "fusion", "kernels", "graph"):
        assert f"[flame {topic}]" in said
    assert "[flame breaks]" not in said and "captured, forward:\nloss_of(" in said
