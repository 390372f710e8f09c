"""flame: tensors, autograd and nn that run at once, and a compiler that watches them run.

`import flame` gives PyTorch's names. `flame.compile` turns a function into fused kernels while its Python keeps running.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from flame import (
    absent,
    accelerator,
    amp,
    array_api,
    autograd,
    backends,
    compiler,
    cuda,
    datasets,
    distributions,
    dtypes,
    fft,
    func,
    functions,
    jit,
    legacy,
    linalg,
    namespace,
    nn,
    optim,
    profiler,
    random,
    serialization,
    signal,
    sparse,
    special,
    testing,
    utils,
)
from flame.amp import deprecated as _deprecated
from flame.amp.autocast_mode import autocast
from flame.autograd import enable_grad, inference_mode, is_grad_enabled, is_inference_mode_enabled, no_grad, set_grad_enabled
from flame.autograd import profiler as _legacy_profiler
from flame.autograd.anomaly import is_anomaly_check_nan_enabled, is_anomaly_enabled
from flame.backends.cuda import get_float32_matmul_precision, set_float32_matmul_precision
from flame.dtypes import (
    bfloat16,
    complex64,
    complex128,
    dtype,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    float64,
    get_default_dtype,
    int8,
    int16,
    int32,
    int64,
    promote_types,
    set_default_dtype,
    uint8,
    uint16,
    uint32,
    uint64,
)
from flame.dtypes import bool_ as bool
from flame.explain import explain
from flame.formats import (
    channels_last,
    channels_last_3d,
    contiguous_format,
    layout,
    memory_format,
    preserve_format,
    sparse_coo,
    strided,
)
from flame.func import vmap
from flame.functions.creation import tensor
from flame.functions.promotion import result_type
from flame.functions.random import (
    Generator,
    default_generator,
    fork_rng,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)
from flame.jit import compile, disable
from flame.nn import attention as _attention
from flame.nn.functional import recurrent
from flame.printing import get_printoptions, set_printoptions
from flame.profiler.memory import memory_summary
from flame.random import are_deterministic_algorithms_enabled, use_deterministic_algorithms
from flame.runtime.device import device
from flame.runtime.threads import get_num_threads, set_num_threads
from flame.serialization import load, save
from flame.tensor import Size, Tensor, is_tensor

__version__ = "0.1.0"

float = float32
double = float64
half = float16
cfloat = complex64
cdouble = complex128
short = int16
int = int32
long = int64
inf, nan, pi, e = math.inf, math.nan, math.pi, math.e
globals().update(functions.PUBLIC)
globals().update(recurrent.FLAME_NAMES)
globals().update(legacy.PUBLIC_NAMES)
globals().update(absent.FUNCTIONS)
globals().update(sparse.NAMES)
vars(cuda).update(legacy.LEGACY_CUDA)
globals().update(amp.FLAME_NAMES)
cuda.amp = _deprecated.cuda_amp  # type: ignore[attr-defined]
distributed, hub, onnx = absent.distributed, absent.hub, absent.onnx
for _name, _method in absent.METHODS.items():
    setattr(Tensor, _name, _method)
vars(compiler).update(jit.PUBLIC)
namespace.enter(sys.modules[__name__])
functions.refusing.enter(sys.modules[__name__])


def __getattr__(name: str) -> Any:
    raise absent.missing("flame", name)
