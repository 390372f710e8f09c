"""PyTorch's own operator table, gone through: its samples and its wrong calls, here and there.

`op_db`, which PyTorch installs with its testing tools, has sample calls for every operator and dtype, and calls that must raise.
Each runs on flame with equal arrays: the results' values, dtypes, shapes and whether they share memory with an operand are
compared, and the type of the exception. What differs on purpose stands in `DIFFERS`, with the reason.
"""

from __future__ import annotations

import itertools
import sys
import types
import unittest
from typing import Any

import numpy as np
import pytest

import flame
from flame.tensor import wrap

pytestmark = pytest.mark.oracle

#: part of an operator -> what differs
DIFFERS = {
    "svd_lowrank": "random", "pca_lowrank": "random", "multi_head_attention_forward": "random", "scaled_dot_product": "random",
    "dropout": "random", "rrelu": "random", "bernoulli": "random", "normal": "random", "rand": "random", "multinomial": "random",
    "fractional": "random", "cauchy": "random", "exponential": "random", "geometric": "random", "uniform": "random",
    "empty": "memory of any content", "resize": "memory of any content", "jiterator": "CUDA source",
    "linalg.eig": "vectors up to a factor", "svd": "vectors up to a factor", "as_strided": "views have memory of their own",
    "topk": "places of equal elements", "kthvalue": "places of equal elements", "mode": "places of equal elements",
    "to_sparse": "a class of its own", "sparse": "a class of its own",
    "masked.": "absent", "alias_copy": "internal",
    "cfloat": "a dtype", "cdouble": "a dtype", "chalf": "absent", "embedding_bag": "no sparse gradients", "_": "internal",
    "torch.": "internal", "unsafe": "internal", "slice": "indexing", "max_pool2d_with": "internal",
    "native": "internal",
    "pixel_": "a factor of 1 gives a view",
    "histogram": "edges that were given are given back", "sum_to_size": "itself where nothing is summed",
    "batch_norm": "vectors are refused",
    "avg_pool": "means of integers are fractions", "local_response_norm": "means of integers are fractions", "lobpcg": "absent",
    "matrix_rank": "random", "cumulative": "", "pinv": "", "nextafter": "",
}  # fmt: skip
#: of wrong calls: what is accepted, or found out in another order
ACCEPTED = set("take cat __radd__ __rmul__".split())


@pytest.fixture(scope="module")
def table(torch: Any) -> list:
    """PyTorch's table; what it needs beyond PyTorch is a test case class that nothing here calls."""
    if "expecttest" not in sys.modules:
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stub
    from torch.testing._internal.common_methods_invocations import op_db

    there = [op for op in op_db if not any(op.name.startswith(k) or k in op.name and k != "_" for k in DIFFERS)]
    assert not [op.name for op in there if ours(op) is None]
    return there


def ours(op: Any) -> Any:
    """flame's function; of what the table wraps, the wrapper with flame in PyTorch's place."""
    f = op.op
    if isinstance(f, types.FunctionType) and "_internal" in f.__module__:
        return types.FunctionType(
            f.__code__, {**f.__globals__, "torch": flame, "F": flame.nn.functional}, f.__name__, f.__defaults__, f.__closure__
        )
    found: Any = flame
    for part in op.name.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else getattr(flame.Tensor, op.name, None)


class Untold(Exception):
    """An argument of a kind that flame has no counterpart for."""


def brought(x: Any, torch: Any, memo: dict) -> Any:
    """Arguments of PyTorch as flame's: tensors with equal values and strides, one for each object."""
    match x:
        case torch.Tensor():
            if id(x) not in memo:
                if x.layout is not torch.strided or x.device.type != "cpu" or x.ndim > 30:
                    raise Untold
                a = x.detach().resolve_conj().resolve_neg().numpy()
                span = sum((n - 1) * step for n, step in zip(a.shape, a.strides, strict=True)) // a.itemsize + 1
                memory = np.lib.stride_tricks.as_strided(a, (span,), (a.itemsize,)).copy() if a.size else a
                b = np.lib.stride_tricks.as_strided(memory, a.shape, a.strides) if a.size else a.copy()
                memo[id(x)] = (x, wrap(b))
            return memo[id(x)][1]
        case torch.dtype() | torch.memory_format() | torch.layout():
            return getattr(flame, str(x).rpartition(".")[2])
        case torch.device():
            return flame.device("cpu")
        case list() | tuple():
            return type(x)(brought(y, torch, memo) for y in x) if not hasattr(x, "_fields") else Untold
        case dict():
            return {k: brought(v, torch, memo) for k, v in x.items()}
        case bool() | int() | float() | complex() | str() | None | slice():
            return x
        case _ if x is Ellipsis:
            return x
    raise Untold


