"""A linear map and cross entropy over so many classes that the logits should never be in memory together.

    entropy_in_chunks(x, w, target, bias, weight, reduction, ignore_index, chunk) -> loss

Rows go through in chunks: z = x w^T + b, loss = (log sum exp z - z[target]) * weight[target], summed or averaged. The derivative of
a sum or a mean is (softmax(z) - onehot) times a number for each row, so the gradients are computed with the loss, while a chunk's
logits are there, and only scaled by backward: three products, as without chunks, and memory for one chunk of logits. Losses that
are not reduced have another cotangent for each row: there backward computes the logits again. (As in Liger kernels and in PyTorch's
`linear_cross_entropy`; Hsu et al. 2024, arXiv 2410.10989.)

Narrow floats are multiplied as they are, and summed over chunks in float32. Derivatives are of first order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flame import dtypes
from flame.autograd.function import Function
from flame.autograd.modes import is_grad_enabled
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import to_dtype
from flame.ops.declare import is_narrow
from flame.primitive import registered
from flame.tensor import Tensor

SUM, AMAX, EXP, LOG, GATHER, WHERE, NE, IOTA, EQ = map(
    registered, ("sum", "amax", "exp", "log", "gather", "where", "ne", "iota", "eq")
)
METHODS = ("aspect_ratio", "aspect_ratio:N", "auto")
POLICIES = ("auto", "accurate", "balanced", "compact")


@dataclass(frozen=True, slots=True)
class LinearCrossEntropyOptions:
    """How `linear_cross_entropy` goes through its rows in chunks.

    batch_chunk_size: rows of a chunk. chunking_method: how that is chosen, if it is not given: "aspect_ratio" takes so many that
    the chunk's logits are as large as the input, "aspect_ratio:N" the N-th part of them, "auto" is "aspect_ratio:2"; None: all, or
    `batch_chunk_size`. acc_dtype: what gradients are summed in over chunks (by default float32, for float64 itself); acc_policy:
    "accurate" multiplies in that dtype too, all others in the input's. allow_retain_graph: taken for PyTorch's sake; `backward` may
    be repeated in any case where the graph is retained. Raises ValueError for other values.
    """

    allow_retain_graph: bool = False
    batch_chunk_size: int | None = None
    chunking_method: str | None = "auto"
    acc_policy: str = "auto"
    acc_dtype: Any = None

    def __post_init__(self) -> None:
        if self.acc_policy not in POLICIES:
            raise ValueError(f"invalid acc_policy: {self.acc_policy!r}; expected one of {', '.join(POLICIES)}")
        if self.chunking_method is not None and self.chunking_method != "auto":
            name, colon, factor = self.chunking_method.partition(":")
            if name != "aspect_ratio" or (colon and not (factor.isdigit() and int(factor) > 0)):
                raise ValueError(f"invalid chunking_method: {self.chunking_method!r}; expected one of {', '.join(METHODS)}")
        n = self.batch_chunk_size
        if n is not None and not (type(n) is int and n > 0):
            raise ValueError(f"batch_chunk_size must be positive int or None, got {n!r}")
        if self.acc_dtype not in (None, dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64):
            raise ValueError(f"acc_dtype must be None, float16, bfloat16, float32 or float64, got {self.acc_dtype!r}")

    def rows(self, batch: int, features: int, classes: int) -> int:
        """Rows of a chunk. Raises ValueError where both ways to say it are used and differ."""
        given = self.batch_chunk_size
        if self.chunking_method is None or (self.chunking_method == "auto" and given is not None):
            return max(1, min(given or batch, batch))
        factor = 2 if self.chunking_method == "auto" else int(self.chunking_method.partition(":")[2] or 1)
        wanted = -(-batch // max(1, -(-classes // max(features, 1))))
        found = max(1, min(batch, (1 << max(0, wanted - 1).bit_length()) // factor))
        if given is not None and min(given, max(batch, 1)) != found:
            raise ValueError(
                f"batch_chunk_size (={given}) and chunking_method ('{self.chunking_method}') give different chunk sizes "
                f"({given} vs {found}); pass only one."
            )
        return found

    def accumulator(self, kind: Any) -> Any:
        """The dtype of sums over chunks, for inputs of this one."""
        return self.acc_dtype or (dtypes.float32 if is_narrow(kind.numpy) else kind)


class _Chunks:
    """The rows in chunks, and what each of them gives."""

    def __init__(self, x: Any, w: Any, target: Any, bias: Any, weight: Any, ignore: int, options: LinearCrossEntropyOptions):
        self.x, self.w, self.target, self.bias, self.weight, self.ignore = x, w, target, bias, weight, ignore
        self.chunk = options.rows(x.shape[0], x.shape[1], w.shape[0])
        self.sums = options.accumulator(x.dtype)
        self.factors = self.sums if options.acc_policy == "accurate" else x.dtype
        self.product = PUBLIC["matmul"]

    def importance(self) -> Any:
        """Of each row: its class's weight, 0 where it is ignored; and the class, 0 there."""
        counts = NE(self.target, self.ignore)
        classes = WHERE(counts, self.target, 0)
        each = to_dtype(counts, self.sums)
        return each if self.weight is None else each * to_dtype(self.weight[classes], self.sums), classes

    def slices(self) -> Iterator[slice]:
        n = self.x.shape[0]
        for begin in range(0, n, self.chunk):
            yield slice(begin, min(begin + self.chunk, n))

    def logits(self, at: slice) -> Any:
        """A chunk's, less the greatest of each row."""
        z = to_dtype(self.product(self.x[at], self.w.t()), self.sums)
        z = z if self.bias is None else z + self.bias
        return z - AMAX(z, dim=(1,), keepdim=True)

    def losses(self, z: Any, powers: Any, classes: Any) -> Any:
        """-log softmax at the class."""
        return LOG(SUM(powers, dim=(1,), keepdim=False)) - GATHER(z, classes.unsqueeze(1), dim=1).squeeze(1)

    def slopes(self, powers: Any, classes: Any, scale: Any) -> Any:
        """The cotangent of a chunk's logits, given that of each row's loss."""
        total = SUM(powers, dim=(1,), keepdim=True)
        here = EQ(IOTA(size=self.w.shape[0], dtype=classes.dtype, **self._beside()), classes.unsqueeze(1))
        return to_dtype((powers / total - to_dtype(here, self.sums)) * scale.unsqueeze(1), self.factors)

    def _beside(self) -> dict[str, Any]:
        return {"place": str(self.x.device)} if self.x.is_cuda else {}

    def gradients(self, needs: tuple[bool, bool, bool]) -> tuple[list[Any], Callable[[slice, Any], None]]:
        """Sums of the gradients of x, w and bias (None where they are not needed), and what adds a chunk's slopes to them."""
        x, w = self.x, self.w
        found: list[Any] = [
            x.new_zeros(x.shape) if needs[0] else None,
            x.new_zeros(w.shape, dtype=self.sums) if needs[1] else None,
            x.new_zeros((w.shape[0],), dtype=self.sums) if needs[2] else None,
        ]

        def add(at: slice, dz: Any) -> None:
            if found[0] is not None:
                found[0][at] = to_dtype(self.product(dz, to_dtype(w, self.factors)), x.dtype)
            if found[1] is not None:
                found[1].add_(to_dtype(self.product(dz.t(), to_dtype(x[at], self.factors)), self.sums))
            if found[2] is not None:
                found[2].add_(SUM(to_dtype(dz, self.sums), dim=(0,), keepdim=False))

        return found, add

    def finished(self, found: list[Any]) -> list[Any]:
        """The gradients in the dtypes of what they are of."""
        return [None if g is None else to_dtype(g, o.dtype) for g, o in zip(found, (self.x, self.w, self.bias), strict=True)]


