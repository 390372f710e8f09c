"""The tensor: an array, the memory it shares, and what autograd and capture remember of it.

    Tensor  = array (a NumPy array; None while it is pending in a captured segment)
              storage (what views share: a version counter; made at need)
              node (gradient edge: who made it), view (base and chain of view primitives), ref (identity inside a capture)
    Storage = version, pending (the capture run that owes it a value), volatile (its memory was handed out)

This file holds data, conversion and reading. The tape is `flame.autograd`, the operations are `flame.functions`; both hang
their methods on this class. Every read of values by a user goes through `Tensor._read`, which ends a captured segment if it
must; kernels read `Tensor._data()`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flame import dtypes
from flame.dtypes import dtype
from flame.formats import (
    channels_last,
    channels_last_3d,
    contiguous_format,
    layout,
    lies_in,
    order,
    preserve_format,
    strided,
)
from flame.primitive import Number, Spec, force, placement
from flame.printing import represent
from flame.runtime.device import device
from flame.runtime.device_array import DeviceArray, device_of, to_device
from flame.runtime.gpu_copy import duplicate, host
from flame.slots import with_slots


class Size(tuple):
    """The shape of a tensor."""

    def numel(self) -> int:
        n = 1
        for d in self:
            n *= d
        return n

    def __repr__(self) -> str:
        return f"flame.Size({list(self)})"

    def __getitem__(self, i: Any) -> Any:
        got = tuple.__getitem__(self, i)
        return Size(got) if isinstance(i, slice) else got

    def __add__(self, other: Any) -> Size:
        return Size(tuple.__add__(self, other))


class _Size(int):
    """How many elements there are; called, the sizes of dimensions."""

    _shape: tuple[int, ...]

    def __call__(self, dim: int | None = None) -> Any:
        return Size(self._shape) if dim is None else self._shape[dim]

    def __reduce__(self) -> tuple:
        return (int, (int(self),))


_new_int: Any = int.__new__


class Storage:
    """Memory that tensors share."""

    __slots__ = ("version", "pending", "volatile", "window", "keepers", "__weakref__")

    def __init__(self) -> None:
        self.version = 0
        self.pending: Any = None
        self.volatile: bool | str = False
        self.window: Any = None  #: capture's first window of this memory, while a run tracks it
        self.keepers: list | None = None  #: weakly, what wants to be told before this memory is written (`keep_copies`)

    def hand_out(self, how: bool | str = True) -> None:
        """Somebody outside may write this memory from now on, and nobody will tell."""
        self.volatile = how
        for w in self.keepers or ():
            keeper = w()
            if keeper is not None:
                keeper.handed_out(self)


class View(NamedTuple):
    """How a tensor is seen through its base: primitives applied in order. `version` is the storage's when it was made."""

    base: Tensor
    chain: tuple[tuple[Any, tuple], ...]  #: (primitive, sorted params items)
    version: int


if TYPE_CHECKING:
    _Slots = object
else:
    _Slots = with_slots(
        ("_array",),
        tuple("_storage _grad _node _accumulator _view _hooks _ref _trace _known _batching _requires_grad".split()),
    )


#: specs that were asked for lately: shapes come again, and making one takes longer than finding it
_specs: dict[tuple, Spec] = {}
_MOST_SPECS = 4096


