"""What surrounds the tape's saved tensors: `saved_tensors_hooks`, `save_on_cpu`, `disable_saved_tensors_hooks`.

    with saved_tensors_hooks(pack, unpack):     pack(tensor) gives what is kept, unpack(kept) a tensor equal to the first
        loss = f(x)
    loss.backward()                             unpacks

In compiled functions the compiler chooses what is kept for backward. So hooks that are entered inside of one interrupt it, and what
runs inside of them runs eagerly, with compiled functions that are called there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flame.autograd import saving
from flame.autograd.tape import Node
from flame.autograd.watch import unwatch, watch
from flame.primitive import force
from flame.reasons import DISABLED
from flame.tensor import Tensor

__all__ = ["Node", "disable_saved_tensors_hooks", "increment_version", "save_on_cpu", "saved_tensors_hooks"]


class saved_tensors_hooks:
    """Have `pack_hook(tensor)` keep what operations inside save for backward, and `unpack_hook(kept)` give it back.

    pack_hook must not write to its tensor; unpack_hook gives a tensor of the same shape and dtype (else RuntimeError in backward).
    Regions nest: the innermost pair counts. Raises RuntimeError where `disable_saved_tensors_hooks` is in force.
    """

    def __init__(self, pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]) -> None:
        self.pack_hook = pack_hook
        self.unpack_hook = unpack_hook
        self._runs: list[Any] = []

    def __enter__(self) -> None:
        if saving.in_force.refused:
            raise RuntimeError(saving.in_force.refused[-1])
        run = force.interpreter
        if run is not None:
            run.leave(DISABLED, "what runs inside of saved_tensors_hooks")
            run, force.interpreter = force.interpreter, None
        self._runs.append(run)
        saving.in_force.hooks.append((self.pack_hook, self.unpack_hook))
        watch(saving.packing)

    def __exit__(self, *error: Any) -> None:
        unwatch(saving.packing)
        saving.in_force.hooks.pop()
        run = self._runs.pop()
        if run is not None:
            force.interpreter = run


class save_on_cpu(saved_tensors_hooks):
    """Keep what is saved for backward in the CPU's memory, and move it back when it is needed.

    pin_memory: copy it to memory from which a GPU reads quickly. device_type: the kind of device that it comes from.
    """

    def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
        def pack(t: Any) -> tuple:
            kept = t.to("cpu")
            return (t.device, kept.pin_memory() if pin_memory and t.device.type == device_type else kept)

        super().__init__(pack, lambda kept: kept[1].to(kept[0]))


@contextmanager
def disable_saved_tensors_hooks(error_message: str) -> Iterator[None]:
    """Refuse hooks inside, with this message (RuntimeError)."""
    saving.in_force.refused.append(error_message)
    try:
        yield
    finally:
        saving.in_force.refused.pop()


def increment_version(tensor: Any) -> None:
    """Count a write to a tensor's memory (or to that of several) that autograd did not see."""
    for t in (tensor,) if isinstance(tensor, Tensor) else tensor:
        t.storage_of().version += 1
