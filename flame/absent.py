"""What PyTorch has and flame has not: the names, and what to use instead. Reaching for one raises an error that says so.

A name of a module raises AttributeError where it is read (`hasattr` answers False); a function that programs mention without
calling it (onnx.export) is there, and raises NotImplementedError when called.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

#: name -> what to do instead
NAMES: dict[str, str] = {
    "complex32": "complex64",
    "chalf": "complex64",
    "sparse_csr_tensor": "sparse_coo_tensor: coordinates are the only sparse layout",
    "fx": "flame.explain, which shows captured graphs",
    "quantization": "float16 or bfloat16 weights: flame has no quantised kernels",
    "ao": "float16 or bfloat16 weights: flame has no quantised kernels",
    "nested": "padding, or nn.utils.rnn.pack_sequence",
    "package": "flame.save and flame.load",
    "multiprocessing": "Python's multiprocessing, or DataLoader(num_workers=...)",
    "mps": "the CPU: Apple GPUs are not used",
    "xpu": "the CPU: Intel GPUs are not used",
}


def missing(where: str, name: str) -> AttributeError:
    """The error for a name that is not there."""
    instead = NAMES.get(name)
    if instead is None:
        return AttributeError(f"module {where!r} has no attribute {name!r}")
    return AttributeError(f"{where}.{name} is not there: use {instead}")


def asked(where: str) -> Callable[[str], Any]:
    """A module's `__getattr__`: says what to use instead of a name that it has not."""

    def __getattr__(name: str) -> Any:
        raise missing(where, name)

    return __getattr__


def _refusing(name: str, instead: str) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name}() is not supported: {instead}")

    function.__name__ = function.__qualname__ = name.rpartition(".")[2]
    function.__doc__ = f"Raises NotImplementedError: {instead}."
    return function


def _space(name: str, **functions: str) -> SimpleNamespace:
    return SimpleNamespace(**{f: _refusing(f"flame.{name}.{f}", instead) for f, instead in functions.items()})


_ONE = "flame runs in one process: remove the call, or guard it by distributed.is_available()"
_COO = "sparse tensors are multiplied by flame.sparse.mm"

distributed = _space("distributed", init_process_group=_ONE, all_reduce=_ONE, all_gather=_ONE, broadcast=_ONE, barrier=_ONE,
                     get_rank=_ONE, get_world_size=_ONE, destroy_process_group=_ONE)  # fmt: skip
distributed.is_available = lambda: False
distributed.is_initialized = lambda: False
hub = _space("hub", load_state_dict_from_url="download the file yourself and read it with flame.load",
             load="clone the repository and import the model; weights are read with flame.load",
             download_url_to_file="use urllib.request.urlretrieve")  # fmt: skip
onnx = _space("onnx", export="flame's graphs are shown by flame.explain; there is no exporter to ONNX")
FUNCTIONS = {"sspaddmm": _refusing("flame.sspaddmm", _COO)}
_QUANTISED = "flame has no quantised tensors: weights in float16 or bfloat16, or whole numbers and a scale of your own"
_ROWS = "coordinates (COO) are the only sparse layout: use to_sparse()"
_STORES = "memory is reached by numpy(), data_ptr() and as_strided(); make a tensor over other memory with flame.from_numpy"
#: name -> what to do instead: methods of tensors that PyTorch has
_INSTEAD = {
    "share_memory_": "tensors reach other processes as copies; to share memory, use flame.from_numpy over "
    "multiprocessing.shared_memory",
    "chalf": "complex numbers are complex64 or complex128: use cfloat()",
    **{
        n: _QUANTISED
        for n in (
            "dequantize int_repr q_scale q_zero_point q_per_channel_axis q_per_channel_scales q_per_channel_zero_points qscheme"
        ).split()
    },
    **{
        n: _ROWS
        for n in (
            "to_sparse_csr to_sparse_csc to_sparse_bsr to_sparse_bsc crow_indices col_indices ccol_indices row_indices"
        ).split()
    },
    **{n: _STORES for n in "set_ storage untyped_storage".split()},
    "sspaddmm": _COO,
    "smm": _COO,
    "to_mkldnn": "tensors have one layout: leave the call out",
    "to_padded_tensor": "tensors are not nested: use nn.utils.rnn.pad_sequence",
    "symeig": "linalg.eigh",
    "eig": "linalg.eig",
    "lstsq": "linalg.lstsq",
    "solve": "linalg.solve",
    "reinforce": "distributions and the gradient of log_prob",
}
METHODS = {n: _refusing(f"Tensor.{n}", instead) for n, instead in _INSTEAD.items()}
