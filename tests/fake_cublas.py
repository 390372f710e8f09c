"""A cuBLASLt without a GPU, at the level of C: `FakeCublasLt(fake)` multiplies on the host memory of a fake device.

Descriptions are what `flame.runtime.cublas` says, taken down byte by byte, and a product is computed from them as NVIDIA's
documentation has it: matrices by columns, op(A) n x k and so on. Work goes to the fake device's streams and happens late.

Checked: that handles and descriptions live and are handed back; sizes of attributes; that matrices lie inside memory that lives
when the product runs, at the alignment that was promised; that an algorithm is one that was suggested for that very description,
with the workspace that it asked for.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from fake_cuda import FakeLibrary

from flame.dtypes import bfloat16, float8_e4m3fn, float8_e5m2
from flame.runtime.cublas import NUMBERS, signatures

#: numbers of CUDA's data types, as NumPy has them
KINDS = {
    0: np.float32,
    1: np.float64,
    2: np.float16,
    3: np.int8,
    10: np.int32,
    14: bfloat16.numpy,
    28: float8_e4m3fn.numpy,
    29: float8_e5m2.numpy,
}
#: what may be set, and how many bytes that takes
SIZES: dict[str, dict[int, int]] = {
    "MatmulDesc": {3: 4, 4: 4, 7: 4, 8: 8, 17: 8, 18: 8},
    "MatrixLayout": {5: 4, 6: 8},
    "MatmulPreference": {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4},
}
NOT_SUPPORTED, FAILED = 15, 13


class FakeCublasLt:
    """`best`: which of its two algorithms, which ask for no workspace and for 1 KiB, the fake clock finds fast (or None)."""

    def __init__(self, fake: FakeLibrary, best: int | None = None, supports: bool = True):
        self.fake, self.best, self.supports = fake, best, supports
        self.alive: dict[int, tuple[str, dict[int, int]]] = {}
        self.asked: dict[
            tuple[int, ...], dict[int, int]
        ] = {}  #: description and layouts -> the preferences they were asked with
        self.products: list[tuple[int, dict[int, int]]] = []  #: algorithm and description of what has run
        self.calls: list[str] = []
        self._next = 0x5000
        self.cublasLtGetVersion = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: 130100)
        self.cublasLtGetCudartVersion = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: 13000)
        for name, types in signatures().items():
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *types)(self._entry(name)))

    def _entry(self, name: str) -> Any:
        plain = name.removeprefix("cublasLt")

        def call(*arguments: Any) -> int:
            self.calls.append(plain)
            given = [0 if a is None else a for a in arguments]
            for what in ("Create", "Destroy", "SetAttribute"):
                if plain.endswith(what):
                    return getattr(self, f"_{what.lower()}")(plain.removesuffix(what), *given)
            return getattr(self, f"_{plain}")(*given)

        return call

    def wrong(self, what: str) -> int:
        self.fake.wrong(f"cuBLASLt: {what}")
        return 7

    def _get(self, handle: int, kind: str) -> dict[int, int]:
        found = self.alive.get(handle, ("nothing", {}))
        if found[0] != kind:
            self.wrong(f"{handle:#x} is {found[0]}, not {kind or 'the library'}")
        return found[1]

    def _create(self, kind: str, out: int, *about: int) -> int:
        if not kind and not getattr(self.fake._local, "context", 0):
            return self.wrong("it is started without a context")
        self._next += 16
        self.alive[self._next] = (kind, dict(zip((-1, -2, -3, -4), about)))
        ctypes.c_uint64.from_address(out).value = self._next
        return 0

    def _destroy(self, kind: str, handle: int) -> int:
        self._get(handle, kind)
        self.alive.pop(handle, None)
        return 0

    def _setattribute(self, kind: str, handle: int, attribute: int, at: int, size: int) -> int:
        if SIZES[kind].get(attribute) != size:
            return self.wrong(f"attribute {attribute} of {kind} is not of {size} bytes")
        self._get(handle, kind)[attribute] = int.from_bytes(ctypes.string_at(at, size), "little")
        return 0

    def _MatmulAlgoGetHeuristic(
        self, handle: int, what: int, a: int, b: int, c: int, d: int, preference: int, most: int, results: int, count: int
    ) -> int:
        self._get(handle, "")
        asked = dict(self._get(preference, "MatmulPreference"))
        about = self._get(what, "MatmulDesc")
        if about[7] & 4 and not about.get(8):
            return self.wrong("an epilogue with a bias that is nowhere")
        if not self.supports:
            return NOT_SUPPORTED
        self.asked[what, a, b, c, d] = asked
        found = min(most, 2)
        for i in range(found):
            at = results + 96 * i
            ctypes.memmove(at, (ctypes.c_uint64 * 8)(what, i, 77), 64)
            ctypes.c_size_t.from_address(at + 64).value = 1024 * i
            ctypes.c_int.from_address(at + 72).value = 0
        ctypes.c_int.from_address(count).value = found
        return 0

    def _elements(self, address: int, layout: dict[int, int], asked: int, what: str) -> np.ndarray:
        """[batch, row, column], a view of device memory."""
        kind, rows, columns, pitch = (layout[i] for i in (-1, -2, -3, -4))
        dtype = np.dtype(KINDS[kind])
        batch, stride = layout.get(5, 1), layout.get(6, 0)
        if pitch < rows:
            self.wrong(f"{what}: columns of {rows} rows begin every {pitch} elements")
        if address % asked:
            self.wrong(f"{what} is at {address:#x}, which is not a multiple of {asked} as was promised")
        n = (batch - 1) * stride + (columns - 1) * pitch + rows
        self.fake._find(address, n * dtype.itemsize, f"cuBLASLt: {what}")
        strides = tuple(s * dtype.itemsize for s in (stride, 1, pitch))
        memory = (ctypes.c_char * (n * dtype.itemsize)).from_address(address)
        return np.ndarray((batch, rows, columns), dtype, memory, strides=strides)

    def _Matmul(
        self, handle: int, what: int, alpha: int, a: int, a_is: int, b: int, b_is: int, beta: int, c: int, c_is: int, d: int,
        d_is: int, algorithm: int, workspace: int, size: int, stream: int,
    ) -> int:  # fmt: skip
        self._get(handle, "")
        about = dict(self._get(what, "MatmulDesc"))
        layouts = [dict(self._get(x, "MatrixLayout")) for x in (a_is, b_is, c_is, d_is)]
        described, which, seal = (ctypes.c_uint64 * 8).from_address(algorithm)[:3]
        asked = self.asked.get((what, a_is, b_is, c_is, d_is), dict.fromkeys((5, 6, 7, 8), 16))
        if seal != 77 or which > 1 or size != 1024 * which or bool(workspace) != bool(which):
            return self.wrong("an algorithm that was not suggested, or another workspace than it asked for")
        number: Any = {68: ctypes.c_float, 77: ctypes.c_float, 70: ctypes.c_double, 72: ctypes.c_int32}[about[-1]]
        by, times = number.from_address(alpha).value, number.from_address(beta).value

        def work() -> None:
            if workspace:
                self.fake._find(workspace, size, "cuBLASLt: its workspace")
            x, y, z, out = (
                self._elements(at, layout, asked[k], name)
                for at, layout, k, name in zip((a, b, c, d), layouts, (5, 6, 7, 8), "ABCD", strict=True)
            )
            exact = np.int64 if number is ctypes.c_int32 else np.float64
            x, y = (
                (m.swapaxes(1, 2) if about.get(k, 0) == NUMBERS["CUBLAS_OP_T"] else m).astype(exact)
                for m, k in ((x, 3), (y, 4))
            )
            for k, layout in ((17, layouts[0]), (18, layouts[1])):
                if k in about:
                    if layout[-1] not in (28, 29):
                        self.wrong("a scale of what is no 8-bit float")
                    number_there = {-1: 0, -2: 1, -3: 1, -4: 1}
                    by_all = self._elements(about[k], number_there, 4, "a scale").item()
                    x = x * by_all
            value = by * (x @ y) + (times * z.astype(exact) if times else 0)
            if about[7] & 4:
                bias = {-1: layouts[3][-1], -2: out.shape[1], -3: 1, -4: out.shape[1]}
                value = value + self._elements(about[8], bias, 1, "the bias").astype(exact)
            if about[7] & 2:
                value = np.maximum(value, 0)
            if about[7] & 32:
                value = 0.5 * value * (1 + np.tanh(0.7978845608028654 * (value + 0.044715 * value**3)))
            out[...] = value.astype(out.dtype)
            self.fake._clock += 0.0 if which == self.best else 5.0
            self.products.append((which, about))

        self.fake._submit(stream, work)
        return 0
