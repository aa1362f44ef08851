"""Signed distances to the outlines of the shapes, in pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from l2c.scenes.vocabulary import SHAPES

AREA_RADII = {"circle": 0.94, "square": 0.90, "triangle": 1.16, "star": 1.20, "cross": 1.06, "ring": 1.05}
"""Circumscribed radius by radius of an object, so that objects of one size look alike in size."""


def signed_distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance to the outline of a shape around the origin, negative inside.

    Args:
        shape: One of `SHAPES`.
        x: Coordinates to the right in pixels, shape (N, H, W).
        y: Coordinates downwards in pixels, shape (N, H, W).
        radius: Radius of the object in pixels, shape (N, 1, 1).

    Returns:
        Distances in pixels, shape (N, H, W).

    Source:
        Inigo Quilez, "2D distance functions", for the triangle and the star.
    """
    return _DISTANCES[shape](x, y, radius * AREA_RADII[shape])


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _ring(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74 * radius).abs() - 0.26 * radius


def _box(x: Tensor, y: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    right, down = x.abs() - half_width, y.abs() - half_height
    outside = torch.hypot(right.clamp(min=0), down.clamp(min=0))
    return outside + torch.maximum(right, down).clamp(max=0)


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _box(x, y, radius, radius)


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    arm = 0.34 * radius
    return torch.minimum(_box(x, y, radius, arm), _box(x, y, arm, radius))


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    half = radius * math.sqrt(3) / 2  # half of a side
    across, up = x.abs() - half, -y + half / math.sqrt(3)
    mirrored = across + math.sqrt(3) * up > 0
    folded_x = torch.where(mirrored, (across - math.sqrt(3) * up) / 2, across)
    folded_y = torch.where(mirrored, (-math.sqrt(3) * across - up) / 2, up)
    folded_x = folded_x - torch.minimum(torch.maximum(folded_x, -2 * half), torch.zeros_like(folded_x))
    return -torch.hypot(folded_x, folded_y) * folded_y.sign()


def _star(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Five points; the inner corners lie at 0.48 of the radius."""
    angle = torch.atan2(x, -y)
    sector = math.pi / 5
    folded = (
        torch.remainder(angle + sector, 2 * sector) - sector
    ).abs()  # 0 at a point, `sector` at a corner
    length = torch.hypot(x, y)
    px, py = length * folded.sin(), length * folded.cos()
    inner = 0.48
    ex, ey = inner * math.sin(sector), inner * math.cos(sector) - 1.0  # from a point to the corner beside it
    py = py - radius
    along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(min=0)
    along = torch.minimum(along, radius)
    distance = torch.hypot(px - along * ex, py - along * ey)
    return distance * (px * -ey + py * ex).sign()


_DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
assert tuple(_DISTANCES) == SHAPES
