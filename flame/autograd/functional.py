"""Products with Jacobians and Hessians, and these matrices themselves: torch.autograd.functional.

A Jacobian-vector product (forward mode) is computed by backward twice: the cotangent-to-gradient map is linear, and its
transpose is the product that is asked for (J. Townsend, 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame.autograd.engine import grad
from flame.autograd.modes import enable_grad
from flame.autograd.tape import filled
from flame.primitive import force, registered
from flame.tensor import Tensor

copy, reshape, slice_, cat = map(registered, ("copy", "reshape", "slice", "cat"))


def zeros_like(x: Tensor) -> Tensor:
    return filled(0, x)


def _as_tuple(x: Any, op: str, what: str) -> tuple[tuple, bool]:
    single = not isinstance(x, tuple | list)
    xs = (x,) if single else tuple(x)
    for i, t in enumerate(xs):
        if not isinstance(t, Tensor):
            raise TypeError(
                f"The {what} given to {op} must be either a Tensor or a tuple of Tensors but the value at index {i} has type "
                f"{type(t).__name__}."
            )
    return xs, single


def fresh(x: Tensor, create_graph: bool) -> Tensor:
    """A tensor of the same values that requires grad: one that remembers x, if the result is to be differentiated further.

    Inside of vmap its tape is that of single examples, and what leads on from x outside is remembered with the values.
    """
    own = getattr(force.interpreter, "unvaried", None)
    if own is not None:
        c = copy(own(x) if create_graph else own(x).detach())
        if not c.requires_grad:
            c._requires_grad = True
        return c
    if create_graph and x.requires_grad:
        return copy(x)
    return copy(x.detach()).requires_grad_()


def _called(func: Callable, xs: tuple, op: str) -> tuple[tuple, bool]:
    ys, single = _as_tuple(func(*xs), op, "outputs of the user-provided function")
    return ys, single


def _given(v: Any, like: tuple, op: str) -> tuple:
    if v is None:
        if len(like) != 1 or like[0].numel() != 1:
            raise RuntimeError(
                f"The vector v can only be None if the user-provided function returns a single Tensor with a single element "
                f"(in {op})."
            )
        return (filled(1, like[0]),)
    vs, _ = _as_tuple(v, op, "v")
    if len(vs) != len(like) or any(a.shape != b.shape for a, b in zip(vs, like, strict=True)):
        raise RuntimeError(f"v has shapes {[list(t.shape) for t in vs]}, but {op} expects {[list(t.shape) for t in like]}")
    return vs


def _pulled(ys: tuple, xs: tuple, vs: tuple, create_graph: bool, strict: bool, op: str) -> tuple:
    """The cotangents of xs; zeros (or an error, if strict) where nothing depends on one."""
    pairs = [(y, v) for y, v in zip(ys, vs, strict=True) if y.requires_grad]
    if len(pairs) < len(ys) and strict:
        raise RuntimeError(
            f"An output of the user-provided function is independent of all inputs; {op} does not allow that in strict mode."
        )
    if not pairs:
        return tuple(map(zeros_like, xs))
    gs = grad([y for y, _ in pairs], xs, [v for _, v in pairs], retain_graph=True, create_graph=create_graph, allow_unused=True)
    if strict and any(g is None for g in gs):
        raise RuntimeError(f"An input is independent of the outputs; {op} does not allow that in strict mode.")
    return tuple(zeros_like(x) if g is None else g for g, x in zip(gs, xs, strict=True))


def _shown(ts: tuple, single: bool, create_graph: bool) -> Any:
    out = ts if create_graph else tuple(t.detach() for t in ts)
    return out[0] if single else out


def vjp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(outputs, v times the Jacobian): the cotangents of the inputs, given those of the outputs."""
    xs, single = _as_tuple(inputs, "vjp", "inputs")
    with enable_grad():
        xs = tuple(fresh(x, create_graph) for x in xs)
        ys, one = _called(func, xs, "vjp")
        gs = _pulled(ys, xs, _given(v, ys, "vjp"), create_graph, strict, "vjp")
    return _shown(ys, one, create_graph), _shown(gs, single, create_graph)