def _first_order() -> None:
    if is_grad_enabled():
        raise RuntimeError("linear_cross_entropy in chunks has derivatives of first order only: pass options=None for more")


class _Reduced(Function):
    """The sum or mean of the losses, with the gradients at hand."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, bias: Any, target: Any, weight: Any, mean: bool, ignore: int, how: Any) -> Any:
        chunks = _Chunks(x, w, target, bias, weight, ignore, how)
        each, classes = chunks.importance()
        scale = each / SUM(each, dim=(0,), keepdim=False) if mean else each
        needs = ctx.needs_input_grad[:3]
        found, add = chunks.gradients(needs)
        total = x.new_zeros((), dtype=chunks.sums)
        for at in chunks.slices():
            z = chunks.logits(at)
            powers = EXP(z)
            total = total + SUM(
                WHERE(NE(each[at], 0.0), chunks.losses(z, powers, classes[at]) * scale[at], 0.0), dim=(0,), keepdim=False
            )
            if any(needs):
                add(at, chunks.slopes(powers, classes[at], scale[at]))
        if mean:
            total = total + 0.0 / SUM(each, dim=(0,), keepdim=False)  # (the mean of no rows is NaN)
        ctx.save_for_backward(*chunks.finished(found))
        return to_dtype(total, x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        _first_order()
        return (*(None if d is None else to_dtype(d * g, d.dtype) for d in ctx.saved_tensors), *(None,) * 5)


class _Each(Function):
    """The losses of all rows; logits are computed again by backward."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, bias: Any, target: Any, weight: Any, ignore: int, how: Any) -> Any:
        ctx.save_for_backward(x, w, bias, target, weight)
        ctx.more = ignore, how
        chunks = _Chunks(x, w, target, bias, weight, ignore, how)
        each, classes = chunks.importance()
        out = x.new_zeros((x.shape[0],), dtype=chunks.sums)
        for at in chunks.slices():
            z = chunks.logits(at)
            out[at] = WHERE(NE(each[at], 0.0), chunks.losses(z, EXP(z), classes[at]) * each[at], 0.0)
        return to_dtype(out, x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        _first_order()
        x, w, bias, target, weight = ctx.saved_tensors
        chunks = _Chunks(x, w, target, bias, weight, *ctx.more)
        each, classes = chunks.importance()
        scale = each * to_dtype(g, chunks.sums)
        found, add = chunks.gradients(ctx.needs_input_grad[:3])
        for at in chunks.slices():
            add(at, chunks.slopes(EXP(chunks.logits(at)), classes[at], scale[at]))
        return (*chunks.finished(found), *(None,) * 4)


def entropy_in_chunks(
    x: Tensor, w: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None, reduction: str, ignore_index: int,
    options: LinearCrossEntropyOptions,
) -> Tensor:  # fmt: skip
    """The loss of x [N, F], w [C, F] and classes [N]: "none" [N], "sum" or "mean" (by the weights of rows that count)."""
    if reduction == "none":
        return _Each.apply(x, w, bias, target, weight, ignore_index, options)
    return _Reduced.apply(x, w, bias, target, weight, reduction == "mean", ignore_index, options)
