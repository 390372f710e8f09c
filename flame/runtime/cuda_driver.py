"""The GPU driver's calls that flame makes: `Driver` says what they mean, `CudaDriver` is NVIDIA's, through ctypes.

    open_driver()       the driver of this machine, initialised; raises MissingTargetError where there is none

Handles (contexts, streams, events, modules, functions, graphs) and device addresses are plain ints, and stream 0 is the
device's default stream. A call that fails raises CudaError with the driver's own name and words for it, or OutOfMemoryError. Some
errors are the end of their context (`FINAL`): the first says what that means, and every later one that it was so before.

The library is used as it lies on every machine with a GPU: a package of bindings would be one more thing to install, and the
call that has to be fast, the launch, is made by native code from its address in any case (`cuda_plan`). `DECLARATIONS` is
written as in `cuda.h` and is all that says how arguments are passed: tests put a library of their own under it, and hold it to
NVIDIA's bindings where those are installed. Another maker's runtime (HIP has the same calls under other names) is another
class that does what `Driver` says.
"""

from __future__ import annotations

import ctypes
import enum
import re
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

from flame.errors import CudaError, MissingTargetError, OutOfMemoryError


class Attribute(enum.IntEnum):
    """What `Driver.attribute` answers, by CUDA's numbers."""

    MAX_THREADS_PER_BLOCK = 1
    MAX_SHARED_MEMORY_PER_BLOCK = 8
    WARP_SIZE = 10
    MULTIPROCESSOR_COUNT = 16
    INTEGRATED = 18
    PCI_BUS_ID = 33
    PCI_DEVICE_ID = 34
    L2_CACHE_SIZE = 38
    MAX_THREADS_PER_MULTIPROCESSOR = 39
    PCI_DOMAIN_ID = 50
    COMPUTE_CAPABILITY_MAJOR = 75
    COMPUTE_CAPABILITY_MINOR = 76
    MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81
    MAX_REGISTERS_PER_MULTIPROCESSOR = 82
    MULTI_GPU_BOARD = 84
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97


class Driver(Protocol):
    """What a runtime must do. Copies, fills and launches are put on a stream and return at once, unless they say otherwise;
    all but the questions about devices need the device's context to be current on the calling thread."""

    #: addresses, for native code: launch(function, 3 x grid, 3 x block, shared, stream, parameters, NULL), current(context),
    #: set_kernel(executable, node, address of a KernelNode), launch_graph(executable, stream)
    launch_address: int
    current_address: int
    set_kernel_address: int
    launch_graph_address: int

    # the exception for a result code of the call `what`; `context`: of the call, where that is not the thread's current one
    def error(self, code: int, what: str, context: int = 0) -> RuntimeError: ...
    def version(self) -> tuple[int, int]: ...
    def device_count(self) -> int: ...
    def device_name(self, device: int) -> str: ...
    def total_memory(self, device: int) -> int: ...
    def attribute(self, device: int, which: Attribute) -> int: ...
    def can_access_peer(self, device: int, peer: int) -> bool: ...

    def retain_context(self, device: int) -> int: ...
    def release_context(self, device: int) -> None: ...
    def set_current(self, context: int) -> None: ...
    def synchronize(self) -> None: ...

    def priority_range(self) -> tuple[int, int]: ...
    def create_stream(self, priority: int = 0) -> int: ...
    def destroy_stream(self, stream: int) -> None: ...
    def synchronize_stream(self, stream: int) -> None: ...
    def stream_is_done(self, stream: int) -> bool: ...
    def wait_event(self, stream: int, event: int) -> None: ...

    def create_event(self, timing: bool = False, blocking: bool = False) -> int: ...
    def destroy_event(self, event: int) -> None: ...
    def record_event(self, event: int, stream: int) -> None: ...
    def synchronize_event(self, event: int) -> None: ...
    def event_is_done(self, event: int) -> bool: ...
    def elapsed_ms(self, start: int, end: int) -> float: ...

    def memory_info(self) -> tuple[int, int]: ...  # free, total
    def allocate(self, nbytes: int) -> int: ...
    def free(self, address: int) -> None: ...  # waits for the device
    def allocate_host(self, nbytes: int) -> int: ...
    def free_host(self, address: int) -> None: ...
    def copy_in(self, destination: int, host: int, nbytes: int, stream: int) -> None: ...
    def copy_out(self, host: int, source: int, nbytes: int, stream: int) -> None: ...
    def copy(self, destination: int, source: int, nbytes: int, stream: int) -> None: ...
    def copy_peer(self, dst: int, dst_context: int, src: int, src_context: int, nbytes: int, stream: int) -> None: ...
    def fill8(self, destination: int, value: int, count: int, stream: int) -> None: ...
    def fill32(self, destination: int, value: int, count: int, stream: int) -> None: ...

    def load_module(self, code: bytes, source: object = None) -> int: ...  # `source`: what it was compiled from
    def unload_module(self, module: int) -> None: ...
    def function(self, module: int, name: str) -> int: ...
    def allow_shared(self, function: int, nbytes: int) -> None: ...
    def launch(
        self, function: int, grid: tuple[int, int, int], threads: int, shared: int, stream: int, parameters: int
    ) -> None: ...  # `parameters`: the address of an array of pointers, one to each parameter's value

    def create_graph(self) -> int: ...
    def add_kernel(
        self, graph: int, after: int, function: int, grid: tuple[int, int, int], threads: int, shared: int, parameters: int
    ) -> int: ...  # a node of the graph, which runs after the node `after` (0: first)
    def instantiate(self, graph: int) -> int: ...
    def destroy_graph(self, graph: int) -> None: ...
    def launch_graph(self, executable: int, stream: int) -> None: ...
    def destroy_executable(self, executable: int) -> None: ...


