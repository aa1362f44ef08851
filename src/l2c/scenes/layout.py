"""Where the objects of a scene lie: everything that its prompt leaves open about places and sizes."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace

from l2c.scenes.grammar import Scene
from l2c.scenes.shapes import AREA_RADII
from l2c.scenes.vocabulary import BETWEEN, IMAGE_SIZE, SIZES

GAP = 3.0
"""Least distance between two objects, in pixels."""

_MARGIN = 1.5
_AXES = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}


@dataclass(frozen=True)
class Placement:
    """Place and size of one object.

    Attributes:
        x: Centre in pixels from the left.
        y: Centre in pixels from the top.
        radius: In pixels.
        angle: Turn in radians.
    """

    x: float
    y: float
    radius: float
    angle: float


def place_objects(scene: Scene, generator: random.Random) -> list[Placement]:
    """Draws places and sizes for the objects of a scene, without overlaps and as its relation says."""
    shrink = 1.0
    while True:
        for _ in range(60):
            placements = [
                _place(item.shape, item.size, len(scene.objects), shrink, generator) for item in scene.objects
            ]
            placements = _arrange(scene, placements, generator)
            if _apart(scene, placements) and _as_told(scene, placements):
                return placements
        shrink *= 0.97  # for the rare scene whose objects find no room


def _place(
    shape: str, size: str | None, num_objects: int, shrink: float, generator: random.Random
) -> Placement:
    sizes = list(SIZES) if num_objects < 3 else list(SIZES)[:2]
    least, largest = SIZES[size or generator.choice(sizes)]
    radius = generator.uniform(least, largest) * shrink
    reach = _reach(shape, radius) + _MARGIN
    x, y = (generator.uniform(reach, IMAGE_SIZE - reach) for _ in range(2))
    return Placement(x, y, radius, generator.uniform(-0.2, 0.2))


def _reach(shape: str, radius: float) -> float:
    """Distance from the centre to the farthest point, nearly."""
    corner = {"square": 1.3, "cross": 1.05}.get(shape, 1.0)
    return radius * AREA_RADII[shape] * corner


def _arrange(scene: Scene, placements: list[Placement], generator: random.Random) -> list[Placement]:
    """Sorts places along the axis of the relation, so that few draws are thrown away."""
    if scene.relation is None:
        return placements
    if scene.relation == BETWEEN:
        across, down = generator.choice(((1, 0), (0, 1), (-1, 0), (0, -1)))
        first, middle, last = sorted(placements, key=lambda p: across * p.x + down * p.y)
        sources = [middle, first, last]
    else:
        across, down = _AXES[scene.relation]
        sources = sorted(placements, key=lambda p: across * p.x + down * p.y, reverse=True)
    return [replace(p, x=source.x, y=source.y) for p, source in zip(placements, sources, strict=True)]


def _apart(scene: Scene, placements: list[Placement]) -> bool:
    """Whether all objects are inside the picture and do not come near each other."""
    reaches = [_reach(item.shape, p.radius) for item, p in zip(scene.objects, placements, strict=True)]
    for reach, place in zip(reaches, placements, strict=True):
        least, largest = reach + _MARGIN, IMAGE_SIZE - reach - _MARGIN
        if not (least <= place.x <= largest and least <= place.y <= largest):
            return False
    return all(
        math.hypot(first.x - second.x, first.y - second.y) >= reach + other_reach + GAP
        for (first, reach), (second, other_reach) in itertools.combinations(
            zip(placements, reaches, strict=True), 2
        )
    )


def _as_told(scene: Scene, placements: list[Placement]) -> bool:
    return holds(scene.relation, [(p.x, p.y) for p in placements], slack=-2.0)


def holds(relation: str | None, centres: list[tuple[float, float]], slack: float = 0.0) -> bool:
    """Whether objects lie as a relation says.

    Above, below, left of, right of: the offset along that axis has the right sign and is the larger one. Between: the
    first centre lies, along the line of the other two, in the middle three fifths, and nearer to that line than a
    third of its length.

    Args:
        relation: One of `RELATIONS`, `BETWEEN` or None, which always holds.
        centres: Of the objects in the order of the prompt, (x, y) in pixels.
        slack: Pixels by which a condition may be missed, or must be met with room if negative.
    """
    if relation is None:
        return True
    (x, y), (x1, y1) = centres[:2]
    if relation != BETWEEN:
        across, down = _AXES[relation]
        along = across * (x - x1) + down * (y - y1)
        aside = abs(down * (x - x1)) + abs(across * (y - y1))
        return along > aside - slack
    x2, y2 = centres[2]
    length = max(math.hypot(x2 - x1, y2 - y1), 1e-6)
    along = ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length
    aside = abs((x - x1) * (y2 - y1) - (y - y1) * (x2 - x1)) / length
    return 0.2 * length - slack <= along <= 0.8 * length + slack and aside <= length / 3 + slack
