"""grad, vjp, jvp, jacrev, jacfwd, hessian: derivatives as functions of functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flame.autograd.engine import grad as tape_grad
from flame.autograd.functional import _unit, pushed, stacked, zeros_like
from flame.autograd.modes import enable_grad
from flame.autograd.tape import AccumulateGrad, edge
from flame.func.tree import flatten, mapped, tensors
from flame.primitive import force, registered
from flame.tensor import Tensor

copy = registered("copy")


def _variables(x: Any) -> Any:
    """Copies of a nest's floating tensors that require grad, and remember what they were copied from."""

    def variable(t: Tensor) -> Tensor:
        if not (t.dtype.is_floating_point or t.dtype.is_complex):
            raise RuntimeError(f"only tensors of floating point dtype can be differentiated by, but one is {t.dtype!r}")
        return copy(t) if t.requires_grad else copy(t.detach()).requires_grad_()

    return mapped(variable, x)


def _let_go(x: Any, own: list[Tensor]) -> Any:
    """Results that lead to nothing but the variables made here are detached: nobody outside can ask for their derivatives."""
    if force.interpreter is not None:  # what a captured result leads to is not known yet
        return x
    mine = {id(t) for t in own}

    def leads_out(t: Tensor) -> bool:
        e = edge(t)
        stack = [] if e is None else [e[0]]
        seen: set = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if isinstance(node, AccumulateGrad):
                if id(node.tensor) not in mine:
                    return True
            else:
                stack.extend(f[0] for f in node.edges if f is not None)
        return False

    return mapped(lambda t: t if leads_out(t) else t.detach(), x)


def _picked(argnums: Any, args: tuple, op: str) -> tuple:
    nums = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for n in nums:
        if not isinstance(n, int) or not -len(args) <= n < len(args):
            raise RuntimeError(f"{op}: got argnum={n}, but only {len(args)} positional inputs")
    return tuple(n % len(args) for n in nums)


def _split(func: Callable, argnums: Any, args: tuple, kwargs: dict, op: str) -> tuple[Callable, tuple, list[Tensor]]:
    """func as a function of the picked arguments; those arguments as variables; all their tensors."""
    nums = _picked(argnums, args, op)
    picked = tuple(_variables(args[n]) for n in nums)

    def partial(*values: Any) -> Any:
        whole = list(args)
        for n, v in zip(nums, values, strict=True):
            whole[n] = v
        return func(*whole, **kwargs)

    return partial, picked, tensors(picked)


