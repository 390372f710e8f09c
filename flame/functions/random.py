"""Random tensors: one counter-based stream, Philox4x32-10 (Salmon et al., SC 2011), the same eager and compiled, CPU and GPU.

A Generator is a seed and an offset into the stream of 32-bit words. Every draw takes the words it needs from the offset on and
moves it past them, rounded up to a multiple of four (one Philox counter gives four words). Uniform floats are the upper 24 bits
(53 of two words for float64); normals are Box-Muller, one from two words.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from flame import dtypes
from flame.autograd.tape import assign
from flame.dtypes import dtype as DType
from flame.functions.creation import _device, _finish, _sizes
from flame.functions.elementwise import PUBLIC
from flame.functions.placing import placed, placing
from flame.functions.promotion import cast, deliver, tensor_operand, to_dtype
from flame.functions.shape import take_slice
from flame.functions.taking import typed
from flame.ops.rejection import WORDS
from flame.primitive import Primitive, broadcast_shapes, force, placement, registered
from flame.tensor import Tensor, method, wrap

BITS, WHERE, ARGSORT = registered("random_bits"), registered("where"), registered("argsort")
EXPAND = registered("expand")
SHIFT_RIGHT = registered("shift_right")
LOG, SQRT, COS = map(registered, ("log", "sqrt", "cos"))
GAMMA, POISSON, BINOMIAL = map(registered, ("gamma_sample", "poisson_sample", "binomial_sample"))


class Generator:
    """A stream of random numbers of its own; `device` is accepted for PyTorch's sake."""

    def __init__(self, device: Any = "cpu"):
        _device(device)
        self.seed_value = 67280421310721
        self.offset = 0

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of `seed` (any integer in [-2**63, 2**64)) from its beginning."""
        seed = int(seed)
        if not -(1 << 63) <= seed < 1 << 64:
            raise RuntimeError(f"Overflow when unpacking long: the seed {seed} is not in [-2**63, 2**64)")
        self.seed_value = seed - (1 << 64) if seed >= 1 << 63 else seed
        self.offset = 0
        return self

    def initial_seed(self) -> int:
        return self.seed_value

    def seed(self) -> int:
        """Take a seed from the clock, and say which."""
        s = time.time_ns() & ((1 << 63) - 1)
        self.manual_seed(s)
        return s

    def get_state(self) -> Tensor:
        return wrap(np.array([self.seed_value, self.offset], np.int64).view(np.uint8).copy())

    def set_state(self, state: Tensor) -> Generator:
        a = state.numpy()
        if a.dtype != np.uint8 or a.shape != (16,):
            raise TypeError("set_state: expected a state made by get_state (a uint8 tensor of 16 elements)")
        self.seed_value, self.offset = map(int, a.copy().view(np.int64))
        return self

    def clone_state(self) -> Generator:
        return Generator().set_state(self.get_state())

    @property
    def device(self) -> Any:
        return wrap(np.zeros(0)).device


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    return default_generator.manual_seed(seed)


def initial_seed() -> int:
    return default_generator.initial_seed()


def seed() -> int:
    return default_generator.seed()


def get_rng_state() -> Tensor:
    return default_generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    default_generator.set_state(new_state)


@contextmanager
def fork_rng(devices: Any = None, enabled: bool = True) -> Iterator[None]:
    """The default stream goes on afterwards from where it was before."""
    g = default_generator
    state = g.seed_value, g.offset
    try:
        yield
    finally:
        if enabled:
            g.seed_value, g.offset = state


def bits(shape: tuple[int, ...], generator: Generator | None = None) -> Tensor:
    """uint32 words of the stream."""
    g = generator or default_generator
    at = g.offset
    g.offset = at + -(-math.prod(force.examples + shape) // 4) * 4
    return BITS(g.seed_value, at, shape=shape)


def rejected(p: Primitive, *parameters: Tensor, generator: Generator | None = None) -> Tensor:
    """Draws that take as many words as chance asks for: each element has WORDS of the stream to itself (flame.ops.rejection)."""
    g = generator or default_generator
    at = g.offset
    shape = broadcast_shapes(*(tuple(x.shape) for x in parameters))
    g.offset = at + math.prod(force.examples + shape) * WORDS
    return p(*parameters, g.seed_value, at)


def poisson(input: Tensor, generator: Generator | None = None) -> Tensor:
    """Poisson draws, one for each rate in `input`. Raises RuntimeError for dtypes that are not floating."""
    return rejected(POISSON, tensor_operand(input, "poisson"), generator=generator)


def binomial(count: Tensor, prob: Tensor, generator: Generator | None = None) -> Tensor:
    """How many of `count` trials succeed, each with probability `prob`; both floating, of one dtype, and broadcast."""
    return rejected(
        BINOMIAL, tensor_operand(count, "binomial", "count"), tensor_operand(prob, "binomial", "prob"), generator=generator
    )


def standard_gamma(concentration: Tensor, generator: Generator | None = None) -> Tensor:
    """Gamma draws of rate 1, differentiable by their concentration."""
    return rejected(GAMMA, tensor_operand(concentration, "_standard_gamma"), generator=generator)


def uniform(shape: tuple[int, ...], d: DType, generator: Generator | None = None) -> Tensor:
    """Floats in [0, 1), every multiple of 2**-24 (2**-53 for float64) equally likely."""
    if d is dtypes.float64:
        high = cast(SHIFT_RIGHT(bits(shape, generator), 5), dtype=d)
        low = cast(SHIFT_RIGHT(bits(shape, generator), 6), dtype=d)
        return (high * 67108864.0 + low) * 2.0**-53
    shift, scale = (8, 2.0**-24) if d is dtypes.float32 else (21, 2.0**-11) if d is dtypes.float16 else (24, 2.0**-8)
    u = cast(SHIFT_RIGHT(bits(shape, generator), shift), dtype=dtypes.float32) * scale
    return to_dtype(u, d)


def gaussian(shape: tuple[int, ...], d: DType, generator: Generator | None = None) -> Tensor:
    """Standard normals by Box and Muller's transform (1958)."""
    w = dtypes.float64 if d is dtypes.float64 else dtypes.float32
    tiny = 2.0**-54 if w is dtypes.float64 else 2.0**-25
    u = uniform(shape, w, generator) + tiny
    v = uniform(shape, w, generator)
    return to_dtype(SQRT(LOG(u) * -2.0) * COS(v * (2.0 * math.pi)), d)


