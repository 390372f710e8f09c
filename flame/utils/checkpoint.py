"""Trading time for memory: a stretch of a model keeps its inputs alone, and is run again when its gradients are needed.

The stretch runs once with its tape, to learn which leaves (parameters) it reaches; then the tape is dropped, and one node takes its
place, with the arguments and those leaves as inputs. Backward runs the stretch again, with the same random numbers. Compiled code
chooses by itself what is kept for backward, so inside of a compiled function `checkpoint` only calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from flame.autograd import enable_grad, grad, is_grad_enabled, no_grad
from flame.autograd.function import Function
from flame.autograd.tape import AccumulateGrad, edge
from flame.functions.random import default_generator, fork_rng
from flame.nn.modules.container import Sequential
from flame.precision import casting_to, in_force
from flame.primitive import force
from flame.tensor import Tensor


class CheckpointError(RuntimeError):
    """The stretch did not do the same when it was run again."""


def noop_context_fn() -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), nullcontext()


def _mapped(x: Any, f: Callable[[Tensor], Any]) -> Any:
    """Nested tuples, lists and dicts with `f` of each tensor in them."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, tuple):
        parts = [_mapped(v, f) for v in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if isinstance(x, list):
        return [_mapped(v, f) for v in x]
    if isinstance(x, dict):
        return {k: _mapped(v, f) for k, v in x.items()}
    return x


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else ()
    return [t for part in parts for t in _tensors(part)]


def _filled(x: Any, tensors: Sequence[Tensor]) -> Any:
    """Nested containers with their tensors replaced, in order."""
    rest = iter(tensors)
    return _mapped(x, lambda _: next(rest))


def _leaves(outputs: Sequence[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that the outputs' history leads to, other than those known."""
    skip = {id(t) for t in known}
    seen: set[int] = set()
    waiting = [e[0] for e in map(edge, outputs) if e is not None]
    found = []
    while waiting:
        node: Any = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, AccumulateGrad):
            if id(node.tensor) not in skip:
                found.append(node.tensor)
        else:
            waiting += [e[0] for e in node.edges if e is not None]
    return found


@dataclass
class _Stretch:
    """What is needed to run a stretch again."""

    function: Callable
    arguments: Any  #: (args, kwargs) as nested containers
    contexts: Callable[[], AbstractContextManager]
    rng: tuple[int, int] | None
    check: bool
    outputs: list[Tensor]
    leaves: list[Tensor]
    casts: Any  #: what autocast had in force

    def again(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for these tensors among the arguments. Raises CheckpointError where they are not what they were."""
        args, kwargs = _filled(self.arguments, tensors)
        with fork_rng(enabled=self.rng is not None), casting_to(self.casts), self.contexts(), enable_grad():
            if self.rng is not None:
                default_generator.seed_value, default_generator.offset = self.rng
            got = _tensors(self.function(*args, **kwargs))
        if self.check:
            before, after = ([(tuple(t.shape), t.dtype) for t in ts] for ts in (self.outputs, got))
            if before != after:
                raise CheckpointError(
                    "checkpoint: the function gave other results when it was run again for its gradients: "
                    f"{before} at first, then {after} (shapes and dtypes)"
                )
        return got


class _Recompute(Function):
    """The outputs of a stretch, whose gradients come from running it again."""

    @staticmethod
    def forward(ctx: Any, stretch: _Stretch, count: int, *inputs: Tensor) -> tuple:
        ctx.stretch, ctx.count = stretch, count
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        results = tuple(t.detach() for t in stretch.outputs)
        ctx.mark_non_differentiable(*(r for r, t in zip(results, stretch.outputs, strict=True) if not t.requires_grad))
        stretch.outputs = [t.detach() for t in stretch.outputs]  # their history goes; shapes and dtypes stay known
        return results

    @staticmethod
    def backward(ctx: Any, *gs: Any) -> tuple:
        stretch: _Stretch = ctx.stretch
        inputs = ctx.saved_tensors[: ctx.count]
        create = is_grad_enabled()  # then gradients lead on through the inputs themselves
        own = list(inputs) if create else [t.detach().requires_grad_(t.requires_grad) for t in inputs]
        outputs = stretch.again(own)
        wanted = [(y, g) for y, g in zip(outputs, gs, strict=True) if g is not None and y.requires_grad]
        aims = [t for t in (*own, *stretch.leaves) if t.requires_grad]
        if not wanted or not aims:
            return (None,) * (2 + len(inputs) + len(stretch.leaves))
        ys, cotangents = zip(*wanted, strict=True)
        found = iter(grad(ys, aims, cotangents, retain_graph=True, create_graph=create, allow_unused=True))
        return (None, None, *(next(found) if t.requires_grad else None for t in (*own, *stretch.leaves)))


def checkpoint(
    function: Callable, *args: Any, use_reentrant: bool | None = None, context_fn: Callable = noop_context_fn,
    determinism_check: str = "default", debug: bool = False, early_stop: bool = True, preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """`function(*args, **kwargs)`, which keeps nothing for backward but its arguments and is run again there.

    Tensors may stand in nested tuples, lists and dicts of arguments and results. Gradients reach parameters and whatever else the
    function uses. With `preserve_rng_state` it draws the same random numbers again. `determinism_check`: "default" compares shapes
    and dtypes of the results, "none" nothing. `context_fn` gives two contexts, for the first run and for the second. The other
    arguments of PyTorch's are accepted: there is one way of doing it here.

    Raises CheckpointError in backward where the results differ, ValueError for another check.
    """
    if determinism_check not in ("default", "none"):
        raise ValueError(f"determinism_check should be one of ['default', 'none'] but got {determinism_check}")
    first, second = context_fn()
    if force.interpreter is not None or not is_grad_enabled():
        with first:
            return function(*args, **kwargs)
    rng = (default_generator.seed_value, default_generator.offset) if preserve_rng_state else None
    inputs = _tensors((args, kwargs))
    own = [t.detach().requires_grad_() if t.requires_grad else t for t in inputs]
    own_args, own_kwargs = _filled((args, kwargs), own)
    with first:
        result = function(*own_args, **own_kwargs)
    outputs = _tensors(result)
    if not any(t.requires_grad for t in outputs):
        return result
    leaves = _leaves([t for t in outputs if t.requires_grad], own)
    # nothing of the arguments is held here but by the node, which notices when they are written over
    shape = _mapped((args, kwargs), lambda t: _PLACE)
    stretch = _Stretch(function, shape, lambda: second, rng, determinism_check == "default", outputs, leaves, in_force.casts)
    del own, own_args, own_kwargs
    return _filled(result, _Recompute.apply(stretch, len(inputs), *inputs, *leaves))


with no_grad():
    _PLACE = Tensor(0)  #: stands for a tensor among the arguments


def checkpoint_sequential(functions: Any, segments: int, input: Any, use_reentrant: bool | None = None, **kwargs: Any) -> Any:
    """The functions (or a Sequential) one after the other in `segments` checkpointed stretches, the last without checkpointing."""
    preserve = kwargs.pop("preserve_rng_state", True)
    if kwargs:
        raise ValueError("Unexpected keyword arguments: " + ",".join(kwargs))
    parts = list(functions.children()) if isinstance(functions, Sequential) else list(functions)
    if not 0 < segments <= max(len(parts), 1):
        raise ValueError(f"checkpoint_sequential: expected between 1 and {len(parts)} segments, got {segments}")
    size = len(parts) // segments

    def stretch(start: int, end: int) -> Callable:
        def run(x: Any) -> Any:
            for f in parts[start:end]:
                x = f(x)
            return x

        return run

    end = 0
    for k in range(segments - 1):
        input = checkpoint(stretch(k * size, (k + 1) * size), input, preserve_rng_state=preserve)
        end = (k + 1) * size
    return stretch(end, len(parts))(input)


__all__ = ["CheckpointError", "checkpoint", "checkpoint_sequential", "noop_context_fn"]
