"""Pictures as latents with the tokens of their prompts, in files that the transformer's training reads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from l2c.errors import CheckpointError
from l2c.scenes import draw_pictures, random_scenes
from scenes_recipe.autoencoder import LATENTS_FOLDER, load_autoencoder
from scenes_recipe.parallel import Workers
from scenes_recipe.state import Clock, log_to_stderr, logger, read_state, write_state
from scenes_recipe.tokenizer import MAX_LENGTH, new_tokenizer

NUM_IN_FILE = 2048
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
    with torch.autocast("cpu", torch.bfloat16):
        means = model.encode(2 * pictures - 1).latent_dist.mean
    return (means.float() - model.config.shift_factor) * model.config.scaling_factor


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
        parts = [
            encode_pictures(model, draw_pictures(part, seed=2_000_000_000 + index * NUM_IN_FILE + start))
            for start in range(0, NUM_IN_FILE, _ENCODED_AT_ONCE)
            for part in [scenes[start : start + _ENCODED_AT_ONCE]]
        ]
        prompts = [scene.prompt() for scene in scenes]
        tokens = tokenizer(
            prompts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"
        ).input_ids
        write_state(path, {"latents": torch.cat(parts).half(), "tokens": tokens.short()})
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

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Latents (size, 4, 16, 16) in float32 and tokens (size, 20), drawn at random."""
        indices = torch.randint(len(self), (size,), generator=generator).tolist()
        items = [(self._parts[self._names[i // NUM_IN_FILE]], i % NUM_IN_FILE) for i in indices]
        latents = torch.stack([part["latents"][row] for part, row in items]).float()
        return latents, torch.stack([part["tokens"][row] for part, row in items]).long()
