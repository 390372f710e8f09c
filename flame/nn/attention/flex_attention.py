"""Attention whose scores the user's function changes: ALiBi, soft caps, windows, documents, and whatever comes next.

    flex_attention(q, k, v, score_mod=None, block_mask=None, ...)     score_mod(score, b, h, q_idx, kv_idx) -> score
    create_block_mask(mask_mod, B, H, Q_LEN, KV_LEN)                  mask_mod(b, h, q_idx, kv_idx) -> bool

The functions are of single numbers, and may look tensors up (`lengths[b]`, `bias[h, q_idx - kv_idx + n]`). They are run once a call
on stand-ins and become part of the attention's kernels, forward and backward: scores are never in memory on a GPU, and where a mask
compares positions alone, what it hides is not computed. Names and meaning are those of PyTorch's module of this name; the idea is
that of Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from flame.compiler.autodiff import pull_back
from flame.compiler.graph import Builder, Graph, Value
from flame.dtypes import bool_, float32, float64, int32
from flame.functions import PUBLIC
from flame.functions.promotion import tensor_operand
from flame.nn.attention.tracing import Tracing
from flame.ops import flex
from flame.ops.flex import Modification, Step, V
from flame.primitive import Spec, force, placement, registered
from flame.tensor import Tensor

FLEX, CAST, ARANGE = registered("flex_attention"), registered("cast"), PUBLIC["arange"]
_DEFAULT_BLOCK = 128
_PLACE = Spec((), int32)
Function = Callable[..., Tensor]


def noop_mask(batch: Tensor, head: Tensor, token_q: Tensor, token_kv: Tensor) -> Tensor:
    """A mask that hides nothing."""
    return token_q == token_q


def and_masks(*mask_mods: Function) -> Function:
    """The mask that shows what all of them show. Raises RuntimeError for what is no function."""
    return _joined(mask_mods, lambda a, b: a & b)


def or_masks(*mask_mods: Function) -> Function:
    """The mask that shows what any of them shows. Raises RuntimeError for what is no function."""
    return _joined(mask_mods, lambda a, b: a | b)


def _joined(mask_mods: tuple[Function, ...], join: Callable[[Any, Any], Any]) -> Function:
    if not mask_mods or not all(map(callable, mask_mods)):
        raise RuntimeError(f"All inputs should be callable mask_mods: {mask_mods}")

    def joined(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        out: Any = mask_mods[0](b, h, q_idx, kv_idx)
        for f in mask_mods[1:]:
            out = join(out, f(b, h, q_idx, kv_idx))
        return out

    return joined


class BlockMask:
    """A mask as a function, with what it shows by blocks of positions.

    `mask_mod` is what attention computes; the counts are for those who plan by them: `kv_num_blocks` [B, H, rows of blocks] of
    blocks that show something, their columns first in `kv_indices`; `full_...` of those that show everything.
    """

    def __init__(self, mask_mod: Function, shape: tuple[int, int, int, int], block_size: tuple[int, int], dense: Tensor):
        self.mask_mod, self.shape, self.BLOCK_SIZE = mask_mod, shape, block_size
        self.seq_lengths = shape[2:]
        some, every = _by_blocks(dense, block_size)
        self.kv_num_blocks, self.kv_indices = _listed(some & ~every)
        self.full_kv_num_blocks, self.full_kv_indices = _listed(every)
        self._some = some

    def to_dense(self) -> Tensor:
        """Which blocks show something: int32 [B, H, rows of blocks, columns of blocks]."""
        return self._some.to(int32)  # type: ignore[attr-defined]

    def numel(self) -> int:
        return math.prod(self.shape)

    def sparsity(self) -> float:
        """Percent of blocks that show nothing."""
        return 100.0 * (1.0 - float(self._some.to(float32).mean().item()))  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"BlockMask(shape={self.shape}, sparsity={self.sparsity():.2f}%)"


def _by_blocks(dense: Any, block: tuple[int, int]) -> tuple[Any, Any]:
    """Which blocks show something, and which everything (that is there)."""
    b, h, t, s = dense.shape
    rows, columns = -(-t // block[0]), -(-s // block[1])

    def gathered(x: Any, beyond: bool) -> Any:
        x = _padded(x, (rows * block[0], columns * block[1]), beyond)
        return x.reshape(b, h, rows, block[0], columns, block[1]).permute(0, 1, 2, 4, 3, 5).reshape(b, h, rows, columns, -1)

    return gathered(dense, False).any(-1), gathered(dense, True).all(-1)


def _padded(x: Any, size: tuple[int, int], value: bool) -> Any:
    t, s = x.shape[-2:]
    return registered("pad")(x, lo=(0, 0, 0, 0), hi=(0, 0, size[0] - t, size[1] - s), value=value)


def _listed(blocks: Any) -> tuple[Any, Any]:
    """How many of each row's blocks, and their columns, those that are meant first."""
    return blocks.sum(-1).to(int32), PUBLIC["argsort"](blocks.to(int32), -1, True, stable=True).to(int32)


