"""Which arrays of a program weigh most, in words: what an error says when there is no memory for them."""

from __future__ import annotations

from flame.compiler.memory import lifetimes
from flame.compiler.program import CallStep, Program

MOST = 8


def largest(program: Program, most: int = MOST) -> tuple[tuple[int, str], ...]:
    """(bytes, "float32[512, 512] of softmax, model.py:12") of the largest arrays that are there when most is, the largest first.

    Results are made before the first step and count throughout; temps from their first step to their last. Inputs are the
    caller's and do not count.
    """
    slots = program.slots
    live = lifetimes(program)
    change = [0] * (len(program.steps) + 1)
    for i, (first, last) in live.items():
        change[first] += slots[i].bytes
        change[last + 1] -= slots[i].bytes
    held, top, at = 0, -1, 0
    for k in range(len(program.steps)):
        held += change[k]
        if held > top:
            top, at = held, k
    there = [i for i, s in enumerate(slots) if s.kind == "output"]
    there += [i for i, (first, last) in live.items() if first <= at <= last]
    there = sorted((i for i in there if slots[i].bytes), key=lambda i: -slots[i].bytes)[:most]
    if not there:
        return ()
    nodes = {v.name: v.node for v in program.graph.values() if v.node is not None}
    told: dict[int, str] = {}
    for step in program.steps:
        for i in step.writes:
            if i in told or i not in there:
                continue
            node = step.node if isinstance(step, CallStep) else nodes.get(slots[i].name)
            if node is not None:
                told[i] = ", ".join(filter(None, (node.note or node.primitive.name, node.source)))
            elif not isinstance(step, CallStep):
                told[i] = ", ".join(step.notes) or step.kernel.name
    return tuple((slots[i].bytes, f"{slots[i].spec} of {told.get(i) or 'no known line'}") for i in there)
