"""Layers that learn their input's size from the first input: `LazyLinear`, `LazyConv2d`, `LazyBatchNorm1d`, ..

Their parameters are there from the beginning (an optimizer may hold them), without a shape. The first call gives them one, fills
them as the ordinary layer would, and makes the module one of the ordinary class.
"""

from __future__ import annotations

import inspect
from typing import Any

from flame.autograd import no_grad
from flame.functions.random import fork_rng
from flame.nn.modules.batchnorm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
)
from flame.nn.modules.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from flame.nn.modules.linear import Linear
from flame.nn.parameter import Uninitialized, UninitializedBuffer, UninitializedParameter
from flame.tensor import Tensor


class LazyModuleMixin:
    """For classes with `initialize_parameters(*inputs)`, which is called before the first forward. `cls_to_become`: what then."""

    cls_to_become: type | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        me: Any = self
        me.register_load_state_dict_pre_hook(_take_shapes)
        me.register_forward_pre_hook(_infer, with_kwargs=True)

    def initialize_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Give all parameters and buffers their shapes and first values."""
        raise NotImplementedError(f"initialize_parameters is not implemented for {type(self).__name__}")

    def has_uninitialized_params(self) -> bool:
        """Whether any parameter or buffer has no shape yet."""
        me: Any = self
        return any(isinstance(t, Uninitialized) for t in (*me._parameters.values(), *me._buffers.values()))

    def _infer_parameters(self, module: Any, args: tuple, kwargs: dict | None = None) -> None:
        kwargs = kwargs or {}
        module.initialize_parameters(*args, **kwargs)
        if module.has_uninitialized_params():
            raise RuntimeError(
                f"module {type(module).__name__} has not been fully initialized: initialize_parameters left some without a shape"
            )
        # by the functions and not by handles, which a copied module would share with the one it is a copy of
        for key, (hook, *_) in list(module._forward_pre_hooks.items()):
            if hook is _infer:
                del module._forward_pre_hooks[key]
        for key, hook in list(module._state_hooks["load_pre"].items()):
            if hook is _take_shapes:
                del module._state_hooks["load_pre"][key]
        module._count_hooks()
        if module.cls_to_become is not None:
            module.__class__ = module.cls_to_become


def _infer(module: Any, args: tuple, kwargs: dict) -> None:
    module._infer_parameters(module, args, kwargs)


def _take_shapes(module: Any, state_dict: dict, prefix: str, *_: Any) -> None:
    """What is loaded has a shape: it is the shape of what is not initialised."""
    for name, t in (*module._parameters.items(), *module._buffers.items()):
        given = state_dict.get(prefix + name)
        if isinstance(t, Uninitialized) and isinstance(given, Tensor) and not isinstance(given, Uninitialized):
            with no_grad():
                t.materialize(tuple(given.shape))


class _LazyLayer(LazyModuleMixin):
    """A layer of `cls_to_become` without its first argument, which is the size of the input along `_dim`."""

    _dim: int
    _feature: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = self.__signature__.bind(*args, **kwargs)  # type: ignore[attr-defined]
        bound.apply_defaults()
        args, kwargs = bound.args, bound.kwargs
        unknown = int(bound.arguments.get("groups", 1))
        with fork_rng():  # what is drawn for the stand-ins does not count
            super().__init__(unknown, *args, **kwargs)
        self.__dict__["_made_with"] = (args, kwargs)
        setattr(self, self._feature, 0)
        me: Any = self
        for name, t in list(me._parameters.items()):
            if t is not None:
                me._parameters[name] = UninitializedParameter(dtype=t.dtype, requires_grad=t.requires_grad)
        for name, b in list(me._buffers.items()):
            if b is not None and b.ndim:
                me._buffers[name] = UninitializedBuffer(dtype=b.dtype)

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params():
            super().reset_parameters()  # type: ignore[misc]

    def initialize_parameters(self, input: Tensor, *args: Any, **kwargs: Any) -> None:
        """As `cls_to_become` would, for inputs like this one."""
        me: Any = self
        rank = getattr(type(self), "_n", None)
        if rank is not None and input.ndim not in (rank + 1, rank + 2):
            raise RuntimeError(
                f"Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to {type(self).__name__}, but got input of size: "
                f"{list(input.shape)}"
            )
        dim = self._dim if rank is None else input.ndim - rank - 1
        had = self.has_uninitialized_params()
        make = self.cls_to_become
        assert make is not None
        made_args, made_kwargs = self.__dict__["_made_with"]
        if had:
            plain = make(input.shape[dim], *made_args, **made_kwargs)
        else:  # what was loaded keeps its values, and nothing is drawn
            with fork_rng():
                plain = make(input.shape[dim], *made_args, **made_kwargs)
        with no_grad():
            for name, t in (*me._parameters.items(), *me._buffers.items()):
                if isinstance(t, Uninitialized):
                    value = getattr(plain, name)
                    t.materialize(tuple(value.shape))
                    t.copy_(value)  # type: ignore[attr-defined]
        setattr(self, self._feature, getattr(plain, self._feature))
        del self.__dict__["_made_with"]


def _lazy(base: Any, feature: str, dim: int, **defaults: Any) -> Any:
    """The lazy class of a layer; `defaults` are those in which it differs from the layer, in PyTorch too."""
    signature = inspect.signature(base)
    parameters = [p.replace(default=defaults.get(p.name, p.default)) for p in list(signature.parameters.values())[1:]]
    body = {
        "cls_to_become": base, "_dim": dim, "_feature": feature, "__module__": __name__,
        "__signature__": signature.replace(parameters=parameters),
        "__doc__": f"{base.__name__} whose `{feature}` is that of its first input.",
    }  # fmt: skip
    return type(f"Lazy{base.__name__}", (_LazyLayer, base), body)


LazyLinear = _lazy(Linear, "in_features", -1)
LazyConv1d, LazyConv2d, LazyConv3d = (_lazy(c, "in_channels", 1) for c in (Conv1d, Conv2d, Conv3d))
LazyConvTranspose1d, LazyConvTranspose2d, LazyConvTranspose3d = (
    _lazy(c, "in_channels", 1) for c in (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
)
LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d = (
    _lazy(c, "num_features", 1) for c in (BatchNorm1d, BatchNorm2d, BatchNorm3d)
)
LazyInstanceNorm1d, LazyInstanceNorm2d, LazyInstanceNorm3d = (
    _lazy(c, "num_features", 1, affine=True, track_running_stats=True) for c in (InstanceNorm1d, InstanceNorm2d, InstanceNorm3d)
)
