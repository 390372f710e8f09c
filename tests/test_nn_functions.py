"""Functions of layers: pooling, windows, resampling, bags of rows, alignment. Beside PyTorch, forward and backward; compiled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
import flame.nn.functional as F

#: id -> (function of (library, functional, inputs, tensor), shapes of inputs)
CASES: dict[str, tuple[Callable, tuple]] = {}


def case(name: str, f: Callable, *shapes: tuple[int, ...]) -> None:
    CASES[name] = (f, shapes)


IN_PLACE = ("elu_", "selu_", "celu_", "leaky_relu_", "hardtanh_", "relu_")
I8 = np.array([3, 1, 3, 0, 5, 2, 3, 4])
for _n, _size in ((1, (9,)), (2, (7, 6)), (3, (5, 4, 6))):
    for _out in (3, 4):
        case(
            f"adaptive_max_pool{_n}d {_out}",
            lambda t, f, x, c, n=_n, o=_out: getattr(f, f"adaptive_max_pool{n}d")(x[0], o, True),
            (2, 3, *_size),
        )
    case(
        f"adaptive_max_pool{_n}d one",
        lambda t, f, x, c, n=_n: getattr(f, f"adaptive_max_pool{n}d_with_indices")(x[0], 1),
        (3, *_size),
    )
    case(
        f"lp_pool{_n}d", lambda t, f, x, c, n=_n: getattr(f, f"lp_pool{n}d")(x[0].abs() + 0.1, 3.0, 2, stride=1), (2, 3, *_size)
    )
    case(
        f"max_pool{_n}d_with_indices",
        lambda t, f, x, c, n=_n: getattr(f, f"max_pool{n}d_with_indices")(x[0], 2),
        (2, 3, *_size),
    )

    def _unpooled(t: Any, f: Any, x: Any, c: Any, n: int = _n, size: tuple = _size) -> Any:
        y, i = getattr(f, f"max_pool{n}d")(x[0], 2, return_indices=True)
        unpool = getattr(f, f"max_unpool{n}d")
        return unpool(y, i, 2), unpool(y, i, 2, output_size=size), unpool(y[0], i[0], 2, output_size=(2, 3, *size))

    case(f"max_unpool{_n}d", _unpooled, (2, 3, *_size))
for _n, _size in ((2, (9, 7)), (3, (5, 6, 7))):

    def _fractional(t: Any, f: Any, x: Any, c: Any, n: int = _n, many: bool = True) -> Any:
        u = c(np.random.default_rng(4).random((2, 3, n)).astype(np.float32))
        pool = getattr(f, f"fractional_max_pool{n}d")
        one = pool(x[0], 2, output_size=3, return_indices=True, _random_samples=u)
        return one, pool(x[0], 2, output_ratio=(0.6,) * n, _random_samples=u), pool(x[0], 2, output_size=1, _random_samples=u)

    case(f"fractional_max_pool{_n}d", _fractional, (2, 3, *_size))
for _reduction in ("none", "mean", "sum"):
    case(
        f"weighted losses {_reduction}",
        lambda t, f, x, c, r=_reduction: [g(x[0], x[1], reduction=r, weight=x[2].abs()) for g in (f.l1_loss, f.mse_loss)],
        (3, 4),
        (3, 4),
        (3, 4),
    )
case("unfold", lambda t, f, x, c: f.unfold(x[0], (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)), (2, 3, 6, 7))
case("unfold one", lambda t, f, x, c: f.unfold(x[0], 2), (3, 4, 5))
case("fold", lambda t, f, x, c: f.fold(x[0], (6, 7), (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)), (2, 12, 15))
case("fold one", lambda t, f, x, c: f.fold(x[0], (4, 5), 2), (12, 12))
for _mode, _shape, _args in (
    ("nearest", (2, 3, 5), dict(scale_factor=2.7)),
    ("nearest", (2, 3, 5, 7), dict(size=(3, 11))),
    ("nearest-exact", (2, 3, 5, 7), dict(size=(3, 11))),
    ("nearest-exact", (2, 3, 5), dict(scale_factor=1.7)),
    ("area", (2, 3, 5, 7), dict(size=(3, 4))),
    ("linear", (2, 3, 5), dict(scale_factor=1.7)),
    ("linear", (2, 3, 5), dict(scale_factor=1.7, recompute_scale_factor=True)),
    ("bilinear", (2, 3, 5, 7), dict(size=(8, 3))),
    ("bilinear", (2, 3, 5, 7), dict(size=(8, 3), align_corners=True)),
    ("trilinear", (1, 2, 3, 4, 5), dict(scale_factor=(1.5, 2.0, 0.7))),
    ("bicubic", (2, 3, 5, 7), dict(size=(8, 4))),
    ("bicubic", (2, 3, 5, 7), dict(scale_factor=1.4, align_corners=True)),
    ("bilinear", (2, 3, 9, 7), dict(size=(4, 12), antialias=True)),
    ("bicubic", (2, 3, 9, 7), dict(size=(4, 3), antialias=True)),
):
    case(
        f"interpolate {_mode} {_args} {len(_shape)}",
        lambda t, f, x, c, m=_mode, a=_args: f.interpolate(x[0], mode=m, **a),
        _shape,
    )
for _mode in ("bilinear", "nearest", "bicubic"):
    for _pad in ("zeros", "border", "reflection"):
        for _align in (True, False):
            case(
                f"grid_sample {_mode} {_pad} {_align}",
                lambda t, f, x, c, m=_mode, p=_pad, a=_align: f.grid_sample(x[0], x[1], m, p, a), (2, 3, 5, 6), (2, 4, 3, 2),
            )  # fmt: skip
case("grid_sample 3d", lambda t, f, x, c: f.grid_sample(x[0], x[1], align_corners=False), (2, 2, 4, 3, 5), (2, 3, 2, 4, 3))
case(
    "grid_sample 3d reflected",
    lambda t, f, x, c: f.grid_sample(x[0], x[1], "nearest", "reflection", False),
    (1, 2, 4, 3, 5),
    (1, 3, 2, 4, 3),
)
case("affine_grid", lambda t, f, x, c: f.affine_grid(x[0], (2, 1, 3, 4), align_corners=False), (2, 2, 3))
case("affine_grid 3d", lambda t, f, x, c: f.affine_grid(x[0], (2, 1, 3, 4, 1), align_corners=True), (2, 3, 4))
case("pdist", lambda t, f, x, c: (f.pdist(x[0]), f.pdist(x[0], 1.0), f.pdist(x[0], math.inf)), (5, 3))
case("rrelu", lambda t, f, x, c: f.rrelu(x[0], 0.1, 0.5), (4, 5))
case(
    "in place",
    lambda t, f, x, c: [getattr(f, n)(x[0] * 1.0) for n in IN_PLACE],
    (4, 5),
)
case("threshold_", lambda t, f, x, c: f.threshold_(x[0] * 1.0, 0.1, 2.0), (4, 5))
for _mode in ("sum", "mean", "max"):
    case(f"embedding_bag {_mode}", lambda t, f, x, c, m=_mode: f.embedding_bag(c(I8.reshape(4, 2)), x[0], mode=m), (6, 3))
    case(
        f"embedding_bag {_mode} offsets",
        lambda t, f, x, c, m=_mode: f.embedding_bag(c(I8), x[0], c([0, 3, 3, 4]), mode=m),
        (6, 3),
    )
    case(
        f"embedding_bag {_mode} last, padding",
        lambda t, f, x, c, m=_mode: f.embedding_bag(
            c(I8), x[0], c([0, 3, 4, 8]), mode=m, include_last_offset=True, padding_idx=3
        ),
        (6, 3),
    )
case(
    "embedding_bag weighted",
    lambda t, f, x, c: f.embedding_bag(c(I8), x[0], c([0, 2]), mode="sum", per_sample_weights=x[1]),
    (6, 3),
    (8,),
)
case("embedding by frequency", lambda t, f, x, c: f.embedding(c(I8), x[0], 1, scale_grad_by_freq=True), (6, 3))
case("embedding of limited norm", lambda t, f, x, c: f.embedding(c(I8), x[0] * 1.0, max_norm=1.0), (6, 3))
for _reduction in ("none", "mean", "sum"):
    case(
        f"linear_cross_entropy {_reduction}",
        lambda t, f, x, c, r=_reduction: f.linear_cross_entropy(
            x[0], x[1], c([1, -100, 4]), linear_bias=x[2], reduction=r, label_smoothing=0.1
        ),
        (3, 4), (5, 4), (5,),
    )  # fmt: skip
    case(
        f"ctc_loss {_reduction}",
        lambda t, f, x, c, r=_reduction: f.ctc_loss(
            f.log_softmax(x[0], 2), c([[1, 1, 2], [3, 0, 0], [2, 1, 2]]), c([6, 4, 5]), c([3, 1, 2]), reduction=r
        ),
        (6, 3, 4),
    )
case(
    "ctc_loss short",
    lambda t, f, x, c: f.ctc_loss(f.log_softmax(x[0], 2), c([[1, 2], [1, 1]]), (3, 2), (2, 1)),
    (3, 2, 3),
)
case(
    "ctc_loss one after the other",
    lambda t, f, x, c: f.ctc_loss(f.log_softmax(x[0], 2), c([1, 1, 2, 3, 1]), (5, 3, 5), (3, 0, 2)),
    (5, 3, 4),
)
case(
    "ctc_loss of one",
    lambda t, f, x, c: f.ctc_loss(f.log_softmax(x[0], 1), c([1, 2, 2]), c(6), c(3), blank=3, reduction="none"),
    (6, 4),
)
case(
    "ctc_loss impossible",
    lambda t, f, x, c: f.ctc_loss(f.log_softmax(x[0], 2), c([[1, 1, 1], [1, 2, 3]]), (3, 4), (3, 3), zero_infinity=True),
    (4, 2, 4),
)


def leaves(x: Any) -> list[Any]:
    return [t for part in x for t in leaves(part)] if isinstance(x, tuple | list) else [x]


def drawn(key: str) -> list[np.ndarray]:
    rng = np.random.default_rng(sorted(CASES).index(key))
    return [rng.standard_normal(s).astype(np.float32) for s in CASES[key][1]]


def ran(key: str, library: Any, xs: list[Any], f: Callable) -> tuple[list[Any], list[Any]]:
    """Results, and gradients of the sum of all floating ones in different weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ys = leaves(f(xs))
    total: Any = 0.0
    for y in ys:
        if "float" in str(y.dtype):
            total = total + (y * library.tensor(np.cos(np.arange(y.numel(), dtype=np.float32)).reshape(tuple(y.shape)))).sum()
    total.backward()
    return ys, [library.zeros_like(x) if x.grad is None else x.grad for x in xs]


