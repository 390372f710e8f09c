"""Layers, losses and Module: against PyTorch with copied weights, against eager when compiled, and by their own promises."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn

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
