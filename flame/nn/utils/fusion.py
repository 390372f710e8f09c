"""Folding a normalisation with fixed statistics into the layer before it, for evaluation."""

from __future__ import annotations

import copy
from typing import Any

from flame.autograd import no_grad
from flame.functions.elementwise import PUBLIC
from flame.nn.parameter import Parameter
from flame.tensor import Tensor


def _folded(w: Tensor, b: Tensor | None, mean: Tensor, var: Tensor, eps: float, gain: Any, shift: Any, dim: int) -> tuple:
    """Weight and bias of a layer that also does (y - mean) / sqrt(var + eps) * gain + shift; `dim` counts outputs."""
    grads = w.requires_grad, (w if b is None else b).requires_grad
    with no_grad():
        scale = (var + eps).rsqrt()
        scale = scale if gain is None else scale * gain
        start = PUBLIC["zeros_like"](mean) if b is None else b
        bias = (start - mean) * scale
        bias = bias if shift is None else bias + shift
        weight = w * scale.reshape([-1 if d == dim else 1 for d in range(w.ndim)])
    return Parameter(weight.to(w.dtype), grads[0]), Parameter(bias.to(w.dtype), grads[1])


def fuse_conv_bn_weights(
    conv_w: Tensor, conv_b: Tensor | None, bn_rm: Tensor, bn_rv: Tensor, bn_eps: float, bn_w: Tensor | None, bn_b: Tensor | None,
    transpose: bool = False,
) -> tuple[Parameter, Parameter]:  # fmt: skip
    """(weight, bias) of a convolution that does the normalisation too."""
    return _folded(conv_w, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, 1 if transpose else 0)


def fuse_linear_bn_weights(
    linear_w: Tensor, linear_b: Tensor | None, bn_rm: Tensor, bn_rv: Tensor, bn_eps: float, bn_w: Tensor, bn_b: Tensor
) -> tuple[Parameter, Parameter]:
    """(weight, bias) of a linear layer that does the normalisation too."""
    return _folded(linear_w, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, 0)


def _fused(layer: Any, bn: Any, name: str, dim: int) -> Any:
    if layer.training or bn.training:
        raise AssertionError(f"{name}: Fusion only for eval!")
    if bn.running_mean is None or bn.running_var is None:
        raise AssertionError(f"{name}: the normalisation has no running statistics to fold")
    made = copy.deepcopy(layer)
    made.weight, made.bias = _folded(made.weight, made.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias, dim)
    return made


def fuse_conv_bn_eval(conv: Any, bn: Any, transpose: bool = False) -> Any:
    """A convolution that does what `conv`, then `bn` do. Both must be in evaluation mode (AssertionError)."""
    return _fused(conv, bn, "fuse_conv_bn_eval", 1 if transpose else 0)


def fuse_linear_bn_eval(linear: Any, bn: Any) -> Any:
    """A linear layer that does what `linear`, then `bn` do. Both must be in evaluation mode (AssertionError)."""
    if linear.out_features != bn.num_features and bn.num_features != 1:
        raise AssertionError("To fuse, linear.out_features == bn.num_features or bn.num_features == 1")
    return _fused(linear, bn, "fuse_linear_bn_eval", 0)
