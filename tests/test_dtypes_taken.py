"""What element types functions refuse, alone and mixed: `flame.functions.taking`, by fixed expectations. (What PyTorch refuses is
gone through by scripts/agreement.py.)"""

from __future__ import annotations

from typing import Any

import pytest

import flame
from flame.functions.taking import RULES

F: Any = flame.nn.functional
KINDS = {"b": flame.bool, "u": flame.uint8, "i": flame.int64, "f": flame.float32, "c": flame.complex64}
NOT, RUN = NotImplementedError, RuntimeError
MATRIX, PLANE = (3, 3), (1, 2, 4, 4)

#: a call of one tensor: its shape, the kinds that are refused, the error
ALONE: list[tuple[Any, tuple[int, ...], str, type]] = [
    (F.gelu, MATRIX, "buic", NOT), (F.leaky_relu, MATRIX, "buic", NOT), (F.hardshrink, MATRIX, "buic", NOT),
    (F.softshrink, MATRIX, "buic", NOT), (F.hardswish, MATRIX, "buic", NOT), (F.hardsigmoid, MATRIX, "buic", NOT),
    (F.logsigmoid, MATRIX, "buic", NOT), (F.rrelu, MATRIX, "buic", NOT), (lambda x: F.threshold(x, 0, 1), MATRIX, "bc", NOT),
    (lambda x: F.avg_pool2d(x, 2), PLANE, "buc", NOT), (lambda x: F.adaptive_avg_pool2d(x, 2), PLANE, "buic", NOT),
    (lambda x: F.adaptive_max_pool2d(x, 2), PLANE, "buic", NOT), (lambda x: F.interpolate(x, 8), PLANE, "bic", NOT),
    (lambda x: F.unfold(x, 2), PLANE, "ui", NOT), (lambda x: F.layer_norm(x, (4,)), PLANE, "buic", NOT),
    (lambda x: F.group_norm(x, 2), PLANE, "buic", NOT), (lambda x: F.rms_norm(x, (4,)), PLANE, "bui", NOT),
    (lambda x: F.pad(x, (1,) * 4, "reflect"), PLANE, "b", NOT), (lambda x: F.pad(x, (1,) * 4, "circular"), PLANE, "", NOT),
    (lambda x: F.nll_loss(x, flame.zeros(3).long()), MATRIX, "buic", NOT),
    (lambda x: F.mse_loss(x, x, reduction="none"), MATRIX, "bc", RUN),
    (lambda x: F.kl_div(x, flame.ones(3, 3)), MATRIX, "buic", RUN),
    (lambda x: F.huber_loss(x, flame.ones(3, 3)), MATRIX, "buic", RUN),
    (lambda x: F.l1_loss(flame.ones(3, 3), x), MATRIX, "b", RUN), (F.pdist, MATRIX, "buic", RUN),
    (lambda x: F.binary_cross_entropy_with_logits(flame.ones(3, 3), x), MATRIX, "buic", RUN),
    (lambda x: x.sort().values, MATRIX, "c", RUN), (flame.argsort, MATRIX, "c", RUN), (flame.msort, MATRIX, "c", RUN),
    (lambda x: x.topk(2).values, MATRIX, "bc", RUN), (flame.argmax, MATRIX, "bc", RUN), (flame.argmin, MATRIX, "bc", RUN),
    (flame.median, MATRIX, "bc", NOT), (lambda x: x.kthvalue(1).values, MATRIX, "bc", NOT), (flame.unique, MATRIX, "c", NOT),
    (lambda x: flame.cummax(x, 0)[0], MATRIX, "c", NOT), (flame.deg2rad, MATRIX, "c", RUN), (flame.isposinf, MATRIX, "c", RUN),
    (flame.nansum, MATRIX, "c", RUN), (lambda x: flame.xlogy(x, x), MATRIX, "c", NOT), (flame.trace, MATRIX, "b", NOT),
    (lambda x: flame.isin(x, x), MATRIX, "bc", RUN), (lambda x: flame.gradient(x)[0], MATRIX, "bu", RUN),
    (flame.floor, MATRIX, "bc", NOT), (flame.round, MATRIX, "bc", NOT), (flame.frac, MATRIX, "buic", NOT),
    (lambda x: flame.mvlgamma(x + x + x, 1), MATRIX, "bc", RUN), (flame.histc, MATRIX, "buic", NOT),
    (lambda x: flame.logcumsumexp(x, 0), MATRIX, "buic", NOT), (flame.bernoulli, MATRIX, "buic", NOT),
    (lambda x: flame.linalg.vander(x[0]), MATRIX, "b", RUN), (lambda x: flame.randint_like(x, 9), MATRIX, "bc", RUN),
]  # fmt: skip


