"""Special functions against SciPy: values over all ranges of their arguments, at the ends of these, derivatives, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame

scipy = pytest.importorskip("scipy.special")

#: name -> SciPy's function, the range of arguments, and whether it falls off so that its error is relative
BESSEL: dict[str, tuple[Any, tuple[float, float], bool]] = {
    "bessel_j0": (scipy.j0, (-80, 80), False),
    "bessel_j1": (scipy.j1, (-80, 80), False),
    "bessel_y0": (scipy.y0, (1e-5, 80), False),
    "bessel_y1": (scipy.y1, (1e-5, 80), False),
    "modified_bessel_i0": (scipy.i0, (-40, 40), True),
    "modified_bessel_i1": (scipy.i1, (-40, 40), True),
    "modified_bessel_k0": (scipy.k0, (1e-5, 80), True),
    "modified_bessel_k1": (scipy.k1, (1e-5, 80), True),
    "scaled_modified_bessel_k0": (scipy.k0e, (1e-5, 900), True),
    "scaled_modified_bessel_k1": (scipy.k1e, (1e-5, 900), True),
    "spherical_bessel_j0": (lambda x: scipy.spherical_jn(0, np.abs(x)), (-80, 80), False),
    "airy_ai": (lambda x: scipy.airy(x)[0], (-60, 40), False),
}
#: name -> the polynomial of a degree, by SciPy
POLYNOMIALS = {
    "chebyshev_polynomial_t": scipy.eval_chebyt,
    "chebyshev_polynomial_u": scipy.eval_chebyu,
    "chebyshev_polynomial_v": lambda n, x: scipy.eval_jacobi(n, -0.5, 0.5, x) / scipy.eval_jacobi(n, -0.5, 0.5, 1.0),
    "chebyshev_polynomial_w": lambda n, x: (2 * n + 1) * scipy.eval_jacobi(n, 0.5, -0.5, x) / scipy.eval_jacobi(n, 0.5, -0.5, 1.0),
    "shifted_chebyshev_polynomial_t": scipy.eval_sh_chebyt,
    "shifted_chebyshev_polynomial_u": scipy.eval_sh_chebyu,
    "hermite_polynomial_h": scipy.eval_hermite,
    "hermite_polynomial_he": scipy.eval_hermitenorm,
    "laguerre_polynomial_l": scipy.eval_laguerre,
    "legendre_polynomial_p": scipy.eval_legendre,
}  # fmt: skip
for _n in "vw":
    POLYNOMIALS[f"shifted_chebyshev_polynomial_{_n}"] = lambda n, x, f=POLYNOMIALS[f"chebyshev_polynomial_{_n}"]: f(
        n, 2 * x - 1
    )


def function(name: str) -> Any:
    return getattr(flame.special, name)


@pytest.mark.parametrize("name", BESSEL)
def test_bessel_functions_mean_what_scipy_says(name: str) -> None:
    f, (low, high), relative = BESSEL[name]
    r = np.random.default_rng(3)
    x = np.concatenate([r.uniform(low, high, 600), r.uniform(max(low, -3), 3, 300), 10.0 ** r.uniform(-5, 0, 100)])
    want = f(x)
    scale = np.abs(want) if relative else np.maximum(np.abs(want), 1 / np.sqrt(1 + np.abs(x)))
    for dtype, close in ((np.float64, 5e-14), (np.float32, 6e-7)):
        given = x.astype(dtype)
        got = function(name)(flame.tensor(given))
        assert got.dtype is (flame.float64 if dtype is np.float64 else flame.float32)
        error = np.abs(got.numpy() - f(given.astype(np.float64))) / scale
        assert error.max() < close, (name, x[error.argmax()])
    assert function(name)(flame.tensor([[1, 2]])[:, ::2]).dtype is flame.float32
    assert function(name)(flame.zeros(0, 3)).shape == (0, 3)
    for narrow in (flame.float16, flame.bfloat16, flame.complex64):
        with pytest.raises(NotImplementedError, match=name):
            function(name)(flame.ones(2, dtype=narrow))


def test_at_the_ends_of_their_ranges() -> None:
    ends = flame.tensor([0.0, -1.0, np.inf, np.nan], dtype=flame.float64)
    nan, inf = np.nan, np.inf
    for name, want in {
        "bessel_j0": [1, scipy.j0(1), nan, nan], "bessel_j1": [0, -scipy.j1(1), nan, nan], "bessel_y0": [-inf, nan, nan, nan],
        "bessel_y1": [-inf, nan, nan, nan], "modified_bessel_k0": [inf, nan, 0, nan], "modified_bessel_k1": [inf, nan, 0, nan],
        "scaled_modified_bessel_k0": [inf, nan, 0, nan], "scaled_modified_bessel_k1": [inf, nan, 0, nan],
        "spherical_bessel_j0": [1, np.sin(1), 0, nan], "airy_ai": [scipy.airy(0)[0], scipy.airy(-1)[0], 0, nan],
    }.items():  # fmt: skip
        np.testing.assert_allclose(function(name)(ends).numpy(), want, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials_mean_what_scipy_says(name: str) -> None:
    r = np.random.default_rng(4)
    x, n = r.uniform(-1, 1, (30,)), np.arange(12)[:, None]
    want = POLYNOMIALS[name](n, x)
    f = function(name)
    np.testing.assert_allclose(f(flame.tensor(x), flame.tensor(n)).numpy(), want, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(f(flame.tensor(x.T, dtype=flame.float32), 4).numpy(), want[4], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(f(0.25, flame.tensor(n)).numpy(), POLYNOMIALS[name](n, 0.25), rtol=1e-4, atol=1e-4)
    odd = f(flame.tensor(x[:4]), flame.tensor([-1.0, np.nan, 2.9, 0.0], dtype=flame.float64)).numpy()
    np.testing.assert_allclose(odd, [0, 0, want[2, 2], 1], rtol=1e-12)
    with pytest.raises(NotImplementedError, match=name):
        f(flame.ones(2, dtype=flame.float16), 2)


@pytest.mark.parametrize("name", [*BESSEL, *POLYNOMIALS])
def test_derivatives_and_compiled(name: str) -> None:
    x = flame.tensor([[0.3, 0.7, 0.05], [0.9, 0.45, 0.6]], dtype=flame.float64)
    f = function(name) if name in BESSEL else lambda t: function(name)(t, flame.tensor([0, 3, 5]))
    assert flame.autograd.gradcheck(f, (x.clone().requires_grad_(),))
    assert flame.autograd.gradgradcheck(f, (x.clone().requires_grad_(),))
    if not any(s in name for s in ("_y", "_k")) and name in BESSEL:  # smooth at 0
        assert flame.autograd.gradcheck(f, (flame.tensor([0.0, -2e-3, -8.0], dtype=flame.float64, requires_grad=True),))
    compiled = flame.compile(lambda t: f(t * 2) + 1, fullgraph=True)
    for _ in range(3):
        np.testing.assert_allclose(compiled(x).numpy(), (f(x * 2) + 1).numpy(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [flame.float64, flame.complex128])
@pytest.mark.parametrize("hermitian", [False, True])
def test_solving_with_factors_of_indefinite_matrices(dtype: Any, hermitian: bool) -> None:
    r = np.random.default_rng(5)
    for n in (0, 1, 2, 3, 9):
        x = r.standard_normal((2, n, n)) + (1j * r.standard_normal((2, n, n)) if dtype.is_complex else 0)
        x = x + (x.conj() if hermitian else x).swapaxes(-1, -2)
        x *= 1 - 0.98 * np.eye(n)  # (a small diagonal asks for blocks of two)
        b = r.standard_normal((2, n, 3)).astype(x.dtype)
        ld, pivots = flame.linalg.ldl_factor(flame.tensor(x), hermitian=hermitian)
        assert n != 9 or (pivots < 0).any()
        y = flame.linalg.ldl_solve(ld, pivots, flame.tensor(b), hermitian=hermitian)
        np.testing.assert_allclose(x @ y.numpy(), b, atol=1e-9)
    right = flame.tensor(b, requires_grad=True)
    solve = lambda t: flame.linalg.ldl_solve(ld, pivots, t, hermitian=hermitian)
    assert flame.autograd.gradcheck(solve, (right,), fast_mode=True)
    assert not ld.requires_grad
