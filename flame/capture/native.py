"""What of capture is native: the functions that every followed operation goes through, and what they most likely meet.

    switch("on" | "off")      native code in force or not; "on" raises where there can't be any
    begin(), warm()           told when a function is compiled, and when it was called often; the knob FLAME_NATIVE says what then

The functions are ordinary Python, written so that `flame.native` can translate them; nothing else says what the native code does.
It is made once a process, when compiled functions turn out to be called often, so that a first call is none the slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from flame.capture import gradients, segment
from flame.capture.background import Job, submit
from flame.capture.compiled import Compiled
from flame.capture.effects import Effects
from flame.capture.follow import Follower
from flame.capture.gradients import Gradients
from flame.capture.known import Calls, Macro, Result, Several
from flame.capture.run import Run
from flame.capture.state import RunState
from flame.capture.trace import Capture, InputKey, Known, Ref, Slot, Statistics, Step, Trace, Window
from flame.capture.updates import Update, Updates
from flame.knobs import knobs
from flame.native import layout
from flame.native.install import Closure, Native
from flame.native.units import Hints, Unit
from flame.primitive import Spec, force
from flame.runtime.executable import Executable
from flame.runtime.locks import Lock
from flame.tensor import Storage, Tensor

#: (class, methods)
_METHODS: Final[tuple[tuple[type, str], ...]] = (
    (Trace, "__init__"),
    (Window, "__init__"),
    (Follower, "enter _enter_first follow plain pair takes bind_slot process _link_view window_of link"),
    (Calls, "composite _fits _follow_call _result"),
    (Updates, "_follow_known _follow_update _free_windows"),
    (Effects, "follow_inplace _is_whole_write _writes_freely _follow_write _rebind"),
    (Gradients, "_follow_gradient"),
    (RunState, "__init__ begin live survive advance track"),
    (Run, "_returned_as_known close rest"),
    (Capture, "ref"),
    (segment.Plan, "inputs fits"),
    (Compiled, "__call__"),
    (Executable, "__call__"),
)
_FUNCTIONS: Final[tuple[Any, ...]] = (
    segment.flush, segment._signature, segment._base_alone, gradients._accumulate_all, gradients._copied, gradients._leaf,
)  # fmt: skip
_SLOTTED: Final = (
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
    Executable,
    InputKey,
    Spec,
)
_ATTRIBUTES: Final[dict[tuple[type, str], type]] = {
    (Run, "next"): Step,
    (Run, "at"): Step,
    (Run, "root"): Step,
    (Run, "capture"): Capture,
    (Capture, "stats"): Statistics,
    (Capture, "root"): Step,
    (Step, "plan"): segment.Plan,
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
        (Window, list, "members"),
        (Trace, tuple, "chain"),
        (Several, tuple, "items"),
    )
    for name in names.split()
}
_OPERATORS: Final = (
    "add sub mul truediv pow floordiv mod and or xor lshift rshift radd rsub rmul rtruediv rpow rfloordiv rmod rand ror rxor "
    "rlshift rrshift eq ne lt le gt ge"
)


def _made() -> Native:
    hints = Hints()
    for cls in _SLOTTED:
        hints.slots[cls] = layout.offsets(cls)
    hints.slots[Tensor] = offsets = layout.offsets(Tensor)
    hints.empty[Tensor] = frozenset(offsets) - {"_array"}
    hints.alike[Tensor] = tuple(c for c in Tensor.__subclasses__() if offsets.keys().isdisjoint(vars(c)))
    hints.attributes.update(_ATTRIBUTES)
    hints.receivers.update({c: Run for c in (Follower, Calls, Updates, RunState, Effects, Gradients)})
    hints.locals[id(force)] = {"interpreter": None, "grad": True}
    likely = {"Calls.composite": {"a": Tensor}, "Calls._fits": {"a": Tensor}, "Follower.process": {"o": Tensor}}
    units = [
        Unit(f"{cls.__name__}.{name}", vars(cls)[name], cls, (), likely.get(f"{cls.__name__}.{name}", {}))
        for cls, names in _METHODS
        for name in names.split()
    ]
    units += [Unit(f.__name__, f, None, (), {"run": Run, "leaf": Step, "plan": segment.Plan}) for f in _FUNCTIONS]
    names = [f"__{n}__" for n in _OPERATORS.split()]
    operator = vars(Tensor)["__mul__"]
    free = operator.__code__.co_freevars
    units.append(Unit("operator", operator, None, free, {"run": Run, "self": Tensor, "other": Tensor}))
    closures = [
        Closure("operator", Tensor, n, tuple(c.cell_contents for c in f.__closure__))
        for n in names
        if (f := vars(Tensor)[n]).__code__ is operator.__code__
    ]
    return Native(units, hints, closures)


class _State:
    native: Native | None = None
    on = False
    paused = 0  #: by how many it is kept out of force
    wanted = False  #: whether it is put in force when they are done
    job: Job | None = None
    lock: Final = Lock()


#: calls of one compiled function after which native code is made
OFTEN: Final = 24


def switch(to: str) -> None:
    """Put native code in force ("on") or the Python functions ("off"). Raises RuntimeError where there can be no native code."""
    with _State.lock:
        if to == "off":
            if _State.on and _State.native is not None:
                _State.native.take_away()
                _State.on = False
            return
        reason = layout.usable()
        if reason:
            raise RuntimeError(f"capture can't be native here: {reason}")
        if _State.native is None:
            _State.native = _made()
        if _State.paused:
            _State.wanted = True
        elif not _State.on:
            _State.native.put()
            _State.on = True


def pause() -> Callable[[], None]:
    """Keep native code out of force, so that its functions can be listened to, until what is returned is called."""
    with _State.lock:
        _State.paused += 1
        on = _State.on
    if on:
        switch("off")
        _State.wanted = True

    def resume() -> None:
        with _State.lock:
            _State.paused -= 1
            again = _State.wanted and not _State.paused
            _State.wanted = _State.wanted and not again
        if again:
            switch("on")

    return resume


def begin() -> None:
    """A function is compiled."""
    if knobs.native == "1" and not _State.on:
        switch("on")


def warm() -> None:
    """A compiled function was called often."""
    if knobs.native == "auto" and _State.job is None and not layout.usable():
        _State.job = submit(lambda: switch("on"))


def wait() -> bool:
    """Wait until native code that is being made is in force; whether there is any."""
    if _State.job is not None:
        _State.job.wait()
    return _State.on
