"""Gradients of every operation, and those of small models, are the host's."""

from __future__ import annotations

from typing import Any

import corpus
import numpy as np
import pytest

import flame
from flame.primitive import REGISTRY, Primitive

pytestmark = pytest.mark.gpu

PARTS = 12
NAMES = sorted(p.name for p in REGISTRY.values() if p.samples and p.vjp is not None)


def gradients(p: Primitive, operands: Any, params: Any, device: str) -> list[np.ndarray] | None:
    """Of the sum of all floating results with respect to all floating operands; None where there are none."""
    leaves = []
    given = []
    for o in operands:
        if isinstance(o, np.ndarray):
            t = flame.tensor(o, device=device)
            if o.dtype.kind == "f":
                t.requires_grad_(True)
                leaves.append(t)
            given.append(t)
        else:
            given.append(o)
    made = p(*given, **params)
    outputs = [t for t in (made if isinstance(made, tuple) else (made,)) if isinstance(t, flame.Tensor) and t.requires_grad]
    if not leaves or not outputs:
        return None
    total = sum((t * t).sum() if t.dtype.kind == "f" else t.abs().sum() for t in outputs)
    total.backward()
    return [np.zeros(0) if t.grad is None else t.grad.cpu().numpy() for t in leaves]


@pytest.mark.parametrize("part", range(PARTS))
def test_gradients_of_operations_are_the_hosts(part: int, brief: bool) -> None:
    checked = 0
    for name in NAMES[part::PARTS][: 3 if brief else None]:
        p = REGISTRY[name]
        operands, params = next(iter(p.samples()))
        if any(isinstance(o, np.ndarray) and o.dtype.kind == "c" for o in operands):
            continue
        try:
            want = gradients(p, operands, params, "cpu")
        except (NotImplementedError, RuntimeError):  # a derivative that is refused on every device
            continue
        if want is None:
            continue
        got = gradients(p, operands, params, "cuda")
        assert got is not None
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape, name
            tolerance = 2e-2 if b.dtype.itemsize == 2 else 2e-3
            size = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0))) if b.size else 1.0
            np.testing.assert_allclose(
                a.astype(np.float64), b.astype(np.float64), rtol=tolerance, atol=tolerance * size / 10, err_msg=name
            )
        checked += 1
    assert checked or brief


@pytest.mark.parametrize("name", sorted(corpus.PROGRAMS))
@pytest.mark.parametrize("mode", ["eager", "default", "reduce-overhead"])
def test_programs_of_the_corpus_run_as_on_the_host(name: str, mode: str, brief: bool) -> None:
    if brief and (name not in ("mlp", "metrics") or mode == "default"):
        pytest.skip("takes long in an interpreter")

    def values(made: Any) -> list[np.ndarray]:
        if isinstance(made, flame.Tensor):
            return [made.detach().cpu().numpy().astype(np.float64)]
        if isinstance(made, dict):
            made = made.values()
        return [v for m in made for v in values(m)] if not isinstance(made, int | float) else [np.asarray(made, np.float64)]

    def run(device: str) -> list[np.ndarray]:
        flame.manual_seed(0)
        flame.set_default_device(device)
        try:
            step, arguments = corpus.PROGRAMS[name]()
            f = step if mode == "eager" else flame.compile(step, mode=mode, options={"never_slower": False})
            return values([f(*arguments) for _ in range(3)])
        finally:
            flame.set_default_device(None)

    for got, want in zip(run("cuda"), run("cpu"), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-2, atol=2e-2)
