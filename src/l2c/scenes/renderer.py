"""Pictures of scenes, drawn in batches: anti-aliased shapes, lit from one side, with shadows and textures."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from l2c.scenes.grammar import Scene
from l2c.scenes.layout import Placement, place_objects
from l2c.scenes.shapes import signed_distance
from l2c.scenes.vocabulary import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES

_HUE_JITTER = 6.0  # degrees


def draw_pictures(scenes: Sequence[Scene], seed: int) -> Tensor:
    """Draws one picture of each scene.

    What prompts leave open is drawn at random: places, exact sizes and hues, turns, the side the light comes from,
    the strength of shadows, textures.

    Args:
        scenes: What to draw.
        seed: Decides, together with the scenes, every pixel.

    Returns:
        RGB in [0, 1], shape (len(scenes), 3, 64, 64), float32.
    """
    places = random.Random(seed)
    placements = [place_objects(scene, places) for scene in scenes]
    return render(scenes, placements, torch.Generator().manual_seed(seed))


def render(
    scenes: Sequence[Scene], placements: Sequence[Sequence[Placement]], generator: torch.Generator
) -> Tensor:
    """Draws scenes whose objects have their places.

    Args:
        scenes: What to draw.
        placements: Of each scene's objects.
        generator: For hues, light, shadows and textures.

    Returns:
        RGB in [0, 1], shape (len(scenes), 3, 64, 64), float32.
    """
    num_scenes = len(scenes)
    axis = torch.arange(IMAGE_SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    light = _uniform(generator, num_scenes, 0, 2 * math.pi)
    light = torch.stack([light.cos(), light.sin()], 1)  # towards the light, (B, 2)
    picture = _background(scenes, x, y, light, generator)
    for slot in range(max(len(scene.objects) for scene in scenes)):
        rows = [row for row, scene in enumerate(scenes) if len(scene.objects) > slot]
        items = [scenes[row].objects[slot] for row in rows]
        spots = [placements[row][slot] for row in rows]
        picture[rows] = _draw_objects(
            picture[rows],
            [item.shape for item in items],
            torch.tensor([COLOURS[item.colour] for item in items]),
            torch.tensor([[spot.x, spot.y, spot.radius, spot.angle] for spot in spots]),
            light[rows],
            generator,
        )
    return picture.clamp(0, 1)


def _uniform(generator: torch.Generator, size: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)


def _background(
    scenes: Sequence[Scene], x: Tensor, y: Tensor, light: Tensor, generator: torch.Generator
) -> Tensor:
    """Plain colour, brighter towards the light, with clouds of low contrast; shape (B, 3, H, W)."""
    num_scenes = len(scenes)
    colour = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes])
    centred = torch.stack([x, y]) / IMAGE_SIZE - 0.5  # (2, H, W)
    slope = _uniform(generator, num_scenes, 0.05, 0.35)[:, None, None]
    ramp = slope * torch.einsum("bi,ihw->bhw", light, centred)
    coarse = torch.randn(num_scenes, 1, 5, 5, generator=generator)
    clouds = functional.interpolate(
        coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=True
    )[:, 0]
    contrast = _uniform(generator, num_scenes, 0.0, 0.06)[:, None, None]
    shade = 1 + ramp + contrast * clouds
    return colour[:, :, None, None] * shade[:, None] + 0.04 * ramp[:, None]


def _draw_objects(
    picture: Tensor,
    shapes: list[str],
    colours: Tensor,
    spots: Tensor,
    light: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Draws one object into each picture.

    Args:
        picture: Shape (N, 3, H, W).
        shapes: Of length N.
        colours: Hue in degrees, saturation, value; shape (N, 3).
        spots: Place x, y, radius in pixels, angle in radians; shape (N, 4).
        light: Towards the light, shape (N, 2).
        generator: For hue, shading, shadow and texture.

    Returns:
        Shape (N, 3, H, W).
    """
    number = len(shapes)
    axis = torch.arange(IMAGE_SIZE) + 0.5
    dx = axis[None, None, :] - spots[:, 0, None, None]  # (N, 1, W)
    dy = axis[None, :, None] - spots[:, 1, None, None]  # (N, H, 1)
    radius = spots[:, 2, None, None]
    depth = _uniform(generator, number, 1.5, 4.0)[:, None, None]
    softness = _uniform(generator, number, 1.5, 3.5)[:, None, None]
    darkness = _uniform(generator, number, 0.15, 0.5)[:, None, None]
    towards_x, towards_y = light[:, 0, None, None], light[:, 1, None, None]

    distance = _distances(shapes, dx, dy, radius, spots[:, 3])
    cast = _distances(shapes, dx + depth * towards_x, dy + depth * towards_y, radius, spots[:, 3])
    shadow = darkness * torch.sigmoid(-cast / softness * 2)
    coverage = (0.5 - distance).clamp(0, 1)

    hue = colours[:, 0] + _HUE_JITTER * (2 * torch.rand(number, generator=generator) - 1)
    saturation = colours[:, 1] * _uniform(generator, number, 0.92, 1.05)
    value = colours[:, 2] * _uniform(generator, number, 0.93, 1.02)
    base = _rgb(hue, saturation.clamp(0, 1), value.clamp(0, 1))  # (N, 3)

    facing = (dx * towards_x + dy * towards_y) / radius  # about -1..1 across the object
    shading = 1 + _uniform(generator, number, 0.06, 0.20)[:, None, None] * facing
    bevel = (
        _uniform(generator, number, 0.0, 0.14)[:, None, None]
        * facing.sign()
        * torch.exp(-((distance + 1.5) / 1.3).square())
    )
    turn = _uniform(generator, number, 0, math.pi)[:, None, None]
    pitch = _uniform(generator, number, 1.0, 1.7)[:, None, None]
    striped = (torch.rand(number, generator=generator) < 0.35).float()[:, None, None]
    stripes = 0.10 * striped * torch.sin((dx * turn.cos() + dy * turn.sin()) * pitch)
    gloss = _uniform(generator, number, 0.0, 0.22)[:, None, None] * torch.exp(
        -((dx - 0.35 * radius * towards_x).square() + (dy - 0.35 * radius * towards_y).square())
        / (0.35 * radius).square()
    )
    body = base[:, :, None, None] * (shading + bevel + stripes)[:, None]
    body = body + (1 - body) * gloss[:, None]
    ground = picture * (1 - shadow)[:, None]
    return ground + (body - ground) * coverage[:, None]


def _distances(shapes: list[str], dx: Tensor, dy: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    """Signed distances of objects of any shapes, (N, H, W), each object turned by its angle."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    result = torch.empty(len(shapes), IMAGE_SIZE, IMAGE_SIZE)
    for shape in SHAPES:
        rows = [row for row, name in enumerate(shapes) if name == shape]
        if rows:
            result[rows] = signed_distance(shape, x[rows], y[rows], radius[rows])
    return result


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours from hue in degrees, saturation and value in [0, 1]: shape (N, 3)."""
    sixths = torch.stack([(offset + hue / 60) % 6 for offset in (5.0, 3.0, 1.0)], 1)
    ramp = torch.minimum(sixths, 4 - sixths).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * ramp)
