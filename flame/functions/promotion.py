"""From what users write to what primitives take: tensors of one dtype and Python numbers.

PyTorch's rule (torch.result_type): operands fall in three ranks, tensors with dimensions, 0-d tensors, Python numbers; a lower
rank only counts where its category (bool < integer < floating) is higher than that of all ranks above it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flame import dtypes
from flame.autograd.tape import SHARED_ELEMENTS, about_to_write, assign, check_memory, requires_grad
from flame.dtypes import dtype, dtype_of_number, promote_types
from flame.ops.declare import quiet
from flame.primitive import Primitive, force, placement, registered
from flame.reasons import SHAPE_IN_PLACE
from flame.symbol import Symbolic
from flame.tensor import Tensor

cast, copy, expand = registered("cast"), registered("copy"), registered("expand")
_NUMBERS = (int, float, complex, Symbolic)


def number(x: Any) -> Any:
    """A Python number out of anything that is one (numpy scalars, subclasses of int and float); else None."""
    t = type(x)
    if t is int or t is float or t is bool or t is Symbolic:
        return x
    if isinstance(x, bool | np.bool_):
        return bool(x)
    if isinstance(x, int | np.integer):
        return int(x)
    if isinstance(x, float | np.floating):
        return float(x)
    if isinstance(x, complex | np.complexfloating):
        return complex(x)
    return None


def operand(x: Any, op: str, place: str = "other") -> Any:
    """A Tensor or a number. Raises TypeError for anything else, naming the argument."""
    if isinstance(x, Tensor):
        return x
    n = number(x)
    if n is not None:
        return n
    if isinstance(x, np.ndarray):
        raise TypeError(f"{op}(): argument '{place}' must be Tensor, not numpy.ndarray: use flame.from_numpy or flame.tensor")
    raise TypeError(f"{op}(): argument '{place}' must be Tensor or Number, not {type(x).__name__}")


def tensor_operand(x: Any, op: str, place: str = "input") -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}(): argument '{place}' must be Tensor, not {type(x).__name__}")
    return x


def result_type(*xs: Any) -> dtype:
    """The dtype that arithmetic on these tensors and numbers gives."""
    ranks: list[dtype | None] = [None, None, None]
    for x in xs:
        if isinstance(x, Tensor):
            rank, d = (0 if x.ndim else 1), x.dtype
        else:
            rank, d = 2, dtype_of_number(x.value if type(x) is Symbolic else x)
        have = ranks[rank]
        ranks[rank] = d if have is None else promote_types(have, d)
    found = [d for d in ranks if d is not None]
    if any(d.kind == "c" for d in found):
        wide = any(d is dtypes.complex128 for d in found[:1]) or any(
            d in (dtypes.float64, dtypes.complex128) for r, d in enumerate(ranks) if d is not None and (r == 0 or d is found[0])
        )
        return dtypes.complex128 if wide else dtypes.complex64
    return max(found, key=lambda d: d.category)  # the first of the highest category: ranks go from strong to weak


def to_dtype(x: Any, d: dtype) -> Any:
    """A tensor as `d`; numbers are left alone."""
    return cast(x, dtype=d) if isinstance(x, Tensor) and x.dtype is not d else x


def _read_as(x: Any, d: dtype) -> bool:
    """Whether a number is read in the dtype d as it is."""
    t = type(x)
    if t is complex:
        return d.kind == "c"
    return d.kind in "fc" or (t is not float and t is not Symbolic)


def promoted(*xs: Any) -> tuple:
    """The operands with tensors cast to their common dtype."""
    first = xs[0]
    if isinstance(first, Tensor):
        d = first.dtype
        if all(x.dtype is d if isinstance(x, Tensor) else _read_as(x, d) for x in xs) and not (
            d.kind == "b" and len(xs) > 1 and any(type(x) is int for x in xs)
        ):
            return xs
    d = result_type(*xs)
    return tuple([to_dtype(x, d) for x in xs])


#: what arithmetic means for two booleans
BOOLEAN = {
    registered("add"): registered("logical_or"),
    registered("mul"): registered("logical_and"),
    registered("maximum"): registered("logical_or"),
    registered("minimum"): registered("logical_and"),
    registered("fmax"): registered("logical_or"),
    registered("fmin"): registered("logical_and"),
}


def of_booleans(p: Primitive, *xs: Any) -> Primitive:
    """`p`, or what stands for it where the promoted operands are booleans."""
    other = BOOLEAN.get(p)
    if other is None or next(x for x in xs if isinstance(x, Tensor)).dtype.kind != "b":
        return p
    return other


def as_floating(*xs: Any) -> tuple:
    """The operands in their common dtype, or the default one where that is not floating."""
    d = result_type(*xs)
    if d.kind not in "fc":
        d = dtypes.get_default_dtype()
    return tuple([to_dtype(x, d) for x in xs])


def without_booleans(*xs: Any) -> tuple:
    """Promoted operands of what has no meaning for two booleans. Raises RuntimeError for those."""
    out = promoted(*xs)
    if all(isinstance(x, bool) or (isinstance(x, Tensor) and x.dtype.kind == "b") for x in out):
        raise RuntimeError("this operation is not implemented for flame.bool: cast to an integer dtype first")
    return out


def for_difference(a: Any, b: Any) -> tuple:
    """Promoted operands of a subtraction. Raises RuntimeError where one is boolean."""
    for x in (a, b):
        if x is True or x is False or (isinstance(x, Tensor) and x.dtype.kind == "b"):
            raise RuntimeError(
                "Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying to invert a mask, use the "
                "`~` or `logical_not()` operator instead."
            )
    return promoted(a, b)


def with_tensor(*xs: Any, op: str) -> tuple:
    """At least one tensor: a number takes the place of a 0-d tensor where all are numbers."""
    if any(isinstance(x, Tensor) for x in xs):
        return xs
    raise TypeError(f"{op}(): expected at least one Tensor among its arguments, got {', '.join(type(x).__name__ for x in xs)}")


#: functions whose `out` has the result's dtype, and not one that the result can be cast to; "_pair": of those that give two
_OF_ITS_DTYPE = frozenset(
    """aminmax argmax argmin max_pair min_pair sort topk kthvalue median nanmedian cummax cummin mode gather index_select take
    take_along_dim masked_select scatter scatter_add index_add index_copy inner tensordot tril triu diag multinomial nonzero renorm
    complex polar matmul mm bmm mv dot addmm addmv addbmm baddbmm cross msort searchsorted histc where""".split()
)


def deliver(result: Tensor, out: Tensor | None, op: str) -> Tensor:
    """Write a result to `out=` where one is given. Raises RuntimeError where shapes differ, the dtype
    can't take it, or two places of `out` are one element."""
    if out is None:
        return result
    if not isinstance(out, Tensor):
        raise TypeError(f"{op}(): argument 'out' must be Tensor, not {type(out).__name__}")
    if op in _OF_ITS_DTYPE and out.dtype is not result.dtype:
        raise RuntimeError(f"{op}(): Expected out tensor to have dtype {result.dtype!r}, but got {out.dtype!r} instead")
    if out.shape != result.shape and out.numel() == 0 and out._view is None:
        return _grown(result, out, op)
    if out.shape != result.shape:
        raise RuntimeError(f"{op}: out has shape {list(out.shape)}, the result {list(result.shape)}; give an out of that shape")
    _check_out(result, out, op)
    a = out._array
    if a is not None and 0 in a.strides and a.size and any(s == 0 and n > 1 for s, n in zip(a.strides, a.shape, strict=True)):
        raise RuntimeError(SHARED_ELEMENTS)
    return assign(out, copy(to_dtype(result, out.dtype)))