def close(a: Any, b: Any, tol: float = 3e-5) -> None:
    x, y = (np.asarray(t.detach().numpy(), np.float64) for t in (a, b))
    assert x.shape == y.shape
    np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


@pytest.mark.oracle
@pytest.mark.parametrize("key", CASES)
def test_functions_agree_with_pytorch(torch: Any, key: str) -> None:
    if key.startswith(("linear_cross_entropy", "weighted")) and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("this version of PyTorch does not have it")
    function, arrays = CASES[key][0], drawn(key)
    xs, ts = ([lib.tensor(a, requires_grad=True) for a in arrays] for lib in (flame, torch))
    ys, gs = ran(key, flame, xs, lambda v: function(flame, F, v, flame.tensor))
    zs, hs = ran(key, torch, ts, lambda v: function(torch, torch.nn.functional, v, torch.tensor))
    assert len(ys) == len(zs)
    for a, b in zip((*ys, *gs), (*zs, *hs), strict=True):
        assert str(a.dtype).split(".")[1] == str(b.dtype).split(".")[1]
        close(a, b, 3e-5 if "ctc" not in key else 1e-4)


COMPILED = [
    "adaptive_max_pool2d 4", "max_unpool2d", "unfold", "fold", "interpolate bicubic {'size': (8, 4)} 4", "embedding_bag max",
    "ctc_loss short",
]  # fmt: skip


