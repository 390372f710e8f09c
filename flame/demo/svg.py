"""Two plots as SVG text: `line_chart` and `bar_chart`. Nothing but strings, so a page that holds them needs no files.

Each plot carries its own style sheet. Inside a page that sets --ink, --faint and --paper it follows that page's theme; alone,
or in a viewer that knows no CSS variables, it is dark ink on white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 44, 46
#: the colours of a plot's series, in order: readable side by side also without colour vision
COLOURS = ("#4477aa", "#ee6633", "#228833", "#aa3377")
#: every other line is dashed, so that lines which lie on each other both show
_DASH = ' stroke-dasharray="5 3"'
_STYLE = "".join(
    f".{name} {{ {kind}: {plain}; {kind}: var(--{variable}, {plain}); }} "
    for name, kind, variable, plain in [
        ("ink", "fill", "ink", "#222"),
        ("axis", "stroke", "ink", "#222"),
        ("grid", "stroke", "faint", "#ddd"),
        ("paper", "fill", "paper", "#fff"),
    ]
)


@dataclass(frozen=True)
class Series:
    """A named line: y against 0, 1, 2, ..."""

    name: str
    y: Sequence[float]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that divide [low, high] into about as many parts, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Lines over the same x. Values that are not finite leave a gap."""
    values = [v for s in series for v in s.y if math.isfinite(v)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high == low:
        low, high = low - 0.5, high + 0.5
    span = max([len(s.y) - 1 for s in series] + [1])

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * x / span,
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low),
        )

    parts = []
    for y in ticks(low, high):
        _, py = at(0, y)
        parts.append(_line(LEFT, py, WIDTH - RIGHT, py, "grid"))
        parts.append(_text(LEFT - 8, py + 4, f"{y:g}", anchor="end"))
    for x in ticks(0, span, 8):
        px, _ = at(x, low)
        parts.append(_text(px, HEIGHT - BOTTOM + 18, f"{x:g}"))
    for i, s in enumerate(series):
        for run in _runs(s.y):
            points = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in run)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="1.6"'
                f"{_DASH if i % 2 else ''}/>"
            )
    parts += _legend([s.name for s in series], dashed=True)
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label))
    parts.append(f'<g transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)">{_text(0, 0, y_label)}</g>')
    return _svg(title, parts)


def bar_chart(title: str, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], unit: str) -> str:
    """A group of bars for each of `groups`, one bar a series; each bar carries its value. Values are not negative."""
    high = max([v for _, values in series for v in values if math.isfinite(v)] + [0.0]) or 1.0
    band = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    wide = min(band / (len(series) + 1), 90)
    tall = HEIGHT - TOP - BOTTOM - 16
    parts = [_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis")]
    for g, group in enumerate(groups):
        middle = LEFT + band * (g + 0.5)
        parts.append(_text(middle, HEIGHT - BOTTOM + 18, group))
        for i, (_, values) in enumerate(series):
            v = values[g]
            h = tall * v / high if math.isfinite(v) else 0.0
            x, y = middle + (i - len(series) / 2) * wide, HEIGHT - BOTTOM - h
            parts.append(
                f'<rect x="{x + 2:.1f}" y="{y:.1f}" width="{wide - 4:.1f}" height="{h:.1f}" rx="2" '
                f'fill="{COLOURS[i % len(COLOURS)]}"/>'
            )
            parts.append(_text(x + wide / 2, y - 5, f"{v:.3g}"))
    parts += _legend([name for name, _ in series])
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, unit))
    return _svg(title, parts)


def _runs(y: Sequence[float]) -> list[list[tuple[int, float]]]:
    """The finite stretches of a line."""
    runs: list[list[tuple[int, float]]] = [[]]
    for x, v in enumerate(y):
        if math.isfinite(v):
            runs[-1].append((x, v))
        elif runs[-1]:
            runs.append([])
    return [r for r in runs if r]


def _legend(names: Sequence[str], dashed: bool = False) -> list[str]:
    parts, x = [], float(WIDTH - RIGHT)
    for i, name in reversed(list(enumerate(names))):
        x -= 7.0 * len(name)
        parts.append(_text(x, 22, name, anchor="start"))
        parts.append(
            f'<line x1="{x - 26:.1f}" y1="18" x2="{x - 6:.1f}" y2="18" stroke="{COLOURS[i % len(COLOURS)]}" '
            f'stroke-width="{2 if dashed else 8}"{_DASH if dashed and i % 2 else ""}/>'
        )
        x -= 44
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="ink" text-anchor="{anchor}" font-weight="{weight}" '
        f'font-family="system-ui, sans-serif" font-size="12">{escape(text)}</text>'
    )


def _svg(title: str, parts: Sequence[str]) -> str:
    body = "\n  ".join([_text(LEFT, 22, title, anchor="start", weight="bold"), *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">\n'
        f'  <style>{_STYLE.strip()}</style>\n  <rect width="{WIDTH}" height="{HEIGHT}" class="paper"/>\n  {body}\n</svg>\n'
    )
