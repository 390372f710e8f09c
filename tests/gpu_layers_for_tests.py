"""A call of every layer, as data: how to make it and what to give it. For tests that try all of them on another device.

LAYERS: name -> [(arguments, keywords, inputs)]         inputs: functions of a device that make what is given
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import flame
from flame import nn


def floats(*shape: int, low: float = -1.0, high: float = 1.0) -> Callable[[str], Any]:
    def make(device: str) -> Any:
        a = np.random.default_rng(sum(shape)).uniform(low, high, shape).astype(np.float32)
        return flame.tensor(a, device=device, requires_grad=True)

    return make


def given(values: Any, dtype: Any = None) -> Callable[[str], Any]:
    return lambda device: flame.tensor(values, dtype=dtype, device=device)


def call(*inputs: Any, args: tuple = (), **kwargs: Any) -> tuple[tuple, dict, tuple]:
    return args, kwargs, tuple(floats(*i) if isinstance(i, tuple) else i for i in inputs)


_X: dict[int, tuple[int, ...]] = {1: (2, 4, 6), 2: (2, 4, 6, 6), 3: (2, 4, 4, 4, 4)}
_PLAIN = (
    "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid "
    "Softplus Softshrink Softsign Tanh Tanhshrink Dropout AlphaDropout FeatureAlphaDropout Identity Flatten"
).split()
_unit, _labels, _signs = floats(3, 4, low=0.1, high=0.9), given([1, 0, 3]), given([1.0, -1.0, 1.0])
_LOSSES = "HuberLoss L1Loss MSELoss SmoothL1Loss".split()

LAYERS: dict[str, list[tuple[tuple, dict, tuple]]] = {
    **{n: [call((3, 4))] for n in _PLAIN},
    **{n: [call((3, 4), args=(-1,))] for n in "GLU LogSoftmax Softmax Softmin".split()},
    **{n: [call((3, 4), (3, 4))] for n in _LOSSES},
    "Threshold": [call((3, 4), args=(0.1, 2.0))],
    "Softmax2d": [call((2, 3, 4, 4))],
    "Unflatten": [call((3, 4), args=(1, (2, 2)))],
    "BCELoss": [call(_unit, floats(3, 4, low=0.0, high=1.0))],
    "BCEWithLogitsLoss": [call((3, 4), _unit), call((3, 4), _unit, pos_weight=given([1.0, 2.0, 1.0, 0.5]))],
    "KLDivLoss": [call((3, 4), _unit)],
    "SoftMarginLoss": [call((3, 4), given(np.ones((3, 4), np.float32)))],
    "PoissonNLLLoss": [call((3, 4), _unit, full=True)],
    "GaussianNLLLoss": [call((3, 4), (3, 4), _unit, full=True)],
    "HingeEmbeddingLoss": [call((3,), _signs)],
    "MarginRankingLoss": [call((3,), (3,), _signs)],
    "CosineEmbeddingLoss": [call((3, 4), (3, 4), _signs)],
    "CosineSimilarity": [call((3, 4), (3, 4))],
    "PairwiseDistance": [call((3, 4), (3, 4))],
    "TripletMarginLoss": [call((3, 4), (3, 4), (3, 4), swap=True)],
    "TripletMarginWithDistanceLoss": [call((3, 4), (3, 4), (3, 4))],
    "CrossEntropyLoss": [
        call((3, 4), _labels),
        call((3, 4), _labels, label_smoothing=0.1, weight=given([1.0, 2.0, 1.0, 0.5]), ignore_index=0),
        call((3, 4), _unit),
    ],
    "NLLLoss": [call((3, 4), _labels), call((3, 4), _labels, weight=given([1.0, 2.0, 1.0, 0.5]))],
    "NLLLoss2d": [call((2, 4, 2, 2), given(np.ones((2, 2, 2), np.int64)))],
    "MultiMarginLoss": [call((3, 4), _labels)],
    "MultiLabelMarginLoss": [call((2, 4), given([[3, 0, -1, 1], [1, -1, 2, 0]]))],
    "MultiLabelSoftMarginLoss": [call((3, 4), _unit)],
    "CTCLoss": [
        call((6, 3, 4), given([[1, 1, 2], [3, 0, 0], [2, 1, 2]]), given([6, 4, 5]), given([3, 1, 2])),
        call((6, 3, 4), given([1, 1, 2, 3, 2, 1]), lambda _: (6, 4, 5), lambda _: (3, 1, 2), zero_infinity=True),
    ],
    "LinearCrossEntropyLoss": [call((3, 4), _labels, args=(4, 5))],
    "AdaptiveLogSoftmaxWithLoss": [call((3, 8), given([0, 5, 11]), args=(8, 12, [4, 8]))],
    "Linear": [call((3, 4), args=(4, 2))],
    "LazyLinear": [call((3, 4), args=(2,))],
    "Bilinear": [call((3, 4), (3, 2), args=(4, 2, 3))],
    "Embedding": [call(_labels, args=(5, 3), padding_idx=1), call(_labels, args=(5, 3), max_norm=0.5, scale_grad_by_freq=True)],
    "EmbeddingBag": [
        call(given([[1, 0], [3, 4]]), args=(5, 3)),
        call(given([1, 0, 3, 4]), given([0, 3]), args=(5, 3), mode="max"),
        call(given([1, 0, 3, 4]), given([0, 3]), floats(4), args=(5, 3), mode="sum"),
    ],
    "LayerNorm": [call((3, 4), args=(4,))],
    "RMSNorm": [call((3, 4), args=(4,))],
    "GroupNorm": [call((2, 4, 3), args=(2, 4))],
    "SyncBatchNorm": [call((2, 4, 3), args=(4,))],
    "LocalResponseNorm": [call((2, 4, 3), args=(2,))],
    "CrossMapLRN2d": [call((2, 4, 3, 3), args=(2,))],
    "ChannelShuffle": [call((2, 4, 3, 3), args=(2,))],
    "PixelShuffle": [call((2, 4, 3, 3), args=(2,))],
    "PixelUnshuffle": [call((2, 4, 4, 4), args=(2,))],
    "Fold": [call((2, 12, 15), args=((6, 7), (3, 2)), dilation=(1, 2), padding=(1, 0), stride=(2, 1))],
    "Unfold": [call((2, 3, 6, 7), args=(2,))],
    "Upsample": [
        call((2, 3, 5), scale_factor=1.7, mode="linear"),
        call((2, 3, 5, 5), size=(3, 8), mode="bicubic"),
        call((2, 3, 3, 4, 3), scale_factor=2.0, mode="trilinear"),
        call((2, 3, 5), scale_factor=2.7),
    ],
    "UpsamplingBilinear2d": [call((2, 3, 3, 3), scale_factor=2)],
    "UpsamplingNearest2d": [call((2, 3, 3, 3), scale_factor=2)],
    "RNN": [call((3, 2, 4), args=(4, 3)), call((3, 2, 4), floats(4, 2, 3), args=(4, 3, 2), bidirectional=True)],
    "LSTM": [call((3, 2, 4), args=(4, 3)), call((2, 3, 4), args=(4, 3), proj_size=2, batch_first=True)],
    "GRU": [call((3, 2, 4), args=(4, 3)), call((3, 2, 4), args=(4, 3, 2), dropout=0.2)],
    **{n: [call((2, 4), args=(4, 3))] for n in ("RNNCell", "LSTMCell", "GRUCell")},
    "MultiheadAttention": [
        call((3, 2, 4), (3, 2, 4), (3, 2, 4), args=(4, 2), add_bias_kv=True, add_zero_attn=True),
        call((3, 2, 4), (3, 2, 4), (3, 2, 4), given([[False, False, True]] * 2), args=(4, 2), dropout=0.1),
    ],
    "TransformerEncoderLayer": [call((3, 2, 4), args=(4, 2, 8))],
    "TransformerDecoderLayer": [call((3, 2, 4), (2, 2, 4), args=(4, 2, 8))],
    "TransformerEncoder": [call((3, 2, 4), args=(lambda: nn.TransformerEncoderLayer(4, 2, 8), 1))],
    "TransformerDecoder": [call((3, 2, 4), (2, 2, 4), args=(lambda: nn.TransformerDecoderLayer(4, 2, 8), 1))],
    "Transformer": [call((3, 2, 4), (2, 2, 4), args=(4, 2, 1, 1, 8))],
    **{f"ZeroPad{n}d": [call(_X[n], args=(1,))] for n in _X},
    **{f"{kind}Pad{n}d": [call(_X[n], args=(1,))] for n in _X for kind in ("Circular", "Reflection", "Replication")},
    **{f"ConstantPad{n}d": [call(_X[n], args=(1, 0.5))] for n in _X},
    **{f"{lazy}BatchNorm{n}d": [call(_X[n], args=() if lazy else (4,))] for n in _X for lazy in ("", "Lazy")},
    **{
        f"{lazy}InstanceNorm{n}d": [call(_X[n], args=() if lazy else (4,), affine=True, track_running_stats=True)]
        for n in _X
        for lazy in ("", "Lazy")
    },
    **{
        f"{lazy}Conv{t}{n}d": [call(_X[n], args=(*(() if lazy else (4,)), 2, 3), padding=1, stride=2)]
        for n in _X
        for lazy in ("", "Lazy")
        for t in ("", "Transpose")
    },
    **{f"Dropout{n}d": [call(_X[n])] for n in _X},
    **{f"AdaptiveAvgPool{n}d": [call(_X[n], args=(3,))] for n in _X},
    **{f"AdaptiveMaxPool{n}d": [call(_X[n], args=(3,), return_indices=True)] for n in _X},
    **{f"AvgPool{n}d": [call(_X[n], args=(2,), padding=1, count_include_pad=False)] for n in _X},
    **{f"LPPool{n}d": [call(_X[n], args=(2.0, 2))] for n in _X},
    **{f"MaxPool{n}d": [call(_X[n], args=(2,)), call(_X[n], args=(2,), return_indices=True)] for n in _X},
    **{f"FractionalMaxPool{n}d": [call(_X[n], args=(2,), output_ratio=0.5)] for n in (2, 3)},
    "MaxUnpool1d": [call((1, 2, 2), given([[[0, 2], [1, 3]]]), args=(2,))],
    "MaxUnpool2d": [call((1, 1, 1, 2), given([[[[0, 2]]]]), args=((1, 2),))],
    "MaxUnpool3d": [call((1, 1, 1, 1, 2), given([[[[[0, 2]]]]]), args=((1, 1, 2),))],
}

#: containers and bases, which compute nothing by themselves
CONTAINERS = frozenset(
    "Container DataParallel Module ModuleDict ModuleList ParameterDict ParameterList RNNBase RNNCellBase Sequential".split()
)


def made(name: str, args: tuple, kwargs: dict, device: str) -> Any:
    """The layer on a device."""
    flame.manual_seed(0)
    args = tuple(a() if callable(a) else a for a in args)
    kwargs = {k: v("cpu") if callable(v) else v for k, v in kwargs.items()}
    return getattr(nn, name)(*args, **kwargs).to(device)


def tensors(x: Any) -> list[Any]:
    """All tensors of a result."""
    if isinstance(x, flame.Tensor):
        return [x]
    if isinstance(x, dict):
        x = tuple(x.values())
    return [t for part in x for t in tensors(part)] if isinstance(x, tuple | list) else []
