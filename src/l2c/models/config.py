"""What a model was built and trained as: the fields every architecture shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from l2c.documents import Count, Positive, check_fields, one_of
from l2c.errors import ConfigError

NUM_TRAIN_TIMESTEPS = 1000
"""Length of every training noise schedule: all published models were trained with a thousand steps."""

BETA_RANGES = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
"""First and last beta of every noise schedule, by name; `training_betas` says what lies between."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Geometry and training conventions of a class-conditional diffusion transformer.

    Attributes:
        in_channels: Channels of the images or latents; 4 are the latents of a Stable Diffusion autoencoder.
        image_size: Height and width of what the network sees, in pixels or latent pixels.
        patch_size: Side of the square patch that becomes one token; divides `image_size`.
        hidden_size: Width of a token; a multiple of `num_heads`.
        depth: Number of blocks, as the architecture counts them.
        num_heads: Attention heads per block.
        mlp_ratio: Width of the MLP's inner layer over `hidden_size`.
        num_classes: Number of real classes; labels run from 0 to `num_classes - 1`.
        has_null_class: Whether the label table has one more row, for "no class" (needed for guidance).
        beta_schedule: Training noise schedule over 1000 timesteps: `"linear"` for betas
            linspace(1e-4, 0.02), `"scaled_linear"` for linspace(sqrt(0.00085), sqrt(0.012)) squared.
        first_timestep: What the network is fed for the first (least noisy) of those 1000 timesteps; index
            `i` is fed `i + first_timestep`.
        prediction_type: What the network predicts: `"epsilon"`, the noise; `"v_prediction"`; `"sample"`, the data; or
            `"flow_prediction"`, the velocity noise - data of a flow (1 - s) data + s noise, which has no beta
            schedule and is fed 1000 s + first_timestep.

    Raises:
        ConfigError: A size is not positive, does not divide what it must, or a name is unknown.
    """

    in_channels: Count
    image_size: Count
    patch_size: Count
    hidden_size: Count
    depth: Count
    num_heads: Count
    num_classes: Count
    mlp_ratio: Positive = 4.0
    has_null_class: bool = True
    beta_schedule: Annotated[str, one_of(*BETA_RANGES)] = "linear"
    first_timestep: int = 0
    prediction_type: Annotated[str, one_of(*PREDICTION_TYPES)] = "epsilon"

    def __post_init__(self) -> None:
        check_fields(self)
        _check_divides("patch_size", self.patch_size, "image_size", self.image_size)
        _check_divides("num_heads", self.num_heads, "hidden_size", self.hidden_size)
        _check_divides("4 (sine and cosine for rows and columns)", 4, "hidden_size", self.hidden_size)

    @property
    def latent(self) -> bool:
        """Whether the network sees latents of an autoencoder instead of pixels."""
        return self.in_channels == 4

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches, that is image tokens, per image."""
        return self.grid_size**2

    @property
    def mlp_hidden_size(self) -> int:
        """Width of the MLP's inner layer."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def num_labels(self) -> int:
        """Rows of the label table, the null class included."""
        return self.num_classes + self.has_null_class

    @property
    def null_class(self) -> int | None:
        """Label that means "no class", or None for a model trained without one."""
        return self.num_classes if self.has_null_class else None

    def betas(self) -> torch.Tensor:
        """Variances that the training noise schedule adds per timestep.

        Returns:
            Tensor of shape (1000,), float64, on the CPU whatever the default device.
        """
        return training_betas(self.beta_schedule)


def training_betas(beta_schedule: str) -> torch.Tensor:
    """Variances that a noise schedule adds per timestep.

    Args:
        beta_schedule: A name in `BETA_RANGES`: `linear` spaces the betas evenly, `scaled_linear` their roots.

    Returns:
        Tensor of shape (1000,), float64, on the CPU whatever the default device.
    """
    start, end = BETA_RANGES[beta_schedule]
    scaled = beta_schedule == "scaled_linear"
    if scaled:
        start, end = math.sqrt(start), math.sqrt(end)
    ramp = torch.linspace(start, end, NUM_TRAIN_TIMESTEPS, dtype=torch.float64, device="cpu")
    return ramp.square() if scaled else ramp


def _check_divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    if value % divisor:
        raise ConfigError(f"{name} {value} must be a multiple of {divisor_name}, got {divisor}")
