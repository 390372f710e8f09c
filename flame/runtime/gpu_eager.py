"""Eager operations on a GPU: each is a compiled graph of one node.

    run(gpu, primitive, operands, params) -> array(s)      operands: device arrays, NumPy arrays without dimensions, numbers

    operand ::= contiguous            an input of the graph
              | a view of memory      an input as long as the memory it spans, seen through `as_strided`: nothing is copied
              | number                a constant, until a node was compiled for some values of it; then an input

A view is a change of layout and runs nothing. An elementwise operation on arrays of one shape is compiled for a number of elements,
whatever their dimensions. At its second set of sizes a node is compiled for sizes in general, and from then on nothing is compiled
for new ones, but for those of which a rule or a pass decided otherwise (`_General`).

Of an operand that holds positions the extremes are computed beside, which `flame.runtime.gpu_checks` looks at later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from flame.compiler.concrete import program_at
from flame.compiler.dims import LEAST, Dim, Space
from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.index_math import evaluate
from flame.compiler.pipeline import compile_graph
from flame.dtypes import _BY_NUMPY, dtype, int64
from flame.knobs import knobs
from flame.ops.declare import as_operand
from flame.primitive import Primitive, Spec, registered
from flame.runtime.cuda_plan import LaunchPlan
from flame.runtime.device_array import DeviceArray, to_device
from flame.runtime.gpu_copy import ALIGNMENT, duplicate, host, view
from flame.runtime.gpu_program import GpuExecutable, tell_of_detour
from flame.runtime.gpu_straight import Straight
from flame.runtime.lines import user_source

AS_STRIDED = registered("as_strided")
AMIN, AMAX, COPY = map(registered, ("amin", "amax", "copy"))

#: values of its numbers for which a node is compiled, before they become inputs
_CONSTANTS: Final = 4
#: executables that are kept of one node, each for a set of sizes
_MOST: Final = 64
#: layouts of views for which a node is compiled, before views are copied first
_LAYOUTS: Final = 16
#: a view that shows fewer than one of so many elements of the memory that it spans is copied first
_SPARSE: Final = 8

#: nodes that are kept, all together
_MOST_NODES: Final = 4096
_nodes: dict[tuple, _Node] = {}
_views: dict[tuple, int] = {}


def run(gpu: Any, primitive: Primitive, operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """The result, or a tuple of results, on `gpu`. Raises CompileError where a kernel cannot be made; where an index leaves its
    array, PositionError is raised later (`flame.runtime.gpu_checks`)."""
    if primitive.view:
        got = view(primitive, operands[0], params)
        if got is not None:
            return got
    call = _call(gpu, primitive, operands, params)
    ready: _Ready | None = _ready.get(call) if call is not None else None
    return _by_node(gpu, primitive, operands, params, call) if ready is None else ready.run(operands)


def _call(gpu: Any, primitive: Primitive, operands: Sequence[Any], params: dict[str, Any]) -> tuple | None:
    """What tells a call from others that run otherwise, where all arrays can be given to kernels as they are."""
    found: list = [gpu, primitive]
    a: DeviceArray
    for o in operands:
        if type(o) is DeviceArray:
            a = o
            if not a.contiguous or a.address % ALIGNMENT or a.gpu is not gpu:
                return None
            found.append(a.dtype)
            found.append(a.shape)
        elif isinstance(o, np.ndarray):
            return None
        else:
            found.append(exactly(o))
    return (*found, knobs.deterministic, knobs.matmul_precision, *params.items())


def exactly(number: Any) -> tuple:
    """A number with its type, and zeros with their signs."""
    return type(number), number, number == 0 and type(number) is float and math.copysign(1.0, number) < 0


class _Ready:
    """A call that was made before, of which nothing is left but launches, and looking at positions."""

    __slots__ = ("bounds", "count", "straight")

    def __init__(self, made: _Made, launches: LaunchPlan, shape: tuple[int, ...] | None):
        results = [(s.shape if shape is None else shape, s.dtype.numpy) for s in made.executable.results]
        self.straight = Straight(made.node.gpu, launches, (), results)
        self.count, self.bounds = made.about.results, made.bounds

    def run(self, operands: Sequence[Any]) -> Any:
        straight = self.straight
        words: list = []
        a: DeviceArray
        for o in operands:
            if type(o) is DeviceArray:
                a = o
                words.append(a.address)
        made = straight.run(words)
        if self.bounds:
            look_later(straight.gpu, made, self.bounds)
        return tuple(made[: self.count]) if self.count else made[0]


#: calls that are kept, all together
_MOST_READY: Final = 8192
_ready: dict[tuple, _Ready] = {}


def _by_node(gpu: Any, primitive: Primitive, operands: Sequence[Any], params: dict[str, Any], call: tuple | None) -> Any:
    """The result by way of the node that is compiled for the kinds of operands."""
    if any([type(o) is DeviceArray and o.dtype.kind == "c" for o in operands]):
        return detour(gpu, primitive, operands, params)
    shape = _common_shape(primitive, operands)
    kinds: list[Any] = []
    sizes: list[int] = []
    arrays: list[Any] = []
    numbers: list[Any] = []
    general = True
    for o in operands:
        if type(o) is not DeviceArray and not isinstance(o, np.ndarray):
            kinds.append(type(o))
            numbers.append(o)
            continue
        if type(o) is DeviceArray:
            if shape is not None and o.ndim:
                o = DeviceArray(o.gpu, o.memory, o.address, (o.size,), o.dtype)
            if o.size and not (o.contiguous and o.address % ALIGNMENT == 0):
                o, kind = _spanned(o, (primitive, len(kinds)))
                if kind is not None:
                    general = False
                    kinds.append(kind)
                    arrays.append(o)
                    continue
        kinds.append((o.dtype, tuple([n if n < LEAST else -1 for n in o.shape])))
        sizes += [n for n in o.shape if n >= LEAST]
        arrays.append(o)
    if "place" in params:
        params = {k: v for k, v in params.items() if k != "place"}
    node = node_of(gpu, primitive, kinds, params)
    got, made = node.run(arrays, tuple(sizes), tuple(numbers), general)
    if shape is not None:
        got = got.reshaped(shape)
    launches = made.executable.plan
    if call is not None and launches is not None and made.about.number_dtype is None:
        if len(_ready) >= _MOST_READY:
            _ready.clear()
        _ready[call] = _Ready(made, launches, shape)
    return got


def node_of(gpu: Any, primitive: Primitive, kinds: list[Any], params: dict[str, Any]) -> _Node:
    """What is compiled, and will be, for calls of these kinds of operands."""
    key = (gpu, primitive, tuple(kinds), tuple(params.items()), knobs.deterministic, knobs.matmul_precision)
    node = _nodes.get(key)
    if node is None:
        if len(_nodes) >= _MOST_NODES:
            _nodes.clear()
        node = _nodes[key] = _Node(gpu, primitive, kinds, params)
    return node


def _common_shape(primitive: Primitive, operands: Sequence[Any]) -> tuple[int, ...] | None:
    """The one shape of all arrays with dimensions, where the operation may be done on the elements in their order."""
    shape = None
    if primitive.kind == "elementwise":
        for o in operands:
            if type(o) is DeviceArray and o.ndim:
                if shape is None:
                    shape = o.shape
                if o.shape != shape or not o.contiguous:
                    return None
    return shape


def _spanned(o: DeviceArray, where: Any) -> tuple[DeviceArray, Any]:
    """A view as the stretch of memory that it spans, from an aligned address on, with the kind of operand it is; a copy (of no
    such kind) where the view is sparse, or views lie differently at every call."""
    lead = o.address % ALIGNMENT // o.itemsize
    span = lead + 1 + sum((n - 1) * s for n, s in zip(o.shape, o.strides, strict=True)) // o.itemsize
    kind = (o.dtype, o.shape, tuple([s // o.itemsize for s in o.strides]), lead, span)
    if span > _SPARSE * o.size + 64 or o.address % o.itemsize:
        return duplicate(o), None
    if (where, kind) not in _views:
        if _views.get(where, 0) >= _LAYOUTS:
            return duplicate(o), None
        _views[where] = _views.get(where, 0) + 1
        _views[where, kind] = 1
    return o.at(o.address - lead * o.itemsize, (span,), (o.itemsize,)), kind


def detour(gpu: Any, primitive: Primitive, operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """By the primitive's meaning on the host, which is said once."""
    tell_of_detour(primitive, gpu)
    with np.errstate(all="ignore"):
        got = primitive.eager(*[host(o) for o in operands], **params)
    return tuple(to_device(gpu, np.asarray(a)) for a in got) if isinstance(got, tuple) else to_device(gpu, np.asarray(got))


