"""Paired metrics: one number per image, from a picture and its reference."""

from __future__ import annotations

from torch import Tensor

from l2c.errors import ConfigError

DATA_RANGE = 2.0
"""Distance between black and white in images scaled to [-1, 1]."""


def rmse(images: Tensor, references: Tensor) -> Tensor:
    """Root-mean-square error of each image over its channels and pixels.

    Args:
        images: (B, C, H, W).
        references: What they are compared with, of the same shape.

    Returns:
        (B,), float64, in the units of the images; 0 for equal images.

    Raises:
        ConfigError: If the shapes differ.

    >>> import torch
    >>> rmse(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)).tolist()
    [0.5, 0.5]
    """
    if images.shape != references.shape or images.ndim != 4:
        raise ConfigError(
            f"paired metrics compare equally shaped images (B, C, H, W), got {tuple(images.shape)} "
            f"and {tuple(references.shape)}"
        )
    squared = (images.double() - references.double()).square()
    return squared.mean(dim=(1, 2, 3)).sqrt()


def psnr(images: Tensor, references: Tensor, data_range: float = DATA_RANGE) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: 20 log10(data_range / rmse).

    Args:
        images: (B, C, H, W).
        references: What they are compared with, of the same shape.
        data_range: Largest possible difference of two values; 2 for images in [-1, 1].

    Returns:
        (B,), float64; infinite for equal images.

    Raises:
        ConfigError: If the shapes differ or the data range is not positive.

    >>> import torch
    >>> psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)).round().tolist()
    [20.0]
    """
    if not data_range > 0:
        raise ConfigError(f"the data range must be positive, got {data_range}")
    return 20 * (data_range / rmse(images, references)).log10()
