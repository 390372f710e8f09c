"""vmap: a function of single examples as a function of batches.

The function is called once for each example, and results are stacked: any Python runs in it, and every operation is right in
it. Inside `flame.compile` the calls are captured and fused, which is where the speed of a batch comes from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flame.func.tree import flatten
from flame.functions import PUBLIC
from flame.functions.random import default_generator
from flame.tensor import Tensor


def _spread(dims: Any, x: Any) -> list:
    """A dimension (or None) for each leaf of x, from a nest that may be shallower than x."""
    if dims is None or isinstance(dims, int):
        return [dims] * len(flatten(x)[0])
    if isinstance(x, dict):
        return [d for k in x for d in _spread(dims[k], x[k])]
    if not isinstance(x, tuple | list) or len(dims) != len(x):
        raise ValueError(f"vmap: in_dims {dims} is not compatible with the structure of inputs {type(x).__name__}")
    return [d for e, v in zip(dims, x, strict=True) for d in _spread(e, v)]


def vmap(
    func: Callable, in_dims: Any = 0, out_dims: Any = 0, randomness: str = "error", *, chunk_size: int | None = None
) -> Callable:
    """A function that applies `func` to each slice of its arguments along `in_dims`, and stacks the results along `out_dims`.

    in_dims and out_dims are ints or nests of ints and None (None: the argument is the same for all examples). randomness
    "different" draws for each example anew, "same" draws once for all; "error" raises if anything is drawn.
    """
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(f"Only allowed values for randomness are 'error', 'different', or 'same'. Got {randomness}")
    if chunk_size is not None and chunk_size <= 0:
        raise ValueError(f"vmap: chunk_size should be None or greater than 0. (got {chunk_size})")

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        leaves, rebuild = flatten(list(args))
        dims = _spread(in_dims if not isinstance(in_dims, tuple | list) else list(in_dims), list(args))
        size: int | None = None
        for v, d in zip(leaves, dims, strict=True):
            if d is None:
                continue
            if not isinstance(v, Tensor):
                raise ValueError(
                    f"vmap: Got in_dim={d} for an input of type {type(v).__name__}; only tensors have dimensions: use None"
                )
            if not -v.ndim <= d < v.ndim:
                raise ValueError(f"vmap: Got in_dim={d} for some input, but that input is a Tensor of dimensionality {v.ndim}")
            if size is not None and v.shape[d] != size:
                raise ValueError(
                    "vmap: Expected all tensors to have the same size in the mapped dimension, got sizes "
                    f"{size} and {v.shape[d]}"
                )
            size = v.shape[d]
        if size is None:
            raise ValueError(
                "vmap: Expected at least one Tensor to vmap over, but all in_dims are None (or there are no inputs)"
            )
        if size == 0:
            raise ValueError("vmap: the mapped dimension has size 0: there is no example to call the function on")
        g = default_generator
        state = g.seed_value, g.offset
        rows: list[list] = []
        shape: Any = None
        for i in range(size):
            if randomness == "same":
                g.seed_value, g.offset = state
            each = [PUBLIC["select"](v, d, i) if d is not None else v for v, d in zip(leaves, dims, strict=True)]
            out = func(*rebuild(each), **kwargs)
            if randomness == "error" and (g.seed_value, g.offset) != state:
                raise RuntimeError(
                    "vmap: called random operation while in randomness error mode. Please either use the 'same' or 'different' "
                    "randomness flags on vmap or perform the randomness operation out of vmap"
                )
            values, shape = flatten(out)
            for v in values:
                if not isinstance(v, Tensor):
                    raise ValueError(
                        f"vmap({getattr(func, '__name__', 'f')}, ...): `f` must only return Tensors, got type {type(v).__name__}"
                    )
            rows.append(values)
        outs = _spread(out_dims, shape(rows[0]))
        return shape([PUBLIC["stack"]([r[k] for r in rows], 0 if d is None else d) for k, d in enumerate(outs)])

    return wrapped
