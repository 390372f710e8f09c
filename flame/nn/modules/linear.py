"""Linear maps."""

from __future__ import annotations

import math
from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.nn import functional as F
from flame.nn import init
from flame.nn.modules.module import Module
from flame.nn.modules.straight import Straight
from flame.nn.parameter import Parameter
from flame.tensor import Tensor


def fresh(*shape: int, dtype: Any = None, device: Any = None) -> Parameter:
    """A parameter that waits for its initial values."""
    return Parameter(PUBLIC["empty"](*shape, dtype=dtype, device=device))


class Identity(Module):
    """The argument, whatever the module was made with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Any:
        return input


class Linear(Module):
    """input @ weight.T + bias: [..., in_features] -> [..., out_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = fresh(out_features, in_features, dtype=dtype, device=device)
        self.register_parameter("bias", fresh(out_features, dtype=dtype, device=device) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(in_features), weights and biases."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


Linear._straight = Straight(Linear.forward, F.linear, ("weight", "bias"), F)


class NonDynamicallyQuantizableLinear(Linear):
    """A Linear by another name: the output projection of attention, so that models print as PyTorch's."""


class Bilinear(Module):
    """input1 @ weight[o] @ input2 + bias, for each output o."""

    def __init__(
        self, in1_features: int, in2_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        if in1_features <= 0:
            raise ValueError(f"in1_features must be > 0, but got {in1_features}")
        self.in1_features, self.in2_features, self.out_features = in1_features, in2_features, out_features
        self.weight = fresh(out_features, in1_features, in2_features, dtype=dtype, device=device)
        self.register_parameter("bias", fresh(out_features, dtype=dtype, device=device) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight.shape[1])
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return F.bilinear(input1, input2, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
