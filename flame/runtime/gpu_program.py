"""A program that runs on a GPU: device arrays in, fresh device arrays out.

    run = GpuExecutable(program, gpu)               every distinct kernel is compiled once
    results = run(arrays)                           in the order of the program's inputs and outputs

    executable ::= stage*             stage ::= launches (consecutive kernels, by one call)
                                              | routine (a primitive that several kernels compute)
                                              | detour (a primitive that has no kernel, by its meaning on the host; told of once)

Launches go to the current stream of the thread and are not waited for; a detour waits for what it reads. Inputs may be
NumPy arrays, which are sent along: numbers of this run, all together, and what was made for no device in particular. Nothing is
kept between calls but code, so any number of threads may call at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np

from flame.compiler.gpu_routine import Array, GpuRoutine
from flame.compiler.gpu_routines import gpu_routine
from flame.compiler.graph import Value
from flame.compiler.program import Argument, CallStep, Decision, KernelStep, Program, Slot
from flame.compiler.target import Target
from flame.compiler.to_triton import TritonSource
from flame.errors import CompileError, HostDetourWarning, Refused
from flame.knobs import knobs
from flame.primitive import Number, Primitive, Spec
from flame.runtime import gpu_autotune, gpu_kernels
from flame.runtime.cuda_plan import ARENA, CONSTANT, FIRST, LaunchPlan, LaunchStep
from flame.runtime.device_array import LARGE, DeviceArray, empty, to_device
from flame.runtime.gpu_copy import contiguous, duplicate, host, overwrite, scalars, view
from flame.runtime.gpu_straight import Straight
from flame.runtime.lines import user_source

Arrays = list[Any]

#: bytes at whose multiples scratch arrays begin
_APART: Final = 256

_told: set[Primitive] = set()


class GpuExecutable:
    """`program`, ready to run on `gpu`. `runs` says of each step how it runs ("triton" or "host"), `decisions` why. With `graphs`
    launches become graphs of the driver where that pays; with `tune` schedules are measured.

    Raises CompileError, naming the kernel and the user's line, where one cannot be compiled.
    """

    def __init__(self, program: Program, gpu: Any, graphs: bool = False, tune: bool = False):
        self.name = program.name
        self.gpu = gpu
        self._graphs, self._tune = graphs, tune
        self.program = program
        self.decisions: list[Decision] = []
        self.runs: list[str] = []
        slots = program.slots
        self._inputs = [slots[s].spec for s in program.inputs]
        #: of each result
        self.results = [slots[s].spec for s in program.outputs]
        self._owned = [s for s in program.output_slots if slots[s].kind == "output"]
        #: slot -> its place among the call's arrays, for slots that are not temps
        self._number = {s: i for i, s in reversed([*enumerate([*program.inputs, *self._owned])])}
        n = len(program.inputs)
        self._results = [(self._number[s], self._number[s] < n and s not in program.updated) for s in program.outputs]
        self._updated = [self._number[s] for s in program.updated]
        #: whether no two results are one array
        self.distinct = len({k for k, _ in self._results}) == len(self._results)
        self._arena_bytes = program.arena_bytes
        #: behind the arrays of the arena: what kernels are lent, one after the other
        self._lent_at = -(-program.arena_bytes // _APART) * _APART
        self._plans: list[LaunchPlan] = []
        self._stages = self._compiled(program)
        #: the launches of a program that is nothing else
        self._straight: Straight | None = None
        if len(self._stages) == len(self._plans) == 1:
            kinds = [[(s.shape, s.dtype.numpy) for s in specs] for specs in (self._inputs, map(self._spec, self._owned))]
            self._straight = Straight(gpu, self._plans[0], kinds[0], kinds[1], self._arena_bytes, self.name)
        #: whether results are what is fresh, in order
        self._in_order = self._results == [(n + i, False) for i in range(len(self._owned))]
        #: the launches of a program that makes of its inputs fresh results in their order, and needs nothing else for that
        self.plan: LaunchPlan | None = None
        if self._straight is not None and self._in_order and not (self._updated or self._arena_bytes or graphs):
            self.plan = self._plans[0]

    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        """Run it. Inputs that are not contiguous are copied; results share memory with nothing else, but results that are one
        value are one array, and one that the program writes over an input is that input's array.

        Raises TypeError or RuntimeError where an input is not what the program was compiled for.
        """
        straight: Straight | None = self._straight
        if straight is not None:
            words = straight.addresses(arrays)
            if words is not None:
                made = straight.run(words)
                if self._in_order:
                    return made
                return self._chosen([*arrays, *made])
        return self._step_by_step(arrays)

    def _chosen(self, held: Arrays) -> Arrays:
        """The results, among inputs and what was made of them."""
        return [duplicate(held[i]) if copied else held[i] for i, copied in self._results]

    def _step_by_step(self, arrays: Sequence[Any]) -> Arrays:
        """A stage after the other, on arrays that may have to be made fit first."""
        if len(arrays) != len(self._inputs):
            raise TypeError(f"{self.name} takes {len(self._inputs)} arrays, got {len(arrays)}")
        gpu = self.gpu
        given = self._fitted(arrays)
        held: Arrays = [*given, *[empty(gpu, s.shape, s.dtype.numpy) for s in map(self._spec, self._owned)]]
        size = self._arena_bytes
        arena = gpu.allocate(size, f"{self.name} at {user_source()}" if size >= LARGE else "") if size else None
        for stage in self._stages:
            stage(held, arena)
        for i in self._updated:
            if held[i] is not arrays[i] and isinstance(arrays[i], DeviceArray):
                overwrite(arrays[i], held[i])
                held[i] = arrays[i]
        return self._chosen(held)

    def __repr__(self) -> str:
        return f"GpuExecutable({self.name}, {len(self._stages)} stages on {self.gpu.device})"

    def _spec(self, slot: int) -> Spec:
        return self.program.slots[slot].spec

    # ---- inputs

    def _fitted(self, arrays: Sequence[Any]) -> Arrays:
        """The inputs as kernels read them."""
        out: Arrays = []
        numbers: list[tuple[int, np.ndarray]] = []
        for i, (a, spec) in enumerate(zip(arrays, self._inputs, strict=True)):
            if a.shape != spec.shape or a.dtype != spec.dtype.numpy:
                raise RuntimeError(f"{self.name}: input {i} must be {spec}, got {a.dtype}{list(a.shape)}")
            if type(a) is DeviceArray:
                if a.gpu is not self.gpu:
                    raise RuntimeError(
                        f"{self.name}: input {i} is on {a.device}, the program was compiled for {self.gpu.device}"
                    )
                out.append(contiguous(a))
            elif a.ndim == 0:
                numbers.append((i, a))
                out.append(None)
            else:
                out.append(to_device(self.gpu, a))
        if numbers:
            for (i, _), a in zip(numbers, scalars(self.gpu, [a for _, a in numbers]), strict=True):
                out[i] = a
        return out

    # ---- stages

    def _compiled(self, program: Program) -> list[Callable[[Arrays, Any], None]]:
        target = self.gpu.target
        stages: list[Callable[[Arrays, Any], None]] = []
        launches: list[LaunchStep] = []

        def finish_launches() -> None:
            if launches:
                stages.append(self._launches(launches))
                launches.clear()

        steps = [s for s in program.steps if isinstance(s, KernelStep)]
        with suppress(Refused):  # (which is told of where the step's turn comes)
            if not self._tune:
                self.gpu.prepare([self._source(s, target, {n: s.symbols[n] for n in s.kernel.symbols}) for s in steps])
        for step in program.steps:
            if isinstance(step, KernelStep):
                launch = self._launch(step, target)
                if isinstance(launch, gpu_autotune.ByLibrary):
                    finish_launches()
                    stages.append(self._by_library(step, launch))
                    self.runs.append("cuBLASLt")
                    continue
                if launch is not None:
                    launches.append(launch)
                self.runs.append("triton")
            else:
                try:
                    routine = gpu_routine(step.node.primitive, _specs(step), step.node.params, target, knobs.deterministic)
                except Refused as reason:
                    finish_launches()
                    stages.append(self._detour(step))
                    self.runs.append("host")
                    told = f"{reason}: its operands are copied to the host and back"
                    self.decisions.append(Decision("host", str(step.node.outputs[0]), told))
                else:
                    finish_launches()
                    stages.append(self._routine(step, routine))
                    self.runs.append("triton")
        finish_launches()
        return stages

    def _source(self, step: KernelStep, target: Target, symbols: dict[str, int]) -> TritonSource:
        """A kernel's source under the schedule that is chosen for these sizes. Raises Refused."""
        return gpu_kernels.source_of(step.kernel, target, symbols)

    def _by_library(self, step: KernelStep, product: gpu_autotune.ByLibrary) -> Callable[[Arrays, Any], None]:
        """A kernel that a library computes."""
        finds = {b: self._array(slot) for b, slot in step.buffers.items()}
        note = ", ".join((str(product), *step.notes))

        def run(arrays: Arrays, arena: Any) -> None:
            self.gpu.recent.append(note)
            product.launch(None, {b: find(arrays, arena).address for b, find in finds.items()})

        return run

    def _launch(self, step: KernelStep, target: Target) -> LaunchStep | gpu_autotune.ByLibrary | None:
        """A kernel's launch, by what was measured to be fastest where that is asked for; None where there are no elements."""
        symbols = {name: step.symbols[name] for name in step.kernel.symbols}
        where = f" (from {', '.join(step.notes)})" if step.notes else ""
        try:
            if self._tune:
                chosen = gpu_autotune.tuned(self.gpu, step.kernel, symbols)
                if isinstance(chosen, gpu_autotune.ByLibrary):
                    return chosen
                source = chosen
            else:
                source = self._source(step, target, symbols)
        except Refused as reason:
            raise CompileError(f"kernel {step.kernel.name} has no form in Triton: {reason}{where}") from reason
        if not source.fits(symbols):
            raise CompileError(
                f"kernel {step.kernel.name}: its sizes need 64-bit positions, for which it was not scheduled{where}"
            )
        grid = source.grid(symbols)
        if 0 in grid:
            return None
        note = ", ".join((source.entry, *step.notes))
        try:
            function = self.gpu.compile(source, note)
        except CompileError as error:
            raise CompileError(f"{error}{where}") from error
        places = [self._place(step.buffers[b]) for b in step.kernel.buffers]
        words = [(FIRST + at, 0) if at >= 0 else (ARENA, -1 - at) for at in places]
        lent = None
        if function.scratch:
            lent = (ARENA, self._lent_at)
            self._arena_bytes = max(self._arena_bytes, self._lent_at + math.prod(grid) * function.scratch)
        return function.step(grid, [*words, *((CONSTANT, v) for v in symbols.values())], note, lent)

    def _routine(self, step: CallStep, routine: GpuRoutine) -> Callable[[Arrays, Any], None]:
        """A primitive that several kernels compute, whose operands may be views of slots."""
        gpu = self.gpu
        note = f"{step.node.primitive.name} {step.node.source}".strip()
        finds = [(self._array(a.slot), a.views) for a in step.arguments if isinstance(a, Argument)]
        which = [i for i, a in enumerate(step.arguments) if isinstance(a, Argument)]
        numbers = {i: n for n, i in enumerate(which)}  # operand -> its number among those that are arrays
        specs = [v.spec for v in step.node.outputs]
        results = [None if s < 0 else self._array(s) for s in step.outputs]
        offsets, size = _laid_out(routine.scratch)

        def place(a: Array) -> tuple[int, int]:
            if a.kind == "scratch":
                return ARENA, offsets[a.index]
            return FIRST + (numbers[a.index] if a.kind == "operand" else len(finds) + a.index), 0

        steps = []
        for launch in routine.launches:
            grid = launch.source.grid(launch.symbols)
            if 0 in grid:
                continue
            function = gpu.compile(launch.source, f"{launch.source.entry}, {note}")
            words = [
                place(launch.arrays[p.buffer]) if p.buffer else (CONSTANT, launch.symbols[p.symbol])
                for p in function.parameters
            ]
            steps.append(function.step(grid, words, f"{launch.source.entry}, {note}"))
        plan = gpu.plan(tuple(steps), len(finds) + len(results), self._graphs) if steps else None

        def run(arrays: Arrays, arena: Any) -> None:
            given = []
            for find, views in finds:
                x: Any = find(arrays, arena)
                for p, settings in views:
                    x = view(p, x, settings) or view(p, duplicate(x), settings)
                given.append(contiguous(x))
            made = [
                empty(gpu, s.shape, s.dtype.numpy) if f is None else f(arrays, arena)
                for f, s in zip(results, specs, strict=True)
            ]
            scratch = gpu.allocate(size) if size else None
            if plan is not None:
                gpu.run(plan, 0 if scratch is None else scratch.address, *[a.address for a in (*given, *made)])

        return run

    def _launches(self, launches: list[LaunchStep]) -> Callable[[Arrays, Any], None]:
        """Consecutive kernels, by one call."""
        gpu = self.gpu
        plan = gpu.plan(tuple(launches), len(self._inputs) + len(self._owned), self._graphs)
        self._plans.append(plan)

        def run(arrays: Arrays, arena: Any) -> None:
            gpu.run(plan, 0 if arena is None else arena.address, *[a.address for a in arrays])

        return run

    def _place(self, slot: int) -> int:
        """n >= 0: the call's array n. n < 0: -1 - n bytes into the arena."""
        s = self.program.slots[slot]
        return -1 - s.offset if s.kind == "temp" else self._number[slot]

    def _array(self, slot: int) -> Callable[[Arrays, Any], DeviceArray]:
        """How a stage finds the array of a slot."""
        at, s = self._place(slot), self.program.slots[slot]
        if at >= 0:
            return lambda arrays, arena: arrays[at]
        return lambda arrays, arena: in_arena(self.gpu, arena, -1 - at, s)

    def _detour(self, step: CallStep) -> Callable[[Arrays, Any], None]:
        p, params = step.node.primitive, step.node.params
        finds = [(self._array(a.slot), a.views) if isinstance(a, Argument) else a for a in step.arguments]
        results = [None if s < 0 else self._array(s) for s in step.outputs]

        def run(arrays: Arrays, arena: Any) -> None:
            tell_of_detour(p, self.gpu)
            operands: list[Any] = []
            for f in finds:
                if not isinstance(f, tuple):
                    operands.append(f)
                    continue
                a = host(f[0](arrays, arena))
                for v, settings in f[1]:
                    a = v.eager(a, **settings)
                operands.append(a)
            try:
                with np.errstate(all="ignore"):
                    made = p.eager(*operands, **params)
            except Exception as error:
                error.add_note(f"in {self.name}: {step}" + (f"  # {step.node.source}" if step.node.source else ""))
                raise
            for result, a in zip(results, made if isinstance(made, tuple) else (made,), strict=True):
                if result is not None and a.size:
                    self.gpu.copy_in(result(arrays, arena).address, np.ascontiguousarray(a))

        return run


def _specs(step: CallStep) -> list[Spec | Number]:
    """What a call's primitive is given."""
    return [x.spec if isinstance(x, Value) else x for x in step.node.operands]


def _laid_out(specs: Sequence[Spec]) -> tuple[list[int], int]:
    """Where arrays lie that lie one after the other, and how many bytes they take."""
    offsets, size = [], 0
    for s in specs:
        offsets.append(size)
        size += -(-s.nbytes // _APART) * _APART
    return offsets, size


def tell_of_detour(p: Primitive, gpu: Any) -> None:
    """Warn, once for each primitive, that it is computed on the host."""
    if p not in _told:
        _told.add(p)
        warnings.warn(
            f"{p.name} has no kernel for a GPU: its operands are copied from {gpu.device} to the host, and its result back. Move "
            "the tensors to the CPU yourself to see where that happens.",
            HostDetourWarning,
            stacklevel=2,
        )


def in_arena(gpu: Any, arena: Any, offset: int, slot: Slot) -> DeviceArray:
    return DeviceArray(gpu, arena, arena.address + offset, slot.spec.shape, slot.spec.dtype.numpy)
