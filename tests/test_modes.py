"""How capture is steered, and what it says: codes and their page, fullgraph, stances, limits, and what may be compiled."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import gpu_for_tests

import flame
from flame import jit
from flame.capture import compiled as compiling
from flame.capture import record
from flame.errors import GraphBreakError, RecompileError
from flame.knobs import knobs
from flame.reasons import REASONS, Reason

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "graph-breaks.md").read_text(encoding="utf-8")
#: code -> (title, the programs of its section)
SECTIONS = {
    code: (title, re.findall(r"```python\n(.*?)```", text, flags=re.S))
    for code, title, text in re.findall(r"^### (FL\d{4}) (.*?)\n(.*?)(?=^##|\Z)", PAGE, flags=re.S | re.M)
}
#: no program is known that the compiler fails on; what is slower is a matter of the clock (test_trial.py)
WITHOUT_PROGRAM = {"FL3003", "FL3006", "FL3007"}


@pytest.fixture(autouse=True)
def default_stance() -> Iterator[None]:
    yield
    assert jit.control.stance == "default" and not jit.demands.error_on_break
    assert jit._region.keys == [None] and jit.force.interpreter is None


def ones(*shape: int, grad: bool = False) -> Any:
    return flame.ones(*shape, requires_grad=grad)


def same(got: Any, want: Any) -> bool:
    return got.tolist() == want.tolist()


# ---- the table and the page


def test_the_page_has_every_code_under_its_title() -> None:
    assert {code: r.title for code, r in REASONS.items()} == {code: title for code, (title, _) in SECTIONS.items()}


def test_codes_stand_in_order_and_say_what_to_do() -> None:
    assert list(REASONS) == sorted(REASONS) and list(SECTIONS) == sorted(SECTIONS)
    for code, r in REASONS.items():
        assert r.code == code and r.title and r.happened and r.remedy.endswith(".")


def codes_of(source: str) -> set[str]:
    """The codes that a program of the page produces, in statistics and errors."""
    made: list = []
    seen: list[str] = []
    original = jit._all.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit, "_all", type("_All", (), {"add": lambda _, f: (made.append(f), original(f))})())
        try:
            with gpu_for_tests() if "cuda" in source else contextlib.nullcontext():
                exec(compile(source, "<page>", "exec"), {"flame": flame, "np": np, "__name__": "__page__"})
        except (RuntimeError, TypeError, ValueError) as e:
            seen.append(str(e))
    for f in made:
        s = f.stats
        seen += [reason for table in (s.breaks, s.diverged, s.fallbacks) for _, reason in table]
        seen.append(f.given_up)
    return set(re.findall(r"\bFL\d{4}\b", " ".join(seen)))


@pytest.mark.parametrize("code", [c for c in SECTIONS if c not in WITHOUT_PROGRAM])
def test_a_program_on_the_page_produces_its_code_and_the_remedy_does_not(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _, [first, second] = SECTIONS[code]
    if code == "FL3002":
        monkeypatch.setattr(record, "MAX_STEPS", 400)
        first, second = first.replace("500_000", "500"), second
    monkeypatch.setattr(knobs, "never_slower", code == "FL3008")  # (tests do without)
    assert code in codes_of(first)
    monkeypatch.undo()
    assert code not in codes_of(second)
    if code.startswith("FL1"):
        assert not codes_of(second), "the remedy of a break has no other"
    assert ("runs eagerly" in capsys.readouterr().err) is (code in ("FL3001", "FL3002"))


def test_what_the_compiler_fails_on_runs_op_by_op(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pass broke")

    monkeypatch.setattr(compiling, "compile_graph", broken)
    monkeypatch.setattr(knobs, "verify", False)
    f = flame.compile(lambda x: x * 2 + 1)
    for _ in range(3):
        assert same(f(ones(3)), ones(3) * 3)
    [reason] = [r for _, r in f.stats.fallbacks]
    assert "FL3003" in reason and "a pass broke" in reason
    assert "FL3003" in capsys.readouterr().err


def test_a_code_is_given_once() -> None:
    from flame.reasons import _reason

    with pytest.raises(ValueError, match="FL1001 is given twice"):
        _reason("FL1001", "x", "x", "x")


def test_no_message_of_capture_is_without_a_code() -> None:
    """Whatever ends a graph or leaves a path names a row of the table."""
    for path in (ROOT / "flame").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\.(break_|leave|outside|diverge)\(\s*f?[\"']", text), path


# ---- fullgraph


def test_fullgraph_raises_at_the_first_break_with_line_code_and_remedy() -> None:
    written = flame.zeros(3)

    @flame.compile(fullgraph=True)
    def f(x: Any) -> Any:
        written.add_(x)
        total = x.sum()
        written.mul_(2)
        if total > 0:  # the break
            written.fill_(100.0)
        return x

    for call in range(1, 4):
        before = written.clone()
        with pytest.raises(GraphBreakError) as error:
            f(ones(3))
        line = f.__wrapped__.__code__.co_firstlineno + 5
        assert error.value.code == "FL1001" and error.value.source == f"{__file__}:{line}"
        assert f"{__file__}:{line}: FL1001 a value is read" in str(error.value)
        assert "fullgraph=True" in str(error.value) and "flame.where" in str(error.value)
        assert same(written, (before + 1) * 2), f"call {call}: the writes before the break happened, and no others"


def test_fullgraph_raises_while_following_what_was_recorded_without_it() -> None:
    seen = []

    @flame.compile(fullgraph=True)
    def f(x: Any, read: bool) -> Any:
        y = x * 2
        seen.append(y)
        if read:
            y.tolist()
        return y + 1

    f(ones(3), False)
    f(ones(3), False)
    assert f.stats.compiled == 1
    with pytest.raises(GraphBreakError, match="FL1001"):
        f(ones(3), True)
    assert same(seen[-1], ones(3) * 2), "what was pending is real after the error"
    assert same(f(ones(3), False), ones(3) * 3)


def test_a_caught_graph_break_goes_on_eagerly() -> None:
    @flame.compile(fullgraph=True)
    def f(x: Any) -> Any:
        y = x * 2
        with contextlib.suppress(GraphBreakError):
            y.sum().item()
        return y + 1

    for _ in range(4):
        assert same(f(ones(3)), ones(3) * 3)


def test_fullgraph_lets_through_what_is_one_graph() -> None:
    w = ones(3, grad=True)

    @flame.compile(fullgraph=True)
    def step(x: Any) -> Any:
        w.grad = None
        loss = (w * x).sum()
        loss.backward()
        with flame.no_grad():
            w.sub_(0.1 * w.grad)
        return loss.detach()

    losses = [step(ones(3)).item() for _ in range(4)]
    assert losses == pytest.approx([3.0, 2.7, 2.4, 2.1])


def test_grad_fn_breaks_on_the_first_call_as_on_the_second() -> None:
    w = ones(3, grad=True)
    f = flame.compile(lambda x: ((x * w).grad_fn is None, (x * 2).grad_fn, w.grad_fn), fullgraph=True)
    for _ in range(2):
        with pytest.raises(GraphBreakError, match="FL1014"):
            f(ones(3))
    g = flame.compile(lambda x: ((x * 2).grad_fn, w.grad_fn), fullgraph=True)
    for _ in range(3):
        assert g(ones(3)) == (None, None)


def test_error_on_graph_break_holds_inside_its_block_only() -> None:
    @flame.compile
    def f(x: Any, strict: bool) -> Any:
        x.sum().item()
        with flame.compiler.error_on_graph_break(strict):
            (x * 2).sum().item()
        return x * 3

    for _ in range(3):
        assert same(f(ones(3), False), ones(3) * 3)
        with pytest.raises(GraphBreakError, match=r"error_on_graph_break\(True\)"):
            f(ones(3), True)

    @flame.compiler.error_on_graph_break()
    def strict(x: Any) -> Any:
        return f(x, False)

    with pytest.raises(GraphBreakError):
        strict(ones(3))


def test_fullgraph_raises_where_error_on_graph_break_is_off() -> None:
    @flame.compile(fullgraph=True)
    def f(x: Any) -> Any:
        with flame.compiler.error_on_graph_break(False):
            return x.sum().item()

    with pytest.raises(GraphBreakError):
        f(ones(3))


# ---- stances


def test_force_eager_captures_nothing() -> None:
    f = flame.compile(lambda x: (x * 2, flame.compiler.is_compiling()))
    with flame.compiler.set_stance("force_eager"):
        for _ in range(3):
            assert f(ones(3))[1] is False
    assert f.stats.calls == 0
    assert f(ones(3))[1] is True


def test_fail_on_recompile_raises_and_leaves_the_state_of_eager() -> None:
    written = flame.zeros(3)

    @flame.compile
    def f(x: Any, up: bool) -> Any:
        written.add_(x)
        return written.exp() if up else written.sin()

    with flame.compiler.set_stance("fail_on_recompile"), pytest.raises(RecompileError, match="FL3005"):
        f(ones(3), True)
    assert written.tolist() == [0, 0, 0], "never captured: raised before anything ran"
    f(ones(3), True)
    with flame.compiler.set_stance("fail_on_recompile"), pytest.raises(RecompileError, match="not compiled"):
        f(ones(3), True)
    assert written.tolist() == [2, 2, 2]
    f(ones(3), True)
    with flame.compiler.set_stance("fail_on_recompile"):
        np.testing.assert_allclose(f(ones(3), True).numpy(), np.exp(np.full(3, 4, np.float32)), rtol=1e-6)
        with pytest.raises(RecompileError, match="sin follows"):
            f(ones(3), False)
        with pytest.raises(RecompileError, match="FL2003"):
            f(ones(1), True)
    assert written.tolist() == [5, 5, 5]
    assert same(f(ones(3), False), (ones(3) * 6).sin())


@pytest.mark.parametrize("ends", [True, False])
def test_fail_on_recompile_knows_ends_and_breaks(ends: bool) -> None:
    def f(x: Any, more: bool) -> Any:
        y = x * 2
        if more:
            return y + 1
        return y if ends else y.sum().item()

    f = flame.compile(f)
    for _ in range(2):
        f(ones(3), True)
    with flame.compiler.set_stance("fail_on_recompile"), pytest.raises(RecompileError):
        f(ones(3), False)
    want = ones(3) * 2
    assert same(f(ones(3), False), want) if ends else f(ones(3), False) == 6.0


def test_eager_on_recompile_uses_what_is_there_and_adds_nothing() -> None:
    written = flame.zeros(3)

    @flame.compile
    def f(x: Any, up: bool) -> Any:
        written.add_(x)
        y = written.exp() if up else written.sin()
        y.sum().item()
        return y + 1

    stance = flame.compiler.set_stance
    with stance("eager_on_recompile"):
        f(ones(3), True)
    assert f.stats.calls == 0
    for _ in range(2):
        f(ones(3), True)
    compiled, paths = f.stats.compiled, f._capture.root.paths
    with stance("eager_on_recompile"):
        for i in range(3):
            assert same(f(ones(3), False), (ones(3) * (4 + 2 * i)).sin() + 1)
            np.testing.assert_allclose(f(ones(3), True).numpy(), (ones(3) * (5 + 2 * i)).exp().numpy() + 1, rtol=1e-6)
    assert (f.stats.compiled, f._capture.root.paths) == (compiled, paths)
    flushed = f.stats.flushed
    f(ones(3), True)
    assert f.stats.flushed > flushed, "the compiled path is still there"


def test_marks_of_other_compilers_change_nothing() -> None:
    seen = []

    @flame.compiler.allow_in_graph
    @flame.compiler.assume_constant_result
    def noted(x: Any) -> Any:
        seen.append(len(seen))
        return x * len(seen)

    f = flame.compile(lambda x: noted(x) + 1)
    for i in range(4):
        assert f(flame.ones(2)).tolist() == [i + 2.0] * 2
    assert seen == [0, 1, 2, 3]
    assert flame.compiler.allow_in_graph([noted]) == [noted]
    with pytest.raises(TypeError, match="callable"):
        flame.compiler.allow_in_graph(3)
    assert flame.autograd.function.FunctionCtx is flame.autograd.function.FunctionContext


def test_a_stance_is_a_function_a_context_and_a_decorator() -> None:
    f = flame.compile(lambda x: flame.compiler.is_compiling())

    @flame.compiler.set_stance("force_eager")
    def eagerly() -> bool:
        return f(ones(1))

    assert f(ones(1)) and not eagerly() and f(ones(1))
    flame.compiler.set_stance("force_eager")
    assert not f(ones(1))
    with flame.compiler.set_stance("default"):
        assert f(ones(1))
    assert not f(ones(1))
    flame.compiler.set_stance("default")
    assert f(ones(1))
    with pytest.raises(ValueError, match="invalid stance 'faster'"):
        flame.compiler.set_stance("faster")


# ---- limits


def loops(limit: int) -> Any:
    def f(x: Any, n: int) -> Any:
        for _ in range(n):
            x = x * 0.5
        return x

    return flame.compile(f, options={"recompile_limit": limit})


def test_a_function_with_too_many_paths_is_handed_over_and_says_so(capsys: pytest.CaptureFixture) -> None:
    f = loops(3)
    for n in range(1, 4):
        assert same(f(ones(2), n), ones(2) * 0.5**n)
        assert not f.given_up
    for n in range(4, 9):
        assert same(f(ones(2), n), ones(2) * 0.5**n)
    assert f.given_up.startswith("FL3001 more than 3 different paths") and __file__ in f.given_up
    assert f.stats.calls == 4, "from then on it is not captured"
    err = capsys.readouterr().err
    assert err.count("FL3001") == 1 and "recompile_limit" in err
    f.reset()
    assert not f.given_up and same(f(ones(2), 2), ones(2) * 0.25)


def test_errors_and_generalised_numbers_are_no_new_paths(capsys: pytest.CaptureFixture) -> None:
    @flame.compile(options={"recompile_limit": 3})
    def f(x: Any, k: float, fail: bool) -> Any:
        y = x * k
        if fail:
            raise KeyError("no")
        return y

    for i in range(12):
        if i % 3 == 2:
            with pytest.raises(KeyError):
                f(ones(2), 0.5 + i, True)
        else:
            assert same(f(ones(2), 0.5 + i, False), ones(2) * (0.5 + i))
    assert not f.given_up and not capsys.readouterr().err


@pytest.mark.parametrize("bad", [{"recompile_limit": 0}, {"recompile_limit": 2.0}, {"recompile_limit": True}, {"tiles": 1}])
def test_wrong_options_are_named(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        flame.compile(lambda x: x, options=bad)


# ---- modes, backends, the namespace


@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "replay"])
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_modes_compute_the_same(mode: str | None, dynamic: bool | None) -> None:
    f = flame.compile(lambda x: (x * 2).exp(), mode=mode, dynamic=dynamic)
    for _ in range(3):
        np.testing.assert_allclose(f(ones(5)).numpy(), np.exp(np.full(5, 2.0, np.float32)), rtol=1e-6)
    assert f.stats.compiled == 1


def test_unknown_modes_and_backends_are_refused_at_once() -> None:
    for bad in ({"mode": "faster"}, {"backend": "inductor"}):
        with pytest.raises(ValueError, match="|".join(("faster", "inductor"))):
            flame.compile(**bad)


def test_the_names_of_the_compiler_are_beside_its_passes() -> None:
    import flame.compiler
    import flame.compiler.graph
    from flame.compiler import is_compiling, reset, set_stance

    assert (flame.compiler.reset, flame.compiler.set_stance) == (reset, set_stance)
    assert flame.compiler.graph.Graph and flame.compiler.compile is flame.compile
    assert flame.compiler.list_backends() == [b for b in jit.BACKENDS if b != "triton"]
    with pytest.raises(flame.errors.MissingTargetError, match="none is here"):
        flame.compile(lambda x: x, backend="triton")
    assert is_compiling() is flame.compiler.is_dynamo_compiling() is flame.compiler.is_exporting() is False


def test_reset_forgets_every_function() -> None:
    f, g = flame.compile(lambda x: x * 2), flame.compile(lambda x: x * 3)
    for _ in range(2):
        f(ones(2)), g(ones(2))
    flame.compiler.reset()
    assert f.stats.calls == g.stats.calls == 0 and not f.kernels and not g.graphs
    assert same(f(ones(2)), ones(2) * 2)


def test_reset_inside_a_call_lets_it_finish() -> None:
    def f(x: Any, forget: bool) -> Any:
        y = x * 2
        if forget:
            flame.compiler.reset()
        return y + 1

    f = flame.compile(f)
    for forget in (False, False, True, False, True, True, False):
        assert same(f(ones(2), forget), ones(2) * 3)


def test_flame_disable_runs_everything_eagerly() -> None:
    code = "import flame; f = flame.compile(lambda x: flame.compiler.is_compiling()); print(f(flame.ones(2)), f.stats.calls)"
    for value, want in (("1", "False 0"), ("0", "True 1")):
        env = {"FLAME_DISABLE": value, "PYTHONPATH": str(ROOT), "FLAME_CACHE": "0"}
        got = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert got.stdout.strip() == want


def test_disable_says_why() -> None:
    slow = flame.compiler.disable(lambda x: (x + 1, flame.compiler.is_compiling()), reason="reads a file")
    f = flame.compile(lambda x: slow(x * 2))
    for _ in range(3):
        y, inside = f(ones(2))
        assert same(y, ones(2) * 3) and not inside
    assert [r for _, r in f.stats.breaks] == ["FL1006 <lambda> (reads a file) is disabled for compilation"]
    named = flame.compiler.disable(recursive=False)(ones)
    assert named.__name__ == "ones" and same(named(2), ones(2))


def test_a_reason_fills_in_what_is_known_only_there() -> None:
    r = Reason("FL9999", "t", "{} and {}", "r.")
    assert r.text("a", 2, "left over") == "FL9999 a and 2"