@pytest.mark.parametrize("key", COMPILED)
def test_compiled_functions_are_the_eager_ones(key: str) -> None:
    function, arrays = CASES[key][0], drawn(key)
    eager = lambda v: function(flame, F, v, flame.tensor)
    compiled = flame.compile(eager)
    for k in range(3):
        both = [[flame.tensor(a + k / 8, requires_grad=True) for a in arrays] for _ in range(2)]
        (ys, gs), (zs, hs) = ran(key, flame, both[0], compiled), ran(key, flame, both[1], eager)
        for a, b in zip((*ys, *gs), (*zs, *hs), strict=True):
            close(a, b)


@pytest.mark.oracle
def test_layers_of_these_functions_agree_with_pytorch(torch: Any) -> None:
    x = np.random.default_rng(3).standard_normal((2, 4, 6, 7)).astype(np.float32)
    for name, args, kwargs in (
        ("LPPool2d", (2, 3), dict(stride=1)),
        ("AdaptiveMaxPool2d", ((3, None),), {}),
        ("Unfold", (2,), dict(stride=2)),
        ("RReLU", (0.1, 0.4), {}),
        ("FractionalMaxPool2d", (2, 4), {}),
        ("MaxPool2d", (2,), dict(return_indices=True)),
    ):
        a, b = (getattr(lib.nn, name)(*args, **kwargs).eval() for lib in (flame, torch))
        if name != "FractionalMaxPool2d":
            for y, z in zip(leaves(a(flame.tensor(x))), leaves(b(torch.tensor(x))), strict=True):
                close(y, z)
        else:
            assert a(flame.tensor(x)).shape == tuple(b(torch.tensor(x)).shape)
        if name != "RReLU":
            assert repr(a) == repr(b)
    lrn, cross = torch.nn.LocalResponseNorm(3, 0.3, k=2), nn.CrossMapLRN2d(3, 0.3, k=2)
    close(cross(flame.tensor(x)), lrn(torch.tensor(x)))
    for name, args in (
        ("EmbeddingBag", (5, 3)),
        ("LinearCrossEntropyLoss", (4, 5)),
        ("AdaptiveLogSoftmaxWithLoss", (16, 20, [4, 10])),
    ):
        a, b = (getattr(lib.nn, name)(*args) for lib in (flame, torch))
        assert [(k, tuple(v.shape)) for k, v in a.state_dict().items()] == [
            (k, tuple(v.shape)) for k, v in b.state_dict().items()
        ]
        assert repr(a) == repr(b) and len(list(a.parameters())) == len(list(b.parameters()))


