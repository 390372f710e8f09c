"""What a primitive's shape rule refuses, eager refuses too: NumPy would take much of it and mean something else, and a compiled
function would only find out when its kernels are made."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import flame
from flame import dtypes
from flame.autograd.tape import eager
from flame.primitive import REGISTRY, Primitive, Spec
from flame.tensor import wrap

ERRORS = (RuntimeError, TypeError, ValueError, IndexError, OverflowError)


def outcome(f: Any) -> Any:
    """Shapes and dtypes of what comes out, or the word "refused"."""
    try:
        with np.errstate(all="ignore"):
            got = f()
    except ERRORS:
        return "refused"
    return [(tuple(t.shape), t.dtype) for t in (got if isinstance(got, tuple) else (got,))]


@pytest.mark.parametrize("p", [p for p in REGISTRY.values() if p.samples is not None], ids=str)
def test_eager_takes_what_the_shape_rule_takes(p: Primitive) -> None:
    for operands, params in itertools.islice(p.samples(), 3):  # type: ignore[misc]
        is_complex = any(isinstance(o, np.ndarray) and o.dtype.kind == "c" for o in operands)
        for d in dtypes.ALL:
            if is_complex and d.kind != "c":
                continue
            with np.errstate(all="ignore"):
                arrays = [o.astype(d.numpy) if isinstance(o, np.ndarray) else o for o in operands]
            specs = [Spec(a.shape, d) if isinstance(a, np.ndarray) else a for a in arrays]
            rule = outcome(lambda specs=specs, params=params: p.infer(*specs, **params))
            values = tuple(wrap(a) if isinstance(a, np.ndarray) else a for a in arrays)
            got = outcome(lambda values=values, params=params: eager.process(p, values, params))
            if rule == "refused" or got != "refused":  # (eager may refuse more: what depends on values)
                assert got == rule, f"{p.name}({', '.join(map(str, specs))}, {params})"


@pytest.mark.parametrize("backend", ["eager", "llvm"])
def test_einsum_of_booleans(backend: str) -> None:
    a = flame.tensor([[True, False], [True, True]])
    product = flame.compile(lambda a: flame.einsum("ij,ij->ij", a, a.t()), backend=backend)
    outer = flame.compile(lambda a: flame.einsum("i,j->ij", a[0], a[1]), backend=backend)
    contracted = flame.compile(lambda a: flame.einsum("ij,jk->ik", a, a), backend=backend)
    for _ in range(3):
        assert product(a).tolist() == [[True, False], [False, True]]
        assert outer(a).tolist() == [[True, True], [False, False]]
        with pytest.raises(RuntimeError, match="not implemented for flame.bool"):
            contracted(a)
