"""Activations as modules: each holds its function's settings.

Most are made from a row of the table at the end: the function of `flame.nn.functional`, and its arguments with their defaults.
"""

from __future__ import annotations

import inspect
from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.nn import functional as F
from flame.nn import init
from flame.nn.modules.attention import MultiheadAttention as MultiheadAttention  # PyTorch has it in this file
from flame.nn.modules.linear import fresh
from flame.nn.modules.module import Module
from flame.nn.modules.straight import Straight
from flame.tensor import Tensor


class _Function(Module):
    """A function whose arguments after the first are settings, kept as attributes of their names."""

    _function: Any
    _settings: inspect.Signature
    _names: tuple[str, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        try:
            bound = self._settings.bind(*args, **kwargs)
        except TypeError as e:
            raise TypeError(f"{type(self).__name__}: {e}") from None
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            setattr(self, name, value)

    def forward(self, input: Tensor) -> Tensor:
        d = self.__dict__
        return self._function(input, *[d[name] for name in self._names])

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name in self._settings.parameters}
        if not shown.get("inplace", True):
            del shown["inplace"]
        if list(shown) == ["lambd"]:
            return str(shown["lambd"])
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())


def _module(name: str, function: Any, doc: str, **settings: Any) -> type:
    """A class for `function`; a setting whose default is `...` is required."""
    parameters = [
        inspect.Parameter(k, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=inspect.Parameter.empty if v is ... else v)
        for k, v in settings.items()
    ]
    body = {
        "_function": staticmethod(function), "_settings": inspect.Signature(parameters), "_names": tuple(settings),
        "__doc__": doc, "__module__": __name__, "__signature__": inspect.Signature(parameters),
    }  # fmt: skip
    made: Any = type(name, (_Function,), body)
    if function.__dict__.get("composite", (None,))[0] is function and vars(F).get(function.__name__) is function:
        made._straight = Straight(_Function.forward, function, tuple(settings), F)
    return made


ReLU = _module("ReLU", F.relu, "max(x, 0).", inplace=False)
ReLU6 = _module("ReLU6", F.relu6, "min(max(x, 0), 6).", inplace=False)
ELU = _module("ELU", F.elu, "x, or alpha (exp(x) - 1) below 0.", alpha=1.0, inplace=False)
SELU = _module("SELU", F.selu, "ELU scaled so that activations normalise themselves (Klambauer et al., 2017).", inplace=False)
CELU = _module("CELU", F.celu, "x, or alpha (exp(x / alpha) - 1) below 0.", alpha=1.0, inplace=False)
GELU = _module("GELU", F.gelu, 'x times the normal distribution function; approximate "none" or "tanh".', approximate="none")
SiLU = _module("SiLU", F.silu, "x sigmoid(x).", inplace=False)
Mish = _module("Mish", F.mish, "x tanh(softplus(x)).", inplace=False)
LeakyReLU = _module("LeakyReLU", F.leaky_relu, "x, or negative_slope x below 0.", negative_slope=0.01, inplace=False)
Hardtanh = _module("Hardtanh", F.hardtanh, "x within [min_val, max_val].", min_val=-1.0, max_val=1.0, inplace=False)
Hardsigmoid = _module("Hardsigmoid", F.hardsigmoid, "relu6(x + 3) / 6.", inplace=False)
Hardswish = _module("Hardswish", F.hardswish, "x relu6(x + 3) / 6.", inplace=False)
Hardshrink = _module("Hardshrink", F.hardshrink, "x, or 0 within lambd of 0.", lambd=0.5)
Softshrink = _module("Softshrink", F.softshrink, "x moved towards 0 by lambd.", lambd=0.5)
Tanhshrink = _module("Tanhshrink", F.tanhshrink, "x - tanh(x).")
Threshold = _module("Threshold", F.threshold, "x where above threshold, else value.", threshold=..., value=..., inplace=False)
Softplus = _module("Softplus", F.softplus, "log(1 + exp(beta x)) / beta.", beta=1.0, threshold=20.0)
Softsign = _module("Softsign", F.softsign, "x / (1 + |x|).")
Sigmoid = _module("Sigmoid", PUBLIC["sigmoid"], "1 / (1 + exp(-x)).")
Tanh = _module("Tanh", PUBLIC["tanh"], "Hyperbolic tangent.")
LogSigmoid = _module("LogSigmoid", F.logsigmoid, "log(sigmoid(x)).")
GLU = _module("GLU", F.glu, "a sigmoid(b) of the two halves along dim.", dim=-1)
Softmax = _module("Softmax", F.softmax, "exp(x) over its sum along dim.", dim=None)
LogSoftmax = _module("LogSoftmax", F.log_softmax, "log of softmax along dim.", dim=None)
Softmin = _module("Softmin", F.softmin, "softmax of -x along dim.", dim=None)


class Softmax2d(Module):
    """Softmax over the channels of [N, C, H, W] or [C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.ndim}D instead")
        return F.softmax(input, -3)


class RReLU(Module):
    """x, or below 0 a random slope times x (Xu et al., 2015); the middle slope when evaluating."""

    def __init__(self, lower: float = 1.0 / 8, upper: float = 1.0 / 3, inplace: bool = False) -> None:
        super().__init__()
        self.lower, self.upper, self.inplace = lower, upper, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.rrelu(input, self.lower, self.upper, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"lower={self.lower}, upper={self.upper}" + (", inplace=True" if self.inplace else "")


class PReLU(Module):
    """x, or weight x below 0, with one learned weight or one a channel."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.num_parameters, self.init = num_parameters, init
        self.weight = fresh(num_parameters, dtype=dtype, device=device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.constant_(self.weight, self.init)

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"
