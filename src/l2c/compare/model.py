"""The model that is compared: its examples, its runs and its pictures; nothing else here knows how it is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from l2c.bench.timing import interleave
from l2c.compare.config import CompareConfig
from l2c.errors import ConfigError
from l2c.evaluation.registry import all_metrics
from l2c.layers import find_layers
from l2c.layers.base import LayerTable
from l2c.models import load_model
from l2c.sampling.decoding import LatentDecoder
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.schedule.contract import Run

Examples = tuple[Tensor, Tensor]
"""Noise (B, C, H, W) and labels (B,)."""


class ComparedModel:
    """A model with the guidance of a comparison.

    Args:
        config: The comparison.
        device: Where to compute.

    Raises:
        CheckpointError: If the model or its autoencoder cannot be loaded.
        ConfigError: If metrics of pictures are asked for, and it makes latents that nothing decodes.
    """

    def __init__(self, config: CompareConfig, device: str) -> None:
        self.name = config.model
        self.model = load_model(config.model, dtype=getattr(torch, config.dtype), device=device)
        self._denoiser, self._guidance = Denoiser.of(self.model), Guidance(config.guidance)
        of_pictures = [
            name for name in config.metrics if name not in all_metrics() or not all_metrics()[name].of_latents
        ]
        if self._denoiser.latent and config.vae is None and of_pictures:
            raise ConfigError(
                f"{config.model} makes latents, and {of_pictures[0]} is of pictures; name the autoencoder's folder "
                "as vae, or ask for rmse alone"
            )
        self._decoder = None if config.vae is None else LatentDecoder(config.vae, device)

    @cached_property
    def table(self) -> LayerTable:
        """Its layers."""
        return find_layers(self.model)

    @property
    def unit(self) -> str:
        """Unit of errors: `absolute` for pictures, `relative` for latents."""
        return "relative" if self._denoiser.latent and self._decoder is None else "absolute"

    def examples(self, seeds: Sequence[int]) -> Examples:
        """What pictures are made of; classes take turns."""
        noise = seeded_noise(seeds, self._denoiser.sample_shape).to(self._denoiser.device)
        labels = [seed % self._denoiser.num_classes for seed in seeds]
        return noise, torch.tensor(labels, device=self._denoiser.device)

    def sampler(self, solver: str, steps: int, spacing: str) -> Sampler:
        """Samples with a solver by name."""
        return Sampler(self._denoiser, solver, steps, spacing, self._guidance)

    def sampler_of(self, run: Run) -> Sampler:
        """Samples as a schedule's run says."""
        return Sampler.of_run(self._denoiser, run, self._guidance)

    def pictures(self, samples: Tensor) -> Tensor:
        """Pictures in -1 to 1 of samples, on the CPU; latents where nothing decodes them."""
        if self._decoder is not None:
            samples = self._decoder(samples)
        return samples.cpu() if self._denoiser.latent else samples.cpu().clamp(-1, 1)

    def decode_seconds(self, samples: Tensor) -> list[float]:
        """Seconds of decoding, apart from sampling; none where there is nothing to decode."""
        decoder = self._decoder
        if decoder is None:
            return []
        return list(interleave({"decode": lambda: decoder(samples)}, 1, warm_ups={})["decode"].seconds)
