"""An array that slides under the taps of a convolution, copied once with its padding: reads past its edge become plain reads.

Positions are those of the padded array: what tap t of output o reads stands at o * step + t. `Padded.copy` writes some lines of
some channels as [channel][line][place], masked elements as what their loads give (zero), so that whoever reads the copy needs
no masks. Prologues run as elements are copied, once each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from flame.compiler.kernel import Kernel, Store
from flame.compiler.llvm_axes import inside
from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_text import Int, element, existing_lanes, wide
from flame.dtypes import dtype as DType

CHANNEL, LINE, PLACE, OUTER = "slide_c", "slide_y", "slide_x", "slide_o"


@dataclass(frozen=True)
class Padded:
    """What is copied: `factor` of a kernel over OUTER, CHANNEL, LINE and PLACE."""

    kernel: Kernel
    factor: str
    dtype: DType
    lanes: int
    width: int  #: places of a line
    pitch: int  #: elements from a line of the copy to the next
    piece: int  #: ... and from a channel's part to the next
    value: Callable[[Point, str], Value]  #: a factor's vector at a point

    def copy(self, p: Point, to: str, outer: Int, first_line: Int, lines: Int, channels: tuple[Int, Int]) -> None:
        """Lines from `first_line` on of the channels [first, last)."""
        f, lanes, t = p.function, self.lanes, element(self.dtype)
        whole = self.width // lanes * lanes
        free = inside(self.kernel, PLACE, [Store("", (), self.factor)], lanes)  # no masks along a line but at its ends
        edges = sorted({0, whole, *(min(x, whole) for x in free or ())})
        q = p.fork()
        q.kernel = self.kernel
        q.open()
        q.bind(OUTER, Linear(outer))

        def vector(line: str, x: Int) -> None:
            q.bind(PLACE, Linear(x, 1, None, True))
            value = self.value(q, self.factor)
            f.store(wide(t, lanes), value.text, f.address(line, x, t), self.dtype.itemsize)

        def channel(c: str, _: list[str]) -> list[str]:
            q.bind(CHANNEL, Linear(c))
            start = f.address(to, f.mul(f.sub(c, channels[0]), self.piece), t)

            def line(y: str, _: list[str]) -> list[str]:
                q.bind(LINE, Linear(f.add(first_line, y)))
                here = f.address(start, f.mul(y, self.pitch), t)

                def some(x: str, _: list[str]) -> list[str]:
                    vector(here, x)
                    return []

                for first, last in pairwise(edges):
                    with q.scope():
                        q.within = {PLACE: (first, last)}
                        f.loop(first, last, lanes, [], some)
                q.within = {}
                if whole < self.width:
                    with q.scope():
                        q.tail = existing_lanes(f, whole, self.width, lanes)
                        vector(here, whole)
                return []

            with q.scope():
                f.loop(0, lines, 1, [], line)
            return []

        with q.scope():
            f.loop(channels[0], channels[1], 1, [], channel)