class _Node:
    """A primitive with its parameters and kinds of operands: what was compiled of it."""

    def __init__(self, gpu: Any, primitive: Primitive, kinds: list[Any], params: dict[str, Any]):
        self.gpu, self.primitive, self.kinds, self.params = gpu, primitive, kinds, params
        self.made: dict[tuple, _Made] = {}  #: by sizes and constants
        self.general: dict[tuple, list[_General]] = {}  #: by constants
        self.constants: set[tuple] = set()
        self.seen: dict[tuple, tuple] = {}  #: by constants, the first sizes

    def run(self, arrays: list[Any], sizes: tuple[int, ...], numbers: tuple, general: bool) -> tuple[Any, _Made]:
        """The result, and what was run."""
        constants: tuple | None = tuple([exactly(v) for v in numbers])
        if numbers and constants not in self.constants:
            if len(self.constants) < _CONSTANTS and self.primitive.kind != "random":
                self.constants.add(constants)  # type: ignore[arg-type]
            else:
                constants = None
        key = (sizes, constants)
        made = self.made.get(key)
        if made is None:
            made = self.make(sizes, numbers, constants, general)
            while len(self.made) >= _MOST:
                self.made.pop(next(iter(self.made)), None)
            self.made[key] = made
        return made.run(arrays, numbers), made

    def make(self, sizes: tuple[int, ...], numbers: tuple, constants: tuple | None, general: bool) -> _Made:
        first = self.seen.setdefault((constants,), sizes)
        if not sizes or not general or (first == sizes and (constants,) not in self.general):
            graph, about = self.graph(sizes, numbers, constants is None, None)
            return _Made(self, GpuExecutable(compile_graph(graph, self.gpu.target), self.gpu), about, {})
        g, values = self._general(sizes, numbers, constants)
        return _Made(self, GpuExecutable(program_at(g.program, values), self.gpu), g.about, values)

    def in_general(self, sizes: tuple[int, ...]) -> tuple[Any, dict[str, int]]:
        """The program for sizes in general, of a node without numbers, and what stands for these sizes in it."""
        g, values = self._general(sizes, (), ())
        return g.program, values

    def _general(self, sizes: tuple[int, ...], numbers: tuple, constants: tuple | None) -> tuple[_General, dict[str, int]]:
        values = {f"s{i}": n for i, n in enumerate(sizes)}
        known = self.general.setdefault((constants,), [])
        for g in known:
            if all(f.holds(values) for f in g.space.facts):
                return g, values
        known.append(_General(self, sizes, numbers, constants is None))
        return known[-1], values

    def graph(self, sizes: tuple[int, ...], numbers: tuple, as_inputs: bool, space: Space | None) -> tuple[Graph, _About]:
        """The graph, and what else it wants to be given and gives."""
        builder = Builder(Graph(name=self.primitive.name))
        count = iter(range(len(sizes)))

        def size(n: int) -> Any:
            if n >= 0:
                return n
            i = next(count)
            return sizes[i] if space is None else space.symbol(f"s{i}")

        operands: list[Any] = []
        left = iter(numbers)
        wanted = []
        for kind in self.kinds:
            if isinstance(kind, type):
                wanted.append(len(operands))
                operands.append(next(left))
            elif len(kind) == 2:
                operands.append(builder.input(Spec(tuple([size(n) for n in kind[1]]), _BY_NUMPY[kind[0]])))
            else:
                d, shape, strides, lead, span = kind
                x = builder.input(Spec((span,), _BY_NUMPY[d]))
                operands.append(builder.process(AS_STRIDED, (x,), {"size": shape, "stride": strides, "offset": lead}))
        about = _About()
        if as_inputs and wanted:
            about.number_dtype = self._number_dtype(operands)
            for i in wanted:
                operands[i] = builder.input(Spec((), about.number_dtype))
        self._check_positions(builder, operands, about)
        made = builder.process(self.primitive, tuple(operands), self.params)
        about.results = len(made) if isinstance(made, tuple) else 0
        graph = builder.graph
        graph.outputs[:] = [*(made if isinstance(made, tuple) else (made,)), *about.extremes]
        return graph, about

    def _number_dtype(self, operands: list[Any]) -> dtype:
        if self.primitive.kind == "random":
            return int64
        if "dtype" in self.params:
            return self.params["dtype"]
        if self.primitive.name == "where":  # (whose condition says nothing of its branches)
            return self.primitive.infer(*[o.spec if isinstance(o, Value) else o for o in operands], **self.params).dtype
        specs = [o.spec for o in operands if isinstance(o, Value)]
        return specs[-1].dtype

    def _check_positions(self, builder: Builder, operands: list[Any], about: _About) -> None:
        """The extremes of operands that hold positions, as further results."""
        if self.primitive.positions is None:
            return
        specs = [o.spec if isinstance(o, Value) else o for o in operands]
        for k, dim, size, least in self.primitive.positions(*specs, **self.params):
            v = operands[k]
            if v.spec.numel == 0:
                continue
            dims = {"dim": tuple(range(v.ndim)), "keepdim": False}
            for extreme in (AMIN, AMAX):
                about.extremes.append(builder.process(extreme, (v,), dims) if v.ndim else builder.process(COPY, (v,), {}))
            about.bounds.append((dim, size, least))


