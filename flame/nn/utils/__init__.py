"""Helpers around parameters and their gradients, parametrizations, batches of sequences."""

from typing import Any

from flame.nn.utils import fusion, parametrizations, parametrize, rnn, stateless
from flame.nn.utils.clip_grad import clip_grad_norm, clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from flame.nn.utils.convert_parameters import parameters_to_vector, vector_to_parameters
from flame.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights, fuse_linear_bn_eval, fuse_linear_bn_weights
from flame.nn.utils.init import skip_init
from flame.nn.utils.normalized import remove_spectral_norm, remove_weight_norm, spectral_norm, weight_norm

__all__ = [
    "clip_grad_norm",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "fuse_conv_bn_eval",
    "fuse_conv_bn_weights",
    "fuse_linear_bn_eval",
    "fuse_linear_bn_weights",
    "fusion",
    "get_total_norm",
    "parameters_to_vector",
    "parametrizations",
    "parametrize",
    "remove_spectral_norm",
    "remove_weight_norm",
    "rnn",
    "skip_init",
    "spectral_norm",
    "stateless",
    "vector_to_parameters",
    "weight_norm",
]


def __getattr__(name: str) -> Any:
    if name == "prune":
        raise AttributeError(
            "flame.nn.utils.prune is not there: to prune, multiply the weight by a mask in a parametrization "
            "(flame.nn.utils.parametrize.register_parametrization)"
        )
    raise AttributeError(f"module 'flame.nn.utils' has no attribute {name!r}")
