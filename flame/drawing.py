"""A captured graph as a picture: `draw(graph)` gives self-contained SVG text.

    rank        operations by the longest path that leads to them; inputs, and what hangs on them alone, above a reader
    bend        an edge over several ranks gets a point in each, one chain a value
    order       points of a rank by the mean of their neighbours' places, to and fro, so that few edges cross
    place       x as near to the neighbours as the boxes' widths allow (isotonic regression, exact)

Boxes carry the primitive and the result's dtype and shape; pointing at one shows operands, parameters, and the user's line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from flame.compiler.graph import Graph, Node, Value

#: boxes in one picture; more than that nobody can read
MOST = 4000
_GAP_X, _GAP_Y, _HEIGHT, _LETTER, _MARGIN = 16.0, 34.0, 34.0, 6.6, 20.0
#: fill by kind of primitive, readable with black text and with red-green blindness
_COLOURS = {
    "input": "#eeeeee",
    "elementwise": "#cfe0f3",
    "reduce": "#f9d7b5",
    "contract": "#f4b6b0",
    "movement": "#e2dff0",
    "index": "#cdebc5",
    "create": "#f7f3c0",
    "random": "#f3cfe4",
}
_OTHER = "#d9d9d9"
_FONT = "font-family=\"ui-monospace, 'DejaVu Sans Mono', monospace\""


@dataclass(eq=False)
class _Point:
    """A box (with text), or a bend of an edge (without)."""

    lines: tuple[str, ...] = ()
    about: str = ""
    kind: str = ""
    rank: int = 0
    above: list[_Point] = field(default_factory=list)
    below: list[_Point] = field(default_factory=list)
    x: float = 0.0  #: of its middle

    @property
    def width(self) -> float:
        return _LETTER * max(map(len, self.lines)) + 16 if self.lines else 2.0


def draw(graph: Graph) -> str:
    """The graph as SVG. Raises ValueError for one of more than `MOST` operations."""
    if len(graph.nodes) > MOST:
        raise ValueError(f"{graph.name} has {len(graph.nodes)} operations; a picture shows {MOST} at most")
    ranks = _ranked(graph)
    _order(ranks)
    _place(ranks)
    points = [p for rank in ranks for p in rank]
    left = min((p.x - p.width / 2 for p in points), default=0.0)
    for p in points:
        p.x += _MARGIN - left
    width = max((p.x + p.width / 2 for p in points), default=0.0) + _MARGIN
    width = max(width, _LETTER * len(graph.name) + 2 * _MARGIN)
    height = 2 * _MARGIN + 24 + len(ranks) * (_HEIGHT + _GAP_Y) - (_GAP_Y if ranks else 0)
    edges = [_edge(p, q) for p in points for q in p.below]
    boxes = [_box(p) for p in points if p.lines]
    title = f'<text x="{_MARGIN}" y="26" {_FONT} font-size="13" font-weight="bold">{escape(graph.name)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="graph {escape(graph.name)}">\n'
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>\n{title}\n'
        f'<g fill="none" stroke="#777777" stroke-width="1">\n' + "\n".join(edges) + "\n</g>\n" + "\n".join(boxes) + "\n</svg>\n"
    )


# ---- ranks and bends


def _ranked(graph: Graph) -> list[list[_Point]]:
    made: dict[Value, _Point] = {}
    rank: dict[Value, int] = {}
    points: list[_Point] = []
    for n in graph.nodes:
        at = 1 + max((rank[v] for v in n.values if v in rank), default=0)
        p = _Point(_label(n), _describe(n), n.primitive.kind, at)
        points.append(p)
        for o in n.outputs:
            made[o], rank[o] = p, at
    users = graph.users()
    free: set[Value] = set(graph.inputs)  # what hangs on inputs alone may stand further down, above its first reader
    for n in graph.nodes:
        if free.issuperset(n.values):
            free.update(n.outputs)
    for n in reversed(graph.nodes):
        readers = [made[u.output].rank for o in n.outputs for u in users[o]]
        if readers and free.issuperset(n.outputs):
            made[n.output].rank = min(readers) - 1
    for v in graph.inputs:
        p = _Point((f"%{v.name}", str(v.spec)), repr(v), "input", min((made[u.output].rank for u in users[v]), default=1) - 1)
        made[v] = p
        points.append(p)
    for i, v in enumerate(graph.outputs):
        p = _Point((f"result {i}",), repr(v), "input", made[v].rank + 1)
        points.append(p)
        _join(made[v], [p], points)
    for source in dict.fromkeys(made.values()):
        targets = [made[u.output] for v, p in made.items() if p is source for u in users[v]]
        _join(source, list(dict.fromkeys(targets)), points)
    ranks: list[list[_Point]] = [[] for _ in range(max((p.rank for p in points), default=-1) + 1)]
    for p in points:
        ranks[p.rank].append(p)
    return ranks


def _join(source: _Point, targets: Sequence[_Point], points: list[_Point]) -> None:
    """Edges from one point, those over several ranks through one chain of bends."""
    end = source
    for t in sorted(targets, key=lambda t: t.rank):
        while end.rank < t.rank - 1:
            bend = _Point(rank=end.rank + 1)
            points.append(bend)
            _link(end, bend)
            end = bend
        _link(end, t)


def _link(p: _Point, q: _Point) -> None:
    p.below.append(q)
    q.above.append(p)


def _label(n: Node) -> tuple[str, ...]:
    return n.primitive.name, " ".join(str(o.spec) for o in n.outputs[:2]) + (" ..." if len(n.outputs) > 2 else "")


def _describe(n: Node) -> str:
    args = [f"%{a.name}" if isinstance(a, Value) else repr(a) for a in n.operands]
    args += [f"{k}={v!r}" for k, v in n.params.items()]
    left = ", ".join(f"%{o.name}" for o in n.outputs)
    return "\n".join(filter(None, (f"{left} = {n.primitive.name}({', '.join(args)})", n.note, n.source)))


# ---- order within ranks, and x


def _order(ranks: list[list[_Point]], rounds: int = 6) -> None:
    place: dict[_Point, float] = {}

    def settle(rank: list[_Point]) -> None:
        for i, p in enumerate(rank):
            place[p] = i / max(len(rank) - 1, 1)

    def sort(rank: list[_Point], up: bool) -> None:
        def mean(p: _Point) -> float:
            near = p.above if up else p.below
            return sum(place[q] for q in near) / len(near) if near else place[p]

        rank.sort(key=mean)
        settle(rank)

    for rank in ranks:
        settle(rank)
    for _ in range(rounds):
        for rank in ranks[1:]:
            sort(rank, True)
        for rank in reversed(ranks[:-1]):
            sort(rank, False)


def _place(ranks: list[list[_Point]], rounds: int = 10) -> None:
    for rank in ranks:
        _pack(rank, [0.0] * len(rank))
    for i in range(rounds):
        for rank in ranks if i % 2 == 0 else reversed(ranks):
            wanted = []
            for p in rank:
                near = [*p.above, *p.below] if i >= rounds - 2 else p.above if i % 2 == 0 else p.below
                wanted.append(sum(q.x for q in near) / len(near) if near else p.x)
            _pack(rank, wanted)


def _pack(rank: list[_Point], wanted: Sequence[float]) -> None:
    """Set x as near to `wanted` as possible (least squares) without boxes touching. With each box's least distance from the
    first taken off, what remains must not decrease: pool adjacent violators."""
    offset, blocks = 0.0, []
    offsets = []
    for i, p in enumerate(rank):
        if i:
            offset += (rank[i - 1].width + p.width) / 2 + _GAP_X
        offsets.append(offset)
        blocks.append((wanted[i] - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n)]
    i = 0
    for mean, n in blocks:
        for _ in range(n):
            rank[i].x = mean + offsets[i]
            i += 1


# ---- SVG


def _y(rank: int) -> float:
    return _MARGIN + 24 + rank * (_HEIGHT + _GAP_Y)


def _edge(p: _Point, q: _Point) -> str:
    """From below p to above q; through a bend straight, so that a chain is one smooth line."""
    start, end = _y(p.rank) + _HEIGHT, _y(q.rank)
    middle = (start + end) / 2
    path = f"M{p.x:.1f},{start:.1f} C{p.x:.1f},{middle:.1f} {q.x:.1f},{middle:.1f} {q.x:.1f},{end:.1f}"
    if not q.lines:
        path += f" V{end + _HEIGHT:.1f}"
    return f'<path d="{path}"/>'


def _box(p: _Point) -> str:
    x, y = p.x - p.width / 2, _y(p.rank)
    fill = _COLOURS.get(p.kind, _OTHER)
    radius = 12 if p.kind == "input" else 4
    texts = []
    for i, line in enumerate(p.lines):
        baseline = y + (_HEIGHT / 2 + 4 if len(p.lines) == 1 else 14 + 13 * i)
        size, weight = (11, "bold") if i == 0 else (10, "normal")
        texts.append(
            f'<text x="{p.x:.1f}" y="{baseline:.1f}" text-anchor="middle" {_FONT} font-size="{size}" '
            f'font-weight="{weight}" fill="#111111">{escape(line)}</text>'
        )
    return (
        f'<g><title>{escape(p.about)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{p.width:.1f}" height="{_HEIGHT:.0f}" '
        f'rx="{radius}" fill="{fill}" stroke="#555555" stroke-width="0.8"/>{"".join(texts)}</g>'
    )