def _grown(result: Tensor, out: Tensor, op: str) -> Tensor:
    """An `out` without elements takes the result's shape, in memory of its own."""
    _check_out(result, out, op)
    if force.interpreter is not None:
        force.interpreter.leave(SHAPE_IN_PLACE, "out=")
    out._array = copy(to_dtype(result, out.dtype))._data()
    out._storage = None
    return out


def _check_out(result: Tensor, out: Tensor, op: str) -> None:
    if force.grad and (_wants(out) or _wants(result)):
        raise RuntimeError(f"{op}(): functions with out=... arguments don't support automatic differentiation")
    if result.dtype.category > out.dtype.category:
        raise RuntimeError(f"result type {result.dtype!r} can't be cast to the desired output type {out.dtype!r}")


def inplace(primitive: Primitive, target: Tensor, *others: Any, op: str = "", **params: Any) -> Tensor:
    """target := primitive(target, *others), in its own memory and dtype."""
    run = force.interpreter
    if run is None:
        if len(others) == 1 and not params and placement.direct:
            f = _plain_update(primitive, target, others[0])
            if f is not None:
                return _write_over(f, target, (target, others[0]))
    elif not params and run.follow_inplace(primitive, target, others):
        return target
    op = op or primitive.name + "_"
    xs = promoted(target, *others)
    d = target.dtype
    primitive = of_booleans(primitive, *xs)
    if xs[0].dtype is not d and xs[0].dtype.category > d.category:
        raise RuntimeError(f"result type {xs[0].dtype!r} can't be cast to the desired output type {d!r}")
    for x in others:
        if isinstance(x, Tensor) and x.ndim and tuple(x.shape) != tuple(target.shape):
            check_fits(target, x, op)
    wants = requires_grad if force.interpreter is None else _wants
    needs = force.grad and (wants(target) or any(isinstance(x, Tensor) and wants(x) for x in others))
    plain = not needs and not (force.grad and target._view is not None and requires_grad(target._view.base))
    here = force.interpreter is None and not (placement.gpu and any([isinstance(x, Tensor) and x.is_cuda for x in xs]))
    if here and plain and xs[0] is target and (d is dtypes.float32 or d is dtypes.float64):
        f = getattr(primitive.eager, "numpy", None)
        if isinstance(f, np.ufunc) and primitive.scalar is not None:
            return _write_over(f, target, xs)
    if needs and _saves_target(primitive, xs, wants):
        xs = (copy(target), *xs[1:])
    value = primitive(*xs, **params)
    return assign(target, to_dtype(value, d))


