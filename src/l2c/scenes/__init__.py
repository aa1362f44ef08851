"""Drawn scenes of one to three objects, the prompts that describe them, and a check of pictures against prompts.

What the embedded text-to-image pipeline is trained on and judged by: `random_scenes` and `draw_pictures` make
pictures with their prompts, `adherence` says what of a prompt a picture shows.
"""

from l2c.scenes.adherence import (
    FoundObject,
    ObjectAdherence,
    PictureAdherence,
    adherence,
    find_objects,
    summarise_adherence,
)
from l2c.scenes.grammar import Scene, SceneObject, parse_prompt, random_scene, random_scenes
from l2c.scenes.pipeline import CALL, PIPELINE, scene_prompts
from l2c.scenes.renderer import draw_pictures

__all__ = [
    "CALL",
    "PIPELINE",
    "FoundObject",
    "ObjectAdherence",
    "PictureAdherence",
    "Scene",
    "SceneObject",
    "adherence",
    "draw_pictures",
    "find_objects",
    "parse_prompt",
    "random_scene",
    "random_scenes",
    "scene_prompts",
    "summarise_adherence",
]
