"""`explain(fn, *args)`: run a function eagerly and compiled, and say what became of it.

    record      calls as a user would make them, until a call brings nothing new: graphs, kernels, breaks, divergences
    compare     eager and compiled from the same state: the largest difference, in ULP and absolute
    time        eager and compiled in turn, medians
    put back    tensors, modules, optimizers and random streams that the function reaches are as they were (`flame.snapshot`)

The function really runs, about a dozen times or more; what it does outside of that state (files, the screen) happens each time.
How an `Explanation` looks in a terminal or a page stands in `flame.explanation_text`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import ml_dtypes
import numpy as np

from flame.capture.compiled import Compiled
from flame.compiler.graph import Graph, Value
from flame.compiler.kernel import bytes_moved
from flame.compiler.program import CallStep, Decision, KernelStep
from flame.drawing import draw
from flame.explanation_text import page, plain, rendered
from flame.jit import CompiledFunction, compile, set_stance
from flame.kernels import KernelHandle
from flame.nn import Module
from flame.primitive import force
from flame.reasons import REASONS
from flame.runtime.gpu_copy import host
from flame.snapshot import Snapshot
from flame.tensor import Tensor

#: calls that may go by before every call finds what the one before it left
_CALLS = 8
#: seconds and rounds for timing each of the two
_SECONDS, _LEAST, _MOST = 0.5, 3, 50


@dataclass(frozen=True, slots=True)
class Segment:
    """One captured graph and what it was compiled to. Bytes are what kernels move in one run, and what its operations would
    move one by one."""

    graph: Graph
    role: str  #: "forward" or "backward"
    operations: int
    kernels: int
    calls: int  #: operations that are run by their eager function
    bytes_moved: int
    bytes_eager: int
    failure: str = ""

    @staticmethod
    def of(c: Compiled) -> Segment:
        steps = () if c.program is None else c.program.steps
        kernels = [s for s in steps if isinstance(s, KernelStep)]
        return Segment(
            graph=c.graph,
            role=c.role,
            operations=len(c.graph.nodes),
            kernels=len(kernels),
            calls=sum(isinstance(s, CallStep) for s in steps),
            bytes_moved=sum(bytes_moved(s.kernel, s.symbols) for s in kernels),
            bytes_eager=_eager_bytes(c.graph),
            failure=c.failure,
        )


def _eager_bytes(graph: Graph) -> int:
    """Bytes that its operations read and write one after the other; views move none."""
    total = 0
    for n in graph.nodes:
        if not n.primitive.view:
            total += sum(v.spec.nbytes for v in (*n.operands, *n.outputs) if isinstance(v, Value))
    return total


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a line of the user's, `count` times in all `Explanation.calls`: a break, a divergence, a
    fallback."""

    source: str  #: "file:line"
    reason: str
    count: int = 1

    @property
    def code(self) -> str:
        """Of the reason, in `flame.reasons`: "FL1001"."""
        code = self.reason.split(" ", 1)[0]
        return code if code in REASONS else ""

    @property
    def remedy(self) -> str:
        """What can be changed so that it does not happen."""
        return REASONS[self.code].remedy if self.code else ""

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" + (f" ({self.count} times)" if self.count > 1 else "")


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference between eager and compiled, over all results, and all state that the function wrote.

    `ulp` is in units of the last place (see `distance`), `absolute` in the numbers' own measure, `relative` that by the largest
    magnitude of the same result. `where` names the result with the largest `relative`. `repeatable` says whether two
    eager calls from the same state agreed to the bit; where they do not, the rest says nothing about the compiler.
    """

    ulp: float = 0.0
    absolute: float = 0.0
    relative: float = 0.0
    where: str = ""
    repeatable: bool = True


@dataclass
class Explanation:
    """What became of a function. Prints as text, in a terminal (rich) in colour, in a notebook as HTML."""

    name: str
    calls: int  #: until a call brought nothing new
    segments: list[Segment]
    kernels: list[KernelHandle]
    breaks: list[Event]
    divergences: list[Event]
    compilations: list[Event]  #: each with its cause; the line is where the path began to differ from those before, if it did
    fallbacks: list[Event]
    decisions: list[Decision]
    given_up: str
    eager_ms: float
    compiled_ms: float
    compile_seconds: float  #: differentiating, optimising, making machine code
    first_compiled_seconds: float  #: from the first call's begin to the end of the first that ran kernels; NaN: none did
    difference: Difference = field(default_factory=Difference)

    @property
    def graphs(self) -> list[Graph]:
        return [s.graph for s in self.segments]

    @property
    def refused(self) -> list[Decision]:
        """What was not fused, and why."""
        return [d for d in self.decisions if d.verdict == "refused"]

    def draw(self, path: Any = None, graph: int = 0) -> str:
        """A captured graph as SVG text, written to `path` if one is given. Raises IndexError where nothing was captured."""
        if not self.graphs:
            raise IndexError(f"{self.name}: no graph was captured{': ' + self.given_up if self.given_up else ''}")
        svg = draw(self.graphs[graph])
        _write(path, svg)
        return svg

    def to_html(self, path: Any = None) -> str:
        """A page with everything: figures, graphs, kernels with their sources, every decision. Written to `path` if given."""
        text = page(self)
        _write(path, text)
        return text

    def __str__(self) -> str:
        return plain(self)

    def __repr__(self) -> str:
        return (
            f"<explanation of {self.name}: {len(self.graphs)} graphs, {len(self.kernels)} kernels, {len(self.breaks)} breaks>"
        )

    def __rich__(self) -> Any:
        return rendered(self)

    def _repr_html_(self) -> str:
        return page(self, whole=False)


def _write(path: Any, text: str) -> None:
    if path is not None:
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)


def explain(fn: Callable, /, *args: Any, **kwargs: Any) -> Explanation:
    """Run `fn(*args, **kwargs)` eagerly and compiled, several times, and report what was captured, what was fused,
    what broke off, how fast it is, and how far apart the results are.

    `fn` is a function, a Module, or what `flame.compile` made of one (whose options are then used, on a capture of its own).
    What the function raises is raised. State that it reaches is put back afterwards; other side effects happen at every call.
    """
    if force.interpreter is not None:
        raise RuntimeError("explain() compares eager with compiled runs, so it can't be called inside a compiled function")
    plain, compiled = _both(fn)
    start = Snapshot(plain, args, kwargs)
    try:
        with set_stance("default"):
            first = _record(compiled, args, kwargs)
            stats = deepcopy(compiled.stats)
            again = Snapshot(plain, args, kwargs)
            difference = _compare(plain, compiled, args, kwargs, again)
            eager_ms, compiled_ms = _time(plain, compiled, args, kwargs, again)
    finally:
        start.restore()
    return Explanation(
        name=compiled._capture.name,
        calls=stats.calls,
        segments=[Segment.of(c) for c in compiled.compiled_graphs()],
        kernels=compiled.kernels,
        breaks=_events(stats.breaks),
        divergences=_events(stats.diverged),
        compilations=_events(stats.compilations),
        fallbacks=_events(stats.fallbacks),
        decisions=list(dict.fromkeys(d for c in compiled.compiled_graphs() for d in c.decisions)),
        given_up=compiled.given_up,
        eager_ms=eager_ms,
        compiled_ms=compiled_ms,
        compile_seconds=stats.compile_seconds,
        first_compiled_seconds=first,
        difference=difference,
    )


def _both(fn: Any) -> tuple[Callable, Any]:
    """The function as it runs eagerly, and compiled with nothing captured yet."""
    settings: dict[str, Any] = {}
    plain = fn
    if isinstance(fn, Module) and hasattr(fn, "_orig_mod"):
        plain, settings = fn._orig_mod, fn._compiled.settings
    elif isinstance(fn, CompiledFunction):
        plain, settings = fn.__wrapped__, fn.settings  # type: ignore[attr-defined]
    elif isinstance(fn, MethodType) and isinstance(fn.__func__, CompiledFunction):
        plain, settings = MethodType(fn.__func__.__wrapped__, fn.__self__), fn.__func__.settings  # type: ignore[attr-defined]
    if settings:
        settings["options"]["background"] = False
    return plain, compile(plain, **settings)


def _record(compiled: Any, args: tuple, kwargs: dict) -> float:
    """Call until a call brings nothing new; seconds until the first compiled call was over."""
    begin, first = time.perf_counter(), float("nan")
    for _ in range(_CALLS):
        before = _state(compiled.stats)
        compiled(*args, **kwargs)
        if compiled.stats.compiled and first != first:
            first = time.perf_counter() - begin
        if compiled.given_up or _state(compiled.stats) == before:
            break
    return first


def _state(stats: Any) -> tuple:
    return stats.recorded, stats.compiled, sum(stats.diverged.values())


def _events(table: dict[tuple[str, str], int]) -> list[Event]:
    return [Event(source, reason, n) for (source, reason), n in table.items()]


# ---- how far apart


def _compare(eager: Callable, compiled: Callable, args: tuple, kwargs: dict, state: Snapshot) -> Difference:
    def outcome(f: Callable, stance: str) -> dict[str, np.ndarray]:
        state.restore()
        with set_stance(stance):
            got = dict(_arrays("result", f(*args, **kwargs)))
        return got | state.tensors()

    want, same, got = outcome(eager, "force_eager"), outcome(eager, "force_eager"), outcome(compiled, "default")
    state.restore()
    repeatable = want.keys() == same.keys() and all(_bits(want[n]) == _bits(same[n]) for n in want)
    ulp = absolute = relative = 0.0
    where = ""
    for name in want.keys() | got.keys():
        a, b = want.get(name), got.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            return Difference(float("inf"), float("inf"), float("inf"), name, repeatable)
        if _bits(a) != _bits(b):
            u, d, r = distance(a, b)
            ulp, absolute = max(ulp, u), max(absolute, d)
            if r > relative:
                relative, where = r, name
    return Difference(ulp, absolute, relative, where, repeatable)


def _bits(a: np.ndarray) -> bytes:
    return np.ascontiguousarray(a).tobytes()


def _arrays(name: str, x: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors and numbers in a result, by name."""
    match x:
        case Tensor():
            yield name, np.array(host(x._data()))
        case bool() | int() | float() | np.ndarray() | np.generic():
            yield name, np.array(x)
        case dict():
            for k, v in x.items():
                yield from _arrays(f"{name}.{k}", v)
        case list() | tuple():
            for i, v in enumerate(x):
                yield from _arrays(f"{name}.{i}", v)


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """The largest difference of two arrays of one shape and dtype: in ULP, absolute, and by the largest magnitude of `a`.

    A ULP is the distance of neighbouring numbers of the dtype at an element of `a`; elements smaller than 1/1024 of the largest
    count as that large, since what is left of a cancellation has few places that mean anything. For integers and booleans a ULP
    is 1. NaN is equal to NaN, and infinitely far from all else.
    """
    if not a.size:
        return 0.0, 0.0, 0.0
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        far = np.abs(x - y)
        far[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
        far[np.isnan(far)] = np.inf
        size = float(np.max(np.abs(x), initial=0.0, where=np.isfinite(x)))
        absolute = float(far.max())
        relative = absolute / size if size else absolute
        if a.dtype.kind in "biu":
            return absolute, absolute, relative
        magnitude = np.where(np.isfinite(x), np.maximum(np.abs(x), size / 1024), 0.0)
        return float((far / _spacing(magnitude, a.dtype)).max()), absolute, relative


def _spacing(magnitude: np.ndarray, kind: Any) -> np.ndarray:
    """The distance to the next number of a floating-point dtype."""
    about = ml_dtypes.finfo(kind)
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, about.minexp)
    exponent[magnitude == 0] = about.minexp
    return np.ldexp(1.0, exponent - about.nmant)


# ---- how fast


def _time(eager: Callable, compiled: Callable, args: tuple, kwargs: dict, state: Snapshot) -> tuple[float, float]:
    """Medians in milliseconds, measured in turn, always from the same state."""
    took: tuple[list[float], list[float]] = [], []
    while len(took[0]) < _LEAST or (len(took[0]) < _MOST and sum(map(sum, took)) < 2 * _SECONDS):
        for f, times, stance in ((eager, took[0], "force_eager"), (compiled, took[1], "default")):
            state.restore()
            with set_stance(stance):
                begin = time.perf_counter()
                f(*args, **kwargs)
                times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(took[0]), 1e3 * statistics.median(took[1])