DECLARATIONS: Final = """
cuInit(unsigned int Flags)
cuDriverGetVersion(int* driverVersion)
cuGetErrorName(CUresult error, const char** pStr)
cuGetErrorString(CUresult error, const char** pStr)
cuDeviceGetCount(int* count)
cuDeviceGetName(char* name, int len, CUdevice dev)
cuDeviceTotalMem(size_t* bytes, CUdevice dev)
cuDeviceGetAttribute(int* pi, CUdevice_attribute attrib, CUdevice dev)
cuDeviceCanAccessPeer(int* canAccessPeer, CUdevice dev, CUdevice peerDev)
cuDevicePrimaryCtxRetain(CUcontext* pctx, CUdevice dev)
cuDevicePrimaryCtxRelease(CUdevice dev)
cuCtxSetCurrent(CUcontext ctx)
cuCtxSynchronize()
cuCtxGetStreamPriorityRange(int* leastPriority, int* greatestPriority)
cuStreamCreateWithPriority(CUstream* phStream, unsigned int flags, int priority)
cuStreamDestroy(CUstream hStream)
cuStreamSynchronize(CUstream hStream)
cuStreamQuery(CUstream hStream)
cuStreamWaitEvent(CUstream hStream, CUevent hEvent, unsigned int Flags)
cuEventCreate(CUevent* phEvent, unsigned int Flags)
cuEventDestroy(CUevent hEvent)
cuEventRecord(CUevent hEvent, CUstream hStream)
cuEventSynchronize(CUevent hEvent)
cuEventQuery(CUevent hEvent)
cuEventElapsedTime(float* pMilliseconds, CUevent hStart, CUevent hEnd)
cuMemGetInfo(size_t* free, size_t* total)
cuMemAlloc(CUdeviceptr* dptr, size_t bytesize)
cuMemFree(CUdeviceptr dptr)
cuMemHostAlloc(void** pp, size_t bytesize, unsigned int Flags)
cuMemFreeHost(void* p)
cuMemcpyHtoDAsync(CUdeviceptr dstDevice, const void* srcHost, size_t ByteCount, CUstream hStream)
cuMemcpyDtoHAsync(void* dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream)
cuMemcpyDtoDAsync(CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream)
cuMemcpyPeerAsync(CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice, CUcontext srcContext, size_t ByteCount, CUstream hStream)
cuMemsetD8Async(CUdeviceptr dstDevice, unsigned char uc, size_t N, CUstream hStream)
cuMemsetD32Async(CUdeviceptr dstDevice, unsigned int ui, size_t N, CUstream hStream)
cuModuleLoadData(CUmodule* module, const void* image)
cuModuleUnload(CUmodule hmod)
cuModuleGetFunction(CUfunction* hfunc, CUmodule hmod, const char* name)
cuFuncSetAttribute(CUfunction hfunc, CUfunction_attribute attrib, int value)
cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ, unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream, void** kernelParams, void** extra)
cuGraphCreate(CUgraph* phGraph, unsigned int flags)
cuGraphAddKernelNode(CUgraphNode* phGraphNode, CUgraph hGraph, const CUgraphNode* dependencies, size_t numDependencies, const CUDA_KERNEL_NODE_PARAMS* nodeParams)
cuGraphInstantiate(CUgraphExec* phGraphExec, CUgraph hGraph, unsigned long long flags)
cuGraphExecKernelNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS* nodeParams)
cuGraphDestroy(CUgraph hGraph)
cuGraphLaunch(CUgraphExec hGraphExec, CUstream hStream)
cuGraphExecDestroy(CUgraphExec hGraphExec)
"""  # noqa: E501

