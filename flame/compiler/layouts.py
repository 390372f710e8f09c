"""How convolutions want their operands to lie on a GPU: channels innermost.

    lay_out(graph, target) -> Graph        the same results, with copies in another order before convolutions

Tensor cores take what stands in shared memory, and that is filled 16 bytes at a time where neighbours in memory are neighbours
along the summed axis, aligned. Of an image channels first, a window's positions are neither: a row that begins one element to
the left of a boundary is read number by number, and the loop is not pipelined. So images and cotangents are copied channels
last, weights with the summed channels last, once for all convolutions that read them; fusion lets whatever makes them store
them so, and then nothing is copied. Arrays that lie so already are left alone.

A gradient of the input of a strided convolution is told to sum by phases of the stride (`flame.ops.contract`).
"""

from __future__ import annotations

from typing import Any

from flame.compiler.dims import hint
from flame.compiler.graph import Builder, Graph, Node, Value
from flame.compiler.roots import strides_of
from flame.compiler.target import Target
from flame.dtypes import dtype, float32
from flame.ops.contract import conv, conv_input_grad, conv_weight_grad
from flame.ops.logic import copy
from flame.ops.movement import permute

_CONVOLUTIONS = (conv, conv_input_grad, conv_weight_grad)
#: channels from which on a copy pays, and of which they are a multiple: 16 bytes of two-byte elements
_LEAST, _MULTIPLE = 16, 8


def lay_out(graph: Graph, target: Target) -> Graph:
    """The graph with operands of convolutions in the order that a GPU reads best."""
    if not target.is_gpu or not any(n.primitive in _CONVOLUTIONS for n in graph.nodes):
        return graph
    made = Graph(list(graph.inputs), [], [], graph.name)
    builder = Builder(made)
    place: dict[Value, Value] = {}
    known: dict[tuple[Value, int], Value] = {}

    def innermost(x: Value, dim: int) -> Value:
        """`x`, its dimension `dim` having stride 1 in memory."""
        strides = strides_of(x)
        if strides is not None and strides[dim] == 1:
            return x
        found = known.get((x, dim))
        if found is None:
            order = (*(d for d in range(x.ndim) if d != dim), dim)
            back = tuple(order.index(d) for d in range(x.ndim))
            found = known[x, dim] = permute(copy(permute(x, dims=order)), dims=back)
        return found

    with builder:
        for n in graph.nodes:
            builder.note, builder.source = n.note, n.source
            operands: tuple[Any, ...] = tuple([place.get(x, x) if isinstance(x, Value) else x for x in n.operands])
            params = n.params
            if n.primitive is conv_input_grad and max(params["stride"]) > 1:
                params = {**params, "phases": True}
            if n.primitive in _CONVOLUTIONS and _multiplied_in_tiles(n.output.dtype, target):
                dims = _summed(n)
                operands = tuple([x if d is None else innermost(x, d) for x, d in zip(operands, dims, strict=True)])
            place.update(zip(n.outputs, builder.append(n.primitive, operands, params).outputs, strict=True))
    made.outputs = [place.get(v, v) for v in graph.outputs]
    return made


def _multiplied_in_tiles(d: dtype, target: Target) -> bool:
    return d.kind == "f" and (d.itemsize <= 2 or (d is float32 and target.matmul_precision == "high"))


def _summed(n: Node) -> tuple[int | None, int | None]:
    """The dimension of each operand that is best innermost; None to leave it as it is."""
    groups = n.params["groups"]
    a, b = (x for x in n.operands if isinstance(x, Value))

    def pays(channels: int) -> bool:
        return type(channels) is int and channels >= _LEAST and channels % _MULTIPLE == 0

    def dim(x: Value, d: int, each: int) -> int | None:
        return d if pays(each) and any(hint(n) > 1 for n in x.shape[2:]) else None

    if n.primitive is conv:
        return dim(a, 1, b.shape[1]), dim(b, 1, b.shape[1])
    if n.primitive is conv_input_grad:
        each = b.shape[0] // groups
        return dim(a, 1, each), 0 if pays(each) and groups == 1 else None
    return dim(a, 1, a.shape[1] // groups), dim(b, 1, b.shape[1] // groups)
