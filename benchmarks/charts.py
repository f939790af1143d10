"""Line charts as small SVG files, written by hand: no library for three pictures a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 400
FONT = 'font-family="sans-serif" font-size="12"'
LEFT, RIGHT, TOP, BOTTOM = 64, 220, 34, 44
# Distinguishable for most eyes; ours come first and are drawn thick
COLOURS = ("#0b62c4", "#00a0dc", "#d1495b", "#edae49", "#7a3b10", "#2e933c", "#8fcb9b", "#66518f", "#444", "#999")


@dataclass(frozen=True)
class Line:
    name: str
    points: tuple[tuple[float, float], ...]
    thick: bool = False


def line_chart(title: str, across: str, up: str, lines: Sequence[Line]) -> str:
    """Both axes logarithmic: what counts are ratios."""
    frame = _Frame.around([point for line in lines for point in line.points])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
    ]
    for value in sorted({x for line in lines for x, _ in line.points}):
        x = frame.x(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:,.0f}</text>')
    for value in frame.ticks():
        y = frame.y(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,.0f}</text>')
    for number, line in enumerate(lines):
        parts += _drawn(line, COLOURS[number % len(COLOURS)], number, frame)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(line: Line, colour: str, number: int, frame: _Frame) -> list[str]:
    places = [(frame.x(x), frame.y(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    # When colours come round again, dashes tell the lines apart
    dashes = ' stroke-dasharray="5 3"' if number >= len(COLOURS) else ""
    style = f'fill="none" stroke="{colour}" stroke-width="{3 if line.thick else 1.5}"{dashes}'
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    y = TOP + 8 + 18 * number
    key = f'<path d="M{WIDTH - RIGHT + 14} {y}h22" {style}/>'
    name = f'<text x="{WIDTH - RIGHT + 42}" y="{y + 4}">{escape(line.name)}</text>'
    return [f'<path d="{path}" {style}/>', *dots, key, name]


@dataclass(frozen=True)
class _Frame:
    """From values to places on the page."""

    least_x: float
    most_x: float
    least_y: float
    most_y: float

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]]) -> _Frame:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return cls(min(xs), max(xs), min(ys) / 1.15, max(ys) * 1.15)

    def x(self, value: float) -> float:
        return LEFT + 10 + (WIDTH - LEFT - RIGHT - 20) * _part(value, self.least_x, self.most_x)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _part(value, self.least_y, self.most_y)

    def ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.least_y)), math.ceil(math.log10(self.most_y)) + 1)
        values = [factor * 10**decade for decade in decades for factor in (1, 2, 5)]
        return [value for value in values if self.least_y <= value <= self.most_y]


def _part(value: float, least: float, most: float) -> float:
    return 0.5 if least == most else math.log(value / least) / math.log(most / least)
