"""Pictures as latents with the tokens of their prompts, in files that the transformer's training reads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from l2c.errors import CheckpointError
from l2c.scenes import Scene, random_scenes
from l2c.scenes.layout import Placement, place_objects
from l2c.scenes.renderer import render
from l2c.scenes.vocabulary import COLOURS, IMAGE_SIZE, SHAPES
from scenes_recipe.autoencoder import LATENTS_FOLDER, load_autoencoder
from scenes_recipe.parallel import Workers
from scenes_recipe.state import Clock, fast_dtype, log_to_stderr, logger, read_state, write_state
from scenes_recipe.tokenizer import MAX_LENGTH, new_tokenizer

NUM_IN_FILE = 2048
NUM_PATCHES = 8
"""Patches of the transformer on each side of a picture."""

_ENCODED_AT_ONCE = 64


@torch.no_grad()
def encode_pictures(model: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Scaled latents of pictures.

    Args:
        model: With the scale and shift of its latents.
        pictures: RGB in [0, 1], shape (B, 3, 64, 64).

    Returns:
        Shape (B, 4, 16, 16), about mean 0 and deviation 1.
    """
    with torch.autocast("cpu", enabled=fast_dtype() == torch.bfloat16):
        means = model.encode(2 * pictures - 1).latent_dist.mean
    return (means.float() - model.config.shift_factor) * model.config.scaling_factor


def object_labels(scenes: Sequence[Scene], placements: Sequence[Sequence[Placement]]) -> Tensor:
    """What lies where, for each patch of the transformer.

    Returns:
        Shape (B, 2, 8, 8), int8: shape and colour of the object around a patch's centre, counted from 1; 0 where
        there is none.
    """
    centres = (torch.arange(NUM_PATCHES) + 0.5) * IMAGE_SIZE / NUM_PATCHES
    labels = torch.zeros(len(scenes), 2, NUM_PATCHES, NUM_PATCHES, dtype=torch.int8)
    for label, scene, places in zip(labels, scenes, placements, strict=True):
        for item, place in zip(scene.objects, places, strict=True):
            inside = torch.hypot(centres - place.x, (centres - place.y)[:, None]) < place.radius
            label[0, inside] = 1 + SHAPES.index(item.shape)
            label[1, inside] = 1 + list(COLOURS).index(item.colour)
    return labels


def write_latents(workers: Workers, work: Path, minutes: float, num_pictures: int) -> None:
    """Draw and encode training pictures until there are as many as asked for, or the time is up."""
    log_to_stderr()
    model, tokenizer, clock = load_autoencoder(work), new_tokenizer(), Clock(minutes)
    for index in range(workers.rank, -(-num_pictures // NUM_IN_FILE), workers.number):
        path = work / LATENTS_FOLDER / f"{index:06d}.pt"
        if path.exists():
            continue
        if clock.over:
            break
        scenes = random_scenes(2_000_000 + index, NUM_IN_FILE)
        places = random.Random(index)
        placements = [place_objects(scene, places) for scene in scenes]
        generator = torch.Generator().manual_seed(2_000_000_000 + index)
        parts = [
            encode_pictures(model, render(scenes[some], placements[some], generator))
            for start in range(0, NUM_IN_FILE, _ENCODED_AT_ONCE)
            for some in [slice(start, start + _ENCODED_AT_ONCE)]
        ]
        prompts = [scene.prompt() for scene in scenes]
        tokens = tokenizer(
            prompts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"
        ).input_ids
        labels = object_labels(scenes, placements)
        write_state(path, {"latents": torch.cat(parts).half(), "tokens": tokens.short(), "labels": labels})
        logger.info("latents: file %d after %.0f s", index, clock.elapsed_s)


class LatentData:
    """All latents of a work folder, in memory; `refresh` takes up files that came since.

    Args:
        work: The work folder.

    Raises:
        CheckpointError: There are none.
    """

    def __init__(self, work: Path) -> None:
        self._folder = work / LATENTS_FOLDER
        self._parts: dict[Path, dict[str, Tensor]] = {}
        self.refresh()
        if not self._parts:
            raise CheckpointError(f"{self._folder} holds no latents; run the stage 'latents' first")

    def refresh(self) -> None:
        """Reads the files that are new."""
        for path in sorted(self._folder.glob("*.pt")):
            if path not in self._parts:
                self._parts[path] = read_state(path, "latents")
        self._names = list(self._parts)

    def __len__(self) -> int:
        return NUM_IN_FILE * len(self._names)

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (size, 4, 16, 16) in float32, tokens (size, 20) and labels (size, 2, 8, 8), drawn at random."""
        indices = torch.randint(len(self), (size,), generator=generator).tolist()
        items = [(self._parts[self._names[i // NUM_IN_FILE]], i % NUM_IN_FILE) for i in indices]
        latents = torch.stack([part["latents"][row] for part, row in items]).float()
        tokens, labels = (torch.stack([p[name][row] for p, row in items]) for name in ("tokens", "labels"))
        return latents, tokens.long(), labels.long()