class Tensor(_Slots):
    """A multi-dimensional array of one dtype that knows how to differentiate what was done to it.

    Whoever makes one without `wrap` sets `_array`; what stands below it is None in a new one.
    """

    _array: Any
    _storage: Storage | None
    _grad: Tensor | None
    _node: tuple | None
    _accumulator: Any
    _view: View | None
    _hooks: Any
    _ref: Any  #: identity inside a captured segment
    _trace: Any  #: the memory window that it shows there
    _known: Any  #: how it last entered a segment from outside
    _batching: Any  #: the interpreter that it is batched under (see flame.func.batched)
    _requires_grad: bool | None  #: (None: no)
    _retains_grad = False
    _reassigned = 0  #: how often it was given other memory (`t.data = other`)
    _inference = False
    _floating = False  #: made by flame, for no device in particular: it goes where it is used
    __array_priority__ = 1000.0
    __hash__ = object.__hash__

    if TYPE_CHECKING:  # what other files hang on this class

        def __getattr__(self, name: str) -> Any: ...

        __add__: Any
        __radd__: Any
        __sub__: Any
        __rsub__: Any
        __mul__: Any
        __rmul__: Any
        __truediv__: Any
        __rtruediv__: Any
        __floordiv__: Any
        __mod__: Any
        __pow__: Any
        __rpow__: Any
        __matmul__: Any
        __and__: Any
        __or__: Any
        __xor__: Any
        __lt__: Any
        __le__: Any
        __gt__: Any
        __ge__: Any
        __neg__: Any
        __invert__: Any
        __abs__: Any
        __eq__: Any  # type: ignore[assignment]
        __ne__: Any  # type: ignore[assignment]
        __pos__: Any
        __contains__: Any
        __getitem__: Any
        __setitem__: Any
        __iter__: Any
        requires_grad: Any
        grad: Any
        grad_fn: Any
        is_leaf: Any
        data: Any
        T: Any
        mT: Any

    def __new__(cls, data: Any = None, *more: Any, device: Any = None) -> Any:
        """`Tensor(sequence or array)` copies it as the default dtype; `Tensor(2, 3)` is uninitialised of that shape."""
        t = object.__new__(cls)
        d = dtypes.get_default_dtype().numpy
        if data is None:
            t._array = np.empty((0,), d)
        elif isinstance(data, int) and not isinstance(data, bool):
            t._array = np.zeros((data, *more), d)
        else:
            if more:
                raise TypeError("Tensor() takes sizes or one sequence")
            t._array = np.array(data._read() if isinstance(data, Tensor) else data, d, order="C")
        return t

    # ---------------------------------------------------------------- memory

    def storage_of(self) -> Storage:
        """The storage, made at its first need."""
        s = self._storage
        if s is None:
            s = self._storage = Storage()
        return s

    def _data(self) -> Any:
        """The array as kernels read it."""
        a = self._array
        if a is None or (self._storage is not None and self._storage.pending is not None):
            a = self._settle()
        return a

    def _handed_out(self) -> bool:
        """Whether somebody outside may still write this memory: it was handed out, and the array is held elsewhere yet.

        Views of an array hold the array itself, so where nothing but this tensor refers to it, nothing else shows its memory.
        """
        st = self._storage
        if st is None or not st.volatile:
            return False
        a = self._array
        if st.volatile is not True or isinstance(a.base, np.ndarray) or sys.getrefcount(a) > 3:
            return True  # (three: this tensor, the name here, the argument of getrefcount)
        st.volatile = False
        return False

    def _settle(self) -> Any:
        """Have the capture run that owes this tensor a value deliver it."""
        owner = self._owner()
        if owner is not None:
            owner.settle(self)
        if self._array is None:
            raise RuntimeError(
                "this tensor belongs to a compiled call that is still running on another thread, or that raised before it was "
                "computed; use it on the thread that runs the compiled function"
            )
        return self._array

    def _owner(self) -> Any:
        if self._ref is not None:
            return self._ref.run
        return self._storage.pending if self._storage is not None else None

    def _read(self) -> Any:
        """The array as a user reads its values, on the host: a captured segment that owes them ends here."""
        run = force.interpreter
        if run is not None:
            run.read(self)
        a = self._data()
        return host(a) if type(a) is DeviceArray else a

    # ---------------------------------------------------------------- what it is

    @property
    def shape(self) -> Size:
        a = self._array
        return Size(a.shape if a is not None else self._ref.spec.shape)

    @property
    def ndim(self) -> int:
        a = self._array
        return a.ndim if a is not None else len(self._ref.spec.shape)

    @property
    def dtype(self) -> dtype:
        a = self._array
        return dtypes._BY_NUMPY[a.dtype] if a is not None else self._ref.spec.dtype

    @property
    def spec(self) -> Spec:
        return spec_of(self)

    @property
    def device(self) -> device:
        a = self._array
        return device_of(a) if a is not None else self._ref.capture.run.device

    @property
    def layout(self) -> layout:
        return strided

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    element_size = lambda self: self.dtype.itemsize

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    is_sparse = False
    is_meta = False
    is_quantized = False
    is_nested = False
    is_xpu = False
    is_sparse_csr = is_mkldnn = is_vulkan = is_xla = is_ipu = is_mtia = is_maia = False
    is_mps = False
    name = None

    @property
    def size(self) -> Any:
        """`x.size()` is the shape and `x.size(d)` one size of it, as PyTorch has it; `x.size` alone counts the elements, as the
        array API standard and NumPy have it."""
        a = self._array
        shape = self.shape if a is None else a.shape
        n = _new_int(_Size, math.prod(shape))
        n._shape = shape
        return n

    def dim(self) -> int:
        return self.ndim

    ndimension = dim

    def numel(self) -> int:
        return self.shape.numel()

    nelement = numel

    @property
    def nbytes(self) -> int:
        return self.spec.nbytes

    def stride(self, dim: int | None = None) -> Any:
        """Steps in elements between neighbours along each dimension (or one of them)."""
        a = self._layout()
        strides = a.strides if a.size else _contiguous_strides(a.shape, a.itemsize)  # (NumPy gives an empty array any)
        s = tuple(x // a.itemsize for x in strides)
        return s if dim is None else s[dim]

    def storage_offset(self) -> int:
        a = self._layout()
        if type(a) is DeviceArray:
            return a.start
        base = a
        while isinstance(base.base, np.ndarray):
            base = base.base
        return (a.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // a.itemsize

    def is_contiguous(self, memory_format: Any = contiguous_format) -> bool:
        """Whether the elements lie densely in row-major order, or in that of a memory format."""
        if memory_format is contiguous_format or memory_format is None:
            return bool(self._layout().flags.c_contiguous)
        if memory_format is preserve_format:
            raise RuntimeError("is_contiguous: preserve memory format is unsupported by the contiguous operator")
        if memory_format in (channels_last, channels_last_3d) and self.ndim != 4 + (memory_format is channels_last_3d):
            return False
        return lies_in(order(memory_format, self.ndim, "is_contiguous"), self.shape, self.stride())

    def _layout(self) -> Any:
        """An array with this tensor's strides. While pending, one is derived from the view chain, on no memory."""
        if self._array is not None:
            return self._array
        trace, itemsize = self._trace, self.dtype.itemsize
        if trace is None or not (trace.chain or (trace.window is not None and trace.window.external is not None)):
            return _phantom(self.shape, self.dtype, _contiguous_strides(self.shape, itemsize))
        w = trace.window
        if w is None:  # a view that capture has not linked to its window yet
            x = trace.root
            base = x._layout()
            base = base.layout if type(base) is DeviceArray else base
            for p, params in trace.chain[0 if x._trace is None else len(x._trace.chain) :]:
                base = p.eager(base, **dict(params))
            return base
        if w.external is not None:
            base = w.external._array
            base = base.layout if type(base) is DeviceArray else base
        else:
            base = _phantom(w.spec.shape, w.spec.dtype, _contiguous_strides(w.spec.shape, itemsize))
        for p, params in trace.chain:
            base = p.eager(base, **dict(params))
        return base

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        return self.dtype.is_complex

    def is_signed(self) -> bool:
        return self.dtype.is_signed

    def is_inference(self) -> bool:
        return self._inference

    @property
    def _version(self) -> int:
        return version(self)

    # ---------------------------------------------------------------- reading

    def item(self) -> Number:
        """The value of a one-element tensor as a Python number. Raises RuntimeError for any other size."""
        if self.numel() != 1:
            raise RuntimeError(f"a Tensor with {self.numel()} elements cannot be converted to Scalar")
        return self._read().item() if self.dtype not in dtypes.FOREIGN else float(self._read().reshape(()))

    def tolist(self) -> Any:
        a = self._read()
        return (a.astype(np.float32) if self.dtype in dtypes.FOREIGN else a).tolist()

    def __bool__(self) -> bool:
        if self.numel() != 1:
            n = self.numel()
            raise RuntimeError(f"Boolean value of Tensor with {'no values' if n == 0 else 'more than one value'} is ambiguous")
        return bool(self._read().reshape(()))

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.is_floating_point or self.numel() != 1:
            raise TypeError("only integer tensors of a single element can be converted to an index")
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __repr__(self) -> str:
        return represent(self)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 and spec else repr(self)

    # ---------------------------------------------------------------- copying and pickling

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self._node is not None or (self._ref is not None and self._ref.edge is not None and not self.is_leaf):
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at the moment"
            )
        if id(self) in memo:
            return memo[id(self)]
        if placement.gpu and self.is_cuda:
            new = wrap(duplicate(self._data()), type(self))
        else:
            new = wrap(np.array(self._read(), order="C"), type(self))
        memo[id(self)] = new
        new._requires_grad = self._requires_grad
        if self._grad is not None:
            new._grad = self._grad.__deepcopy__(memo)
        for k, v in self.__dict__.items():
            if not k.startswith("_"):
                new.__dict__[k] = v
        return new

    def __reduce_ex__(self, protocol: Any) -> tuple:
        a = np.ascontiguousarray(self._read()).reshape(self.shape)
        where = str(self.device) if placement.gpu and self.is_cuda else ""
        return (_rebuild, (type(self), a.tobytes(), tuple(a.shape), self.dtype.name, self._requires_grad, where))


def spec_of(t: Tensor) -> Spec:
    a = t._array
    if a is not None:
        key = (a.shape, a.dtype)
        found = _specs.get(key)
        if found is None:
            found = _new_spec(key)
        return found
    r = t._ref
    if r is None:
        return t.spec  # of a kind that says so itself, as a batch of examples does
    spec = r.spec
    return spec if type(spec) is Spec else spec.now


def _new_spec(key: tuple) -> Spec:
    if len(_specs) >= _MOST_SPECS:
        _specs.clear()
    found = _specs[key] = Spec(key[0], dtypes._BY_NUMPY[key[1]])
    return found


def version(t: Tensor) -> int:
    """How often the memory that a tensor shows was written."""
    r = t._ref
    if r is not None and r.run is not None:
        return r.run.version_of(t)
    s = t._storage
    return 0 if s is None else s.version


def _rebuild(cls: type, data: bytes, shape: tuple[int, ...], name: str, requires_grad: bool, where: str = "") -> Tensor:
    """What was pickled, on the device that it was on. Raises MissingTargetError where that is a GPU and there is none."""
    t = wrap(np.frombuffer(bytearray(data), dtypes.BY_NAME[name].numpy).reshape(shape), cls)
    if where:
        t = wrap(t.detach().to(where)._data(), cls)
    t._requires_grad = requires_grad
    return t


def _contiguous_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    out, step = [], itemsize
    for d in reversed(shape):
        out.append(step)
        step *= max(d, 1)
    return tuple(reversed(out))


def _phantom(shape: Sequence[int], d: dtype, strides: tuple[int, ...]) -> np.ndarray:
    """An array of a shape and strides over one element: for asking how views of it lie, not for reading."""
    return np.lib.stride_tricks.as_strided(np.empty((), d.numpy), tuple(shape), strides, writeable=False)


_new = object.__new__


def floating(array: np.ndarray) -> Tensor:
    """A tensor that is used wherever its neighbours are."""
    t = wrap(array)
    t._floating = True
    return t


def beside(t: Tensor, array: np.ndarray) -> Tensor:
    """A tensor of values that were computed on the host, on the device of another."""
    a = t._array
    return wrap(to_device(a.gpu, array) if type(a) is DeviceArray else array)


def wrap(array: Any, cls: type = Tensor) -> Any:
    """A tensor over a NumPy array, without a copy."""
    t: Any = _new(cls)
    t._array = array
    return t


def method(*names: str) -> Callable:
    """Hang a function on Tensor under its own name, or under those given."""

    def hang(f: Callable) -> Callable:
        for n in names or (f.__name__,):
            setattr(Tensor, n, f)
        return f

    return hang


def is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)
