"""What of capture is native: the functions that every followed operation goes through, and what they most likely meet.

    switch("on" | "off")      native code in force or not, capture's and that of eager operations (`flame.capture.native_eager`);
                              "on" raises where there can't be any; "eager" is the latter alone
    begin(), warm()           told when a function is compiled, and when it, or eager operations, were called often; the knob
                              FLAME_NATIVE says what then
    also(class, methods)      told of methods of layers above that are called as often

The functions are ordinary Python, written so that `flame.native` can translate them; nothing else says what the native code does.
It is made once a process, when compiled functions or eager operations turn out to be called often, so that neither a first call nor
the start of a program is the slower for it.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from flame.autograd.modes import _Mode, enable_grad, no_grad
from flame.autograd.tape import Eager
from flame.capture import gradients, native_eager, segment
from flame.capture.background import Job, Waited, submit_around
from flame.capture.compiled import Compiled
from flame.capture.control import control
from flame.capture.effects import Effects
from flame.capture.follow import Follower
from flame.capture.gradients import Gradients
from flame.capture.known import Calls, Macro, Result, Several
from flame.capture.run import Run, followed, written
from flame.capture.state import RunState
from flame.capture.trace import Capture, InputKey, Known, Ref, Slot, Statistics, Step, Trace, Window
from flame.capture.updates import Update, Updates
from flame.knobs import knobs
from flame.native import layout
from flame.native.install import Closure, Native
from flame.native.units import Hints, Unit
from flame.precision import casting, in_force
from flame.primitive import Spec, force, placement, registered
from flame.runtime.executable import Executable
from flame.runtime.gpu_program import GpuExecutable
from flame.runtime.locks import Lock
from flame.runtime.memory import Allocator, Block
from flame.tensor import Storage, Tensor

#: (class, methods)
_METHODS: Final[list[tuple[type, str]]] = [
    (Trace, "__init__"),
    (Window, "__init__"),
    (Follower, "enter _enter_first follow plain pair takes bind_slot process _link_view window_of link"),
    (Calls, "composite known _fits _follow_call _result"),
    (Updates, "_follow_known _follow_update _free_windows"),
    (Effects, "follow_inplace _is_whole_write _writes_freely _follow_write _rebind"),
    (Gradients, "_follow_gradient"),
    (RunState, "__init__ begin live survive advance track"),
    (Run, "returned _returned_as_known close rest"),
    (Capture, "ref"),
    (segment.Plan, "inputs fits"),
    (Compiled, "__call__"),
    (Executable, "__call__ _ordered"),
    (GpuExecutable, "__call__"),
    *native_eager.OF_GPUS,
    (Allocator, "take_arena give_arena"),
    (_Mode, "__enter__ __exit__"),
]
_FUNCTIONS: Final[tuple[Any, ...]] = (
    followed, written, segment.flush, segment._signature, segment._base_alone, gradients._accumulate_all, gradients._copied,
    gradients._leaf,
)  # fmt: skip
#: what every followed operation goes through
_OFTEN: Final = frozenset(
    "Calls.known Calls._follow_call Calls._result Follower.enter Follower.follow Follower.pair Follower.plain Follower.process "
    "Effects.follow_inplace Effects._is_whole_write Effects._writes_freely Effects._follow_write Effects._rebind Capture.ref "
    "Trace.__init__ Run.close RunState.live Plan.inputs Chain.follow Chain.arguments Straight.follow Straight.arguments "
    "Module.__call__ CompiledFunction.__call__ Run.rest Run._returned_as_known RunState.begin Executable.__call__ flush _signature "
    "Calls.composite".split()
)
#: methods that are functions which capture knows
_FOLLOWED: Final = (
    "__getitem__", "chunk", "contiguous", "expand", "flatten", "masked_fill", "mean", "permute", "reshape", "split", "squeeze",
    "sum", "t", "transpose", "unbind", "unsqueeze", "view",
)  # fmt: skip
#: methods that overwrite their tensor by a primitive of it and one operand
_WRITTEN: Final = {"add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div"} | {
    "__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div",
}  # fmt: skip
_SLOTTED: Final[list[type]] = [
    Run,
    Step,
    Ref,
    Slot,
    Trace,
    Window,
    Known,
    Macro,
    Result,
    Several,
    Update,
    Storage,
    segment.Plan,
    Capture,
    Statistics,
    Compiled,
    Executable,
    Block,
    InputKey,
    Spec,
    type(casting),
    type(control),
    type(knobs),
    type(placement),
    _Mode,
]
_ATTRIBUTES: Final[dict[tuple[type, str], type]] = {
    (Run, "next"): Step,
    (Run, "at"): Step,
    (Run, "root"): Step,
    (Run, "capture"): Capture,
    (Capture, "stats"): Statistics,
    (Capture, "spare"): Run,
    (Capture, "root"): Step,
    (Step, "plan"): segment.Plan,
    (segment.Plan, "forward"): Compiled,
    (Compiled, "executable"): Executable,
    (Step, "key"): InputKey,
    (InputKey, "spec"): Spec,
    (Step, "parent"): Step,
    (Macro, "last"): Step,
    (Update, "last"): Step,
    (Known, "window"): Window,
    (Trace, "window"): Window,
    (Known, "storage"): Storage,
    (Window, "storage"): Storage,
    (Storage, "window"): Window,
    (Known, "trace"): Trace,
    (Tensor, "_trace"): Trace,
    (Tensor, "_known"): Known,
    (Tensor, "_storage"): Storage,
} | {
    (cls, name): kind
    for cls, kind, names in (
        (Run, list, "tracked externals bindings written survivors"),
        (Step, list, "children macros"),
        (Step, tuple, "outs operands items"),
        (Macro, tuple, "given"),
        (Macro, list, "results"),
        (Update, tuple, "given numbers fixed slots written"),
        (_Mode, list, "_before"),
        (Window, list, "members"),
        (Trace, tuple, "chain"),
        (Several, tuple, "items"),
    )
    for name in names.split()
}


def also(cls: type, methods: str, slotted: tuple[type, ...] = ()) -> None:
    """Have methods of `cls` translated with the others; `slotted` are further classes whose slots they read."""
    _METHODS.append((cls, methods))
    _SLOTTED.extend(slotted)
    if "__slots__" in vars(cls):
        _SLOTTED.append(cls)


def _made() -> Native:
    hints = Hints()
    for cls in _SLOTTED:
        hints.slots[cls] = layout.offsets(cls)
    native_eager.slots_of_tensors(hints)
    native_eager.of_gpus(hints)
    hints.attributes.update(_ATTRIBUTES)
    hints.alike[_Mode] = (no_grad, enable_grad)
    hints.receivers.update({c: Run for c in (Follower, Calls, Updates, RunState, Effects, Gradients)})
    hints.locals[id(force)]["inference"] = False
    hints.locals[id(in_force)] = {"casts": None}
    likely = {"Calls.known": {"a": Tensor}, "Calls._fits": {"a": Tensor}, "Follower.process": {"o": Tensor}}
    units = [
        Unit(
            f"{cls.__name__}.{name}",
            vars(cls)[name],
            cls,
            (),
            likely.get(f"{cls.__name__}.{name}", {}),
            often=f"{cls.__name__}.{name}" in _OFTEN,
        )
        for cls, names in _METHODS
        for name in names.split()
    ]
    bound = {followed: 2, written: 2}
    units += [
        Unit(f.__name__, f, None, (), {"run": Run, "leaf": Step, "plan": segment.Plan}, bound.get(f, 0), f.__name__ in _OFTEN)
        for f in _FUNCTIONS
    ]
    operator, known = native_eager.operators()
    units.append(Unit("operator", operator, None, operator.__code__.co_freevars, {"run": Run, "self": Tensor, "other": Tensor}))
    closures = [Closure("operator", Tensor, n, tuple(c.cell_contents for c in f.__closure__)) for n, f in known]
    closures += [
        Closure("followed", Tensor, n, (vars(Tensor)[n].composite[1], f), "whole") for n, f in _by_eager(_FOLLOWED).items()
    ]
    for n, f in _by_eager(_WRITTEN).items():
        closures.append(Closure("written", Tensor, n, (registered(_WRITTEN[n]), f)))
    return Native(units, hints, closures)


def _by_eager(names: Iterable[str]) -> dict[str, Any]:
    """What is called by these names, of methods of tensors, while only eager operations are native."""
    native = {n: builtin for where, n, _, builtin in _State.made["eager"].places if where is Tensor}
    return {n: native.get(n, vars(Tensor)[n]) for n in names}


class _State:
    made: Final[dict[str, Native]] = {}  #: "eager", "capture" -> their native code
    translated: Final[dict[str, Native]] = {}  #: the same, while another process compiles it
    force: tuple[str, ...] = ()  #: which of these is in force
    on = False  #: whether capture's is
    paused = 0  #: by how many all is kept out of force
    wanted: tuple[str, ...] = ()  #: what is put in force when they are done
    jobs: Final[dict[str, Job]] = {}
    lock: Final = Lock()


#: calls of one compiled function, and eager operations, after which native code is made: these take about as long as making it does
OFTEN: Final = 24
OFTEN_EAGER: Final = 50_000
_PARTS: Final[dict[str, tuple[str, ...]]] = {"on": ("eager", "capture"), "eager": ("eager",), "off": ()}


def switch(to: str) -> None:
    """Put native code in force ("on"; "eager": that of eager operations alone) or the Python functions ("off").

    Raises RuntimeError where there can be no native code.
    """
    parts = _PARTS[to]
    reason = layout.usable() if parts else ""
    if reason:
        raise RuntimeError(f"capture can't be native here: {reason}")
    with _State.lock:
        if any(p not in _State.made for p in parts):
            before = _State.force
            _count(False)
            _put(())  # (what is translated is what Python has)
            for p in parts:
                if p not in _State.made:
                    _State.made[p] = (_State.translated.pop(p, None) or _translated(p)).link()
            _put(before)
        if _State.paused:
            _State.wanted = parts
        else:
            _put(parts)


def _translated(part: str) -> Native:
    return native_eager.made() if part == "eager" else _made()


def _begin(part: str) -> Waited | None:
    """Have another process compile it: that takes seconds."""
    with _State.lock:
        if part in _State.made:
            return None
        before = _State.force
        _count(False)
        _put(())
        try:
            native = _State.translated[part] = _translated(part)
        finally:
            _put(before)
    return native.begin()


def _put(parts: tuple[str, ...]) -> None:
    """Have these in force, the later ones over the earlier, and no others."""
    if parts == _State.force:
        return
    for p in reversed(_State.force):
        _State.made[p].take_away()
    for p in parts:
        _State.made[p].put()
    _State.force, _State.on = parts, "capture" in parts


def pause() -> Callable[[], None]:
    """Keep native code out of force, so that its functions can be listened to, until what is returned is called."""
    with _State.lock:
        _State.paused += 1
        if _State.force:
            _State.wanted = _State.force
            _put(())

    def resume() -> None:
        with _State.lock:
            _State.paused -= 1
            if _State.wanted and not _State.paused:
                _put(_State.wanted)
                _State.wanted = ()

    return resume


def begin() -> None:
    """A function is compiled."""
    if knobs.native == "1" and not _State.on:
        switch("on")


def warm(part: str = "capture") -> None:
    """A compiled function, or eager operations, were called often. (At the end of the interpreter it is too late.)"""
    if sys.is_finalizing():
        return
    if knobs.native == "1" and part == "eager":
        switch("eager" if not _State.on else "on")
    if knobs.native == "auto" and part not in _State.jobs and not layout.usable():
        # (In two jobs: eager operations need not wait for all of it.)
        if "eager" not in _State.jobs:
            _State.jobs["eager"] = submit_around(lambda: _begin("eager"), lambda: switch("eager" if not _State.on else "on"))
        if part == "capture":
            _State.jobs[part] = submit_around(lambda: _begin("capture"), lambda: switch("on"), _State.jobs["eager"])


def wait() -> bool:
    """Wait until native code that is being made is in force; whether there is any of capture's."""
    for job in list(_State.jobs.values()):
        job.wait()
    return _State.on


_COUNTED: Final[dict[str, Any]] = {name: vars(Eager)[name] for name in ("one", "two")}


def _count(on: bool) -> None:
    """Have eager operations counted until there are many, which costs each of them 0.1 us; or no longer."""
    for name, f in _COUNTED.items():
        if on or hasattr(vars(Eager)[name], "__wrapped__"):
            setattr(Eager, name, _counting(f) if on else f)


def _counting(f: Callable[..., Any]) -> Callable[..., Any]:
    left = itertools.count(0 if knobs.native == "1" else OFTEN_EAGER - 1, -1)

    @functools.wraps(f)
    def counted(*args: Any) -> Any:
        if next(left) <= 0:
            _count(False)
            warm("eager")
        return f(*args)

    return counted


if knobs.native != "0":
    _count(True)
