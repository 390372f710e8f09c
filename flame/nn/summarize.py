"""`summary(model, input)`: the modules of a model with shapes, parameters, floating-point operations and bytes, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flame.autograd.modes import no_grad
from flame.autograd.watch import Process, watching
from flame.functions.elementwise import PUBLIC
from flame.functions.random import fork_rng
from flame.jit import set_stance
from flame.nn.modules.module import Module
from flame.ops.flops import flops
from flame.primitive import Primitive, interpreting
from flame.tensor import Tensor


@dataclass(eq=False, slots=True)
class Row:
    """One module, as it was called first. Bytes are of its own parameters and buffers, and of its results."""

    name: str
    kind: str
    depth: int
    leaf: bool
    parameters: int
    trainable: int
    state_bytes: int
    input_shapes: list = field(default_factory=list)
    output_shapes: list = field(default_factory=list)
    output_bytes: int = 0
    flops: int = 0
    calls: int = 0
    shared: bool = False  #: all its parameters were counted with an earlier module


@dataclass(slots=True)
class Summary:
    """The rows, and sums in which every parameter counts once. `str(summary)` is the table."""

    rows: list[Row]
    parameters: int
    trainable: int
    state_bytes: int
    flops: int
    activation_bytes: int  #: of the results of modules that hold no others
    input_bytes: int

    def __str__(self) -> str:
        head = ("Layer", "Output shape", "Parameters", "MFLOPs", "Bytes")
        cells = [head]
        for r in self.rows:
            out = ", ".join(str(list(s)) for s in r.output_shapes) or "(not called)"
            name = "  " * r.depth + (f"{r.name}: {r.kind}" if r.name else r.kind)
            count = f"{r.parameters:,}" + (" (shared)" if r.shared else "") if r.parameters else "--"
            work = f"{r.flops / 1e6:,.3f}" if r.flops else "--"
            cells.append((name, out, count, work, f"{r.state_bytes + r.output_bytes:,}"))
        widths = [max(len(c[i]) for c in cells) for i in range(5)]

        def line(c: tuple) -> str:
            return "  ".join([x.ljust(w) if i < 2 else x.rjust(w) for i, (x, w) in enumerate(zip(c, widths, strict=True))])

        rule = "-" * (sum(widths) + 8)
        kinds = f"{self.trainable:,} trainable, {self.parameters - self.trainable:,} fixed"
        sums = [
            f"parameters: {self.parameters:,} ({kinds}), {_mib(self.state_bytes)} with buffers",
            f"forward: {self.flops / 1e6:,.3f} MFLOPs; results of layers take {_mib(self.activation_bytes)}, the input "
            f"{_mib(self.input_bytes)}",
        ]
        return "\n".join([rule, line(head), rule, *map(line, cells[1:]), rule, *sums, rule])


def _mib(n: int) -> str:
    return f"{n / 2**20:,.2f} MiB"


def summary(
    model: Module, input: Any = None, *, input_size: Any = None, dtype: Any = None, depth: int | None = None, **kwargs: Any
) -> Summary:
    """Run a model once, in evaluation mode and without gradients, and say what its modules are, take and give.

    input: a tensor, or a tuple or list of arguments. input_size: a shape (or several) to be filled with zeros of `dtype` instead.
    depth: how deep nested modules are shown. Keywords go to the model. FLOPs are those of products and convolutions, two for each
    multiplication with its addition. The model's training flags, buffers and the random state stay as they are.
    Raises TypeError for what is no module, ValueError where neither an input nor its size is given.
    """
    if not isinstance(model, Module):
        raise TypeError(f"summary() expects a Module, got {type(model).__name__}")
    if input is None and input_size is None:
        raise ValueError("summary() needs an input or its size: summary(model, x) or summary(model, input_size=(1, 3, 32, 32))")
    if input is None:
        several = isinstance(input_size[0], tuple | list)
        sizes = input_size if several else [input_size]
        input = tuple(PUBLIC["zeros"](*s, dtype=dtype) for s in sizes)
    args = tuple(input) if isinstance(input, tuple | list) else (input,)
    rows = list(_rows(model))
    running: list[Row] = []
    handles: list[Any] = []

    def hook(module: Module, row: Row) -> None:
        """Note what the module takes and gives. (A compiled module's calls are its original's: hooks go by row.)"""

        def before(_: Module, given: tuple) -> None:
            row.calls += 1
            if row.calls == 1:
                row.input_shapes = [tuple(t.shape) for t in _tensors(given)]
            running.append(row)

        def after(_: Module, given: tuple, result: Any) -> None:
            running.pop()
            found = _tensors(result)
            if row.calls == 1:
                row.output_shapes = [tuple(t.shape) for t in found]
            row.output_bytes += sum(t.nbytes for t in found)

        handles.extend([module.register_forward_pre_hook(before), module.register_forward_hook(after)])

    def count(process: Process, primitive: Primitive, operands: tuple, params: dict) -> Any:
        got = process(primitive, operands, params)
        n = flops(primitive.name, operands, params, got if type(got) is tuple else (got,))
        for row in {id(r): r for r in running}.values():
            row.flops += n
        return got

    modes = [(m, m.training) for m in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]  # type: ignore[attr-defined]
    try:
        for m, row in rows:
            hook(m, row)
        model.eval()
        with set_stance("force_eager"), no_grad(), fork_rng(), interpreting(None), watching(count):
            model(*args, **kwargs)
    finally:
        for h in handles:
            h.remove()
        for m, training in modes:
            m.training = training
        with no_grad():
            for b, was in buffers:
                b.copy_(was)  # type: ignore[attr-defined]
    shown = [row for _, row in rows]
    own = {id(p): p for p in model.parameters()}.values()
    state = [*own, *{id(b): b for b in model.buffers()}.values()]
    return Summary(
        [r for r in shown if depth is None or r.depth <= depth],
        sum(p.numel() for p in own),
        sum(p.numel() for p in own if p.requires_grad),
        sum(p.nbytes for p in state),
        shown[0].flops,
        sum(r.output_bytes for r in shown if r.leaf),
        sum(t.nbytes for t in _tensors(args)),
    )


def _rows(model: Module) -> Iterator[tuple[Module, Row]]:
    counted: set[int] = set()
    for path, m in model.named_modules():
        mine = {id(p): p for p in m.parameters(recurse=False)}
        state = [*mine.values(), *m.buffers(recurse=False)]
        row = Row(
            path.rpartition(".")[2],
            type(m).__name__,
            path.count(".") + 1 if path else 0,
            next(m.children(), None) is None,
            sum(p.numel() for p in mine.values()),
            sum(p.numel() for p in mine.values() if p.requires_grad),
            sum(t.nbytes for t in state),
        )
        row.shared = bool(mine) and counted >= set(mine)
        counted |= set(mine)
        yield m, row


def _tensors(x: Any) -> list[Tensor]:
    """The tensors in nested containers."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    return [t for i in x for t in _tensors(i)] if isinstance(x, tuple | list) else []
