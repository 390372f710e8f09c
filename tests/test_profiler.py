"""Profiles, memory watches, benchmarks and summaries: what they say is what happened, and nothing is left behind."""

from __future__ import annotations

import gzip
import json
import time

import pytest

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame.autograd.tape import Eager, eager
from flame.capture import native
from flame.capture.segment import Plan
from flame.profiler import (
    ProfilerAction,
    ProfilerActivity,
    memory,
    profile,
    record_function,
    schedule,
    tensorboard_trace_handler,
)
from flame.profiler.events import Event, averages, nested
from flame.runtime.executable import Executable
from flame.utils.benchmark import Compare, Measurement, TaskSpec, Timer


def _training(seed: int = 0):
    flame.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    optimizer = flame.optim.AdamW(model.parameters())
    x, t = flame.randn(6, 8), flame.randint(0, 4, (6,))

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), t)
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.fixture(autouse=True)
def _nothing_left_behind():
    resume = native.pause()  # (so that what is compared is Python's own)
    before = Executable.__call__, Plan.make, eager.process.__func__
    yield
    assert (Executable.__call__, Plan.make, eager.process.__func__) == before and before[2] is Eager.process
    resume()


def test_who_only_looks_on_changes_nothing_of_what_runs():
    x = flame.randn(9, 11)

    def turn():
        g = x.clone().requires_grad_()
        y = F.cross_entropy(F.layer_norm(g, (11,)), flame.arange(9))
        y.backward()
        return y.grad_fn, y.detach().numpy().tobytes(), g.grad.numpy().tobytes()

    alone = turn()
    with profile() as p:
        profiled = turn()
    with memory.watching():
        watched = turn()
    assert alone[1:] == profiled[1:] == watched[1:]
    assert type(alone[0]) is type(profiled[0]) is type(watched[0])
    named = [e.name for e in p.events() if e.kind == "operation"]
    assert "class_entropy" in named and "layer_norm" in named and "amax" not in named


def test_eager_operations_and_backward_are_events():
    step = _training()
    with profile(record_shapes=True, with_flops=True, profile_memory=True, with_stack=True) as p:
        with record_function("my step", "an argument"):
            step()
    rows = {(r.kind, r.key): r for r in p.key_averages()}
    assert rows["operation", "matmul"].count == 5, "two forward, three backward"
    assert rows["operation", "matmul"].flops == 2 * 6 * (8 * 16 + 16 * 4 + 8 * 16 + 2 * 16 * 4)
    assert rows["backward", "MatmulBackward0"].count == 2
    mine = next(e for e in p.events() if e.kind == "user")
    assert mine.arguments == {"args": "an argument"} and mine.parent is None
    assert all(e is mine or e.parent is not None for e in p.events())
    total = sum(r.self_cpu_time_total for r in rows.values())
    assert abs(total - mine.cpu_time_total) < 1e-3 * total, "self times add up to the whole"
    product = next(e for e in p.events() if e.name == "matmul")
    assert product.input_shapes == [[6, 8], [8, 16]] and product.bytes == 6 * 16 * 4 and __file__ in product.stack[0]
    text = p.key_averages(group_by_input_shape=True).table(sort_by="flops", row_limit=5)
    assert "Input Shapes" in text and "MFLOPs" in text and len(text.splitlines()) == 10
    assert p.key_averages().total_average().count == len(p.events())
    by_line = p.key_averages(group_by_stack_n=1)
    assert any(__file__ in r.source for r in by_line) and len(by_line) > len(rows)
    with pytest.raises(AttributeError, match="expected one of"):
        p.key_averages().table(sort_by="colour")


def test_kernels_of_compiled_programs_lead_to_the_users_lines():
    step, plain = flame.compile(_training(), fullgraph=True), _training()
    with profile() as p:
        losses = [step().item() for _ in range(4)]
    assert losses == pytest.approx([plain().item() for _ in range(4)], rel=1e-5)
    kernels = [e for e in p.events() if e.kind == "kernel" and e.source]
    assert kernels and all(e.parent is not None and e.parent.kind == "program" for e in kernels)
    assert {k.name for k in kernels} >= {k.name for k in step.kernels if k.runs_by == "native"} != set()
    assert any(__file__ in e.source for e in kernels) and any("cross_entropy" in e.source for e in kernels)
    assert all(e.arguments["runs by"] for e in kernels)
    kinds = {e.kind for e in p.events()}
    assert {"compile", "function", "program", "kernel", "operation", "backward"} <= kinds
    compiling = {e.name for e in p.events() if e.kind == "compile"}
    assert {"compile step", "pass: fuse", "pass: plan memory", "native code"} <= compiling
    assert "Source Location" in p.key_averages().table()
    with profile() as later:
        step()
    assert not [e for e in later.events() if e.kind in ("compile", "operation")], "what is compiled runs, and nothing else"


