"""NVIDIA's cuBLASLt, where it is installed: matrix products as candidates beside kernels (`flame.runtime.gpu_autotune`).

    open_library(version) -> CublasLt               raises MissingTargetError where there is none that this driver can run
    Multiplication(gpu, library, product)           a `LibraryProduct` as the library describes it
        .algorithms(most) -> [Algorithm]            what the library suggests, its first choice first
        .launch(algorithm, addresses, stream)       put on a stream; it is lent its workspace

Nothing needs it, and nothing but `mode="max-autotune"` asks for it. It is called by ctypes as it lies beside PyTorch or CUDA;
`DECLARATIONS` is written as in `cublasLt.h` and is all that says how arguments are passed. The library counts a matrix's elements
down its columns, so it is asked for the transposed product, whose columns are our rows.

cuDNN is left out: its convolutions would be the second library to pay for, but it plans whole graphs through an interface of its
own (descriptors of operations, engines, plans), several times this file, for kernels whose prologues and epilogues flame fuses.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from flame.compiler.library_product import LibraryProduct, Matrix
from flame.dtypes import bfloat16, float8_e4m3fn, float8_e5m2, float16, float32, float64, int8, int32
from flame.errors import CudaError, MissingTargetError, Refused
from flame.knobs import knobs
from flame.runtime.gpu_copy import ALIGNMENT

DECLARATIONS: Final = """
cublasLtCreate(cublasLtHandle_t* lightHandle)
cublasLtDestroy(cublasLtHandle_t lightHandle)
cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* matmulDesc, cublasComputeType_t computeType, cudaDataType_t scaleType)
cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t matmulDesc)
cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t matmulDesc, cublasLtMatmulDescAttributes_t attr, const void* buf, size_t sizeInBytes)
cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* matLayout, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld)
cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t matLayout)
cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t matLayout, cublasLtMatrixLayoutAttribute_t attr, const void* buf, size_t sizeInBytes)
cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* pref)
cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref)
cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref, cublasLtMatmulPreferenceAttributes_t attr, const void* buf, size_t sizeInBytes)
cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t operationDesc, cublasLtMatrixLayout_t Adesc, cublasLtMatrixLayout_t Bdesc, cublasLtMatrixLayout_t Cdesc, cublasLtMatrixLayout_t Ddesc, cublasLtMatmulPreference_t preference, int requestedAlgoCount, cublasLtMatmulHeuristicResult_t heuristicResultsArray[], int* returnAlgoCount)
cublasLtMatmul(cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t computeDesc, const void* alpha, const void* A, cublasLtMatrixLayout_t Adesc, const void* B, cublasLtMatrixLayout_t Bdesc, const void* beta, const void* C, cublasLtMatrixLayout_t Cdesc, void* D, cublasLtMatrixLayout_t Ddesc, const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspaceSizeInBytes, cudaStream_t stream)
"""  # noqa: E501

_TYPES: Final[dict[str, Any]] = {
    "int": ctypes.c_int, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64, "size_t": ctypes.c_size_t,
    **dict.fromkeys(
        ("cublasComputeType_t", "cudaDataType", "cudaDataType_t", "cublasLtMatmulDescAttributes_t",
         "cublasLtMatrixLayoutAttribute_t", "cublasLtMatmulPreferenceAttributes_t"), ctypes.c_int),
}  # fmt: skip

#: the enumerations' numbers, by their names in the headers
NUMBERS: Final = {
    "CUDA_R_32F": 0, "CUDA_R_64F": 1, "CUDA_R_16F": 2, "CUDA_R_8I": 3, "CUDA_R_32I": 10, "CUDA_R_16BF": 14,
    "CUDA_R_8F_E4M3": 28, "CUDA_R_8F_E5M2": 29,
    "CUBLAS_COMPUTE_32F": 68, "CUBLAS_COMPUTE_64F": 70, "CUBLAS_COMPUTE_32I": 72, "CUBLAS_COMPUTE_32F_FAST_TF32": 77,
    "CUBLAS_OP_N": 0, "CUBLAS_OP_T": 1,
    "CUBLASLT_MATMUL_DESC_TRANSA": 3, "CUBLASLT_MATMUL_DESC_TRANSB": 4,
    "CUBLASLT_MATMUL_DESC_EPILOGUE": 7, "CUBLASLT_MATMUL_DESC_BIAS_POINTER": 8,
    "CUBLASLT_MATMUL_DESC_A_SCALE_POINTER": 17, "CUBLASLT_MATMUL_DESC_B_SCALE_POINTER": 18,
    "CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT": 5, "CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET": 6,
    "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES": 1, "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK": 3,
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES": 5, "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES": 6,
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES": 7, "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES": 8,
    "CUBLASLT_EPILOGUE_DEFAULT": 1, "CUBLASLT_EPILOGUE_RELU": 2, "CUBLASLT_EPILOGUE_BIAS": 4, "CUBLASLT_EPILOGUE_GELU": 32,
    "CUBLAS_STATUS_SUCCESS": 0, "CUBLAS_STATUS_NOT_SUPPORTED": 15,
}  # fmt: skip

_KINDS: Final = {
    float32: "CUDA_R_32F", float64: "CUDA_R_64F", float16: "CUDA_R_16F", bfloat16: "CUDA_R_16BF",
    int8: "CUDA_R_8I", int32: "CUDA_R_32I", float8_e4m3fn: "CUDA_R_8F_E4M3", float8_e5m2: "CUDA_R_8F_E5M2",
}  # fmt: skip
_NUMBERS: Final = {float32: ctypes.c_float, float64: ctypes.c_double, int32: ctypes.c_int32}
#: bytes that an algorithm may be lent (what NVIDIA advises for Hopper)
WORKSPACE: Final = 32 << 20
#: by which numbers of CUDA the library is looked for
VERSIONS: Final = (13, 12)


class _Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int), ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]  # fmt: skip


def signatures() -> dict[str, tuple[Any, ...]]:
    """Every function's argument types for ctypes, as `DECLARATIONS` has them."""
    found = {}
    for name, arguments in re.findall(r"^(\w+)\((.*)\)$", DECLARATIONS, re.MULTILINE):
        words = [re.sub(r"\s*\w+(\[\])?$", "", a.strip()) + ("*" if a.endswith("]") else "") for a in arguments.split(",")]
        found[name] = tuple(_TYPES.get(w, ctypes.c_void_p) for w in words)
    return found


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way to compute a product: the library's own words for it, good for the version that gave them."""

    version: int
    words: tuple[int, ...]
    workspace: int


