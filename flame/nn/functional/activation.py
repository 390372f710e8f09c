"""Activations, softmax, dropout, linear maps, distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from flame import dtypes
from flame.functions.creation import one_hot  # noqa: F401
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed
from flame.functions.fused import log_softmax as fused_log_softmax
from flame.functions.fused import softmax as fused_softmax
from flame.functions.promotion import as_floating, tensor_operand, to_dtype
from flame.functions.random import uniform
from flame.functions.refusing import exact
from flame.functions.shape import wrap_dim
from flame.functions.taking import typed
from flame.nn.functional import fused
from flame.primitive import composite, force, registered
from flame.tensor import Tensor

MATMUL, ADD, MUL, WHERE, AMAX, SUM = map(registered, ("matmul", "add", "mul", "where", "amax", "sum"))
EXP, LOG, LOG1P, ERF, TANH, SIGMOID, RELU, ABS = map(
    registered, ("exp", "log", "log1p", "erf", "tanh", "sigmoid", "relu", "abs")
)
MAXIMUM, MINIMUM, INDEX_SELECT, GROUPED_MM = map(registered, ("maximum", "minimum", "index_select", "grouped_mm"))
_GROUPED = (dtypes.float32, dtypes.bfloat16, dtypes.float16)  #: what `grouped_mm` takes


def _kept(input: Tensor, inplace: bool) -> Tensor:
    """What a derivative may be computed from: where the input is to be written over and has one, a copy of it."""
    return input.clone() if inplace and force.grad and input.requires_grad else input


def _into(input: Tensor, value: Tensor, inplace: bool) -> Tensor:
    return input.copy_(value) if inplace else value  # type: ignore[attr-defined]


@composite
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    return _into(input, RELU(tensor_operand(input, "relu")), inplace)


def relu_(input: Tensor) -> Tensor:
    return relu(input, inplace=True)


@composite
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    return hardtanh(input, 0.0, 6.0, inplace)


@composite
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    if min_val > max_val:
        raise ValueError(f"min_val cannot be greater than max_val, but got {min_val} and {max_val}")
    x = _kept(input, inplace)
    return _into(input, fused.hardtanh(x, low=min_val, high=max_val), inplace)


@composite
@typed
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    x = _kept(input, inplace)
    return _into(input, fused.leaky_relu(x, slope=negative_slope), inplace)


@composite
@typed
@exact
def rrelu(
    input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """x, or below 0 a slope times x: drawn from [lower, upper) in training, else the middle of these (Xu et al., 2015)."""
    if lower > upper:
        raise RuntimeError(f"Lower bound should be less than or equal to the upper bound, got {lower} and {upper}")
    x = _kept(tensor_operand(input, "rrelu"), inplace)
    slope = uniform(tuple(x.shape), x.dtype) * (upper - lower) + lower if training else (lower + upper) / 2
    return _into(input, WHERE(x >= 0, x, x * slope), inplace)


@composite
@typed
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim > 1:
        raise RuntimeError(f"prelu: Expected `weight` to be a scalar or 1D tensor, but got: ndim = {weight.ndim}")
    if input.ndim == 0 and weight.numel() != 1:
        raise RuntimeError(f"prelu: a tensor of no dimensions has one slope, but weight has {weight.numel()}")
    w = weight.reshape(1, -1, *[1] * (input.ndim - 2)) if weight.numel() > 1 and input.ndim > 1 else weight.reshape(-1)  # type: ignore[attr-defined]
    w = w.reshape(()) if input.ndim == 0 else w
    return WHERE(input > 0, input, input * w)


@composite
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    x = _kept(input, inplace)
    return _into(input, fused.elu(x, alpha=alpha), inplace)


@composite
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    x = _kept(input, inplace)
    return _into(input, fused.selu(x), inplace)


@composite
def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    x = _kept(input, inplace)
    return _into(input, fused.celu(x, alpha=alpha), inplace)


@composite
@typed
def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution function (Hendrycks and Gimpel, 2016); "tanh" for the approximation."""
    x = tensor_operand(input, "gelu")
    if approximate in ("none", "tanh"):
        return fused.gelu(as_floating(x)[0], tanh=approximate == "tanh")
    raise RuntimeError(f"approximate argument must be either none or tanh, got {approximate!r}")


@composite
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    x = _kept(input, inplace)
    return _into(input, fused.silu(x), inplace)


@composite
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    x = _kept(input, inplace)
    return _into(input, fused.mish(x), inplace)


