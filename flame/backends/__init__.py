"""flame.backends: questions and switches of PyTorch's backends, answered for what is here: a CPU and this compiler.

Switches hold the values that programs set, and change nothing, there being no cuDNN to tune; but for
`cuda.matmul.allow_tf32`, which is the precision of float32 on GPUs.
"""

from flame.backends import cuda, cudnn, mkl, mps, openmp

__all__ = ["cuda", "cudnn", "mkl", "mps", "openmp"]
