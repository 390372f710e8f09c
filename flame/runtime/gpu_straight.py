"""Launches that make fresh arrays of arrays that lie as kernels read them: what every call of a small program comes to.

    straight = Straight(gpu, plan, inputs, results)
    words = straight.addresses(arrays)      None where an array has to be sent, copied or refused first
    made = straight.run(words)              the results, whose launches are on the current stream

`GpuExecutable` and operations that were made ready (`flame.runtime.gpu_eager`) go through it. The functions here, and those of the
allocator that they call, are among those that are translated to native code (`flame.capture.native`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flame.runtime.cuda_gpu import Memory
from flame.runtime.cuda_plan import LaunchPlan
from flame.runtime.device_array import LARGE, DeviceArray
from flame.runtime.gpu_copy import ALIGNMENT
from flame.runtime.lines import user_source

Kind = tuple[tuple[int, ...], np.dtype]


class Straight:
    """`inputs` and `results` are the arrays' shapes and dtypes; the plan's words are their addresses, in this order. `scratch`
    bytes are lent to the launches; `name` says what for, should memory run out."""

    __slots__ = ("gpu", "inputs", "name", "plan", "results", "scratch")

    def __init__(
        self, gpu: Any, plan: LaunchPlan, inputs: Iterable[Kind], results: Iterable[Kind], scratch: int = 0, name: str = ""
    ):
        self.gpu, self.plan, self.scratch, self.name = gpu, plan, scratch, name
        self.inputs = tuple([(shape, dtype) for shape, dtype in inputs])
        self.results = tuple([(shape, dtype, math.prod(shape) * dtype.itemsize or 1) for shape, dtype in results])

    def addresses(self, arrays: Sequence[Any]) -> list[int] | None:
        """Where the inputs lie, if they all lie as kernels read them."""
        inputs = self.inputs
        if len(arrays) != len(inputs):
            return None
        gpu = self.gpu
        words: list = []
        a: DeviceArray
        for a, kind in zip(arrays, inputs):
            if type(a) is not DeviceArray or not a.contiguous or a.gpu is not gpu or a.address % ALIGNMENT:
                return None
            if a.shape != kind[0] or (a.dtype is not kind[1] and a.dtype != kind[1]):
                return None
            words.append(a.address)
        return words

    def run(self, words: list[int]) -> list[DeviceArray]:
        """Fresh results; their addresses follow those of the inputs. Raises OutOfMemoryError; CudaError where a launch fails."""
        gpu = self.gpu
        queue = gpu.local.streams.get(gpu.index, 0)
        made: list = []
        given: list = words
        for shape, dtype, nbytes in self.results:
            memory: Memory = gpu.allocate(nbytes, user_source() if nbytes >= LARGE else "", queue)
            address = memory.address
            given.append(address)
            made.append(DeviceArray(gpu, memory, address, shape, dtype))
        scratch = self.scratch
        if scratch:
            lent: Memory = gpu.allocate(scratch, self._asker() if scratch >= LARGE else "", queue)
            gpu.put(self.plan, queue, lent.address, given)
        else:
            gpu.put(self.plan, queue, 0, given)
        return made

    def _asker(self) -> str:
        return f"{self.name} at {user_source()}"
