"""Which lines of a program hold memory, and when: `watching()` notes what operations and compiled programs make.

    with memory.watching() as seen:
        step(x, y)
    print(seen.summary())                   # the peak, and who held it
    seen.export_html("memory.html")         # what was held over time, by the user's lines: one file, no network

    allocation ::= bytes, line, what made it, when it was made, when it went

An allocation is one array of memory: views of it are not counted again, and it goes when the last of them does. What lived before
is one line of its own ("before watching"). Memory inside of an operation, and the scratch memory that compiled programs share, is
not seen by line; `flame.memory_summary()` counts it. An OutOfMemoryError that is raised meanwhile says which lines hold most.
"""

from __future__ import annotations

import gc
import html
import json
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flame.autograd import watch
from flame.capture import native
from flame.primitive import Primitive
from flame.profiler.events import size
from flame.profiler.taps import user_stack
from flame.runtime import memory as runtime_memory
from flame.runtime import scarcity
from flame.runtime.executable import Executable
from flame.tensor import Tensor

BEFORE = "before watching"


@dataclass(eq=False, slots=True)
class Allocation:
    """One piece of memory; times in seconds since the watch began (`gone` None: it is still there)."""

    bytes: int
    line: str
    what: str
    made: float
    gone: float | None = None


@dataclass(slots=True)
class Snapshot:
    """Allocations in the order in which they were made."""

    allocations: list[Allocation] = field(default_factory=list)
    seconds: float = 0.0

    def _changes(self) -> list[tuple[float, int, Allocation]]:
        changes = [(a.made, a.bytes, a) for a in self.allocations]
        changes += [(a.gone, -a.bytes, a) for a in self.allocations if a.gone is not None]
        return sorted(changes, key=lambda c: c[0])

    @property
    def peak(self) -> tuple[float, int]:
        """When the most was held, and how many bytes."""
        most, at, held = 0, 0.0, 0
        for when, change, _ in self._changes():
            held += change
            if held > most:
                most, at = held, when
        return at, most

    def held(self, when: float) -> dict[str, int]:
        """Bytes by line at a time, the largest first."""
        found: dict[str, int] = {}
        for a in self.allocations:
            if a.made <= when and (a.gone is None or a.gone > when):
                found[a.line] = found.get(a.line, 0) + a.bytes
        return dict(sorted(found.items(), key=lambda x: -x[1]))

    def summary(self, rows: int = 10) -> str:
        """The peak, and the lines that held it."""
        when, most = self.peak
        lines = [f"peak {size(most)} after {1e3 * when:.1f} ms; {len(self.allocations)} allocations in {self.seconds:.2f} s"]
        held = self.held(when)
        for line, n in list(held.items())[:rows]:
            lines.append(f"  {size(n):>10}  {100 * n / most:5.1f}%  {line}")
        rest = sum(list(held.values())[rows:])
        if rest:
            lines.append(f"  {size(rest):>10}  {100 * rest / most:5.1f}%  {len(held) - rows} other lines")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            "seconds": self.seconds,
            "allocations": [[a.bytes, a.line, a.what, a.made, a.gone] for a in self.allocations],
        }

    def export_html(self, path: str, lines: int = 12) -> None:
        """A page with the timeline: an area for each of the lines that held most, with what they are and when."""
        Path(path).write_text(self._page(lines), encoding="utf-8")

    def _page(self, most_lines: int) -> str:
        when, most = self.peak
        weight: dict[str, int] = {}
        for line, n in self.held(when).items():
            weight[line] = n
        for a in self.allocations:  # (a line that held nothing at the peak may have held much at another time)
            weight[a.line] = max(weight.get(a.line, 0), a.bytes)
        names = sorted(weight, key=lambda n: -weight[n])[:most_lines]
        place = {n: i for i, n in enumerate(names)}
        stack = [0] * (len(names) + 1)
        times, layers = [0.0], [stack.copy()]
        for t, change, a in self._changes():
            stack[place.get(a.line, len(names))] += change
            if t == times[-1]:
                layers[-1] = stack.copy()
            else:
                times.append(t)
                layers.append(stack.copy())
        times, layers = _thinned(times, layers)
        data = {
            "times": times,
            "layers": layers,
            "names": [*names, "other lines"],
            "seconds": self.seconds,
            "peak": [when, most],
        }
        table = "".join(
            f"<tr><td>{html.escape(size(n))}</td><td>{100 * n / max(most, 1):.1f}%</td><td>{html.escape(line)}</td></tr>"
            for line, n in list(self.held(when).items())[:50]
        )
        text = json.dumps(data).replace("<", "\\u003c")
        return _PAGE.replace("@data@", text).replace("@table@", table).replace("@peak@", f"{size(most)} at {1e3 * when:.1f} ms")