def _plain_update(primitive: Primitive, target: Tensor, other: Any) -> np.ufunc | None:
    """The ufunc that is all there is to an update of a float tensor by one of its dtype and shape, or a number; None: more is."""
    a = target._array
    if a is None or a.dtype.kind != "f" or a.itemsize < 4 or primitive.scalar is None:
        return None
    if isinstance(other, Tensor):
        b = other._array
        if b is None or b.dtype is not a.dtype or b.shape != a.shape:
            return None
        if force.grad and (other._requires_grad or other._node is not None or other._view is not None):
            return None
    elif type(other) is not float and type(other) is not int:
        return None
    if force.grad and (target._requires_grad or target._node is not None or target._view is not None):
        return None
    f = getattr(primitive.eager, "numpy", None)
    return f if isinstance(f, np.ufunc) else None


def check_fits(target: Tensor, other: Tensor, op: str) -> None:
    shape = np.broadcast_shapes(tuple(target.shape), tuple(other.shape)) if _broadcast(target, other) else None
    if shape is None:
        raise RuntimeError(
            f"{op}: the size of tensor a {list(target.shape)} must match the size of tensor b {list(other.shape)} "
            "at every dimension where neither is 1"
        )
    if shape != tuple(target.shape):
        raise RuntimeError(f"{op}: output with shape {list(target.shape)} doesn't match the broadcast shape {list(shape)}")


def _broadcast(a: Tensor, b: Tensor) -> bool:
    return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a.shape), reversed(b.shape), strict=False))


def _wants(x: Any) -> bool:
    """`requires_grad` of a tensor that capture may still owe its history."""
    return x.requires_grad


def _saves_target(primitive: Primitive, xs: tuple, wants: Callable[[Any], bool]) -> bool:
    for i, x in enumerate(xs):
        if isinstance(x, Tensor) and wants(x):
            rule = primitive.rule(i)
            if rule is not None and rule.saves(0):
                return True
    return False


def _write_over(f: np.ufunc, target: Tensor, xs: tuple) -> Tensor:
    """In place without a temporary: nothing is recorded, and the meaning is a ufunc from the target's dtype to itself."""
    a = target._data()
    check_memory(a)
    storage = target.storage_of()
    about_to_write(storage)
    quiet.run(f, a, *(x._data() if isinstance(x, Tensor) else x for x in xs[1:]), out=a)
    storage.version += 1
    return target
