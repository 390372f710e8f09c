"""Triton's interpreter over NumPy memory, in a process that also compiles.

Triton decides at its import, by an environment variable, whether functions are compiled or interpreted. Here compiled is the
rule, and `interpret` builds what the other mode would have built, for one run: the kernel's plain function is handed to
`InterpretedFunction`, and for the length of the run every compiled function it may call (the module's own, and those of the
standard library such as `tl.sum`) stands aside for its plain one.

The interpreter itself is put right where it departs from what GPUs do: bfloat16 rounds to nearest even (it truncates),
`tl.dot` of bfloat16 and 8-bit floats multiplies numbers (it multiplies their bit patterns), integer `tl.dot` wraps, a scalar
condition may mask a tile, functions of `libdevice` exist, and reductions with a function of one's own fold halves of a tile
instead of one element at a time, as a GPU does, and faster. In older versions ~ of unsigned integers and run-time loop bounds
fail with NumPy 2.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

from flame.compiler.to_triton import TritonSource
from flame.dtypes import from_numpy_dtype
from flame.errors import CompileError
from flame.ops import special
from flame.ops.machine import NumpyMachine

_one_at_a_time = threading.Lock()


class _Memory:
    """An array as the interpreter wants its tensors."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.dtype = from_numpy_dtype(array.dtype).name
        self.device = "cpu"

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> _Memory:
        return self

    def cpu(self) -> _Memory:
        return self

    def new_empty(self, *_: Any, **__: Any) -> _Memory:
        return self

    def set_(self, *_: Any) -> _Memory:
        return self

    def copy_(self, _: Any) -> None:
        pass

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(s // self.array.itemsize for s in self.array.strides)


class _Plain:
    """A compiled function's plain one, called as the interpreter calls both its kinds."""

    def __init__(self, fn: Any):
        self.fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)


