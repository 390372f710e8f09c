"""What the code of a recurrent routine depends on, how its work is cut, and how much scratch memory it takes.

`flame.compiler.llvm_recurrent` and `llvm_recurrent_grad` write the code.
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.dtypes import dtype

MOST_CHUNKS = 16
_LEAST_ROWS = 6  #: of a chunk: w is packed, and read from the second cache, once for them
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}


@dataclass(frozen=True, slots=True)
class Recurrent:
    """What the code of a routine depends on."""

    dtype: dtype
    mode: str
    reverse: bool
    size: int  #: of the state


@dataclass(frozen=True, slots=True)
class RecurrentRoutine:
    """LLVM IR with one entry, as a kernel's phase; `syms` are what `sizes` gives."""

    text: str
    entry: str
    what: Recurrent
    fixed: int  #: elements of a chunk's scratch memory
    each: int  #: further ones for each of its rows
    items: int  #: bytes of an element

    def chunks(self, batch: int) -> int:
        return max(1, min(MOST_CHUNKS, batch // _LEAST_ROWS))

    def sizes(self, steps: int, batch: int) -> tuple[int, ...]:
        """Steps, batch, chunks, and the elements of a chunk's scratch memory."""
        return (steps, batch, self.chunks(batch), self._own(batch))

    def workspace(self, batch: int) -> int:
        return self.chunks(batch) * self._own(batch) * self.items

    def _own(self, batch: int) -> int:
        rows = -(-batch // self.chunks(batch))
        return -(-(self.fixed + rows * self.each) // 64) * 64

    def microseconds(self, steps: int, batch: int) -> float:
        """An estimate of all of it on one core."""
        gates, size = GATES[self.what.mode], self.what.size
        return 1e-5 * steps * batch * gates * size * (2 * size + 100)
