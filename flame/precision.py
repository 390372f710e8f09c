"""Which functions compute in which precision under automatic casts (`flame.amp.autocast`): the policies, by function and device.

    policy ::= lower        floating operands are cast to the dtype that autocast was given
             | float32      floating operands are cast to float32
             | set_dtype    where no `dtype` is given and the first operand is floating: the result is asked for in float32
             | widest       floating operands are cast to the widest dtype among them
             | banned       refused, with what to use instead

The lists are those of PyTorch's autocast kernels for each kind of device. float64 is never cast. A function is given its policy
where it is defined, by its name (`precise`, which the decorators of `flame.primitive` apply): while no thread casts, that costs a
glance at a flag. Inside a function with a policy nothing is cast again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def _table(**names: str) -> dict[str, str]:
    return {name: policy for policy, several in names.items() for name in several.split()}


_CPU = _table(
    lower="conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d bmm mm baddbmm addmm addbmm linear matmul "
    "vecdot prelu scaled_dot_product_attention",
    float32="avg_pool3d binary_cross_entropy grid_sample polar prod quantile nanquantile stft cdist trace view_as_complex cholesky "
    "cholesky_inverse cholesky_solve inv inv_ex lu_solve householder_product ormqr pinverse max_pool3d max_unpool2d max_unpool3d "
    "adaptive_avg_pool3d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d mse_loss cosine_embedding_loss nll_loss "
    "hinge_embedding_loss poisson_nll_loss smooth_l1_loss cross_entropy l1_loss huber_loss margin_ranking_loss soft_margin_loss "
    "triplet_margin_loss multi_margin_loss ctc_loss kl_div multilabel_margin_loss binary_cross_entropy_with_logits fft ifft fft2 "
    "ifft2 fftn ifftn rfft irfft rfft2 irfft2 rfftn irfftn hfft ihfft cond matrix_rank solve svdvals eigvals eigvalsh tensorinv "
    "tensorsolve geqrf lu qr svd triangular_solve cholesky_ex eig eigh lstsq legacy_cholesky legacy_lu_solve legacy_qr legacy_svd "
    "legacy_lu reflected_pad",
    widest="cat stack index_copy",
)
_CUDA = _table(
    lower="conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d prelu addmm addmv addr matmul einsum mm mv "
    "vecdot linear addbmm baddbmm bmm chain_matmul multi_dot lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell "
    "scaled_dot_product_attention",
    float32="acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus layer_norm rms_norm "
    "group_norm cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss cross_entropy hinge_embedding_loss kl_div "
    "l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss "
    "multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp interpolate norm",
    set_dtype="prod softmax log_softmax cumprod cumsum vector_norm matrix_norm sum",
    widest="addcdiv addcmul atan2 bilinear cross legacy_cross dot grid_sample index_put tensordot scatter_add vdot",
    banned="binary_cross_entropy",
)
#: kind of device -> name of a function -> its policy
POLICIES: dict[str, dict[str, str]] = {"cpu": _CPU, "cuda": _CUDA}


class _Casting:
    """On how many threads casts are in force: what a call looks at first."""

    __slots__ = ("threads",)

    def __init__(self) -> None:
        self.threads = 0


class _InForce(threading.local):
    #: what casts on this thread; None: nothing. Equal ones are one object
    casts: Any = None


casting = _Casting()
in_force = _InForce()
_lock = threading.Lock()


def put_in_force(casts: Any) -> None:
    """Have `casts` cast on this thread from now on: `call(name, f, args, kwargs)` calls `f` with operands cast by its policy."""
    before = in_force.casts
    if (before is None) is not (casts is None):
        with _lock:
            casting.threads += 1 if before is None else -1
    in_force.casts = casts


@contextmanager
def casting_to(casts: Any) -> Iterator[None]:
    """Have `casts` in force, or nothing (None)."""
    before = in_force.casts
    put_in_force(casts)
    try:
        yield
    finally:
        put_in_force(before)


def has_policy(name: str) -> bool:
    """Whether any device has a policy for a function of this name."""
    return any(name in table for table in POLICIES.values())


def precise(f: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """`f` under the policy of its name (or of `name`); `f` itself where there is none."""
    name = name or f.__name__
    if not has_policy(name) or hasattr(f, "policy"):  # (what wraps a function with a policy has it already)
        return f

    @functools.wraps(f)
    def with_policy(*args: Any, **kwargs: Any) -> Any:
        if casting.threads and (casts := in_force.casts) is not None:
            return casts.call(name, f, args, kwargs)
        return f(*args, **kwargs)

    with_policy.policy = name  # type: ignore[attr-defined]
    return with_policy
