"""`autocast`: a region in which functions compute in the dtypes that their policies say (`flame.precision` has the lists).

Casts are ordinary operations in front of the functions that have a policy, so gradients flow back through them, a compiled region
captures and fuses them, and known calls are told apart by what is in force (`flame.capture.known`). The dtype of a gradient is the
one that its forward operation chose, wherever `backward()` is called.

A weight that is used several times eagerly is cast once: casts of float32 leaves that require gradients are kept until the
outermost region ends, or the weight is written. Inside a compiled region nothing is kept, as the compiler merges equal casts.
"""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from flame import cuda, dtypes
from flame.dtypes import bfloat16, dtype, float16, float32, float64, promote_types
from flame.functions.promotion import to_dtype
from flame.precision import POLICIES, in_force, put_in_force
from flame.primitive import force
from flame.tensor import Tensor

_FAST = (bfloat16, float16)
_DEFAULTS = {"cpu": bfloat16, "cuda": float16}


class _Settings(threading.local):
    """A thread's settings, beside what is in force."""

    def __init__(self) -> None:
        self.dtypes: dict[str, dtype] = dict(_DEFAULTS)  #: what autocast casts to where it is not said
        self.cache_enabled = True
        self.nesting = 0
        #: (id of a leaf, dtype, gradient mode) -> the leaf (weakly), its version when it was cast, the cast
        self.cache: dict[tuple[int, dtype, bool], tuple[weakref.ref, int, Tensor]] = {}


_settings = _Settings()


