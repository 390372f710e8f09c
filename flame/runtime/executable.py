"""A program that can be called: arrays in, fresh arrays out.

    run = Executable(program)                       every distinct kernel is compiled once
    results = run(arrays)                           in the order of the program's inputs and outputs

    executable ::= stage*             stage ::= native (a plan: consecutive kernels, one native call)
                                              | call (a primitive's eager function on arrays)
                                              | interpreted (a kernel by its definition in NumPy)

A call makes its outputs, takes an arena for the temps and the kernels' scratch memory, and goes through the stages with one
list of arrays, inputs then outputs. Nothing is kept between calls but code and plans, so any number of threads may call at
once. A program that is one native stage costs one builtin call, with the interpreter lock let go unless it is short.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from flame.compiler.interpret import interpret
from flame.compiler.memory_peak import largest
from flame.compiler.program import Argument, CallStep, Decision, KernelStep, Program, Step
from flame.compiler.target_cpu import CpuTarget
from flame.errors import CompileError, Refused
from flame.primitive import Number, Spec
from flame.runtime import autotune, cpu, llvm_jit, memory, threads
from flame.runtime.cpu import PARALLEL_MICROSECONDS, NativeKernel
from flame.runtime.entry import NativeStep, Plan, entry
from flame.runtime.memory import ALIGNMENT, Block
from flame.runtime.recipe import CallUse, GuardUse, InterpretedUse, NativeUse, Place, Recipe, Use, View
from flame.runtime.routines import NativeRoutine, routine
from flame.runtime.scarcity import refused_program, unmet

Backend = Literal["llvm", "interpret"]
BACKENDS: tuple[Backend, ...] = ("llvm", "interpret")
Arrays = list[np.ndarray]
Stage = Callable[[Arrays, Block], None]


class Executable:
    """`program`, ready to run on this machine's CPU.

    `backend` "llvm" compiles kernels, "interpret" evaluates them in NumPy and needs nothing installed. `library` says whether
    kernel steps that a library may run instead are run so, `tune` whether schedules are measured. `decisions` are what was
    decided here and why; `kernels` the compiled kernels, by step; `recipe` says it all as data, from which `Executable.of` makes
    the same again, in another process as well. Raises CompileError, naming the kernel and the user's line, where one cannot be
    compiled.
    """

    __slots__ = (
        "_address", "_answer", "_arena_bytes", "_enter", "_inputs", "_makers", "_only", "_parallel", "_refuse", "_results",
        "_simple", "__dict__", "__weakref__",
    )  # fmt: skip

    def __init__(
        self,
        program: Program,
        *,
        backend: Backend = "llvm",
        library: bool = True,
        target: CpuTarget | None = None,
        tune: bool = False,
    ):
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r}: expected one of {', '.join(BACKENDS)}")
        if backend == "llvm":
            llvm_jit.require()
        writer = _Writer(program, backend, library, target, tune)
        self._set_up(writer.recipe(), backend, writer.kernels)

    @classmethod
    def of(cls, recipe: Recipe) -> Executable | None:
        """The executable of a recipe whose kernels were compiled before; None where the disk has lost one of them."""
        llvm_jit.require()
        if not all(cpu.recall(k) for k in recipe.kernels):
            return None
        made = cls.__new__(cls)
        made._set_up(recipe, "llvm", {})
        return made

    def _set_up(self, recipe: Recipe, backend: Backend, kernels: dict[int, NativeKernel]) -> None:
        self.recipe = recipe
        self.name = recipe.name
        self.backend = backend
        self.decisions: list[Decision] = list(recipe.decisions)
        self.kernels = kernels
        self._inputs = recipe.inputs
        arrays = [*recipe.inputs, *recipe.owned]
        self._refuse = partial(refused_program, recipe)  # (of the recipe: a reference to self would be a circle)
        self._makers = [memory.shared.maker(s.shape, s.dtype.numpy, self._refuse) for s in recipe.owned]
        self._results = recipe.results
        self._updated = recipe.updated
        n = len(recipe.inputs)
        self._simple = recipe.results == tuple((n + i, False) for i in range(len(recipe.owned)))
        #: whether no two results are one array
        self.distinct = len({k for k, _ in recipe.results}) == len(recipe.results)
        self._arena_bytes = recipe.arena_bytes

        self._stages: list[Stage] = []
        self._stops: dict[int, list[int]] = {}  #: a stage -> arrays after it, none of which may be true for the next to run
        plans: list[Plan] = []
        pending: list[NativeStep] = []

        def finish_native() -> None:
            if pending:
                plans.append(Plan(arrays, pending))
                self._stages.append(self.native_stage(plans[-1]))
                pending.clear()

        for use in recipe.uses:
            match use:
                case NativeUse():
                    function = cpu.recall(use.kernel)[use.phase].function
                    pending.append(NativeStep(function, use.places, use.chunks, use.parallel, use.symbols, use.microseconds))
                case GuardUse():
                    pending.append(NativeStep(0, (use.at,), 1, microseconds=0.01))
                    self._stops.setdefault(len(self._stages), []).append(use.at)
                case CallUse():
                    finish_native()
                    self._stages.append(self.call_stage(use))
                case InterpretedUse():
                    finish_native()
                    self._stages.append(interpreted_stage(use))
        finish_native()
        self._parallel = any(p.parallel for p in plans)
        self._enter = entry().enter if plans else None
        self._plans = plans
        #: the one plan of a program that is a single native stage
        self._only = plans[0] if len(self._stages) == len(plans) == 1 and self._enter is not None else None
        #: the builtin that makes the results too, where that is worth it (large ones are made of memory that is used again)
        small = all(s.numel * s.dtype.numpy.itemsize < memory.SMALL for s in recipe.owned)
        self._answer = entry().answer if self._only is not None and small else None
        self._address = 0 if self._only is None else self._only.address

    @property
    def native(self) -> tuple[Callable[..., Any], int, list[Callable[[], np.ndarray]], int, Callable, bool] | None:
        """What a call does where the program is one native stage whose results are arrays of their own: the builtin that checks the
        arrays and runs it, its plan, the makers of results, the arena's bytes, what to raise for them, and whether it wants the
        pool. None where a call does more."""
        if self._only is None or not self._simple or self._enter is None:
            return None
        return self._enter, self._only.address, self._makers, self._arena_bytes, self._refuse, self._parallel

    @property
    def runs(self) -> tuple[str, ...]:
        """By what each step of the program is run."""
        return self.recipe.runs

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run it. Inputs that are not contiguous or not aligned are copied; results share memory with nothing else, but
        results that are one value are one array, and one that the program writes over an input is that input's array.

        Raises TypeError or RuntimeError where an input is not what the program was compiled for, OutOfMemoryError (with the
        program's largest arrays) where there is no room.
        """
        if len(arrays) != len(self._inputs):
            raise self._other_count(len(arrays))
        if self._parallel and threads.shared.wanting:
            threads.shared.start()
        answer: Any = self._answer
        if answer is not None and type(arrays) is list:
            size = self._arena_bytes
            if size:
                arena: Block = memory.shared.take_arena(size, self._refuse)  # (where the call raises, it is freed)
                made = answer(self._address, arena.address, arrays)
                memory.shared.give_arena(arena)
            else:
                made = answer(self._address, 0, arrays)
            if type(made) is list:
                return made if self._simple else self._ordered([*arrays, *made])
        outputs = [make() for make in self._makers]
        if self._only is None:
            all_arrays = self._run([*arrays, *outputs])
        else:
            size = self._arena_bytes
            block = memory.shared.take_arena(size, self._refuse) if size else None
            wrong = self._enter(self._only.address, 0 if block is None else block.address, *arrays, *outputs)  # type: ignore[misc]
            if block is not None:
                memory.shared.give_arena(block)
            if wrong is None and self._simple:
                return outputs
            all_arrays = [*arrays, *outputs] if wrong is None else self._run([*arrays, *outputs])
        return self._ordered(all_arrays)

    def _ordered(self, arrays: Arrays) -> Arrays:
        """The results, of all arrays of a call."""
        return [arrays[i].copy() if given else arrays[i] for i, given in self._results]

    def _other_count(self, n: int) -> TypeError:
        return TypeError(f"{self.name} takes {len(self._inputs)} arrays, got {n}")

    def __repr__(self) -> str:
        return f"Executable({self.name}, {len(self._stages)} stages on {self.backend!r})"

    def _run(self, arrays: Arrays) -> Arrays:
        """All stages, on arrays that may need to be made fit first."""
        given = arrays[: len(self._inputs)]
        block: Block | None = None
        try:
            for i, spec in enumerate(self._inputs):
                arrays[i] = fitted(arrays[i], spec, f"{self.name}: input {i}")
            block = memory.shared.take_arena(max(self._arena_bytes, 1), self._refuse)
            for i, stage in enumerate(self._stages):
                stage(arrays, block)
                if any(arrays[s].any() for s in self._stops.get(i, ())):
                    break
        except MemoryError as error:  # of a copied input, or inside of an eager function
            raise self._refuse(unmet(error)) from None
        finally:
            if block is not None:
                memory.shared.give_arena(block)
        for i in self._updated:
            if arrays[i] is not given[i]:
                np.copyto(given[i], arrays[i])
                arrays[i] = given[i]
        return arrays

    # ---- stages

    def native_stage(self, plan: Plan) -> Stage:
        code = entry()

        def run(arrays: Arrays, block: Block) -> None:
            if code.enter is not None:
                wrong = code.enter(plan.address, block.address, *arrays)
                assert wrong is None, f"{self.name}: array {wrong} does not fit its plan"
            else:
                pointers = (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
                code.run(plan.address, block.address, ctypes.addressof(pointers))

        return run

    def call_stage(self, use: CallUse) -> Stage:
        primitive, params, specs = use.primitive, use.params, use.specs
        operands = [_operand(a) for a in use.arguments]
        results = [None if r is None else _reader(r) for r in use.results]
        blas = primitive.name == "matmul" and not params and specs[0].dtype.name in ("float32", "float64")

        def run(arrays: Arrays, block: Block) -> None:
            given = [read(arrays, block) for read in operands]
            try:
                if blas and results[0] is not None:
                    np.matmul(given[0], given[1], out=results[0](arrays, block))
                    return
                with np.errstate(all="ignore"):
                    made = primitive.eager(*given, **params)
            except Exception as error:
                error.add_note(f"in {self.name}: {use.told}" + (f"  # {use.source}" if use.source else ""))
                raise
            for spec, result, array in zip(specs, results, made if isinstance(made, tuple) else (made,)):
                array = np.asarray(array)
                if array.shape != spec.shape or array.dtype != spec.dtype.numpy:
                    made_instead = f"{array.dtype}{list(array.shape)}"
                    raise CompileError(f"{primitive.name}: its shape rule gives {spec}, its eager function {made_instead}")
                if result is not None:
                    np.copyto(result(arrays, block), array, casting="no")

        return run


def _reader(p: Place) -> Callable[[Arrays, Block], np.ndarray]:
    """How a stage finds an array."""
    at = p.at
    if at >= 0:
        return lambda arrays, block: arrays[at]
    shape, dtype = p.spec.shape, p.spec.dtype.numpy
    return lambda arrays, block: np.ndarray(shape, dtype, block.bytes, -1 - at)


def _operand(argument: View | Number) -> Callable[[Arrays, Block], Any]:
    if not isinstance(argument, View):
        return lambda arrays, block: argument
    read = _reader(argument.place)
    if not argument.views:
        return read

    def viewed(arrays: Arrays, block: Block) -> np.ndarray:
        array = read(arrays, block)
        for primitive, params in argument.views:
            array = primitive.eager(array, **params)
        return array

    return viewed


def interpreted_stage(use: InterpretedUse) -> Stage:
    readers = {b: _reader(p) for b, p in use.places.items()}

    def run(arrays: Arrays, block: Block) -> None:
        use.run({b: read(arrays, block) for b, read in readers.items()})

    return run


class _Writer:
    """Writes the recipe of a program, and compiles its kernels on the way."""

    def __init__(self, program: Program, backend: Backend, library: bool, target: CpuTarget | None, tune: bool):
        self.program, self.backend, self.library, self.target, self.tune = program, backend, library, target, tune
        self.kernels: dict[int, NativeKernel] = {}
        slots = program.slots
        owned = [s for s in program.output_slots if slots[s].kind == "output"]
        self.owned = tuple(slots[s].spec for s in owned)
        #: slot -> its place among the call's arrays, for slots that are not temps
        self.number = {s: i for i, s in reversed([*enumerate([*program.inputs, *owned])])}
        self._routines: dict[int, NativeRoutine | None] = {}  #: by the identity of the step
        self._decisions: list[Decision] = []
        self._runs: list[str] = []
        self._scratch = -(-program.arena_bytes // ALIGNMENT) * ALIGNMENT
        self._arena_bytes = self._scratch

    def recipe(self) -> Recipe:
        program = self.program
        uses: list[Use] = []
        if self.backend == "llvm":
            steps = (s for s in program.steps if isinstance(s, KernelStep) and (s.library is None or not self.library))
            found = (self._routines.setdefault(id(s), self._find(s)) for s in program.steps if isinstance(s, CallStep))
            cpu.prepare((s.kernel for s in steps), self.target, ((r.called, r.source) for r in found if r is not None))
        for i, step in enumerate(program.steps):
            uses += self._uses(i, step)
            uses += [GuardUse(self.number[s]) for s in step.writes if s in program.guards]
        n = len(program.inputs)
        return Recipe(
            program.name,
            tuple(program.slots[s].spec for s in program.inputs),
            self.owned,
            tuple((self.number[s], self.number[s] < n and s not in program.updated) for s in program.outputs),
            tuple(self.number[s] for s in program.updated),
            self._arena_bytes,
            tuple(uses),
            tuple(self._runs),
            tuple(self._decisions),
            self._largest(),
        )

    def _largest(self) -> tuple[tuple[int, str], ...]:
        """What weighs most: arrays, and what kernels use beside them."""
        found = list(largest(self.program))
        scratch = self._arena_bytes - self._scratch
        if scratch:
            found.append((scratch, "scratch memory of kernels"))
        return tuple(sorted(found, key=lambda x: -x[0]))

    def _uses(self, index: int, step: Step) -> list[Use]:
        if isinstance(step, CallStep):
            native = self._routine(step)
            self._runs.append("native" if native else "call")
            return native or [self._call(step)]
        if step.library is not None and self.library:
            self._decide("library", step, "a large contraction on plain operands is run by NumPy's BLAS")
            self._runs.append("library")
            return [self._call(step.library)]
        if self.backend == "interpret":
            self._runs.append("interpreted")
            return [self._interpreted(step)]
        try:
            schedule = autotune.tuned(step.kernel, step.symbols) if self.tune else None
            kernel = self.kernels[index] = cpu.load(step.kernel, self.target, schedule)
        except Refused as reason:
            self._decide("interpreted", step, f"it was refused by the native backend: {reason}")
            self._runs.append("interpreted")
            return [self._interpreted(step)]
        except CompileError as error:
            raise CompileError(f"{error} (from {', '.join(step.notes) or 'no known line'})") from error
        self._runs.append("native")
        return self._native(step, kernel)

    def _decide(self, verdict: str, step: KernelStep, reason: str) -> None:
        self._decisions.append(Decision(verdict, step.kernel.name, reason))

    def _native(self, step: KernelStep, kernel: NativeKernel) -> list[Use]:
        """A kernel's phases. The values of its symbols stand in its own order, under its own (not the canonical) names."""
        values = tuple(step.symbols[name] for name in step.kernel.symbols)
        if any(v < least for v, least in zip(values, step.kernel.symbols.values())):
            raise CompileError(f"kernel {step.kernel.name} was made for {step.kernel.symbols} and more, not for {step.symbols}")
        plain = dict(zip(kernel.kernel.symbols, values))
        places = [self._place(step.buffers[b]).at for b in step.kernel.buffers]
        workspace = kernel.workspace(plain)
        if workspace:
            places.append(-1 - self._scratch)
            self._arena_bytes = max(self._arena_bytes, self._scratch + workspace)
        found: list[Use] = []
        known = kernel.kernel.sizes_known
        for i, phase in enumerate(kernel.phases):
            chunks = phase.count(plain)
            # With symbolic sizes the estimate is that of the least: the number of chunks says more.
            parallel = chunks > 1 and (not known or phase.microseconds >= PARALLEL_MICROSECONDS)
            estimate = phase.microseconds if known else 0.0
            found.append(NativeUse(kernel.stored, i, tuple(places), chunks, parallel, values, estimate))
        return found

    def _find(self, step: CallStep) -> NativeRoutine | None:
        """The routine that a call is run by, if there is one."""
        slots = [a.slot for a in step.arguments if isinstance(a, Argument) and not a.views]
        if len(slots) < len(step.arguments):
            return None
        specs = [self.program.slots[s].spec for s in slots]
        return routine(step.node.primitive, specs, step.node.params, self.target or cpu.host())

    def _routine(self, step: CallStep) -> list[Use]:
        """A call as a native routine, where there is one; results that nobody reads are written to scratch memory."""
        found = self._routines.get(id(step))
        if found is None:
            return []
        stored = cpu.load_routine(found.source, found.called, self.target or cpu.host())
        slots = [a.slot for a in step.arguments if isinstance(a, Argument)]
        end = self._scratch + -(-found.workspace // ALIGNMENT) * ALIGNMENT
        places = [self._place(s).at for s in slots]
        for s, v in zip(step.outputs, step.node.outputs, strict=True):
            places.append(-1 - end if s < 0 else self._place(s).at)
            end += -(-v.spec.nbytes // ALIGNMENT) * ALIGNMENT if s < 0 else 0
        places.append(-1 - self._scratch)
        self._arena_bytes = max(self._arena_bytes, end)
        parallel = found.chunks > 1 and found.microseconds >= PARALLEL_MICROSECONDS
        return [NativeUse(stored, 0, tuple(places), found.chunks, parallel, found.symbols, found.microseconds)]

    def _place(self, slot: int) -> Place:
        s = self.program.slots[slot]
        return Place(-1 - s.offset if s.kind == "temp" else self.number[slot], s.spec)

    def _interpreted(self, step: KernelStep) -> Use:
        places = {b: self._place(s) for b, s in step.buffers.items()}
        return InterpretedUse(lambda arrays: interpret(step.kernel, arrays, step.symbols), places)

    def _call(self, step: CallStep) -> Use:
        return CallUse(
            step.node.primitive,
            step.node.params,
            tuple(View(self._place(a.slot), a.views) if isinstance(a, Argument) else a for a in step.arguments),
            tuple(None if s < 0 else self._place(s) for s in step.outputs),
            tuple(v.spec for v in step.node.outputs),
            str(step),
            step.node.source,
        )


def fitted(array: Any, spec: Spec, what: str) -> np.ndarray:
    """`array` as kernels read it: a plain ndarray, contiguous and aligned; copied only where it is not.

    Raises TypeError where it is no array, RuntimeError where it is not of `spec`.
    """
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"{what} must be an array, not {type(array).__name__}")
    if array.shape != spec.shape or array.dtype != spec.dtype.numpy:
        raise RuntimeError(f"{what} must be {spec}, got {array.dtype}[{', '.join(map(str, array.shape))}]")
    plain = np.asarray(array)
    if not (plain.flags.c_contiguous and plain.flags.aligned):
        plain = np.array(plain, order="C", copy=True)
    # An equal dtype may be another object (one that was unpickled); plans know dtypes by address.
    return plain if plain.dtype is spec.dtype.numpy else plain.view(spec.dtype.numpy)