def create_mask(mod_fn: Function, B: int | None, H: int | None, Q_LEN: int, KV_LEN: int, device: Any = None) -> Tensor:
    """The mask as a tensor: bool [B, H, Q_LEN, KV_LEN] of a mask_mod (None: 1). Raises as `flex_attention` for the function."""
    b, h = 1 if B is None else B, 1 if H is None else H
    tracing, result = _masked(mod_fn, device)
    steps, out = tracing.forward(result)
    values = [None, *_places((b, h, Q_LEN, KV_LEN), device), *tracing.tables]
    Modification(len(tracing.tables), steps, out, (), None).modified(values, flex._bind)
    return values[out.n].broadcast_to((b, h, Q_LEN, KV_LEN))


def create_block_mask(
    mask_mod: Function, B: int | None, H: int | None, Q_LEN: int, KV_LEN: int, device: Any = None,
    BLOCK_SIZE: int | tuple[int, int] = _DEFAULT_BLOCK, _compile: bool = False,
) -> BlockMask:  # fmt: skip
    """What `flex_attention` takes as its mask: the function, and what it shows by blocks. None for B and H: the same for all.

    Raises RuntimeError where the function is not one of single numbers that gives a bool. `_compile` changes nothing.
    """
    block = (BLOCK_SIZE, BLOCK_SIZE) if isinstance(BLOCK_SIZE, int) else tuple(BLOCK_SIZE)
    dense = create_mask(mask_mod, B, H, Q_LEN, KV_LEN, device)
    return BlockMask(mask_mod, (B or 1, H or 1, Q_LEN, KV_LEN), (block[0], block[1]), dense)


def _places(shape: tuple[Any, ...], device: Any) -> list[Any]:
    out = []
    for d, n in enumerate(shape):
        at = ARANGE(n, dtype=int32, device=device)
        out.append(at.reshape(*(n if d == x else 1 for x in range(4))))
    return out


def _masked(mask_mod: Function, device: Any) -> tuple[Tracing, Any]:
    """A trace of a mask alone."""
    tracing = Tracing("mask_mod", device, (Spec((), float32), *[_PLACE] * 4))
    return tracing, _shown(tracing, mask_mod)