def test_a_profiled_program_computes_the_same_to_the_bit():
    f = flame.compile(lambda x, w: (F.softmax(x @ w, -1), (x * 2).sum(), flame.linalg.inv(w)), dynamic=True)
    for n in (4, 4, 5, 6):
        x, w = flame.randn(n, 8), flame.randn(8, 8)
        f(x, w)
        want = f(x, w)
        with profile():
            got = f(x, w)
        assert all(flame.equal(a, b) for a, b in zip(got, want, strict=True))


def test_errors_inside_leave_nothing_on():
    with pytest.raises(ZeroDivisionError), profile():
        raise ZeroDivisionError
    with pytest.raises(IndexError), profile():
        flame.compile(lambda i: flame.arange(3)[i])(flame.tensor(7))
    with profile():
        with pytest.raises(RuntimeError, match="another profile is on"), profile():
            pass
    with profile() as p:
        flame.ones(2) + 1
    assert [e.name for e in p.events()][-1] == "add"


def test_the_chrome_trace_and_the_stacks(tmp_path):
    with profile(with_stack=True) as p:
        with record_function("outer"):
            flame.ones(64, 64) @ flame.ones(64, 64)
    p.add_metadata("run", "7")
    p.add_metadata_json("more", '{"a": [1]}')
    p.export_chrome_trace(tmp_path / "t.json")
    p.export_chrome_trace(tmp_path / "t.json.gz")
    trace = json.loads((tmp_path / "t.json").read_text())
    assert json.loads(gzip.decompress((tmp_path / "t.json.gz").read_bytes())) == trace
    assert trace["run"] == "7" and trace["more"] == {"a": [1]}
    outer = next(e for e in trace["traceEvents"] if e["name"] == "outer")
    inner = next(e for e in trace["traceEvents"] if e["name"] == "matmul")
    assert outer["ph"] == "X" and outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
    assert __file__ in inner["args"]["source"]
    p.export_stacks(tmp_path / "stacks")
    assert all(line.rpartition(" ")[2].isdigit() for line in (tmp_path / "stacks").read_text().splitlines())
    with profile() as bare:
        pass
    with pytest.raises(ValueError, match="with_stack"):
        bare.export_stacks(tmp_path / "none")


def test_schedules_say_which_steps_are_recorded(tmp_path):
    plan = schedule(skip_first=1, wait=1, warmup=1, active=2, repeat=2)
    n, w, r, s = (ProfilerAction[x] for x in ("NONE", "WARMUP", "RECORD", "RECORD_AND_SAVE"))
    assert [plan(i) for i in range(11)] == [n, n, w, r, s, n, w, r, s, n, n]
    seen = []
    with profile(schedule=plan, on_trace_ready=lambda p: seen.append([e.name for e in p.events() if e.kind == "step"])) as p:
        for _ in range(11):
            flame.ones(2) + 1
            p.step()
    assert seen == [["ProfilerStep#3", "ProfilerStep#4"], ["ProfilerStep#7", "ProfilerStep#8"]]
    with profile(on_trace_ready=tensorboard_trace_handler(str(tmp_path), "w", use_gzip=True)):
        flame.ones(2)
    assert len(list(tmp_path.glob("w.*.pt.trace.json.gz"))) == 1
    for wrong in ({"wait": -1}, {"active": 0}):
        with pytest.raises(AssertionError, match="Invalid profiler schedule"):
            schedule(**{"wait": 0, "warmup": 0, "active": 1, **wrong})
    with pytest.raises(AssertionError, match="activities"):
        profile(activities=[])
    assert ProfilerActivity.CPU in flame.profiler.supported_activities()


def test_record_function_is_a_decorator_and_nests():
    @record_function("fib")
    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    assert fib(3) == 2
    with profile() as p:
        fib(4)
    row = p.key_averages()[0]
    assert row.count == 9 and row.cpu_time_total <= p.events()[0].cpu_time_total + 1e-6, "what is inside counts once"


