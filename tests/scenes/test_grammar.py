from __future__ import annotations

import random

import pytest

from l2c.errors import ConfigError
from l2c.scenes import Scene, SceneObject, parse_prompt, random_scene, random_scenes
from l2c.scenes.vocabulary import words

RED, BLUE = SceneObject("red", "circle", "large"), SceneObject("blue", "square", "small")


@pytest.mark.parametrize(
    ("scene", "prompt"),
    [
        (Scene((RED,), "white"), "a large red circle on a white background"),
        (Scene((SceneObject("orange", "ring"),), "black"), "an orange ring on a black background"),
        (
            Scene((RED, BLUE), "grey", "above"),
            "a large red circle above a small blue square on a grey background",
        ),
        (
            Scene((RED, BLUE), "beige", "left of"),
            "a large red circle left of a small blue square on a beige background",
        ),
        (
            Scene((SceneObject("green", "cross"),) * 3, "white"),
            "three green crosses on a white background",
        ),
        (
            Scene((RED, BLUE, SceneObject("pink", "star")), "grey"),
            "a large red circle, a small blue square and a pink star on a grey background",
        ),
        (
            Scene((RED, BLUE, SceneObject("pink", "star")), "grey", "between"),
            "a large red circle between a small blue square and a pink star on a grey background",
        ),
    ],
)
def test_prompt_says_the_scene_and_parses_back(scene, prompt):
    assert scene.prompt() == prompt
    assert parse_prompt(prompt) == scene


def test_random_scenes_parse_back_and_use_the_vocabulary_only():
    vocabulary = set(words())
    for scene in random_scenes(3, 500, held_out=None):
        assert parse_prompt(scene.prompt()) == scene
        assert set(scene.prompt().replace(",", " ,").split()) <= vocabulary


def test_vocabulary_has_no_word_twice():
    assert len(words()) == len(set(words()))


def test_random_scenes_are_the_same_for_the_same_seed():
    assert random_scenes(5, 20) == random_scenes(5, 20)
    assert random_scenes(5, 20) != random_scenes(6, 20)


def test_split_keeps_combinations_apart():
    training = {scene.combination for scene in random_scenes(0, 3000)}
    held_out = {scene.combination for scene in random_scenes(0, 300, held_out=True)}
    assert not training & held_out


def test_split_holds_out_about_a_tenth():
    scenes = random_scenes(1, 3000, held_out=None)
    assert 0.07 < sum(scene.held_out for scene in scenes) / len(scenes) < 0.13


def test_split_never_moves():
    generator = random.Random(0)
    scenes = [random_scene(generator, None) for _ in range(40)]
    held_out = [index for index, scene in enumerate(scenes) if scene.held_out]
    assert held_out == [0, 5, 10, 17, 33]


@pytest.mark.parametrize("relation", ["above", "left of", None])
def test_split_does_not_see_order_size_or_background(relation):
    plain = Scene((SceneObject("red", "circle"), SceneObject("blue", "square")), "grey", relation)
    other = Scene((BLUE, RED), "white", "below")
    assert plain.combination == other.combination
    assert plain.held_out == other.held_out


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("a red circle", "it must end in 'on a white/grey/black/beige background'"),
        ("a red circle on a green background", "it must end in"),
        (
            "a red blob on a grey background",
            "'a red blob' is not a count, a size or none, a colour and a shape",
        ),
        (
            "a red circle above a blue ring and a pink star on a grey background",
            "it has 3 objects where 2 are",
        ),
        ("a red circle between a blue ring on a grey background", "it has 2 objects where 3 are possible"),
    ],
)
def test_parse_prompt_says_what_is_wrong(prompt, why):
    with pytest.raises(ConfigError) as error:
        parse_prompt(prompt)
    assert str(error.value).startswith(f"the prompt {prompt!r} is not one of a scene: {why}")
