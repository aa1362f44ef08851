"""A class-conditional diffusers pipeline in pixel space, for the embedded weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor


class ClassPipeline(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """Class labels to pictures, guided in one batch.

    As diffusers' `DiTPipeline`, but without an autoencoder, and with as many classes as the transformer has.

    Args:
        transformer: A `DiTTransformer2DModel`.
        scheduler: A scheduler of diffusers, for a network that predicts noise.
    """

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        guidance_scale: float = 1.5,
        output_type: str = "latent",
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        """Pictures (B, C, H, W), not clamped.

        Args:
            class_labels: One for each picture.
            num_inference_steps: Steps of the scheduler.
            timesteps: Or its timesteps.
            generator: What the initial noise is drawn from.
            latents: Or the initial noise (B, C, H, W).
            guidance_scale: Of classifier-free guidance.
            output_type: `latent`.
            return_dict: There is none to return.
        """
        assert output_type == "latent"
        config = self.transformer.config
        null = [config.num_embeds_ada_norm] * len(class_labels)
        labels = torch.tensor([*class_labels, *null])
        shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
        x = torch.randn(shape, generator=generator) if latents is None else latents
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps)
        else:
            self.scheduler.set_timesteps(timesteps=timesteps)
        self.scheduler.set_begin_index(0)
        for t in self.progress_bar(self.scheduler.timesteps):
            both = self.scheduler.scale_model_input(torch.cat([x, x]), t)
            noise = self.transformer(both, timestep=t.expand(len(both)), class_labels=labels).sample
            cond, uncond = noise[:, : x.shape[1]].chunk(2)
            x = self.scheduler.step(uncond + guidance_scale * (cond - uncond), t, x).prev_sample
        return (x,)
