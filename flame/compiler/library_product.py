"""Kernels that a library of matrix products computes as well: one product, and of its surroundings what such libraries know.

    product_of(kernel, symbols) -> LibraryProduct           raises Refused, with the reason, for every other kernel

    out[b, i, j] = act(alpha * scale * sum_k left[b, i, k] * right[b, j, k] + beta * addend[b, i, j] + bias[j])
                                                            act ::= nothing | relu | gelu (by tanh)
                                                            scale ::= the product of at most two numbers in memory (8-bit floats)

Sizes are numbers here, and every array is an address and a stride a direction: axes of the kernel that one stride describes in
all arrays are one direction. `out` and `addend` have stride 1 along j, operands along k or along their other direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Final, Literal

from flame.compiler.index_math import divisions, evaluate, names
from flame.compiler.kernel import Const, Contract, Kernel, Load, Op, Reduce, Store, flat
from flame.dtypes import bfloat16, dtype, float8_e4m3fn, float8_e5m2, float16, float32, float64, int8, int32
from flame.errors import Refused

Activation = Literal["", "relu", "gelu"]

#: what may be multiplied, by the dtype that products are added up in
_SUMMED_IN = {float16: float32, bfloat16: float32, float32: float32, float64: float64, int8: int32}
_BYTES = (float8_e4m3fn, float8_e5m2)  #: of which both may be e4m3, and one e5m2
_SUMMED_IN |= dict.fromkeys(_BYTES, float32)


@dataclass(frozen=True, slots=True)
class Matrix:
    """`matrix[b, x, y]` is the element offset + b * batch + x * rows + y * columns of a buffer."""

    buffer: str
    dtype: dtype
    offset: int
    batch: int
    rows: int
    columns: int

    def lines(self, m: int, n: int) -> tuple[bool, int]:
        """As m x n elements: whether its columns (else its rows) lie in one piece, and how far apart they begin. A stride along
        a single element says nothing. Raises Refused where neither does."""
        if self.columns == 1 or n == 1:
            pitch = self.rows if m > 1 else n
            if pitch >= n:
                return False, pitch
        elif self.rows == 1 or m == 1:
            pitch = self.columns if n > 1 else m
            if pitch >= m:
                return True, pitch
        raise Refused("a library takes matrices whose rows or columns lie in one piece")


@dataclass(frozen=True, slots=True)
class LibraryProduct:
    """See above. `left` is m x k, `right` n x k, `out` and `addend` m x n; `bias` has n elements that lie side by side."""

    batch: int
    m: int
    n: int
    k: int
    left: Matrix
    right: Matrix
    out: Matrix
    accumulator: dtype
    alpha: float = 1.0
    addend: Matrix | None = None
    beta: float = 0.0
    bias: Matrix | None = None
    activation: Activation = ""
    scales: tuple[Matrix, ...] = ()


def product_of(kernel: Kernel, symbols: Mapping[str, int]) -> LibraryProduct:
    """The kernel as one product at these values of its symbols. Raises Refused."""
    contracts = [s for s in kernel.statements if isinstance(s, Contract)]
    if len(contracts) != 1 or len(kernel.stores) != 1 or any(isinstance(s, Reduce) for s in kernel.statements):
        raise Refused("a library computes one product and stores it once")
    [c], [store] = contracts, kernel.stores
    around = _Around(kernel, c)
    around.summed(around.activated(store.value), 1.0)
    extents = {a: int(evaluate(e, symbols)) for a, e in kernel.axes.items()}
    if not prod(extents.values()):
        raise Refused("there is nothing to multiply")
    left, right = (_Access(kernel, around.load(o), symbols, extents) for o in c.operands)
    out = _Access(kernel, store, symbols, extents)
    bytes_ = left.dtype in _BYTES
    narrow: tuple[dtype, ...] = (float32, float16, bfloat16) if bytes_ else (float32, left.dtype)
    agree = left.dtype is right.dtype or (bytes_ and right.dtype in _BYTES)
    if not agree or _SUMMED_IN.get(left.dtype) is not c.dtype or left.dtype is right.dtype is float8_e5m2:
        raise Refused(f"no library multiplies {left.dtype} and {right.dtype} and adds in {c.dtype}")

    k = frozenset(a for a in c.axes if extents[a] > 1)
    shared, m, n = (left.axes & right.axes) - k, left.axes - right.axes, right.axes - left.axes
    if not k <= left.axes & right.axes or out.axes != shared | m | n:
        raise Refused("the operands of a product share what is summed and the batch, and the result has all others")
    if any(out.strides[a] == 1 for a in m):
        left, right, m, n = right, left, n, m
    bias: _Access | None = None
    addend: _Access | None = None
    for x in (_Access(kernel, s, symbols, extents) for s in around.added):
        if x.axes == n and bias is None and around.factors[x.name] == 1.0:
            bias = x
        elif x.axes == out.axes and addend is None:
            addend = x
        else:
            raise Refused("a library adds one row and one matrix to a product")
        if x.dtype is not out.dtype:
            raise Refused("what a library adds to a product has the result's dtype")
    if c.dtype is int32 and (around.added or around.activation or around.alpha != 1.0 or out.dtype is not int32):
        raise Refused("a product of integers is stored as it is")
    if out.dtype.itemsize > c.dtype.itemsize or (c.dtype is float32 and out.dtype not in narrow):
        raise Refused(f"no library stores a product of {left.dtype} as {out.dtype}")
    scales = [_Access(kernel, s, symbols, extents) for s in around.scales]
    if len(scales) > 2 or (scales and not bytes_) or any(x.dtype is not float32 for x in scales):
        raise Refused("a library scales products of 8-bit floats, by a float32 an operand")
    if bytes_ and bias is not None and out.dtype is float32:
        raise Refused("what a library adds to a product has the result's dtype")

    whole = [out] if addend is None else [out, addend]
    size_m, rows = _merged(m, extents, [*whole, left])
    size_n, columns = _merged(n, extents, [*whole, right, *([] if bias is None else [bias])])
    size_k, summed = _merged(k, extents, [left, right])
    size_b, batch = _merged(shared, extents, [*whole, left, right])

    def matrix(x: _Access, by: Mapping[str, int], across: Mapping[str, int], sizes: tuple[int, int]) -> Matrix:
        made = Matrix(x.buffer, x.dtype, x.offset, batch.get(x.name, 0), by.get(x.name, 0), across.get(x.name, 0))
        made.lines(*sizes)
        return made

    outs = [matrix(x, rows, columns, (size_m, size_n)) for x in whole]
    if any(x.lines(size_m, size_n)[0] for x in outs) or (bias is not None and columns.get(bias.name, 0) > 1):
        raise Refused("the result of a product, and what is added to it, lie row by row")
    return LibraryProduct(
        size_b, size_m, size_n, size_k,
        matrix(left, rows, summed, (size_m, size_k)), matrix(right, columns, summed, (size_n, size_k)), outs[0],
        c.dtype, around.alpha,
        None if addend is None else outs[1], 0.0 if addend is None else around.factors[addend.name],
        None if bias is None else Matrix(bias.buffer, bias.dtype, bias.offset, 0, 0, 1), around.activation,
        tuple(Matrix(x.buffer, x.dtype, x.offset, 0, 0, 0) for x in scales),
    )  # fmt: skip


class _Around:
    """What a kernel does to its product before it is stored. Raises Refused where no library does it."""

    def __init__(self, kernel: Kernel, contract: Contract):
        self.kernel, self.contract = kernel, contract
        self.activation: Activation = ""
        self.alpha = 0.0
        self.added: list[Load] = []
        self.factors: dict[str, float] = {}  #: of each of these
        self.scales: list[Load] = []

    def load(self, name: str) -> Load:
        s = self.kernel.definitions[name]
        if isinstance(s, Op) and s.op == "cast" and s.dtype is float32:  # (which is exact, of what is narrower)
            s = self.kernel.definitions[s.operands[0]]
        if not isinstance(s, Load) or s.mask or self.kernel.buffers[s.buffer].role == "out":
            raise Refused("a library multiplies arrays as they are")
        return s

    def activated(self, name: str) -> str:
        """What the activation is of."""
        s = self.kernel.definitions[name]
        if isinstance(s, Op) and s.op == "cast" and s.dtype.is_floating_point:  # (the result's, from the dtype of the sum)
            name = s.operands[0]
            s = self.kernel.definitions[name]
        if isinstance(s, Op) and s.op == "relu":
            self.activation = "relu"
            return s.operands[0]
        if isinstance(s, Op) and s.op == "mul":
            half = self.kernel.definitions[s.operands[0]]
            if isinstance(half, Op) and half.op == "mul" and self._tree(name, half.operands[0]) == _GELU:
                self.activation = "gelu"
                return half.operands[0]
        return name

    def _tree(self, name: str, leaf: str) -> Any:
        s = self.kernel.definitions[name]
        if name == leaf:
            return "x"
        if isinstance(s, Const):
            return s.value
        return (s.op, *[self._tree(o, leaf) for o in s.operands]) if isinstance(s, Op) else name

    def summed(self, name: str, factor: float, scales: tuple[Load, ...] = ()) -> None:
        """The terms of a sum, each times a number, the product also times numbers in memory."""
        match self.kernel.definitions[name]:
            case Contract() if not self.alpha and factor:
                self.alpha = factor
                self.scales = [*scales]
            case Load() if not scales:
                self.added.append(self.load(name))
                self.factors[name] = factor
            case Op(op="cast", operands=[x]) if self.kernel.definitions[x].dtype.is_floating_point:
                if not isinstance(self.kernel.definitions[x], Load):
                    raise Refused("a library rounds once, at the end")
                self.summed(x, factor, scales)
            case Op(op="add", operands=[x, y]):
                self.summed(x, factor, scales)
                self.summed(y, factor, scales)
            case Op(op="sub", operands=[x, y]):
                self.summed(x, factor, scales)
                self.summed(y, -factor, scales)
            case Op(op="mul", operands=[x, y]):
                a, b = self.kernel.definitions[x], self.kernel.definitions[y]
                if isinstance(b, Const):
                    self.summed(x, factor * float(b.value), scales)
                elif isinstance(a, Const):
                    self.summed(y, factor * float(a.value), scales)
                elif isinstance(b, Load) and not self.kernel.domains[y]:
                    self.summed(x, factor, (*scales, b))
                else:
                    raise Refused("a library multiplies a product by numbers only")
            case _:
                raise Refused("what surrounds the product is more than a sum and an activation")


#: what gelu by tanh is lowered to
_GELU: Final = (
    "mul", ("mul", "x", 0.5),
    ("add", ("tanh", ("mul", ("add", "x", ("mul", ("mul", ("mul", "x", "x"), "x"), 0.044715)), 0.7978845608028654)), 1.0),
)  # fmt: skip


class _Access:
    """A load or a store by numbers: its elements lie at `offset` + the sum of axis * stride. `axes`: those that it varies with."""

    def __init__(self, kernel: Kernel, s: Load | Store, symbols: Mapping[str, int], extents: Mapping[str, int]):
        buffer = kernel.buffers[s.buffer]
        self.buffer, self.dtype = s.buffer, buffer.dtype
        self.name = s.name if isinstance(s, Load) else ""
        if s.mask:
            raise Refused("a library reads and writes whole arrays")
        e = flat(kernel, s)
        if any(True for _ in divisions(e)) or not names(e) <= extents.keys() | symbols.keys():
            raise Refused("a library reads arrays by one stride a direction")
        at = lambda where: int(evaluate(e, {**symbols, **dict.fromkeys(extents, 0), **where}))
        self.offset = at({})
        self.strides = {a: at({a: 1}) - self.offset for a, n in extents.items() if n > 1}
        self.axes = frozenset(a for a, step in self.strides.items() if step)
        last = {a: n - 1 for a, n in extents.items()}
        if (
            at(last) != self.offset + sum(step * last[a] for a, step in self.strides.items())
            or min([0, *self.strides.values()]) < 0
        ):
            raise Refused("a library reads arrays by one stride a direction")


def _merged(axes: frozenset[str], extents: Mapping[str, int], arrays: Sequence[_Access]) -> tuple[int, dict[str, int]]:
    """Axes as one direction: how long it is, and its stride in each array (by name). Raises Refused where it is none."""
    order = sorted(axes, key=lambda a: -arrays[0].strides[a])
    for outer, inner in pairwise(order):
        if any(x.strides[outer] != x.strides[inner] * extents[inner] for x in arrays):
            raise Refused("a library takes matrices of one stride a direction")
    return prod(extents[a] for a in axes), {x.name: x.strides[order[-1]] for x in arrays} if order else {}
