"""What PyTorch has and flame has not: the names, and what to use instead. Reaching for one raises an error that says so.

A name of a module raises AttributeError where it is read (`hasattr` answers False); a function that programs mention without
calling it (onnx.export) is there, and raises NotImplementedError when called.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

_TYPED = "Tensor.type and Tensor.to: memory has no type of its own here"
_BITS = "uint8, and shifts (flame has no dtypes of less than a byte)"
_OLD_PRODUCTS = "sparse.mm, or @ with a sparse operand"
_QUANTISED = "flame has no quantised tensors: weights in float16 or bfloat16, or whole numbers and a scale of your own"
_ROWS = "coordinates (COO) are the only sparse layout: use to_sparse()"
_SCRIPT = "flame.compile, which takes Python as it is"
_SIZES = "plain Python numbers: sizes are symbolic within compiled functions by themselves"
_GRAPHS = "flame.explain, which shows captured graphs"
_EXPORTED = "flame.save of a state_dict, and flame.compile where it is loaded: there is no exporter"


def _each(names: str, instead: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), instead)


#: name -> what to do instead
NAMES: dict[str, str] = {
    "complex32": "complex64",
    "chalf": "complex64",
    "sparse_csr_tensor": "sparse_coo_tensor: coordinates are the only sparse layout",
    **_each(
        "sparse_csc_tensor sparse_bsr_tensor sparse_bsc_tensor sparse_compressed_tensor sparse_csr sparse_csc sparse_bsr "
        "sparse_bsc",
        "sparse_coo_tensor and sparse_coo: coordinates are the only sparse layout",
    ),
    "fx": _GRAPHS,
    "quantization": "float16 or bfloat16 weights: flame has no quantised kernels",
    "ao": "float16 or bfloat16 weights: flame has no quantised kernels",
    **_each(
        "quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize fake_quantize_per_tensor_affine "
        "fake_quantize_per_channel_affine qint8 quint8 qint32 quint4x2 quint2x4 qscheme per_tensor_affine per_channel_affine "
        "per_tensor_symmetric per_channel_symmetric int_repr q_scale q_zero_point",
        _QUANTISED,
    ),
    **_each("uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 int7 bits8 bits16", _BITS),
    **_each("float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2", "float8_e4m3fn or float8_e5m2"),
    **_each(
        "Storage TypedStorage UntypedStorage FloatStorage DoubleStorage HalfStorage BFloat16Storage LongStorage IntStorage "
        "ShortStorage CharStorage ByteStorage BoolStorage storage",
        _TYPED,
    ),
    **_each("SymInt SymFloat SymBool sym_int sym_float sym_max sym_min sym_not sym_sqrt sym_sum sym_ite", _SIZES),
    **_each("cond while_loop", "Python's own if and while: flame.compile follows them"),
    "export": _EXPORTED,
    "library": "autograd.Function, which compiled functions take too",
    "overrides": "hooks on tensors and modules, or functions of your own around flame's",
    "futures": "Python's concurrent.futures",
    "masked": "where, masked_fill and masked_select",
    "nested": "padding, or nn.utils.rnn.pack_sequence",
    "package": "flame.save and flame.load",
    "multiprocessing": "Python's multiprocessing, or DataLoader(num_workers=...)",
    "mps": "the CPU: Apple GPUs are not used",
    "xpu": "the CPU: Intel GPUs are not used",
    "mtia": "the CPU, or cuda",
    "eig": "linalg.eig",
    "symeig": "linalg.eigh",
    "lstsq": "linalg.lstsq",
    "solve": "linalg.solve",
    "matrix_rank": "linalg.matrix_rank",
    "lobpcg": "linalg.eigh, or svd_lowrank",
    **_each("smm hspmm dsmm saddmm hsmm", _OLD_PRODUCTS),
    "embedding_bag": "nn.functional.embedding_bag, which gives the bags alone",
    "segment_reduce": "scatter_reduce, with each element's segment as its index",
    "from_file": "from_numpy(numpy.memmap(...))",
    **_each("native_layer_norm native_group_norm native_batch_norm native_dropout native_norm", "nn.functional"),
    "convolution": "conv1d, conv2d, conv3d and conv_transpose1d to 3d",
    "conv_tbc": "conv1d, with the dimensions permuted",
    "affine_grid_generator": "nn.functional.affine_grid",
    "get_device_module": "flame.cuda or flame.accelerator",
    "set_flush_denormal": "numbers as they are: small ones are never flushed to zero",
    "get_num_interop_threads": "get_num_threads: operations run one after the other",
    "set_num_interop_threads": "set_num_threads: operations run one after the other",
}
#: the same within modules
WITHIN: dict[str, dict[str, str]] = {
    "jit": _each(
        "script trace freeze ScriptModule ScriptFunction script_method optimize_for_inference is_scripting is_tracing", _SCRIPT
    )
    | _each("save load", "flame.save and flame.load of a state_dict"),
    "autograd": {
        "forward_ad": "func.jvp or func.linearize",
        "set_multithreading_enabled": "nothing: backward runs in the thread that calls it",
    },
    "sparse": {
        "spsolve": "linalg.solve of to_dense()",
        **_each("to_sparse_semi_structured SparseSemiStructuredTensor", _ROWS),
    },
    "nn": _each("quantized intrinsic qat quantizable", _QUANTISED),
    "distributions": {
        "ExponentialFamily": "Distribution, whose entropy and kl_divergence are given in closed form",
    },
    "func": {
        "functionalize": "nothing: flame.compile takes writes in place as they are",
        "replace_all_batch_norm_modules_": "BatchNorm(track_running_stats=False), or eval()",
        "debug_unwrap": "the tensor itself, outside of vmap",
    },
    "utils": {
        "cpp_extension": "autograd.Function over NumPy, or a kernel that flame.compile writes",
        "tensorboard": "a writer of your own: the tensorboard package takes numbers from item()",
        "mobile_optimizer": _EXPORTED,
        "swap_tensors": "Tensor.data",
    },
    "testing": {"assert_allclose": "testing.assert_close"},
}


def missing(where: str, name: str) -> AttributeError:
    """The error for a name that is not there."""
    instead = NAMES.get(name) if where == "flame" else WITHIN.get(where.removeprefix("flame."), {}).get(name)
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
