"""`compile`, `disable` and what holds for all compiled functions: what users see of capture (what came of it: `flame.kernels`).

The names are PyTorch's: `flame.compile`, and in `flame.compiler` the rest (`PUBLIC`).
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from flame.autograd.saving import each_by_itself
from flame.autograd.watch import watchers
from flame.capture import native
from flame.capture.arguments import MISS
from flame.capture.compiled import Compiled, say
from flame.capture.control import RECOMPILE_LIMIT, STANCES, Options, control, demands
from flame.capture.replaying import Replays
from flame.capture.run import Run
from flame.capture.trace import Capture
from flame.capture.trial import TWICE, Rest, Trial, Twice, kind_of, measured
from flame.compiler.graph import Graph
from flame.errors import MissingTargetError, RecompileError
from flame.kernels import DEFAULT_GPU, Inventory, KernelHandle
from flame.knobs import knobs
from flame.primitive import force
from flame.reasons import DISABLED, FASTER_AGAIN, GENERATOR, OTHER_THREAD, RECOMPILE_FORBIDDEN, SLOWER, TWICE_OUTSIDE
from flame.runtime import cuda

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "replay")
BACKENDS = ("auto", "triton", "llvm", "interpret", "eager")


class _Region:
    """Regions run one at a time: a second thread that calls a compiled function meanwhile runs it eagerly."""

    __slots__ = ("capture", "keys", "thread")

    def __init__(self) -> None:
        self.keys: list[None] = [None]  #: there is one, and who took it is in the region (taking it is one step, as of a lock)
        self.thread = 0  #: whose it is, or was last
        self.capture: Capture | None = None  #: of whom


_region = _Region()


def _open_in_child() -> None:
    """A forked child has one thread; a region of another thread of its parent's would never end there. What that one had
    pending is lost, and tensors from outside are as they were before it."""
    if not _region.keys and _region.thread != threading.get_ident():
        _region.keys.append(None)
        if _region.capture is not None and _region.capture.run is not None:
            _region.capture.run.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_in_child)

_all: weakref.WeakSet[CompiledFunction] = weakref.WeakSet()


class CompiledFunction:
    """What `flame.compile` makes of a function: called like it, with the same results and side effects."""

    __slots__ = ("_capture", "_fn", "_inventory", "_options", "_replays", "_trial", "__dict__", "__weakref__")
    _capture: Capture

    def __init__(self, fn: Callable, options: Options):
        self._fn = fn
        self._options = options
        self._capture = Capture(_name(fn), options)
        self._inventory = Inventory(self._capture)
        self._replays = Replays(fn, self._capture, self._alone) if options.mode == "replay" else None
        self._trial: Trial | Rest | None = self._new_trial()
        functools.update_wrapper(self, fn, updated=())
        _all.add(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        replays = self._replays
        if replays is not None and not control.eager and not knobs.disable:
            for e in replays.entries:
                result = e.call(args, kwargs)
                if result is not MISS:
                    return result
        inside = force.interpreter is not None
        if self._trial is not None and not inside:
            return self._tried(self._trial, args, kwargs)
        packing = watchers and each_by_itself()  # (saved tensors go through functions of the user's, or NaN is looked for)
        plain = inside or control.eager or knobs.disable or packing
        c: Capture = self._capture
        if plain or c.given_up:
            if c.given_up and self._options.fullgraph and not plain:
                self._give_up()
            return self._fn(*args, **kwargs)
        region = _region
        try:
            region.keys.pop()
        except IndexError:
            if region.thread != get_ident():
                self._note_other_thread()
            return self._fn(*args, **kwargs)
        try:
            region.thread = get_ident()
            region.capture = c
            if control.compiling != "yes" and self._stays_eager(c):
                return self._fn(*args, **kwargs)
            s = c.stats
            s.calls += 1
            if s.calls == native.OFTEN:
                native.warm()
            before = (s.followed, s.recorded, s.flushed) if knobs.log else None
            looking = None if replays is None else replays.begin(args, kwargs)
            run: Run = c.spare
            if run is None:
                run = Run(c, c.root, region.thread)
            else:
                c.spare = None
                run.begin(c.root, region.thread)
            first = run
            force.interpreter = run
            if looking is not None:
                run.observer = looking
            try:
                result = self._fn(*args, **kwargs)
            except BaseException:
                run = force.interpreter
                if run is not None:
                    run.end("deopt")
                raise
            run = force.interpreter
            if looking is not None:
                looking.result = result
            if run is not None:  # None: capture raised, and the function caught it and went on eagerly
                run.returned()
            if looking is not None and replays is not None:
                replays.settle(looking, run)
            if run is first and run.following:
                run.rest()
            if before is not None:
                self._tell(before)
            return result
        finally:
            force.interpreter = region.capture = None
            region.keys.append(None)

    def _give_up(self) -> None:
        c = self._capture
        raise RecompileError(f"{c.name}: {c.given_up}; with fullgraph=True it is not run eagerly instead")

    def _note_other_thread(self) -> None:
        s = self._capture.stats
        s.count(s.fallbacks, "", OTHER_THREAD.text())

    def _stays_eager(self, c: Capture) -> bool:
        """Whether it was never captured, while nothing new is to be. Raises RecompileError where that is forbidden."""
        if c.root.children or control.compiling == "yes":
            return False
        if control.compiling == "no":
            return True
        what = RECOMPILE_FORBIDDEN.text(f"{c.name} was never captured")
        raise RecompileError(f"{what}. {RECOMPILE_FORBIDDEN.remedy}")

    def _tell(self, before: tuple[int, int, int]) -> None:
        """FLAME_LOG=capture: what a call came to."""
        c = self._capture
        s = c.stats
        followed, recorded, flushed = s.followed - before[0], s.recorded - before[1], s.flushed - before[2]
        text = f"{followed} steps followed, {recorded} recorded; {flushed} segments ran as kernels"
        say("capture", f"{c.name}: call {s.calls}: {text}")

    def _new_trial(self) -> Trial | None:
        """Of a function that may be handed to eager where it is slower; None for the others."""
        o = self._options
        judged = o.never_slower and knobs.never_slower and o.backend == "auto" and not o.fullgraph and not o.background
        if not judged or o.mode == "replay":
            return None
        self._twice = Twice()
        self._capture.derived_twice = weakref.WeakMethod(self._derived_twice)
        return Trial()

    def _derived_twice(self, call: int) -> None:
        """Results of a call, by number, were differentiated twice outside, which its kernels did not help."""
        streak = self._twice.happened(call)
        trial = self._trial
        if streak >= TWICE and not isinstance(trial, Rest):
            rest = self._trial = Rest(streak, trial)
            s = self._capture.stats
            if streak == TWICE:
                s.count(s.fallbacks, "", TWICE_OUTSIDE.text(streak, rest.calls))

    def _compiled(self, args: tuple, kwargs: dict) -> Any:
        """A call as if there were no trial."""
        trial, self._trial = self._trial, None
        try:
            return self(*args, **kwargs)
        finally:
            self._trial = trial

    def _tried(self, trial: Trial | Rest, args: tuple, kwargs: dict) -> Any:
        """A call while it is not settled whether compiled is faster than eager (`flame.capture.trial`)."""
        c = self._capture
        if c.given_up or control.eager or control.compiling != "yes" or knobs.disable:
            return self._compiled(args, kwargs)
        if isinstance(trial, Rest):
            if trial.calls:
                trial.calls -= 1
                return self._fn(*args, **kwargs)
            self._trial = trial.before
            return self(*args, **kwargs)
        if trial.conclude():
            self._tell_verdict(trial)
        if trial.done:
            self._trial = None
            return self(*args, **kwargs)
        turn = trial.turn()
        if not turn:
            return self._fn(*args, **kwargs) if trial.eager else self._compiled(args, kwargs)
        s = c.stats

        def run() -> Any:
            return self._compiled(args, kwargs) if turn == "compiled" else self._fn(*args, **kwargs)

        result, changed = measured(trial, run, kind_of((args, kwargs)), lambda: (s.recorded, s.compiled, c.given_up))
        if changed:
            self._tell_verdict(trial)
        if trial.done:
            self._trial = None
        return result

    def _tell_verdict(self, trial: Trial) -> None:
        s = self._capture.stats
        text = (SLOWER if trial.eager else FASTER_AGAIN).text(trial.ratio)
        s.count(s.fallbacks, "", text)
        if knobs.log:
            say("capture", f"{self._capture.name}: {text}")

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether this thread may open a region here; it has it meanwhile."""
        try:
            _region.keys.pop()
        except IndexError:
            yield False
            return
        try:
            _region.thread, _region.capture = threading.get_ident(), self._capture
            yield True
        finally:
            _region.capture = None
            _region.keys.append(None)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:
        """By name, as functions are; one that its name does not lead to is compiled anew from the function."""
        found: Any = sys.modules.get(self.__module__)
        name = getattr(self, "__qualname__", "")
        for part in name.split("."):
            found = getattr(found, part, None)
        return name if found is self else (_compiled_again, (self._fn, self.settings))

    def __repr__(self) -> str:
        return f"<compiled {self._capture.name}>"

    @property
    def stats(self) -> Any:
        """Counts of calls, followed and recorded steps, breaks, divergences, compilations, fallbacks."""
        if self._replays is not None:
            self._replays.report()
        return self._capture.stats

    @property
    def given_up(self) -> str:
        """Why this function runs eagerly now, if it does."""
        return self._capture.given_up

    @property
    def settings(self) -> dict[str, Any]:
        """The options of `compile` that it was made with."""
        o = self._options
        more = {"recompile_limit": o.recompile_limit, "background": o.background}
        return {"fullgraph": o.fullgraph, "dynamic": o.dynamic, "mode": o.mode, "backend": o.backend, "options": more}

    def compiled_graphs(self) -> list[Compiled]:
        """What was compiled so far: graphs with their programs and the reasons of every decision."""
        return list(self._inventory.compiled())

    @property
    def graphs(self) -> list[Graph]:
        """The captured graphs that were compiled so far, forward and backward, in that order."""
        return self._inventory.graphs()

    @property
    def kernels(self) -> list[KernelHandle]:
        """The kernels compiled so far, each once, in the order of their first use."""
        return self._inventory.kernels()

    def gpu_kernels(self, arch: str = DEFAULT_GPU) -> list[KernelHandle]:
        """The captured graphs fused for a GPU that need not be there: what would run on it."""
        return self._inventory.gpu_kernels(arch)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is compiled for this function in the background, at most `timeout` seconds; whether that is so."""
        end = None if timeout is None else time.monotonic() + timeout
        return all(j.wait(None if end is None else max(0.0, end - time.monotonic())) for j in self._capture.jobs)

    def reset(self) -> None:
        """Forget all that was captured and compiled."""
        self._capture = Capture(self._capture.name, self._options)
        self._inventory = Inventory(self._capture)
        self._trial = self._new_trial()
        if self._replays is not None:
            self._replays = Replays(self._fn, self._capture, self._alone)


native.also(CompiledFunction, "__call__", (_Region,))


def _compiled_again(fn: Callable, settings: dict[str, Any]) -> Any:
    """What a compiled function is unpickled or copied as."""
    return compile(fn, **settings)


def compile(
    model: Any = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    backend: str = "auto",
    mode: str | None = None,
    options: dict | None = None,
    disable: bool = False,
) -> Any:
    """Capture `model` (a function or a Module) while it runs, and run what was captured as fused kernels.

    The first call runs eagerly and is recorded; from the second on, the Python runs again while operations are only checked
    against the recording, and what they compute is done by kernels where a value is needed or the function returns. Usable as a
    decorator, with or without arguments. A Module is compiled in place of its `forward` and returned as a Module. Of a class,
    `__call__` is compiled, and the class returned. What is compiled already is returned, unless other options are asked for.

    fullgraph: raise GraphBreakError where capture has to stop, instead of going on after it, and RecompileError once there were too
        many paths, instead of running eagerly.
    mode: "default"; "replay" also skips the Python of calls that it proved to be like earlier ones (see docs/graph-breaks.md for
        what that takes, and raises ReplayError where an audit disagrees); "reduce-overhead" and "max-autotune" launch a program
        on a GPU as a graph of its driver, where that pays. "max-autotune" (and "max-autotune-no-cudagraphs") measures schedules of
        each kernel when it is compiled, and keeps the fastest on disk; on a CPU "reduce-overhead" does what "default" does.
    backend: see `BACKENDS`; "interpret" runs kernels in NumPy, "eager" runs primitives one by one.
    dynamic: None and True make a size (of 2 and more) symbolic when it is seen to vary, so that one compilation serves all later
        ones; with False each set of shapes is a path of its own. Other numbers that vary become run-time inputs in any case.
    options: "recompile_limit": how many paths are captured before the function is handed over to eager. "background": compile on
        a thread of its own, and run eagerly until that is done (`CompiledFunction.wait`). "never_slower": run eagerly what is
        measured to be slower compiled (the default; see FL3006).
    disable: return `model` as it is.
    Raises ValueError for an unknown mode, backend or option, MissingTargetError for a backend whose device is not there,
    TypeError where `model` is not callable or can't be compiled.
    """
    how = _options(fullgraph, dynamic, backend, mode, options)
    native.begin()
    if model is None:
        return lambda f: compile(
            f, fullgraph=fullgraph, dynamic=dynamic, backend=backend, mode=mode, options=options, disable=disable
        )
    if not callable(model):
        raise TypeError(f"compile() expects a function or a Module, got {type(model).__name__}")
    if disable:
        return model
    if isinstance(model, type):
        return _compile_class(model, how)
    before = model if isinstance(model, CompiledFunction) else getattr(model, "_compiled", None)
    if isinstance(before, CompiledFunction):
        if how in (Options(), before._options):
            return model
        if before is model:
            return CompiledFunction(before._fn, how)
    hook = getattr(model, "_compile_with", None)
    if hook is not None:
        return hook(lambda f: CompiledFunction(f, how))
    _refuse_suspended(model)
    return CompiledFunction(model, how)


def _options(fullgraph: bool, dynamic: bool | None, backend: str, mode: str | None, options: dict | None) -> Options:
    if mode is not None and mode not in MODES:
        raise ValueError(f"Unrecognized mode={mode}, should be one of: {', '.join(MODES)}")
    if backend not in BACKENDS:
        raise ValueError(f"Unrecognized backend={backend}, should be one of: {', '.join(BACKENDS)}")
    if backend == "triton" and not cuda.available():
        raise MissingTargetError(
            "backend='triton' launches kernels on a GPU, and none is here: use 'auto' or 'llvm'. The Triton source of every kernel "
            "is there all the same, as compiled.kernels[i].triton"
        )
    given = dict(options or {})
    limit = given.pop("recompile_limit", RECOMPILE_LIMIT)
    background = given.pop("background", False)
    never_slower = given.pop("never_slower", True)
    if given:
        known = "'background', 'never_slower', 'recompile_limit'"
        raise ValueError(f"Unexpected option {', '.join(map(repr, given))}, known are: {known}")
    if type(limit) is not int or limit < 1:
        raise ValueError(f"recompile_limit={limit!r}: expected a whole number of at least 1")
    if type(background) is not bool:
        raise ValueError(f"background={background!r}: expected True or False")
    if type(never_slower) is not bool:
        raise ValueError(f"never_slower={never_slower!r}: expected True or False")
    return Options(bool(fullgraph), dynamic, mode or "default", backend, limit, background, never_slower)


def _compile_class(cls: type, how: Options) -> type:
    """Its instances' `__call__`, in place."""
    call = next((c.__dict__["__call__"] for c in cls.__mro__ if "__call__" in c.__dict__), None)
    if call is None:
        raise TypeError(f"compile() expects a function or a Module; instances of {cls.__name__} can't be called")
    if not isinstance(call, CompiledFunction):
        _refuse_suspended(call)
        cls.__call__ = CompiledFunction(call, how)  # type: ignore[method-assign]
    return cls


