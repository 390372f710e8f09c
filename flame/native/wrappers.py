"""Builtins around translated functions: how Python calls them."""

from __future__ import annotations

from flame.native import layout
from flame.native.units import Module, Unit, parameters


def wrapper(m: Module, u: Unit) -> str:
    """The builtin of a unit: it takes exactly the arguments by position; called in another way, the Python function does it."""
    names = parameters(u.function)
    method = u.owner is not None
    n = len(names) - method
    loads, given = [], ["ptr %self"] if method else []
    for i in range(n):
        loads += [f"  %p{i} = getelementptr ptr, ptr %args, i64 {i}", f"  %a{i} = load ptr, ptr %p{i}"]
        given.append(f"ptr %a{i}")
    twin = m.constant(u.function)
    shift = int(method)
    copies = [
        "  %all = add i64 %count, " + str(shift),
        "  %room = add i64 %all, %names.n",
        "  %copy = alloca ptr, i64 %room",
        *(["  store ptr %self, ptr %copy"] if method else []),
        "  br label %next",
        "next:",
        "  %i = phi i64 [0, %other], [%i1, %move]",
        "  %every = add i64 %count, %names.n",
        "  %left = icmp slt i64 %i, %every",
        "  br i1 %left, label %move, label %pass",
        "move:",
        "  %from = getelementptr ptr, ptr %args, i64 %i",
        "  %x = load ptr, ptr %from",
        f"  %at = add i64 %i, {shift}",
        "  %to = getelementptr ptr, ptr %copy, i64 %at",
        "  store ptr %x, ptr %to",
        "  %i1 = add i64 %i, 1",
        "  br label %next",
        "pass:",
        f"  %slow = call ptr @PyObject_Vectorcall(ptr {twin}, ptr %copy, i64 %all, ptr %names)",
        "  ret ptr %slow",
    ]
    return "\n".join(
        [
            f"define ptr @py.{u.symbol}(ptr %self, ptr %args, i64 %count, ptr %names) {{",
            f"  %fits = icmp eq i64 %count, {n}",
            "  %unnamed = icmp eq ptr %names, null",
            "  %plain = and i1 %fits, %unnamed",
            "  br i1 %plain, label %go, label %count.names",
            "go:",
            *loads,
            f"  %got = call ptr @{u.symbol}({', '.join(given)})",
            "  ret ptr %got",
            "count.names:",
            "  br i1 %unnamed, label %other, label %some",
            "some:",
            f"  %size.p = getelementptr i8, ptr %names, i64 {layout.SIZE}",
            "  %size = load i64, ptr %size.p",
            "  br label %other",
            "other:",
            "  %names.n = phi i64 [0, %count.names], [%size, %some]",
            *copies,
            "}",
        ]
    )
