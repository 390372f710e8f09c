"""Reverse-mode differentiation: the tape, backward and grad, modes, custom functions."""

import flame.autograd.attributes  # noqa: F401 (hangs backward, hooks and properties on Tensor)
from flame.autograd import functional, graph
from flame.autograd.anomaly import detect_anomaly, set_detect_anomaly
from flame.autograd.engine import backward, grad
from flame.autograd.function import Function
from flame.autograd.gradcheck import gradcheck, gradgradcheck
from flame.autograd.modes import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from flame.tensor import Tensor

Variable = Tensor

__all__ = [
    "Function",
    "Variable",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "functional",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "graph",
    "inference_mode",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
]
