"""Derivatives held against finite differences: `gradcheck` for first, `gradgradcheck` for second order.

Every element of every floating input is moved by `eps` to both sides (central differences); the Jacobian that results is
compared with the one that backward gives, column by column. `fast_mode` compares one random direction instead. A complex number
is two real ones here, its parts: the gradient at a cotangent v is J^T v of the Jacobian J between parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flame.autograd.engine import grad
from flame.autograd.modes import enable_grad, no_grad
from flame.tensor import Tensor, wrap


class GradcheckError(RuntimeError):
    """A derivative that backward gives is not the one of finite differences."""


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    return [t for t in x if isinstance(t, Tensor)] if isinstance(x, Sequence) else []


def _outputs(func: Callable, inputs: Sequence[Any]) -> list[Tensor]:
    return [y for y in _tensors(func(*inputs)) if y.dtype.is_floating_point or y.dtype.is_complex]


def _parts(a: Any) -> np.ndarray:
    """The real numbers an array is made of, in a row: of complex ones, real and imaginary parts in turn."""
    a = np.ascontiguousarray(a)
    return a.reshape(-1).view(np.float64 if a.dtype.itemsize == 16 else np.float32) if a.dtype.kind == "c" else a.reshape(-1)


def _of_parts(v: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The array of `like`'s shape and dtype that has these parts."""
    complex_ = like.dtype.kind == "c"
    v = np.ascontiguousarray(v, like.real.dtype if complex_ else like.dtype)
    return (v.view(like.dtype) if complex_ else v).reshape(like.shape)


def _moved(func: Callable, inputs: Sequence[Any], k: int, step: np.ndarray) -> list[np.ndarray]:
    """What func gives where `step` was added to input k."""
    x = inputs[k]
    other = wrap(np.asarray(x._read() + step, x._read().dtype))
    other._requires_grad = x.requires_grad
    with enable_grad() if x.requires_grad else no_grad():
        outs = _outputs(func, [other if i == k else v for i, v in enumerate(inputs)])
    return [np.asarray(_parts(y.detach()._read()), np.float64) for y in outs]


def gradcheck(
    func: Callable,
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """Whether backward gives the derivatives of `func` at `inputs`, which should be float64 or complex128.

    Raises GradcheckError with the two Jacobians where they differ (or returns False without `raise_exception`), and ValueError
    where no input requires grad. Forward mode is backward twice here, so that `check_forward_ad` checks nothing else.
    """
    xs = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    wanted = [i for i, x in enumerate(xs) if isinstance(x, Tensor) and x.requires_grad]
    if not wanted:
        raise ValueError(
            "gradcheck expects at least one input tensor to require gradient, but none of the them have requires_grad=True."
        )
    try:
        _compare(func, xs, wanted, eps, atol, rtol, nondet_tol, fast_mode)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def _compare(
    func: Callable, xs: list, wanted: list[int], eps: float, atol: float, rtol: float, nondet_tol: float, fast: bool
) -> None:
    r = np.random.default_rng(0)
    ys = [y for y in _outputs(func, xs)]
    again = _outputs(func, xs)
    for j, (y, z) in enumerate(zip(ys, again, strict=True)):
        if not np.allclose(y.detach()._read(), z.detach()._read(), rtol=0, atol=nondet_tol, equal_nan=True):
            raise GradcheckError(f"func gives another result when called again: output {j} is not deterministic")
    for k in wanted:
        x = xs[k]
        a = x.detach()._read()
        size = _parts(a).size
        steps = [r.standard_normal(size)] if fast else list(np.eye(size))
        numeric = []
        for s in steps:
            up, down = (_moved(func, xs, k, _of_parts(h * s, a)) for h in (eps, -eps))
            numeric.append([(p - q) / (2 * eps) for p, q in zip(up, down, strict=True)])
        for j, y in enumerate(ys):
            like = y.detach()._read()
            columns = _parts(like).size
            want = np.stack([n[j] for n in numeric], 0) if numeric else np.zeros((0, columns))
            # where one direction is enough, so is one cotangent
            cotangents = [r.standard_normal(columns)] if fast else list(np.eye(columns))
            want = np.stack([want @ v for v in cotangents], 1) if cotangents else want
            got = np.zeros_like(want)
            for c, v in enumerate(cotangents) if y.requires_grad else ():
                (g,) = grad([y], [x], [wrap(_of_parts(v, like))], retain_graph=True, allow_unused=True)
                if g is not None:
                    got[:, c] = [_parts(g.detach()._read()) @ s for s in steps]
            if not np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
                raise GradcheckError(
                    f"Jacobian mismatch for output {j} with respect to input {k},\nnumerical:{want}\nanalytical:{got}\n"
                )


def gradgradcheck(
    func: Callable,
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    """gradcheck of the gradients of `func` as functions of its inputs and of the cotangents `grad_outputs` (drawn at random
    where they are not given)."""
    xs = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    ys = [y for y in _outputs(func, xs) if y.requires_grad]
    if grad_outputs is None:
        r = np.random.default_rng(1)
        gs = []
        for y in ys:
            like = y.detach()._read()
            g = wrap(_of_parts(r.standard_normal(_parts(like).size), like))
            g._requires_grad = True
            gs.append(g)
    else:
        gs = _tensors(grad_outputs)
    n = len(gs)
    wanted = [i for i, x in enumerate(xs) if isinstance(x, Tensor) and x.requires_grad]

    def slopes(*args: Any) -> tuple:
        values, weights = args[: len(args) - n], args[len(args) - n :]
        outs = [y for y in _outputs(func, values) if y.requires_grad]
        got = grad(outs, [values[i] for i in wanted], list(weights), create_graph=True, allow_unused=True)
        return tuple(g for g in got if g is not None)

    return gradcheck(
        slopes, [*xs, *gs], eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception, nondet_tol=nondet_tol,
        fast_mode=fast_mode,
    )  # fmt: skip
