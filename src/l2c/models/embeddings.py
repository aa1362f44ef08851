"""Parameter-free pieces that the architectures share: timestep features, positions, patches."""

from __future__ import annotations

import math

import torch


def timestep_features(t: torch.Tensor, dim: int, *, max_period: float = 10_000.0) -> torch.Tensor:
    """Embed timesteps as cosines, then sines, of geometrically spaced frequencies.

    The frequencies are `max_period ** (-i / half)` for i in 0..half-1, half being `dim / 2`: the smallest is
    not quite `1 / max_period`. (Some libraries divide by `half - 1`; weights trained with one do not work
    with the other.)

    Args:
        t: Timesteps of shape (B,), integer or fractional.
        dim: Number of features, even.
        max_period: Sets the slowest frequency.

    Returns:
        Features of shape (B, dim), float32.

    Source:
        Nichol et al., "GLIDE" (arXiv 2112.10741), the timestep embedding that DiT and U-ViT inherit.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sincos_positions(hidden_size: int, grid_size: int) -> torch.Tensor:
    """Tabulate fixed two-dimensional sine-cosine positions of a square grid, row by row.

    The first half of the features encodes the column, the second the row; each half holds sines, then
    cosines.

    Args:
        hidden_size: Number of features, a multiple of 4.
        grid_size: Tokens along one side.

    Returns:
        Table of shape (1, grid_size ** 2, hidden_size), float32, on the CPU.

    Source:
        He et al., "Masked Autoencoders" (arXiv 2111.06377), as used by DiT (arXiv 2212.09748).
    """
    quarter = hidden_size // 4
    exponents = torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter
    positions = torch.arange(grid_size, dtype=torch.float64, device="cpu")
    angles = positions[:, None] * 10_000.0**-exponents  # (grid, quarter)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, hidden / 2)
    columns = axis[None, :, :].expand(grid_size, -1, -1)
    rows = axis[:, None, :].expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, grid_size**2, hidden_size).float()


def unpatchify(tokens: torch.Tensor, channels: int, patch_size: int) -> torch.Tensor:
    """Lay the patches of a square image out again.

    Args:
        tokens: Patches of shape (B, grid ** 2, patch_size ** 2 * channels), row by row; within one, channels
            vary fastest.
        channels: Channels of the image.
        patch_size: Side of a patch.

    Returns:
        Images of shape (B, channels, grid * patch_size, grid * patch_size).

    >>> unpatchify(torch.arange(4.0).reshape(1, 4, 1), channels=1, patch_size=1)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    batch, num_patches, _ = tokens.shape
    grid = math.isqrt(num_patches)
    patches = tokens.reshape(batch, grid, grid, patch_size, patch_size, channels)
    images = patches.permute(0, 5, 1, 3, 2, 4)  # (B, C, grid, patch, grid, patch)
    return images.reshape(batch, channels, grid * patch_size, grid * patch_size)
