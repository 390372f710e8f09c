"""grad, vjp, jvp, linearize, jacrev, jacfwd, hessian: derivatives as functions of functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flame.autograd.engine import grad as tape_grad
from flame.autograd.functional import _unit, fresh, pushed, stacked, transposed, zeros_like
from flame.autograd.modes import enable_grad
from flame.autograd.tape import AccumulateGrad, edge
from flame.dtypes import int64
from flame.func.batched import Batching, captured
from flame.func.tree import flatten, mapped, tensors
from flame.func.vectorized import vmap
from flame.primitive import force, registered
from flame.tensor import Tensor

copy, full, reshape, cast = map(registered, ("copy", "full", "reshape", "cast"))


def _variables(x: Any) -> Any:
    """Copies of a nest's floating tensors that require grad, and remember what they were copied from."""

    def variable(t: Tensor) -> Tensor:
        if not (t.dtype.is_floating_point or t.dtype.is_complex):
            raise RuntimeError(f"only tensors of floating point dtype can be differentiated by, but one is {t.dtype!r}")
        return fresh(t, True)

    return mapped(variable, x)


def _let_go(x: Any, own: list[Tensor]) -> Any:
    """Results that lead to nothing but the variables made here are detached: nobody outside can ask for their derivatives."""
    run = force.interpreter
    if isinstance(run, Batching) and captured(run):  # what a captured batch leads to is not known yet
        return x
    mine = {id(t) for t in own}

    def leads_out(t: Tensor) -> bool:
        if run is not None and t._ref is not None:
            stack = run.leads_to(t)
        else:
            e = edge(t)
            stack = [] if e is None else [e]
        seen: set = set()
        while stack:
            node = stack.pop()[0]
            if node in seen:
                continue
            seen.add(node)
            if isinstance(node, AccumulateGrad):
                if id(node.tensor) not in mine:
                    return True
            else:
                stack.extend(f for f in node.edges if f is not None)
        return False

    return mapped(lambda t: t if leads_out(t) else t.detach() if t._batching is None else t._alias(), x)


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


def linearize(func: Callable, *primals: Any) -> tuple[Any, Callable]:
    """(func(*primals), a function from tangents of the primals to that of the output): `func` runs once, and its derivative at
    these primals is there for any number of tangents. Primals are tensors, or nests of them; the function raises RuntimeError for
    tangents of other shapes or dtypes. It is `jvp` by the transpose of backward, which is linear in its cotangent."""
    with enable_grad():
        f, picked, xs = _split(func, tuple(range(len(primals))), primals, {}, "linearize")
        y = f(*picked)
        ys, rebuild = flatten(y)
        if not all(isinstance(t, Tensor) for t in ys):
            raise RuntimeError("linearize(f, *primals): Expected f(*primals) to return tensors")
        linear = transposed(tuple(ys), tuple(xs))

    def push(*tangents: Any) -> Any:
        vs = tensors(tangents)
        if [(v.shape, v.dtype) for v in vs] != [(x.shape, x.dtype) for x in xs]:
            raise RuntimeError(
                f"linearize: expected tangents like the primals, {[(list(x.shape), x.dtype) for x in xs]}, but got "
                f"{[(list(v.shape), v.dtype) for v in vs]}"
            )
        with enable_grad():
            return _let_go(rebuild(list(linear(tuple(vs), True))), xs)

    return _let_go(y, xs), push


def _jacobian(func: Callable, argnums: Any, has_aux: bool, forward: bool, chunk: int | None, randomness: str) -> Callable:
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
            blocks = [_forward_rows(ys, xs, j, randomness) if forward else _rows(t, xs, chunk) for j, t in enumerate(ys)]
            back = flatten(picked)[1]
            out = rebuild([back(b)[0] if isinstance(argnums, int) else back(b) for b in blocks])
            out, aux = _let_go((out, aux), xs)
        return (out, aux) if has_aux else out

    return wrapped


def _rows(y: Tensor, xs: list[Tensor], chunk: int | None) -> list[Tensor]:
    """d y / d x for each x: all rows at once, by vmap over the cotangents of y (under capture one a time, which it fuses)."""
    n = y.numel()
    if not y.requires_grad or not n:
        return [full(0, shape=(*y.shape, *x.shape), dtype=y.dtype) for x in xs]

    def pull(g: Tensor) -> tuple[Tensor, ...]:
        gs = tape_grad([y], xs, [g], create_graph=True, allow_unused=True)
        return tuple(zeros_like(x) if v is None else v for v, x in zip(gs, xs, strict=True))

    if captured(force.interpreter):
        rows = [pull(_unit(y, k)) for k in range(n)]
        return [stacked([r[i] for r in rows], (*y.shape, *x.shape)) for i, x in enumerate(xs)]
    whole = vmap(pull, chunk_size=chunk)(_units(y))
    return [reshape(w, shape=(*y.shape, *x.shape)) for w, x in zip(whole, xs, strict=True)]


def _units(x: Tensor) -> Tensor:
    """For each element of x, in order, a tensor like x of which it is 1 and the others are 0."""
    n = x.numel()
    i = registered("iota")(size=n, dtype=int64)
    return reshape(cast(registered("eq")(reshape(i, shape=(n, 1)), i), dtype=x.dtype), shape=(n, *x.shape))


def _forward_rows(ys: list[Tensor], xs: list[Tensor], j: int, randomness: str) -> list[Tensor]:
    """d ys[j] / d x for each x: all columns at once, by vmap over the tangents of x."""
    out = []
    y = ys[j]
    for x in xs:
        n = x.numel()
        if not n or not y.requires_grad:
            out.append(full(0, shape=(*y.shape, *x.shape), dtype=y.dtype))
            continue
        if captured(force.interpreter):
            columns = [pushed((y,), (x,), (_unit(x, k),), True)[0] for k in range(n)]
            whole = stacked(columns, (n, *y.shape))
        else:
            whole = vmap(pushing(y, x), randomness=randomness)(_units(x))
        moved = registered("permute")(whole, dims=(*range(1, y.ndim + 1), 0))
        out.append(reshape(moved, shape=(*y.shape, *x.shape)))
    return out


def pushing(y: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The tangent of y as a function of that of x: the transpose of what backward computes, which is linear in its cotangent."""
    dummy = fresh(zeros_like(y), False)
    (g,) = tape_grad([y], [x], [dummy], create_graph=True, allow_unused=True)

    def push(v: Tensor) -> Tensor:
        if g is None or not g.requires_grad:
            return zeros_like(y)
        (t,) = tape_grad([g], [dummy], [v], create_graph=True, allow_unused=True)
        return zeros_like(y) if t is None else t

    return push


def jacrev(
    func: Callable,
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Callable:
    """A function that gives the Jacobian, outputs' shape + inputs' shape, by reverse mode: a row for each output element, all (or
    `chunk_size` of them) at once."""
    if chunk_size is not None and chunk_size <= 0:
        raise ValueError("jacrev: `chunk_size` should be greater than 0.")
    return _jacobian(func, argnums, has_aux, False, chunk_size, "error")


def jacfwd(func: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False, *, randomness: str = "error") -> Callable:
    """A function that gives the Jacobian by forward mode: a column for each input element."""
    return _jacobian(func, argnums, has_aux, True, None, randomness)


def hessian(func: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """A function that gives the second derivatives, by the Jacobian of the gradient."""
    return jacfwd(jacrev(func, argnums), argnums)