def _floating(d: Any, op: str) -> DType:
    d = d or dtypes.get_default_dtype()
    if d.kind != "f":
        raise NotImplementedError(f'"{op}" not implemented for {d!r}: random floats need a floating dtype')
    return d


def _drawn(source: Any, shape: tuple[int, ...], d: Any, op: str, generator: Generator | None) -> Tensor:
    """Draws of a floating dtype; complex ones have independent parts, normals of variance 1/2 each."""
    if d is None or d.kind != "c":
        return source(shape, _floating(d, op), generator)
    pair = source((*shape, 2), d.to_real(), generator)
    return registered("view_as_complex")(pair * math.sqrt(0.5) if source is gaussian else pair)


def _draw(name: str, source: Any) -> None:
    def function(
        *size: Any, generator: Generator | None = None, dtype: DType | None = None, device: Any = None, requires_grad: bool = False,
        out: Any = None, layout: Any = None, pin_memory: bool = False,
    ) -> Tensor:  # fmt: skip
        _device(device)
        t = _drawn(source, _sizes(size, name), dtype, name, generator)
        return _finish(deliver(t, out, name), requires_grad)

    def like(
        input: Tensor, *, generator: Generator | None = None, dtype: DType | None = None, device: Any = None,
        requires_grad: bool = False, layout: Any = None, memory_format: Any = None,
    ) -> Tensor:  # fmt: skip
        _device(device)
        return _finish(_drawn(source, tuple(input.shape), dtype or input.dtype, name + "_like", generator), requires_grad)

    function.__name__, like.__name__ = name, name + "_like"
    PUBLIC[name], PUBLIC[name + "_like"] = placed(function), placed(like)


_draw("rand", uniform)
_draw("randn", gaussian)


