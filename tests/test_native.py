"""Native code does what the Python does that it was made from: values, errors, references; and capture is the same with it."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flame
from flame.capture import native
from flame.knobs import knobs
from flame.native import layout
from flame.native.install import Native
from flame.native.units import Hints, Unit, Untranslatable
from tests.capture_programs import agree, programs
from tests.fuzz_capture import check, generate

pytestmark = pytest.mark.skipif(bool(layout.usable()), reason=layout.usable())


class Pair:
    """What the functions below act on."""

    __slots__ = ("left", "right", "items", "__weakref__")

    def __init__(self, left: Any, right: Any):
        self.left = left
        self.right = right
        self.items: list = [left, right]

    def chosen(self, x: Any, y: Any) -> Any:
        if x is None or not y:
            return self.left
        if type(x) is int and x > 3 and self.right is not x:
            return (x, self.right, -1)
        return y if isinstance(x, str | float) else x and y or self.items

    def searched(self, xs: Any, wanted: Any) -> Any:
        n = 0
        for x, item in zip(xs, self.items):
            if x is item:
                n += 1
                continue
            if x == wanted:
                found = x
                break
        else:
            found = None
        return n, found, [y for y in xs if y != wanted], len(xs) == n

    def counted(self, xs: Any) -> Any:
        total = 0
        i = 0
        for i, (a, b) in enumerate(xs):
            total += a - b + i + a // (b + 4) * 3 + (b % 5)
        while len(self.items) < i:
            self.items.append(total)
        del self.items[4:]
        return self.items[0], self.items[1], self.items[-1], total

    def told(self, x: Any, many: Any) -> Any:
        self.left, self.right = self.right, self.left
        other: Pair = Pair(x, self)
        other.right.left = other.left
        if x in many:
            raise KeyError(x)
        return other.left, self.left, [*many, x], (x, *many), {}.get(x, "none"), self.named(y=x)

    def named(self, y: Any) -> Any:
        return [y]

    def unset(self, x: Any) -> Any:
        if x:
            value = x
        return value

    def strict(self, xs: Any, ys: Any) -> Any:
        got = None
        for x, y in zip(xs, ys, strict=True):
            got = (x, y)
        return got, weakref.ref(self)() is self

    def guarded(self, f: Any, x: Any) -> Any:
        self.left = 0
        try:
            self.left = 1
            try:
                got = [f(x), self.items[2]]
            except BaseException:
                self.left = x
                if x is None:
                    raise KeyError("later")  # noqa: B904
                raise
            if x:
                return got, self.left
        finally:
            self.items.append(self.left)
            self.items.append(len(self.items))
        return self.items

    def passed(self, *args: Any, **kwargs: Any) -> Any:
        if self.left == 1:
            return self.kept(*args, **kwargs), args, kwargs
        f = self.kept
        return f(*args, **kwargs), self.kept(*args, **kwargs)

    def kept(self, a: Any = 1, *b: Any, c: Any = 2, **d: Any) -> Any:
        return a, b, c, d

    def nested(self, xs: Any) -> Any:
        return [[y for y in x if y] if x else None for x in xs], self.missing if not xs else self.items

    def tried(self, f: Any, xs: Any, named: Any) -> Any:
        told = "nothing"
        for x in xs:
            try:
                got = [f(x, *xs[2:], **named), (x, x) * len(xs)]
                told = f(*xs[:1])
            except CAUGHT:
                if x is None:
                    return told, self.left
                got = [x]
            self.right = got
        return told


CAUGHT = (ValueError, TypeError)
NAMES = ("chosen", "searched", "counted", "told", "unset", "strict", "nested", "guarded", "tried")
ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(-5, 2**70), st.floats(), st.text(max_size=3))
SEVERAL = st.one_of(st.lists(ANYTHING, max_size=6), st.lists(ANYTHING, max_size=4).map(tuple))
PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=6)
ARGUMENTS: dict[str, st.SearchStrategy] = {
    "chosen": st.tuples(ANYTHING, st.one_of(ANYTHING, SEVERAL)),
    "searched": st.tuples(st.one_of(SEVERAL, ANYTHING), ANYTHING),
    "counted": st.tuples(st.one_of(PAIRS, SEVERAL)),
    "told": st.tuples(ANYTHING, SEVERAL),
    "unset": st.tuples(ANYTHING),
    "strict": st.tuples(SEVERAL, SEVERAL),
    "nested": st.tuples(st.lists(SEVERAL, max_size=3)),
    "tried": st.tuples(
        st.sampled_from([int, float, len, str, {}.__getitem__, dict]),
        SEVERAL,
        st.sampled_from([{}, {"base": 7}, {"other": 1}]),
    ),
    "guarded": st.tuples(st.sampled_from([len, abs, bool]), st.one_of(ANYTHING, SEVERAL)),
}


@pytest.fixture(scope="module")
def both() -> Iterator[dict[str, tuple[Callable, Callable]]]:
    """Each function as Python and as native code."""
    python = {n: vars(Pair)[n] for n in (*NAMES, "passed")}
    hints = Hints()
    hints.slots[Pair] = layout.offsets(Pair)
    hints.attributes[Pair, "items"] = list
    made = Native([Unit(f"Pair.{n}", vars(Pair)[n], Pair) for n in (*NAMES, "passed", "__init__")], hints).link()
    made.put()
    yield {n: (python[n], vars(Pair)[n]) for n in (*NAMES, "passed")}
    made.take_away()


def outcome(f: Callable, pair: Pair, args: tuple) -> tuple:
    try:
        got: Any = f(pair, *args)
    except Exception as e:
        got = type(e).__name__
    return repr(got), repr((pair.left, pair.items)), pair.right is pair


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_translated_function_does_what_it_was_translated_from(both: dict, name: str, data: Any) -> None:
    args = data.draw(ARGUMENTS[name])
    python, native_code = both[name]
    assert type(native_code).__name__ == "method_descriptor"
    assert outcome(python, Pair(1, "two"), args) == outcome(native_code, Pair(1, "two"), args)


@pytest.mark.parametrize("name", NAMES)
def test_a_translated_function_keeps_no_references(both: dict, name: str) -> None:
    mark, other = object(), [object()]
    calls = {
        "chosen": [(mark, other), ("s", mark), (7, mark), (None, 0)],
        "searched": [([mark, other, mark], other), ((mark,), mark), (mark, mark)],
        "counted": [([(3, 1), (2, 2)],), ([mark],), (mark,)],
        "told": [(mark, other), (mark, [mark])],
        "unset": [(mark,), (0,)],
        "strict": [([mark], [other]), ([mark], []), (mark, mark)],
        "nested": [([[mark], [], (0, mark)],), ([],)],
        "tried": [
            (int, [mark, "1"], {}),
            (list, [other, (mark,), None], {}),
            ({}.__getitem__, [mark], {}),
            (int, ["1"], {"base": 7}),
        ],
        "guarded": [(repr, mark), (len, mark), (len, None), (len, ()), (repr, "")],
    }[name]
    pair = Pair(mark, other)

    def turn() -> tuple[int, ...]:
        for _ in range(200):
            for args in calls:
                try:
                    both[name][1](pair, *args)
                except (TypeError, LookupError, ValueError, UnboundLocalError, AttributeError):
                    pair.left, pair.right, pair.items = mark, other, [mark, other]
            pair.left, pair.right, pair.items = mark, other, [mark, other]
        gc.collect()
        return len(gc.get_objects()), *(sys.getrefcount(x) for x in (mark, other, pair, *calls))

    turn()
    before, after = turn(), turn()
    assert before[1:] == after[1:]
    assert after[0] - before[0] < 5


def test_an_error_while_another_is_dealt_with_has_that_one_for_its_context(both: dict) -> None:
    f: Any
    for f in both["guarded"]:
        with pytest.raises(KeyError, match="later") as caught:
            f(Pair(1, 2), len, None)
        first = caught.value.__context__
        assert type(first) is TypeError and caught.value.__cause__ is None and first.__context__ is None


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("args", [(), (1,), (1, 2, 3)])
@pytest.mark.parametrize("kwargs", [{}, {"c": 3}, {"c": 3, "e": 4}, {"a": 5}])
def test_further_arguments_are_passed_on_as_they_came(both: dict, left: int, args: tuple, kwargs: dict) -> None:
    pair, twin = Pair(left, 2), Pair(left, 2)
    assert type(vars(Pair)["passed"]).__name__ == "method_descriptor"
    python = both["passed"][0]

    def told(f: Callable, x: Pair) -> Any:
        try:
            return f(x, *args, **kwargs)
        except TypeError as e:
            return str(e)

    assert told(Pair.passed, pair) == told(python, twin)
    assert str(inspect.signature(Pair.passed)) == "(self, /, *args, **kwargs)"


def test_a_builtin_called_in_another_way_is_the_python_function(both: dict) -> None:
    pair = Pair(1, 2)
    assert pair.chosen(y=3, x=None) == 1
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        pair.chosen(1)
    with pytest.raises(TypeError, match="takes 3 positional arguments but 4 were given"):
        pair.chosen(1, 2, 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        pair.chosen(1, z=3)


def with_a_lambda(x: Any) -> Any:
    return (lambda: x)()


def with_try(x: Any) -> Any:
    try:
        return x()
    except ValueError as e:
        return e


def with_more(y: Any, z: Any, *x: Any) -> Any:
    return x


@pytest.mark.parametrize("f", [with_a_lambda, with_try, with_more])
def test_what_cannot_be_translated_is_refused(f: Any) -> None:
    with pytest.raises(Untranslatable, match=f.__name__):
        Native([Unit("f", f)], Hints())


# -------------------------------------------------------------------- capture


@pytest.fixture
def switched() -> Iterator[Callable[[str], None]]:
    was = native._State.on
    yield native.switch
    native.switch("on" if was else "off")


def test_the_same_programs_take_the_same_steps(switched: Callable[[str], None]) -> None:
    for seed in range(40_000, 40_008):
        program = generate(random.Random(seed))
        seen = []
        for how in ("off", "on"):
            switched(how)
            stats: dict = {}
            assert check(program, "eager", stats) == "", f"seed {seed}, native {how}"
            seen.append(stats)
        assert seen[0] == seen[1], f"seed {seed}"


@pytest.mark.parametrize("file", ["effects", "gradients", "lifetimes", "histories", "mixed", "numbers", "exceptions"])
def test_programs_of_capture_do_the_same(switched: Callable[[str], None], file: str) -> None:
    """The programs of tests/test_capture_FILE.py, with native code in force from the first call on."""
    module = importlib.import_module(f"test_capture_{file}")
    switched("on")
    found = programs(module.__name__)
    assert found
    for case in found:
        agree(case, "eager")


def test_following_leaves_nothing_behind(switched: Callable[[str], None]) -> None:
    switched("on")
    layer = flame.nn.Linear(4, 4)
    optimizer = flame.optim.AdamW(layer.parameters(), lr=1e-3)

    @flame.compile(backend="eager")
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        y = layer(x * 2.0 + 1).relu()
        z = y.transpose(0, 1).reshape(-1)
        z = flame.nn.functional.softmax(z, -1)
        z = z * 1.0
        z.add_(1.0)
        loss = (z @ z) + y.sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    x = flame.ones(4, 4)

    def turn() -> int:
        for _ in range(100):
            step(x)
        gc.collect()
        return len(gc.get_objects())

    turn()
    before, counts = turn(), [sys.getrefcount(t) for t in (x, *layer.parameters())]
    assert turn() - before < 50  # (an object left by each call would make it 100)
    assert [sys.getrefcount(t) for t in (x, *layer.parameters())] == counts


def test_many_calls_hold_nothing(switched: Callable[[str], None]) -> None:
    switched("on")

    @flame.compile(backend="eager")
    def f(x: Any) -> Any:
        for _ in range(500):
            y = x * 2.0
        return y

    x = flame.ones(2)

    def turn() -> int:
        for _ in range(100):
            f(x)
        return len(gc.get_objects())

    before = turn()
    assert abs(turn() - before) < 50  # after 10^5 followed operations


def run(code: str, **env: str) -> str:
    got = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
    )
    return got.stdout + got.stderr


PROGRAM = """
import flame
from flame.capture import native
f = flame.compile(lambda x: x * 2 + 1, backend="eager")
began = native._State.on
for _ in range(60):
    y = f(flame.ones(2))
print(began, native.wait(), y.tolist())
"""


@pytest.mark.parametrize(
    ("knob", "said"),
    [
        ("0", "False False [3.0, 3.0]"),
        ("1", "True True [3.0, 3.0]"),
        ("auto", "False True [3.0, 3.0]"),
        ("x", "FLAME_NATIVE='x'"),
    ],
)
def test_the_knob_decides(knob: str, said: str) -> None:
    assert said in run(PROGRAM, FLAME_NATIVE=knob)


def test_where_there_can_be_no_native_code_python_goes_on(switched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    switched("off")
    monkeypatch.setattr(layout, "usable", lambda: "the interpreter is another one")
    monkeypatch.setattr(knobs, "native", "auto")
    with pytest.raises(RuntimeError, match="the interpreter is another one"):
        native.switch("on")
    f = flame.compile(lambda x: x + 1, backend="eager")
    for _ in range(2 * native.OFTEN):
        got = f(flame.ones(1))
    assert got.tolist() == [2.0] and not native._State.on
