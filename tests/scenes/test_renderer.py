from __future__ import annotations

import itertools
import random

import pytest
import torch

from l2c.scenes import Scene, SceneObject, draw_pictures, random_scenes
from l2c.scenes.layout import Placement, holds, place_objects
from l2c.scenes.renderer import render
from l2c.scenes.shapes import signed_distance
from l2c.scenes.vocabulary import BACKGROUNDS, COLOURS, SHAPES

AREAS = {  # of a radius of 20 pixels, by the shapes' own formulas
    "circle": 3.1416 * 18.8**2,
    "square": 36.0**2,
    "triangle": 1.2990 * 23.2**2,
    "star": 1.4107 * 24.0**2,
    "cross": (4 * 0.34 * 2 - 4 * 0.34**2) * 21.2**2,
    "ring": 3.1416 * (1 - 0.48**2) * 21.0**2,
}


@pytest.fixture(scope="module")
def pictures():
    return draw_pictures(random_scenes(0, 32), seed=1)


def test_pictures_have_shape_and_range(pictures):
    assert pictures.shape == (32, 3, 64, 64)
    assert pictures.dtype == torch.float32
    assert 0 <= pictures.min() < 0.2
    assert 0.8 < pictures.max() <= 1


def test_pictures_are_the_same_for_the_same_seed(pictures):
    scenes = random_scenes(0, 32)
    torch.testing.assert_close(draw_pictures(scenes, seed=1), pictures)
    assert (draw_pictures(scenes, seed=2) - pictures).abs().amax(dim=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_encloses_the_shape_s_area(shape):
    axis = torch.arange(-32, 32, 0.25) + 0.125
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = signed_distance(shape, x[None], y[None], torch.full((1, 1, 1), 20.0))
    assert float((distance < 0).sum()) / 16 == pytest.approx(AREAS[shape], rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_grows_as_a_distance_does(shape):
    axis = torch.arange(-32, 32, 0.5) + 0.25
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = signed_distance(shape, x[None], y[None], torch.full((1, 1, 1), 16.0))[0]
    down, across = distance.diff(dim=0)[:, 1:] / 0.5, distance.diff(dim=1)[1:] / 0.5
    assert max(down.abs().max(), across.abs().max()) < 1.001
    assert torch.hypot(down, across).median() == pytest.approx(1.0, abs=0.05)


def test_triangle_and_star_point_upwards():
    radius = torch.full((1, 1, 1), 10.0)
    for shape in ("triangle", "star"):
        above = signed_distance(shape, torch.zeros(1, 1, 1), torch.full((1, 1, 1), -9.0), radius)
        below = signed_distance(shape, torch.zeros(1, 1, 1), torch.full((1, 1, 1), 9.0), radius)
        assert above < 0 < below


def test_render_draws_colour_inside_and_background_outside():
    scene = Scene((SceneObject("blue", "square"),), "white")
    picture = render([scene], [[Placement(20.0, 40.0, 10.4, 0.0)]], torch.Generator().manual_seed(0))[0]
    red, _, blue = picture[:, 40, 20]
    assert blue - red > 0.4
    assert (picture[:, 5, 55] - torch.tensor(BACKGROUNDS["white"])).abs().max() < 0.3
    # Pixels that the outline crosses mix both: edges are anti-aliased.
    edge = picture[2] - picture[0]
    assert ((edge > 0.1) & (edge < 0.3)).any()


def test_placements_keep_inside_apart_and_as_told():
    generator = random.Random(0)
    for scene in random_scenes(4, 200, held_out=None):
        places = place_objects(scene, generator)
        assert holds(scene.relation, [(place.x, place.y) for place in places])
        assert all(
            place.radius <= place.x <= 64 - place.radius and place.radius <= place.y <= 64 - place.radius
            for place in places
        )
        for first, second in itertools.pairwise(places):
            assert abs(first.x - second.x) + abs(first.y - second.y) > first.radius + second.radius


@pytest.mark.parametrize(
    ("relation", "centres", "expected"),
    [
        ("above", [(30, 10), (35, 40)], True),
        ("above", [(30, 40), (35, 10)], False),
        ("above", [(5, 30), (55, 40)], False),
        ("below", [(30, 40), (35, 10)], True),
        ("left of", [(10, 30), (40, 35)], True),
        ("right of", [(10, 30), (40, 35)], False),
        ("between", [(30, 30), (10, 30), (50, 32)], True),
        ("between", [(10, 30), (30, 30), (50, 32)], False),
        ("between", [(30, 60), (10, 30), (50, 30)], False),
        (None, [(1, 1), (2, 2)], True),
    ],
)
def test_holds_reads_relations_from_centres(relation, centres, expected):
    assert holds(relation, centres) is expected


def test_colours_of_objects_differ_in_hue():
    hues = sorted(hue for hue, _, _ in COLOURS.values())
    gaps = [later - earlier for earlier, later in zip(hues, [*hues[1:], hues[0] + 360], strict=True)]
    assert min(gaps) > 20