def _refuse_suspended(fn: Any) -> None:
    """Raise TypeError for what hands out control in the middle of its body."""
    called = fn
    while isinstance(called, functools.partial):
        called = called.func
    if not inspect.isroutine(called):
        called = type(called).__call__
    kinds = (
        (inspect.isgeneratorfunction, "generator"),
        (inspect.iscoroutinefunction, "coroutine function"),
        (inspect.isasyncgenfunction, "asynchronous generator"),
    )
    for is_kind, kind in kinds:
        if is_kind(called):
            raise TypeError(f"compile(): {GENERATOR.text(_name(fn), kind)}. {GENERATOR.remedy}")


def _name(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", type(fn).__name__)


def disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """A function that always runs eagerly, with all that it calls, also inside a compiled one (which is interrupted for it).

    `reason` is shown with the break. `recursive=False` is taken for PyTorch's sake and changes nothing.
    """
    if fn is None:
        return lambda f: disable(f, recursive, reason=reason)
    what = _name(fn) + (f" ({reason})" if reason else "")

    @functools.wraps(fn)
    def eagerly(*args: Any, **kwargs: Any) -> Any:
        run = force.interpreter
        if run is None:
            return fn(*args, **kwargs)
        return run.outside(lambda: fn(*args, **kwargs), DISABLED, what)

    return eagerly


def compiled_functions() -> list[CompiledFunction]:
    """Every compiled function that is alive."""
    return list(_all)


def reset() -> None:
    """Forget all that was captured and compiled, of every compiled function."""
    for f in list(_all):
        f.reset()


def counters() -> dict[str, list[Any]]:
    """The statistics of every compiled function that is alive, by name."""
    found: dict[str, list[Any]] = {}
    for f in list(_all):
        found.setdefault(f._capture.name, []).append(f.stats)
    return dict(sorted(found.items()))


def is_compiling() -> bool:
    """Whether this code runs inside a compiled function, recorded or followed."""
    return force.interpreter is not None


def is_exporting() -> bool:
    """Never: nothing is exported by tracing."""
    return False


def list_backends() -> list[str]:
    """What `backend=` may be on this machine."""
    return [b for b in BACKENDS if b != "triton" or cuda.available()]


class set_stance:
    """Set what compiled functions do from now on, on every thread: a function, a context manager and a decorator.

    "default" (also "eager_then_compile", which is what capture does anyway), "force_eager", "eager_on_recompile" (run what is
    compiled, and eagerly what is not), "fail_on_recompile" (raise RecompileError there).
    """

    def __init__(self, stance: str = "default"):
        if stance not in STANCES:
            raise ValueError(f"invalid stance {stance!r}, should be one of: {', '.join(STANCES)}")
        self._stance = stance
        self._before = control.stance
        control.take(stance)

    def __call__(self, fn: Callable) -> Callable:
        """As a decorator: in force during calls only."""
        control.take(self._before)
        stance = self._stance

        @functools.wraps(fn)
        def with_stance(*args: Any, **kwargs: Any) -> Any:
            with set_stance(stance):
                return fn(*args, **kwargs)

        return with_stance

    def __enter__(self) -> None:
        control.take(self._stance)

    def __exit__(self, *error: Any) -> None:
        control.take(self._before)


@contextmanager
def error_on_graph_break(error_on_graph_break: bool = True) -> Iterator[None]:
    """On this thread, raise GraphBreakError where a graph ends (or don't): a context manager and a decorator, for a part of a
    compiled function or all around it. A function that was compiled with fullgraph=True always raises."""
    before = demands.error_on_break
    demands.error_on_break = error_on_graph_break
    try:
        yield
    finally:
        demands.error_on_break = before


def allow_in_graph(fn: Any) -> Any:
    """`fn`, or the list of functions, as it is: a name for code that was written for a compiler which reads bytecode. Here every
    function is followed by what it does."""
    fns = fn if isinstance(fn, (list, tuple)) else [fn]
    for f in fns:
        if not callable(f):
            raise TypeError(f"allow_in_graph expects a callable, got {type(f).__name__}")
    return fn


def assume_constant_result(fn: Callable) -> Callable:
    """`fn` as it is. Its Python runs on every call, and what it returns is looked at: nothing need be assumed of it."""
    return fn


#: what `flame.compiler` offers
PUBLIC: dict[str, Any] = {
    "allow_in_graph": allow_in_graph,
    "assume_constant_result": assume_constant_result,
    "compile": compile,
    "counters": counters,
    "disable": disable,
    "error_on_graph_break": error_on_graph_break,
    "is_compiling": is_compiling,
    "is_dynamo_compiling": is_compiling,
    "is_exporting": is_exporting,
    "list_backends": list_backends,
    "reset": reset,
    "set_stance": set_stance,
}
