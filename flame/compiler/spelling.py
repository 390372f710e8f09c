"""What a graph means, as text: whatever its values are called, and wherever the user wrote it.

    spelled(graph) -> text          equal texts: the same primitives with the same parameters on the same operands, in order
    lines(graph)   -> text          what `spelled` leaves out and error messages show: the user's composites and lines

A program that is kept on disk is found by the first (`flame.runtime.index`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from flame.compiler.dims import Dim
from flame.compiler.graph import Graph, Value
from flame.dtypes import dtype


class Unspellable(ValueError):
    """A parameter whose value has no text that stands for it alone."""


def spelled(graph: Graph, marked: Iterable[Value] = ()) -> str:
    """The text of a graph some of whose values are `marked`.

    Raises Unspellable where a node has a parameter that is not a number, a string, a dtype or a tuple of these.
    """
    number: dict[Value, str] = {}
    for v in graph.inputs:
        number[v] = f"%{len(number)}"
    out = [f"{v.dtype.name} {static(v.shape)}" for v in graph.inputs]
    known: dict[int, str] = {}  # parameters by identity: the nodes of equal operations often share them
    for n in graph.nodes:
        shown = known.get(id(n.params)) if n.params else ""
        if shown is None:
            shown = known[id(n.params)] = " ".join(f"{k}={static(x)}" for k, x in sorted(n.params.items()))
        operands = " ".join([number[x] if x.__class__ is Value else static(x) for x in n.operands])
        out.append(f"{n.primitive.name} {operands} {shown}")
        for o in n.outputs:
            number[o] = f"%{len(number)}"
    out.append("-> " + " ".join(number[o] for o in graph.outputs))
    out.append("marked " + " ".join(sorted({number[v] for v in marked})))
    return "\n".join(out)


def static(x: Any) -> str:
    """A number or parameter, told apart by type and then by value."""
    kind = type(x)
    if kind is int or kind is float or kind is bool or kind is str or x is None:
        return repr(x)
    if isinstance(x, tuple):
        return f"({','.join(map(static, x))})"
    if kind is dtype:
        return str(x.name)
    if kind is Dim:
        return f"<{x.expression}>"
    raise Unspellable(f"{x!r} ({kind.__name__}) has no spelling")


def lines(graph: Graph) -> str:
    """A hash of every node's composite and line."""
    return hashlib.sha256("\n".join([f"{n.note}\t{n.source}" for n in graph.nodes]).encode()).hexdigest()
