"""What element types functions take, where computing with others would be a mistake that nobody hears of: one table, held
against the tensors of a call.

    rule   ::= clause*                            in order; the first that does not hold raises
    clause ::= takes(arguments, kinds)            each, where it is a tensor, is of one of these kinds
             | alike(arguments)                   the first of these that is a tensor says the dtype of the others

`typed(f)` holds a function's calls against its rule, as many as have dtypes that were not seen before: those that are fine are
remembered. It stands below `composite`, so that what is followed is not looked at again.

Kinds are letters of `dtype.kind`: b(ool), u(int8), i(nteger), f(loat), c(omplex). What kernels a device happens not to have for
half precision, where others have them, is no rule.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flame import dtypes
from flame.dtypes import dtype
from flame.tensor import Tensor

_WORDS = {"b": "booleans", "u": "uint8", "i": "integers", "f": "floats", "c": "complex numbers"}


@dataclass(frozen=True, slots=True)
class Takes:
    """These arguments are of these kinds."""

    names: tuple[str, ...]
    kinds: str
    error: type[RuntimeError]

    def fault(self, op: str, given: dict[str, dtype]) -> RuntimeError | None:
        for n in self.names:
            d = given.get(n)
            if d is not None and d.kind not in self.kinds:
                words = ", ".join(_WORDS[k] for k in self.kinds if k != "u" or "i" not in self.kinds)
                return self.error(f"\"{op}\" not implemented for {d!r}: argument '{n}' takes {words}")
        return None


@dataclass(frozen=True, slots=True)
class Alike:
    """These arguments have the dtype of the first of them; with `wide`, or float32 beside narrower floats."""

    names: tuple[str, ...]
    wide: bool
    error: type[RuntimeError] = RuntimeError

    def fault(self, op: str, given: dict[str, dtype]) -> RuntimeError | None:
        there = [n for n in self.names if n in given]
        for n in there[1:]:
            d, e = given[there[0]], given[n]
            if d is not e and not (self.wide and e is dtypes.float32 and d.kind == "f" and d.itemsize < 4):
                return self.error(f"{op}(): expected argument '{n}' to be of {there[0]}'s dtype {d!r}, but got {e!r}")
        return None


Clause = Takes | Alike


def takes(names: str, kinds: str, error: type[RuntimeError] = NotImplementedError) -> Takes:
    return Takes(tuple(names.split()), kinds, error)


def alike(names: str, wide: bool = False) -> Alike:
    return Alike(tuple(names.split()), wide)


def _each(names: str, *clauses: Clause) -> dict[str, tuple[Clause, ...]]:
    return dict.fromkeys(names.split(), clauses)


_NORM = "weight bias"
RULES: dict[str, tuple[Clause, ...]] = {
    # no booleans, whole numbers or complex numbers where only floats have a meaning
    **_each(
        "gelu leaky_relu hardshrink softshrink hardswish hardsigmoid logsigmoid rrelu adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool1d "
        "max_unpool2d max_unpool3d nll_loss multi_margin_loss multilabel_margin_loss histc histogramdd grid_sample",
        takes("input", "f"),
    ),
    **_each("logcumsumexp rms_norm", takes("input", "fc")),
    **_each("interpolate upsample upsample_nearest upsample_bilinear", takes("input", "uf")),
    **_each("avg_pool1d avg_pool2d avg_pool3d local_response_norm", takes("input", "if")),
    "ctc_loss": (takes("log_probs", "f"),),
    "im2col": (takes("input", "bfc"),),
    # no complex numbers, which have no order
    **_each("sort argsort msort", takes("input", "buif", RuntimeError)),
    **_each("topk argmax argmin", takes("input", "uif", RuntimeError)),
    **_each("kthvalue median nanmedian threshold", takes("input", "uif")),
    **_each("cummax cummin mode unique unique_consecutive logit", takes("input", "buif")),
    **_each("deg2rad rad2deg isposinf isneginf nansum nanmean", takes("input", "buif", RuntimeError)),
    **_each("xlogy xlog1py", takes("input other", "buif")),
    "bucketize": (takes("input boundaries", "buif"),),
    "geometric_": (takes("self", "uif"),),
    # no booleans, which have no difference
    "isin": (takes("elements test_elements", "uif", RuntimeError),),
    "gradient": (takes("input", "ifc", RuntimeError),),
    "trace": (takes("input", "uifc"),),
    "bmm": (takes("input mat2", "uifc"),),
    "mvlgamma": (takes("input", "buif"), takes("input", "uif", RuntimeError)),
    "linalg_vander": (takes("x", "uifc", RuntimeError),),
    "stft": (takes("input", "uifc"),),
    # one dtype
    **_each("cross", takes("input", "uifc"), alike("input other")),
    **_each("layer_norm group_norm", alike("input " + _NORM, wide=True), takes("input", "f")),
    **_each("batch_norm instance_norm", takes("input", "f"), alike("input running_mean running_var " + _NORM, wide=True)),
    **_each(
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
        takes("input", "uifc"),
        alike("input weight bias"),
    ),
    "linear": (alike("input weight bias"),),
    "bilinear": (alike("input1 input2 weight bias"),),
    "prelu": (alike("input weight"), takes("input", "f")),
    "lerp": (alike("input end"), takes("input", "fc")),
    "index_put": (alike("input values"),),
    "embedding_bag": (
        takes("weight", "f", RuntimeError),
        takes("input offsets", "ui", RuntimeError),
        alike("weight per_sample_weights"),
    ),
    "multi_head_attention_forward": (
        takes("query key value", "f", RuntimeError),
        alike("query in_proj_weight in_proj_bias out_proj_weight out_proj_bias"),
        alike("key bias_k"),
        alike("value bias_v"),
    ),
    # losses
    "cross_entropy": (takes("target", "uif", RuntimeError),),
    "cosine_similarity": (takes("x1 x2", "f", RuntimeError),),
    "binary_cross_entropy": (alike("input target"), takes("input", "f")),
    "binary_cross_entropy_with_logits": (takes("input", "f"), takes("target", "f", RuntimeError)),
    "multilabel_soft_margin_loss": (takes("input", "f"), takes("target", "uifc", RuntimeError)),
    "kl_div": (takes("input target", "f", RuntimeError),),
    "huber_loss": (takes("input target", "buif"), takes("input", "f", RuntimeError)),
    "soft_margin_loss": (takes("input", "fc", RuntimeError),),
    "pdist": (takes("input", "f", RuntimeError),),
    "mse_loss": (takes("input target", "buif"),),
    "l1_loss": (takes("input target", "uifc", RuntimeError),),
    "gaussian_nll_loss": (takes("input target", "uif", RuntimeError),),
    "poisson_nll_loss": (takes("input", "uif", RuntimeError),),
    "hinge_embedding_loss": (takes("input", "uifc", RuntimeError),),
}


def _dtypes(args: tuple, kwargs: dict, places: tuple) -> tuple[tuple[str, dtype], ...]:
    """The tensors among a call's arguments at these places, by name."""
    given = [(k, args[i] if i < len(args) else kwargs.get(k)) for i, k in places]
    return tuple([(k, x.dtype) for k, x in given if isinstance(x, Tensor)])