@pytest.mark.oracle
@pytest.mark.parametrize("bias", [True, False])
def test_adaptive_softmax_agrees_with_pytorch(torch: Any, bias: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 8)).astype(np.float32), np.array([0, 19, 4, 9, 3, 12, 0])
    ours = nn.AdaptiveLogSoftmaxWithLoss(8, 20, [4, 10], 2.0, bias)
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(8, 20, [4, 10], 2.0, bias)
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    both = []
    for lib, m in ((flame, ours), (torch, theirs)):
        t = lib.tensor(x, requires_grad=True)
        out, loss = m(t, lib.tensor(y))
        (loss + out.sum() * 0.1).backward()
        one = m(lib.tensor(x[0]), lib.tensor(3))
        both.append(
            [out, loss, *one, t.grad, m.log_prob(lib.tensor(x)), m.predict(lib.tensor(x)), *(p.grad for p in m.parameters())]
        )
    for a, b in zip(*both, strict=True):
        close(a, b)
    for cutoffs in ([], [5, 3], [0], [3, 3], [20], [1.5]):
        for lib in (flame, torch):
            with pytest.raises(ValueError):
                lib.nn.AdaptiveLogSoftmaxWithLoss(8, 20, cutoffs)
    for a, b in ((x, y[:3]), (x, y + 20)):
        for lib, m in ((flame, ours), (torch, theirs)):
            with pytest.raises(RuntimeError):
                m(lib.tensor(a), lib.tensor(b))