#: entry points whose name carries the version of their interface (`cuda.h` defines the plain name to be this one)
_VERSIONED: Final = {
    name: f"{name}_v2"
    for name in (
        "cuDeviceTotalMem cuDevicePrimaryCtxRelease cuStreamDestroy cuEventDestroy cuMemGetInfo cuMemAlloc cuMemFree "
        "cuMemcpyHtoDAsync cuMemcpyDtoHAsync cuMemcpyDtoDAsync cuGraphAddKernelNode cuGraphExecKernelNodeSetParams"
    ).split()
} | {"cuGraphInstantiate": "cuGraphInstantiateWithFlags"}

_TYPES: Final[dict[str, Any]] = {
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "unsigned char": ctypes.c_ubyte,
    "unsigned long long": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
    "CUdeviceptr": ctypes.c_uint64,
    "CUdevice": ctypes.c_int,
    # enumerations
    "CUresult": ctypes.c_int,
    "CUdevice_attribute": ctypes.c_int,
    "CUfunction_attribute": ctypes.c_int,
    # all others are pointers: to a result, to host memory, or the driver's own objects
}

SUCCESS: Final = 0
OUT_OF_MEMORY: Final = 2
NOT_READY: Final = 600
#: errors after which nothing works in their context, of whatever the process asks it: a wild pointer, a launch that took too long,
#: a broken stack, instruction, alignment, address space or program counter, a launch that failed, an assertion, and the like
FINAL: Final = frozenset((226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911))
#: questions, for which "not ready" is an answer
_QUERIES: Final = frozenset(("cuStreamQuery", "cuEventQuery"))

_STREAM_NON_BLOCKING: Final = 1
_EVENT_BLOCKING_SYNC: Final = 1
_EVENT_DISABLE_TIMING: Final = 2
_FUNC_MAX_DYNAMIC_SHARED: Final = 8
_HOST_PORTABLE: Final = 1


class KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS: a launch, as a node of a graph has it."""

    _fields_ = [
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("parameters", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    ]


def signatures() -> dict[str, tuple[Any, ...]]:
    """Every function's argument types for ctypes, as `DECLARATIONS` has them."""
    found = {}
    for name, arguments in re.findall(r"^(\w+)\((.*)\)$", DECLARATIONS, re.MULTILINE):
        words = [re.sub(r"\s*\w+$", "", a).strip() for a in arguments.split(",") if a.strip()]
        found[name] = tuple(_TYPES.get(w, ctypes.c_void_p) for w in words)
    return found


def symbol(name: str) -> str:
    """The entry point's name in the library."""
    return _VERSIONED.get(name, name)


