"""Layers, losses and Module: against PyTorch with copied weights, against eager when compiled, and by their own promises."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
import flame.nn.functional as F

# -------------------------------------------------------------------- every layer, once

#: id -> (class name, constructor arguments, input shapes, deterministic); inputs are drawn from a normal distribution
Layer = tuple[str, tuple, dict, tuple]
LAYERS: dict[str, Layer] = {}


def layer(name: str, *args: Any, shapes: tuple, **kwargs: Any) -> None:
    key = name
    while key in LAYERS:
        key += "+"
    LAYERS[key] = (name, args, kwargs, shapes)


layer("Identity", shapes=((3, 4),))
layer("Linear", 5, 3, shapes=((4, 5),))
layer("Linear", 5, 3, bias=False, shapes=((2, 3, 5),))
layer("Linear", 5, 1, shapes=((5,),))
layer("Bilinear", 3, 4, 5, shapes=((2, 3), (2, 4)))
for _n, _size in ((1, (9,)), (2, (7, 6)), (3, (5, 4, 6))):
    layer(f"Conv{_n}d", 4, 6, 3, padding=1, groups=2, shapes=((2, 4, *_size),))
    layer(f"Conv{_n}d", 3, 2, 3, stride=2, padding=2, dilation=2, shapes=((2, 3, *_size),))
    layer(f"Conv{_n}d", 3, 2, 3, padding="same", bias=False, shapes=((3, *_size),))
    layer(f"ConvTranspose{_n}d", 4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, shapes=((2, 4, *_size),))
    layer(f"ConvTranspose{_n}d", 2, 3, 2, dilation=2, shapes=((2, 2, *_size),))
    layer(f"MaxPool{_n}d", 2, shapes=((2, 3, *_size),))
    layer(f"MaxPool{_n}d", 3, stride=2, padding=1, ceil_mode=True, shapes=((2, 3, *_size),))
    layer(f"AvgPool{_n}d", 2, shapes=((2, 3, *_size),))
    layer(f"AvgPool{_n}d", 3, 2, 1, True, False, shapes=((2, 3, *_size),))
    layer(f"AdaptiveAvgPool{_n}d", 3, shapes=((2, 3, *_size),))
    layer(f"AdaptiveMaxPool{_n}d", 2, shapes=((2, 3, *_size),))
    layer(f"BatchNorm{_n}d", 3, shapes=((4, 3, *_size),))
    layer(f"BatchNorm{_n}d", 3, momentum=None, affine=False, shapes=((4, 3, *_size),))
    layer(f"InstanceNorm{_n}d", 3, shapes=((4, 3, *_size),))
    layer(f"InstanceNorm{_n}d", 3, affine=True, track_running_stats=True, shapes=((4, 3, *_size),))
    layer(f"ConstantPad{_n}d", 2, 1.5, shapes=((2, 3, *_size),))
    layer(f"ZeroPad{_n}d", tuple(range(2 * _n)), shapes=((2, 3, *_size),))
    layer(f"ReflectionPad{_n}d", 2, shapes=((2, 3, *_size),))
    layer(f"ReplicationPad{_n}d", tuple(range(2 * _n)), shapes=((2, 3, *_size),))
    layer(f"CircularPad{_n}d", 2, shapes=((2, 3, *_size),))
for _mode in ("reflect", "replicate", "circular"):
    layer("Conv2d", 3, 2, 3, padding=(1, 2), padding_mode=_mode, shapes=((2, 3, 6, 7),))
layer("Conv1d", 2, 3, 4, padding="same", padding_mode="circular", shapes=((2, 2, 8),))
layer("BatchNorm1d", 4, shapes=((5, 4),))
layer("BatchNorm2d", 3, track_running_stats=False, shapes=((4, 3, 2, 5),))
layer("LayerNorm", 6, shapes=((3, 6),))
layer("LayerNorm", (4, 6), bias=False, shapes=((2, 3, 4, 6),))
layer("LayerNorm", 6, elementwise_affine=False, eps=1e-3, shapes=((3, 6),))
layer("RMSNorm", 6, shapes=((3, 6),))
layer("RMSNorm", (4, 6), eps=1e-3, elementwise_affine=False, shapes=((2, 3, 4, 6),))
layer("GroupNorm", 2, 6, shapes=((3, 6, 4),))
layer("GroupNorm", 6, 6, affine=False, shapes=((3, 6, 4, 2),))
layer("LocalResponseNorm", 3, shapes=((2, 5, 4, 3),))
for _name in (
    "ReLU ReLU6 ELU SELU CELU GELU SiLU Mish LeakyReLU Hardtanh Hardsigmoid Hardswish Hardshrink Softshrink Tanhshrink Softplus "
    "Softsign Sigmoid Tanh LogSigmoid GLU PReLU"
).split():
    layer(_name, shapes=((4, 6),))
layer("GELU", approximate="tanh", shapes=((4, 6),))
layer("ELU", 0.5, shapes=((4, 6),))
layer("CELU", 2.0, shapes=((4, 6),))
layer("Softplus", 2.0, 1.0, shapes=((4, 6),))
layer("Threshold", 0.1, 2.0, shapes=((4, 6),))
layer("Hardtanh", -0.5, 0.3, shapes=((4, 6),))
layer("PReLU", 3, shapes=((2, 3, 4),))
layer("GLU", 1, shapes=((2, 4, 3),))
for _name in ("Softmax", "LogSoftmax", "Softmin"):
    layer(_name, 1, shapes=((3, 5, 2),))
layer("Softmax2d", shapes=((2, 3, 4, 5),))
layer("Flatten", shapes=((2, 3, 4, 5),))
layer("Flatten", 0, 2, shapes=((2, 3, 4, 5),))
layer("Unflatten", 1, (2, 3), shapes=((2, 6, 4),))
layer("PixelShuffle", 2, shapes=((2, 8, 3, 4),))
layer("PixelUnshuffle", 2, shapes=((2, 2, 6, 4),))
layer("ChannelShuffle", 3, shapes=((2, 6, 3, 4),))
layer("Upsample", scale_factor=2, shapes=((2, 3, 4, 5),))
layer("Upsample", size=(7, 3), shapes=((2, 3, 4, 5),))
layer("Upsample", scale_factor=2, mode="bilinear", shapes=((2, 3, 4, 5),))
layer("Upsample", size=9, mode="linear", align_corners=True, shapes=((2, 3, 4),))
layer("UpsamplingNearest2d", scale_factor=3, shapes=((2, 3, 2, 3),))
layer("UpsamplingBilinear2d", size=(5, 6), shapes=((2, 3, 2, 3),))
layer("CosineSimilarity", shapes=((3, 4), (3, 4)))
layer("PairwiseDistance", shapes=((3, 4), (3, 4)))
for _name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"):
    layer(_name, 0.0, shapes=((2, 3, 4, 5, 2)[: {"Dropout1d": 3, "Dropout2d": 4}.get(_name, 5)],))

RANDOM = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")


def made(key: str) -> tuple[nn.Module, list[np.ndarray]]:
    """The layer with fixed weights, and its inputs."""
    name, args, kwargs, shapes = LAYERS[key]
    flame.manual_seed(3)
    rng = np.random.default_rng(sorted(LAYERS).index(key))
    return getattr(nn, name)(*args, **kwargs), [rng.standard_normal(s).astype(np.float32) for s in shapes]


def run(m: Any, xs: list[Any]) -> tuple[Any, list[Any]]:
    """The result, and the gradients of a fixed weighting of it."""
    y = m(*xs)
    w = np.cos(np.arange(y.numel(), dtype=np.float32)).reshape(tuple(y.shape))
    w = flame.tensor(w) if isinstance(y, flame.Tensor) else xs[0].new_tensor(w)
    (y * w).sum().backward()
    return y, [x.grad for x in xs]


def close(ours: Any, theirs: Any, tol: float = 2e-5) -> None:
    a, b = (np.asarray(x.detach().numpy(), np.float64) for x in (ours, theirs))
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


def load_into(torch: Any, theirs: Any, ours: nn.Module) -> None:
    """Our weights in PyTorch's module. Its strict loading checks that keys and shapes are its own."""
    theirs.load_state_dict({k: torch.tensor(v.numpy().copy()) for k, v in ours.state_dict().items()})