def typed(f: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """`f` with its calls held against the rule of its name in RULES, or of `name`."""
    name = name or f.__name__
    clauses = RULES[name]
    parameters = tuple(inspect.signature(f).parameters)
    names = {n for clause in clauses for n in clause.names}
    places = tuple((i, n) for i, n in enumerate(parameters) if n in names)
    if len(places) < len(names):
        raise TypeError(f"the rule of {name} names an argument that is not in {parameters}")
    fine: set[Any] = set()  #: what was seen to be fine, by NumPy's dtypes, which are cheaper to ask for

    def look(seen: Any, args: tuple, kwargs: dict) -> None:
        given = dict(_dtypes(args, kwargs, places))
        for clause in clauses:
            fault = clause.fault(name, given)
            if fault is not None:
                raise fault
        fine.add(seen)

    if len(places) == 1:
        ((at, only),) = places

        @functools.wraps(f)
        def checked_one(*args: Any, **kwargs: Any) -> Any:
            x = args[at] if len(args) > at else kwargs.get(only)
            if isinstance(x, Tensor):
                d = x.dtype if (a := x._array) is None else a.dtype
                if d not in fine:
                    look(d, args, kwargs)
            return f(*args, **kwargs)

        return checked_one

    @functools.wraps(f)
    def checked(*args: Any, **kwargs: Any) -> Any:
        n, first, seen = len(args), None, None
        for i, k in places:
            x = args[i] if i < n else kwargs.get(k)
            if x is not None:
                d = a.dtype if isinstance(x, Tensor) and (a := x._array) is not None else None
                if first is None:
                    first = d
                if d is None or d is not first:  # not the commonest case
                    seen = _dtypes(args, kwargs, places)
                    break
        else:
            seen = first
        if seen not in fine:
            look(seen, args, kwargs)
        return f(*args, **kwargs)

    return checked


def typed_as(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`typed` by the rule of this name."""
    return lambda f: typed(f, name)
