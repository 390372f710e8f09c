"""flame.special: the special functions, under torch.special's names.

What flame has under the same or another name of its own (erf, lgamma, sigmoid, ...) is that function; the rest stands here.
"""

from __future__ import annotations

import math
from typing import Any

from flame.functions import PUBLIC
from flame.functions.forms import with_out
from flame.functions.mathematics import filled, floating
from flame.functions.promotion import as_floating, operand, with_tensor
from flame.functions.taking import typed
from flame.nn.functional.activation import log_softmax as log_softmax
from flame.nn.functional.activation import softmax as softmax
from flame.primitive import registered
from flame.tensor import Tensor

WHERE, FULL, ISNAN, LOG = map(registered, ("where", "full", "isnan", "log"))


@with_out
@typed
def xlog1py(input: Any, other: Any) -> Tensor:
    """input * log1p(other), 0 where input is 0 and other is not NaN."""
    a, b = as_floating(*with_tensor(operand(input, "xlog1py", "input"), operand(other, "xlog1py"), op="xlog1py"))
    if not isinstance(b, Tensor):
        b = filled(a, float(b))
    product = PUBLIC["log1p"](b) * a
    zero = (a == 0) & ~ISNAN(b) if isinstance(a, Tensor) else (~ISNAN(b) if a == 0 else None)
    return product if zero is None else WHERE(zero, 0.0, product)


@with_out
def entr(input: Tensor) -> Tensor:
    """-x log(x), 0 at 0, -inf below."""
    x = floating(input, "entr")
    inside = x > 0
    safe = WHERE(inside, x, 1.0)
    rest = WHERE(x == 0, FULL(0.0, shape=(), dtype=x.dtype), FULL(-math.inf, shape=(), dtype=x.dtype))
    return WHERE(ISNAN(x), x, WHERE(inside, -safe * LOG(safe), rest))


@with_out
def ndtr(input: Tensor) -> Tensor:
    """The probability that a standard normal is at most x."""
    return registered("erfc")(floating(input, "ndtr") * -math.sqrt(0.5)) * 0.5


@with_out
def log_ndtr(input: Tensor) -> Tensor:
    """log(ndtr(x)), accurate far below 0."""
    x = floating(input, "log_ndtr")
    t = x * math.sqrt(0.5)
    low = x < -1
    below = LOG(registered("erfcx")(-WHERE(low, t, -1.0)) * 0.5) - t * t
    above = PUBLIC["log1p"](registered("erfc")(WHERE(low, 1.0, t)) * -0.5)
    return WHERE(low, below, above)


@with_out
def zeta(input: Any, other: Any) -> Tensor:
    """Hurwitz's zeta function, the sum over k >= 0 of (other + k) ** -input."""
    a, b = as_floating(*with_tensor(operand(input, "zeta", "input"), operand(other, "zeta"), op="zeta"))
    return registered("zeta")(a, b)


def _wide(x: Any, name: str) -> Any:
    """An operand of what PyTorch computes in float32 and float64 alone."""
    if isinstance(x, Tensor) and (x.dtype.is_narrow_float or x.dtype.is_complex):
        raise NotImplementedError(f'"{name}" not implemented for {x.dtype!r}: it takes float32, float64 and integers')
    return x


def _bessel(name: str, of: str) -> Any:
    p = registered(of)

    def function(input: Tensor) -> Tensor:
        return p(_wide(floating(input, name), name))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{p.doc} Integers count as floats; raises NotImplementedError for narrow floats and complex numbers."
    return with_out(function)


def _polynomial(name: str, family: str, symbol: str) -> Any:
    p = registered("orthogonal_polynomial")

    def function(input: Any, n: Any) -> Tensor:
        x, k = _wide(operand(input, name, "input"), name), _wide(operand(n, name, "n"), name)
        return p(*as_floating(*with_tensor(x, k, op=name)), family=family, order=0)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"{symbol} of `input`, a tensor or a number, for the degrees `n`, a number or a tensor, which broadcast: cut to whole "
        "numbers, 0 where they are negative. Gradients flow to `input`. Raises NotImplementedError for narrow floats and complex "
        "numbers."
    )
    return with_out(function)


def _elementwise(name: str) -> Any:
    p = registered(name)

    def function(input: Tensor) -> Tensor:
        return p(floating(input, name))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = p.doc
    return with_out(function)


for _n in ("i0e", "i1", "i1e", "erfcx", "ndtri"):
    globals()[_n] = _elementwise(_n)
for _n, _f in {
    "digamma": "digamma", "erf": "erf", "erfc": "erfc", "erfinv": "erfinv", "exp2": "exp2", "expit": "sigmoid",
    "expm1": "expm1", "gammainc": "igamma", "gammaincc": "igammac", "gammaln": "lgamma", "i0": "i0", "log1p": "log1p",
    "logit": "logit", "logsumexp": "logsumexp", "multigammaln": "mvlgamma", "polygamma": "polygamma", "psi": "digamma",
    "round": "round", "sinc": "sinc", "xlogy": "xlogy",
}.items():  # fmt: skip
    globals()[_n] = PUBLIC[_f]
for _n in (
    "airy_ai bessel_j0 bessel_j1 bessel_y0 bessel_y1 modified_bessel_k0 modified_bessel_k1 scaled_modified_bessel_k0 "
    "scaled_modified_bessel_k1 spherical_bessel_j0"
).split():
    globals()[_n] = _bessel(_n, _n)
for _n in ("i0", "i1"):
    globals()[f"modified_bessel_{_n}"] = _bessel(f"modified_bessel_{_n}", _n)
for _n in "tuvw":
    for _s in ("", "shifted_"):
        _m = f"{_s}chebyshev_polynomial_{_n}"
        _d = f"Chebyshev's polynomial {_n.upper()}_n" + (" of 2 x - 1, x that" if _s else "")
        globals()[_m] = _polynomial(_m, f"{_s}chebyshev_{_n}", _d)
for _n, _d in {
    "hermite_polynomial_h": "Hermite's polynomial H_n (the physicists')",
    "hermite_polynomial_he": "Hermite's polynomial He_n (the probabilists')",
    "laguerre_polynomial_l": "Laguerre's polynomial L_n",
    "legendre_polynomial_p": "Legendre's polynomial P_n",
}.items():
    globals()[_n] = _polynomial(_n, _n.replace("polynomial_", ""), _d)
