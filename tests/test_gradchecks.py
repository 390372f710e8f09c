"""Every differentiable primitive, and every public function of the sample table, passes `gradcheck` and `gradgradcheck`.

One sample of each, in one random direction (`fast_mode`); `python scripts/agreement.py` goes through PyTorch's table of operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from surface_samples import CASES, NOT_SMOOTH, ONCE
from test_surface import call, flat

import flame
from flame.dtypes import dtype
from flame.primitive import REGISTRY, Primitive
from flame.tensor import wrap

#: whose operands are not free: the derivative is that of symmetric matrices, or of a draw at a fixed probability
BOUND = {"cholesky", "eigh", *(p.name for p in REGISTRY.values() if p.kind == "random")}
SYMMETRIC = {"linalg.cholesky", "linalg.eigvalsh"}  #: read one triangle: their gradient answers for both
#: casts between precisions: no differences of 1e-6 can be seen through them
ROUNDING = {"cast"}
#: twice, at samples that are not at a kink and not ambiguous
NOT_TWICE = {"householder_product", "eig_complex", "svd", "eig"}
check, twice = flame.autograd.gradcheck, flame.autograd.gradgradcheck


def checked(f: Any, leaves: list, second: bool) -> None:
    assert check(f, leaves, fast_mode=True, atol=1e-4)
    if second:
        assert twice(f, leaves, fast_mode=True, atol=1e-3)


def smooth(ys: Any) -> tuple:
    return tuple(y for y in flat(ys, flame) if y.requires_grad)


@pytest.mark.parametrize(
    "p", [p for p in REGISTRY.values() if p.vjp is not None and p.name not in BOUND | ROUNDING], ids=lambda p: p.name
)
def test_every_differentiable_primitive(p: Primitive) -> None:
    for operands, params in p.samples():  # type: ignore[misc]
        wide = [i for i, x in enumerate(operands) if isinstance(x, np.ndarray) and x.dtype in (np.float64, np.complex128)]
        free = [i for i in wide if operands[i].size and p.rule(i) is not None]
        if not free or any(isinstance(v, dtype) and v.name not in ("float64", "complex128") for v in params.values()):
            continue
        leaves = [wrap(operands[i].copy()).requires_grad_() for i in free]

        def f(*xs: Any, operands: Any = operands, free: Any = free, params: Any = params) -> tuple:
            given = [wrap(x) if isinstance(x, np.ndarray) else x for x in operands]
            for i, x in zip(free, xs, strict=True):
                given[i] = x
            return smooth(p(*given, **params))

        if smooth(f(*leaves)):
            checked(f, leaves, p.name not in NOT_TWICE)
            return
    pytest.fail("no sample in float64")


SMOOTH = [n for n in CASES if n not in NOT_SMOOTH]


@pytest.mark.parametrize("name", SMOOTH)
def test_every_function_of_the_sample_table(name: str) -> None:
    leaves: list = []
    f, args, kwargs = call(name, 0, flame, "float64", leaves)
    if not leaves:
        pytest.skip("nothing of it is differentiated")

    def g(*xs: Any) -> tuple:
        if name in SYMMETRIC:
            xs = tuple((x + x.mT) * 0.5 for x in xs)
        now = dict(zip(map(id, leaves), xs, strict=True))

        def put(v: Any) -> Any:
            return type(v)(map(put, v)) if isinstance(v, list | tuple) else now.get(id(v), v)

        return smooth(f(*put(args), **{k: put(v) for k, v in kwargs.items()}))

    checked(g, leaves, name not in ONCE)
