"""One memory for what the user holds and what the tape saved, after a path was run again.

A path that is left runs again op by op, and what is pending gets memory of its own (`flame.capture.replay`). The tape's nodes saved
what the operations made; eagerly that would have been the very memory that the user now holds, and NumPy may write it without a
word. `show_to_tape` gives the nodes that memory. `counterpart` finds a part of an array in another one that lies alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flame.capture.tape_model import op_steps
from flame.capture.trace import Step, Window
from flame.runtime.device_array import DeviceArray, share_memory
from flame.tensor import Tensor


def show_to_tape(run: Any, path: list[Step], filled: Sequence[Tensor], values: dict[int, Tensor], nodes: Sequence[Any]) -> None:
    """What `nodes` saved of memory that `filled` tensors and written outside tensors now show, they read there from now on.

    Memory is told by its storage: what was saved of a result before it was written somewhere is memory of its own.
    """
    shown: dict[int, list[tuple[Any, Any]]] = {}  #: by storage: (what the user holds, what it was copied from)

    def enter(now: Any, value: int) -> None:
        source = values[value]
        if now is not source._array and now.size:
            shown.setdefault(id(source.storage_of()), []).append((now, source._array))

    windows: dict[int, Window] = {id(w): w for w in run.written if w.external is not None}
    for t in filled:
        w = None if t._trace is None else t._trace.window
        if w is None:
            enter(t._array, t._ref.value)
        elif w.external is None:
            windows[id(w)] = w
    for w in windows.values():
        now = w.base if w.external is None else w.external._array
        enter(now, w.current)
        for part, value in written_parts(path, w, now) if w.mutations else ():
            enter(part, value)
    outside = {id(t) for t, _, _ in run.externals}
    for node in dict.fromkeys(nodes):
        for x, _, _ in node.versions:
            if id(x) not in outside:
                x._array = seen_in(shown.get(id(x._storage), ()), x._array)


def seen_in(shown: Iterable[tuple[Any, Any]], a: Any) -> Any:
    """What `a` is in other memory: `shown` are pairs (an array there, the array here that it stands for)."""
    for there, here in shown:
        if here.shape == there.shape and here.strides == there.strides and share_memory(here, a):
            return counterpart(a, here, there)
        if a is here:
            return there
    return a


def written_parts(path: list[Step], w: Window, whole: Any) -> list[tuple[Any, int]]:
    """(where it lies, the value written there) of the write that gave a window what it holds, if only a part was written."""
    write = next((s for s in reversed(path) if s.kind == "write" and s.operands[2].value == w.current), None)
    if write is None or type(whole) is DeviceArray:
        return []
    maker = {s.outs[0].value: s for s in op_steps(path) if len(s.outs) == 1}
    at, wanted, part = w.current, write.operands[1].value, whole
    while at != wanted:
        s = maker.get(at)
        if s is None or s.primitive is None or s.sized:
            return []
        p = s.params
        match s.primitive.name:
            case "slice_scatter":
                part = part[tuple(map(slice, p["starts"], p["stops"], p["steps"]))]
                at = s.operands[1].value
            case "permute":
                part = part.transpose(sorted(range(part.ndim), key=p["dims"].__getitem__))
                at = s.operands[0].value
            case "reshape" if part.flags.c_contiguous:
                part = part.reshape(s.operands[0].spec.shape)
                at = s.operands[0].value
            case _:
                return []
    return [(part, wanted)] if at != w.current else []


def counterpart(part: Any, whole: Any, other: Any) -> Any:
    """What lies in `other`, an array laid out like `whole`, where `part` lies in `whole`."""
    if type(other) is DeviceArray:
        return other.at(other.address + part.address - whole.address, part.shape, part.strides)
    here, there = whole.__array_interface__["data"][0], other.__array_interface__["data"][0]
    described = part.__array_interface__
    address = described["data"][0] - here + there
    seen = np.asarray(_Memory(other, {**described, "data": (address, True), "strides": part.strides}))
    return seen.view(part.dtype)  # (which the description names only for NumPy's own)


class _Memory:
    """Memory of an array, described."""

    def __init__(self, owner: np.ndarray, description: dict):
        self.owner = owner
        self.__array_interface__ = description
