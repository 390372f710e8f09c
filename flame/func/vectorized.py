"""vmap: a function of single examples as a function of batches.

The function is called once, on tensors that each stand for one example and hold all of them (`flame.func.batched`); every
primitive runs once for the whole batch (`flame.func.rules`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flame.func.batched import Batching
from flame.func.tree import flatten
from flame.functions import PUBLIC
from flame.functions.random import default_generator
from flame.primitive import force
from flame.tensor import Tensor


def _spread(dims: Any, x: Any, what: str = "in_dims") -> list:
    """A dimension (or None) for each leaf of x, from a nest that may be shallower than x."""
    if dims is None or (isinstance(dims, int) and not isinstance(dims, bool)):
        return [dims] * len(flatten(x)[0])
    if isinstance(dims, dict) and isinstance(x, dict) and dims.keys() == x.keys():
        return [d for k in x for d in _spread(dims[k], x[k], what)]
    if isinstance(dims, tuple | list) and isinstance(x, tuple | list) and len(dims) == len(x):
        return [d for e, v in zip(dims, x, strict=True) for d in _spread(e, v, what)]
    if what == "in_dims":
        raise ValueError(
            f"vmap: in_dims {dims!r} is not compatible with the structure of inputs, {type(x).__name__}"
            f"{f' of {len(x)}' if isinstance(x, tuple | list | dict) else ''}: give a nest of ints and None like them"
        )
    raise ValueError(
        f"vmap: out_dims {dims!r} is not compatible with the structure of outputs, {type(x).__name__}: give an int, or one for each"
    )


def _batch_size(leaves: list, dims: list) -> int:
    sizes = set()
    for v, d in zip(leaves, dims, strict=True):
        if d is None:
            continue
        if not isinstance(v, Tensor):
            raise ValueError(
                f"vmap: Got in_dim={d} for an input but the input is of type {type(v).__name__}. We cannot vmap over non-Tensor "
                "arguments, please use None as the respective in_dim"
            )
        if not -v.ndim <= d < v.ndim:
            raise ValueError(
                f"vmap: Got in_dim={d} for some input, but that input is a Tensor of dimensionality {v.ndim} so expected in_dim to "
                f"satisfy -{v.ndim} <= in_dim < {v.ndim}."
            )
        sizes.add(v.shape[d])
    if not sizes:
        raise ValueError("vmap: Expected at least one Tensor to vmap over, but all in_dims are None (or there are no inputs)")
    if len(sizes) > 1:
        raise ValueError(
            f"vmap: Expected all tensors to have the same size in the mapped dimension, got sizes {sorted(sizes)} for the mapped "
            "dimension"
        )
    return sizes.pop()


def vmap(
    func: Callable, in_dims: Any = 0, out_dims: Any = 0, randomness: str = "error", *, chunk_size: int | None = None
) -> Callable:
    """A function that applies `func` to each slice of its arguments along `in_dims`, and stacks the results along `out_dims`.

    in_dims and out_dims are ints or nests of ints and None (None: the argument is the same for all examples; keyword arguments
    always are). randomness "different" draws for each example anew, "same" draws once for all; "error" raises if anything is
    drawn. `chunk_size` examples run at a time, where memory is short. Raises RuntimeError where Python asks for a value, as
    examples may disagree on it; ValueError for dimensions that do not fit the arguments.
    """
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(f"Only allowed values for randomness are 'error', 'different', or 'same'. Got {randomness}")
    if chunk_size is not None and chunk_size <= 0:
        raise ValueError(f"vmap: chunk_size should be None or greater than 0. (got {chunk_size})")
    name = getattr(func, "__name__", type(func).__name__)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        leaves, rebuild = flatten(list(args))
        if not args:
            raise ValueError(
                f"vmap({name})(<inputs>): got no inputs. Maybe you forgot to add inputs, or you are trying to vmap over a function "
                "with no inputs. The latter is unsupported."
            )
        dims = _spread(list(in_dims) if isinstance(in_dims, tuple) else in_dims, list(args))
        size = _batch_size(leaves, dims)
        step = size if chunk_size is None else chunk_size
        if step >= size:
            values, shape, _ = _mapped(func, name, size, leaves, dims, rebuild, kwargs, out_dims, randomness)
            return shape(values)
        g = default_generator
        state = g.seed_value, g.offset
        chunks = []
        for start in range(0, size, step):
            if randomness == "same":
                g.seed_value, g.offset = state
            n = min(step, size - start)
            part = [v if d is None else PUBLIC["narrow"](v, d, start, n) for v, d in zip(leaves, dims, strict=True)]
            values, shape, outs = _mapped(func, name, n, part, dims, rebuild, kwargs, out_dims, randomness)
            chunks.append(values)
        return shape([c[0] if d is None else PUBLIC["cat"](c, d) for c, d in zip(zip(*chunks, strict=True), outs, strict=True)])

    return wrapped


def _mapped(
    func: Callable,
    name: str,
    size: int,
    leaves: list,
    dims: list,
    rebuild: Callable,
    kwargs: dict,
    out_dims: Any,
    randomness: str,
) -> tuple[list, Callable, list]:
    """One call of `func` for `size` examples: the results' leaves, what puts them in their nest, and their dimensions."""
    batching = Batching(size, randomness, force.interpreter)
    examples = force.examples
    if randomness == "different":
        force.examples = (*examples, size)
    force.interpreter = batching
    try:
        out = func(*rebuild([v if d is None else batching.enter(v, d) for v, d in zip(leaves, dims, strict=True)]), **kwargs)
    finally:
        force.interpreter, force.examples = batching.outer, examples
    values, shape = flatten(out)
    for v in values:
        if not isinstance(v, Tensor):
            raise ValueError(f"vmap({name}, ...): `{name}` must only return Tensors, got type {type(v).__name__}.")
    outs = _spread(
        list(out_dims) if isinstance(out_dims, tuple) and isinstance(out, tuple | list) else out_dims, out, "out_dims"
    )
    return [batching.result(v, d, name) for v, d in zip(values, outs, strict=True)], shape, outs
