"""Calls that PyTorch refuses for a shape, a number of dimensions, an `out=` or a layout: the type of the exception.

(The types are what PyTorch 2.13 raises; scripts/agreement.py goes through its whole table.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame

F, ones, int64, double = flame.nn.functional, flame.ones, flame.int64, flame.float64


def places(*shape: int) -> Any:
    return flame.zeros(*shape, dtype=int64)


def of_dims(f: Callable) -> Callable:
    """Whether a function takes 2 x 2 x ... of each of the numbers of dimensions 0 to 6: "-" for yes, R, I or N for an error."""
    letters = {RuntimeError: "R", IndexError: "I", NotImplementedError: "N"}

    def found() -> str:
        told = ""
        for n in range(7):
            try:
                f(ones([2] * n))
                told += "-"
            except tuple(letters) as e:
                told += letters[type(e)]
        return told

    return found


@pytest.mark.parametrize(
    ("f", "want"),
    [
        (lambda x: F.avg_pool1d(x, 1), "RR--RRR"),
        (lambda x: F.avg_pool2d(x, 1), "III--RR"),
        (lambda x: F.avg_pool3d(x, 1), "RRRR--R"),
        (lambda x: F.max_pool2d(x, 1), "RRR--RR"),
        (lambda x: F.fractional_max_pool2d(x, 1, output_size=1), "III--RR"),
        (lambda x: F.fractional_max_pool3d(x, 1, output_size=1), "IIII--R"),
        (lambda x: F.unfold(x, 1), "III--RR"),
        (lambda x: F.max_unpool1d(x, flame.zeros_like(x, dtype=int64), 2), "IR--RRR"),
        (lambda x: F.max_unpool2d(x, flame.zeros_like(x, dtype=int64), 2), "IIR--RR"),
        (lambda x: F.max_unpool3d(x, flame.zeros_like(x, dtype=int64), 2), "IIIR--R"),
        (lambda x: F.pad(x, (1, 1), mode="reflect"), "RN--NNN"),
        (lambda x: F.pad(x, (1,) * 4, mode="replicate"), "RRN--NN"),
        (lambda x: F.pad(x, (1,) * 6, mode="circular"), "RRRN--N"),
        (lambda x: flame.baddbmm(ones(2, 2, 2), x, ones(2, 2, 2)), "IIR-RRR"),
        (lambda x: flame.baddbmm(ones(2, 2, 2), ones(2, 2, 2), x), "III-RRR"),
        (lambda x: flame.addbmm(ones(2, 2), x, ones(2, 2, 2)), "IIR-RRR"),
        (lambda x: flame.addbmm(ones(2, 2), ones(2, 2, 2), x), "III-RRR"),
        (lambda x: x.H, "-R-RRRR"),
        (lambda x: flame.linalg.ldl_solve(ones(2, 2), ones(2, dtype=flame.int32), x), "II-----"),
        (lambda x: F.bilinear(x, ones(2, 2), ones(2, 2, 2)), "RR-RRRR"),
        (lambda x: F.bilinear(ones(2, 2), ones(2, 2), x), "III-RRR"),
        (lambda x: flame.index_fill(ones(4, 2), 0, x.long(), 1.0), "--RRRRR"),
        (lambda x: flame.index_reduce(ones(2, 2), 0, flame.tensor([0, 1]), x, "prod"), "IR-RRRR"),
        (lambda x: flame.index_add(ones(2, 2), 0, flame.tensor([0, 1]), x), "IR-RRRR"),
        (lambda x: flame.index_copy(ones(2, 2), 0, flame.tensor([0, 1]), x), "II-IIII"),
        (lambda x: x.permute(0, 1, 2), "RRR-RRR"),
        (lambda x: F.conv1d(ones(1, 2, 3), ones(2, 2, 1), x), "R-RRRRR"),
        (lambda x: F.conv_transpose2d(ones(1, 2, 3, 3), ones(2, 2, 1, 1), x), "R-RRRRR"),
    ],
)
def test_numbers_of_dimensions(f: Callable, want: str) -> None:
    assert of_dims(f)() == want


@pytest.mark.parametrize(
    ("f", "error"),
    [
        (lambda: F.soft_margin_loss(ones(1, 3), ones(2, 3)), RuntimeError),
        (lambda: F.soft_margin_loss(ones(3), ones(2, 3), reduction="none"), RuntimeError),
        (lambda: F.conv3d(ones(1, 1, 2, 2, 2), ones(3, 1, 1, 1, 1), ones(1)), RuntimeError),
        (lambda: flame.kthvalue(ones(0), 1), IndexError),
        (lambda: flame.kthvalue(ones(2), 3), RuntimeError),
        (lambda: flame.amax(ones(0)), RuntimeError),
        (lambda: flame.amin(ones(0, 2), 0), IndexError),
        (lambda: flame.norm(ones(0), float("inf")), RuntimeError),
        (lambda: flame.norm(ones(0, 2), -1.0, dim=0), RuntimeError),
        (lambda: flame.linalg.vector_norm(ones(0, 2), -float("inf"), dim=0), RuntimeError),
        (lambda: flame.ormqr(ones(2, 2), ones(1), ones(2, 4)), RuntimeError),
        (lambda: flame.istft(ones(3, dtype=flame.complex64), 2), IndexError),
        (lambda: flame.index_add(ones(()), 0, places(0), ones(())), IndexError),
        (lambda: flame.index_copy(ones(()), 0, places(1), ones(0)), IndexError),
        (lambda: flame.narrow_copy(ones(2, 2), 2, 0, 1), RuntimeError),
        (lambda: flame.narrow_copy(ones(2, 2), -3, 0, 1), IndexError),
        (lambda: F.max_unpool2d(ones(7, 11, 3), places(1, 2, 1, 3), 2, output_size=(3, 6)), ValueError),
        (lambda: F.linear_cross_entropy(ones(3), ones(2, 4, 3), ones(2, 4)), RuntimeError),
        (lambda: flame.ldexp(ones(2), 2), TypeError),
        (lambda: flame.xlogy(2, 3), TypeError),
        (lambda: flame.arange(0, 64, 0.5, out=places(0)), ValueError),
        (lambda: flame.sparse.sampled_addmm(ones(2, 2), ones(2, 2), ones(2, 2)), NotImplementedError),
    ],
)
def test_what_is_told_of_first(f: Callable, error: type[Exception]) -> None:
    with pytest.raises(error) as told:
        f()
    assert type(told.value) is error


def test_what_is_near_those_calls_goes_on() -> None:
    assert F.soft_margin_loss(ones(2, 3), ones(1, 3), reduction="none").shape == (2, 3)
    assert flame.norm(ones(2, 0), float("inf"), dim=0).shape == (0,)
    assert flame.amax(ones(0, 2), 1).shape == (0,)
    flame.testing.assert_close(flame.index_copy(flame.tensor(3.0), 0, places(1), flame.tensor(2.0)), flame.tensor(2.0))
    flame.testing.assert_close(flame.narrow_copy(flame.arange(4), -1, 1, 2), flame.tensor([1, 2]))
    x = ones(1, 2, 3)
    flame.testing.assert_close(F.conv1d(x, ones(2, 2, 1), flame.tensor([1.0, 2.0]))[0, :, 0], flame.tensor([3.0, 4.0]))


@pytest.mark.parametrize(
    ("f", "want"),
    [
        (lambda o: flame.gather(ones(2, 2), 0, places(2, 2), out=o), None),
        (lambda o: flame.take(ones(2), places(2, 2), out=o), None),
        (lambda o: flame.index_select(ones(2, 2), 0, places(2), out=o), None),
        (lambda o: flame.mm(ones(2, 2), ones(2, 2), out=o), None),
        (lambda o: flame.tril(ones(2, 2), out=o), None),
        (lambda o: flame.multinomial(ones(2, 2), 2, out=o), None),
        (lambda o: flame.complex(ones(2, 2), ones(2, 2), out=o), None),
        (lambda o: flame.max(ones(2, 2, 2), 0, out=(o, places(2, 2))), None),
        (lambda o: flame.aminmax(ones(2, 2, 2), dim=0, out=(ones(2, 2), o)), None),
        (lambda o: flame.max(ones(2, 2), ones(2, 2), out=o), 1.0),
        (lambda o: flame.add(ones(2, 2), ones(2, 2), out=o), 2.0),
        (lambda o: flame.cumsum(ones(2, 2), 1, out=o)[:, 0], 1.0),
        (lambda o: flame.outer(ones(2), ones(2), out=o), 1.0),
    ],
)
def test_out_of_another_dtype(f: Callable, want: float | None) -> None:
    out = flame.full((2, 2), 7.0, dtype=double)
    if want is not None:
        y = f(out)
        assert y.dtype is double
        np.testing.assert_array_equal(y.numpy(), want)
        return
    with pytest.raises(RuntimeError, match="to have dtype"):
        f(out)
    np.testing.assert_array_equal(out.numpy(), 7.0)


@pytest.mark.parametrize(
    "f",
    [
        lambda o: flame.add(ones(3), ones(3), out=o),
        lambda o: flame.exp(ones(3), out=o),
        lambda o: flame.take(ones(3), places(3), out=o),
        lambda o: flame.bernoulli(ones(3), out=o),
        lambda o: flame.cat([ones(1), ones(2)], out=o),
        lambda o: flame.masked_select(ones(3), ones(3) > 0, out=o),
    ],
)
def test_out_that_shows_an_element_twice(f: Callable) -> None:
    one = flame.full((1,), 7.0)
    with pytest.raises(RuntimeError, match="single memory location"):
        f(one.expand(3))
    assert one.item() == 7.0


@pytest.mark.parametrize("name", flame.signal.windows.__all__)
def test_windows_are_strided(name: str) -> None:
    f, more = getattr(flame.signal.windows, name), {"a": [0.5, 0.5]} if name == "general_cosine" else {}
    assert f(5, layout=flame.strided, **more).shape == (5,)
    with pytest.raises(ValueError, match="strided tensors only"):
        f(5, layout=flame.sparse_coo, **more)
