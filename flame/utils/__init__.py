"""What surrounds training: loading data, and (in `checkpoint`) trading memory for time. PyTorch's `torch.utils` names."""

from flame.utils import data

__all__ = ["data"]
