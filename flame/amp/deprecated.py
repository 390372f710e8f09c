"""`flame.cuda.amp` and `flame.cpu.amp`: older names of `flame.amp`, which warn as PyTorch's do."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

from flame.amp import autocast_mode as current
from flame.amp.grad_scaler import GradScaler
from flame.dtypes import bfloat16, dtype, float16


def _module(device: str, default: dtype) -> types.ModuleType:
    """The module `flame.<device>.amp`."""

    def warn(name: str) -> None:
        text = (
            f"`flame.{device}.amp.{name}(args...)` is deprecated. Please use `flame.amp.{name}('{device}', args...)` instead."
        )
        warnings.warn(text, FutureWarning, stacklevel=3)

    class autocast(current.autocast):
        def __init__(self, enabled: bool = True, dtype: dtype = default, cache_enabled: bool = True):
            warn("autocast")
            super().__init__(device, enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)

    class OldGradScaler(GradScaler):
        def __init__(self, *args: Any, **kwargs: Any):
            warn("GradScaler")
            super().__init__(device, *args, **kwargs)

    def custom_fwd(fwd: Any = None, *, cast_inputs: dtype | None = None) -> Any:
        warn("custom_fwd")
        return current.custom_fwd(fwd, device_type=device, cast_inputs=cast_inputs)

    def custom_bwd(bwd: Any) -> Any:
        warn("custom_bwd")
        return current.custom_bwd(bwd, device_type=device)

    OldGradScaler.__name__ = OldGradScaler.__qualname__ = "GradScaler"
    module = types.ModuleType(f"flame.{device}.amp", f"Older names of flame.amp, for device_type={device!r}.")
    names: dict[str, Any] = {"autocast": autocast, "GradScaler": OldGradScaler}
    if device == "cuda":
        names |= {"custom_fwd": custom_fwd, "custom_bwd": custom_bwd}
    for f in names.values():
        f.__module__ = module.__name__
    vars(module).update(names, __all__=list(names))
    sys.modules[module.__name__] = module  # (so that `from flame.cuda.amp import autocast` finds it)
    return module


cuda_amp, cpu_amp = _module("cuda", float16), _module("cpu", bfloat16)
