"""From the latents of a latent model to pictures, with an autoencoder in diffusers' folder layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.documents import existing
from l2c.errors import CheckpointError, ConfigError, Told


class LatentDecoder:
    """A diffusers `AutoencoderKL` that decodes latents a few at a time.

    Args:
        folder: The autoencoder's folder, or that of a pipeline with one in `vae/`. Nothing is downloaded.
        device: Where to decode.

    Raises:
        CheckpointError: If there is no autoencoder.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        from diffusers import AutoencoderKL

        folder = Path(folder)
        home = folder / "vae" if (folder / "vae").is_dir() else folder
        advice = "give a folder that diffusers' AutoencoderKL was saved to"
        existing(home / "config.json", "configuration of an autoencoder", advice, CheckpointError)
        with Told(CheckpointError, f"the autoencoder in {folder} cannot be loaded ({{said}})", Exception):
            self._vae: Any = AutoencoderKL.from_pretrained(home, local_files_only=True).to(device).eval()
        self.channels = int(self._vae.config.latent_channels)

    @torch.inference_mode()
    def __call__(self, latents: Tensor, batch_size: int = 4) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of latents (B, C, h, w).

        Raises:
            ConfigError: If the latents have another number of channels than the autoencoder's.
        """
        if latents.shape[1] != self.channels:
            raise ConfigError(
                f"the autoencoder decodes latents with {self.channels} channels, the model makes "
                f"{latents.shape[1]}"
            )
        scaled = latents / self._vae.config.scaling_factor + (self._vae.config.shift_factor or 0.0)
        pictures = [self._vae.decode(part).sample.float().clamp(-1, 1) for part in scaled.split(batch_size)]
        return torch.cat(pictures)