def transposed(ys: tuple, xs: tuple) -> Callable[[tuple, bool], tuple]:
    """The tangents of ys as a function of those of xs (and of whether they are to be differentiated again): the transpose of what
    backward computes, which is linear in its cotangents, zeros of which stand for all."""
    dummies = tuple(fresh(zeros_like(y), False) for y in ys)
    gs = grad(
        [y for y in ys if y.requires_grad], xs, [d for y, d in zip(ys, dummies, strict=True) if y.requires_grad],
        create_graph=True, allow_unused=True,
    ) if any(y.requires_grad for y in ys) else (None,) * len(xs)  # fmt: skip

    def push(vs: tuple, create_graph: bool) -> tuple:
        pairs = [(g, v) for g, v in zip(gs, vs, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return tuple(map(zeros_like, ys))
        out = grad(
            [g for g, _ in pairs],
            dummies,
            [v for _, v in pairs],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
        return tuple(zeros_like(y) if t is None else t for t, y in zip(out, ys, strict=True))

    return push


def pushed(ys: tuple, xs: tuple, vs: tuple, create_graph: bool) -> tuple:
    """The tangents of ys, given those of xs."""
    return transposed(ys, xs)(vs, create_graph)


def jvp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(outputs, the Jacobian times v): the tangents of the outputs, given those of the inputs."""
    xs, _ = _as_tuple(inputs, "jvp", "inputs")
    with enable_grad():
        xs = tuple(fresh(x, create_graph) for x in xs)
        vs = _given(v, xs, "jvp")
        ys, one = _called(func, xs, "jvp")
        if strict and not all(y.requires_grad for y in ys):
            raise RuntimeError(
                "An output of the user-provided function is independent of all inputs; jvp does not allow that in strict mode."
            )
        out = pushed(ys, xs, vs, create_graph)
    return _shown(ys, one, create_graph), _shown(out, one, create_graph)


def _unit(y: Tensor, k: int) -> Tensor:
    """The k-th unit vector in y's shape."""
    n = y.numel()
    flat = registered("pad")(filled(1, y, (1,)), lo=(k,), hi=(n - 1 - k,), value=0)
    return reshape(flat, shape=tuple(y.shape))


def stacked(rows: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Rows of equal shape as one tensor of `shape`."""
    return reshape(cat(*[reshape(r, shape=(1, *r.shape)) for r in rows], dim=0), shape=shape)


def jacobian(
    func: Callable,
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """The derivatives of every output element by every input element: a tensor of shape outputs + inputs, in a tuple for each
    tuple of outputs and inputs. `vectorize` is accepted; rows are computed one after the other."""
    if strategy not in ("reverse-mode", "forward-mode"):
        raise ValueError(f"Expected strategy to be 'reverse-mode' or 'forward-mode', but got {strategy!r}")
    xs, single = _as_tuple(inputs, "jacobian", "inputs")
    with enable_grad():
        xs = tuple(fresh(x, create_graph) for x in xs)
        ys, one = _called(func, xs, "jacobian")
        out = []
        for y in ys:
            rows = [_pulled((y,), xs, (_unit(y, k),), create_graph, strict, "jacobian") for k in range(y.numel())]
            blocks = tuple(
                stacked([r[i] for r in rows], (*y.shape, *x.shape)) if rows else filled(0, x, (*y.shape, *x.shape))
                for i, x in enumerate(xs)
            )
            out.append(_shown(blocks, single, create_graph))
    return out[0] if one else tuple(out)


def hessian(
    func: Callable,
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    """The second derivatives of a function with one result of one element: shape inputs + inputs."""
    xs, single = _as_tuple(inputs, "hessian", "inputs")

    def slope(*args: Tensor) -> Any:
        ys, one = _called(func, args, "hessian")
        if not one:
            raise RuntimeError("The function given to hessian should return a single Tensor")
        if ys[0].numel() != 1:
            raise RuntimeError("The Tensor returned by the function given to hessian should contain a single element")
        return _pulled(ys, args, _given(None, ys, "hessian"), True, strict, "hessian")

    got = jacobian(slope, xs, create_graph, strict)
    return got[0][0] if single else got


def hvp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(value, the Hessian times v)."""
    value, product = vhp(func, inputs, v, create_graph, strict)  # the Hessian is symmetric
    return value, product


def vhp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(value, v times the Hessian) of a function with one result of one element."""
    xs, single = _as_tuple(inputs, "vhp", "inputs")
    with enable_grad():
        xs = tuple(fresh(x, create_graph) for x in xs)
        vs = _given(v, xs, "vhp")
        ys, one = _called(func, xs, "vhp")
        if not one or ys[0].numel() != 1:
            raise RuntimeError("The function given to vhp should return a single Tensor with a single element")
        gs = _pulled(ys, xs, _given(None, ys, "vhp"), True, strict, "vhp")
        product = _pulled(gs, xs, vs, create_graph, strict, "vhp")
    return _shown(ys, True, create_graph), _shown(product, single, create_graph)
