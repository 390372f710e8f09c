"""Builtins around translated functions: how Python calls them."""

from __future__ import annotations

from flame.native.units import Module, Unit, defaults, parameters, rest


def wrapper(m: Module, u: Unit) -> str:
    """The builtin of a unit: it takes arguments by position; called in another way, the Python function does it.
    (One of any arguments takes them as they come.)"""
    names, more = parameters(u.function), defaults(u.function)
    if rest(u.function):
        return f"""define ptr @py.{u.symbol}(ptr %self, ptr %args, i64 %count, ptr %names) {{
  %got = call ptr @{u.symbol}(ptr %self, ptr %args, i64 %count, ptr %names)
  ret ptr %got
}}"""
    method = u.owner is not None
    n = len(names) - method
    ways = []
    for given in range(n - len(more), n + 1):
        loads = [
            x
            for i in range(given)
            for x in (
                f"  %p{given}.{i} = getelementptr ptr, ptr %args, i64 {i}",
                f"  %a{given}.{i} = load ptr, ptr %p{given}.{i}",
            )
        ]
        passed = ["ptr %self"] * method + [f"ptr %a{given}.{i}" for i in range(given)]
        passed += [f"ptr {m.constant(x)}" for x in more[len(more) - (n - given) :]] if given < n else []
        call = f"  %got{given} = call ptr @{u.symbol}({', '.join(passed)})"
        ways.append("\n".join([f"take{given}:", *loads, call, f"  ret ptr %got{given}"]))
    cases = " ".join(f"i64 {given}, label %take{given}" for given in range(n - len(more), n + 1))
    self = "%self" if method else "null"
    return f"""define ptr @py.{u.symbol}(ptr %self, ptr %args, i64 %count, ptr %names) {{
  %unnamed = icmp eq ptr %names, null
  br i1 %unnamed, label %go, label %other
go:
  switch i64 %count, label %other [{cases}]
{chr(10).join(ways)}
other:
  %slow = call ptr @flame_otherwise(ptr {m.constant(u.function)}, ptr {self}, ptr %args, i64 %count, ptr %names)
  ret ptr %slow
}}"""
