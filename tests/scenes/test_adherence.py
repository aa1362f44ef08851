from __future__ import annotations

import pytest
import torch

from l2c.errors import ConfigError
from l2c.scenes import (
    Scene,
    SceneObject,
    adherence,
    draw_pictures,
    find_objects,
    random_scenes,
    summarise_adherence,
)
from l2c.scenes.layout import Placement
from l2c.scenes.renderer import render
from l2c.scenes.vocabulary import COLOURS, SHAPES


@pytest.fixture(scope="module")
def scenes():
    return random_scenes(100, 300, held_out=None)


@pytest.fixture(scope="module")
def pictures(scenes):
    return draw_pictures(scenes, seed=101)


def render_one(objects, places, relation=None):
    placements = [Placement(x, y, radius, 0.1) for x, y, radius in places]
    scene = Scene(tuple(objects), "grey", relation)
    return render([scene], [placements], torch.Generator().manual_seed(0)), scene.prompt()


def test_adherence_of_drawn_pictures_is_nearly_perfect(scenes, pictures):
    parts = summarise_adherence(adherence(pictures, [scene.prompt() for scene in scenes]))
    assert parts["objects"] >= 0.99
    assert parts["pictures"] >= 0.99
    assert min(parts[name] for name in ("colour", "shape", "relation", "count", "background")) >= 0.99
    assert parts["size"] >= 0.95  # a size drawn at the edge of its range may pass for the next


def test_adherence_to_other_prompts_is_low(pictures):
    others = [scene.prompt() for scene in random_scenes(102, 300, held_out=None)]
    parts = summarise_adherence(adherence(pictures, others))
    assert parts["objects"] < 0.1
    assert parts["pictures"] < 0.02


def test_adherence_survives_blur_and_noise(scenes, pictures):
    blurred = torch.nn.functional.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    noisy = 0.5 * (blurred + pictures) + 0.01 * torch.randn(
        pictures.shape, generator=torch.Generator().manual_seed(0)
    )
    parts = summarise_adherence(adherence(noisy.clamp(0, 1), [scene.prompt() for scene in scenes]))
    assert parts["colour"] >= 0.98
    assert parts["objects"] >= 0.95


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_find_objects_names_colour_and_shape(colour, shape):
    picture, _ = render_one([SceneObject(colour, shape)], [(30.0, 34.0, 11.0)])
    (found,) = find_objects(picture)[0]
    assert (found.colour, found.shape, found.size) == (colour, shape, "medium")
    assert abs(found.x - 30) < 1
    assert abs(found.y - 34) < 1.5


def test_adherence_judges_each_part_alone():
    red, blue = SceneObject("red", "circle", "medium"), SceneObject("blue", "square", "medium")
    picture, prompt = render_one([red, blue], [(32.0, 16.0, 10.0), (32.0, 46.0, 10.0)], "above")
    (result,) = adherence(picture, [prompt])
    assert result.right

    def judge(text):
        return adherence(picture, [f"{text} on a grey background"])[0]

    swapped = judge("a red circle below a blue square")
    assert [item.relation for item in swapped.objects] == [False, False]
    assert [item.colour and item.shape for item in swapped.objects] == [True, True]
    assert not any(item.right for item in swapped.objects)
    assert [item.colour for item in judge("a red circle above a green square").objects] == [True, False]
    assert [item.shape for item in judge("a red circle above a blue star").objects] == [True, False]
    assert [item.size for item in judge("a small red circle above a blue square").objects] == [False, None]
    assert [item.right for item in judge("a small red circle above a blue square").objects] == [True, True]
    alone = judge("a red circle")
    assert not alone.count
    assert alone.objects[0].right
    assert not alone.right
    third = judge("a red circle, a blue square and a pink star")
    assert [item.right for item in third.objects] == [True, True, False]
    assert not adherence(picture, [prompt.replace("grey", "white")])[0].background


def test_adherence_of_an_empty_picture_is_nothing():
    (result,) = adherence(torch.full((1, 3, 64, 64), 0.5), ["two red circles on a grey background"])
    assert not result.count
    assert not any(item.colour or item.shape or item.right for item in result.objects)


def test_adherence_wants_a_prompt_per_picture(pictures):
    with pytest.raises(ConfigError, match="got 2 pictures for 1 prompts; give one for each"):
        adherence(pictures[:2], ["a red circle on a grey background"])


def test_summary_leaves_out_what_no_prompt_says():
    results = adherence(torch.full((1, 3, 64, 64), 0.5), ["a red circle on a grey background"])
    assert set(summarise_adherence(results)) == {
        "objects",
        "colour",
        "shape",
        "count",
        "background",
        "pictures",
    }
