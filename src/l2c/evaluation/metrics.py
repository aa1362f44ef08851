"""Paired metrics: one number per image, from a picture and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from l2c.documents import Positive, check_value
from l2c.errors import ConfigError, known
from l2c.hosts.base import errors
from l2c.scenes import adherence as judge

DATA_RANGE = 2.0
"""Distance between black and white in images scaled to [-1, 1]."""

UNITS = ("absolute", "relative")
"""Of errors: of pictures with values from -1 to 1, or of latents against the root mean square of the reference."""

_WINDOW, _WINDOW_SIGMA = 11, 1.5


def rmse(images: Tensor, targets: Tensor, unit: str = "absolute") -> Tensor:
    """Root mean square distance of each image, or latent, to what it is compared with.

    Args:
        images: (B, ...).
        targets: What they are compared with, of the same shape.
        unit: `absolute` is that of the images; `relative` is the root mean square of each target, for latents, whose
            range is different for every model.

    Returns:
        (B,), float64; 0 for equal images.

    Raises:
        ConfigError: If the shapes differ or the unit is another.

    >>> import torch
    >>> rmse(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)).tolist()
    [0.5, 0.5]
    >>> rmse(torch.full((1, 3, 4, 4), 3.0), torch.full((1, 3, 4, 4), 2.0), "relative").tolist()
    [0.5]
    """
    known("unit of an error", unit, UNITS)
    check_pairs(images, targets)
    return errors(images.double(), targets.double(), unit)


def check_pairs(images: Tensor, targets: Tensor) -> None:
    """Refuses images that cannot be compared one by one.

    Raises:
        ConfigError: If the shapes differ.
    """
    ours, theirs = (tuple(one.shape) if isinstance(one, Tensor) else one for one in (images, targets))
    if not isinstance(ours, tuple) or ours != theirs or len(ours) < 2:
        raise ConfigError(
            f"paired metrics compare equally shaped images (B, C, H, W), got {ours!r} and {theirs!r}"
        )


def psnr(images: Tensor, targets: Tensor, data_range: float = DATA_RANGE) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: 20 log10(data_range / rmse).

    Args:
        images: (B, C, H, W).
        targets: What they are compared with, of the same shape.
        data_range: Largest possible difference of two values; 2 for images in [-1, 1].

    Returns:
        (B,), float64; infinite for equal images.

    Raises:
        ConfigError: If the shapes differ or the data range is not positive.

    >>> import torch
    >>> psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)).round().tolist()
    [20.0]
    """
    check_value("the data range", data_range, Positive)
    return 20 * (data_range / rmse(images, targets)).log10()


def ssim(images: Tensor, targets: Tensor, data_range: float = DATA_RANGE) -> Tensor:
    """Structural similarity of each image, the mean over its colours and over all places of the window.

    The window is a Gaussian of width 1.5 over 11 x 11 pixels that stays inside the image.

    Args:
        images: (B, C, H, W), H and W at least 11.
        targets: What they are compared with, of the same shape.
        data_range: Largest possible difference of two values; 2 for images in [-1, 1].

    Returns:
        (B,), float64; 1 for equal images.

    Raises:
        ConfigError: If the shapes differ or the images are smaller than the window.

    Source: Wang et al., IEEE Transactions on Image Processing 13, 2004; K1 = 0.01, K2 = 0.03.

    >>> import torch
    >>> ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)).tolist()
    [1.0]
    """
    rmse(images, targets)  # the same demands
    if min(images.shape[-2:]) < _WINDOW:
        height, width = images.shape[-2:]
        raise ConfigError(f"SSIM needs images of at least {_WINDOW}x{_WINDOW} pixels, got {height}x{width}")
    offsets = torch.arange(_WINDOW, dtype=torch.float64, device=images.device) - _WINDOW // 2
    profile = torch.exp(-(offsets**2) / (2 * _WINDOW_SIGMA**2))
    kernel = (profile[:, None] * profile / profile.sum() ** 2)[None, None]

    def blur(values: Tensor) -> Tensor:
        return functional.conv2d(values.flatten(0, 1)[:, None], kernel)

    x, y = images.double(), targets.double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.reshape(len(images), -1).mean(dim=1)


def adherence(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Share of the objects of each prompt that its picture shows as told, in colour, shape and relation (B,).

    Args:
        images: (B, 3, 64, 64) in [-1, 1].
        prompts: Of drawn scenes, see `l2c.scenes`.

    Raises:
        ConfigError: If a prompt is not one of a scene.
    """
    judged = judge((images.float().cpu() + 1) / 2, prompts)
    return torch.tensor([sum(item.right for item in one.objects) / len(one.objects) for one in judged])