@contextmanager
def _instead(places: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Set attributes (or the entries of a dict) for a while."""
    before = []
    try:
        for where, name, value in places:
            if isinstance(where, dict):
                before.append((where, name, where[name]))
                where[name] = value
            else:
                before.append((where, name, getattr(where, name)))
                setattr(where, name, value)
        yield
    finally:
        for where, name, value in reversed(before):
            if isinstance(where, dict):
                where[name] = value
            else:
                setattr(where, name, value)


def interpret(module: dict[str, Any], source: TritonSource, arguments: list[Any], grid: tuple[int, int, int]) -> None:
    """Run the kernel of an executed source module on arrays and integers."""
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction, mangle_type

    mangle_type(1)  # its first call imports a dialect that wants to find all functions compiled
    kernel = module[source.entry].fn
    given = [_Memory(a) if isinstance(a, np.ndarray) else a for a in arguments]
    places: list[tuple[Any, str, Any]] = []
    plain: dict[int, _Plain] = {}
    for where in (module, tl, tl.standard):
        space = where if isinstance(where, dict) else vars(where)
        for name, f in space.items():
            if isinstance(f, JITFunction):
                places.append((where, name, plain.setdefault(id(f), _Plain(f.fn))))
    if "libdevice" in module:
        module["libdevice"] = _libdevice(tl, interpreter)
    module["core"] = tl.core  # so that what the standard library calls is interpreted too
    places += _repairs(tl, interpreter)
    with _one_at_a_time, _instead(places), np.errstate(all="ignore"):
        try:
            interpreter.InterpretedFunction(kernel)[grid](*given, **source.constexprs)
        except Exception as error:
            raise CompileError(f"{source.entry}: Triton's interpreter: {error}\n{source.text}") from error
        finally:
            interpreter.InterpretedFunction.rewritten_fn.pop(kernel, None)


def _libdevice(tl: Any, interpreter: Any) -> Any:
    """The functions of `libdevice` that generated code calls, by NumPy."""
    machine = NumpyMachine()
    others: dict[str, Callable[..., Any]] = {name: getattr(special, name) for name in ("erf", "erfc", "lgamma")}
    others["nearbyint"] = np.rint

    class Library:
        def __getattr__(self, name: str) -> Any:
            def call(*x: Any) -> Any:
                like = next(a for a in x if isinstance(a, tl.tensor))
                kind = like.handle.data.dtype
                arrays = [a.handle.data if isinstance(a, tl.tensor) else np.asarray(a, kind) for a in x]
                made = others[name](*arrays) if name in others else machine.libm(name, *arrays)
                out = np.asarray(made, kind).reshape(np.broadcast_shapes(*(a.shape for a in arrays)))
                shaped = next((a.type for a in x if isinstance(a, tl.tensor) and a.handle.data.shape == out.shape), like.type)
                return tl.tensor(interpreter.TensorHandle(out, like.dtype.scalar), shaped)

            return call

    return Library()


def _repairs(tl: Any, interpreter: Any) -> list[tuple[Any, str, Any]]:
    """What the interpreter gets wrong, put right: (where, name, value)."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast_impl, reduce_slowly = builder.cast_impl, interpreter.ReduceOps.generic_reduce
    patch_tensor = interpreter._patch_lang_tensor

    narrow = {
        tl.bfloat16: ml_dtypes.bfloat16, tl.float8e4nv: ml_dtypes.float8_e4m3fn, tl.float8e5: ml_dtypes.float8_e5m2,
    }  # fmt: skip

    def values(x: Any) -> np.ndarray:
        kind = narrow.get(x.dtype.scalar)
        return x.data if kind is None else x.data.view(kind).astype(np.float32)

    def cast(self: Any, src: Any, to: Any) -> Any:
        kinds = (src.dtype.scalar, to.scalar)
        if tl.bfloat16 not in kinds or kinds[0] == kinds[1]:
            return cast_impl(self, src, to)
        numbers = values(src)
        if kinds[1] == tl.bfloat16:
            return handle(numbers.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16), to.scalar)
        return cast_impl(self, handle(numbers, tl.float32), to)

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        """x * y + z, what the product loses taken along in float64 (Dekker's product)."""
        a, b, c = x.data, y.data, z.data
        if a.dtype != np.float64:
            return handle(a * b + c, z.dtype.scalar)
        p = a * b
        parts = [(t := v * 134217729.0) - (t - v) for v in (a, b)]
        (a1, b1), (a2, b2) = parts, (a - parts[0], b - parts[1])
        lost = ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2
        s = p + c
        back = s - p
        rest = (p - (s - back)) + (c - back) + lost
        return handle(np.where(np.isfinite(rest), s + rest, s), z.dtype.scalar)

    def dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        product = np.matmul(values(a).astype(d.data.dtype), values(b).astype(d.data.dtype))
        return handle(product + d.data, d.dtype.scalar)

    def reduce(self: Any, tiles: Any) -> Any:
        axis = self.axis
        if axis is None or self.keep_dims:
            return reduce_slowly(self, tiles)
        parts = [t.handle.data for t in tiles]
        kinds = [t.dtype for t in tiles]

        def tensor(x: np.ndarray, kind: Any) -> Any:
            return tl.tensor(handle(np.ascontiguousarray(x), kind.scalar), tl.block_type(kind.scalar, list(x.shape)))

        while parts[0].shape[axis] > 1:
            halves = [np.split(p, 2, axis) for p in parts]
            left, right = ([tensor(h[i], k) for h, k in zip(halves, kinds)] for i in (0, 1))
            made = self.combine_fn.fn(*left, *right)
            parts = [t.handle.data for t in (made if isinstance(made, tuple) else (made,))]
        return [self.to_tensor(np.squeeze(p, axis), k) for p, k in zip(parts, kinds)]

    def all_ones(self: Any, kind: Any) -> Any:
        d = interpreter._get_np_dtype(kind)
        bits = True if d == np.bool_ else np.iinfo(d).max if d.kind == "u" else -1
        return handle(np.full(1, bits, d), kind.scalar)

    def splat(self: Any, to: Any, x: Any) -> Any:  # a comparison's handle says that it has its operands' type
        kind = tl.int1 if x.data.dtype == np.bool_ else x.dtype.scalar
        return handle(np.full([int(n) for n in to.shape], x.data.reshape(-1)[0], x.data.dtype), kind)

    def patched(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.reshape(()))  # `patch_tensor` set it, and will see it removed

    return [
        (builder, "get_all_ones_value", all_ones),
        (builder, "create_splat", splat),
        (interpreter, "_patch_lang_tensor", patched),
        (builder, "cast_impl", cast),
        (builder, "create_fp_to_fp", lambda self, src, to, _mode: cast(self, src, to)),
        (builder, "create_fma", fma),
        (builder, "create_dot", dot),
        (interpreter.ReduceOps, "generic_reduce", reduce),
    ]