def grad_and_value(func: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable:
    """A function that gives (gradient, value) of a function with a result of one element: ((gradient, (value, aux)) with
    `has_aux`)."""

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with enable_grad():
            f, picked, xs = _split(func, argnums, args, kwargs, "grad")
            y = f(*picked)
            aux = None
            if has_aux:
                if not (isinstance(y, tuple) and len(y) == 2):
                    raise RuntimeError(
                        "grad_and_value(f)(*args): output of function f should be a tuple: (output, aux) if has_aux is True"
                    )
                y, aux = y
            if not isinstance(y, Tensor):
                raise RuntimeError(
                    f"grad_and_value(f)(*args): Expected f(*args) to return a single tensor, got {type(y).__name__}"
                )
            if y.ndim:
                raise RuntimeError(
                    f"grad_and_value(f)(*args): Expected f(*args) to return a scalar tensor, got tensor with {y.ndim} dims."
                )
            gs: Any = [None] * len(xs)
            if y.requires_grad:
                gs = tape_grad([y], xs, create_graph=True, allow_unused=True)
            gs = [zeros_like(x) if g is None else g for g, x in zip(gs, xs, strict=True)]
            out = flatten(picked)[1](gs)
            got = out[0] if isinstance(argnums, int) else out
            got, y, aux = _let_go((got, y, aux), xs)
        return (got, (y, aux)) if has_aux else (got, y)

    return wrapped


def grad(func: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable:
    """A function that gives the gradient of a function with a result of one element."""
    both = grad_and_value(func, argnums, has_aux)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        got, rest = both(*args, **kwargs)
        return (got, rest[1]) if has_aux else got

    return wrapped


def vjp(func: Callable, *primals: Any, has_aux: bool = False) -> Any:
    """(outputs, a function from cotangents of the outputs to a tuple of those of the primals[, aux])."""
    with enable_grad():
        f, picked, xs = _split(func, tuple(range(len(primals))), primals, {}, "vjp")
        y = f(*picked)
        aux = None
        if has_aux:
            y, aux = y
    ys = tensors(y)

    def pull(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        gs = tensors(cotangents)
        if len(gs) != len(ys) or any(a.shape != b.shape for a, b in zip(gs, ys, strict=True)):
            raise RuntimeError(
                f"Expected cotangents of shapes {[list(t.shape) for t in ys]}, but got {[list(t.shape) for t in gs]}"
            )
        pairs = [(a, b) for a, b in zip(ys, gs, strict=True) if a.requires_grad]
        got: Any = [None] * len(xs)
        with enable_grad():
            if pairs:
                got = tape_grad(
                    [a for a, _ in pairs], xs, [b for _, b in pairs], retain_graph=True, create_graph=True, allow_unused=True
                )
            got = [zeros_like(x) if g is None else g for g, x in zip(got, xs, strict=True)]
            out = _let_go(flatten(picked)[1](got), xs)
        return out

    shown = _let_go((y, aux), xs)
    return (shown[0], pull, shown[1]) if has_aux else (shown[0], pull)


def jvp(func: Callable, primals: tuple, tangents: tuple, *, strict: bool = False, has_aux: bool = False) -> Any:
    """(outputs, their tangents[, aux]), given the primals and theirs."""
    if not isinstance(primals, tuple) or not isinstance(tangents, tuple):
        raise RuntimeError("jvp(f, primals, tangents): Expected primals and tangents to be tuples")
    with enable_grad():
        f, picked, xs = _split(func, tuple(range(len(primals))), primals, {}, "jvp")
        vs = tensors(tangents)
        if len(vs) != len(xs) or any(a.shape != b.shape for a, b in zip(vs, xs, strict=True)):
            raise RuntimeError(
                f"jvp(f, primals, tangents): Expected tangents of shapes {[list(t.shape) for t in xs]}, but got "
                f"{[list(t.shape) for t in vs]}"
            )
        y = f(*picked)
        aux = None
        if has_aux:
            y, aux = y
        leaves, rebuild = flatten(y)
        ts = rebuild(list(pushed(tuple(leaves), tuple(xs), tuple(vs), True)))
        y, ts, aux = _let_go((y, ts, aux), xs)
    return (y, ts, aux) if has_aux else (y, ts)


def _jacobian(func: Callable, argnums: Any, has_aux: bool, forward: bool) -> Callable:
    op = "jacfwd" if forward else "jacrev"

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with enable_grad():
            f, picked, xs = _split(func, argnums, args, kwargs, op)
            y = f(*picked)
            aux = None
            if has_aux:
                y, aux = y
            ys, rebuild = flatten(y)
            if not all(isinstance(t, Tensor) for t in ys):
                raise RuntimeError(f"{op}(f)(*args): Expected f(*args) to return tensors")
            blocks = [_forward_rows(ys, xs, j) if forward else _rows(t, xs) for j, t in enumerate(ys)]
            back = flatten(picked)[1]
            out = rebuild([back(b)[0] if isinstance(argnums, int) else back(b) for b in blocks])
            out, aux = _let_go((out, aux), xs)
        return (out, aux) if has_aux else out

    return wrapped


def _rows(y: Tensor, xs: list[Tensor]) -> list[Tensor]:
    """d y / d x for each x, a row a time."""
    rows: list[list[Tensor]] = []
    for k in range(y.numel()):
        gs: Any = [None] * len(xs)
        if y.requires_grad:
            gs = tape_grad([y], xs, [_unit(y, k)], create_graph=True, allow_unused=True)
        rows.append([zeros_like(x) if g is None else g for g, x in zip(gs, xs, strict=True)])
    full = registered("full")
    return [
        stacked([r[i] for r in rows], (*y.shape, *x.shape)) if rows else full(0, shape=(*y.shape, *x.shape), dtype=y.dtype)
        for i, x in enumerate(xs)
    ]


def _forward_rows(ys: list[Tensor], xs: list[Tensor], j: int) -> list[Tensor]:
    """d ys[j] / d x for each x, a column a time."""
    out = []
    y = ys[j]
    n = y.ndim
    for i, x in enumerate(xs):
        columns = []
        for k in range(x.numel()):
            vs = tuple(_unit(t, k) if m == i else zeros_like(t) for m, t in enumerate(xs))
            columns.append(pushed((y,), tuple(xs), vs, True)[0])
        if not columns:
            out.append(registered("full")(0, shape=(*y.shape, *x.shape), dtype=y.dtype))
            continue
        whole = stacked(columns, (x.numel(), *y.shape))
        moved = registered("permute")(whole, dims=(*range(1, n + 1), 0))
        out.append(registered("reshape")(moved, shape=(*y.shape, *x.shape)))
    return out


def jacrev(
    func: Callable,
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Callable:
    """A function that gives the Jacobian, outputs' shape + inputs' shape, by reverse mode: a row for each output element."""
    return _jacobian(func, argnums, has_aux, False)


def jacfwd(func: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False, *, randomness: str = "error") -> Callable:
    """A function that gives the Jacobian by forward mode: a column for each input element."""
    return _jacobian(func, argnums, has_aux, True)


def hessian(func: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """A function that gives the second derivatives, by the Jacobian of the gradient."""
    return jacfwd(jacrev(func, argnums), argnums)
