"""The forms that functions of other files lack still: `out=` in flame's namespace, and in-place methods. Imported last."""

from __future__ import annotations

import inspect

from flame.functions import combined, creation, elementwise, indexing, linear, mathematics, parts, random, reduction, shape
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import in_place, with_out
from flame.tensor import Tensor

_WITH_OUT = (
    "aminmax all any argmax argmin prod max min var std norm cumsum cumprod argsort sort topk kthvalue median nansum nanmean "
    "logsumexp gather index_select take take_along_dim masked_select scatter scatter_add index_add index_copy index_fill "
    "clamp_min clamp_max lerp addcmul addcdiv logaddexp xlogy nan_to_num logit isclose float_power outer ger inner kron "
    "tensordot tril triu diag bernoulli multinomial randperm nonzero roll renorm dist hypot hardshrink"
).split()
for _n in _WITH_OUT:
    if _n in PUBLIC and "out" not in inspect.signature(PUBLIC[_n]).parameters:
        PUBLIC[_n] = with_out(PUBLIC[_n], _n)

_IN_PLACE = "clamp_min clamp_max cumsum cumprod float_power logit nan_to_num true_divide xlogy mvlgamma".split()
for _n in _IN_PLACE:
    _f = in_place(getattr(Tensor, _n), _n + "_")
    setattr(Tensor, _n + "_", _f)
    PUBLIC[_n + "_"] = _f

__all__ = [
    "combined", "creation", "elementwise", "indexing", "linear", "mathematics", "parts", "random", "reduction", "shape",
]  # fmt: skip
