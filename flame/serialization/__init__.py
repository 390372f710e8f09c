"""Saving and loading: `flame.save` and `flame.load` on safetensors files, sharded checkpoints, and a reader of PyTorch's files.

Nothing that is loaded is ever executed: a file holds tensors, and a description of plain containers around them.
"""

from flame.serialization.files import load, save
from flame.serialization.format import FileFormatError
from flame.serialization.pytorch_file import load_pytorch
from flame.serialization.sharded import load_sharded, save_sharded
from flame.serialization.structure import add_safe_globals, clear_safe_globals, get_safe_globals, safe_globals

__all__ = [
    "FileFormatError",
    "add_safe_globals",
    "clear_safe_globals",
    "get_safe_globals",
    "load",
    "load_pytorch",
    "load_sharded",
    "safe_globals",
    "save",
    "save_sharded",
]
