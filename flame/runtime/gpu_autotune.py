"""Schedules by measurement on a GPU, for `mode="max-autotune"`: a kernel's candidates run on the device, the best is kept on disk.

    tuned(gpu, kernel, symbols) -> TritonSource, or ByLibrary where NVIDIA's library computes it faster

The candidates are data (`flame.compiler.schedule_candidates`), the heuristics' own choice first, which stays unless another saves
more than `GAIN`. They are compiled side by side; what Triton refuses, and what does not fit the device, is no candidate. Each is
timed between two events, several launches together, in rounds; the least of all rounds counts. Where a kernel is a product that
`flame.runtime.cublas` has words for, and the library is installed, what it suggests are candidates too.

What was chosen is an entry of the cache, by the kernel, its sizes, the device, and the versions of Triton, the library and flame:
it is measured once.

Arrays are filled with a small number: zeros would run faster than what is multiplied in earnest, and positions must be in range.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from flame.compiler.index_math import evaluate
from flame.compiler.kernel import Kernel, digest, numel
from flame.compiler.library_product import product_of
from flame.compiler.schedule import GpuSchedule
from flame.compiler.schedule_candidates import candidates
from flame.compiler.to_triton import TritonSource, to_triton
from flame.errors import CompileError, CudaError, MissingTargetError, OutOfMemoryError, Refused
from flame.knobs import knobs
from flame.runtime import cache, cpu
from flame.runtime.cublas import Algorithm, Multiplication
from flame.runtime.triton_tools import load_triton

GAIN: Final = 0.03  #: of time, that a candidate must save to be taken
ROUNDS: Final = 3  #: of all candidates in turn, and then as many of the best beside the first
MILLISECONDS: Final = 1.0  #: for each candidate in a round, or two launches
MOST_LAUNCHES: Final = 50  #: of a candidate in a round
MOST_BYTES: Final = 8 << 30  #: of a kernel's arrays; larger ones keep what the heuristics say
#: a byte that makes a small number of every kind of float
_BYTE: Final = 0x3C

Choice = GpuSchedule | Algorithm

#: what the last measurements gave, by the kernel's name: (choice, microseconds) of each candidate
measured: dict[str, list[tuple[Choice, float]]] = {}
_chosen: dict[str, Choice] = {}  #: in this process, by the entry's name


class ByLibrary:
    """A product by a library's algorithm."""

    def __init__(self, product: Multiplication, algorithm: Algorithm):
        self.product, self.algorithm = product, algorithm

    def launch(self, grid: object, addresses: Mapping[str, int]) -> None:
        """Put it on the current stream; `addresses` has that of every buffer."""
        self.product.launch(self.algorithm, addresses)

    def __str__(self) -> str:
        return str(self.product)


def tuned(gpu: Any, kernel: Kernel, symbols: Mapping[str, int]) -> TritonSource | ByLibrary:
    """What runs this kernel fastest at these values of its symbols. Raises Refused where nothing does."""
    target = gpu.target
    product: Multiplication | None = None
    with suppress(MissingTargetError, Refused, CudaError):
        described = product_of(kernel, symbols)
        product = Multiplication(gpu, gpu.products(), described)
    known = (repr(sorted(symbols.items())), gpu.name, repr(target), load_triton().__version__)
    library = f"{0 if product is None else product.library.version} {knobs.deterministic}"
    name = cache.key("gpu schedule", digest(kernel), *known, library, cpu.source_fingerprint("runtime/*.py"))
    store = cache.shared()
    choice = _chosen.get(name) or _decoded(store.get(name))
    if choice is None or (product is None and isinstance(choice, Algorithm)):
        choice = _measure(gpu, kernel, dict(symbols), product)
        store.put(name, json.dumps(dataclasses.asdict(choice)).encode())
    _chosen[name] = choice
    if isinstance(choice, Algorithm):
        assert product is not None
        return ByLibrary(product, choice)
    return to_triton(kernel, choice)


def _decoded(entry: bytes | None) -> Choice | None:
    if entry is None:
        return None
    try:
        found: dict[str, Any] = json.loads(entry)
        made = dict[str, Any]((k, tuple(v) if isinstance(v, list) else v) for k, v in found.items())
        return Algorithm(**made) if "words" in made else GpuSchedule(**made)
    except (ValueError, TypeError):
        return None


