"""Places in PyTorch's tree that have no file of their own here: what programs import from `torch.nn.modules.padding` or
`torch.distributions.categorical` is found there, and functions of `nn.functional` that PyTorch keeps in its top namespace too.

`enter(flame)` makes the modules; each holds names that stand elsewhere in flame, and nothing of its own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

from flame import absent, distributions, dtypes, nn, numbered, optim
from flame.functions import PUBLIC
from flame.functions.promotion import tensor_operand
from flame.nn import functional as F
from flame.runtime.device import device
from flame.tensor import Size, Tensor

#: where PyTorch keeps layers whose file has another name here
_LAYERS = {
    "upsampling": "Upsample UpsamplingNearest2d UpsamplingBilinear2d",
    "instancenorm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    "distance": "PairwiseDistance CosineSimilarity",
    "flatten": "Flatten Unflatten",
    "fold": "Fold Unfold",
    "padding": "CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d "
    "ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d ZeroPad1d ZeroPad2d ZeroPad3d",
    "pixelshuffle": "PixelShuffle PixelUnshuffle",
    "channelshuffle": "ChannelShuffle",
}
_OPTIMIZERS = "Adadelta Adafactor Adagrad AdamW Adamax ASGD NAdam RAdam RMSprop Rprop SparseAdam"
#: functions of nn.functional that the top namespace has with the same signature
_ALIKE = (
    "adaptive_avg_pool1d adaptive_max_pool1d avg_pool1d bilinear celu celu_ channel_shuffle conv1d conv2d conv3d conv_transpose1d "
    "conv_transpose2d conv_transpose3d cosine_similarity hardshrink max_pool1d max_pool2d max_pool3d pairwise_distance pdist "
    "pixel_shuffle pixel_unshuffle prelu rms_norm rrelu selu selu_ threshold threshold_"
).split()
_MODES = "no_grad enable_grad inference_mode set_grad_enabled"
_ANOMALY = "detect_anomaly set_detect_anomaly"
#: functions of the top namespace that are methods of their first argument
_METHODS = "detach detach_ fill_ zero_ index_put_ is_inference is_signed resize_as_ get_device is_same_size".split()


def _ntuple(n: int) -> Callable[[Any], tuple]:
    def parse(x: Any) -> tuple:
        return tuple(x) if isinstance(x, Iterable) else (x,) * n

    return parse


def _reverse_repeat_tuple(t: Iterable[Any], n: int) -> tuple:
    """Padding as nn.functional.pad takes it, from one number a dimension."""
    return tuple(x for x in reversed(tuple(t)) for _ in range(n))


def dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """nn.functional.dropout as the top namespace spells it."""
    return F.dropout(input, p, train)


def alpha_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """nn.functional.alpha_dropout as the top namespace spells it."""
    return F.alpha_dropout(input, p, train)


def embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    """nn.functional.embedding with the weight first; padding_idx -1 is none."""
    return F.embedding(indices, weight, None if padding_idx == -1 else padding_idx, None, 2.0, scale_grad_by_freq, sparse)


def layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    """nn.functional.layer_norm; `cudnn_enable` has no effect."""
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    """nn.functional.group_norm; `cudnn_enabled` has no effect."""
    return F.group_norm(input, num_groups, weight, bias, eps)


def batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Tensor:  # fmt: skip
    """nn.functional.batch_norm in the top namespace's order of arguments; `cudnn_enabled` has no effect."""
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def can_cast(from_: dtypes.dtype, to: dtypes.dtype) -> bool:
    """Whether results of one dtype may be written to another: its kind of number is not below."""
    return from_.category <= to.category


def typename(obj: Any) -> str:
    """The type's name with its module."""
    t = obj if isinstance(obj, type) else type(obj)
    return f"{t.__module__}.{t.__qualname__}"


def to_dlpack(tensor: Tensor) -> Any:
    """A DLPack capsule of the tensor's memory, to be taken once; `from_dlpack(tensor)` of other libraries needs none."""
    return tensor_operand(tensor, "to_dlpack", "tensor").__dlpack__()