@composite
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta; x itself where beta x > threshold."""
    return fused.softplus(tensor_operand(input, "softplus"), beta=beta, threshold=threshold)


@composite
@typed
def logsigmoid(input: Tensor) -> Tensor:
    return fused.logsigmoid(tensor_operand(input, "logsigmoid"))


@composite
def softsign(input: Tensor) -> Tensor:
    return input / (PUBLIC["abs"](input) + 1.0)


@composite
def tanhshrink(input: Tensor) -> Tensor:
    return input - PUBLIC["tanh"](input)


@composite
@typed
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    x = _kept(input, inplace)
    return _into(input, fused.hardsigmoid(x), inplace)


@composite
@typed
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    x = _kept(input, inplace)
    return _into(input, fused.hardswish(x), inplace)


@composite
@typed
def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    if lambd < 0:
        raise RuntimeError(f"softshrink: lambda must be greater or equal to 0, but found {lambd}")
    return WHERE(input > lambd, input - lambd, WHERE(input < -lambd, input + lambd, input * 0.0))


@composite
@typed
def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    return WHERE(ABS(input) > lambd, input, 0.0)


@composite
@typed
def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    x = _kept(input, inplace)
    return _into(input, WHERE(x > threshold, x, value), inplace)


@composite
def glu(input: Tensor, dim: int = -1) -> Tensor:
    n = input.shape[wrap_dim(dim, input.ndim, "glu")]
    if n % 2:
        raise RuntimeError(f"Halving dimension must be even, but dimension {dim} is size {n}")
    a, b = input.chunk(2, dim)  # type: ignore[attr-defined]
    return a * SIGMOID(b)


def sigmoid(input: Tensor) -> Tensor:
    return PUBLIC["sigmoid"](input)


def tanh(input: Tensor) -> Tensor:
    return PUBLIC["tanh"](input)


@composite
def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """exp(x) over its sum along `dim`, shifted by the maximum."""
    x = _soft_operand(input, dim, dtype, "softmax")
    if x.ndim == 0:
        return x * 0.0 + 1.0
    return fused_softmax(x, dim=wrap_dim(dim, x.ndim, "softmax"))


def _soft_operand(input: Tensor, dim: Any, dtype: Any, op: str) -> Tensor:
    x = tensor_operand(input, op)
    if dim is None:
        raise TypeError(f"{op}(): missing argument 'dim': say along which dimension")
    x = to_dtype(x, dtype) if dtype is not None else x
    if x.dtype.kind != "f":
        raise NotImplementedError(f'"{op}" not implemented for {x.dtype!r}')
    return x


def gumbel_softmax(logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Tensor:
    """A sample of a relaxed categorical distribution (Jang et al., 2017); `hard`: one-hot, with the relaxed one's gradient."""
    u = uniform(tuple(logits.shape), logits.dtype)
    noise = -LOG(-LOG(MAXIMUM(u, 2.0**-25)))
    soft = softmax((logits + noise) / tau, dim)
    if not hard:
        return soft
    at = PUBLIC["argmax"](soft, dim, True)
    one = PUBLIC["scatter"](PUBLIC["zeros_like"](logits), dim, at, 1.0)
    return one - soft.detach() + soft


@composite
def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """x minus the log of the sum of exponentials along `dim`."""
    x = _soft_operand(input, dim, dtype, "log_softmax")
    if x.ndim == 0:
        return x * 0.0
    return fused_log_softmax(x, dim=wrap_dim(dim, x.ndim, "log_softmax"))


@composite
def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    return softmax(-input, dim, dtype=dtype)


def _softmax_method(self: Tensor, dim: int | None = None, dtype: Any = None) -> Tensor:
    return softmax(self, dim, dtype=dtype)


def _log_softmax_method(self: Tensor, dim: int | None = None, dtype: Any = None) -> Tensor:
    return log_softmax(self, dim, dtype=dtype)


formed("softmax")(_softmax_method)
formed("log_softmax")(_log_softmax_method)


# -------------------------------------------------------------------- dropout