def without_bias(text: str) -> str:
    """Versions of PyTorch differ in whether norms show their bias."""
    return re.sub(r", bias=\w+", "", text)


@pytest.mark.oracle
@pytest.mark.parametrize("key", LAYERS)
def test_layers_agree_with_pytorch_on_its_own_weights(torch: Any, key: str) -> None:
    ours, arrays = made(key)
    name, args, kwargs, _ = LAYERS[key]
    theirs = getattr(torch.nn, name)(*args, **kwargs)
    load_into(torch, theirs, ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert without_bias(repr(ours)) == without_bias(repr(theirs))
    for step in range(2):
        if step:
            ours.eval()
            theirs.eval()
        xs = [flame.tensor(a, requires_grad=True) for a in arrays]
        ts = [torch.tensor(a, requires_grad=True) for a in arrays]
        (y, gs), (z, hs) = run(ours, xs), run(theirs, ts)
        close(y, z)
        for g, h in zip(gs, hs, strict=True):
            close(g, h)
    for (n, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert p.grad is not None, n
        close(p.grad, q.grad, 1e-4)
    for b, c in zip(ours.buffers(), theirs.buffers(), strict=True):
        close(b, c)


@pytest.mark.parametrize("key", LAYERS)
def test_compiled_layers_are_the_eager_ones(key: str) -> None:
    eager, arrays = made(key)
    compiled = flame.compile(copy.deepcopy(eager))
    for i in range(3):
        xs = [[flame.tensor(a * (1 + i / 4), requires_grad=True) for a in arrays] for _ in range(2)]
        (y, gs), (z, hs) = run(compiled, xs[0]), run(eager, xs[1])
        close(y, z)
        for g, h in zip(gs, hs, strict=True):
            close(g, h)
    for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
        close(p.grad, q.grad, 1e-4)
    for b, c in zip(compiled.buffers(), eager.buffers(), strict=True):
        close(b, c)


@pytest.mark.parametrize("name", RANDOM)
def test_dropout_draws_the_same_numbers_compiled(name: str) -> None:
    m = getattr(nn, name)(0.4)
    x = flame.randn(3, 4, 5, 2, 3)[(slice(None),) * {"Dropout1d": 3, "Dropout2d": 4}.get(name, 5)]
    x = {"Dropout1d": x[..., 0, 0], "Dropout2d": x[..., 0]}.get(name, x)
    both = []
    for f in (m, flame.compile(m)):
        flame.manual_seed(11)
        both.append([f(x) for _ in range(3)])
    for a, b in zip(*both, strict=True):
        close(a, b, 1e-6)
    assert not np.array_equal(both[0][0].numpy(), both[0][1].numpy())
    m.eval()
    assert np.array_equal(m(x).numpy(), x.numpy())


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    flame.manual_seed(0)
    y = nn.Dropout(0.3)(flame.ones(100, 100)).numpy()
    assert abs((y == 0).mean() - 0.3) < 0.02
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    y = nn.Dropout2d(0.5)(flame.ones(40, 50, 3, 3)).numpy()
    assert set(np.unique((y == 0).sum((2, 3)))) == {0, 9}
    assert nn.Dropout(1.0)(flame.ones(3)).tolist() == [0, 0, 0]


# -------------------------------------------------------------------- embeddings and attention


@pytest.mark.oracle
@pytest.mark.parametrize("padding", [None, 2, -1])
def test_embedding_agrees_with_pytorch(torch: Any, padding: int | None, rng: np.random.Generator) -> None:
    ours = nn.Embedding(7, 4, padding_idx=padding)
    theirs = torch.nn.Embedding(7, 4, padding_idx=padding)
    load_into(torch, theirs, ours)
    if padding is not None:
        assert not ours.weight[padding].any()
    i = rng.integers(0, 7, (3, 5))
    i[0, 0] = 2
    for m, t in ((ours, flame.tensor), (theirs, torch.tensor)):
        y = m(t(i))
        (y * y).sum().backward()
    close(ours(flame.tensor(i)), theirs(torch.tensor(i)))
    close(ours.weight.grad, theirs.weight.grad)
    assert repr(ours) == repr(theirs)


def test_embedding_from_a_table() -> None:
    table = flame.arange(6.0).reshape(3, 2)
    m = nn.Embedding.from_pretrained(table)
    assert not m.weight.requires_grad
    assert m(flame.tensor([2, 0])).tolist() == [[4, 5], [0, 1]]
    with pytest.raises(RuntimeError, match="Long, Int"):
        m(flame.tensor([1.0]))


ATTENTION = [
    dict(),
    dict(batch_first=True),
    dict(bias=False),
    dict(add_bias_kv=True, add_zero_attn=True),
    dict(kdim=3, vdim=5),
    dict(kdim=3, vdim=5, batch_first=True, add_bias_kv=True),
]


@pytest.mark.oracle
@pytest.mark.parametrize("settings", ATTENTION, ids=str)
@pytest.mark.parametrize("mask", ["none", "bool", "float", "3d", "padding", "both"])
@pytest.mark.parametrize("need", [True, False])
def test_attention_agrees_with_pytorch(torch: Any, settings: dict, mask: str, need: bool, rng: np.random.Generator) -> None:
    e, heads, n, length, source = 8, 2, 3, 4, 5
    ours = nn.MultiheadAttention(e, heads, **settings)
    theirs = torch.nn.MultiheadAttention(e, heads, **settings)
    load_into(torch, theirs, ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    shapes = [(length, n, e), (source, n, settings.get("kdim", e)), (source, n, settings.get("vdim", e))]
    if settings.get("batch_first"):
        shapes = [(b, a, c) for a, b, c in shapes]
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    more: dict[str, np.ndarray] = {}
    forbidden = rng.random((length, source)) < 0.3
    forbidden[:, 1] = False
    if mask in ("bool", "both"):
        more["attn_mask"] = forbidden
    if mask == "float":
        more["attn_mask"] = rng.standard_normal((length, source)).astype(np.float32)
    if mask == "3d":
        more["attn_mask"] = np.stack([forbidden] * (n * heads))
    if mask in ("padding", "both"):
        more["key_padding_mask"] = np.arange(source) >= np.array([[5], [3], [4]])
    results = []
    for m, t in ((ours, flame.tensor), (theirs, torch.tensor)):
        xs = [t(a, requires_grad=True) for a in arrays]
        y, w = m(*xs, need_weights=need, average_attn_weights=mask != "float", **{k: t(v) for k, v in more.items()})
        (y * y).sum().backward()
        results.append((y, w, [x.grad for x in xs], [p.grad for p in m.parameters()]))
    (y, w, gs, ps), (z, v, hs, qs) = results
    close(y, z)
    if need:
        close(w, v)
    else:
        assert w is None
    for g, h in zip(gs + ps, hs + qs, strict=True):
        close(g, h, 1e-4)


@pytest.mark.oracle
def test_self_attention_without_a_batch_and_compiled(torch: Any, rng: np.random.Generator) -> None:
    ours = nn.MultiheadAttention(8, 4)
    theirs = torch.nn.MultiheadAttention(8, 4)
    load_into(torch, theirs, ours)
    a = rng.standard_normal((5, 8)).astype(np.float32)
    x, t = flame.tensor(a), torch.tensor(a)
    mask = np.triu(np.ones((5, 5), bool), 1)
    z = theirs(t, t, t, attn_mask=torch.tensor(mask))
    f = flame.compile(ours)
    for _ in range(3):
        y = f(x, x, x, attn_mask=flame.tensor(mask))
        close(y[0], z[0])
        close(y[1], z[1])


# -------------------------------------------------------------------- losses


def classes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 5, shape)


def probabilities(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.random(shape).astype(np.float32)


def signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.choice(np.float32([-1, 1]), shape)


#: name, shapes of floating inputs, target's maker and shape, settings
LOSSES: list[tuple[str, tuple, Callable | None, tuple, dict]] = [
    ("cross_entropy", ((6, 5),), classes, (6,), {}),
    ("cross_entropy", ((5,),), classes, (), {}),
    ("cross_entropy", ((6, 5),), classes, (6,), dict(ignore_index=1, label_smoothing=0.2)),
    ("cross_entropy", ((2, 5, 3, 4),), classes, (2, 3, 4), dict(label_smoothing=0.1, weight=5)),
    ("cross_entropy", ((2, 5, 3),), classes, (2, 3), dict(weight=5, ignore_index=2)),
    ("cross_entropy", ((4, 5),), probabilities, (4, 5), dict(label_smoothing=0.1, weight=5)),
    ("cross_entropy", ((4, 5, 2),), probabilities, (4, 5, 2), {}),
    ("nll_loss", ((6, 5),), classes, (6,), dict(weight=5, ignore_index=3)),
    ("nll_loss", ((2, 5, 3, 4),), classes, (2, 3, 4), {}),
    ("mse_loss", ((3, 4),), probabilities, (3, 4), {}),
    ("l1_loss", ((3, 4),), probabilities, (3, 4), {}),
    ("smooth_l1_loss", ((3, 4),), probabilities, (3, 4), dict(beta=0.5)),
    ("smooth_l1_loss", ((3, 4),), probabilities, (3, 4), dict(beta=0.0)),
    ("huber_loss", ((3, 4),), probabilities, (3, 4), dict(delta=0.7)),
    ("binary_cross_entropy_with_logits", ((3, 5),), probabilities, (3, 5), dict(pos_weight=5)),
    ("binary_cross_entropy_with_logits", ((3, 5),), probabilities, (3, 5), dict(weight=5)),
    ("kl_div", ((3, 4),), probabilities, (3, 4), {}),
    ("kl_div", ((3, 4),), probabilities, (3, 4), dict(log_target=True)),
    ("poisson_nll_loss", ((3, 4),), classes, (3, 4), dict(full=True)),
    ("soft_margin_loss", ((3, 4),), signs, (3, 4), {}),
    ("hinge_embedding_loss", ((3, 4),), signs, (3, 4), dict(margin=0.5)),
    ("margin_ranking_loss", ((6,), (6,)), signs, (6,), dict(margin=0.2)),
    ("cosine_embedding_loss", ((6, 4), (6, 4)), signs, (6,), dict(margin=0.1)),
    ("triplet_margin_loss", ((6, 4), (6, 4), (6, 4)), None, (), dict(swap=True)),
    ("triplet_margin_with_distance_loss", ((6, 4), (6, 4), (6, 4)), None, (), {}),
    ("multi_margin_loss", ((4, 5),), classes, (4,), dict(p=2, weight=5)),
    ("multi_margin_loss", ((5,),), classes, (), {}),
    ("multilabel_soft_margin_loss", ((3, 5),), probabilities, (3, 5), dict(weight=5)),
]


def drawn(case: tuple, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray], dict]:
    _, shapes, target, shape, settings = case
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    targets = [] if target is None else [np.asarray(target(rng, *shape))]
    settings = {k: rng.random(v).astype(np.float32) + 0.5 if k in ("weight", "pos_weight") else v for k, v in settings.items()}
    return arrays, targets, settings


def as_tensors(tensor: Callable, settings: dict) -> dict:
    return {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in settings.items()}


@pytest.mark.oracle
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", LOSSES, ids=lambda c: f"{c[0]}{list(c[4])}")
@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
def test_losses_agree_with_pytorch(torch: Any, case: tuple, reduction: str, rng: np.random.Generator) -> None:
    arrays, targets, settings = drawn(case, rng)
    results = []
    for functional, tensor in ((F, flame.tensor), (torch.nn.functional, torch.tensor)):
        xs = [tensor(a, requires_grad=True) for a in arrays]
        ts = [tensor(t) for t in targets]
        y = getattr(functional, case[0])(*xs, *ts, reduction=reduction, **as_tensors(tensor, settings))
        (y * y).sum().backward()
        results.append((y, [x.grad for x in xs]))
    close(results[0][0], results[1][0])
    for g, h in zip(results[0][1], results[1][1], strict=True):
        close(g, h, 1e-4)


@pytest.mark.parametrize("case", LOSSES, ids=lambda c: f"{c[0]}{list(c[4])}")
def test_losses_compiled_are_the_eager_ones(case: tuple, rng: np.random.Generator) -> None:
    arrays, targets, settings = drawn(case, rng)
    settings = as_tensors(flame.tensor, settings)
    f = getattr(F, case[0])

    def loss_and_grads(*xs: Any) -> Any:
        y = f(*xs, *map(flame.tensor, targets), **settings)
        y.backward()
        return y

    g = flame.compile(loss_and_grads)
    for i in range(3):
        xs = [[flame.tensor(a * (1 + i / 3), requires_grad=True) for a in arrays] for _ in range(2)]
        close(g(*xs[0]), loss_and_grads(*xs[1]))
        for a, b in zip(*xs, strict=True):
            close(a.grad, b.grad)


@pytest.mark.oracle
def test_binary_cross_entropy_at_and_between_the_ends(torch: Any) -> None:
    p = np.float32([0.0, 1.0, 0.0, 1.0, 0.3, 1e-13, 0.7])
    t = np.float32([0.0, 1.0, 1.0, 0.0, 0.6, 1.0, 0.0])
    x, z = flame.tensor(p, requires_grad=True), torch.tensor(p, requires_grad=True)
    a = F.binary_cross_entropy(x, flame.tensor(t), reduction="none")
    b = torch.nn.functional.binary_cross_entropy(z, torch.tensor(t), reduction="none")
    close(a, b)
    a.sum().backward()
    b.sum().backward()
    close(x.grad, z.grad)


@pytest.mark.oracle
def test_gaussian_and_multilabel_losses(torch: Any, rng: np.random.Generator) -> None:
    x, t, v = (rng.standard_normal((3, 4)).astype(np.float32) for _ in range(3))
    v = np.abs(v) + np.float32(1e-9)
    v[0, 0] = 0
    args = [f(x) for f in (flame.tensor, torch.tensor)]
    ours = F.gaussian_nll_loss(args[0], flame.tensor(t), flame.tensor(v), full=True)
    close(ours, torch.nn.functional.gaussian_nll_loss(args[1], torch.tensor(t), torch.tensor(v), full=True), 1e-4)
    labels = np.array([[2, 0, -1, 1], [3, 1, 2, 0], [-1, 0, 1, 2]])
    results = []
    for f, tensor in ((F, flame.tensor), (torch.nn.functional, torch.tensor)):
        z = tensor(x, requires_grad=True)
        y = f.multilabel_margin_loss(z, tensor(labels), reduction="none")
        y.sum().backward()
        results.append((y, z.grad))
    close(results[0][0], results[1][0])
    close(results[0][1], results[1][1])


MODULE_LOSSES = (
    "L1Loss MSELoss SmoothL1Loss HuberLoss NLLLoss CrossEntropyLoss BCELoss BCEWithLogitsLoss KLDivLoss PoissonNLLLoss "
    "SoftMarginLoss HingeEmbeddingLoss MultiLabelSoftMarginLoss"
).split()


@pytest.mark.oracle
@pytest.mark.parametrize("name", MODULE_LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
def test_loss_modules_agree_with_pytorch(torch: Any, name: str, rng: np.random.Generator) -> None:
    x = rng.random((6, 5)).astype(np.float32)
    t = rng.integers(0, 5, 6) if name in ("NLLLoss", "CrossEntropyLoss") else rng.random((6, 5)).astype(np.float32)
    for settings in ({}, {"reduction": "sum"}):
        ours, theirs = getattr(nn, name)(**settings), getattr(torch.nn, name)(**settings)
        assert repr(ours) == repr(theirs)
        close(ours(flame.tensor(x), flame.tensor(t)), theirs(torch.tensor(x), torch.tensor(t)))


def test_weights_of_losses_are_buffers() -> None:
    m = nn.CrossEntropyLoss(weight=flame.tensor([1.0, 2.0]))
    assert list(m.state_dict()) == ["weight"]
    m = nn.BCEWithLogitsLoss(pos_weight=flame.ones(3))
    assert list(m.state_dict()) == ["pos_weight"]
    assert nn.CrossEntropyLoss(size_average=False).reduction == "sum"


def test_losses_refuse_what_does_not_fit() -> None:
    x = flame.randn(4, 5)
    with pytest.raises(ValueError, match="maximum is not a valid value for reduction"):
        F.mse_loss(x, x, reduction="maximum")
    with pytest.raises(ValueError, match="to match target batch_size"):
        F.cross_entropy(x, flame.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="weight tensor should be defined"):
        F.cross_entropy(x, flame.tensor([1, 2, 3, 4]), weight=flame.ones(4))
    with pytest.raises(RuntimeError, match="expected scalar type Long"):
        F.cross_entropy(x, flame.ones(4))
    with pytest.raises(ValueError, match="must be the same as input size"):
        F.binary_cross_entropy_with_logits(x, flame.ones(4, 4))
    with pytest.raises(RuntimeError, match="label_smoothing"):
        F.cross_entropy(x, flame.tensor([1, 2, 3, 4]), label_smoothing=1.5)


def test_cross_entropy_where_all_targets_are_ignored_is_nan() -> None:
    assert np.isnan(F.cross_entropy(flame.randn(2, 3), flame.tensor([-100, -100])).item())
    assert F.cross_entropy(flame.randn(2, 3), flame.tensor([-100, -100]), reduction="sum").item() == 0


def test_cross_entropy_survives_large_logits() -> None:
    x = flame.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    y = F.cross_entropy(x, flame.tensor([1]))
    y.backward()
    assert y.item() == 2e4
    assert x.grad.tolist() == [[1, -1, 0]]


# -------------------------------------------------------------------- Module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False))
        self.scale = nn.Parameter(flame.ones(2))
        self.register_buffer("seen", flame.zeros(1))
        self.register_buffer("hidden", flame.zeros(1), persistent=False)
        self.extra = nn.Buffer(flame.ones(2))

    def forward(self, x: flame.Tensor) -> flame.Tensor:
        return self.rest(self.norm(self.a(x))) * self.scale


KEYS = (
    "scale seen extra a.weight a.bias norm.weight norm.bias norm.running_mean norm.running_var norm.num_batches_tracked "
    "rest.1.weight"
).split()


def test_registration_and_walking() -> None:
    m = Net()
    assert list(m.state_dict()) == KEYS
    assert [n for n, _ in m.named_parameters()] == [
        "scale", "a.weight", "a.bias", "norm.weight", "norm.bias", "rest.1.weight",
    ]  # fmt: skip
    assert [n for n, _ in m.named_buffers()] == [
        "seen", "hidden", "extra", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    ]  # fmt: skip
    assert [n for n, _ in m.named_modules()] == ["", "a", "norm", "rest", "rest.0", "rest.1"]
    assert [n for n, _ in m.named_children()] == ["a", "norm", "rest"]
    assert m.get_submodule("rest.1") is m.rest[1] and m.get_parameter("a.bias") is m.a.bias
    assert m.get_buffer("norm.running_mean") is m.norm.running_mean
    with pytest.raises(AttributeError, match="has no attribute `b`"):
        m.get_submodule("b")
    m.b = m.a  # shared modules and parameters are listed once
    assert len(list(m.parameters())) == 6 and len(list(m.named_parameters(remove_duplicate=False))) == 8
    del m.b
    assert not hasattr(m, "b") and "b" not in dict(m.named_children())


def test_attributes_that_register_refuse_other_things() -> None:
    m = Net()
    with pytest.raises(TypeError, match="cannot assign 'int' as parameter 'scale'"):
        m.scale = 3
    with pytest.raises(TypeError, match="cannot assign 'flame.tensor.Tensor' as parameter 'scale'"):
        m.scale = flame.ones(2)
    with pytest.raises(TypeError, match="cannot assign 'str' as child module 'a'"):
        m.a = "x"
    with pytest.raises(TypeError, match="cannot assign 'flame.tensor.Tensor' as child module 'a'"):
        m.a = flame.ones(1)
    with pytest.raises(KeyError, match="attribute 'a' already exists"):
        m.register_parameter("a", nn.Parameter(flame.ones(1)))
    with pytest.raises(KeyError, match="buffer name can.*t contain"):
        m.register_buffer("x.y", flame.ones(1))
    with pytest.raises(TypeError, match="cannot assign 'flame.tensor.Tensor' object to parameter 'late'"):
        m.register_parameter("late", nn.Parameter(flame.ones(1)) * 2)
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'nothing'"):
        getattr(m, "nothing")  # noqa: B009
    m.scale = None
    assert m.scale is None and "scale" not in m.state_dict()
    m.scale = nn.Parameter(flame.zeros(2))
    m.seen = flame.ones(1)
    assert m.state_dict()["seen"].item() == 1

    class Early(nn.Module):
        def __init__(self) -> None:
            self.w = nn.Parameter(flame.ones(1))

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Early()


def test_attributes_are_what_is_registered() -> None:
    """Registered parts are plain attributes too: whatever changes the one changes the other."""
    m = Net()
    p, q = m.scale, nn.Parameter(flame.zeros(2))
    m._parameters["scale"] = q
    assert m.scale is q
    m.scale = p
    assert m._parameters["scale"] is p
    assert m._parameters.pop("scale") is p and not hasattr(m, "scale")
    m.scale = nn.Linear(1, 1)  # the name may change its kind
    assert "scale" in m._modules and "scale" not in m._parameters
    m.scale = q
    assert m.scale is q and "scale" not in m._modules
    m._modules.update(rest=nn.Identity())
    assert isinstance(m.rest, nn.Identity)
    m._modules = {"a": m.a}
    assert not hasattr(m, "rest") and [n for n, _ in m.named_children()] == ["a"]
    m._buffers.clear()
    assert not hasattr(m, "seen") and list(m.buffers()) == []
    del m.a
    assert "a" not in m.__dict__ and list(m.children()) == []
    m._parameters |= {"late": p}
    assert m.late is p and m._parameters.setdefault("late", q) is p
    for other in (copy.copy(m), copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert list(other._parameters) == ["scale", "late"]
        other.scale = nn.Parameter(flame.ones(1))
        assert other._parameters["scale"] is other.scale and m.scale is q


def test_state_is_loaded_and_misfits_are_all_named() -> None:
    a, b = Net(), Net()
    assert repr(b.load_state_dict(a.state_dict())) == "<All keys matched successfully>"
    x = flame.randn(5, 3)
    assert np.array_equal(a(x).detach().numpy(), b(x).detach().numpy())
    state = a.state_dict()
    del state["scale"]
    state["rest.9.weight"] = flame.ones(1)
    state["a.weight"] = flame.ones(2, 2)
    with pytest.raises(RuntimeError) as e:
        b.load_state_dict(state)
    assert str(e.value) == (
        'Error(s) in loading state_dict for Net:\n\tMissing key(s) in state_dict: "scale". \n\t'
        'Unexpected key(s) in state_dict: "rest.9.weight". \n\tsize mismatch for a.weight: copying a param with shape '
        "flame.Size([2, 2]) from checkpoint, the shape in current model is flame.Size([4, 3])."
    )
    del state["a.weight"]
    got = b.load_state_dict(state, strict=False)
    assert got.missing_keys == ["scale", "a.weight"] and got.unexpected_keys == ["rest.9.weight"]
    w = flame.full((4, 3), 7.0)
    b.load_state_dict({"a.weight": w}, strict=False, assign=True)
    assert b.a.weight[0, 0].item() == 7 and isinstance(b.a.weight, nn.Parameter) and b.a.weight.requires_grad


def test_state_dict_shares_memory_and_has_no_history() -> None:
    m = nn.Linear(2, 2)
    s = m.state_dict()
    assert not s["weight"].requires_grad
    with flame.no_grad():
        m.weight.fill_(3)
    assert s["weight"][0, 0].item() == 3
    assert m.state_dict(keep_vars=True)["weight"] is m.weight
    assert list(m.state_dict(prefix="x.")) == ["x.weight", "x.bias"]


def test_modes_conversion_and_application() -> None:
    m = Net()
    m.eval()
    assert not any(c.training for c in m.modules())
    m.train()
    assert all(c.training for c in m.modules())
    assert m.double() is m and m.a.weight.dtype is flame.float64 and m.norm.num_batches_tracked.dtype is flame.int64
    assert isinstance(m.a.weight, nn.Parameter)
    assert m(flame.randn(4, 3, dtype=flame.float64)).dtype is flame.float64
    m.to(flame.bfloat16)
    assert m.scale.dtype is flame.bfloat16
    m.to("cpu").to(dtype=flame.float32)
    assert m.scale.dtype is flame.float32
    with pytest.raises(TypeError, match="only accepts floating"):
        m.to(flame.int32)
    names = []
    m.apply(lambda c: names.append(type(c).__name__))
    assert names == ["Linear", "BatchNorm1d", "ReLU", "Linear", "Sequential", "Net"]
    m(flame.randn(4, 3)).sum().backward()
    m.zero_grad()
    assert all(p.grad is None for p in m.parameters())
    m.requires_grad_(False)
    assert not m(flame.randn(4, 3)).requires_grad


def test_gradients_follow_a_conversion() -> None:
    m = nn.Linear(2, 1)
    m(flame.ones(1, 2)).sum().backward()
    m.double()
    assert m.weight.grad.dtype is flame.float64
    m(flame.ones(1, 2, dtype=flame.float64)).sum().backward()
    assert m.weight.grad.tolist() == [[2, 2]]


def test_copies_and_pickles_are_independent() -> None:
    m = Net()
    m(flame.randn(4, 3)).sum().backward()
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert isinstance(other.a.weight, nn.Parameter) and other.a.weight is not m.a.weight
        for k, v in m.state_dict().items():
            assert np.array_equal(v.numpy(), other.state_dict()[k].numpy())
        with flame.no_grad():
            other.scale.fill_(9)
        assert m.scale[0].item() == 1
        other(flame.randn(4, 3)).sum().backward()
    assert np.array_equal(copy.deepcopy(m).scale.grad.numpy(), m.scale.grad.numpy())


def test_forward_hooks() -> None:
    m, log = nn.Linear(2, 2), []
    handles = [
        m.register_forward_pre_hook(lambda mod, args: log.append("pre") or (args[0] * 2,)),
        m.register_forward_hook(lambda mod, args, out: log.append("post") or out + 1),
        m.register_forward_pre_hook(lambda mod, args: log.append("first"), prepend=True),
        m.register_forward_hook(lambda mod, args, kwargs, out: log.append(sorted(kwargs)), with_kwargs=True),
    ]
    x = flame.ones(1, 2)
    want = F.linear(x * 2, m.weight, m.bias) + 1
    assert np.array_equal(m(x).detach().numpy(), want.detach().numpy())
    assert log == ["first", "pre", "post", []]
    for h in handles:
        h.remove()
    assert not m._hooked
    log.clear()
    m(x)
    assert log == []
    m.register_forward_hook(lambda mod, args, out: log.append(out), always_call=True)
    with pytest.raises(RuntimeError):
        m(flame.ones(1, 5))
    assert log == [None]


def test_backward_hooks_see_and_change_gradients() -> None:
    m, log = nn.Linear(2, 1, bias=False), []

    def hook(mod: Any, grad_in: tuple, grad_out: tuple) -> tuple:
        log.append((grad_in[0].tolist(), grad_out[0].tolist()))
        return (grad_in[0] * 10,)

    with flame.no_grad():
        m.weight.copy_(flame.tensor([[2.0, 3.0]]))
    m.register_full_backward_hook(hook)
    m.register_full_backward_pre_hook(lambda mod, g: (g[0] * 5,))
    x = flame.ones(1, 2, requires_grad=True)
    m(x).sum().backward()
    assert log == [([[10.0, 15.0]], [[5.0]])]
    assert x.grad.tolist() == [[100, 150]] and m.weight.grad.tolist() == [[5, 5]]
    log.clear()
    m2 = nn.Linear(2, 1)
    m2.register_full_backward_hook(lambda mod, gi, go: log.append(gi))
    m2(flame.ones(1, 2)).sum().backward()
    assert log == [(None,)]


def test_compiled_modules_are_the_module() -> None:
    m = Net()
    c = flame.compile(m)
    assert isinstance(c, Net) and c._orig_mod is m and list(c.state_dict()) == KEYS
    assert c.a is m.a and list(c.parameters())[0] is m.scale
    c.eval()
    assert not m.training
    c.train()
    for _ in range(3):
        x = flame.randn(4, 3)
        other = copy.deepcopy(m)
        close(c(x), other(x))
        close(m.norm.running_mean, other.norm.running_mean)
    assert c.stats.calls == 3
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(c, "nothing")  # noqa: B009
    c.scale = nn.Parameter(flame.zeros(2))
    assert not m(x).any() and not c(x).any()
    clone = pickle.loads(pickle.dumps(c))
    assert type(clone) is Net
    twin = copy.deepcopy(c)
    assert twin.scale is not m.scale and not twin(x).any()

    m.compile()
    for _ in range(3):
        assert not m(x).any()
    assert type(copy.deepcopy(m)) is Net


def test_containers() -> None:
    s = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert len(s) == 3 and isinstance(s[1], nn.ReLU) and s[-1].out_features == 1 and len(s[:2]) == 2
    s.append(nn.Tanh()).insert(1, nn.Identity())
    assert [type(m).__name__ for m in s] == ["Linear", "Identity", "ReLU", "Linear", "Tanh"]
    del s[1]
    assert list(dict(s.named_children())) == ["0", "1", "2", "3"]
    assert isinstance(s.pop(-1), nn.Tanh)
    s[1] = nn.GELU()
    assert isinstance(s[1], nn.GELU)
    assert len(s + nn.Sequential(nn.ReLU())) == 4 and len(s * 2) == 6
    with pytest.raises(IndexError):
        s[7]
    named = nn.Sequential({"first": nn.Linear(2, 2), "second": nn.ReLU()})
    assert list(named.state_dict()) == ["first.weight", "first.bias"] and isinstance(named.second, nn.ReLU)

    items = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    items += [nn.ReLU()]
    assert len(items) == 4 and len(items[1:]) == 3 and len(list(items.parameters())) == 6
    items.insert(0, nn.Tanh())
    assert isinstance(items[0], nn.Tanh) and isinstance(items[4], nn.ReLU)
    with pytest.raises(NotImplementedError):
        items(1)

    table = nn.ModuleDict({"a": nn.Linear(1, 1)})
    table["b"] = nn.ReLU()
    assert list(table) == ["a", "b"] and "a" in table and list(table.state_dict()) == ["a.weight", "a.bias"]
    assert isinstance(table.pop("b"), nn.ReLU) and len(table) == 1

    ps = nn.ParameterList([flame.ones(2), nn.Parameter(flame.zeros(1))])
    ps.append(flame.ones(3))
    assert list(ps.state_dict()) == ["0", "1", "2"] and ps[0].requires_grad and len(ps[1:]) == 2
    pd = nn.ParameterDict({"x": flame.ones(2)})
    pd["y"] = nn.Parameter(flame.zeros(1))
    assert list(pd.keys()) == ["x", "y"] and [n for n, _ in pd.named_parameters()] == ["x", "y"]
    del pd["x"]
    assert "x" not in pd and len(pd) == 1


@pytest.mark.oracle
def test_models_are_printed_as_pytorch_prints_them(torch: Any) -> None:
    def build(nn: Any) -> Any:
        block = lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        return nn.ModuleDict({"a": nn.ModuleList([block(), block(), nn.Tanh()]), "b": nn.Sequential(), "c": nn.ModuleList()})

    assert repr(build(nn)) == repr(build(torch.nn))
    for n in (nn, torch.nn):
        assert repr(n.MultiheadAttention(4, 2)).startswith("MultiheadAttention(\n  (out_proj):")


# -------------------------------------------------------------------- initial values and helpers


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "ConvTranspose2d", "Embedding", "Bilinear"])
def test_layers_start_within_pytorchs_bounds(name: str) -> None:
    flame.manual_seed(0)
    m, bound = {
        "Linear": lambda: (nn.Linear(64, 100), 1 / 8),
        "Conv2d": lambda: (nn.Conv2d(16, 40, 3), 1 / 12),
        "ConvTranspose2d": lambda: (nn.ConvTranspose2d(40, 16, 3), 1 / 12),
        "Bilinear": lambda: (nn.Bilinear(16, 20, 30), 1 / 4),
        "Embedding": lambda: (nn.Embedding(200, 50), None),
    }[name]()
    w = m.weight.detach().numpy()
    if bound is None:
        assert abs(w.mean()) < 0.02 and abs(w.std() - 1) < 0.02
        return
    for p in m.parameters():
        a = np.abs(p.detach().numpy())
        assert a.max() <= bound
    assert np.abs(w).max() > 0.98 * bound and abs(w.std() - bound / np.sqrt(3)) < 0.03 * bound


def test_initialisers() -> None:
    flame.manual_seed(1)
    w = flame.empty(200, 100, requires_grad=True)
    assert nn.init.constant_(w, 2.5) is w and w.requires_grad and w.min().item() == 2.5
    for f, std in (
        (nn.init.xavier_uniform_, np.sqrt(2 / 300)),
        (nn.init.xavier_normal_, np.sqrt(2 / 300)),
        (lambda t: nn.init.kaiming_uniform_(t, nonlinearity="relu"), np.sqrt(2 / 100)),
        (lambda t: nn.init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"), np.sqrt(2 / 200)),
        (lambda t: nn.init.normal_(t, std=0.3), 0.3),
        (lambda t: nn.init.uniform_(t, -1, 1), 1 / np.sqrt(3)),
    ):
        f(w)
        assert abs(w.std().item() / std - 1) < 0.03
    nn.init.trunc_normal_(w, std=1.0, a=-1.0, b=2.0)
    assert w.min().item() >= -1 and w.max().item() <= 2 and abs(w.mean().item() - 0.2299) < 0.02
    nn.init.orthogonal_(w, gain=2)
    np.testing.assert_allclose((w.t() @ w).detach().numpy(), 4 * np.eye(100), atol=1e-4)
    nn.init.orthogonal_(w.detach().t().contiguous())
    nn.init.eye_(w)
    assert w.sum().item() == 100
    nn.init.sparse_(w, 0.25)
    assert ((w.detach().numpy() == 0).sum(0) == 50).all()
    c = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    nn.init.dirac_(c.weight)
    x = flame.randn(2, 4, 5, 5)
    assert np.array_equal(c(x).detach().numpy(), x.numpy())
    assert nn.init.calculate_gain("leaky_relu", 1.0) == 1.0 and nn.init.calculate_gain("tanh") == 5 / 3
    with pytest.raises(ValueError, match="Unsupported nonlinearity"):
        nn.init.calculate_gain("gelu")
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        nn.init.xavier_uniform_(flame.ones(3))


@pytest.mark.oracle
@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_by_norm_agrees_with_pytorch(torch: Any, norm: float, limit: float, rng: np.random.Generator) -> None:
    grads = [rng.standard_normal(s).astype(np.float32) for s in ((3, 4), (5,), ())]
    both = []
    for t, clip in ((flame.tensor, nn.utils.clip_grad_norm_), (torch.tensor, torch.nn.utils.clip_grad_norm_)):
        ps = [t(g * 0, requires_grad=True) for g in grads]
        for p, g in zip(ps, grads, strict=True):
            p.grad = t(g)
        both.append((clip(ps, limit, norm), [p.grad for p in ps]))
    close(both[0][0], both[1][0])
    for a, b in zip(both[0][1], both[1][1], strict=True):
        close(a, b)


def test_clipping_by_value_and_vectors() -> None:
    m = nn.Linear(2, 2)
    (m(flame.ones(1, 2)) * flame.tensor([[5.0, -5.0]])).sum().backward()
    nn.utils.clip_grad_value_(m.parameters(), 2.0)
    assert m.weight.grad.tolist() == [[2, 2], [-2, -2]]
    v = nn.utils.parameters_to_vector(m.parameters())
    assert v.shape == (6,)
    nn.utils.vector_to_parameters(flame.arange(6.0), m.parameters())
    assert m.weight.tolist() == [[0, 1], [2, 3]] and m.bias.tolist() == [4, 5] and m.weight.requires_grad
    with pytest.raises(RuntimeError, match="non-finite"):
        m.weight.grad.fill_(float("inf"))
        nn.utils.clip_grad_norm_(m.parameters(), 1.0, error_if_nonfinite=True)
    with pytest.raises(RuntimeError, match="elements"):
        nn.utils.vector_to_parameters(flame.ones(5), m.parameters())


def test_layers_refuse_wrong_settings() -> None:
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        nn.Conv2d(3, 4, 3, padding_mode="mirror")
    with pytest.raises(ValueError, match="not supported for strided"):
        nn.Conv2d(3, 4, 3, stride=2, padding="same")
    with pytest.raises(ValueError, match="expected 4D input"):
        nn.BatchNorm2d(3)(flame.ones(2, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm1d(3)(flame.ones(1, 3))
    with pytest.raises(ValueError, match="must be divisible by num_groups"):
        nn.GroupNorm(2, 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        nn.Dropout(1.5)
    with pytest.raises(AssertionError, match="divisible by num_heads"):
        nn.MultiheadAttention(5, 2)
    with pytest.raises(TypeError, match="ReLU: got an unexpected keyword"):
        nn.ReLU(slope=1)
    with pytest.raises(TypeError, match="Threshold: missing a required argument"):
        nn.Threshold(1.0)
    with pytest.raises(ValueError, match="valid sizes range"):
        nn.ConvTranspose1d(1, 1, 3, stride=2)(flame.ones(1, 1, 4), output_size=[20])
    assert nn.ConvTranspose1d(1, 1, 3, stride=2)(flame.ones(1, 1, 4), output_size=[10]).shape == (1, 1, 10)