def _integers(low: int, high: int, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    if high <= low:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
    n = high - low
    w = cast(bits(shape, generator), dtype=dtypes.int64)
    if n > 1 << 24:
        w = w + cast(SHIFT_RIGHT(bits(shape, generator), 1), dtype=dtypes.int64) * (1 << 32)
    return w % n + low


@placed
def randint(
    low: int, high: Any = None, size: Any = None, *, generator: Generator | None = None, dtype: DType | None = None,
    device: Any = None, requires_grad: bool = False, out: Any = None, layout: Any = None, pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """Integers from low (0 if only `high` is given) to high - 1; int64."""
    _device(device)
    if size is None:
        low, high, size = 0, low, high
    if not isinstance(size, Sequence):
        raise TypeError(f"randint(): argument 'size' must be tuple of ints, but found {type(size).__name__}")
    t = to_dtype(_integers(int(low), int(high), _sizes((size,), "randint"), generator), dtype or dtypes.int64)
    return _finish(deliver(t, out, "randint"), requires_grad)


@placed
def randint_like(
    input: Tensor, low: Any, high: Any = None, *, generator: Generator | None = None, dtype: DType | None = None,
    device: Any = None, requires_grad: bool = False, layout: Any = None, memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """randint in the shape and dtype of `input`."""
    low, high = (0, low) if high is None else (low, high)
    low, high = (int(v.item()) if isinstance(v, Tensor) else v for v in (low, high))
    d = dtype or input.dtype
    if d.kind == "c" or (d.kind == "b" and not 0 <= low < high <= 2):
        raise RuntimeError(f"randint_like(): numbers from {low} to {high} - 1 do not fit {d!r}")
    return randint(
        low, high, tuple(input.shape), generator=generator, dtype=dtype or input.dtype, device=device,
        requires_grad=requires_grad,
    )  # fmt: skip


@placed
def randperm(n: int, *, generator: Generator | None = None, dtype: DType = dtypes.int64, device: Any = None) -> Tensor:
    """The numbers 0 to n - 1 in random order."""
    _device(device)
    return to_dtype(ARGSORT(cast(bits((int(n),), generator), dtype=dtypes.int64), dim=0, descending=False), dtype)


@placed
def normal(
    mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None, dtype: DType | None = None,
    device: Any = None, requires_grad: bool = False, out: Any = None, layout: Any = None, pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """Normals of the given mean and standard deviation, numbers with `size`, or tensors."""
    _device(device)
    if not isinstance(std, Tensor) and std < 0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std {std}")
    if size is not None:
        t = gaussian(_sizes((size,), "normal"), _floating(dtype, "normal"), generator) * std + mean
        return _finish(deliver(t, out, "normal"), requires_grad)
    if not isinstance(mean, Tensor) and not isinstance(std, Tensor):
        raise TypeError("normal(): with numbers for mean and std, 'size' must be given")
    for what, v in (("mean", mean), ("std", std)):
        if isinstance(v, Tensor) and v.dtype.kind != "f":
            refused = RuntimeError if v.dtype.kind == "c" else NotImplementedError
            raise refused(f"normal expects {what} to be of a floating dtype, but got {v.dtype!r}")
    shape = np.broadcast_shapes(*(tuple(x.shape) for x in (mean, std) if isinstance(x, Tensor)))
    d = next(x.dtype for x in (mean, std) if isinstance(x, Tensor))
    return deliver(gaussian(shape, d, generator) * std + mean, out, "normal")


def bernoulli(input: Tensor, p: float | None = None, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that the element (or `p`) is, else 0."""
    limit = input if p is None else p
    if p is None and input.dtype.kind != "f":
        raise NotImplementedError(f'"bernoulli" not implemented for {input.dtype!r}: probabilities are floats')
    if input.dtype.kind == "c":
        raise NotImplementedError(f'"bernoulli" not implemented for {input.dtype!r}')
    if p is not None and not 0 <= p <= 1:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    u = uniform(tuple(input.shape), dtypes.float64 if input.dtype is dtypes.float64 else dtypes.float32, generator)
    return to_dtype(u < (to_dtype(limit, u.dtype) if isinstance(limit, Tensor) else limit), input.dtype)


def multinomial(input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None) -> Tensor:
    """Indices drawn with the weights of each row, with or without replacement.

    With: the inverse of the cumulative sum. Without: the smallest of exponential times divided by weights (Efraimidis and
    Spirakis, 2006).
    """
    if input.ndim not in (1, 2):
        raise RuntimeError("prob_dist must be 1 or 2 dim")
    if input.dtype.kind != "f":
        raise RuntimeError(f"multinomial only supports floating-point dtypes for input, got: {input.dtype!r}")
    n = input.shape[-1]
    if n > 1 << 24:
        raise RuntimeError("number of categories cannot exceed 2^24")
    if num_samples <= 0 or (not replacement and num_samples > n):
        raise RuntimeError(
            f"cannot sample n_sample={num_samples} of {n} categories{'' if replacement else ' without replacement'}"
        )
    if force.interpreter is None:  # (compiled code does not read values to refuse them)
        least, most = input.detach().amin(-1), input.detach().sum(-1)  # type: ignore[attr-defined]
        if not bool((least >= 0).all()) or not bool(PUBLIC["isfinite"](most).all()):
            raise RuntimeError("multinomial: probability tensor contains either `inf`, `nan` or element < 0")
        if not bool((most > 0).all()):
            raise RuntimeError("multinomial: invalid multinomial distribution (sum of probabilities <= 0)")
    with no_history():
        w = to_dtype(input, dtypes.float32 if input.dtype is not dtypes.float64 else dtypes.float64)
        if replacement:
            total = PUBLIC["cumsum"](w, -1)
            last = take_slice(total, total.ndim - 1, n - 1, n)
            u = uniform((*tuple(input.shape)[:-1], num_samples), w.dtype, generator) * last
            below = u.unsqueeze(-1) >= total.unsqueeze(-2)  # type: ignore[attr-defined]
            return below.sum(-1).clamp(max=n - 1)
        u = uniform(tuple(input.shape), w.dtype, generator)
        times = WHERE(w > 0, -LOG(1.0 - u) / w, float("inf"))
        return take_slice(ARGSORT(times, dim=times.ndim - 1, descending=False), times.ndim - 1, 0, num_samples)


@contextmanager
def no_history() -> Iterator[None]:
    before, force.grad = force.grad, False
    try:
        yield
    finally:
        force.grad = before


for _f in (randint, randint_like, randperm, normal, bernoulli, multinomial, poisson, binomial):
    PUBLIC[_f.__name__] = _f
Tensor.bernoulli = bernoulli  # type: ignore[attr-defined]
Tensor.multinomial = multinomial  # type: ignore[attr-defined]


def in_place(f: Any) -> Any:
    """A method that draws where its tensor is."""

    @functools.wraps(f)
    def drawn(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not placement.gpu:
            return f(self, *args, **kwargs)
        with placing(self.device):
            return f(self, *args, **kwargs)

    return drawn


@method()
@in_place
def uniform_(self: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Elements drawn from [a, b)."""
    if a > b:
        raise RuntimeError(f"uniform_ expects to return a [from, to) range, but found from={a} > to={b}")
    u = uniform(tuple(self.shape), _floating(self.dtype, "uniform_"), generator)
    return assign(self, u * (b - a) + a if (a, b) != (0.0, 1.0) else u)


@method()
@in_place
def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Elements drawn from a normal distribution."""
    if std < 0:
        raise RuntimeError(f"normal_ expects std >= 0.0, but found std {std}")
    return assign(self, gaussian(tuple(self.shape), _floating(self.dtype, "normal_"), generator) * std + mean)


@method()
@in_place
def bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Generator | None = None) -> Tensor:
    if isinstance(p, Tensor):
        x = bernoulli(EXPAND(p, shape=tuple(self.shape)), generator=generator)
    else:
        x = bernoulli(self, p, generator=generator)
    return assign(self, to_dtype(x, self.dtype))


@method()
@in_place
def random_(self: Tensor, from_: int = 0, to: int | None = None, *, generator: Generator | None = None) -> Tensor:
    if to is None:
        from_, to = (0, from_) if from_ else (0, 1 << (24 if self.dtype.kind == "f" else 8 * self.dtype.itemsize - 1))
    return assign(self, to_dtype(_integers(from_, to, tuple(self.shape), generator), self.dtype))


@method()
@in_place
def exponential_(self: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    if lambd <= 0:
        raise RuntimeError(f"exponential_ expects lambda > 0.0, but found lambda={lambd}")
    u = uniform(tuple(self.shape), _floating(self.dtype, "exponential_"), generator)
    return assign(self, LOG(1.0 - u) * (-1.0 / lambd))


@method()
@in_place
def cauchy_(self: Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Elements drawn from a Cauchy distribution."""
    if sigma <= 0:
        raise RuntimeError(f"cauchy_ expects sigma > 0.0, but found sigma={sigma}")
    u = uniform(tuple(self.shape), _floating(self.dtype, "cauchy_"), generator)
    return assign(self, registered("tan")((u - 0.5) * math.pi) * sigma + median)


@method()
@in_place
def log_normal_(self: Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Generator | None = None) -> Tensor:
    """Exponentials of normals of that mean and standard deviation."""
    if std <= 0:
        raise RuntimeError(f"log_normal_ expects std > 0.0, but found std={std}")
    z = gaussian(tuple(self.shape), _floating(self.dtype, "log_normal_"), generator)
    return assign(self, registered("exp")(z * std + mean))


@method()
@in_place
@typed
def geometric_(self: Tensor, p: float, *, generator: Generator | None = None) -> Tensor:
    """How many trials of probability p it takes to the first success: 1, 2, ..."""
    if not 0 < p < 1:
        raise RuntimeError(f"geometric_ expects p to be in (0, 1), but got p={p}")
    if self.dtype.kind == "b":
        raise NotImplementedError(f'"geometric_" not implemented for {self.dtype!r}')
    w = self.dtype if self.dtype.kind == "f" else dtypes.float32
    u = uniform(tuple(self.shape), w, generator)
    return assign(self, to_dtype(registered("ceil")(LOG(1.0 - u) * (1.0 / math.log1p(-p))).clamp(min=1.0), self.dtype))  # type: ignore[attr-defined]