def _shown(tracing: Tracing, mask_mod: Function) -> Any:
    if not callable(mask_mod):
        raise RuntimeError(f"expected a mask_mod, a function of b, h, q_idx and kv_idx, but got {type(mask_mod).__name__}")
    shown = tracing.run(mask_mod, *tracing.inputs[1:])
    if shown.dtype is not bool_:
        raise RuntimeError(f"mask_mod: expected it to return a bool tensor, but got {shown.dtype!r}")
    return shown


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, score_mod: Function | None = None, block_mask: BlockMask | None = None,
    scale: float | None = None, enable_gqa: bool = False, return_lse: bool = False, kernel_options: Any = None,
) -> Any:  # fmt: skip
    """softmax(score_mod(query @ key^T * scale)) @ value over [B, H, L, E], [B, K, S, E] and [B, K, S, Ev].

    `score_mod(score, b, h, q_idx, kv_idx)` gives the score that takes the place of one (float32, or float64); `block_mask` hides
    what its function says. scale: None is 1 / sqrt(E). `enable_gqa` lets heads of the query share heads of key and value. With
    `return_lse`, also the logarithm of each row's sum of exponentials, [B, H, L]. A row that attends to nothing is 0.
    `kernel_options` is taken and not needed.

    Derivatives of first order flow to query, key and value through the kernels; to tensors that the functions look up through
    smaller operations, which keep scores in memory. Raises RuntimeError for dtypes and shapes that do not fit, and for functions
    that do more than compute with single numbers and look tensors up; ValueError for tensors that are not 4-D.
    """
    q, k, v = (tensor_operand(t, "flex_attention", n) for t, n in ((query, "query"), (key, "key"), (value, "value")))
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(f"NYI: query, key, and value must be 4D tensors, but got {q.ndim}D, {k.ndim}D and {v.ndim}D")
    if q.shape[1] != k.shape[1] and not enable_gqa:
        raise ValueError(
            f"Expect query and key/value to have the same number of heads but got Hq={q.shape[1]} and Hkv={k.shape[1]}. Try "
            "setting enable_gqa=True for GQA."
        )
    if block_mask is not None and not isinstance(block_mask, BlockMask):
        raise TypeError(f"flex_attention: expected a BlockMask from create_block_mask, but got {type(block_mask).__name__}")
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    device = q.device if placement.gpu else None
    score = Spec((), float64 if q.dtype is float64 else float32)
    tracing = Tracing("score_mod", device, (score, *[_PLACE] * 4))
    changed: Any = tracing.inputs[0]
    if score_mod is not None:
        changed = tracing.run(score_mod, *tracing.inputs)
        if changed.dtype.kind != "f":
            raise RuntimeError(f"score_mod: expected it to return a floating tensor, but got {changed.dtype!r}")
    if changed.dtype is not score.dtype:
        changed = tracing.run(lambda: CAST(changed, dtype=score.dtype))
    if block_mask is not None:
        _fits(block_mask, q, k)
        tracing.what = "mask_mod"
        shown = _shown(tracing, block_mask.mask_mod)
        changed = tracing.run(lambda: registered("where")(shown, changed, -math.inf))
    steps, result = tracing.forward(changed)
    tables = tuple(tracing.tables)
    specs = tuple(Spec(tuple(0 for _ in t.shape), t.dtype) for t in tables)
    modification = with_slope(steps, result, specs, score)
    if force.grad and any(t.requires_grad for t in tables):
        y, lse = flex.composed["flex_attention"](q, k, v, *tables, modification=modification, scale=factor)
    else:
        y, lse = FLEX(q, k, v, *tables, modification=modification, scale=factor)
    return (y, lse) if return_lse else y


def _fits(mask: BlockMask, q: Tensor, k: Tensor) -> None:
    b, h, t, s = mask.shape
    if b not in (1, q.shape[0]) or h not in (1, q.shape[1]) or t < q.shape[2] or s < k.shape[2]:
        raise ValueError(
            f"block_mask was created for shape {mask.shape} but got B={q.shape[0]}, H={q.shape[1]}, q_len={q.shape[2]} and "
            f"kv_len={k.shape[2]}. As the block mask was created for other sizes, create a new one for these."
        )


@lru_cache(maxsize=256)
def with_slope(steps: tuple[Step, ...], result: V, tables: tuple[Spec, ...], score: Spec) -> Modification:
    """The steps with those of the score's cotangent."""
    builder = Builder(Graph())
    inputs: list[Any] = [builder.input(score), *(builder.input(_PLACE) for _ in range(4)), *(map(builder.input, tables))]
    values: list[Any] = list(inputs)
    with builder:
        out = Modification(len(tables), steps, result, (), None).modified(values, flex._bind)
    number = {v: V(n) for n, v in enumerate(values)}
    cotangent = builder.input(score)
    before = len(builder.graph.nodes)
    (slope,) = pull_back(builder, [out], [cotangent], [inputs[0]]) if isinstance(out, Value) else (None,)
    number[cotangent] = V(len(values))
    backward = []
    for n in builder.graph.nodes[before:]:
        operands = tuple(number[o] if isinstance(o, Value) else o for o in n.operands)
        backward.append(Step(n.primitive.name, operands, tuple(n.params.items())))
        number[n.output] = V(len(values) + len(backward))
    return Modification(len(tables), steps, result, tuple(backward), None if slope is None else number[slope])


__all__ = [
    "BlockMask",
    "and_masks",
    "create_block_mask",
    "create_mask",
    "flex_attention",
    "noop_mask",
    "or_masks",
]
