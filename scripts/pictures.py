"""Draw the pictures of docs/: `python scripts/pictures.py` writes docs/pictures/*.svg.

The graphs are captured ones, drawn by `flame.drawing`; the pipeline and the two calls are boxes and arrows made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import flame
import flame.nn.functional as F

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
_COLOURS = {"python": "#cfe0f3", "graph": "#f9d7b5", "kernel": "#cdebc5", "machine": "#e2dff0", "plain": "#eeeeee"}


def boxes(
    rows: Sequence[Sequence[tuple[str, str, str]]], arrows: Sequence[tuple[tuple[int, int], tuple[int, int], str]]
) -> str:
    """Rows of boxes (title, text, kind), and arrows between them (from, to the right or down, what is said beside it)."""
    width, height, gap_x, gap_y, margin = 190, 56, 30, 44, 12
    widest = max(map(len, rows))
    total = widest * (width + gap_x) - gap_x

    def place(at: tuple[int, int]) -> tuple[float, float]:
        row, i = at
        n = len(rows[row])
        begin = (total - n * (width + gap_x) + gap_x) / 2
        return margin + begin + i * (width + gap_x), margin + row * (height + gap_y)

    parts = []
    for a, b, text in arrows:
        (x1, y1), (x2, y2) = place(a), place(b)
        if a[0] == b[0]:
            line = (x1 + width, y1 + height / 2, x2, y2 + height / 2)
        else:
            line = (x1 + width / 2, y1 + height, x2 + width / 2, y2)
        coordinates = " ".join(f'{k}="{v:.0f}"' for k, v in zip(("x1", "y1", "x2", "y2"), line, strict=True))
        parts.append(f'<line {coordinates} stroke="#555" stroke-width="1.4" marker-end="url(#tip)"/>')
        if text:
            x, y = (line[0] + line[2]) / 2 + 6, (line[1] + line[3]) / 2 + 4
            parts.append(f'<text x="{x:.0f}" y="{y:.0f}" font-size="11" fill="#555">{escape(text)}</text>')
    for r, row in enumerate(rows):
        for i, (title, text, kind) in enumerate(row):
            x, y = place((r, i))
            size, middle = f'width="{width}" height="{height}"', f'x="{x + width / 2:.0f}" text-anchor="middle"'
            parts += [
                f'<rect x="{x:.0f}" y="{y:.0f}" {size} rx="6" fill="{_COLOURS[kind]}" stroke="#777"/>',
                f'<text {middle} y="{y + 23:.0f}" font-size="13" font-weight="bold">{escape(title)}</text>',
                f'<text {middle} y="{y + 42:.0f}" font-size="11">{escape(text)}</text>',
            ]
    w, h = total + 2 * margin, len(rows) * (height + gap_y) - gap_y + 2 * margin
    head_of_arrow = '<path d="M0 0L9 4L0 8z" fill="#555"/>'
    shape = 'markerWidth="9" markerHeight="8" refX="8" refY="4"'
    tip = f'<defs><marker id="tip" orient="auto" {shape}>{head_of_arrow}</marker></defs>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" font-family="system-ui, sans-serif">'
    return "\n".join([head, tip, *parts, "</svg>"]) + "\n"


def pipeline() -> str:
    """From Python to machine code."""
    rows = [
        [("your Python", "runs on every call", "python"), ("capture", "records, then follows", "python")],
        [
            ("graph", "primitives, forward", "graph"),
            ("joint graph", "with backward", "graph"),
            ("fused groups", "with reasons", "graph"),
        ],
        [("kernel language", "axes, loads, sums, stores", "kernel"), ("schedule", "tiles, lanes, threads", "kernel")],
        [("Triton source", "GPUs", "machine"), ("LLVM IR", "this CPU", "machine"), ("NumPy", "the definition", "machine")],
    ]
    arrows = [
        ((0, 0), (0, 1), ""), ((0, 1), (1, 0), "a segment ended"), ((1, 0), (1, 1), ""), ((1, 1), (1, 2), ""),
        ((1, 2), (2, 0), "lowering"), ((2, 0), (2, 1), ""), ((2, 0), (3, 0), ""), ((2, 0), (3, 1), ""), ((2, 0), (3, 2), ""),
    ]  # fmt: skip
    return boxes(rows, arrows)


def calls() -> str:
    """What happens at the first call, the second, and one that takes another way."""
    rows = [
        [
            ("call 1", "operations run eagerly", "python"), ("call 2", "checked, not computed", "python"),
            ("call 3, 4, ...", "checked, not computed", "python"), ("another way", "an operation differs", "python"),
        ],
        [
            ("a path is recorded", "in the tree of steps", "graph"), ("the path is compiled", "and its kernels run", "kernel"),
            ("its kernels run", "one native call", "kernel"), ("prefix runs eagerly", "a branch is recorded", "graph"),
        ],
    ]  # fmt: skip
    return boxes(rows, [((0, i), (1, i), "") for i in range(4)])


def graphs() -> dict[str, str]:
    """A captured graph, and the backward that was made with it."""
    f = flame.compile(lambda x, w: F.softmax(x @ w * 0.5, -1).log().sum())
    x, w = flame.randn(32, 16), flame.randn(16, 8).requires_grad_()
    for _ in range(3):
        f(x, w).backward()
    forward, backward = f.compiled_graphs()[:2]
    drawn = {"forward": flame.drawing.draw(forward.graph), "backward": flame.drawing.draw(backward.graph)}
    return {name: text.replace(f"{FOLDER.parent.parent}/", "") for name, text in drawn.items()}


def pictures() -> dict[str, str]:
    """Name -> SVG text."""
    return {"pipeline": pipeline(), "calls": calls(), **graphs()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / f"{name}.svg").write_text(text, encoding="utf-8")
        print(f"docs/pictures/{name}.svg")
