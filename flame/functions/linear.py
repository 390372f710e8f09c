"""Products of matrices and vectors."""

from __future__ import annotations

import string
from typing import Any

from flame.functions.elementwise import PUBLIC, public
from flame.functions.promotion import deliver, tensor_operand
from flame.functions.shape import EXPAND, PERMUTE, RESHAPE, wrap_dim
from flame.precision import precise
from flame.primitive import broadcast_shapes, followed, force, registered
from flame.tensor import Tensor

MATMUL = registered("matmul")


def _pair(a: Any, b: Any, op: str) -> tuple[Tensor, Tensor]:
    a, b = tensor_operand(a, op), tensor_operand(b, op, "other")
    if a.dtype is not b.dtype or a.dtype.kind == "b":
        if a.dtype.kind == "b":
            raise NotImplementedError(f'"{op}" not implemented for {a.dtype!r}: cast to an integer or floating dtype first')
        raise RuntimeError(f"{op}: expected m1 and m2 to have the same dtype, but got: {a.dtype!r} != {b.dtype!r}")
    return a, b


@public()
@followed
def matmul(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The matrix product of the last two dimensions, the others broadcast; vectors are rows on the left, columns on the right."""
    a, b = _pair(input, other, "matmul")
    if a.ndim == 0 or b.ndim == 0:
        raise RuntimeError(f"both arguments to matmul need to be at least 1D, but they are {a.ndim}D and {b.ndim}D")
    if a.ndim > 1 and b.ndim > 1:
        return deliver(_product(a, b), out, "matmul")
    n, m = tuple(a.shape), tuple(b.shape)
    x = RESHAPE(a, shape=(1, *n)) if a.ndim == 1 else a
    y = RESHAPE(b, shape=(*m, 1)) if b.ndim == 1 else b
    z = MATMUL(x, y)
    s = list(z.shape)
    if b.ndim == 1:
        s.pop(-1)
    if a.ndim == 1:
        s.pop(-1 if b.ndim == 1 else -2)
    return deliver(RESHAPE(z, shape=tuple(s)), out, "matmul")


def _product(a: Tensor, b: Tensor) -> Tensor:
    """matmul; many rows against one matrix are one tall product."""
    if a.ndim > 2 and b.ndim == 2:
        s = tuple(a.shape)
        if s[-1] != b.shape[0] or 0 in s:
            return MATMUL(a, b)
        flat = MATMUL(RESHAPE(a, shape=(-1 if 0 in s else _count(s[:-1]), s[-1])), b)
        return RESHAPE(flat, shape=(*s[:-1], b.shape[1]))
    return MATMUL(a, b)


def _count(s: tuple[int, ...]) -> int:
    n = 1
    for d in s:
        n *= d
    return n


def _matmul_op(self: Tensor, other: Any) -> Any:
    if not isinstance(other, Tensor):
        return NotImplemented
    run = force.interpreter
    if run is not None and run.next is not None:
        got = run.pair(MATMUL, self, other)
        if got is not None:
            return got
    return matmul(self, other)


Tensor.__matmul__ = precise(_matmul_op, "matmul")  # type: ignore[attr-defined]


def _checked(name: str, ranks: tuple[int, int]) -> None:
    def function(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
        a, b = _pair(input, other, name)
        if (a.ndim, b.ndim) != ranks:
            raise RuntimeError(f"{name}: expected {ranks[0]}D and {ranks[1]}D tensors, got {a.ndim}D and {b.ndim}D")
        if name == "dot" and a.shape != b.shape:
            raise RuntimeError(
                f"inconsistent tensor size, expected tensor {list(a.shape)} and src {list(b.shape)} to have the same number of "
                f"elements, but got {a.numel()} and {b.numel()} elements respectively"
            )
        if name == "bmm" and a.shape[0] != b.shape[0]:
            raise RuntimeError(
                f"Expected size for first two dimensions of batch2 tensor to be: [{a.shape[0]}, {a.shape[2]}] but got: "
                f"{list(b.shape[:2])}."
            )
        return matmul(a, b, out=out)

    function.__name__ = function.__qualname__ = name
    public(name)(followed(function))


for _n, _r in (("mm", (2, 2)), ("bmm", (3, 3)), ("mv", (2, 1)), ("dot", (1, 1)), ("vdot", (1, 1))):
    _checked(_n, _r)


def _added(name: str, product: Any) -> None:
    def function(input: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
        x = tensor_operand(input, name)
        y = product(a, b)
        if x.dtype is not y.dtype:
            raise RuntimeError(f"{name}: expected all tensors to have the same dtype, but got {x.dtype!r} and {y.dtype!r}")
        if y.dtype.kind == "b":
            y = y & (alpha != 0)
            return deliver(y if beta == 0 else y | (x & True), out, name)
        if y.dtype.kind in "ui":
            beta, alpha = int(beta), int(alpha)
        y = y if alpha == 1 else y * alpha
        return deliver(y if beta == 0 else y + (x if beta == 1 else x * beta), out, name)

    def in_place(self: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        return self.copy_(function(self, a, b, beta=beta, alpha=alpha))  # type: ignore[attr-defined]

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"beta * input + alpha * the product ({name[3:]})."
    public(name)(followed(function))
    setattr(Tensor, name + "_", in_place)


@public("outer", "ger")
@followed
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    if input.ndim != 1 or vec2.ndim != 1:
        raise RuntimeError(f"outer: Expected 1-D arguments, but got {input.ndim}-D and {vec2.ndim}-D")
    return RESHAPE(input, shape=(input.numel(), 1)) * vec2


_added("addmm", matmul)
_added("addmv", matmul)
_added("addr", outer)


def _batches(a: Tensor, b: Tensor, op: str) -> tuple[Tensor, Tensor]:
    """Two batches of matrices. Raises RuntimeError for others, IndexError where a dimension that is asked for is not there."""
    x, y = _pair(a, b, op)
    for n, t, least in ((1, x, 2), (2, y, 3)):
        if t.ndim != 3:
            error = IndexError if t.ndim < least else RuntimeError
            raise error(f"{op}: batch{n} must be a 3D tensor, but has shape {list(t.shape)}")
    return x, y


def _summed_product(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products over a batch of matrices."""
    x, y = _batches(a, b, "addbmm")
    if x.shape[0] != y.shape[0]:
        raise RuntimeError(f"batch1 and batch2 must have same number of batches, got {x.shape[0]} and {y.shape[0]}")
    (n, i, k), j = tuple(x.shape), y.shape[2]
    if y.shape[1] != k:
        raise RuntimeError(f"Incompatible matrix sizes for bmm ({i}x{k} and {y.shape[1]}x{j})")
    return matmul(RESHAPE(PERMUTE(x, dims=(1, 0, 2)), shape=(i, n * k)), RESHAPE(y, shape=(n * k, j)))


_added("addbmm", _summed_product)
_added("baddbmm", lambda a, b: matmul(*_batches(a, b, "baddbmm")))


@public()
@followed
def inner(input: Tensor, other: Tensor) -> Tensor:
    return input * other if input.ndim == 0 or other.ndim == 0 else tensordot(input, other, ([-1], [-1]))


@followed
def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """The sum of products over pairs of dimensions: an int (the last of a, the first of b) or two lists."""
    if isinstance(dims, int):
        if not 0 <= dims <= min(a.ndim, b.ndim):
            raise RuntimeError(f"tensordot expects 0 <= dims <= ndim of both operands, but got dims={dims}")
        left, right = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    else:
        left = [wrap_dim(d, a.ndim, "tensordot") for d in dims[0]]
        right = [wrap_dim(d, b.ndim, "tensordot") for d in dims[1]]
    if len(left) != len(right):
        raise RuntimeError(f"both dimension lists should have same length, got {len(left)} and {len(right)}")
    for i, j in zip(left, right, strict=True):
        if a.shape[i] != b.shape[j] and 1 in (a.shape[i], b.shape[j]):  # as if broadcast: the other is summed first
            if a.shape[i] == 1:
                b = b.sum(j, True, dtype=b.dtype)  # type: ignore[attr-defined]
            else:
                a = a.sum(i, True, dtype=a.dtype)  # type: ignore[attr-defined]
        elif a.shape[i] != b.shape[j]:
            raise RuntimeError(
                f"contracted dimensions need to match, but first has size {a.shape[i]} in dim {i} and second has size "
                f"{b.shape[j]} in dim {j}"
            )
    keep_a, keep_b = [d for d in range(a.ndim) if d not in left], [d for d in range(b.ndim) if d not in right]
    k = _count(tuple(a.shape[d] for d in left))
    m, n = tuple(a.shape[d] for d in keep_a), tuple(b.shape[d] for d in keep_b)
    x = RESHAPE(PERMUTE(a, dims=(*keep_a, *left)), shape=(_count(m), k))
    y = RESHAPE(PERMUTE(b, dims=(*right, *keep_b)), shape=(k, _count(n)))
    return RESHAPE(MATMUL(x, y), shape=(*m, *n))


PUBLIC["tensordot"] = tensordot


@followed
def einsum(equation: str, *operands: Any) -> Tensor:
    """Einstein's summation, e.g. einsum("bij,bjk->bik", a, b). Several operands are contracted from left to right.

    Lists of numbers may take the letters' place: einsum(a, [0, 1], b, [1, 2], [0, 2]).
    """
    if isinstance(equation, Tensor):
        equation, operands = _in_letters([equation, *operands])
    ts = list(operands[0]) if len(operands) == 1 and not isinstance(operands[0], Tensor) else list(operands)
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ts):
        raise RuntimeError(f"einsum(): the equation has {len(terms)} operands, but {len(ts)} were given")
    spare = [c for c in string.ascii_letters[::-1] if c not in equation]
    dots = max((t.ndim - len(s.replace("...", "")) for s, t in zip(terms, ts, strict=True) if "..." in s), default=0)
    wild = "".join(spare[:dots])
    for i, (s, t) in enumerate(zip(terms, ts, strict=True)):
        if "..." in s:
            n = t.ndim - len(s.replace("...", ""))
            terms[i] = s.replace("...", wild[dots - n :])
        if len(terms[i]) != t.ndim:
            raise RuntimeError(
                f"einsum(): the number of subscripts in the equation ({len(terms[i])}) does not match the number of dimensions "
                f"({t.ndim}) for operand {i}"
            )
    every = "".join(terms)
    if arrow:
        out = right.replace("...", wild)
    else:
        out = wild + "".join(sorted(c for c in set(every) if every.count(c) == 1 and c not in wild))
    for c in out:
        if c not in every:
            raise RuntimeError(f"einsum(): output subscript {c} does not appear in the equation for any input operand")
    sizes: dict[str, int] = {}
    for s, t in zip(terms, ts, strict=True):
        for c, d in zip(s, t.shape, strict=True):
            if sizes.setdefault(c, d) != d:
                if 1 not in (sizes[c], d):
                    raise RuntimeError(f"einsum(): subscript {c} has size {d} for an operand, which does not match {sizes[c]}")
                sizes[c] = max(sizes[c], d)
    x, labels = _alone(ts[0], terms[0])
    for i in range(1, len(ts)):
        y, other = _alone(ts[i], terms[i])
        later = set("".join(terms[i + 1 :])) | set(out)
        x, labels = _two(x, labels, y, other, later)
    x, labels = _sum_out(x, labels, set(out))
    x = PERMUTE(x, dims=tuple(labels.index(c) for c in out if c in labels))
    return x


