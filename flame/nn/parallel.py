"""Wrappers for several devices, for code that names them: flame runs a model on one device.

`DataParallel` calls its module, as PyTorch's does where there is no GPU. `DistributedDataParallel` says that there are no process
groups.
"""

from __future__ import annotations

from typing import Any

from flame.errors import MissingTargetError
from flame.nn.modules.module import Module


def _one_device(name: str, device_ids: Any) -> None:
    if device_ids:
        raise MissingTargetError(
            f"{name}: device_ids={device_ids!r} names GPUs, but this version of flame runs on the CPU alone"
        )


class DataParallel(Module):
    """`module`, called as it is: without GPUs there is nothing to divide a batch among. state_dict keys begin with "module."."""

    def __init__(self, module: Module, device_ids: Any = None, output_device: Any = None, dim: int = 0) -> None:
        super().__init__()
        _one_device("DataParallel", device_ids)
        self.module, self.dim = module, dim
        self.device_ids: list[int] = []

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.module(*inputs, **kwargs)


def data_parallel(
    module: Module, inputs: Any, device_ids: Any = None, output_device: Any = None, dim: int = 0, module_kwargs: Any = None
) -> Any:
    """`module(*inputs, **module_kwargs)`."""
    _one_device("data_parallel", device_ids)
    args = inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)
    return module(*args, **(module_kwargs or {}))


class DistributedDataParallel(Module):
    """Not supported: making one raises ValueError, as PyTorch's does without a process group."""

    def __init__(self, module: Module, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "DistributedDataParallel: flame has no process groups: train in one process, or average gradients between processes "
            "yourself (each may take its part of the data by flame.utils.data.DistributedSampler)"
        )
