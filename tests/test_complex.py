"""Complex tensors and Fourier transforms: against PyTorch, differentiated, compiled (with the break's reason), and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame

R = np.random.default_rng(6)
X = R.standard_normal((3, 4)) + 1j * R.standard_normal((3, 4))
Y = R.standard_normal((3, 4)) + 1j * R.standard_normal((3, 4))
REAL = R.standard_normal((4, 6))
S = X[:3, :3] + 3 * np.eye(3)

#: name -> a function of a module and two complex tensors, or of the module and a real one
OF_COMPLEX: dict[str, Any] = {
    **{n: (lambda t, x, y, n=n: getattr(t, n)(x)) for n in
       "exp log sqrt sin cos tan sinh cosh tanh reciprocal square neg abs angle sgn conj rsqrt "
       "asin atan asinh exp2".split()},
    **{n: (lambda t, x, y, n=n: getattr(t, n)(x, y)) for n in "add sub mul div pow eq ne".split()},
    "numbers": lambda t, x, y: (x * 2 + 1j) / (3 - 2j) - 1.5,
    "with real": lambda t, x, y: x * y.real + y.imag,
    "powers": lambda t, x, y: (x**2, x**0.5, x**-1, 2.0**x),
    "parts": lambda t, x, y: (x.real, x.imag, t.view_as_real(y)),
    "sum": lambda t, x, y: (x.sum(), x.mean(1), x.prod(0), x.cumsum(1), x.norm()),
    "matmul": lambda t, x, y: (x @ y.mT, x @ y.mH, t.einsum("ij,kj->ik", x, y)),
    "movement": lambda t, x, y: (t.cat([x, y]), t.stack([x, y], 1), x.T, x[1:, ::2], t.where(x.abs() > 1, x, y), t.flip(x, (0,))),
    "vdot": lambda t, x, y: t.vdot(x[0], y[0]),
    "fft": lambda t, x, y: (t.fft.fft(x), t.fft.fft(x, 6, 0, "ortho"), t.fft.ifft(x, 3), t.fft.fft2(x, norm="forward")),
    "fftn": lambda t, x, y: (t.fft.fftn(x), t.fft.ifftn(x, s=(2, 5)), t.fft.fftshift(x), t.fft.ifftshift(x, 1)),
    "irfft": lambda t, x, y: (t.fft.irfft(x), t.fft.irfft(x, 5), t.fft.irfft2(x), t.fft.irfftn(x, norm="ortho")),
    "hfft": lambda t, x, y: (t.fft.hfft(x), t.fft.hfft2(x), t.fft.hfftn(x, norm="ortho")),
    "linalg": lambda t, x, y: (t.linalg.inv(x[:, :3] + 3 * t.eye(3)), t.linalg.det(x[:, :3]), t.linalg.solve(x[:, :3], y)),
    "statistics": lambda t, x, y: (x.var(1), x.std(), t.logsumexp(x, 1), t.add(x, y, alpha=0.5), t.linalg.norm(x, "nuc")),
    "convolution": lambda t, x, y: t.nn.functional.conv1d(x[None], y[:, :3, None] * t.ones(3, dtype=y.dtype), padding=1),
    "transposed convolution": lambda t, x, y: t.nn.functional.conv_transpose1d(
        x[None], y[:, :, None] * t.ones(2, dtype=y.dtype), stride=2),
    "factors": lambda t, x, y: (t.linalg.lu_factor(x[:, :3] + 3 * t.eye(3))[0], t.linalg.matrix_exp(y[:, :3]), t.logdet(x[:, :3])),
    "pseudo-inverse": lambda t, x, y: (t.linalg.pinv(x), t.linalg.pinv(x[:, :1] @ y[:1])),
    "eigenvalues": lambda t, x, y: (lambda w, v: (w, v.abs(), v @ t.diag(w * w) @ t.linalg.inv(v)))(*t.linalg.eig(x[:, :3])),
}  # fmt: skip
OF_REAL: dict[str, Any] = {
    "rfft": lambda t, x: (t.fft.rfft(x), t.fft.rfft(x, 5, 0), t.fft.rfft2(x, norm="ortho"), t.fft.rfftn(x, s=(3, 8))),
    "fft of real": lambda t, x: (t.fft.fft(x), t.fft.fft2(x), t.fft.ihfft(x), t.fft.ihfftn(x)),
    "round trip": lambda t, x: t.fft.irfft(t.fft.rfft(x) * 2, 6),
    "polar": lambda t, x: (t.polar(x.abs() + 1, x), t.complex(x, x * 2), t.view_as_complex(x.reshape(4, 3, 2))),
    "stft": lambda t, x: t.stft(x, 4, window=t.hann_window(4, dtype=x.dtype), return_complex=True),
    "istft": lambda t, x: t.istft(t.stft(x, 4, window=t.ones(4, dtype=x.dtype), return_complex=True), 4,
                                window=t.ones(4, dtype=x.dtype), length=6),
    "eigenvalues of a real matrix": lambda t, x: (lambda w, v: (w * w).sum() + (v.abs() ** 3).sum())(*t.linalg.eig(x[:, 1:5])),
    "times i": lambda t, x: x * 1j + t.complex(x, x),
}  # fmt: skip
PROGRAMS = {**{n: (f, (X, Y)) for n, f in OF_COMPLEX.items()}, **{n: (f, (REAL,)) for n, f in OF_REAL.items()}}


def run(t: Any, name: str, grad: bool) -> tuple[list, list]:
    f, arrays = PROGRAMS[name]
    xs = [t.tensor(a, requires_grad=grad) for a in arrays]
    out = f(t, *xs)
    outs = list(out) if isinstance(out, tuple) else [out]
    return outs, xs


def array(x: Any) -> np.ndarray:
    return np.asarray(x.detach().resolve_conj().numpy())


def loss(t: Any, outs: list) -> Any:
    """A real number that depends on every part of every differentiable result."""
    total = 0.0
    for k, y in enumerate(o for o in outs if o.requires_grad):
        w = np.random.default_rng(k).standard_normal(tuple(y.shape))
        w = t.tensor(w + 1j * w[::-1] if w.ndim and y.is_complex() else w).to(y.dtype)
        z = y * w
        total = total + (z.real.sum() + z.imag.sum() if z.is_complex() else z.sum())
    return total


@pytest.mark.oracle
@pytest.mark.parametrize("name", PROGRAMS)
def test_values_and_gradients_agree_with_pytorch(torch: Any, name: str) -> None:
    (outs, xs), (want, zs) = run(flame, name, True), run(torch, name, True)
    for a, b in zip(outs, want, strict=True):
        assert str(a.dtype).split(".")[-1] == str(b.dtype).split(".")[-1]
        np.testing.assert_allclose(array(a), array(b), rtol=1e-9, atol=1e-10)
    if any(o.requires_grad for o in outs):
        loss(flame, outs).backward()
        loss(torch, want).backward()
        for x, z in zip(xs, zs, strict=True):
            g = np.zeros(x.shape) if x.grad is None else array(x.grad)
            h = np.zeros(x.shape) if z.grad is None else array(z.grad)
            np.testing.assert_allclose(g, h, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_against_differences(name: str) -> None:
    outs, xs = run(flame, name, True)
    if not any(o.requires_grad for o in outs):
        return
    loss(flame, outs).backward()
    f, arrays = PROGRAMS[name]
    r, h = np.random.default_rng(2), 1e-6
    steps = [r.standard_normal(a.shape) + (1j * r.standard_normal(a.shape) if a.dtype.kind == "c" else 0) for a in arrays]

    def at(sign: float) -> float:
        xs = [flame.tensor(a + sign * h * s, requires_grad=True) for a, s in zip(arrays, steps, strict=True)]
        out = f(flame, *xs)
        return float(loss(flame, list(out) if isinstance(out, tuple) else [out]))

    want = (at(1) - at(-1)) / (2 * h)
    got = sum((array(x.grad).conj() * s).real.sum() for x, s in zip(xs, steps, strict=True) if x.grad is not None)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["exp", "mul", "parts", "fft", "rfft", "round trip", "polar", "matmul"])
def test_compiled_code_runs_complex_operations_by_themselves(name: str) -> None:
    f, arrays = PROGRAMS[name]
    compiled = flame.compile(lambda *xs: f(flame, *[x * 2 for x in xs]))
    xs = [flame.tensor(a) for a in arrays]
    want = f(flame, *[x * 2 for x in xs])
    for _ in range(3):
        got = compiled(*xs)
        for a, b in zip(got if isinstance(got, tuple) else [got], want if isinstance(want, tuple) else [want], strict=True):
            np.testing.assert_allclose(array(a), array(b), rtol=1e-9, atol=1e-10)
    assert "FL1017" in str(compiled.stats)


def test_parts_are_views() -> None:
    z = flame.zeros(3, dtype=flame.complex64)
    z.real = flame.ones(3)
    z.imag.fill_(2.0)
    flame.view_as_real(z)[1, 0] = 5.0
    assert z.tolist() == [1 + 2j, 5 + 2j, 1 + 2j]
    x = flame.zeros(3, 2)
    flame.view_as_complex(x).add_(1 - 1j)
    assert x.tolist() == [[1.0, -1.0]] * 3
    w = flame.tensor(X, requires_grad=True)
    y = w * 1
    y.real.mul_(3.0)
    (y.real.sum() + y.imag.sum()).backward()
    np.testing.assert_allclose(array(w.grad), np.full((3, 4), 3 + 1j))


def test_promotion_with_complex() -> None:
    c, d, f = flame.ones(2, dtype=flame.complex64), flame.ones(2, dtype=flame.float64), flame.ones(2)
    assert (c + d).dtype is flame.complex128 and (c + f).dtype is flame.complex64 and (c * 2.5).dtype is flame.complex64
    assert (d * 1j).dtype is flame.complex128 and (f * 1j).dtype is flame.complex64
    assert (flame.arange(2) * 1j).dtype is flame.complex64 and flame.tensor(1j).dtype is flame.complex64
    assert (c + flame.tensor(1.0, dtype=flame.float64)).dtype is flame.complex64
    assert flame.promote_types(flame.float64, flame.complex64) is flame.complex128
    assert c.is_complex() and flame.is_complex(c) and not c.is_floating_point() and c.type() == "flame.ComplexFloatTensor"
    assert flame.finfo(flame.complex64).eps == flame.finfo(flame.float32).eps


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda z: z < z, RuntimeError, "lt"),
        (lambda z: flame.maximum(z, z), RuntimeError, "maximum"),
        (lambda z: z.floor(), RuntimeError, "floor"),
        (lambda z: flame.imag(flame.ones(2)), RuntimeError, "non-complex"),
        (lambda z: flame.view_as_complex(flame.ones(3)), RuntimeError, "size 2"),
        (lambda z: flame.view_as_real(flame.ones(3)), RuntimeError, "complex tensors"),
        (lambda z: flame.complex(flame.ones(2), flame.ones(2).double()), RuntimeError, "Expected"),
        (lambda z: flame.fft.rfft(z), RuntimeError, "real input"),
        (lambda z: flame.fft.fft(z, norm="x"), RuntimeError, "normalization"),
        (lambda z: flame.fft.fft(z, 0), RuntimeError, "data points"),
        (lambda z: flame.fft.fft(z, dim=3), IndexError, "out of range"),
        (lambda z: flame.fft.fft2(z, s=(2,)), RuntimeError, "same length"),
        (lambda z: flame.fft.fft(flame.ones(2).half()), RuntimeError, "cast to float32"),
        (lambda z: z.requires_grad_().sum().backward(), RuntimeError, "real scalar outputs"),
        (lambda z: flame.logcumsumexp(z, 0), RuntimeError, "not implemented for flame.complex128"),
        (lambda z: flame.zeros(3).add_(z[0, :3]), RuntimeError, "can't be cast"),
    ],
)
def test_what_is_refused(call: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call(flame.tensor(X))


def test_eigenvalues() -> None:
    w, v = flame.linalg.eig(flame.tensor(S.real))
    np.testing.assert_allclose(S.real @ array(v), array(v) * array(w), atol=1e-10)
    np.testing.assert_allclose(np.sort_complex(array(flame.linalg.eigvals(flame.tensor(S.real)))), np.sort_complex(array(w)))


FACTORED = {
    "cholesky": lambda t, x: t.linalg.cholesky(_hermitian(t, x)),
    "eigvalsh": lambda t, x: t.linalg.eigvalsh(_hermitian(t, x)),
    "eigh": lambda t, x: _recomposed(t.linalg.eigh(_hermitian(t, x))),
    "slogdet": lambda t, x: t.linalg.slogdet(x)[1],
    "sign of the determinant": lambda t, x: t.linalg.slogdet(x)[0],
    "solve_triangular": lambda t, x: t.linalg.solve_triangular(x, x, upper=True),
    "svdvals": lambda t, x: t.linalg.svdvals(x),
    "lengths of singular vectors": lambda t, x: t.linalg.svd(x, full_matrices=False)[0].abs(),
    "polar factor": lambda t, x: (lambda u, s, v: u @ v)(*t.linalg.svd(x, full_matrices=False)),
    "qr": lambda t, x: t.linalg.qr(x)[1],
    "q": lambda t, x: t.linalg.qr(x)[0],
    "pinv": lambda t, x: t.linalg.pinv(x),
    "nuclear norm": lambda t, x: t.linalg.matrix_norm(x, "nuc"),
}


def _hermitian(t: Any, x: Any) -> Any:
    return x @ x.mH + t.eye(x.shape[-1], dtype=x.dtype)


def _recomposed(e: Any) -> Any:
    return e[1] @ (e[0].sqrt().unsqueeze(-1) * e[1].mH)


@pytest.mark.oracle
@pytest.mark.parametrize("name", FACTORED)
def test_factorisations_of_complex_matrices_agree_with_pytorch(torch: Any, name: str) -> None:
    r = np.random.default_rng(5)
    shapes = [(3, 3), (2, 4, 4)] if name in list(FACTORED)[:6] else [(3, 3), (2, 4, 3), (3, 5)]
    for shape in shapes:
        a = r.standard_normal(shape) + 1j * r.standard_normal(shape)
        found = []
        for t in (flame, torch):
            x = t.tensor(a).requires_grad_()
            y = FACTORED[name](t, x)
            w = t.tensor(np.random.default_rng(6).standard_normal(tuple(y.shape)))
            ((y.real * w).sum() - 2 * (y.imag * w).sum() if y.is_complex() else (y * w).sum()).backward()
            found.append((y.detach().numpy(), x.grad.numpy()))
        for got, want in zip(*found, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)
