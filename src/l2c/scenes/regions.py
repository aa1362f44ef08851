"""Coloured regions of a picture: what may be objects, found without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.scenes.vocabulary import BACKGROUNDS, COLOURS

_LEAST_CHROMA = 0.15  # of a pixel of an object; the palest colour has 0.37, and 0.26 in its darkest places
_LEAST_COSINE = 0.8  # between the chroma of neighbouring pixels of one object
_LEAST_AREA = 20.0  # pixels; the smallest object has 60


@dataclass(frozen=True)
class Region:
    """A connected region of one colour.

    Attributes:
        colour: The nearest of `COLOURS` by hue.
        x: Centre of mass in pixels from the left.
        y: Centre of mass in pixels from the top.
        area: In pixels; those at the edge count in part.
        features: Lengths and angles that tell shapes apart, shape (8,); see `shape_features`.
    """

    colour: str
    x: float
    y: float
    area: float
    features: Tensor


def find_regions(pictures: Tensor) -> list[list[Region]]:
    """Coloured regions of each picture, the largest first.

    Args:
        pictures: RGB in [0, 1], shape (B, 3, H, W).
    """
    chroma = _chroma(pictures)
    ground = chroma.flatten(2).median(2).values[:, :, None, None]
    labels = _label((chroma - ground).norm(dim=1) > _LEAST_CHROMA, chroma)
    return [
        sorted(_regions(*item), key=lambda region: -region.area)
        for item in zip(pictures, chroma, ground, labels, strict=True)
    ]


def find_background(pictures: Tensor) -> list[str]:
    """The nearest of `BACKGROUNDS` to the median colour of each picture, shape (B, 3, H, W) in [0, 1]."""
    medians = pictures.flatten(2).median(2).values
    colours = torch.tensor(list(BACKGROUNDS.values()))
    names = list(BACKGROUNDS)
    return [names[i] for i in torch.cdist(medians, colours).argmin(1).tolist()]


def shape_features(weights: Tensor, x: Tensor, y: Tensor, area: float) -> Tensor:
    """Moments of a region, relative to its area and independent of its turn.

    Second and fourth radial moment; lengths of the angular moments 2 to 6, each relative to a radial one; how full the
    middle is.

    Args:
        weights: Part of each pixel that belongs to the region, in [0, 1].
        x: Coordinates from the centre of mass, in the shape of `weights`.
        y: The same downwards.
        area: Sum of the weights.

    Returns:
        Shape (8,).
    """
    scale = math.sqrt(area)
    length, angle = torch.hypot(x, y) / scale, torch.atan2(y, x)
    radial = [float((weights * length**power).sum() / area) for power in range(7)]
    angular = [
        math.hypot(
            float((weights * length**k * (k * angle).cos()).sum() / area),
            float((weights * length**k * (k * angle).sin()).sum() / area),
        )
        / radial[k]
        for k in range(2, 7)
    ]
    near = (1 - length / 0.2).clamp(min=0)
    middle = float((weights * near).sum() / near.sum().clamp(min=1e-6))
    return torch.tensor([10 * radial[2], 30 * radial[4], *angular, middle])


def _chroma(pictures: Tensor) -> Tensor:
    """Colours without their grey part, which shadows leave alone; shape (B, 3, H, W)."""
    return pictures - pictures.mean(1, keepdim=True)


def _label(mask: Tensor, chroma: Tensor) -> Tensor:
    """Numbers of connected regions of one hue, 0 outside of them; shape (B, H, W)."""
    unit = chroma / chroma.norm(dim=1, keepdim=True).clamp(min=1e-6)
    beside = (
        mask[:, :, 1:] & mask[:, :, :-1] & ((unit[:, :, :, 1:] * unit[:, :, :, :-1]).sum(1) > _LEAST_COSINE)
    )
    below = mask[:, 1:] & mask[:, :-1] & ((unit[:, :, 1:] * unit[:, :, :-1]).sum(1) > _LEAST_COSINE)
    height, width = mask.shape[1:]
    labels = mask * torch.arange(1, height * width + 1).view(height, width)
    while True:  # the largest number spreads over its region
        before = labels
        labels = labels.clone()
        for joined, first, second in ((beside, (..., slice(1, None)), (..., slice(-1))),
                                      (below, (slice(None), slice(1, None)), (slice(None), slice(-1)))):  # fmt: skip
            one, other = labels[first], labels[second]
            largest = torch.where(joined, torch.maximum(one, other), torch.zeros_like(one))
            labels[first] = torch.maximum(one, largest)
            labels[second] = torch.maximum(labels[second], largest)
        if torch.equal(labels, before):
            return labels


def _regions(picture: Tensor, chroma: Tensor, ground: Tensor, labels: Tensor) -> Iterator[Region]:
    """Regions of one picture, large enough ones only."""
    areas = labels.flatten().bincount()
    areas[0] = 0  # of what is in no region
    for number in (areas >= _LEAST_AREA).nonzero().flatten().tolist():
        mask = _grow(labels == number)
        top, bottom = _extent(mask.any(1))
        left, right = _extent(mask.any(0))
        box = (..., slice(top, bottom), slice(left, right))
        offset, inside = (chroma - ground)[box], (labels == number)[box]
        strength = offset.norm(dim=0)
        core = inside & (strength >= strength[inside].median())
        typical = offset[:, core].mean(1)
        # How much of a pixel is the object: exact where colours are blended, and shadows do not matter.
        coverage = (offset * typical[:, None, None]).sum(0) / typical.square().sum()
        weights = ((coverage / 0.85).clamp(0, 1) * mask[box]).double()
        area = float(weights.sum())
        if area < _LEAST_AREA:
            continue
        columns = torch.arange(left, right, dtype=torch.float64) + 0.5
        rows = torch.arange(top, bottom, dtype=torch.float64) + 0.5
        x, y = float((weights.sum(0) * columns).sum() / area), float((weights.sum(1) * rows).sum() / area)
        features = shape_features(weights, columns[None, :] - x, rows[:, None] - y, area)
        yield Region(_nearest_colour(picture[box][:, core].mean(1)), x, y, area, features)


def _extent(used: Tensor) -> tuple[int, int]:
    """The first place where a vector is true, and the one after the last."""
    places = used.nonzero().flatten()
    return int(places[0]), int(places[-1]) + 1


def _grow(mask: Tensor) -> Tensor:
    """A mask and the pixels beside it."""
    return torch.nn.functional.max_pool2d(mask[None].float(), 3, stride=1, padding=1)[0] > 0


def _nearest_colour(rgb: Tensor) -> str:
    """The colour whose hue is nearest to that of an RGB value."""
    red, green, blue = rgb.tolist()
    hue = math.degrees(math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue))
    return min(COLOURS, key=lambda name: abs((COLOURS[name][0] - hue + 180) % 360 - 180))