def _in_letters(mixed: list) -> tuple[str, tuple]:
    """Operands and lists of dimension numbers, taken in turn, as an equation and operands."""
    letter = lambda d: "..." if d is Ellipsis else string.ascii_letters[d]
    last = mixed.pop() if len(mixed) % 2 else None
    equation = ",".join("".join(map(letter, dims)) for dims in mixed[1::2])
    return equation + ("" if last is None else "->" + "".join(map(letter, last))), tuple(mixed[::2])


def _alone(x: Tensor, labels: str) -> tuple[Tensor, str]:
    """Repeated labels of one operand are diagonals."""
    for c in dict.fromkeys(labels):
        while labels.count(c) > 1:
            i = labels.index(c)
            j = labels.index(c, i + 1)
            x = PUBLIC["diagonal"](x, 0, i, j)
            labels = "".join(v for k, v in enumerate(labels) if k not in (i, j)) + c
    return x, labels


def _sum_out(x: Tensor, labels: str, keep: set[str], dtype: Any = None) -> tuple[Tensor, str]:
    gone = tuple(i for i, c in enumerate(labels) if c not in keep)
    if gone:
        x = x.sum(gone, dtype=dtype)  # type: ignore[attr-defined]
    return x, "".join(c for c in labels if c in keep)


def _two(a: Tensor, p: str, b: Tensor, q: str, later: set[str]) -> tuple[Tensor, str]:
    """Contract two operands, keeping the labels that are needed later: one batched matrix product."""
    a, p = _sum_out(a, p, later | set(q), a.dtype)
    b, q = _sum_out(b, q, later | set(p), b.dtype)
    batch = [c for c in p if c in q and c in later]
    summed = [c for c in p if c in q and c not in later]
    rows, cols = [c for c in p if c not in q], [c for c in q if c not in p]

    def arranged(x: Tensor, labels: str, order: list[str]) -> Tensor:
        return PERMUTE(x, dims=tuple(labels.index(c) for c in order))

    a, b = arranged(a, p, batch + rows + summed), arranged(b, q, batch + summed + cols)
    nb = len(batch)
    shape = broadcast_shapes(tuple(a.shape[:nb]), tuple(b.shape[:nb]), op="einsum")
    ra, rb = tuple(a.shape[nb : nb + len(rows)]), tuple(b.shape[nb + len(summed) :])
    ks = broadcast_shapes(tuple(a.shape[nb + len(rows) :]), tuple(b.shape[nb : nb + len(summed)]), op="einsum")
    a, b = EXPAND(a, shape=(*shape, *ra, *ks)), EXPAND(b, shape=(*shape, *ks, *rb))
    x, y = RESHAPE(a, shape=(*shape, _count(ra), _count(ks))), RESHAPE(b, shape=(*shape, _count(ks), _count(rb)))
    z = MATMUL(x, y) if summed or x.dtype.kind != "b" else x * y  # (booleans are multiplied, and not summed)
    return RESHAPE(z, shape=(*shape, *ra, *rb)), "".join(batch + rows + cols)


PUBLIC["einsum"] = einsum


@followed
def multi_dot(tensors: Any) -> Tensor:
    """The product of a chain of matrices."""
    x, *rest = tensors
    for y in rest:
        x = matmul(x, y)
    return x


@public()
@followed
def kron(input: Tensor, other: Tensor) -> Tensor:
    n = max(input.ndim, other.ndim)
    a, b = (x.reshape(*[1] * (n - x.ndim), *x.shape) for x in (input, other))  # type: ignore[attr-defined]
    x = RESHAPE(a, shape=tuple(v for d in a.shape for v in (d, 1)))
    y = RESHAPE(b, shape=tuple(v for d in b.shape for v in (1, d)))
    return RESHAPE(x * y, shape=tuple(i * j for i, j in zip(a.shape, b.shape, strict=True)))