class CudaDriver:
    """The calls of `Driver` by a library that has the entry points of `DECLARATIONS`: libcuda, or a test's own.

    Raises MissingTargetError where the library lacks one or finds no device to work with.
    """

    def __init__(self, library: Any):
        self._library = library
        self._thread = threading.local()  #: the current context, as it was set by `set_current`
        self._lost: dict[int, str] = {}  #: context -> what found out first that it was
        for name, types in signatures().items():
            try:
                f = getattr(library, symbol(name))
            except AttributeError:
                raise MissingTargetError(
                    f"the CUDA driver on this machine is too old: it has no {symbol(name)}; flame needs CUDA 12 or newer"
                ) from None
            f.argtypes = types
            f.restype = ctypes.c_int
            if not name.startswith("cuGetError"):
                f.errcheck = self._checker(name)
            setattr(self, f"_{name}", f)
        try:
            self._cuInit(0)
        except CudaError as error:
            raise MissingTargetError(f"the CUDA driver does not start: {error}") from error
        self.launch_address = _address(self._cuLaunchKernel)
        self.current_address = _address(self._cuCtxSetCurrent)
        self.set_kernel_address = _address(self._cuGraphExecKernelNodeSetParams)
        self.launch_graph_address = _address(self._cuGraphLaunch)

    # ctypes functions, one for each line of DECLARATIONS
    def __getattr__(self, name: str) -> Callable[..., int]:
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def _checker(self, name: str) -> Callable[[int, Any, Any], int]:
        accepted = (SUCCESS, NOT_READY) if name in _QUERIES else (SUCCESS,)

        def check(code: int, function: Any, arguments: Any) -> int:
            if code not in accepted:
                raise self.error(code, name)
            return code

        return check

    def error(self, code: int, what: str, context: int = 0) -> RuntimeError:
        """The exception for a result code of the call `what`, in that context or the thread's current one."""
        name, text = self._words(self._cuGetErrorName, code), self._words(self._cuGetErrorString, code)
        if code == OUT_OF_MEMORY:
            return OutOfMemoryError(f"CUDA out of memory: {text or name} ({what})")
        said = f"CUDA error {name or code}: {text or 'an error that the driver has no words for'} ({what})"
        if code in FINAL:
            said += self._final(context or getattr(self._thread, "context", 0), what)
        return CudaError(said, code, name)

    def _final(self, context: int, what: str) -> str:
        """What an error means that is the end of its context."""
        before = self._lost.get(context)
        if before is None:
            self._lost[context] = what
            return (
                ". The device's context is lost with it: no tensor there can be read any more, and every later call on that device "
                "fails in this process. Start a new one, from what was saved."
            )
        return f". The device's context was lost before, as {before} found out: only a new process can use the device again."

    def _words(self, ask: Callable[..., int], code: int) -> str:
        text = ctypes.c_char_p()
        return text.value.decode() if ask(code, ctypes.byref(text)) == SUCCESS and text.value is not None else ""

    def _int(self, call: Callable[..., int], *arguments: Any) -> int:
        """The int that a call leaves in its first argument."""
        out = ctypes.c_int()
        call(ctypes.byref(out), *arguments)
        return out.value

    def _word(self, call: Callable[..., int], *arguments: Any) -> int:
        """The address, size or handle that a call leaves in its first argument."""
        out = ctypes.c_uint64()
        call(ctypes.byref(out), *arguments)
        return out.value

    # ---- devices

    def version(self) -> tuple[int, int]:
        n = self._int(self._cuDriverGetVersion)
        return n // 1000, n % 1000 // 10

    def device_count(self) -> int:
        return self._int(self._cuDeviceGetCount)

    def device_name(self, device: int) -> str:
        text = ctypes.create_string_buffer(256)
        self._cuDeviceGetName(text, len(text), device)
        return text.value.decode()

    def total_memory(self, device: int) -> int:
        return self._word(self._cuDeviceTotalMem, device)

    def attribute(self, device: int, which: Attribute) -> int:
        return self._int(self._cuDeviceGetAttribute, int(which), device)

    def can_access_peer(self, device: int, peer: int) -> bool:
        return bool(self._int(self._cuDeviceCanAccessPeer, device, peer))

    # ---- contexts

    def retain_context(self, device: int) -> int:
        return self._word(self._cuDevicePrimaryCtxRetain, device)

    def release_context(self, device: int) -> None:
        self._cuDevicePrimaryCtxRelease(device)

    def set_current(self, context: int) -> None:
        self._thread.context = context
        self._cuCtxSetCurrent(context)

    def synchronize(self) -> None:
        self._cuCtxSynchronize()

    # ---- streams and events

    def priority_range(self) -> tuple[int, int]:
        """(least, greatest) urgency: of the numbers, the lower is the more urgent."""
        least, greatest = ctypes.c_int(), ctypes.c_int()
        self._cuCtxGetStreamPriorityRange(ctypes.byref(least), ctypes.byref(greatest))
        return least.value, greatest.value

    def create_stream(self, priority: int = 0) -> int:
        return self._word(self._cuStreamCreateWithPriority, _STREAM_NON_BLOCKING, priority)

    def destroy_stream(self, stream: int) -> None:
        self._cuStreamDestroy(stream)

    def synchronize_stream(self, stream: int) -> None:
        self._cuStreamSynchronize(stream)

    def stream_is_done(self, stream: int) -> bool:
        return self._cuStreamQuery(stream) == SUCCESS

    def wait_event(self, stream: int, event: int) -> None:
        self._cuStreamWaitEvent(stream, event, 0)

    def create_event(self, timing: bool = False, blocking: bool = False) -> int:
        flags = (0 if timing else _EVENT_DISABLE_TIMING) | (_EVENT_BLOCKING_SYNC if blocking else 0)
        return self._word(self._cuEventCreate, flags)

    def destroy_event(self, event: int) -> None:
        self._cuEventDestroy(event)

    def record_event(self, event: int, stream: int) -> None:
        self._cuEventRecord(event, stream)

    def synchronize_event(self, event: int) -> None:
        self._cuEventSynchronize(event)

    def event_is_done(self, event: int) -> bool:
        return self._cuEventQuery(event) == SUCCESS

    def elapsed_ms(self, start: int, end: int) -> float:
        out = ctypes.c_float()
        self._cuEventElapsedTime(ctypes.byref(out), start, end)
        return out.value

    # ---- memory

    def memory_info(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._cuMemGetInfo(ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, nbytes: int) -> int:
        return self._word(self._cuMemAlloc, nbytes)

    def free(self, address: int) -> None:
        self._cuMemFree(address)

    def allocate_host(self, nbytes: int) -> int:
        return self._word(self._cuMemHostAlloc, nbytes, _HOST_PORTABLE)

    def free_host(self, address: int) -> None:
        self._cuMemFreeHost(address)

    def copy_in(self, destination: int, host: int, nbytes: int, stream: int) -> None:
        self._cuMemcpyHtoDAsync(destination, host, nbytes, stream)

    def copy_out(self, host: int, source: int, nbytes: int, stream: int) -> None:
        self._cuMemcpyDtoHAsync(host, source, nbytes, stream)

    def copy(self, destination: int, source: int, nbytes: int, stream: int) -> None:
        self._cuMemcpyDtoDAsync(destination, source, nbytes, stream)

    def copy_peer(self, dst: int, dst_context: int, src: int, src_context: int, nbytes: int, stream: int) -> None:
        self._cuMemcpyPeerAsync(dst, dst_context, src, src_context, nbytes, stream)

    def fill8(self, destination: int, value: int, count: int, stream: int) -> None:
        self._cuMemsetD8Async(destination, value, count, stream)

    def fill32(self, destination: int, value: int, count: int, stream: int) -> None:
        self._cuMemsetD32Async(destination, value, count, stream)

    # ---- kernels

    def load_module(self, code: bytes, source: object = None) -> int:
        return self._word(self._cuModuleLoadData, code)

    def unload_module(self, module: int) -> None:
        self._cuModuleUnload(module)

    def function(self, module: int, name: str) -> int:
        return self._word(self._cuModuleGetFunction, module, name.encode())

    def allow_shared(self, function: int, nbytes: int) -> None:
        """Let launches of the function ask for so many bytes of shared memory (48 KiB need no asking)."""
        self._cuFuncSetAttribute(function, _FUNC_MAX_DYNAMIC_SHARED, nbytes)

    def launch(
        self, function: int, grid: tuple[int, int, int], threads: int, shared: int, stream: int, parameters: int
    ) -> None:
        self._cuLaunchKernel(function, *grid, threads, 1, 1, shared, stream, parameters, None)

    # ---- graphs

    def create_graph(self) -> int:
        return self._word(self._cuGraphCreate, 0)

    def add_kernel(
        self, graph: int, after: int, function: int, grid: tuple[int, int, int], threads: int, shared: int, parameters: int
    ) -> int:
        launch = KernelNode(function, grid, (threads, 1, 1), shared, parameters)
        before = ctypes.c_uint64(after)
        earlier = (ctypes.byref(before), 1) if after else (None, 0)
        return self._word(self._cuGraphAddKernelNode, graph, *earlier, ctypes.byref(launch))

    def instantiate(self, graph: int) -> int:
        return self._word(self._cuGraphInstantiate, graph, 0)

    def destroy_graph(self, graph: int) -> None:
        self._cuGraphDestroy(graph)

    def launch_graph(self, executable: int, stream: int) -> None:
        self._cuGraphLaunch(executable, stream)

    def destroy_executable(self, executable: int) -> None:
        self._cuGraphExecDestroy(executable)


def _address(function: Any) -> int:
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found is not None
    return found


def open_driver() -> Driver:
    """NVIDIA's driver, initialised. Raises MissingTargetError, with what to do, where there is none."""
    names = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
    for name in names:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return CudaDriver(library)
    raise MissingTargetError(
        f"there is no CUDA driver on this machine ({names[0]} can't be loaded), so there is no GPU that flame can run on: "
        "install NVIDIA's driver (580 or newer for CUDA 13, 525 for CUDA 12), or run on device 'cpu'"
    )
