"""Hooks around a module's backward pass: two identities, before and after its forward, that see the gradients pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame.autograd.function import Function
from flame.tensor import Tensor


class _Passage(Function):
    """Identity on tensors; `seen(grads)` is told of their gradients and may return others."""

    @staticmethod
    def forward(ctx: Any, seen: Callable, *tensors: Tensor) -> tuple:
        ctx.seen = seen
        ctx.set_materialize_grads(False)
        return tensors

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        got = ctx.seen(grads)
        return (None, *(grads if got is None else got))


def _pass(xs: tuple, seen: Callable[[tuple], Any]) -> tuple[tuple, bool]:
    """`xs` with its tensors led through a passage; whether any of them wants a gradient."""
    at = [i for i, x in enumerate(xs) if isinstance(x, Tensor)]
    tensors = [xs[i] for i in at]
    if not any(t.requires_grad for t in tensors):  # type: ignore[attr-defined]
        return xs, False

    def widen(grads: tuple) -> Any:
        full: list = [None] * len(xs)
        for i, g in zip(at, grads, strict=True):
            full[i] = g
        got = seen(tuple(full))
        return None if got is None else [got[i] for i in at]

    out = list(xs)
    for i, t in zip(at, _Passage.apply(widen, *tensors), strict=True):
        out[i] = t
    return tuple(out), True


def _as_tuple(got: Any, n: int, what: str) -> tuple:
    got = got if isinstance(got, tuple) else (got,)
    if len(got) != n:
        raise RuntimeError(f"Backward hook returned an invalid number of grad in its {what}, got {len(got)}, but expected {n}")
    return got


def around_backward(module: Any, args: tuple) -> tuple[tuple, Callable[[Any], Any]]:
    """The arguments led past the module's hooks, and a function that leads the result past them."""
    state: dict[str, Any] = {"grad_output": None}

    def entered(grads: tuple) -> Any:
        """The cotangents of the arguments are known."""
        new: tuple | None = None
        for hook, _, _ in list(module._backward_hooks.values()):
            got = hook(module, grads if new is None else new, state["grad_output"])
            if got is not None:
                new = _as_tuple(got, len(grads), "grad_input")
        return new

    args, inputs_want = _pass(args, entered)

    def left(grads: tuple) -> Any:
        """The cotangents of the results are known."""
        new: tuple | None = None
        for hook, _, _ in list(module._backward_pre_hooks.values()):
            got = hook(module, grads if new is None else new)
            if got is not None:
                new = _as_tuple(got, len(grads), "grad_output")
        state["grad_output"] = grads if new is None else new
        if not inputs_want:
            for hook, _, _ in list(module._backward_hooks.values()):
                if hook(module, (None,) * len(args), state["grad_output"]) is not None:
                    raise RuntimeError(
                        "Backward hook for Modules where no input requires gradient should always return None or None for all "
                        "gradients."
                    )
        return new

    def leave(result: Any) -> Any:
        if isinstance(result, Tensor):
            return _pass((result,), left)[0][0]
        if isinstance(result, tuple):
            got = _pass(tuple(result), left)[0]
            return got if type(result) is tuple else result._make(got)  # type: ignore[attr-defined]
        if isinstance(result, dict):
            keys = list(result)
            return dict(zip(keys, _pass(tuple(result[k] for k in keys), left)[0], strict=True))
        return result

    return args, leave