def _rate(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def _dropped(input: Tensor, shape: tuple[int, ...], p: float, training: bool, inplace: bool) -> Tensor:
    _rate(p)
    x = tensor_operand(input, "dropout")
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return _into(x, x * 0.0, inplace)
    keep = uniform(shape, dtypes.float32) >= p
    return _into(x, WHERE(keep, x * (1.0 / (1.0 - p)), 0.0), inplace)


@composite
@exact
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero elements with probability p and scale the others by 1 / (1 - p) (Srivastava et al., 2014)."""
    return _dropped(input, tuple(input.shape), p, training, inplace)


def _channels(dims: int) -> Any:
    @composite
    @exact
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        lead = input.ndim - dims
        return _dropped(input, tuple(n if i < lead else 1 for i, n in enumerate(input.shape)), p, training, inplace)

    dropout.__name__ = f"dropout{dims}d"
    return dropout


dropout1d, dropout2d, dropout3d = _channels(1), _channels(2), _channels(3)


def _alpha(input: Tensor, shape: tuple[int, ...], p: float, training: bool, inplace: bool) -> Tensor:
    _rate(p)
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return _into(input, input * 0.0, inplace)
    saturated = -1.7580993408473766
    a = ((1.0 - p) * (1.0 + p * saturated**2)) ** -0.5
    keep = uniform(shape, dtypes.float32) >= p
    return _into(input, WHERE(keep, input, saturated) * a + (-a * saturated * p), inplace)


@composite
@exact
def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Dropout that keeps mean and variance of SELU networks (Klambauer et al., 2017)."""
    return _alpha(input, tuple(input.shape), p, training, inplace)


@composite
@exact
def feature_alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """alpha_dropout of whole channels, [N, C, ...]."""
    return _alpha(input, tuple(n if i < 2 else 1 for i, n in enumerate(input.shape)), p, training, inplace)


# -------------------------------------------------------------------- linear maps and tables


@composite
@typed
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias; weight [out, in], or [in]."""
    x = tensor_operand(input, "linear")
    if x.ndim and weight.ndim and x.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"linear: the input's last dimension must be the weight's: input {list(x.shape)}, weight {list(weight.shape)} "
            "(mat1 and mat2 shapes cannot be multiplied)"
        )
    y = x @ (weight if weight.ndim == 1 else weight.t())  # type: ignore[attr-defined]
    return y if bias is None else y + bias


@composite
@typed
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input1.ndim != input2.ndim:
        raise RuntimeError(f"bilinear(): input dimensions do not match: got {input1.ndim} and {input2.ndim}")
    if weight.ndim != 3:
        error = IndexError if weight.ndim < 3 else RuntimeError
        raise error(f"bilinear(): weight must have 3 dimensions (out, in1, in2), but has shape {list(weight.shape)}")
    y = PUBLIC["einsum"]("...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else y + bias


@composite
def grouped_mm(
    mat_a: Tensor, mat_b: Tensor, *, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: Any = None
) -> Tensor:
    """Products of matrices by groups, as of a mixture's experts: one launch on a GPU, forward and for each gradient.

    With offs int32 [G], the ends of the groups, which do not decrease: mat_a [T, K] by mat_b [G, K, N] -> [T, N], rows of group g
    by mat_b[g]; mat_a [G, M, K] by mat_b [K, T] -> [M, T]; mat_a [M, T] by mat_b [T, N] -> [G, M, N], sums over a group each.
    What lies behind the last group is 0. Without offs, mat_a [G, M, K] by mat_b [G, K, N]. Narrow floats are added up in float32.
    Transposed views are read as they lie. Raises RuntimeError for dtypes other than float32, float16 and bfloat16, or two of
    them, for shapes that do not fit, and for a bias (add it to the result) or an out_dtype that is not that of mat_a.
    """
    a, b = tensor_operand(mat_a, "grouped_mm", "mat_a"), tensor_operand(mat_b, "grouped_mm", "mat_b")
    if a.dtype not in _GROUPED or b.dtype is not a.dtype:
        raise RuntimeError(
            f"grouped_mm: expected mat_a and mat_b both to be float32, bfloat16 or float16, but got {a.dtype!r} and {b.dtype!r}"
        )
    if a.ndim not in (2, 3) or b.ndim not in (2, 3):
        raise RuntimeError(f"grouped_mm: expected 2-D or 3-D matrices, but got {list(a.shape)} and {list(b.shape)}")
    if (offs is None) is not (a.ndim == b.ndim == 3):
        raise RuntimeError("grouped_mm: have to provide offs if there is a 2-D matrix, and none if both matrices are 3-D")
    if bias is not None:
        raise RuntimeError("grouped_mm: bias is not supported yet: add it to the result")
    if out_dtype is not None and out_dtype is not a.dtype:
        raise RuntimeError(f"grouped_mm: output dtype must match that of mat_a, {a.dtype!r}, but got {out_dtype!r}")
    if offs is not None:
        return GROUPED_MM(a, b, offs, turned=(False, False))
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise RuntimeError(f"grouped_mm: expected [G, M, K] and [G, K, N], but got {list(a.shape)} and {list(b.shape)}")
    return MATMUL(a, b)


@composite
def normalize(input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12) -> Tensor:
    """input over its p-norm along `dim` (at least eps)."""
    return input / MAXIMUM(PUBLIC["norm"](input, p, dim, True), eps)


@composite
@typed
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    if x1.shape != x2.shape:
        x1, x2 = PUBLIC["broadcast_tensors"](x1, x2)
    a, b = (x / MAXIMUM(PUBLIC["norm"](x, 2, dim, True), eps) for x in (x1, x2))
    return (a * b).sum(dim)


@composite
@typed
def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """The p-norm distances between all pairs of rows of [N, M] -> [N (N - 1) / 2]."""
    x = tensor_operand(input, "pdist")
    if x.ndim != 2:
        raise RuntimeError(f"pdist only supports 2D tensors, got: {x.ndim}D")
    if p < 0:
        raise RuntimeError(f"pdist only supports non-negative p values, got {p}")
    first, second = np.triu_indices(x.shape[0], 1)
    pick = lambda at: INDEX_SELECT(x, PUBLIC["tensor"](at), dim=0)
    return PUBLIC["norm"](pick(first) - pick(second), p, -1)


@composite
def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    return PUBLIC["norm"](x1 - x2 + eps, p, -1, keepdim)


# -------------------------------------------------------------------- in place


def _in_place(f: Any) -> Any:
    def changed(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return f(input, *args, inplace=True, **kwargs)

    changed.__name__ = changed.__qualname__ = f"{f.__name__}_"
    changed.__doc__ = f"`{f.__name__}`, written over its input."
    return changed


celu_, elu_, hardtanh_, leaky_relu_, rrelu_, selu_, threshold_ = map(
    _in_place, (celu, elu, hardtanh, leaky_relu, rrelu, selu, threshold)
)
