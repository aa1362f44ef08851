"""How well pictures show what their prompts say, object by object, judged without a network."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.errors import check_as_many
from l2c.scenes.grammar import Scene, SceneObject, parse_prompt
from l2c.scenes.layout import holds
from l2c.scenes.regions import Region, find_background, find_regions
from l2c.scenes.renderer import draw_pictures
from l2c.scenes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, SIZES

_NUM_EXAMPLES = 48  # drawn objects per shape and size from which the checker learns what shapes look like
_LEAST_DEVIATION = 0.03  # of a feature
_FARTHEST = 200.0  # squared Mahalanobis distance of a region that still counts as a shape
_CLEARLY = 2.0  # times as far as the nearest shape has to be any other one


@dataclass(frozen=True)
class ObjectAdherence:
    """What of one object of a prompt is right in the picture; None where the prompt does not say.

    Attributes:
        colour: Its colour is right.
        shape: Its shape is right.
        size: Its size is right.
        relation: It lies as told.
    """

    colour: bool
    shape: bool
    size: bool | None
    relation: bool | None

    @property
    def right(self) -> bool:
        """Whether colour, shape and, if told, relation are right."""
        return self.colour and self.shape and self.relation is not False


@dataclass(frozen=True)
class PictureAdherence:
    """What of one prompt is right in its picture.

    Attributes:
        objects: One entry per object of the prompt, in its order.
        count: There are as many objects as the prompt says.
        background: The background is right.
    """

    objects: tuple[ObjectAdherence, ...]
    count: bool
    background: bool

    @property
    def right(self) -> bool:
        """Whether all objects, their number and the background are right."""
        return self.count and self.background and all(item.right for item in self.objects)


@dataclass(frozen=True)
class FoundObject:
    """An object found in a picture.

    Attributes:
        colour: One of `COLOURS`.
        shape: One of `SHAPES`, or None if it is like none of them.
        size: One of `SIZES`, or None without a shape.
        x: Centre in pixels from the left.
        y: Centre in pixels from the top.
    """

    colour: str
    shape: str | None
    size: str | None
    x: float
    y: float


def adherence(pictures: Tensor, prompts: Sequence[str]) -> list[PictureAdherence]:
    """Judges pictures by their prompts.

    Args:
        pictures: RGB in [0, 1], shape (B, 3, 64, 64).
        prompts: One per picture, of the grammar of `Scene.prompt`.

    Raises:
        ConfigError: A prompt is not of the grammar, or there are not as many as pictures.
    """
    check_as_many("pictures", pictures, "prompts", prompts)
    found = find_objects(pictures)
    grounds = find_background(pictures.float())
    scenes = [parse_prompt(prompt) for prompt in prompts]
    return [_judge(*item) for item in zip(scenes, found, grounds, strict=True)]


def summarise_adherence(results: Sequence[PictureAdherence]) -> dict[str, float]:
    """Parts in [0, 1] of what prompts say that is right: of objects, and of pictures for count, background and all."""
    objects = [item for result in results for item in result.objects]
    parts: dict[str, list[bool | None]] = {
        "objects": [item.right for item in objects],
        "colour": [item.colour for item in objects],
        "shape": [item.shape for item in objects],
        "relation": [item.relation for item in objects],
        "size": [item.size for item in objects],
        "count": [result.count for result in results],
        "background": [result.background for result in results],
        "pictures": [result.right for result in results],
    }
    told = {name: [value for value in values if value is not None] for name, values in parts.items()}
    return {name: sum(values) / len(values) for name, values in told.items() if values}


def find_objects(pictures: Tensor) -> list[list[FoundObject]]:
    """The objects in each picture, shape (B, 3, 64, 64) in [0, 1], the largest first."""
    return [[_recognise(region) for region in regions] for regions in find_regions(pictures.float())]


@dataclass(frozen=True)
class _ShapeModel:
    """Features of one shape at one size: a normal distribution, and area over squared radius."""

    shape: str
    mean: Tensor
    precision: Tensor
    log_volume: float
    area_factor: float


@functools.cache
def _shape_models() -> tuple[_ShapeModel, ...]:
    models = []
    for shape, size in itertools.product(SHAPES, SIZES):
        colours, grounds = itertools.cycle(COLOURS), itertools.cycle(BACKGROUNDS)
        scenes = [
            Scene((SceneObject(next(colours), shape, size),), next(grounds)) for _ in range(_NUM_EXAMPLES)
        ]
        pictures = draw_pictures(scenes, seed=7)
        pictures[1::2] = _blur(pictures[1::2])  # generated pictures are less sharp than drawn ones
        regions = [found[0] for found in find_regions(pictures) if found]
        features = torch.stack([region.features for region in regions]).double()
        covariance = features.T.cov() + _LEAST_DEVIATION**2 * torch.eye(
            features.shape[1], dtype=torch.float64
        )
        middle = sum(SIZES[size]) / 2
        area = sum(region.area for region in regions) / len(regions)
        models.append(
            _ShapeModel(
                shape,
                features.mean(0),
                torch.linalg.inv(covariance),
                float(torch.logdet(covariance)),
                area / middle**2,
            )
        )
    return tuple(models)


def _blur(pictures: Tensor) -> Tensor:
    """Pictures whose pixels are mixed with those around them, by the weights 1, 2, 1 in each direction."""
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    weight = torch.outer(kernel, kernel).expand(3, 1, 3, 3)
    return torch.nn.functional.conv2d(padded, weight, groups=3)


def _recognise(region: Region) -> FoundObject:
    features, models = region.features.double(), _shape_models()
    offsets = [features - model.mean for model in models]
    distances = [float(it @ model.precision @ it) for it, model in zip(offsets, models, strict=True)]
    scores = [distance + model.log_volume for distance, model in zip(distances, models, strict=True)]
    best = min(range(len(scores)), key=scores.__getitem__)
    model = models[best]
    others = [d for d, other in zip(distances, models, strict=True) if other.shape != model.shape]
    if distances[best] > _FARTHEST or min(others) < _CLEARLY * distances[best]:
        return FoundObject(region.colour, None, None, region.x, region.y)
    radius = math.sqrt(region.area / model.area_factor)
    size = min(SIZES, key=lambda name: max(SIZES[name][0] - radius, radius - SIZES[name][1]))
    return FoundObject(region.colour, model.shape, size, region.x, region.y)


def _judge(scene: Scene, found: list[FoundObject], background: str) -> PictureAdherence:
    """Takes those found objects for the prompt's with which most is right."""
    wanted = scene.objects
    slots: list[FoundObject | None] = [*found[: len(wanted) + 3], *[None] * len(wanted)]
    candidates = {  # at most 6 regions and 3 places: few orders
        order: _judge_objects(scene, [slots[i] for i in order])
        for order in itertools.permutations(range(len(slots)), len(wanted))
    }
    best = max(candidates.values(), key=lambda items: [sum(map(_worth, items)), -len(items)])
    return PictureAdherence(best, len(found) == len(wanted), background == scene.background)


def _worth(item: ObjectAdherence) -> float:
    return (
        10 * item.right
        + 3 * item.colour
        + 2 * item.shape
        + (item.relation is True)
        + 0.5 * (item.size is True)
    )


def _judge_objects(scene: Scene, chosen: list[FoundObject | None]) -> tuple[ObjectAdherence, ...]:
    centres = [(item.x, item.y) for item in chosen if item is not None]
    complete = len(centres) == len(chosen)
    relation = None if scene.relation is None else complete and holds(scene.relation, centres)
    return tuple(
        ObjectAdherence(
            colour=found is not None and found.colour == wanted.colour,
            shape=found is not None and found.shape == wanted.shape,
            size=None if wanted.size is None else found is not None and found.size == wanted.size,
            relation=relation,
        )
        for wanted, found in zip(scene.objects, chosen, strict=True)
    )
