"""Every primitive's derivative rules, against differences; at kinks, as PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

import flame.ops  # noqa: F401  (fills the registry)
from flame import dtypes
from flame.dtypes import dtype
from flame.primitive import REGISTRY, Primitive, Spec, interpreting
from tests.test_ops import ALL, each, results, spec_of

# ------------------------------------------------------------------------------------------------------------- derivatives


class Array:
    """What the rules see: a shape and a dtype. `data` is None where the rule says that it needs no values."""

    def __init__(self, data: np.ndarray | None, spec: Spec):
        self.data, self.shape, self.dtype = data, spec.shape, spec.dtype


class Evaluator:
    """The base interpreter of these tests; remembers which primitives ran."""

    def __init__(self) -> None:
        self.ran: set[str] = set()

    def process(self, p: Primitive, operands: tuple, params: dict) -> Any:
        self.ran.add(p.name)
        p.infer(*(Spec(x.shape, x.dtype) if isinstance(x, Array) else x for x in operands), **params)
        for x in operands:
            assert not isinstance(x, Array) or x.data is not None, f"{p.name} reads what the rule said it does not need"
        y = p.eager(*(x.data if isinstance(x, Array) else x for x in operands), **params)
        return tuple(Array(v, spec_of(v)) for v in y) if isinstance(y, tuple) else Array(y, spec_of(y))


#: primitives of symmetric matrices, which read one triangle: their rules answer for both
ONE_TRIANGLE = {"cholesky", "eigh"}
#: what rules use that has no rule itself: derivatives of higher order do not go through these
#: (and one that refuses derivatives of second order by name)
SMOOTH_WITHOUT_RULE = {
    *"eq ne lt le gt ge logical_and logical_or logical_not argsort iota cummax_index".split(),
    "flex_attention_grad",
}


def folded(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A cotangent summed over the dimensions that were broadcast."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(d for d, n in enumerate(shape) if n == 1 and g.shape[d] != 1), keepdims=True)


#: of complex numbers alone: tests/test_complex.py holds their rules to differences
OF_COMPLEX = {"eig_complex", "fft_complex", "irfft_complex", "rfft_complex", "view_as_real", "view_as_complex"}


#: the derivative of a draw at a fixed probability is not that at fixed random bits: tested with the distributions
_DRAWN = {p.name for p in ALL if p.kind == "random"}


@each(p for p in ALL if p.vjp is not None and p.name != "cast" and p.name not in OF_COMPLEX | _DRAWN)
def test_derivative_rules_against_differences(p: Primitive) -> None:
    r = np.random.default_rng(7)
    checked = 0
    for operands, params in p.samples():
        floats = [i for i, x in enumerate(operands) if isinstance(x, np.ndarray) and x.dtype == np.float64]
        if not floats or any(isinstance(v, dtype) and v is not dtypes.float64 for v in params.values()):
            continue
        ys = results(p.eager(*operands, **params))
        gs = [r.standard_normal(y.shape) if y.dtype.kind == "f" else np.zeros(y.shape, y.dtype) for y in ys]
        for i in floats:
            rule = p.rule(i)
            if rule is None:
                continue
            g = tuple(Array(v, spec_of(v)) for v in gs)
            y = tuple(Array(v if rule.saves_output else None, spec_of(v)) for v in ys)
            more = {"operand": i} if not isinstance(p.vjp, tuple) else {}
            evaluator = Evaluator()
            with interpreting(evaluator):
                cotangent = rule.apply(
                    g if len(ys) > 1 else g[0],
                    y if len(ys) > 1 else y[0],
                    *(
                        Array(x if rule.saves(k) else None, spec_of(x)) if isinstance(x, np.ndarray) else x
                        for k, x in enumerate(operands)
                    ),
                    **params,
                    **more,
                )
            assert cotangent.dtype is dtypes.float64
            got = folded(cotangent.data, operands[i].shape)
            v, h = r.standard_normal(operands[i].shape), 1e-6
            v = v + np.swapaxes(v, -1, -2) if p.name in ONE_TRIANGLE else v
            up, down = ([*operands[:i], np.asarray(operands[i] + s * h * v), *operands[i + 1 :]] for s in (1, -1))
            ends = [results(p.eager(*xs, **params)) for xs in (up, down)]
            want = sum(((a - b) * v).sum() for a, b, v in zip(*ends, gs, strict=True)) / (2 * h)
            np.testing.assert_allclose((got * v).sum(), want, rtol=2e-5, atol=2e-5)
            checked += 1
            second = {n for n in evaluator.ran if REGISTRY[n].vjp is None}
            assert second <= SMOOTH_WITHOUT_RULE, second
    assert checked


def derivative(name: str, *operands: Any, operand: int = 0, **params: Any) -> list:
    p = REGISTRY[name]
    arrays = [np.asarray(x, np.float64) if isinstance(x, list) else x for x in operands]
    y = p.eager(*arrays, **params)
    with interpreting(Evaluator()):
        wrapped = [Array(x, spec_of(x)) if isinstance(x, np.ndarray) else x for x in arrays]
        out = p.rule(operand).apply(Array(np.ones_like(y), spec_of(y)), Array(y, spec_of(y)), *wrapped, **params)
    return folded(out.data, arrays[operand].shape).tolist()


def test_derivatives_at_kinks_follow_pytorch() -> None:
    assert derivative("abs", [0.0, -2.0]) == [0.0, -1.0]
    assert derivative("relu", [0.0, 1.0, -1.0]) == [0.0, 1.0, 0.0]
    for name in ("maximum", "minimum"):
        assert derivative(name, [1.0], [1.0], operand=0) == [0.5] and derivative(name, [1.0], [1.0], operand=1) == [0.5]
        assert derivative(name, [1.0], 1.0) == [0.5]
    assert derivative("amax", [1.0, 3.0, 3.0], dim=(0,), keepdim=False) == [0.0, 0.5, 0.5]
    assert derivative("pow", [0.0, 2.0], 0) == [0.0, 0.0]
    assert derivative("pow", [0.0, 2.0], [0.0, 2.0]) == [0.0, 4.0]
    assert derivative("pow", [0.0], [2.0], operand=1) == [0.0]
    assert derivative("pow", [0.0, 3.0], 2) == [0.0, 6.0]
    assert derivative("prod", [2.0, 0.0, 3.0], dim=(0,), keepdim=False) == [0.0, 6.0, 0.0]
    assert derivative("prod", [2.0, 0.0, 0.0], dim=(0,), keepdim=False) == [0.0, 0.0, 0.0]
    assert derivative("cumprod", [2.0, 0.0, 3.0], dim=0) == [1.0, 8.0, 0.0]
    assert derivative("cumprod", [0.0, 0.0, 3.0], dim=0) == [1.0, 0.0, 0.0]
    assert derivative("floor", [1.5]) == [0.0] and derivative("sign", [2.0]) == [0.0]
