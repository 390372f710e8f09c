"""The older forms of weight and spectral normalisation, by a hook before each call.

New code uses `flame.nn.utils.parametrizations`. These keep the names under which older checkpoints store their weights.
"""

from __future__ import annotations

import warnings
from typing import Any

from flame.autograd import no_grad
from flame.functions.elementwise import PUBLIC
from flame.nn import functional as F
from flame.nn.parameter import Parameter
from flame.nn.utils.parametrizations import as_matrix, default_dim, norm_except_dim
from flame.tensor import Tensor


class _Hook:
    """Computes a weight before each call; found again among a module's hooks."""

    def __init__(self, name: str) -> None:
        self.name = name

    def compute(self, module: Any) -> Tensor:
        raise NotImplementedError

    def __call__(self, module: Any, inputs: Any) -> None:
        setattr(module, self.name, self.compute(module))


class _Weight(_Hook):
    def __init__(self, name: str, dim: int) -> None:
        super().__init__(name)
        self.dim = dim

    def compute(self, module: Any) -> Tensor:
        g, v = getattr(module, f"{self.name}_g"), getattr(module, f"{self.name}_v")
        return v * (g / norm_except_dim(v, self.dim))


class _Spectral(_Hook):
    def __init__(self, name: str, times: int, dim: int, eps: float) -> None:
        super().__init__(name)
        self.times, self.dim, self.eps = times, dim, eps

    def compute(self, module: Any, iterate: bool | None = None) -> Tensor:
        w, u, v = (getattr(module, f"{self.name}_{part}") for part in ("orig", "u", "v"))
        m = as_matrix(w, self.dim)
        if module.training if iterate is None else iterate:
            with no_grad():
                for _ in range(self.times):
                    v.copy_(F.normalize(m.mT @ u, dim=0, eps=self.eps))
                    u.copy_(F.normalize(m @ v, dim=0, eps=self.eps))
            u, v = u.clone(), v.clone()  # the next call writes over them
        return w / u.dot(m @ v)


def _taken(module: Any, name: str, kind: type[_Hook]) -> Any:
    """Take the hook of a kind for `name` away. Raises ValueError where there is none."""
    for key, (hook, *_) in list(module._forward_pre_hooks.items()):
        if isinstance(hook, kind) and hook.name == name:
            del module._forward_pre_hooks[key]
            module._count_hooks()
            return hook
    raise ValueError(f"{kind.__name__[1:].lower()}_norm of '{name}' not found in {module}")


def _check(module: Any, name: str, kind: type[_Hook]) -> Parameter:
    if any(isinstance(hook, kind) and hook.name == name for hook, *_ in module._forward_pre_hooks.values()):
        raise RuntimeError(f"Cannot register two {kind.__name__[1:].lower()}_norm hooks on the same parameter {name}")
    weight = module._parameters.get(name)
    if weight is None:
        raise ValueError(f"Module '{module}' has no parameter with name '{name}'")
    return weight


def weight_norm(module: Any, name: str = "weight", dim: int | None = 0) -> Any:
    """A weight as `weight_g` (length) and `weight_v` (direction). `parametrizations.weight_norm` is its successor."""
    warnings.warn(
        "`weight_norm` is deprecated in favor of `flame.nn.utils.parametrizations.weight_norm`.", FutureWarning, stacklevel=2
    )
    weight = _check(module, name, _Weight)
    hook = _Weight(name, -1 if dim is None else dim)
    with no_grad():
        length = norm_except_dim(weight.detach(), hook.dim)
    del module._parameters[name]
    module.register_parameter(f"{name}_g", Parameter(length))
    module.register_parameter(f"{name}_v", Parameter(weight.detach()))
    setattr(module, name, hook.compute(module))
    module.register_forward_pre_hook(hook)
    return module


def _restored(module: Any, name: str, value: Tensor, parts: tuple[str, ...]) -> Any:
    delattr(module, name)
    for part in parts:
        delattr(module, f"{name}_{part}")
    module.register_parameter(name, Parameter(value.detach().clone()))
    return module


def remove_weight_norm(module: Any, name: str = "weight") -> Any:
    """Make the weight a parameter again."""
    hook = _taken(module, name, _Weight)
    return _restored(module, name, hook.compute(module), ("g", "v"))


def spectral_norm(
    module: Any, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> Any:
    """A weight over its largest singular value. `parametrizations.spectral_norm` is its successor."""
    if n_power_iterations <= 0:
        raise ValueError(f"Expected n_power_iterations to be positive, but got n_power_iterations={n_power_iterations}")
    weight = _check(module, name, _Spectral)
    hook = _Spectral(name, n_power_iterations, default_dim(module) if dim is None else dim, eps)
    with no_grad():
        m = as_matrix(weight.detach(), hook.dim)
        u, v = (F.normalize(PUBLIC["randn"](n, dtype=m.dtype), dim=0, eps=eps) for n in m.shape)
    del module._parameters[name]
    module.register_parameter(f"{name}_orig", weight)
    setattr(module, name, weight.detach())
    module.register_buffer(f"{name}_u", u)
    module.register_buffer(f"{name}_v", v)
    module.register_forward_pre_hook(hook)
    return module


def remove_spectral_norm(module: Any, name: str = "weight") -> Any:
    """Make the weight a parameter again."""
    hook = _taken(module, name, _Spectral)
    with no_grad():
        value = hook.compute(module, iterate=False)
    return _restored(module, name, value, ("orig", "u", "v"))
