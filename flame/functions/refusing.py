"""Arguments of a wrong type: `guarded(f)` tells of them as TypeError with the argument's name, wherever in `f` they came to light.

A function finds out that it was given a string in place of a tensor where it first asks for a shape: as AttributeError, far from
the call. A guard holds the arguments against the function's annotations once something was raised. Composites have a place for it
(`flame.primitive.telling`), where it costs nothing; other functions are wrapped, which is one more Python call.
`GUARDED` names the functions that need it: those that look at their arguments before a primitive or
`operand` does. A test calls every public function with a string for its first tensor.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from flame.primitive import FAILURES, telling
from flame.tensor import Tensor

#: parameters without a precise annotation that take a string: `padding="same"`, a norm's order, an equation
_WORDS = {"padding", "ord", "p", "equation", "device", "dtype", "approximate", "generator", "return_counts"}
_PLAIN = {"int": int, "float": (int, float), "bool": bool, "str": str}


def wrong(name: str, f: Callable, args: tuple, kwargs: dict) -> TypeError | None:
    """The error for the first argument that is not what the annotation of its parameter says, or None."""
    try:
        given = inspect.signature(f).bind(*args, **kwargs).arguments
    except TypeError as e:
        return TypeError(f"{name}(): {e}")
    for k, (n, p) in enumerate(inspect.signature(f).parameters.items(), 1):
        if n not in given:
            continue
        v, said = given[n], str(p.annotation)
        words = n in _WORDS and not (n == "padding" and not name.startswith(("conv1d", "conv2d", "conv3d")))
        found = f"{name}(): argument '{n}' (position {k}) must be {{}}, not {type(v).__name__}"
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            if p.kind is p.VAR_POSITIONAL and any(t is None or isinstance(t, str) for t in _flat(v)):
                return TypeError(f"{name}(): expected tensors, but got {[type(t).__name__ for t in v]}")
            continue
        if said == "Tensor" and not isinstance(v, Tensor):
            return TypeError(found.format("Tensor"))
        plain = said.removesuffix(" | None")
        if plain in _PLAIN and v is not None and not isinstance(v, (_PLAIN[plain], Tensor)):  # type: ignore[arg-type]
            if not (plain != "str" and hasattr(v, "__index__")):
                return TypeError(found.format(plain))
        if isinstance(v, str) and "str" not in said and not words and not isinstance(p.default, str):
            return TypeError(found.format("a number, a tensor or a tuple" if said == "Any" else said))
        if isinstance(p.default, str) and v is not None and not isinstance(v, str) and not words:
            return TypeError(found.format("str"))
        if "str" not in said and isinstance(v, list | tuple) and any(isinstance(x, str) for x in v) and not words:
            return TypeError(f"{name}(): argument '{n}' (position {k}) must hold numbers or tensors, but found a str in it")
    return None


def _flat(v: Iterable[Any]) -> list[Any]:
    return [t for x in v for t in (x if isinstance(x, list | tuple) else (x,))]


def exact(f: Callable, name: str = "") -> Callable:
    """`f`, which raises TypeError for a word or a float in the place of a flag or a whole number: parameters annotated `bool` or
    `int`. Python would take these as it finds them, so that no failure tells of them."""
    name = name or f.__name__
    parameters = inspect.signature(f).parameters
    whole = {n: str(p.annotation).removesuffix(" | None") for n, p in parameters.items()}
    whole = {n: said for n, said in whole.items() if said in ("bool", "int")}
    places = tuple(
        (i, n) for i, n in enumerate(parameters) if n in whole and parameters[n].kind is not inspect.Parameter.KEYWORD_ONLY
    )

    def refuse(n: str, v: Any) -> TypeError:
        return TypeError(f"{name}(): argument '{n}' must be {whole[n]}, not {type(v).__name__}")

    @functools.wraps(f)
    def function(*args: Any, **kwargs: Any) -> Any:
        count = len(args)
        for i, n in places:
            if i >= count:
                break
            if isinstance(args[i], str | float):
                raise refuse(n, args[i])
        for n, v in kwargs.items():
            if isinstance(v, str | float) and n in whole:
                raise refuse(n, v)
        return f(*args, **kwargs)

    return function


def guarded(f: Callable, name: str) -> Callable:
    """`f`, which raises TypeError where it fails for an argument of a wrong type."""
    itself, inner, _ = getattr(f, "composite", (None, None, ""))
    if itself is f and inner is not None:
        telling[inner] = functools.partial(wrong, name, inner)
        return f

    @functools.wraps(f)
    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            return f(*args, **kwargs)
        except FAILURES as e:
            told = wrong(name, f, args, kwargs)
            if told is None:
                raise
            raise told from e

    return function


#: by namespace
GUARDED: dict[str, str] = {
    "": """
        addr argwhere as_strided as_strided_copy as_strided_scatter bernoulli broadcast_tensors broadcast_to
        cartesian_prod chunk clone constant_pad_nd diag diag_embed diagflat diagonal dist div divide true_divide
        dsplit einsum equal eye flip fliplr flipud full_like gather gradient histogram histogramdd hsplit index_add
        index_copy index_fill index_put index_reduce index_select inner istft kron linspace logspace lu_solve
        masked_fill masked_select median meshgrid movedim multinomial mvlgamma nanmean nansum narrow narrow_copy
        nonzero normal outer permute rand_like randint randint_like randn_like ravel repeat_interleave reshape
        resize_as_ roll rot90 scatter scatter_add scatter_reduce select split split_with_sizes squeeze t take
        take_along_dim tensor_split tile trace transpose unbind unfold_copy unflatten unique unravel_index
        unsafe_chunk unsafe_split unsqueeze vsplit tensordot detach ger get_device gru_cell is_same_size moveaxis
        feature_dropout norm_except_dim numel rnn_relu_cell rnn_tanh_cell sum_to_size swapaxes swapdims
        unsafe_split_with_sizes vander where
    """,
    "nn.functional": """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu channel_shuffle
        celu_ conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_embedding_loss
        cosine_similarity ctc_loss dropout dropout1d dropout2d dropout3d elu elu_ embedding feature_alpha_dropout
        fractional_max_pool2d fractional_max_pool3d gaussian_nll_loss gelu glu group_norm gumbel_softmax hardsigmoid
        hardswish hardtanh hardtanh_ instance_norm interpolate layer_norm leaky_relu leaky_relu_ linear
        local_response_norm margin_ranking_loss max_pool1d max_pool2d max_pool3d max_unpool1d max_unpool2d
        max_unpool3d mish multi_head_attention_forward native_channel_shuffle one_hot pad pixel_shuffle
        pixel_unshuffle poisson_nll_loss prelu relu6 rms_norm selu selu_ silu unfold upsample_bilinear
        upsample_nearest
    """,
    "linalg": "diagonal eigh eigvalsh ldl_solve lstsq lu_solve matrix_norm",
    "Tensor": "cauchy_ cdouble cfloat expand_as exponential_ geometric_ log_normal_ normal_ reshape_as unfold uniform_ view_as",
    "fft": "fft fft2 fftn hfft hfft2 hfftn ifft ifft2 ifftn ihfft ihfft2 ihfftn irfft irfft2 irfftn rfft rfft2 rfftn",
}

#: by namespace: functions whose flags and whole numbers are looked at before they run (composites say so themselves)
EXACT: dict[str, str] = {
    "": """
        cholesky combinations lu ormqr svd diff bincount narrow_copy round triu_indices tril_indices
        put index_reduce scatter_reduce nonzero logsumexp unique unique_consecutive bucketize searchsorted histogram
        empty empty_strided empty_permuted scalar_tensor randn eye
    """,
    "nn.functional": "one_hot pad",
    "linalg": """
        cholesky cholesky_ex ldl_factor ldl_factor_ex ldl_solve lu lu_factor lu_factor_ex lu_solve solve_triangular matrix_rank
        pinv svd
    """,
    "signal.windows": "hamming hann bartlett blackman cosine exponential gaussian kaiser general_cosine general_hamming nuttall",
}


def enter(flame: Any) -> None:
    """Put the guards before the functions of the namespaces; flame's own calls go on without. The top namespace's in-place
    functions have one each, and those that it shares with nn.functional."""
    alike = [n for n in GUARDED["nn.functional"].split() if n in vars(flame)]
    in_place = [n for n, f in vars(flame).items() if n.endswith("_") and inspect.isfunction(f)]
    for place, names in GUARDED.items():
        module = flame
        for part in place.split(".") if place else ():
            module = getattr(module, part)
        for n in dict.fromkeys([*names.split(), *(() if place else [*alike, *in_place])]):
            setattr(module, n, guarded(getattr(module, n), n))
    for place, names in EXACT.items():
        module = flame
        for part in place.split(".") if place else ():
            module = getattr(module, part)
        for n in names.split():
            f = getattr(module, n)
            if getattr(f, "composite", (None,))[0] is not f:
                setattr(module, n, exact(f, n))
