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
from flame.nn.functional.activation import log_softmax as log_softmax
from flame.nn.functional.activation import softmax as softmax
from flame.primitive import registered
from flame.tensor import Tensor

WHERE, FULL, ISNAN, LOG = map(registered, ("where", "full", "isnan", "log"))


@with_out
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
