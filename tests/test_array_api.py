"""The array API standard: the same programs in NumPy's main namespace, which conforms to it, and in array-api-strict; protocols."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
from flame import array_api as xp
from flame.tensor import Tensor

DTYPES = list(xp.__array_namespace_info__().dtypes())
FLOATING = [n for n in DTYPES if "float" in n or "complex" in n]
INTEGER = [n for n in DTYPES if "int" in n]
REAL = INTEGER + ["float32", "float64"]
NUMERIC = REAL + ["complex64", "complex128"]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, -3.0, 1e30])


def drawn(r: np.random.Generator, name: str, shape: tuple[int, ...], special: bool = False) -> np.ndarray:
    d = np.dtype(name)
    if d.kind == "b":
        return np.asarray(r.integers(0, 2, shape), d)
    if d.kind in "ui":
        return np.asarray(r.integers(0 if d.kind == "u" else -9, 10, shape)).astype(d)
    a = r.uniform(-3, 3, shape)
    if special and d.kind == "f":
        a = np.where(r.random(shape) < 0.5, r.choice(SPECIAL, shape), a)
    return np.asarray(a + 1j * r.uniform(-3, 3, shape) if d.kind == "c" else a).astype(d)


def plain(x: Any) -> Any:
    if isinstance(x, tuple | list):
        return [plain(v) for v in x]
    return x.numpy() if isinstance(x, Tensor) else np.asarray(x)


def same(got: Any, want: Any) -> None:
    got, want = plain(got), plain(want)
    if isinstance(want, list):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            same(g, w)
        return
    assert got.dtype == want.dtype and got.shape == want.shape
    tolerance = 1e-5 if want.dtype.itemsize <= 4 or want.dtype == np.complex64 else 1e-11
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with np.errstate(all="ignore"):
        yield


UNARY = {
    **dict.fromkeys("acos acosh asin asinh atan atanh cos cosh exp expm1 log log1p log2 log10 reciprocal sin".split(), FLOATING),
    **dict.fromkeys("sinh sqrt tan tanh".split(), FLOATING),
    **dict.fromkeys("abs conj isfinite isinf isnan negative positive real round sign square".split(), NUMERIC),
    **dict.fromkeys("ceil floor trunc".split(), REAL),
    "imag": ["complex64", "complex128"], "signbit": ["float32", "float64"], "logical_not": ["bool"],
    "bitwise_invert": ["bool", *INTEGER],
}  # fmt: skip
BINARY = {
    **dict.fromkeys("add subtract multiply pow equal not_equal".split(), NUMERIC),
    **dict.fromkeys("floor_divide greater greater_equal less less_equal maximum minimum remainder".split(), REAL),
    **dict.fromkeys("atan2 copysign hypot logaddexp nextafter".split(), ["float32", "float64"]),
    "divide": FLOATING,
    **dict.fromkeys("logical_and logical_or logical_xor".split(), ["bool"]),
    **dict.fromkeys("bitwise_and bitwise_or bitwise_xor".split(), ["bool", *INTEGER]),
    **dict.fromkeys("bitwise_left_shift bitwise_right_shift".split(), INTEGER),
}  # fmt: skip
SHAPES: tuple[tuple[int, ...], ...] = ((3, 5), (), (0, 2), (40,))


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_array(name: str) -> None:
    r = np.random.default_rng(0)
    for d in UNARY[name]:
        for shape in SHAPES:
            a = drawn(r, d, shape, special=True)
            same(getattr(xp, name)(xp.asarray(a)), getattr(np, name)(a))


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_arrays(name: str) -> None:
    r = np.random.default_rng(1)
    for d in BINARY[name]:
        for e in BINARY[name]:
            kinds = {np.dtype(d).kind, np.dtype(e).kind}
            if (
                ("b" in kinds and len(kinds) > 1)
                or (kinds & set("ui") and kinds & set("fc"))
                or {d, e} in [{"uint64", s} for s in INTEGER if s[0] == "i"]
            ):
                continue  # (no common dtype in the standard)
            for left, right in (((3, 4), (4,)), ((), (3,)), ((2, 0), (1, 1))):
                a, b = drawn(r, d, left, special=True), drawn(r, e, right, special=True)
                if b.dtype.kind in "ui" and ("shift" in name or name == "pow"):
                    b = np.abs(b.astype(np.int64) % 4).astype(b.dtype)
                if b.dtype.kind in "ui" and name in ("floor_divide", "remainder"):
                    b = np.where(b == 0, 1, b).astype(b.dtype)
                same(getattr(xp, name)(xp.asarray(a), xp.asarray(b)), getattr(np, name)(a, b))  # (0-d arrays count in full)
        scalar = {"b": True, "u": 2, "i": 2, "f": 2.5, "c": 1 - 2j}[np.dtype(d).kind]
        a = drawn(r, d, (5,))
        same(getattr(xp, name)(xp.asarray(a), scalar), getattr(np, name)(a, scalar))
        if "shift" not in name and name not in ("floor_divide", "remainder", "pow"):
            same(getattr(xp, name)(scalar, xp.asarray(a)), getattr(np, name)(scalar, a))


Program = Callable[..., Any]
#: name -> (dtypes, program of a namespace and an array of two or three dimensions without infinities)
PROGRAMS: dict[str, tuple[list[str], Program]] = {
    **{
        f"{n} over {axis}": (kinds, lambda x, a, n=n, axis=axis: [getattr(x, n)(a, axis=axis, keepdims=k) for k in (0, 1)])
        for axis in (None, 0, -1, (0, 1), (-1,))
        for n, kinds in {
            "sum": NUMERIC,
            "prod": NUMERIC,
            "max": REAL,
            "min": REAL,
            "mean": FLOATING,
            "var": ["float32", "float64"],
            "std": ["float32", "float64"],
            "all": DTYPES,
            "any": DTYPES,
            "count_nonzero": DTYPES,
        }.items()
    },
    "var with correction": (["float32", "float64"], lambda x, a: (x.var(a, axis=0, correction=1), x.std(a, correction=0.5))),
    "sum as": (NUMERIC, lambda x, a: x.sum(a, axis=0, dtype=x.complex128)),
    "places": (
        REAL,
        lambda x, a: (x.argmax(a), x.argmin(a, axis=0), x.argmax(a, axis=-1, keepdims=True), x.argmin(a, keepdims=True)),
    ),
    "running": (
        NUMERIC,
        lambda x, a: [
            f(a, axis=d, include_initial=i) for f in (x.cumulative_sum, x.cumulative_prod) for d in (0, -1) for i in (0, 1)
        ],
    ),
    "sorted": (REAL, lambda x, a: (x.sort(a), x.sort(a, axis=0), x.argsort(a, axis=-2))),
    "differences": (
        NUMERIC,
        lambda x, a: (x.diff(a), x.diff(a, axis=0, n=2), x.diff(a, prepend=a[..., :1], append=a[..., :2])),
    ),
    "joined": (
        DTYPES,
        lambda x, a: (x.concat([a, a], axis=-1), x.concat([a, a], axis=None), x.stack([a, a], axis=1), x.unstack(a, axis=1)),
    ),
    "moved": (
        DTYPES,
        lambda x, a: (
            x.moveaxis(a, 0, -1),
            x.permute_dims(a, tuple(range(a.ndim))[::-1]),
            x.matrix_transpose(a),
            x.flip(a),
            x.flip(a, axis=1),
            x.roll(a, 2),
            x.roll(a, (1, -1), axis=(0, 1)),
        ),
    ),
    "shaped": (
        DTYPES,
        lambda x, a: (
            x.reshape(a, (-1, 2)),
            x.squeeze(x.expand_dims(a, axis=1), axis=1),
            x.broadcast_to(a, (2, *a.shape)),
            x.tile(a, (2, 1, 2, 1)),
            x.repeat(a, 2),
            x.repeat(a, 3, axis=-1),
        ),
    ),
    "triangles": (DTYPES, lambda x, a: (x.tril(a, k=1), x.triu(a, k=-1), x.tril(a))),
    "taken": (
        DTYPES,
        lambda x, a: (
            x.take(a, x.asarray([1, 0, -1]), axis=-1),
            x.take_along_axis(a, x.zeros(a.shape[:-1] + (2,), dtype=x.int64), axis=-1),
            x.where(a == a, a, x.zeros_like(a)),
            x.nonzero(a),
        ),
    ),
    "sets": (
        REAL,
        lambda x, a: (
            tuple(x.unique_all(a)),
            tuple(x.unique_counts(a)),
            tuple(x.unique_inverse(a)),
            x.sort(x.unique_values(a)),
        ),
    ),
    "clipped": (
        REAL,
        lambda x, a: (
            x.clip(a, 1, 3),
            x.clip(a, x.asarray(2, dtype=a.dtype), None),
            x.clip(a, None, x.asarray([2], dtype=a.dtype)),
        ),
    ),
    "like": (DTYPES, lambda x, a: (x.zeros_like(a), x.ones_like(a), x.full_like(a, 1), x.astype(a, x.complex128))),
    "products": (
        NUMERIC,
        lambda x, a: (
            x.matmul(a, x.matrix_transpose(a)),
            x.tensordot(a, a, axes=a.ndim),
            x.tensordot(a, a, axes=((0,), (0,))),
            x.vecdot(a, a),
            x.matmul(a, a[0, ..., 0, :] if a.ndim > 2 else a[0]),
        ),
    ),
    "diagonals": (
        NUMERIC,
        lambda x, a: (
            x.linalg.diagonal(a, offset=1),
            x.linalg.trace(a),
            x.linalg.outer(a[0, ...].reshape(-1)[:3], a[1, ...].reshape(-1)[:2]),
            x.linalg.cross(a[..., :3], a[..., 1:]),
        ),
    ),
    "norms": (
        FLOATING,
        lambda x, a: (
            [x.linalg.vector_norm(a, ord=o, axis=d) for o in (0, 1, 2, 2.5, np.inf, -np.inf, -1) for d in (None, 0, (0, 1))]
            + [x.linalg.matrix_norm(a, ord=o, keepdims=True) for o in ("fro", "nuc", 1, 2, -2, np.inf)]
        ),
    ),
    "ranks": (
        FLOATING,
        lambda x, a: (x.linalg.svdvals(a), x.linalg.pinv(a), x.linalg.matrix_rank(a), x.linalg.svd(a, full_matrices=False).S),
    ),
    "definite": (FLOATING, lambda x, a: definite(x, a)),
    "transforms": (
        ["complex64", "complex128"],
        lambda x, a: (
            [
                f(a, n=n, axis=d, norm=m)
                for f in (x.fft.fft, x.fft.ifft, x.fft.irfft, x.fft.hfft)
                for n in (None, 3, 7)
                for d in (0, -1)
                for m in ("backward", "ortho", "forward")
            ]
            + [
                x.fft.fftn(a),
                x.fft.ifftn(a, axes=(0, 1)),
                x.fft.irfftn(a, axes=(0, -1)),
                x.fft.fftshift(a),
                x.fft.ifftshift(a, axes=(0,)),
            ]
        ),
    ),
    "real transforms": (
        ["float32", "float64"],
        lambda x, a: (
            [f(a, n=n, axis=d) for f in (x.fft.rfft, x.fft.ihfft) for n in (None, 3, 7) for d in (0, -1)]
            + [x.fft.rfftn(a, axes=(0, 1))]
        ),
    ),
}


def definite(x: Any, a: Any) -> Any:
    h = x.matmul(a, x.conj(x.matrix_transpose(a))) + x.eye(a.shape[-2], dtype=a.dtype)
    w, v = x.linalg.eigh(h)
    q, r = x.linalg.qr(a)
    whole = v @ (x.astype(w, v.dtype)[..., None] * x.conj(x.matrix_transpose(v)))
    sign, log = x.linalg.slogdet(h)
    found = (
        x.linalg.cholesky(h),
        x.linalg.cholesky(h, upper=True),
        w,
        whole,
        x.linalg.eigvalsh(h),
        x.linalg.inv(h),
        x.linalg.det(h),
    )
    return (*found, x.linalg.matrix_power(h, 3), x.linalg.solve(h, a), q @ r, sign, log)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4)], ids=str)
def test_programs(name: str, shape: tuple[int, ...]) -> None:
    kinds, program = PROGRAMS[name]
    r = np.random.default_rng(2)
    for d in kinds:
        a = drawn(r, d, shape)
        same(program(xp, xp.asarray(a)), program(np, a))


@pytest.mark.parametrize(
    "program",
    [
        lambda x: [x.arange(*a, dtype=x.int64) for a in ((5,), (2, 7), (0, 10, 3), (5, 0, -2), (3, 3), (5, 2))],
        lambda x: [x.arange(*a, dtype=x.float64) for a in ((1.5,), (0, 1, 0.25), (1, 0, -0.5), (0, 1, -1))],
        lambda x: [x.linspace(0, -3, n, endpoint=e, dtype=x.float64) for n in (0, 1, 2, 7) for e in (True, False)],
        lambda x: [x.eye(n, m, k=k, dtype=x.int32) for n in (0, 3) for m in (None, 2, 5) for k in (-1, 0, 2)],
        lambda x: (x.zeros(3, dtype=x.bool), x.ones((2, 0), dtype=x.uint16), x.full((2,), 7, dtype=x.uint64), x.full((), True)),
        lambda x: x.meshgrid(x.asarray([1, 2]), x.asarray([3, 4, 5])),
        lambda x: x.meshgrid(x.asarray([1, 2]), x.asarray([3]), x.asarray([4, 5]), indexing="ij"),
        lambda x: x.broadcast_arrays(x.asarray([[1], [2]]), x.asarray([3, 4])),
        lambda x: (
            x.searchsorted(x.asarray([1, 3, 5]), x.asarray([[0, 3], [4, 9]])),
            x.searchsorted(x.asarray([1, 3]), x.asarray([3]), side="right"),
        ),
        lambda x: x.searchsorted(x.asarray([5, 1, 3]), x.asarray([2, 4]), sorter=x.asarray([1, 2, 0])),
        lambda x: (
            [x.fft.fftfreq(n, d=0.5) * x.ones((), dtype=x.float64) for n in (1, 4, 5)]
            if x is np
            else [x.fft.fftfreq(n, d=0.5, dtype=x.float64) for n in (1, 4, 5)]
        ),
        lambda x: (
            x.isdtype(x.int8, "integral"),
            x.isdtype(x.uint8, ("bool", "signed integer")),
            x.isdtype(x.float32, x.float32),
        ),
        lambda x: (x.finfo(x.complex64).bits, x.finfo(x.float64).eps, x.iinfo(x.uint16).max, x.iinfo(x.int8).min),
        lambda x: (x.repeat(x.asarray([1, 2, 3]), x.asarray([2, 0, 1])), x.sum(x.asarray(3)), x.flip(x.asarray(3))),
        lambda x: [
            x.linalg.solve(x.asarray([[[2.0, 1.0], [1.0, 3.0]]], dtype=x.float64), x.asarray([1.0, 2.0], dtype=x.float64))
        ],
    ],
    ids=range(15),
)
def test_programs_from_nothing(program: Program) -> None:
    same(program(xp), program(np))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: xp.sin(xp.asarray([1, 2])), TypeError),
        (lambda: xp.add(1, 2), TypeError),
        (lambda: xp.add(xp.asarray([True]), xp.asarray([1])), TypeError),
        (lambda: xp.add(xp.asarray([1]), 2.5), TypeError),
        (lambda: xp.add(xp.asarray([1], dtype=xp.int8), 300), OverflowError),
        (lambda: xp.bitwise_and(xp.asarray([1.0]), xp.asarray([1.0])), TypeError),
        (lambda: xp.astype(xp.asarray([1j]), xp.float32), TypeError),
        (lambda: xp.result_type(xp.uint64, xp.int8), TypeError),
        (lambda: xp.result_type(1, 2.0), ValueError),
        (lambda: xp.squeeze(xp.asarray([[1, 2]]), axis=1), ValueError),
        (lambda: xp.sum(xp.asarray([1, 2]), axis=3), IndexError),
        (lambda: xp.sum(xp.ones((2, 2)), axis=(0, 0)), ValueError),
        (lambda: xp.max(xp.zeros((0, 2)), axis=0), ValueError),
        (lambda: xp.nonzero(xp.asarray(1)), ValueError),
        (lambda: xp.cumulative_sum(xp.ones((2, 2))), ValueError),
        (lambda: xp.take(xp.ones((2, 2)), xp.asarray([0])), ValueError),
        (lambda: xp.take(xp.ones(2), xp.asarray([5])), IndexError),
        (lambda: xp.permute_dims(xp.ones((2, 2)), (0, 0)), ValueError),
        (lambda: xp.matmul(xp.ones((2, 3)), xp.ones((2, 3))), ValueError),
        (lambda: xp.matmul(xp.asarray(1.0), xp.ones(3)), ValueError),
        (lambda: xp.vecdot(xp.ones((2, 3)), xp.ones((2, 3)), axis=1), ValueError),
        (lambda: xp.linalg.cholesky(xp.ones((2, 3))), ValueError),
        (lambda: xp.linalg.qr(xp.ones((2, 3)), mode="raw"), ValueError),
        (lambda: xp.asarray([1, 2], copy=False), ValueError),
        (lambda: xp.reshape(xp.matrix_transpose(xp.ones((2, 3))), (6,), copy=False), ValueError),
        (lambda: xp.isdtype(xp.int8, "integers"), ValueError),
        (lambda: xp.finfo(xp.int8), TypeError),
        (lambda: xp.iinfo(xp.float32), TypeError),
        (lambda: xp.meshgrid(xp.ones(2), xp.asarray([1])), ValueError),
        (lambda: xp.tril(xp.ones(3)), ValueError),
        (lambda: xp.ones(3).__array_namespace__(api_version="2019.12"), ValueError),
        (lambda: xp.ones(3).to_device("cpu", stream=1), ValueError),
        (lambda: xp.sum([1, 2]), TypeError),
    ],
)
def test_what_is_refused(call: Callable, error: type) -> None:
    with pytest.raises(error):
        call()


def test_dtypes_promote_by_themselves() -> None:
    assert xp.result_type(xp.float32, xp.ones((), dtype=xp.float64)) is xp.float64
    assert xp.add(xp.ones(3, dtype=xp.float32), xp.ones((), dtype=xp.float64)).dtype is xp.float64
    assert xp.add(xp.ones(3, dtype=xp.float32), 1j).dtype is xp.complex64
    for a in INTEGER:
        for b in INTEGER:
            if {a, b} not in [{"uint64", s} for s in INTEGER if s[0] == "i"]:
                assert xp.result_type(getattr(xp, a), getattr(xp, b)).numpy == np.result_type(a, b)
    assert xp.can_cast(xp.uint8, xp.int16) and not xp.can_cast(xp.int16, xp.uint8) and not xp.can_cast(xp.int32, xp.float64)


def test_unique_tells_nans_apart() -> None:
    x = xp.asarray([float("nan"), 1.0, float("nan"), 1.0])
    assert xp.unique_values(x).shape == (3,) and xp.unique_counts(x).counts.tolist() == [2, 1, 1]


def test_the_namespace_says_what_it_has() -> None:
    info = xp.__array_namespace_info__()
    assert xp.ones(2).__array_namespace__() is xp and xp.ones(2).__array_namespace__(api_version="2024.12") is xp
    assert info.default_dtypes() == {
        "real floating": flame.float32, "complex floating": flame.complex64, "integral": flame.int64, "indexing": flame.int64,
    }  # fmt: skip
    assert set(info.dtypes(kind="signed integer")) == {"int8", "int16", "int32", "int64"}
    assert set(info.dtypes(kind=("bool", "complex floating"))) == {"bool", "complex64", "complex128"}
    assert info.devices() == [info.default_device()] and info.capabilities()["boolean indexing"]
    x = xp.ones((2, 3))
    assert x.size == 6 and x.size() == (2, 3) and x.size(1) == 3 and isinstance(x.size, int)
    assert x.device == info.default_device() and x.to_device(x.device) is x and x.mT.shape == (3, 2)


def test_gradients_flow_and_programs_compile() -> None:
    def f(a: Any) -> Any:
        x = a.__array_namespace__()
        return x.sum(x.tanh(x.matmul(a, x.matrix_transpose(a))) * x.std(a, axis=0)[:1])

    a = flame.randn(4, 4, dtype=flame.float64, requires_grad=True)
    assert flame.autograd.gradcheck(f, a)
    compiled = flame.compile(f)
    for _ in range(3):
        flame.testing.assert_close(compiled(a), f(a))


def test_memory_is_shared_with_other_libraries() -> None:
    x = flame.arange(6.0).reshape(2, 3)
    a = np.asarray(x)
    a[0, 0] = 9
    assert float(x[0, 0]) == 9 and np.asarray(x, copy=True) is not a
    b = np.from_dlpack(x)
    b[0, 1] = 8
    assert float(x[0, 1]) == 8
    assert x.__dlpack_device__() == (1, 0)
    y = flame.from_dlpack(b)
    y[1, 1] = 7
    assert float(x[1, 1]) == 7
    z = flame.from_dlpack(x, copy=True)
    z.zero_()
    assert float(x[1, 1]) == 7
    assert "dltensor_versioned" in repr(x.__dlpack__(max_version=(1, 0))) and "versioned" not in repr(x.__dlpack__())
    assert np.from_dlpack(x.T).strides == x.numpy().T.strides
    with pytest.raises(BufferError, match="device"):
        x.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="stream"):
        x.__dlpack__(stream=3)
    with pytest.raises(BufferError, match="gradient"):
        flame.ones(2, requires_grad=True).__dlpack__()
    with pytest.raises(BufferError, match="bfloat16"):
        flame.ones(2, dtype=flame.bfloat16).__dlpack__()
    with pytest.raises(TypeError, match="__dlpack__"):
        flame.from_dlpack([1, 2])
    for same_as in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        same_as.add_(0)
        flame.testing.assert_close(same_as, x)
        assert same_as.data_ptr() != x.data_ptr()
    m = memoryview(bytearray(8)).cast("f")
    assert xp.asarray(m).dtype is flame.float32 and xp.asarray(np.arange(4)[::-1]).tolist() == [3, 2, 1, 0]
    assert xp.asarray(x) is x and xp.asarray(x, copy=True) is not x


@pytest.mark.oracle
def test_names_and_signatures_are_those_of_the_strict_namespace() -> None:
    strict = pytest.importorskip("array_api_strict")
    extra = {"broadcast_shapes", "isin", "Device", "__version__"}  # (not in this version of the standard, or its own)
    for ours, theirs in ((xp, strict), (xp.linalg, strict.linalg), (xp.fft, strict.fft)):
        for n in theirs.__all__:
            if n in extra or "flags" in n.lower():
                continue
            f, g = getattr(ours, n), getattr(theirs, n)
            if inspect.isfunction(g) and n != "expand_dims":
                mine = [(p.name, p.kind) for p in inspect.signature(f).parameters.values()]
                assert mine == [(p.name, p.kind) for p in inspect.signature(g).parameters.values()], n