#: what PyTorch refuses too, with the same type of error
REFUSED: dict[str, Callable] = {
    "unfold, kernel too large": lambda t, f: f.unfold(t.ones(1, 1, 2, 2), 3),
    "unfold of 5 dimensions": lambda t, f: f.unfold(t.ones(1, 1, 2, 2, 2), 1),
    "unfold, stride 0": lambda t, f: f.unfold(t.ones(1, 1, 2, 2), 1, stride=0),
    "fold, wrong rows": lambda t, f: f.fold(t.ones(1, 5, 4), (3, 3), 2),
    "fold, wrong columns": lambda t, f: f.fold(t.ones(1, 4, 5), (3, 3), 2),
    "unpool, indices of int32": lambda t, f: f.max_unpool2d(t.ones(1, 1, 2, 2), t.ones(1, 1, 2, 2).int(), 2),
    "unpool, other shape": lambda t, f: f.max_unpool2d(t.ones(1, 1, 2, 2), t.ones(1, 1, 2, 1).long(), 2),
    "unpool, size": lambda t, f: f.max_unpool2d(t.ones(1, 1, 2, 2), t.zeros(1, 1, 2, 2).long(), 2, output_size=(9, 9)),
    "fractional, nothing": lambda t, f: f.fractional_max_pool2d(t.ones(1, 1, 4, 4), 2),
    "fractional, too large": lambda t, f: f.fractional_max_pool2d(t.ones(1, 1, 4, 4), 2, output_size=4),
    "interpolate, both": lambda t, f: f.interpolate(t.ones(1, 1, 4), 2, 2.0),
    "interpolate, neither": lambda t, f: f.interpolate(t.ones(1, 1, 4)),
    "interpolate, mode": lambda t, f: f.interpolate(t.ones(1, 1, 4), 2, mode="bilinear"),
    "interpolate, unknown": lambda t, f: f.interpolate(t.ones(1, 1, 4), 2, mode="x"),
    "interpolate, corners": lambda t, f: f.interpolate(t.ones(1, 1, 4), 2, align_corners=True),
    "interpolate, antialias": lambda t, f: f.interpolate(t.ones(1, 1, 4), 2, antialias=True),
    "interpolate, sizes": lambda t, f: f.interpolate(t.ones(1, 1, 4), (2, 3)),
    "interpolate to 0": lambda t, f: f.interpolate(t.ones(1, 1, 4), 0),
    "grid_sample, mode": lambda t, f: f.grid_sample(t.ones(1, 1, 2, 2), t.ones(1, 1, 1, 2), "x"),
    "grid_sample, padding": lambda t, f: f.grid_sample(t.ones(1, 1, 2, 2), t.ones(1, 1, 1, 2), padding_mode="x"),
    "grid_sample, shape": lambda t, f: f.grid_sample(t.ones(1, 1, 2, 2), t.ones(1, 1, 1, 3)),
    "grid_sample, batch": lambda t, f: f.grid_sample(t.ones(1, 1, 2, 2), t.ones(2, 1, 1, 2)),
    "affine_grid, shape": lambda t, f: f.affine_grid(t.ones(1, 3, 3), (1, 1, 2, 2)),
    "affine_grid, size": lambda t, f: f.affine_grid(t.ones(1, 2, 3), (1, 1, 2)),
    "pdist of 3 dimensions": lambda t, f: f.pdist(t.ones(1, 2, 3)),
    "embedding of floats": lambda t, f: f.embedding(t.ones(2), t.ones(3, 2)),
    "bag of floats": lambda t, f: f.embedding_bag(t.ones(2, 1), t.ones(3, 2)),
    "bag, offsets and rows": lambda t, f: f.embedding_bag(t.zeros(2, 1).long(), t.ones(3, 2), t.zeros(2).long()),
    "bag without offsets": lambda t, f: f.embedding_bag(t.zeros(2).long(), t.ones(3, 2)),
    "bag, mode": lambda t, f: f.embedding_bag(t.zeros(2, 1).long(), t.ones(3, 2), mode="x"),
    "bag, weights": lambda t, f: f.embedding_bag(t.zeros(2, 1).long(), t.ones(3, 2), per_sample_weights=t.ones(2, 1)),
    "bag, offsets": lambda t, f: f.embedding_bag(t.zeros(2).long(), t.ones(3, 2), t.ones(1).long()),
    "ctc, blank": lambda t, f: f.ctc_loss(t.ones(3, 1, 2), t.ones(1, 1).long(), (3,), (1,), blank=2),
    "ctc, input length": lambda t, f: f.ctc_loss(t.ones(3, 1, 2), t.ones(1, 1).long(), (4,), (1,)),
    "ctc, number of lengths": lambda t, f: f.ctc_loss(t.ones(3, 1, 2), t.ones(1, 1).long(), (3, 3), (1,)),
    "ctc, target length": lambda t, f: f.ctc_loss(t.ones(3, 1, 2), t.ones(1, 1).long(), (3,), (2,)),
    "rrelu, bounds": lambda t, f: f.rrelu(t.ones(2), 0.5, 0.1, True),
}


@pytest.mark.oracle
@pytest.mark.parametrize("key", REFUSED)
def test_what_does_not_fit_is_refused_as_pytorch_does(torch: Any, key: str) -> None:
    kinds = []
    for lib in (flame, torch):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(Exception) as e:
                REFUSED[key](lib, lib.nn.functional)
        kinds.append(e.type)
    assert kinds[0] is kinds[1]


