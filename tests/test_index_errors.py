"""An index out of range raises IndexError in compiled code as it does eagerly, and leaves state unchanged."""

from __future__ import annotations

import numpy as np
import pytest

import flame
import flame.nn.functional as F

Program = tuple  # (function of world and index, good index, bad indices)


def table() -> flame.Tensor:
    return flame.tensor(np.arange(40, dtype=np.float32).reshape(10, 4))


PROGRAMS = {
    "embedding": (lambda w, i: F.embedding(i, w), [1, 2, 3], [[1, 2, 10], [0, -11, 2]]),
    "indexing": (lambda w, i: w[i], [1, -10, 3], [[1, 2, 10], [0, -11, 2]]),
    "computed": (lambda w, i: w[i * 3], [1, 2, 3], [[1, 2, 4], [-4, 0, 0]]),
    "gather": (lambda w, i: w.gather(1, i.view(-1, 1)), [0, 3, 1], [[0, 4, 1], [0, -1, 1]]),
    "cross entropy": (lambda w, i: F.cross_entropy(w[:3], i), [0, 3, -100], [[0, 4, 1], [0, -1, 1]]),
    "assignment": (lambda w, i: w.clone().index_put_((i,), flame.zeros(3, 4)), [1, 2, 3], [[1, 2, 10]]),
    "scatter": (lambda w, i: flame.zeros(3, 5).scatter(1, i.view(-1, 1), w[:3, :1]), [0, 4, 1], [[0, 5, 1], [0, -1, 1]]),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_an_index_out_of_range_raises(name: str, backend: str) -> None:
    program, good, bad = PROGRAMS[name]
    w, state = table(), flame.zeros(2)

    def step(i: flame.Tensor) -> flame.Tensor:
        state.add_(1.0)
        return program(w, i)

    compiled = flame.compile(step, backend=backend)
    for _ in range(3):
        np.testing.assert_allclose(compiled(flame.tensor(good)).numpy(), program(w, flame.tensor(good)).numpy(), rtol=1e-5)
    assert compiled.stats.flushed >= 1
    for wrong in bad:
        with pytest.raises(IndexError, match="out of bounds"):
            program(w, flame.tensor(wrong))
        before = state.tolist()
        with pytest.raises(IndexError, match=r"out of bounds.*|out of range") as caught:
            compiled(flame.tensor(wrong))
        assert "test_index_errors.py" in str(caught.value) or name in ("assignment", "scatter")
        assert state.tolist() == before, "a call that raises writes nothing"
    np.testing.assert_allclose(compiled(flame.tensor(good)).numpy(), program(w, flame.tensor(good)).numpy(), rtol=1e-5)
