"""Initial values of weights, written in place and outside of any graph."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from flame.autograd import no_grad
from flame.functions.elementwise import PUBLIC
from flame.functions.random import Generator
from flame.tensor import Tensor

_LINEAR = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid")


def calculate_gain(nonlinearity: str, param: Any = None) -> float:
    """The factor that keeps variance through a nonlinearity. Raises ValueError for an unknown one."""
    if nonlinearity in _LINEAR:
        return 1.0
    match nonlinearity:
        case "tanh":
            return 5.0 / 3
        case "relu":
            return math.sqrt(2.0)
        case "leaky_relu":
            if param is not None and (isinstance(param, bool) or not isinstance(param, int | float)):
                raise ValueError(f"negative_slope {param} not a valid number")
            return math.sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
        case "selu":
            return 3.0 / 4
    raise ValueError(f"Unsupported nonlinearity {nonlinearity}")


def fans(tensor: Tensor) -> tuple[int, int]:
    """How many inputs each output has, and outputs each input, of a weight [out, in, *kernel]."""
    if tensor.ndim < 2:
        raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


_calculate_fan_in_and_fan_out = fans


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    with no_grad():
        return tensor.uniform_(a, b, generator=generator)  # type: ignore[attr-defined]


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    with no_grad():
        return tensor.normal_(mean, std, generator=generator)  # type: ignore[attr-defined]


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, generator: Generator | None = None
) -> Tensor:
    """Normals limited to [a, b], by rejection: of normals, or of uniforms where few normals would fall between. Reads values."""
    phi = lambda x: (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0
    likely = phi((b - mean) / std) - phi((a - mean) / std) > 0.3
    peak = (max(a, min(mean, b)) - mean) / std
    with no_grad():
        values, pending = tensor.detach().clone(), None  # type: ignore[attr-defined]
        while pending is None or pending.any():
            if likely:
                drawn = PUBLIC["randn_like"](values, generator=generator) * std + mean
                refused = (drawn < a) | (drawn > b)
            else:
                drawn = PUBLIC["rand_like"](values, generator=generator) * (b - a) + a
                z = (drawn - mean) / std
                refused = PUBLIC["rand_like"](values, generator=generator) >= ((peak * peak - z * z) * 0.5).exp()
            values = drawn if pending is None else PUBLIC["where"](pending, drawn, values)
            pending = refused if pending is None else pending & refused
        return tensor.copy_(values)  # type: ignore[attr-defined]


def constant_(tensor: Tensor, val: float) -> Tensor:
    with no_grad():
        return tensor.fill_(val)  # type: ignore[attr-defined]


def ones_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 0.0)


def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix."""
    if tensor.ndim != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    with no_grad():
        return tensor.copy_(PUBLIC["eye"](*tensor.shape, dtype=tensor.dtype))  # type: ignore[attr-defined]


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """A convolution's weight that hands its input through, channel by channel in each group."""
    if tensor.ndim not in (3, 4, 5):
        raise ValueError("Only tensors with 3, 4, or 5 dimensions are supported")
    out, into = tensor.shape[:2]
    if out % groups:
        raise ValueError("dim 0 must be divisible by groups")
    per_group = out // groups
    middle = tuple(k // 2 for k in tensor.shape[2:])
    with no_grad():
        zeros_(tensor)
        for g in range(groups):
            for c in range(min(per_group, into)):
                tensor[(g * per_group + c, c, *middle)] = 1.0  # type: ignore[index]
    return tensor


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Glorot and Bengio (2010)."""
    bound = gain * math.sqrt(6.0 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Glorot and Bengio (2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(fans(tensor))), generator)


def _fan(tensor: Tensor, mode: str) -> int:
    mode = mode.lower()
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out']")
    return fans(tensor)[mode == "fan_out"]


def kaiming_uniform_(
    tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: Generator | None = None
) -> Tensor:
    """He et al. (2015)."""
    if 0 in tensor.shape:
        return tensor
    bound = math.sqrt(3.0) * calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode))
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: Generator | None = None
) -> Tensor:
    """He et al. (2015)."""
    if 0 in tensor.shape:
        return tensor
    return normal_(tensor, 0.0, calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode)), generator)


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Generator | None = None) -> Tensor:
    """Orthonormal rows or columns (Saxe et al., 2013), by a QR decomposition made unique."""
    if tensor.ndim < 2:
        raise ValueError("Only tensors with 2 or more dimensions are supported")
    if tensor.numel() == 0:
        return tensor
    rows, cols = tensor.shape[0], tensor.numel() // tensor.shape[0]
    with no_grad():
        flat = PUBLIC["randn"](rows, cols, generator=generator)
        q = orthonormal(flat if rows >= cols else flat.t())
        tensor.copy_((q if rows >= cols else q.t()).reshape(tensor.shape)).mul_(gain)  # type: ignore[attr-defined]
    return tensor


def orthonormal(a: Tensor) -> Tensor:
    """Q of a = QR with R's diagonal positive, for a tall matrix. Reads values."""
    q, r = np.linalg.qr(a.numpy().astype(np.float64))
    return PUBLIC["tensor"](q * np.where(np.diagonal(r) < 0, -1.0, 1.0), dtype=a.dtype)


def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Generator | None = None) -> Tensor:
    """Normals with a share of zeros in each column (Martens, 2010)."""
    if tensor.ndim != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    rows, cols = tensor.shape
    zeros = math.ceil(sparsity * rows)
    with no_grad():
        tensor.normal_(0, std, generator=generator)  # type: ignore[attr-defined]
        for c in range(cols):
            tensor[PUBLIC["randperm"](rows)[:zeros], c] = 0.0  # type: ignore[index]
    return tensor


def _older(new: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function's name from before names of what writes ended in an underscore; calling it warns."""
    name = new.__name__.removesuffix("_")

    @functools.wraps(new)
    def old(*args: Any, **kwargs: Any) -> Tensor:
        warnings.warn(f"`nn.init.{name}` is now deprecated in favor of `nn.init.{name}_`.", FutureWarning, stacklevel=2)
        return new(*args, **kwargs)

    old.__name__ = old.__qualname__ = name
    return old


uniform, normal, constant, eye, dirac = _older(uniform_), _older(normal_), _older(constant_), _older(eye_), _older(dirac_)
xavier_uniform, xavier_normal = _older(xavier_uniform_), _older(xavier_normal_)
kaiming_uniform, kaiming_normal = _older(kaiming_uniform_), _older(kaiming_normal_)
orthogonal, sparse = _older(orthogonal_), _older(sparse_)

__all__ = [n for n in dir() if n.endswith("_") and not n.startswith("_")] + ["calculate_gain"]