def frobenius_norm(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """The square root of the sum of squares over `dim`."""
    return PUBLIC["norm"](input, "fro", dim, keepdim)


def nuclear_norm(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The sum of singular values."""
    return PUBLIC["norm"](input, "nuc", dim, keepdim)


def grid_sampler(input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Tensor:
    """nn.functional.grid_sample with modes by number: 0 bilinear, 1 nearest, 2 bicubic; 0 zeros, 1 border, 2 reflection.

    Raises RuntimeError for shapes that do not fit, ValueError for other numbers.
    """
    for what, given in (("interpolation_mode", interpolation_mode), ("padding_mode", padding_mode)):
        if given not in (0, 1, 2):
            raise ValueError(f"grid_sampler(): expected {what} to be 0, 1 or 2, but got {given!r}")
    modes, paddings = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    return F.grid_sample(input, grid, modes[interpolation_mode], paddings[padding_mode], align_corners)


def _of_rank(name: str, rank: int) -> Callable[..., Tensor]:
    def function(input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Tensor:
        if isinstance(input, Tensor) and input.ndim != rank:
            raise RuntimeError(f"{name}(): expected {rank}D input, but got input with sizes {list(input.shape)}")
        return grid_sampler(input, grid, interpolation_mode, padding_mode, align_corners)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"grid_sampler of {rank}-d input. Raises RuntimeError for others."
    return function


_SPELLED: tuple[Callable[..., Any], ...] = (
    dropout, alpha_dropout, embedding, layer_norm, group_norm, batch_norm, can_cast, typename, frobenius_norm, nuclear_norm,
    grid_sampler, _of_rank("grid_sampler_2d", 4), _of_rank("grid_sampler_3d", 5), to_dlpack,
)  # fmt: skip


def _module(name: str, parent: Any, **names: Any) -> None:
    """`flame.<name>` with these names, in its parent too where that has nothing under it."""
    module = ModuleType(f"flame.{name}", "Names that stand elsewhere in flame.")
    vars(module).update(names)
    sys.modules[module.__name__] = module
    last = name.rpartition(".")[2]
    if not hasattr(parent, last):
        setattr(parent, last, module)


def enter(flame: Any) -> None:
    """Enter modules and functions into the package."""
    for name, place in list(vars(distributions).items()):
        if isinstance(place, SimpleNamespace):
            _module(f"distributions.{name}", distributions, **vars(place))
    for name, layers in _LAYERS.items():
        _module(f"nn.modules.{name}", nn.modules, **{n: getattr(nn, n) for n in layers.split()})
    tuples = {w: _ntuple(n) for n, w in enumerate(("_single", "_pair", "_triple", "_quadruple"), 1)}
    _module(
        "nn.modules.utils", nn.modules, _ntuple=lambda n, name="parse": _ntuple(n), _reverse_repeat_tuple=_reverse_repeat_tuple,
        **tuples,
    )  # fmt: skip
    for name in _OPTIMIZERS.split():
        _module(f"optim.{name.lower()}", optim, **{name: getattr(optim, name)})
    _module("nn.utils.weight_norm", nn.utils, weight_norm=nn.utils.weight_norm, remove_weight_norm=nn.utils.remove_weight_norm)
    _module("nn.utils.spectral_norm", nn.utils, spectral_norm=nn.utils.spectral_norm)
    _module("autograd.variable", flame.autograd, Variable=flame.autograd.Variable)
    _module("autograd.grad_mode", flame.autograd, **{n: getattr(flame, n) for n in _MODES.split()})
    _module("autograd.anomaly_mode", flame.autograd, **{n: getattr(flame.autograd, n) for n in _ANOMALY.split()})
    _module("utils.dlpack", flame.utils, from_dlpack=flame.from_dlpack, to_dlpack=to_dlpack)
    _module(
        "types", flame, Tensor=Tensor, Device=device | str | int | None, Number=int | float | bool, _size=Size | list | tuple
    )
    _module("functional", flame, **{n: f for n, f in PUBLIC.items() if inspect.isfunction(f)})
    for name in ("distributed", "hub", "onnx"):
        _module(name, flame, **vars(getattr(absent, name)))
    for name in ("special", *absent.WITHIN):
        getattr(flame, name).__getattr__ = absent.asked(f"flame.{name}")
    for name in _ALIKE:
        if not hasattr(flame, name):
            setattr(flame, name, getattr(F, name))
    for name in _METHODS:
        setattr(flame, name, getattr(Tensor, name))
    for f in (*_SPELLED, *numbered.FUNCTIONS):
        setattr(flame, f.__name__, f)
    flame.newaxis = None
    for name in ("OutOfMemoryError", "Event", "Stream"):
        setattr(flame, name, getattr(flame.cuda, name))
    flame.GradScaler, flame.random.Generator = flame.amp.GradScaler, flame.Generator
    for old in ("chunk", "split", "split_with_sizes"):
        setattr(Tensor, f"unsafe_{old}", getattr(Tensor, old))
        setattr(flame, f"unsafe_{old}", getattr(Tensor, old))
    for n in ("swapaxes_", "swapdims_"):
        setattr(Tensor, n, Tensor.transpose_)  # type: ignore[attr-defined]
    for n in ("hardshrink", "prelu"):
        setattr(Tensor, n, getattr(F, n))
