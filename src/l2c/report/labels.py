"""Places for the labels of a plot, so that none covers a mark, a line or another label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_CHARACTER, _HEIGHT = 6.8, 14.0  # of text of 12 pixels, a little generous
_NEAR, _STEP, _REACH = 9.0, 5.0, 160.0
_CROSSING = 12.0  # how much farther away is as bad as a lead over one more mark


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether they have an area in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def contains(self, other: Box) -> bool:
        """Whether the other one is inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Its point that is nearest to a place."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


@dataclass(frozen=True)
class Label:
    """A label where there is room for it.

    Attributes:
        text: What it says.
        box: Where.
        lead: Line (x, y, x, y) from what it names, where that is not right beside it.
    """

    text: str
    box: Box
    lead: tuple[float, float, float, float] | None


def place_labels(named: Sequence[tuple[float, float, str]], taken: Sequence[Box], inside: Box) -> list[Label]:
    """Labels as near as possible to what they name, to its lower left if that is free.

    Args:
        named: Place and text of each.
        taken: What they must not cover.
        inside: Where they may be.

    Returns:
        The labels that there is room for.

    >>> here = Box(0, 0, 300, 100)
    >>> [label] = place_labels([(150, 50, "name")], [Box(142, 42, 158, 58)], here)
    >>> label.box.overlaps(Box(142, 42, 158, 58)), here.contains(label.box), label.lead
    (False, True, None)
    """
    occupied, placed = list(taken), list[Label]()
    for x, y, text in named:
        best: tuple[float, Label, list[Box]] | None = None
        for distance, box in _candidates(x, y, _CHARACTER * len(text), inside):
            if best is not None and best[0] <= distance:
                break  # none of the others can be better
            if any(box.overlaps(other) for other in occupied):
                continue
            lead = (x, y, *box.nearest(x, y)) if distance > 2 * _NEAR else None
            spots = [] if lead is None else boxes_of_line(lead[:2], lead[2:])[4:]
            if any(spot.overlaps(label.box) for spot in spots for label in placed):
                continue
            hits = sum(any(spot.overlaps(other) for spot in spots) for other in occupied)
            price = distance + _CROSSING * hits
            if best is None or price < best[0]:
                best = price, Label(text, box, lead), spots
        if best is not None:
            placed.append(best[1])
            occupied += [best[1].box, *best[2]]
    return placed


def _candidates(x: float, y: float, width: float, inside: Box) -> list[tuple[float, Box]]:
    """Boxes around a place with their distance, the nearest first."""
    found = []
    steps = [index * _STEP for index in range(-int(_REACH / _STEP), int(_REACH / _STEP) + 1)]
    for down in steps:
        for right in (*steps, -_NEAR - width, _NEAR, -width / 2):
            left, top = x + right, y + down - _HEIGHT / 2
            box = Box(left, top, left + width, top + _HEIGHT)
            distance = math.dist((x, y), box.nearest(x, y))
            if _NEAR <= distance <= _REACH and inside.contains(box):
                found.append((distance, right > -width / 2, down < 0, abs(down), box))
    return [(item[0], item[-1]) for item in sorted(found, key=lambda item: item[:-1])]


def boxes_of_line(begin: Sequence[float], end: Sequence[float]) -> list[Box]:
    """Small boxes that cover a straight line."""
    count = max(1, math.ceil(math.dist(begin, end) / 4))
    points = [
        tuple(a + (b - a) * index / count for a, b in zip(begin, end, strict=True))
        for index in range(count + 1)
    ]
    return [Box(px - 2, py - 2, px + 2, py + 2) for px, py in points]
