"""Every class of modules that PyTorch has, beside PyTorch's: the same keys, shapes and weights, the same results and gradients.

Layers of one input stand in tests/test_nn.py; here is the rest, and the count that none is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
from tests.test_nn import LAYERS, close

R = np.random.default_rng(7)


def real(*shape: int) -> np.ndarray:
    return R.standard_normal(shape).astype(np.float32)


def whole(high: int, *shape: int) -> np.ndarray:
    return R.integers(0, high, shape)


def signs(*shape: int) -> np.ndarray:
    return np.where(R.random(shape) < 0.5, -1.0, 1.0).astype(np.float32)


def shares(*shape: int) -> np.ndarray:
    return R.random(shape).astype(np.float32)


CASES: dict[str, tuple[Callable[[Any], Any], list[np.ndarray]]] = {}


def case(name: str, make: Callable[[Any], Any], *inputs: np.ndarray) -> None:
    CASES[name] = (make, list(inputs))


# losses; what is not floating is a target
for _name, _inputs in {
    "L1Loss": (real(4, 3), real(4, 3)), "MSELoss": (real(4, 3), real(4, 3)), "SmoothL1Loss": (real(4, 3), real(4, 3)),
    "HuberLoss": (real(4, 3), real(4, 3)), "NLLLoss": (real(4, 3), whole(3, 4)), "NLLLoss2d": (real(4, 3, 2, 2), whole(3, 4, 2, 2)),
    "CrossEntropyLoss": (real(4, 3), whole(3, 4)),
    "BCELoss": (shares(4, 3), shares(4, 3)),
    "BCEWithLogitsLoss": (real(4, 3), shares(4, 3)), "KLDivLoss": (real(4, 3), shares(4, 3)),
    "PoissonNLLLoss": (real(4, 3), shares(4, 3)), "SoftMarginLoss": (real(4, 3), signs(4, 3)),
    "HingeEmbeddingLoss": (real(4, 3), signs(4, 3)), "MultiLabelSoftMarginLoss": (real(4, 3), shares(4, 3)),
    "GaussianNLLLoss": (real(4, 3), real(4, 3), shares(4, 3) + 0.1),
    "CosineEmbeddingLoss": (real(4, 3), real(4, 3), signs(4)), "MarginRankingLoss": (real(4), real(4), signs(4)),
    "MultiLabelMarginLoss": (real(2, 4), np.array([[2, 0, -1, 1], [3, -1, 1, 0]])), "MultiMarginLoss": (real(4, 3), whole(3, 4)),
    "TripletMarginLoss": (real(4, 3), real(4, 3), real(4, 3)),
    "TripletMarginWithDistanceLoss": (real(4, 3), real(4, 3), real(4, 3)),
}.items():  # fmt: skip
    case(_name, lambda n, k=_name: getattr(n, k)(), *_inputs)
case(
    "CTCLoss", lambda n: n.CTCLoss(),
    real(6, 2, 4), whole(3, 2, 3) + 1, np.array([6, 5]), np.array([3, 2]),
)  # fmt: skip

# windows
for _n, _size in ((1, (8,)), (2, (6, 8)), (3, (4, 6, 4))):
    case(f"LPPool{_n}d", lambda n, k=_n: getattr(n, f"LPPool{k}d")(2, 2), np.abs(real(2, 3, *_size)))
    case(f"InstanceNorm{_n}d", lambda n, k=_n: getattr(n, f"InstanceNorm{k}d")(3, affine=True), real(2, 3, *_size))
    _half = tuple(s // 2 for s in _size)
    _places = np.stack([R.permutation(int(np.prod(_size)))[: int(np.prod(_half))] for _ in range(6)]).reshape(2, 3, *_half)
    case(f"MaxUnpool{_n}d", lambda n, k=_n: getattr(n, f"MaxUnpool{k}d")(2), real(2, 3, *_half), _places)
for _n in (2, 3):
    _u = R.random((2, 3, _n)).astype(np.float32)
    _pool: Any = lambda n, k=_n, u=_u: getattr(n, f"FractionalMaxPool{k}d")(
        2, output_size=2, _random_samples=(flame if n is nn else __import__("torch")).tensor(u)
    )
    case(f"FractionalMaxPool{_n}d", _pool, real(2, 3, *(5,) * _n))
case("Fold", lambda n: n.Fold((4, 5), 2), real(2, 12, 12))
case("CrossMapLRN2d", lambda n: n.CrossMapLRN2d(3), real(2, 5, 4, 3))
case("Unfold", lambda n: n.Unfold(2, padding=1), real(2, 3, 4, 5))

# tables, attention, sequences; several results are compared by their first
case("Embedding", lambda n: n.Embedding(5, 3, padding_idx=1), whole(5, 2, 4))
case("EmbeddingBag", lambda n: n.EmbeddingBag(5, 3, mode="sum"), whole(5, 2, 4))
case("MultiheadAttention", lambda n: n.MultiheadAttention(4, 2), real(3, 2, 4), real(5, 2, 4), real(5, 2, 4))
for _name in ("RNN", "LSTM", "GRU"):
    case(_name, lambda n, k=_name: getattr(n, k)(3, 4, 2, bidirectional=True), real(5, 2, 3))
    case(_name + "Cell", lambda n, k=_name: getattr(n, k + "Cell")(3, 4), real(2, 3))
case("TransformerEncoderLayer", lambda n: n.TransformerEncoderLayer(4, 2, 8, 0.0), real(3, 2, 4))
case("TransformerDecoderLayer", lambda n: n.TransformerDecoderLayer(4, 2, 8, 0.0), real(3, 2, 4), real(5, 2, 4))
case("TransformerEncoder", lambda n: n.TransformerEncoder(n.TransformerEncoderLayer(4, 2, 8, 0.0), 2), real(3, 2, 4))
case(
    "TransformerDecoder",
    lambda n: n.TransformerDecoder(n.TransformerDecoderLayer(4, 2, 8, 0.0), 2),
    real(3, 2, 4),
    real(5, 2, 4),
)
case("Transformer", lambda n: n.Transformer(4, 2, 1, 1, 8, 0.0), real(3, 2, 4), real(5, 2, 4))
case("AdaptiveLogSoftmaxWithLoss", lambda n: n.AdaptiveLogSoftmaxWithLoss(4, 9, [3, 6]), real(5, 4), whole(9, 5))
case("LinearCrossEntropyLoss", lambda n: n.LinearCrossEntropyLoss(4, 3), real(5, 4), whole(3, 5))

# containers, and what becomes of lazy modules
case("Sequential", lambda n: n.Sequential(n.Linear(3, 4), n.ReLU(), n.Linear(4, 2)), real(2, 3))
for _n, _shape in ((1, (2, 3, 8)), (2, (2, 3, 6, 7)), (3, (2, 3, 4, 5, 6))):
    for _kind, _args in (("Conv", (4, 3)), ("ConvTranspose", (4, 3)), ("BatchNorm", ()), ("InstanceNorm", (1e-5, 0.1, True))):
        case(f"Lazy{_kind}{_n}d", lambda n, k=f"Lazy{_kind}{_n}d", a=_args: getattr(n, k)(*a), real(*_shape))
case("LazyLinear", lambda n: n.LazyLinear(4), real(2, 3))

#: bases of others, containers that compute nothing, what has no randomness only when it does nothing, and what needs many processes
APART = {"Module", "Container", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "RNNBase", "RNNCellBase",
         "DataParallel", "SyncBatchNorm", "RReLU"}  # fmt: skip


def ran(module: Any, tensor: Callable, arrays: list[np.ndarray]) -> tuple[Any, list[Any]]:
    """The first result, and the gradients of a fixed weighting of it by all inputs that can have one."""
    moves = [a.dtype == np.float32 and not (abs(a) == 1).all() for a in arrays]  # (whole numbers and signs are targets)
    xs = [tensor(a, requires_grad=m) for a, m in zip(arrays, moves, strict=True)]
    first = (
        xs[0].log_softmax(-1) if type(module).__name__ == "CTCLoss" else xs[0]
    )  # PyTorch's gradient is right behind one only
    y = module(first, *xs[1:])
    y = y if hasattr(y, "backward") else y[0]
    w = tensor(np.cos(np.arange(y.numel(), dtype=np.float32)).reshape(tuple(y.shape)))
    (y * w).sum().backward()
    return y, [x.grad for x in xs if x.grad is not None]


@pytest.mark.oracle
@pytest.mark.parametrize("key", CASES)
@pytest.mark.filterwarnings("ignore")
def test_every_module_agrees_with_pytorch(torch: Any, key: str) -> None:
    if not hasattr(torch.nn, key):
        pytest.skip("this version of PyTorch has no such module")
    make, arrays = CASES[key]
    flame.manual_seed(1)
    ours, theirs = make(nn), make(torch.nn)
    if key.startswith("Lazy"):
        ours(flame.tensor(arrays[0])), theirs(torch.tensor(arrays[0]))
        assert type(ours).__name__ == type(theirs).__name__ == key.removeprefix("Lazy")
    state, other = ours.state_dict(), theirs.state_dict()
    assert [(k, tuple(v.shape)) for k, v in state.items()] == [(k, tuple(v.shape)) for k, v in other.items()]
    theirs.load_state_dict({k: torch.tensor(v.numpy().copy()) for k, v in state.items()})
    ours.load_state_dict({k: flame.tensor(v.numpy().copy()) for k, v in theirs.state_dict().items()})
    (y, gs), (z, hs) = ran(ours, flame.tensor, arrays), ran(theirs, torch.tensor, arrays)
    close(y, z, 1e-4)
    assert len(gs) == len(hs)
    for g, h in zip(gs, hs, strict=True):
        close(g, h, 2e-4)
    for (n, p), (m, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert n == m and (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            close(p.grad, q.grad, 5e-4)


@pytest.mark.oracle
def test_no_module_is_left_out(torch: Any) -> None:
    classes = {n: getattr(torch.nn, n) for n in dir(torch.nn)}
    theirs = {n for n, c in classes.items() if isinstance(c, type) and issubclass(c, torch.nn.Module)}
    assert theirs - set(dir(nn)) == set()
    assert theirs - {name for name, *_ in LAYERS.values()} - set(CASES) == APART
