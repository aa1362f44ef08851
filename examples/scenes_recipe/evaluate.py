"""Adherence of a pipeline to held-out prompts, and a sheet of pictures to look at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor

from l2c.scenes import adherence, draw_pictures, random_scenes, summarise_adherence
from scenes_recipe.state import logger

SEED = 11
_BATCH_SIZE = 32


def sample_pictures(
    pipeline: StableDiffusion3Pipeline,
    prompts: Sequence[str],
    num_steps: int,
    guidance: float,
    empty_tokens: int,
) -> Tensor:
    """Pictures of prompts, each from noise of its own seed; RGB in [0, 1], shape (len(prompts), 3, 64, 64)."""
    parts = []
    for start in range(0, len(prompts), _BATCH_SIZE):
        some = list(prompts[start : start + _BATCH_SIZE])
        generators = [torch.Generator().manual_seed(SEED + start + i) for i in range(len(some))]
        parts.append(
            pipeline(
                some, num_inference_steps=num_steps, guidance_scale=guidance, generator=generators,
                height=64, width=64, output_type="pt", max_sequence_length=empty_tokens,
            ).images.float()
        )  # fmt: skip
        logger.info("evaluate: %d of %d pictures", start + len(some), len(prompts))
    return torch.cat(parts)


def contact_sheet(pictures: Tensor, columns: int = 16) -> Image.Image:
    """Pictures side by side, shape (B, 3, H, W) in [0, 1]."""
    number, channels, height, width = pictures.shape
    rows = -(-number // columns)
    grid = torch.ones(rows * columns, channels, height, width)
    grid[:number] = pictures
    pixels = grid.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(
        (pixels.reshape(rows * height, columns * width, channels) * 255).round().byte().numpy()
    )


def evaluate_pipeline(
    pipeline: StableDiffusion3Pipeline,
    num_prompts: int,
    num_steps: int,
    guidance: float,
    empty_tokens: int,
    sheet: Path | None = None,
) -> dict[str, Any]:
    """Adherence on prompts held out by combination, beside that of drawn pictures.

    Args:
        pipeline: The trained pipeline.
        num_prompts: How many held-out prompts.
        num_steps: Of the pipeline's own scheduler.
        guidance: Guidance scale.
        empty_tokens: The pipeline's `max_sequence_length`.
        sheet: PNG file for a sheet of pictures.

    Returns:
        The record.
    """
    scenes = random_scenes(SEED, num_prompts, held_out=True)
    prompts = [scene.prompt() for scene in scenes]
    start = time.perf_counter()
    pictures = sample_pictures(pipeline, prompts, num_steps, guidance, empty_tokens)
    seconds = time.perf_counter() - start
    if sheet is not None:
        contact_sheet(pictures).save(sheet)
    results = adherence(pictures, prompts)
    drawn = adherence(draw_pictures(scenes, SEED), prompts)
    by_number = {
        str(n): summarise_adherence([r for r in results if len(r.objects) == n])
        for n in sorted({len(r.objects) for r in results})
    }
    return {
        "num_prompts": num_prompts,
        "held_out": "by combination: none of the prompts' combinations of objects was in training",
        "num_steps": num_steps,
        "guidance_scale": guidance,
        "max_sequence_length": empty_tokens,
        "seed": SEED,
        "seconds": round(seconds, 1),
        "adherence": _rounded(summarise_adherence(results)),
        "adherence_by_number_of_objects": {n: _rounded(parts) for n, parts in by_number.items()},
        "adherence_of_drawn_pictures": _rounded(summarise_adherence(drawn)),
    }


def _rounded(parts: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in parts.items()}