class CublasLt:
    """The library's calls, by whatever has the entry points of `DECLARATIONS`. A call that fails raises CudaError."""

    def __init__(self, library: Any):
        library.cublasLtGetVersion.restype = library.cublasLtGetCudartVersion.restype = ctypes.c_size_t
        self.version: int = library.cublasLtGetVersion()
        self.cuda: int = library.cublasLtGetCudartVersion() // 1000
        for name, types in signatures().items():
            f = getattr(library, name)
            f.argtypes, f.restype, f.errcheck = types, ctypes.c_int, self._checked
            setattr(self, f"_{name}", f)

    # ctypes functions, one for each line of DECLARATIONS
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def _checked(self, code: int, function: Any, arguments: Any) -> int:
        if code:
            words = next((n for n, v in NUMBERS.items() if v == code and "STATUS" in n), f"status {code}")
            raise CudaError(f"cuBLASLt: {words} ({getattr(function, '__name__', 'a call')})", code, words)
        return code

    def made(self, name: str, *arguments: Any) -> int:
        """The handle that cublasLt*Create leaves in its first argument."""
        out = ctypes.c_void_p()
        getattr(self, f"_cublasLt{name}Create")(ctypes.byref(out), *arguments)
        return out.value or 0

    def unmake(self, name: str, handle: int) -> None:
        getattr(self, f"_cublasLt{name}Destroy")(handle)

    def say(self, name: str, handle: int, attribute: str, value: Any) -> None:
        """Set an attribute of a description."""
        getattr(self, f"_cublasLt{name}SetAttribute")(handle, NUMBERS[attribute], ctypes.byref(value), ctypes.sizeof(value))

    def suggested(self, handle: int, *described: int, most: int) -> list[_Result]:
        results, count = (_Result * most)(), ctypes.c_int()
        try:
            self._cublasLtMatmulAlgoGetHeuristic(handle, *described, most, results, ctypes.byref(count))
        except CudaError as error:
            if error.code != NUMBERS["CUBLAS_STATUS_NOT_SUPPORTED"]:
                raise
        return [r for r in results[: count.value] if not r.state]

    def multiply(self, *arguments: Any) -> None:
        self._cublasLtMatmul(*arguments)


