"""What the code of an attention routine depends on, how its work is cut, and where its scratch memory stands.

    Attention    the constants of the code          Routine    the code, with its numbers of chunks and bytes of workspace
    Plan         sizes of the register tile, and places in scratch

`flame.compiler.llvm_attention` writes the code.
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.dtypes import dtype

QUERIES = 192  #: of a chunk: keys are packed once for them
MOST_CHUNKS = 32  #: each has scratch memory of its own


@dataclass(frozen=True, slots=True)
class Attention:
    """What the code of a routine depends on. `width` is of queries and keys, `value_width` of values and results."""

    dtype: dtype
    width: int
    value_width: int
    causal: bool
    scale: float


@dataclass(frozen=True, slots=True)
class Routine:
    """LLVM IR with one entry `void @entry(ptr bufs, ptr syms, i64 begin, i64 end)`, as a kernel's phase.

    `bufs` are the arrays of the primitive, operands then results, and workspace; `syms` what `sizes` gives.
    """

    text: str
    entry: str
    attention: Attention
    backward: bool
    rows: int
    columns: int
    items: int  #: bytes of an element in scratch

    def sizes(self, heads: int, queries: int, keys: int) -> tuple[int, ...]:
        """The values behind `syms`: heads, queries, keys, chunks, and the elements of a chunk's scratch memory."""
        return (heads, queries, keys, self.chunks(heads, queries), self._own(keys))

    def chunks(self, heads: int, queries: int) -> int:
        blocks = 1 if self.backward else -(-queries // QUERIES)
        return max(1, min(MOST_CHUNKS, heads * blocks))

    def workspace(self, heads: int, queries: int, keys: int) -> int:
        """Bytes of scratch memory."""
        return self.chunks(heads, queries) * self._own(keys) * self.items

    def microseconds(self, heads: int, queries: int, keys: int) -> float:
        """An estimate of all of it on one core."""
        a = self.attention
        products = (3 * a.width + 2 * a.value_width) if self.backward else a.width + a.value_width
        return 1e-5 * heads * queries * keys * (2 * products + 40) * (0.6 if a.causal else 1.0)

    def _own(self, keys: int) -> int:
        plan = Plan(self.attention, self.rows, self.columns, self.items)
        return plan.total(keys, self.backward)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a chunk's scratch memory holds what, in elements."""

    attention: Attention
    rows: int
    columns: int
    items: int

    @property
    def depth(self) -> int:
        """Width of queries and keys, padded."""
        return up(self.attention.width, max(8, self.columns))

    @property
    def values(self) -> int:
        return up(self.attention.value_width, max(8, self.columns))

    @property
    def block(self) -> int:
        """Rows of queries at a time."""
        return 2 * self.rows

    def capacity(self, keys: int) -> int:
        """Keys, padded: tiles of columns and of rows stay inside."""
        return up(keys, self.columns) + up(self.rows, self.columns)

    def places(self, keys: int, backward: bool) -> dict[str, tuple[int, int]]:
        """Offsets are linear in the capacity: name -> (constant part, multiple of the capacity)."""
        d, v, n = self.depth, self.values, self.block
        sizes: list[tuple[str, int, int]] = [("turned", 0, d), ("straight", 0, v), ("q", n * d, 0), ("scores", 0, n)]
        if not backward:
            sizes += [("o", n * v, 0), ("sums", up(n, 16), 0)]
        else:
            sizes += [("g", n * v, 0), ("dp", 0, n), ("o", n * max(d, v), 0), ("keys", 0, d), ("dk", 0, d), ("dv", 0, v)]
        out: dict[str, tuple[int, int]] = {}
        constant, times = 0, 0
        for name, a, b in sizes:
            out[name] = (constant, times)
            constant, times = constant + a, times + b
        out["end"] = (constant, times)
        return out

    def total(self, keys: int, backward: bool) -> int:
        constant, times = self.places(keys, backward)["end"]
        return up(constant + times * self.capacity(keys), 64)


def up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
