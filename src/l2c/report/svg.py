"""Drawings as SVG inside a page: they take its colours, light or dark, and need nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from l2c.report.labels import Box, boxes_of_line, place_labels

WIDTH, HEIGHT = 640, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 14, 48


@dataclass(frozen=True)
class Point:
    """A mark in a plot.

    Attributes:
        x: Cost.
        y: Error.
        group: Class of its mark.
        title: What it is, shown when pointed at.
        low: Lower end of the error's confidence interval.
        high: Upper end.
        tail: 95th percentile and worst of the error over pictures, drawn above the mark; None for none.
        label: Short text beside it on the front.
    """

    x: float
    y: float
    group: str
    title: str
    low: float
    high: float
    tail: tuple[float, float] | None = None
    label: str = ""

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest error that is drawn."""
        return self.low, max((self.high, *(self.tail or ())))


class _Axis:
    """A logarithmic axis between two pixels, with room for labels at its lower end."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        low, high = min(values), max(values)
        margin = max(0.06 * math.log(high / low), 0.05)
        self.low, self.high = math.log(low) - 2.5 * margin, math.log(high) + margin
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)

    def ticks(self) -> list[float]:
        """Round numbers on it."""
        first, last = math.exp(self.low), math.exp(self.high)
        for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            found = [
                m * 10.0**e
                for e in range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
                for m in steps
                if first <= m * 10.0**e <= last
            ]
            if len(found) >= 3:
                break
        return found


def scatter(
    points: Sequence[Point], front: Sequence[Point], x_title: str, y_title: str, described: str
) -> str:
    """Error against cost, both logarithmic, with the front as a line.

    Args:
        points: All marks.
        front: Those on the front, from cheap to dear.
        x_title: Name and unit of the cost.
        y_title: Name of the error.
        described: The plot in words.
    """
    x = _Axis([p.x for p in points], _LEFT, WIDTH - _RIGHT)
    y = _Axis([v for p in points for v in p.ends], HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x, y, x_title, y_title)]
    line = [(x(p.x), y(p.y)) for p in front]
    parts.append(f'<polyline class="front" points="{" ".join(f"{a},{b}" for a, b in line)}"/>')
    taken = [box for pair in pairwise(line) for box in boxes_of_line(*pair)]
    for point in points:
        px, py = x(point.x), y(point.y)
        low, high = (y(value) for value in point.ends)
        taken += [Box(px - 8, py - 8, px + 8, py + 8), Box(px - 2, high, px + 2, low)]
        tail = ""
        if point.tail is not None:
            tail = f'<path class="tail" d="M{px} {py}V{y(point.tail[1])}M{px - 4} {y(point.tail[0])}h8"/>'
        parts.append(
            f'<g class="mark {point.group}"><title>{escape(point.title)}</title>{tail}'
            f'<path class="spread" d="M{px} {y(point.low)}V{y(point.high)}"/>{mark(point.group, px, py)}</g>'
        )
    inside = Box(_LEFT + 2, _TOP + 2, WIDTH - _RIGHT - 2, HEIGHT - _BOTTOM - 2)
    named = [(x(p.x), y(p.y), p.label) for p in front]
    for label in place_labels(named, taken, inside):
        if label.lead:
            parts.append(
                f'<path class="lead" d="M{label.lead[0]} {label.lead[1]}L{label.lead[2]} {label.lead[3]}"/>'
            )
        left, baseline = label.box.left, label.box.bottom - 3.5
        parts.append(f'<text class="label" x="{left:g}" y="{baseline:g}">{escape(label.text)}</text>')
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(described, quote=True)}">{"".join(parts)}</svg>'
    )


def heat_map(summary: Mapping[str, Any], described: str) -> str:
    """Which layers are computed when: evaluations from left to right, blocks from bottom to top.

    Attention and MLP layers are two panels, one above the other, and of a schedule whose passes of guidance have rows
    of their own, those of the unconditional pass are two more.
    """
    rows, kinds = summary["rows"], summary["layer_kinds"]
    if any("unconditional" in row for row in rows):
        half = len(kinds)
        kinds = [*kinds, *(f"{kind} unconditional" for kind in kinds)]
        rows = [{"mask": row["mask"] + (row["unconditional"] or "0" * half)} for row in rows]
    width, gap, base, parts = len(rows), 1.5, 0.0, []
    for kind in dict.fromkeys(kinds):
        columns = [index for index, other in enumerate(kinds) if other == kind]
        height = len(columns)
        path = []
        for place, column in enumerate(columns):
            line = [row["mask"][column] == "1" for row in rows]
            top = base + height - 1 - place
            begin = None
            for index, computes in enumerate([*line, False]):
                if computes and begin is None:
                    begin = index
                elif not computes and begin is not None:
                    path.append(f"M{begin} {top:g}h{index - begin}v1h-{index - begin}z")
                    begin = None
        parts.append(f'<rect class="reused" x="0" y="{base:g}" width="{width}" height="{height}"/>')
        parts.append(f'<path class="computed {escape(kind)}" d="{"".join(path)}"/>')
        base += height + gap
    return (
        f'<svg class="heat" viewBox="0 0 {width} {base - gap:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(described, quote=True)}">{"".join(parts)}</svg>'
    )


def mark(group: str, x: float, y: float) -> str:
    """The mark of a group at a place: circle, square, triangle or star."""
    if group == "steps":
        return f'<circle cx="{x}" cy="{y}" r="5"/>'
    if group == "baseline":
        return f'<path d="M{x} {y - 6.5}l6 11h-12z"/>'
    if group == "ours":
        points = [
            (x + radius * math.sin(i * math.pi / 5), y - radius * math.cos(i * math.pi / 5))
            for i in range(10)
            for radius in ((8, 3.6)[i % 2],)
        ]
        return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'
    return f'<rect x="{x - 4.5}" y="{y - 4.5}" width="9" height="9"/>'


def _grid(x: _Axis, y: _Axis, x_title: str, y_title: str) -> str:
    parts = []
    for tick in x.ticks():
        at = x(tick)
        parts.append(f'<path class="grid" d="M{at} {_TOP}V{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{at}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">{tick:.3g}</text>')
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{at + 4}" text-anchor="end">{tick:.3g}</text>')
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="title" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
        f'<text class="title" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>"
    )
    return "".join(parts)