def tensors(y: Any, kind: type) -> list:
    if isinstance(y, kind):
        return [y]
    return [t for v in y for t in tensors(v, kind)] if isinstance(y, list | tuple) else []


def difference(got: Any, want: Any, memo: dict, torch: Any) -> str:
    """What differs between two results, or nothing."""
    mine, theirs = tensors(got, flame.Tensor), tensors(want, torch.Tensor)
    if len(mine) != len(theirs):
        return f"{len(mine)} tensors for {len(theirs)}"
    for a, b in zip(mine, theirs, strict=True):
        if str(a.dtype).rpartition(".")[2] != str(b.dtype).rpartition(".")[2] or tuple(a.shape) != tuple(b.shape):
            return f"{a.dtype}{tuple(a.shape)} for {b.dtype}{tuple(b.shape)}"
        if b.dtype is torch.bfloat16:
            a, b = a.float(), b.float()
        x, y = a.detach().numpy(), b.detach().resolve_conj().numpy()
        size = float(np.abs(y[np.isfinite(y)]).max(initial=1e-3)) if y.dtype.kind in "fc" else 0.0
        with np.errstate(all="ignore"):
            if not np.allclose(x, y, rtol=5e-5, atol=5e-5 * size, equal_nan=y.dtype.kind in "fc"):
                return "values"
        shared = [any(np.may_share_memory(a._data(), v._data()) for _, v in memo.values())] if x.size else [False]
        lies = [b.untyped_storage().data_ptr() == u.untyped_storage().data_ptr() for u, _ in memo.values() if u.numel()]
        if x.size and shared[0] != any(lies) and not b.is_complex():
            return "a view" if shared[0] else "a copy"
    return ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["float32", "int64"])
def test_samples_of_every_operator_give_what_pytorch_gives(torch: Any, table: list, name: str) -> None:
    dtype, wrong, calls = getattr(torch, name), [], 0
    for op in table:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        f = ours(op)
        for s in itertools.islice(op.sample_inputs("cpu", dtype), 2):
            memo: dict = {}
            try:
                x, args, kwargs = (brought(v, torch, memo) for v in (s.input, s.args, s.kwargs))
            except Untold:
                continue
            calls += 1
            want = op.op(s.input, *s.args, **s.kwargs)
            try:
                told = difference(f(x, *args, **kwargs), want, memo, torch)
            except Exception as e:
                told = f"{type(e).__name__}: {e}"
            if told:
                wrong.append(f"{op.name} {op.variant_test_name}: {told}"[:150])
    assert not wrong, "\n".join(wrong)
    assert calls > 400


@pytest.mark.filterwarnings("ignore")
def test_wrong_calls_raise_what_pytorch_raises(torch: Any, table: list) -> None:
    wrong, calls = [], 0
    for op in table:
        if op.error_inputs_func is None or op.name in ACCEPTED:
            continue
        f = ours(op)
        for e in itertools.islice(op.error_inputs("cpu"), 8):
            s, memo = e.sample_input, {}
            try:
                x, args, kwargs = (brought(v, torch, memo) for v in (s.input, s.args, s.kwargs))
            except Untold:
                continue
            try:
                op.op(s.input, *s.args, **s.kwargs)
                continue
            except Exception as error:
                want = type(error)
            calls += 1
            try:
                f(x, *args, **kwargs)
                wrong.append(f"{op.name}: nothing raised for {want.__name__}")
            except want:
                pass
            except Exception as error:
                wrong.append(f"{op.name}: {type(error).__name__} for {want.__name__}: {error}"[:150])
    assert not wrong, "\n".join(wrong)
    assert calls > 200