@cache
def open_library(driver: int) -> CublasLt:
    """The newest that a driver of this major version runs. Raises MissingTargetError."""
    for path in _paths():
        with suppress(OSError, AttributeError):
            found = CublasLt(ctypes.CDLL(path))
            if found.cuda <= driver:
                return found
    raise MissingTargetError("cuBLASLt is not installed (nvidia-cublas, or CUDA's own libraries), or newer than the driver")


def _paths() -> Iterator[str]:
    if sys.platform != "linux":
        return
    beside = find_spec("nvidia")
    folders = [Path(p) for p in beside.submodule_search_locations or ()] if beside is not None else []
    for version in VERSIONS:
        name = f"libcublasLt.so.{version}"
        yield name  # where it is loaded already, or the system knows it
        yield from (str(f) for folder in folders for f in (folder / f"cu{version}/lib" / name, folder / "cublas/lib" / name))
        yield f"/usr/local/cuda/lib64/{name}"


class Handle:
    """The library on one device; `close` hands it back."""

    def __init__(self, library: CublasLt):
        self.library = library
        self.number = library.made("")

    def close(self) -> None:
        self.library.unmake("", self.number)


class Multiplication:
    """A product as the library describes it. Raises Refused where it has no words for it, CudaError where it does not start."""

    def __init__(self, gpu: Any, library: CublasLt, product: LibraryProduct):
        self.gpu, self.library, self.product = gpu, library, product
        self._lock = threading.Lock()  # a description holds addresses of the call
        self._made: list[tuple[str, int]] = []
        p = product
        number: Any = _NUMBERS[product.accumulator]
        fast = gpu.target.matmul_precision != "highest" and p.left.dtype is float32
        sums = {float32: "32F_FAST_TF32" if fast else "32F", float64: "64F", int32: "32I"}[p.accumulator]
        with gpu.calling():
            self.handle = gpu.library("cublasLt", lambda: Handle(library)).number
            scale = NUMBERS[_KINDS[p.accumulator]]
            self.description = self._new("MatmulDesc", NUMBERS[f"CUBLAS_COMPUTE_{sums}"], scale)
            # ours is left (m x k) times right (n x k) transposed, by rows; theirs A (n x k) times B (k x m), by columns
            self.a, across_a = self._layout(p.right, p.n, p.k)
            self.b, across_b = self._layout(p.left, p.m, p.k)
            self.d, _ = self._layout(p.out, p.m, p.n)
            self.c = self.d if p.addend is None else self._layout(p.addend, p.m, p.n)[0]
            epilogue = {"": NUMBERS["CUBLASLT_EPILOGUE_DEFAULT"] if p.bias is None else 0, "relu": 2, "gelu": 32}[p.activation]
            epilogue |= 0 if p.bias is None else NUMBERS["CUBLASLT_EPILOGUE_BIAS"]
            for what, value in (
                # rows in one piece are the columns of what the library sees, which is the transposed matrix
                ("TRANSA", NUMBERS["CUBLAS_OP_N" if across_a else "CUBLAS_OP_T"]),
                ("TRANSB", NUMBERS["CUBLAS_OP_T" if across_b else "CUBLAS_OP_N"]),
                ("EPILOGUE", epilogue),
            ):
                library.say("MatmulDesc", self.description, f"CUBLASLT_MATMUL_DESC_{what}", ctypes.c_int32(value))
            self._point(lambda x: ALIGNMENT)  # (addresses that will do for asking what there is; each call says its own)
        self.alpha, self.beta = number(int(p.alpha) if number is ctypes.c_int32 else p.alpha), number()
        if p.addend is not None:
            self.beta = number(p.beta)

    def _point(self, at: Callable[[Matrix], int]) -> None:
        """Say where the arrays lie that a description holds the addresses of."""
        pointers = [("BIAS_POINTER", self.product.bias), *zip(("A_SCALE_POINTER", "B_SCALE_POINTER"), self.product.scales)]
        for what, x in pointers:
            if x is not None:
                self.library.say("MatmulDesc", self.description, f"CUBLASLT_MATMUL_DESC_{what}", ctypes.c_uint64(at(x)))

    def __del__(self) -> None:
        while self._made:  # (descriptions are the host's: no device is asked)
            with suppress(CudaError):
                self.library.unmake(*self._made.pop())

    def _new(self, name: str, *arguments: Any) -> int:
        handle = self.library.made(name, *arguments)
        self._made.append((name, handle))
        return handle

    def _layout(self, x: Matrix, m: int, n: int) -> tuple[int, bool]:
        """The layout of a matrix of m x n elements, and whether its columns lie in one piece."""
        across, pitch = x.lines(m, n)
        rows, columns = (m, n) if across else (n, m)
        layout = self._new("MatrixLayout", NUMBERS[_KINDS[x.dtype]], rows, columns, pitch)
        if self.product.batch > 1:
            for what, value in (
                ("BATCH_COUNT", ctypes.c_int32(self.product.batch)),
                ("STRIDED_BATCH_OFFSET", ctypes.c_int64(x.batch)),
            ):
                self.library.say("MatrixLayout", layout, f"CUBLASLT_MATRIX_LAYOUT_{what}", value)
        return layout, across

    def algorithms(self, most: int = 4) -> list[Algorithm]:
        """What the library suggests. Raises Refused where that is nothing."""
        p, library = self.product, self.library
        with self.gpu.calling():
            preference = library.made("MatmulPreference")
            try:
                say = lambda what, value: library.say("MatmulPreference", preference, f"CUBLASLT_MATMUL_PREF_{what}", value)
                say("MAX_WORKSPACE_BYTES", ctypes.c_uint64(WORKSPACE))
                if knobs.deterministic:
                    say("REDUCTION_SCHEME_MASK", ctypes.c_uint32(0))
                for letter, x in zip("ABCD", (p.right, p.left, p.addend or p.out, p.out), strict=True):
                    say(f"MIN_ALIGNMENT_{letter}_BYTES", ctypes.c_uint32(_aligned(x)))
                described = (self.description, self.a, self.b, self.c, self.d, preference)
                found = library.suggested(self.handle, *described, most=most)
            finally:
                library.unmake("MatmulPreference", preference)
        if not found:
            raise Refused("cuBLASLt has no algorithm for it")
        return [Algorithm(library.version, tuple(r.algorithm), int(r.workspace)) for r in found]

    def launch(self, algorithm: Algorithm, addresses: Mapping[str, int], stream: int | None = None) -> None:
        """Put it on a stream; `addresses` has that of every buffer. Raises CudaError."""
        gpu, p = self.gpu, self.product
        queue = gpu.current_stream if stream is None else stream
        at = lambda x: addresses[x.buffer] + x.offset * x.dtype.itemsize
        out = at(p.out)
        words = (ctypes.c_uint64 * 8)(*algorithm.words)
        lent = gpu.allocate(algorithm.workspace, stream=queue) if algorithm.workspace else None
        with gpu.calling(), self._lock:
            self._point(at)
            self.library.multiply(
                self.handle, self.description, ctypes.byref(self.alpha), at(p.right), self.a, at(p.left), self.b,
                ctypes.byref(self.beta), out if p.addend is None else at(p.addend), self.c, out, self.d,
                words, None if lent is None else lent.address, algorithm.workspace, queue,
            )  # fmt: skip

    def __repr__(self) -> str:
        p = self.product
        return f"cuBLASLt {f'{p.batch}x' if p.batch > 1 else ''}{p.m}x{p.n}x{p.k} {p.left.dtype.name}"


def _aligned(x: Matrix) -> int:
    """Bytes at a multiple of which a matrix begins, whose buffer begins at one of ALIGNMENT."""
    return min(ALIGNMENT, (x.offset * x.dtype.itemsize & -(x.offset * x.dtype.itemsize)) or ALIGNMENT)