class _About:
    """What a node's graph takes beside its operands, and gives beside its results."""

    def __init__(self) -> None:
        self.number_dtype: dtype | None = None  #: of the numbers that are inputs
        self.results = 0  #: how many there are, where the primitive gives a tuple
        self.extremes: list[Value] = []  #: of each operand that holds positions: lowest and highest
        self.bounds: list[tuple] = []  #: of each of these operands: dimension, size, least


class _General:
    """A node compiled for sizes of which the facts hold that this rested on."""

    def __init__(self, node: _Node, sizes: tuple[int, ...], numbers: tuple, as_inputs: bool):
        values = {f"s{i}": n for i, n in enumerate(sizes)}
        self.space = Space(values, dict.fromkeys(values, LEAST))
        self.space.settled = True
        graph, self.about = node.graph(sizes, numbers, as_inputs, self.space)
        self.program = compile_graph(graph, node.gpu.target)


class _Made:
    """A node that can be run."""

    def __init__(self, node: _Node, executable: GpuExecutable, about: _About, sizes: dict[str, int]):
        self.node, self.executable, self.about = node, executable, about
        at = lambda n: int(evaluate(n.expression, sizes)) if type(n) is Dim else n
        name = node.primitive.name
        #: of each operand that holds positions: least, size, words
        self.bounds = [
            (at(least), at(size), f"dimension {dim} with size {at(size)} ({name}") for dim, size, least in about.bounds
        ]

    def run(self, arrays: list[Any], numbers: tuple) -> Any:
        about = self.about
        d = about.number_dtype
        if d is not None:
            arrays = [*arrays, *[np.array(v if d.kind == "f" else as_operand(v, d.numpy), d.numpy) for v in numbers]]
        results = self.executable(arrays)
        if self.bounds:
            look_later(self.node.gpu, results, self.bounds)
        return tuple(results[: about.results]) if about.results else results[0]


def look_later(gpu: Any, results: list[Any], bounds: list[tuple[int, int, str]]) -> None:
    """Have the extremes, which are the last of the results, looked at when the device has come to them."""
    line = user_source()
    first = len(results) - 2 * len(bounds)
    for i, (least, size, words) in enumerate(bounds):
        gpu.checks.add(results[first + 2 * i], results[first + 2 * i + 1], least, size, f"{words} at {line})")