class Casts:
    """What is cast to: a dtype for each kind of device, None where nothing is. Equal ones are one object (`casts_to`)."""

    __slots__ = ("targets",)

    def __init__(self, targets: dict[str, dtype | None]):
        self.targets = targets

    def __repr__(self) -> str:
        return f"Casts({self.targets})"

    def call(self, name: str, f: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Call `f` with its operands cast as its policy has it, and nothing cast inside of it."""
        device = _device_type(args) or _device_type(tuple(kwargs.values()))
        target = self.targets.get(device)
        policy = None if target is None else POLICIES[device].get(name)
        if policy is None or kwargs.get("out") is not None:
            return f(*args, **kwargs)
        put_in_force(None)  # (what casts is no function with a policy, but what it calls may be)
        try:
            match policy:
                case "lower":
                    args, kwargs = _cast_all(args, kwargs, target)
                case "float32":
                    args, kwargs = _cast_all(args, kwargs, float32)
                case "widest":
                    args, kwargs = _cast_all(args, kwargs, _widest(args, kwargs, target))
                case "set_dtype":
                    args, kwargs = _asked_in_float32(args, kwargs)
                case _:
                    raise RuntimeError(
                        f"flame.nn.functional.{name} is unsafe to autocast: its input has to lie between 0 and 1 exactly, which a "
                        f"narrow dtype does not keep. Many models use a sigmoid right before it: combine the two by "
                        f"{name}_with_logits, or call it inside of autocast(enabled=False) on float32."
                    )
            return f(*args, **kwargs)
        finally:
            put_in_force(self)


@functools.cache
def casts_to(cpu: dtype | None, cuda: dtype | None) -> Casts | None:
    """The one object for these targets; None where nothing is cast."""
    return None if cpu is None and cuda is None else Casts({"cpu": cpu, "cuda": cuda})


def _device_type(xs: Any) -> str:
    """The kind of device of the first tensor, "" if there is none."""
    for x in xs:
        if isinstance(x, Tensor):
            return x.device.type
        if type(x) in (tuple, list) and (found := _device_type(x)):
            return found
    return ""


def _eligible(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype.kind == "f" and x.dtype is not float64


def _cast(x: Any, d: dtype) -> Any:
    """Floating tensors (but float64) as `d`, also inside of tuples, lists and dicts; everything else as it is."""
    if isinstance(x, Tensor):
        return _cast_tensor(x, d) if _eligible(x) and x.dtype is not d else x
    kind = type(x)
    if kind is tuple or kind is list:
        return kind(_cast(i, d) for i in x)
    if kind is dict:
        return {k: _cast(i, d) for k, i in x.items()}
    return x


def _cast_all(args: tuple, kwargs: dict, d: dtype | None) -> tuple[tuple, dict]:
    if d is None:
        return args, kwargs
    return tuple([_cast(a, d) for a in args]), {k: _cast(a, d) for k, a in kwargs.items()} if kwargs else kwargs


def _cast_tensor(x: Tensor, d: dtype) -> Tensor:
    keep = (
        _settings.cache_enabled
        and force.interpreter is None
        and x._requires_grad
        and x.dtype is float32
        and d is not float32
        and x._view is None
        and x._node is None
    )
    if not keep:
        return to_dtype(x, d)
    cache, key = _settings.cache, (id(x), d, force.grad)
    found = cache.get(key)
    if found is not None and found[0]() is x and found[1] == x._version:
        return found[2]
    y = to_dtype(x, d)
    if _settings.nesting:
        cache[key] = weakref.ref(x), x._version, y
    return y


def _widest(args: tuple, kwargs: dict, least: dtype | None) -> dtype | None:
    """The dtype that all eligible operands fit in; None where there is nothing to do."""
    found: list[dtype] = []

    def look(x: Any) -> None:
        if isinstance(x, Tensor):
            if _eligible(x):
                found.append(x.dtype)
        elif type(x) in (tuple, list):
            for i in x:
                look(i)

    look(args)
    look(tuple(kwargs.values()))
    return functools.reduce(promote_types, found) if len(set(found)) > 1 else None


def _asked_in_float32(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """With dtype=float32, if the first operand is floating and nothing else was asked for."""
    asked = kwargs.get("dtype") is not None or any(isinstance(a, dtype) for a in args)
    first = args[0] if args else kwargs.get("input")
    return (args, kwargs) if asked or not _eligible(first) else (args, {**kwargs, "dtype": float32})


# -------------------------------------------------------------------- what users ask and set


def _known(device_type: str) -> str:
    if not isinstance(device_type, str):
        raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")
    if device_type not in POLICIES:
        raise RuntimeError(
            f"User specified an unsupported autocast device_type '{device_type}': the devices with policies are "
            f"{', '.join(map(repr, POLICIES))}"
        )
    return device_type


def is_autocast_available(device_type: str) -> bool:
    """Whether there is a list of policies for a kind of device."""
    if not isinstance(device_type, str):
        raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")
    return device_type in POLICIES


def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Whether casts are in force on this thread for a kind of device."""
    casts = in_force.casts
    return casts is not None and casts.targets[_known(device_type)] is not None


def set_autocast_enabled(device_type: Any, enabled: bool | None = None) -> None:
    """Switch casts on or off on this thread: `set_autocast_enabled(device_type, enabled)`; with one argument, for "cuda"."""
    if enabled is None:
        device_type, enabled = "cuda", device_type
    _enable(_known(device_type), bool(enabled))


def _enable(device_type: str, enabled: bool) -> None:
    targets = dict.fromkeys(POLICIES) if in_force.casts is None else dict(in_force.casts.targets)
    targets[device_type] = _settings.dtypes[device_type] if enabled else None
    put_in_force(casts_to(**targets))


def get_autocast_dtype(device_type: str) -> dtype:
    """What is cast to on a kind of device: bfloat16 on a CPU and float16 on a GPU, unless something else was set."""
    return _settings.dtypes[_known(device_type)]


def set_autocast_dtype(device_type: str, dtype: dtypes.dtype) -> None:
    """Set what is cast to on a kind of device, on this thread."""
    _settings.dtypes[_known(device_type)] = dtype
    if is_autocast_enabled(device_type):
        _enable(device_type, True)


def get_autocast_cpu_dtype() -> dtype:
    return get_autocast_dtype("cpu")


def set_autocast_cpu_dtype(dtype: dtypes.dtype) -> None:
    set_autocast_dtype("cpu", dtype)


def get_autocast_gpu_dtype() -> dtype:
    return get_autocast_dtype("cuda")


def set_autocast_gpu_dtype(dtype: dtypes.dtype) -> None:
    set_autocast_dtype("cuda", dtype)


def is_autocast_cpu_enabled() -> bool:
    return is_autocast_enabled("cpu")


def set_autocast_cpu_enabled(enabled: bool) -> None:
    set_autocast_enabled("cpu", enabled)


def is_autocast_cache_enabled() -> bool:
    return _settings.cache_enabled


def set_autocast_cache_enabled(enabled: bool) -> None:
    _settings.cache_enabled = bool(enabled)


def clear_autocast_cache() -> None:
    """Forget the casts of weights."""
    _settings.cache.clear()


def autocast_increment_nesting() -> int:
    _settings.nesting += 1
    return _settings.nesting


def autocast_decrement_nesting() -> int:
    _settings.nesting -= 1
    return _settings.nesting


class autocast:
    """A context manager and a decorator: inside, functions with a policy cast their floating operands (float64 never).

    device_type: "cpu" or "cuda": tensors on such a device are meant.
    dtype: float16 or bfloat16; None is `get_autocast_dtype(device_type)`.
    enabled: False switches casts off inside of an enabled region.
    cache_enabled: whether casts of weights are kept until the outermost region ends; None leaves it as it is.
    Warns and is disabled where a dtype is not one of the two, or "cuda" is meant and there is no GPU. Raises RuntimeError for an
    unknown kind of device, ValueError for one that is no string.
    """

    def __init__(
        self, device_type: str, dtype: dtypes.dtype | None = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        self.device = _known(device_type)
        self.fast_dtype = get_autocast_dtype(device_type) if dtype is None else dtype
        self._cache_enabled = is_autocast_cache_enabled() if cache_enabled is None else bool(cache_enabled)
        if enabled and device_type == "cuda" and not cuda.is_available():
            warnings.warn("CUDA is not available. Disabling autocast.", stacklevel=2)
            enabled = False
        elif enabled and self.fast_dtype not in _FAST:
            warnings.warn(
                f"In {device_type.upper()} autocast, but the target dtype is not supported. Disabling autocast.\n"
                f"{device_type.upper()} Autocast only supports dtypes of {', '.join(map(repr, _FAST))} currently.",
                stacklevel=2,
            )
            enabled = False
        self._enabled = bool(enabled)
        self._before: list[tuple[Any, dtypes.dtype, bool]] = []

    def __enter__(self) -> autocast:
        self._before.append((in_force.casts, _settings.dtypes[self.device], _settings.cache_enabled))
        _settings.dtypes[self.device] = self.fast_dtype
        _settings.cache_enabled = self._cache_enabled
        autocast_increment_nesting()
        _enable(self.device, self._enabled)
        return self

    def __exit__(self, *error: Any) -> None:
        if autocast_decrement_nesting() == 0:
            clear_autocast_cache()
        casts, _settings.dtypes[self.device], _settings.cache_enabled = self._before.pop()
        put_in_force(casts)

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """As a decorator: every call of `func` runs inside."""

        @functools.wraps(func)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return func(*args, **kwargs)

        return inside


# -------------------------------------------------------------------- custom functions


def custom_fwd(fwd: Callable[..., Any] | None = None, *, device_type: str, cast_inputs: dtype | None = None) -> Any:
    """A decorator for `forward` of an `autograd.Function`: it notes what is in force, for `custom_bwd`.

    With `cast_inputs`, inside of an enabled region floating operands on that kind of device are cast to it, and `forward` runs
    with casts switched off. Raises ValueError where `device_type` is no string.
    """
    _known(device_type)
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)
    f = fwd

    @functools.wraps(f)
    def forward(*args: Any, **kwargs: Any) -> Any:
        ctx, enabled = args[0], is_autocast_enabled(device_type)
        ctx._autocast_dtype = get_autocast_dtype(device_type)
        ctx._autocast_enabled = enabled and cast_inputs is None
        if cast_inputs is None or not enabled:
            return f(*args, **kwargs)
        with autocast(device_type, enabled=False):
            return f(ctx, *_cast(args[1:], cast_inputs), **_cast(kwargs, cast_inputs))

    return forward


def custom_bwd(bwd: Callable[..., Any] | None = None, *, device_type: str) -> Any:
    """A decorator for `backward` of an `autograd.Function` whose `forward` has `custom_fwd`: it runs under the same casts."""
    _known(device_type)
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)
    f = bwd

    @functools.wraps(f)
    def backward(*args: Any, **kwargs: Any) -> Any:
        ctx = args[0]
        with autocast(device_type, dtype=ctx._autocast_dtype, enabled=ctx._autocast_enabled):
            return f(*args, **kwargs)

    return backward
