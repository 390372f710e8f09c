"""`compile` and `disable`: what users see of capture and compilation (what came of it: `flame.kernels`, `flame.explain`)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from flame.capture.compiled import Compiled, say
from flame.capture.run import Run
from flame.capture.trace import Capture
from flame.compiler.graph import Graph
from flame.kernels import DEFAULT_GPU, Inventory, KernelHandle
from flame.knobs import knobs
from flame.primitive import force

MODES = ("default", "reduce-overhead", "max-autotune", "replay")
BACKENDS = ("auto", "triton", "llvm", "interpret", "eager")

#: Regions run one at a time: a second thread that calls a compiled function meanwhile runs it eagerly.
_region = threading.Lock()


@dataclass(frozen=True, slots=True)
class Options:
    fullgraph: bool = False
    dynamic: bool | None = None
    mode: str = "default"
    backend: str = "auto"


class CompiledFunction:
    """What `flame.compile` makes of a function: called like it, with the same results and side effects."""

    def __init__(self, fn: Callable, options: Options):
        self._fn = fn
        self._options = options
        self._capture = Capture(getattr(fn, "__name__", type(fn).__name__), options)
        self._inventory = Inventory(self._capture)
        functools.update_wrapper(self, fn, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        c = self._capture
        if force.interpreter is not None or c.given_up or knobs.disable or not _region.acquire(blocking=False):
            return self._fn(*args, **kwargs)
        try:
            s = c.stats
            s.calls += 1
            before = (s.followed, s.recorded, s.flushed) if knobs.log else None
            force.interpreter = Run(c, c.root)
            try:
                result = self._fn(*args, **kwargs)
            except BaseException:
                run = force.interpreter
                if isinstance(run, Run):
                    run.end("deopt")
                raise
            force.interpreter.end("return")
            if before is not None:
                followed, recorded, flushed = s.followed - before[0], s.recorded - before[1], s.flushed - before[2]
                text = f"{followed} steps followed, {recorded} recorded; {flushed} segments ran as kernels"
                say("capture", f"{c.name}: call {s.calls}: {text}")
            return result
        finally:
            force.interpreter = None
            _region.release()

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<compiled {self._capture.name}>"

    @property
    def stats(self) -> Any:
        """Counts of calls, followed and recorded steps, breaks, divergences, compilations, fallbacks."""
        return self._capture.stats

    @property
    def given_up(self) -> str:
        """Why this function runs eagerly now, if it does."""
        return self._capture.given_up

    @property
    def settings(self) -> dict[str, Any]:
        """The options of `compile` that it was made with."""
        return asdict(self._options)

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

    def reset(self) -> None:
        """Forget all that was captured and compiled."""
        self._capture = Capture(self._capture.name, self._options)
        self._inventory = Inventory(self._capture)


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
    decorator, with or without arguments. A Module is compiled in place of its `forward` and returned as a Module.

    fullgraph: raise GraphBreakError where capture has to stop, instead of going on after it.
    mode, backend: see `MODES` and `BACKENDS`; backend "interpret" runs kernels in NumPy, "eager" runs primitives one by one.
    Raises ValueError for an unknown mode or backend, TypeError where `model` is not callable.
    """
    if mode is not None and mode not in MODES:
        raise ValueError(f"Unrecognized mode={mode}, should be one of: {', '.join(MODES)}")
    if backend not in BACKENDS:
        raise ValueError(f"Unrecognized backend={backend}, should be one of: {', '.join(BACKENDS)}")
    if model is None:
        return lambda f: compile(
            f, fullgraph=fullgraph, dynamic=dynamic, backend=backend, mode=mode, options=options, disable=disable
        )
    if not callable(model):
        raise TypeError(f"compile() expects a function or a Module, got {type(model).__name__}")
    if disable:
        return model
    how = Options(fullgraph, dynamic, mode or "default", backend)
    hook = getattr(model, "_compile_with", None)
    if hook is not None and not isinstance(model, type):
        return hook(lambda f: CompiledFunction(f, how))
    return CompiledFunction(model, how)


def disable(fn: Any = None, recursive: bool = True) -> Any:
    """A function that always runs eagerly, also when called inside a compiled one (which is interrupted for it)."""
    if fn is None:
        return lambda f: disable(f, recursive)

    @functools.wraps(fn)
    def eagerly(*args: Any, **kwargs: Any) -> Any:
        run = force.interpreter
        if run is None:
            return fn(*args, **kwargs)
        return run.outside(lambda: fn(*args, **kwargs), f"{getattr(fn, '__name__', 'a function')} is disabled for compilation")

    return eagerly