MOST_POINTS = 4000  #: of the drawn timeline


def _thinned(times: list[float], layers: list[list[int]]) -> tuple[list[float], list[list[int]]]:
    """Of very many moments, in each stretch the one at which most was held."""
    if len(times) <= MOST_POINTS:
        return times, layers
    step = -(-len(times) // MOST_POINTS)
    picked = [max(range(i, min(i + step, len(times))), key=lambda j: sum(layers[j])) for i in range(0, len(times), step)]
    return [times[i] for i in picked], [layers[i] for i in picked]


def _owner(a: np.ndarray) -> np.ndarray:
    """The array whose memory a view shows."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


class _Watch:
    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._begin = time.perf_counter()
        self._known: dict[int, Any] = {}  #: id of an array -> what tells of its end

    def now(self) -> float:
        return time.perf_counter() - self._begin

    def held(self) -> dict[str, int]:
        """Bytes by line, the largest first: for an error that says who has the memory."""
        return self.snapshot.held(self.now())

    def note(self, array: Any, line: str, what: str) -> None:
        if not isinstance(array, np.ndarray) or not array.nbytes:
            return
        array = _owner(array)
        key = id(array)
        if key in self._known:
            return
        a = Allocation(array.nbytes, line, what, self.now())
        self.snapshot.allocations.append(a)

        def gone(_: Any) -> None:
            a.gone = self.now()
            self._known.pop(key, None)

        self._known[key] = weakref.ref(array, gone)

    def end(self) -> None:
        self.snapshot.seconds = self.now()
        self._known.clear()

    def operation(self, process: watch.Process, primitive: Primitive, operands: tuple, params: dict) -> Any:
        got = process(primitive, operands, params)
        line = next(iter(user_stack()), "flame")
        for t in got if type(got) is tuple else (got,):
            self.note(t._array, line, primitive.name)
        return got

    def program(self, f: Callable[..., Any], executable: Executable, arrays: Any) -> Any:
        results = f(executable, arrays)
        line = next(iter(user_stack()), "flame")
        for r in results:
            self.note(r, line, f"compiled {executable.name}")
        return results


@contextmanager
def watching() -> Iterator[Snapshot]:
    """Note allocations meanwhile, of all threads. What lives already stands in the snapshot as one line."""
    w = _Watch()
    for x in gc.get_objects():
        if isinstance(x, Tensor):
            w.note(x._array, BEFORE, "tensor")
    resume = native.pause()
    run = Executable.__call__

    def tapped(self: Executable, arrays: Any) -> Any:
        return w.program(run, self, arrays)

    Executable.__call__ = tapped  # type: ignore[method-assign]
    watch.watch(w.operation, whole=True)
    scarcity.accounts.append(w.held)
    try:
        yield w.snapshot
    finally:
        scarcity.accounts.remove(w.held)
        watch.unwatch(w.operation)
        Executable.__call__ = run  # type: ignore[method-assign]
        resume()
        w.end()


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """What compiled programs' memory is used for on the CPU, as a table: live, cached and peak bytes of large blocks.

    Small arrays are NumPy's own and are not counted; tensors that are alive are, by dtype, unless `abbreviated`.
    """
    s = runtime_memory.shared.statistics()
    rows = [
        ("held by arrays", size(s.live)), ("free, kept for later", size(s.cached)), ("most at once", size(s.peak)),
        ("allocations", str(s.allocations)), ("of these from kept memory", str(s.reuses)),
    ]  # fmt: skip
    lines = ["flame CPU memory, blocks of 32 Kb and more", *[f"  {name:<28}{value:>14}" for name, value in rows]]
    if not abbreviated:
        found: dict[str, list[int]] = {}
        seen: set[int] = set()
        for x in gc.get_objects():
            if isinstance(x, Tensor) and isinstance(x._array, np.ndarray):
                owner = _owner(x._array)
                if id(owner) not in seen:
                    seen.add(id(owner))
                    entry = found.setdefault(str(owner.dtype), [0, 0])
                    entry[0] += 1
                    entry[1] += owner.nbytes
        lines.append("tensors that are alive (each piece of memory once)")
        lines += [f"  {d:<18}{n:>10}{size(b):>14}" for d, (n, b) in sorted(found.items(), key=lambda i: -i[1][1])]
    return "\n".join(lines)


def memory_stats(device: Any = None) -> dict[str, int]:
    """The same in numbers, under PyTorch's names where it has them."""
    s = runtime_memory.shared.statistics()
    return {
        "allocated_bytes.all.current": s.live,
        "allocated_bytes.all.peak": s.peak,
        "reserved_bytes.all.current": s.live + s.cached,
        "allocation.all.allocated": s.allocations,
        "reused": s.reuses,
    }


_PAGE = """<!doctype html>
<meta charset="utf-8"><title>memory by line</title>
<style>
body { font: 14px system-ui, sans-serif; margin: 2em; color: #222 }
svg { width: 100%; height: 420px; border: 1px solid #ddd }
td { padding: 2px 12px 2px 0; font-variant-numeric: tabular-nums } td:last-child { font-family: monospace }
#at { height: 10em; font-family: monospace; white-space: pre }
.key { display: inline-block; width: 11px; height: 11px; margin-right: 5px }
</style>
<h1>Memory over time, by line</h1><p>Peak: @peak@. Point at the picture to see who holds what.</p>
<svg id="picture" viewBox="0 0 1000 400" preserveAspectRatio="none"></svg><div id="at"></div>
<h2>At the peak</h2><table>@table@</table>
<script>
const d = @data@, colour = i => i == d.names.length - 1 ? "#bbb" : `hsl(${i * 137.5 % 360} 60% 60%)`;
const most = Math.max(1, d.peak[1]), end = d.seconds || 1, svg = document.getElementById("picture");
const x = t => 1000 * t / end, y = b => 400 - 390 * b / most;
d.names.forEach((name, k) => {
  const below = s => s.slice(0, k).reduce((a, b) => a + b, 0);
  let up = "", down = [];
  d.times.forEach((t, i) => {
    const s = d.layers[i], next = i + 1 < d.times.length ? d.times[i + 1] : end, lo = below(s), hi = lo + s[k];
    up += `${x(t)},${y(hi)} ${x(next)},${y(hi)} `;
    down.push(`${x(next)},${y(lo)} ${x(t)},${y(lo)}`);
  });
  const p = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
  p.setAttribute("points", up + down.reverse().join(" "));
  p.setAttribute("fill", colour(k));
  svg.append(p);
});
const words = b => {
  const [n, unit] = b >= 2**30 ? [b / 2**30, "GB"] : b >= 2**20 ? [b / 2**20, "MB"] : [b / 1024, "KB"];
  return n.toFixed(2) + " " + unit;
};
svg.addEventListener("mousemove", e => {
  const r = svg.getBoundingClientRect(), t = (e.clientX - r.left) / r.width * end;
  let i = 0;
  while (i + 1 < d.times.length && d.times[i + 1] <= t) i++;
  const rows = d.layers[i].map((b, k) => [b, k]).filter(p => p[0] > 0).sort((a, b) => b[0] - a[0]);
  const at = document.getElementById("at");
  at.replaceChildren(`${(1e3 * t).toFixed(1)} ms: ${words(rows.reduce((a, p) => a + p[0], 0))}\\n`);
  for (const [b, k] of rows) {
    const key = document.createElement("span");
    key.className = "key";
    key.style.background = colour(k);
    at.append(key, `${words(b).padStart(10)}  ${d.names[k]}\\n`);
  }
});
</script>
"""
