"""What surrounds training: loading data, and trading time for memory. PyTorch's `torch.utils` names."""

from flame.utils import benchmark, checkpoint, data, text, transforms

__all__ = ["benchmark", "checkpoint", "data", "text", "transforms"]
