"""flame.backends: questions and switches of PyTorch's backends, answered for what is here: a CPU and this compiler.

Switches hold the values that programs set, and change nothing: there is no cuDNN to tune.
"""

from flame.backends import cuda, cudnn, mkl, mps, openmp

__all__ = ["cuda", "cudnn", "mkl", "mps", "openmp"]