def test_what_flame_does_not_have_is_refused_in_words() -> None:
    i, w = flame.zeros(2, dtype=flame.int64), flame.ones(3, 2)
    for f in (lambda: F.embedding(i, w, sparse=True), lambda: F.embedding_bag(i.reshape(2, 1), w, sparse=True)):
        with pytest.raises(RuntimeError, match="no sparse tensors"):
            f()
    with pytest.raises(RuntimeError, match="device_ids"):
        nn.DataParallel(nn.Linear(2, 2), device_ids=[0])
    with pytest.raises(ValueError, match="no process groups"):
        nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    m = nn.DataParallel(nn.Linear(2, 3))
    assert list(m.state_dict()) == ["module.weight", "module.bias"] and tuple(m(flame.ones(4, 2)).shape) == (4, 3)
    with pytest.warns(FutureWarning, match="Container"):
        assert dict(nn.Container(a=nn.Identity()).named_children()).keys() == {"a"}
    with pytest.warns(FutureWarning, match="NLLLoss2d"):
        nn.NLLLoss2d()


def test_random_functions_stay_within_their_bounds() -> None:
    flame.manual_seed(0)
    x = -flame.ones(2000)
    y = F.rrelu(x, 0.2, 0.6, training=True).numpy()
    assert y.min() > -0.6 and y.max() <= -0.2 and abs(y.mean() + 0.4) < 0.02
    p = F.gumbel_softmax(flame.tensor([0.0, math.log(3.0)]).expand(4000, 2), hard=True)
    assert set(np.unique(p.numpy())) == {0.0, 1.0} and abs(p[:, 1].mean().item() - 0.75) < 0.03
    logits = flame.zeros(5, 3, requires_grad=True)
    (F.gumbel_softmax(logits, hard=True) * flame.arange(3.0)).sum().backward()
    assert (logits.grad != 0).any()
    assert F.gumbel_softmax(logits, tau=0.5).sum(-1).tolist() == pytest.approx([1.0] * 5)
    z = F.fractional_max_pool2d(flame.arange(64.0).reshape(1, 1, 8, 8), 2, output_ratio=0.5)
    assert tuple(z.shape) == (1, 1, 4, 4) and z.max().item() == 63.0


def test_an_impossible_alignment_costs_infinity() -> None:
    x = flame.zeros(2, 1, 3).log_softmax(2).requires_grad_()
    assert F.ctc_loss(x, flame.tensor([[1, 1]]), (2,), (2,), reduction="sum").item() == math.inf
    loss = F.ctc_loss(x, flame.tensor([[1, 1]]), (2,), (2,), reduction="sum", zero_infinity=True)
    loss.backward()
    assert loss.item() == 0.0 and not x.grad.any()


def test_a_bags_gradients_are_divided_by_how_often_rows_are_named() -> None:
    w = flame.randn(6, 2, requires_grad=True)
    (
        F.embedding_bag(flame.tensor(I8), w, flame.tensor([0, 2]), scale_grad_by_freq=True, mode="sum") * flame.arange(1.0, 3.0)
    ).sum().backward()
    assert w.grad.tolist() == pytest.approx(np.array([[1.0, 2.0]] * 6))  # each row is named, and all its gradients are alike
    both = []
    for frequency in (True, False):
        w.grad = None
        F.embedding_bag(flame.tensor([[0, 1], [0, 2]]), w, mode="mean", scale_grad_by_freq=frequency).sum().backward()
        both.append(w.grad[:, 0].tolist())
    assert both == [[0.5, 0.5, 0.5, 0.0, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "name", "elu selu celu leaky_relu hardtanh silu mish hardsigmoid hardswish relu relu6 rrelu threshold".split()
)
def test_functions_that_write_over_their_input_have_its_gradient(name: str) -> None:
    args = (0.1, 2.0) if name == "threshold" else ()
    x = np.linspace(-4.0, 7.0, 23).astype(np.float32)
    results = []
    for inplace in (False, True):
        leaf = flame.tensor(x, requires_grad=True)
        t = leaf * 1.0
        y = getattr(F, name)(t, *args, inplace=inplace)
        (y * y).sum().backward()
        assert (y is t) == inplace
        results.append([y, leaf.grad])
    for a, b in zip(*results, strict=True):
        close(a, b, 0)


def test_rows_that_are_named_are_scaled_in_place() -> None:
    w = nn.Parameter(flame.tensor([[3.0, 4.0], [0.3, 0.4], [6.0, 8.0]]))
    y = F.embedding(flame.tensor([0, 0, 1]), w, max_norm=1.0)
    assert (
        y[0].tolist() == pytest.approx([0.6, 0.8])
        and w[2].tolist() == [6.0, 8.0]
        and w[0].tolist() == pytest.approx([0.6, 0.8])
    )
    y.sum().backward()
    assert w.grad.tolist() == [[2.0, 2.0], [1.0, 1.0], [0.0, 0.0]]