def test_events_nest_by_time_and_thread():
    """Against a slow definition: the parent is the shortest event of the thread that encloses."""
    import random

    r = random.Random(0)
    for _ in range(50):
        events: list[Event] = []

        def grow(begin: int, end: int, thread: int, depth: int, events=events) -> None:
            at = begin
            while at < end and len(events) < 60:
                b = at + r.randrange(1, 4)
                e = b + r.randrange(1, 12)
                if e >= end:
                    break
                events.append(Event("user", r.choice("abc"), b, e, thread))
                if depth:
                    grow(b, e, thread, depth - 1)
                at = e

        for thread in (1, 2):
            grow(0, 60, thread, 3)
        r.shuffle(events)
        for e in nested(events):
            around = [o for o in events if o is not e and o.thread == e.thread and o.begin <= e.begin and e.end <= o.end]
            assert e.parent is (min(around, key=lambda o: o.nanoseconds) if around else None)
        total = sum(e.nanoseconds for e in events if e.parent is None) / 1e3
        assert sum(a.self_cpu_time_total for a in averages(events)) == pytest.approx(total)


# -------------------------------------------------------------------- memory


def test_memory_is_watched_by_line(tmp_path):
    kept = flame.ones(1000)
    with memory.watching() as seen:
        a = flame.ones(5000)  # line a
        b = a * 2  # line b
        view = b[10:]
        del a
        c = flame.compile(lambda x: x + 1)
        d = [c(view) for _ in range(3)]
    line = test_memory_is_watched_by_line.__code__.co_firstlineno
    held = seen.held(seen.seconds)
    assert held[f"{__file__}:{line + 4}"] == 20000, "the view holds its base"
    assert f"{__file__}:{line + 3}" not in held, "what was let go is gone"
    assert held[f"{__file__}:{line + 7}"] == 4990 * 4, "the first call runs the function's own lines"
    assert held[f"{__file__}:{line + 8}"] == 2 * 4990 * 4 and held[memory.BEFORE] >= kept.nbytes
    when, most = seen.peak
    assert most >= 20000 + 3 * 4990 * 4 and 0 <= when <= seen.seconds
    assert "peak" in seen.summary(2) and len(seen.summary(2).splitlines()) <= 4
    seen.export_html(tmp_path / "m.html")
    page = (tmp_path / "m.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and __file__ in page and "@data@" not in page
    data = json.loads(page.partition("const d = ")[2].partition(", colour")[0])
    assert max(map(sum, data["layers"])) == most == data["peak"][1] and len(data["times"]) == len(data["layers"])
    assert json.loads(json.dumps(seen.to_json()))["seconds"] == seen.seconds
    del d


def test_memory_summary_counts_what_lives():
    x = flame.ones(300, 300)
    text = flame.memory_summary()
    assert "float32" in text and "kept" in text
    assert "float32" not in flame.memory_summary(abbreviated=True)
    stats = memory.memory_stats()
    assert stats["reserved_bytes.all.current"] >= stats["allocated_bytes.all.current"] >= 0
    del x


# -------------------------------------------------------------------- benchmarks


def test_a_timer_measures_what_it_is_given():
    t = Timer("time.sleep(d)", setup="d = 0.002", globals={"time": time}, label="sleep", sub_label="2 ms", description="a")
    m = t.blocked_autorange(min_run_time=0.02)
    assert 0.002 <= m.median < 0.1 and sum(m.raw_times) >= 0.02 and m.title == "sleep: 2 ms"
    assert len(t.timeit(3).raw_times) == 1 and t.timeit(3).number_per_run == 3
    seen = []
    got = t.adaptive_autorange(threshold=10, min_run_time=0.004, callback=lambda n, s: seen.append((n, s)))
    assert len(got.raw_times) == len(seen) >= 3
    assert "Median" in repr(m) or "measurement" in repr(m)
    before = flame.get_num_threads()
    names = {"flame": flame, "seen": []}
    Timer("seen.append(flame.get_num_threads())", globals=names, num_threads=1).timeit(1)
    assert set(names["seen"]) == {1} and flame.get_num_threads() == before
    for wrong in ({"stmt": 3}, {"language": "c++"}, {"global_setup": "x"}):
        with pytest.raises(ValueError, match="Timer"):
            Timer(**wrong)


def test_measurements_say_how_sure_they_are():
    task = TaskSpec("f()", "pass", label="f")
    m = Measurement(2, [2.0, 2.2, 2.1, 1.9, 2.0, 8.0], task)
    assert m.median == pytest.approx(1.025) and m.mean == pytest.approx(18.2 / 12) and not m.has_warnings
    assert Measurement(1, [1.0, 2.0], task).has_warnings and m.significant_figures >= 1
    (joined,) = Measurement.merge([m, Measurement(1, [1.0], task)])
    assert joined.number_per_run == 1 and len(joined.times) == 7
    with pytest.raises(ValueError, match="no times"):
        _ = Measurement(1, [], task).median
    with pytest.raises(AttributeError):
        _ = m.colour


def test_comparisons_are_tables():
    def m(sub, description, t, threads=1):
        return Measurement(
            1, [t] * 6, TaskSpec("f", "pass", label="add", sub_label=sub, description=description, num_threads=threads)
        )

    table = Compare([m("10", "eager", 2e-3), m("10", "compiled", 1e-3), m("20", "eager", 4e-3), m("10", "eager", 3e-3, 2)])
    table.trim_significant_figures()
    text = str(table)
    assert "add" in text and "milliseconds (ms)" in text and "2 threads" in text
    rows = [line.split("|") for line in text.splitlines() if line.strip().startswith(("10", "20"))]
    assert [[c.strip() for c in row] for row in rows] == [["10", "2", "1"], ["20", "4", ""], ["10", "3", ""]]
    table.colorize(rowwise=True)
    assert "\033[" in str(table)
    with pytest.raises(ValueError, match="Measurement"):
        Compare([1])


# -------------------------------------------------------------------- summaries


def test_a_summary_counts_parameters_work_and_bytes():
    block = nn.Linear(16, 16)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 16), block, nn.Dropout(), block
    )
    model[0].bias.requires_grad_(False)
    model.train()
    running = model[1].running_mean.clone()
    x = flame.randn(2, 3, 8, 8)
    before = flame.get_rng_state()
    s = nn.summary(model, x)
    assert flame.equal(model[1].running_mean, running) and all(m.training for m in model.modules())
    assert flame.equal(flame.get_rng_state(), before)
    assert s.parameters == sum(p.numel() for p in model.parameters()) and s.trainable == s.parameters - 4
    conv = 2 * (2 * 4 * 6 * 6) * 27
    assert s.flops == conv + 2 * 2 * (144 * 16 + 2 * 16 * 16) and s.rows[1].flops == conv
    assert s.input_bytes == 2 * 3 * 64 * 4 and s.rows[1].output_shapes == [(2, 4, 6, 6)]
    text = str(s)
    assert "Conv2d" in text and f"{s.parameters:,}" in text and "[2, 4, 6, 6]" in text
    assert str(nn.summary(model, input_size=(2, 3, 8, 8))) == text
    assert len(nn.summary(model, flame.randn(1, 3, 8, 8), depth=0).rows) == 1
    assert nn.summary(flame.compile(model), input_size=(2, 3, 8, 8)).flops == s.flops
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    q = flame.randn(1, 5, 8)
    assert nn.summary(attention, (q, q, q), need_weights=False).flops >= 2 * 5 * 8 * 8 * 4
    for wrong, error in (((3, q), TypeError), ((model,), ValueError)):
        with pytest.raises(error, match="summary"):
            nn.summary(*wrong)


def test_a_summary_leaves_no_hooks_where_the_model_fails():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        nn.summary(model, flame.randn(1, 2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_first_names_of_the_profiler():
    with flame.autograd.profiler.profile(record_shapes=True) as p:
        with flame.autograd.profiler.record_function("mine"):
            flame.ones(3) + 1
        with pytest.raises(RuntimeError, match="didn't finish"):
            p.events()
    assert "mine" in p.table() and "mine" in p.key_averages().table(sort_by="cpu_time_total") and str(p) == p.table()
    assert 0 < p.self_cpu_time_total == p.total_average().self_cpu_time_total and p.function_events is p.events()
    with flame.autograd.profiler.profile(enabled=False) as off:
        flame.ones(3) + 1
    assert "unfinished" in str(off)
    with pytest.raises(NotImplementedError, match="export_chrome_trace"):
        flame.autograd.profiler.emit_nvtx()