def _measure(gpu: Any, kernel: Kernel, symbols: dict[str, int], product: Multiplication | None) -> Choice:
    tried = candidates(kernel, gpu.target, symbols)
    sizes = {b: int(evaluate(numel(s), symbols)) * s.dtype.itemsize for b, s in kernel.buffers.items()}
    if len(tried) + (product is not None) < 2 or not math.prod(sizes.values()) or sum(sizes.values()) > MOST_BYTES:
        return tried[0]
    sources: dict[GpuSchedule, TritonSource] = {}
    for s in tried:
        try:
            made = to_triton(kernel, s)
            if made.fits(symbols) and 0 not in made.grid(symbols):
                sources[s] = made
        except Refused:
            if s is tried[0]:
                raise
    if tried[0] not in sources:
        return tried[0]
    gpu.prepare(list(sources.values()))
    ready: dict[Choice, Any] = {}
    for s, source in sources.items():
        try:
            ready[s] = gpu.compile(source)
        except CompileError:
            if s is tried[0]:
                raise
    algorithms: list[Algorithm] = []
    if product is not None:
        with suppress(Refused, CudaError):
            algorithms = product.algorithms()
    if len(ready) + len(algorithms) < 2:
        return tried[0]
    try:
        held = {b: gpu.allocate(n) for b, n in sizes.items()}
    except OutOfMemoryError:
        return tried[0]
    for b, memory in held.items():
        gpu.fill(memory, _BYTE if kernel.buffers[b].dtype.kind == "f" else 0, sizes[b])
    launches: dict[Choice, tuple] = {
        s: (ready[s], sources[s].grid(symbols), _given(sources[s], held, symbols)) for s in sources if s in ready
    }
    addresses = {b: memory.address for b, memory in held.items()}
    for a in algorithms:
        assert product is not None
        by = ByLibrary(product, a)
        with suppress(CudaError):  # (what it suggests, it may yet refuse)
            by.launch(None, addresses)
            launches[a] = (by, None, addresses)
    timer = _Timer(gpu, launches)
    try:
        first = tried[0]
        best = timer.best(list(launches))
        if best is not first:
            best = timer.best([first, best])
    finally:
        timer.close()
    measured[kernel.name] = [(s, 1e3 * t) for s, t in timer.took.items()]
    return best if timer.took[best] < (1 - GAIN) * timer.took[first] else first


def _given(source: TritonSource, held: Mapping[str, Any], symbols: Mapping[str, int]) -> list[Any]:
    return [held[p.buffer] if p.buffer else symbols[p.symbol] for p in source.parameters]


class _Timer:
    """Milliseconds of launches on the current stream: `took` has the least of each."""

    def __init__(self, gpu: Any, launches: dict[Choice, tuple]):
        self.gpu, self.launches = gpu, launches
        self.took: dict[Choice, float] = {}
        with gpu.calling():
            self.start, self.end = (gpu.take_event(True, False) for _ in range(2))

    def close(self) -> None:
        for event in (self.start, self.end):
            self.gpu.give_event(event, True, False)

    def best(self, some: list[Choice]) -> Choice:
        for s in some:
            if s not in self.took:
                self._run(s, 1)  # (its code is loaded, and memory that it is lent is there)
                self.took[s] = self._run(s, 2)
        for _ in range(ROUNDS):
            for s in some:
                n = max(2, min(MOST_LAUNCHES, int(MILLISECONDS / max(self.took[s], 1e-6))))
                self.took[s] = min(self.took[s], self._run(s, n))
        return min(some, key=self.took.__getitem__)

    def _run(self, s: Choice, n: int) -> float:
        gpu = self.gpu
        function, grid, parameters = self.launches[s]
        stream = gpu.current_stream
        with gpu.calling():
            gpu.driver.record_event(self.start, stream)
            for _ in range(n):
                function.launch(grid, parameters)
            gpu.driver.record_event(self.end, stream)
            gpu.driver.synchronize_event(self.end)
            return gpu.driver.elapsed_ms(self.start, self.end) / n
