"""What the text-to-image pipeline that comes with l2c is called with, and prompts for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from l2c.scenes.grammar import random_scenes

PIPELINE = "l2c:scenes-sd3"
"""Name of the pipeline that was trained on drawn scenes."""

CALL: Mapping[str, Any] = MappingProxyType(
    {
        "num_inference_steps": 28,
        "guidance_scale": 4.5,
        "height": 64,
        "width": 64,
        "max_sequence_length": 0,  # there is no T5 encoder, and no place where its output would stand
    }
)
"""What it is to be called with besides a prompt."""

EMBEDDED: Mapping[str, Mapping[str, Any]] = MappingProxyType({PIPELINE: CALL})
"""Pipelines that come with l2c, by name, with what each is to be called with."""

LEARNING_SEED, JUDGING_SEED = 1, 2


def scene_prompts(count: int, *, held_out: bool = False) -> list[str]:
    """So many different prompts of scenes, always the same ones, the first of them those of a smaller count.

    Args:
        count: How many.
        held_out: Take prompts to judge pictures by, whose combinations of objects neither the training of the pipeline
            nor the other prompts have.

    Example:
        >>> seen, unseen = scene_prompts(8), scene_prompts(8, held_out=True)
        >>> len(set(seen)), seen[:4] == scene_prompts(4), set(seen).isdisjoint(unseen)
        (8, True, True)
    """
    seed = JUDGING_SEED if held_out else LEARNING_SEED
    drawn = 2 * count
    while len(found := _different(seed, drawn, held_out)) < count:
        drawn *= 2
    return found[:count]


def _different(seed: int, count: int, held_out: bool) -> list[str]:
    return list(dict.fromkeys(scene.prompt() for scene in random_scenes(seed, count, held_out)))