@pytest.mark.parametrize(("call", "shape", "refused", "error"), ALONE)
def test_dtypes_that_have_no_meaning_are_refused(call: Any, shape: tuple[int, ...], refused: str, error: type) -> None:
    for kind, d in KINDS.items():
        x = flame.ones(shape).to(d)
        if kind not in refused:
            call(x)
            continue
        with pytest.raises(error, match=r"flame\.|bool|integer|complex|floating"):
            call(x)


X, I, H = flame.ones(2, 3), flame.ones(2, 3, dtype=flame.int64), flame.ones(2, 3, dtype=flame.float16)
V, W = flame.ones(3), flame.ones(3, dtype=flame.float64)
IMAGE, KERNEL = flame.ones(1, 3, 4, 4), flame.ones(3, 3, 1, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.layer_norm(X, (3,), W), "'weight' to be of input's dtype flame.float32, but got flame.float64"),
        (lambda: F.layer_norm(X, (3,), V, W), "'bias'"),
        (lambda: F.batch_norm(X, W, V), "'running_mean'"),
        (lambda: F.batch_norm(X, V, V, weight=V, bias=W), "'bias'"),
        (lambda: F.group_norm(X, 1, V.long()), "'weight'"),
        (lambda: F.linear(X, I), "'weight' to be of input's dtype"),
        (lambda: F.linear(X, X, flame.ones(2, dtype=flame.float64)), "'bias'"),
        (lambda: F.conv2d(IMAGE, KERNEL.double()), "'weight'"),
        (lambda: F.conv_transpose2d(IMAGE, KERNEL, W), "'bias'"),
        (lambda: F.prelu(X, W), "'weight'"),
        (lambda: F.bilinear(X, X.double(), flame.ones(1, 3, 3)), "'input2'"),
        (lambda: F.binary_cross_entropy(X, I), "'target'"),
        (lambda: flame.cross(X, I), "'other'"),
        (lambda: flame.linalg.cross(X, X.double()), "'other'"),
        (lambda: flame.lerp(X, X.double(), 0.5), "'end'"),
        (lambda: flame.index_put(X, (flame.tensor([0]),), V.double()), "'values'"),
        (lambda: F.cross_entropy(X, flame.ones(2, dtype=flame.complex64)), "'target'"),
        (lambda: flame.bmm(X[None], I[None].mT), "same dtype"),
    ],
)  # fmt: skip
def test_tensors_of_two_dtypes_are_refused_where_nothing_promotes(call: Any, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call()


def test_parameters_in_float32_go_with_narrower_floats() -> None:
    assert F.layer_norm(H, (3,), V, V).dtype is flame.float16
    assert F.batch_norm(H.bfloat16(), V, V, V, V).dtype is flame.bfloat16
    with pytest.raises(RuntimeError, match="'weight'"):
        F.layer_norm(X, (3,), V.half())


def test_a_refusal_comes_again_and_inside_a_compiled_function() -> None:
    compiled = flame.compile(lambda x: F.gelu(x) + 1)
    for _ in range(3):
        assert compiled(X).shape == (2, 3)
        with pytest.raises(
            NotImplementedError, match="\"gelu\" not implemented for flame.int64: argument 'input' takes floats"
        ):
            compiled(I)
        with pytest.raises(NotImplementedError, match="gelu"):
            flame.nn.GELU()(I)
    assert RULES["gelu"]
