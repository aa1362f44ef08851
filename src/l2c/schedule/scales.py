"""Terms of a solver by the size of what they show, so that fine and coarse detail can be weighed apart.

At each noise level another size of detail is being decided: what is coarse first, what is fine last. So the best
weights of a step differ between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from l2c.schedule.forecast import combine

MOST_SCALES = 4
SMALLEST = 2
"""Pixels, or cells of latents, that the coarsest scale has at least on each side."""


def scales_of(shape: Sequence[int], most: int = MOST_SCALES) -> int:
    """How many scales samples of a shape have: 1 where they are not maps (..., H, W), as tokens of FLUX are not.

    >>> scales_of((2, 4, 16, 16)), scales_of((2, 4, 8, 8)), scales_of((2, 64, 16))
    (4, 3, 1)
    """
    if len(shape) < 4:
        return 1
    return max(1, min(most, (min(shape[-2:]) // SMALLEST).bit_length()))


def scales_in(rows: Sequence[Sequence[float]] | Tensor, evaluations: int, degree: int = 0) -> int:
    """Scales of the table of a learned solver; 0 if it is no table of so many evaluations.

    Args:
        rows: The table.
        evaluations: Of the solver.
        degree: Of the polynomial in the guidance scale that its weights are; see `Run.at_guidance`.
    """
    size, parts = evaluations + 1, degree + 1
    widths = {len(row) for row in rows}
    width = widths.pop() if len(rows) == size and len(widths) == 1 else 0
    whole = not width % (size * parts) and width <= MOST_SCALES * size * parts
    return width // (size * parts) if whole else 0


def low_pass(x: Tensor, scale: int) -> Tensor:
    """What of maps (..., H, W) is not finer than 2^scale pixels: means of squares of that size, interpolated."""
    if scale == 0:
        return x
    height, width = x.shape[-2:]
    size = (-(-height // 2**scale), -(-width // 2**scale))
    maps = x.reshape(-1, 1, height, width)
    coarse = F.interpolate(
        F.adaptive_avg_pool2d(maps, size), (height, width), mode="bilinear", align_corners=False
    )
    return coarse.view(x.shape)


def bands(x: Tensor, count: int) -> list[Tensor]:
    """Maps (..., H, W) as a sum of so many, the finest detail first."""
    passed = [low_pass(x, scale) for scale in range(count)]
    return [fine - coarse for fine, coarse in pairwise(passed)] + passed[-1:]


def of_bands(weights: Tensor) -> Tensor:
    """Weights (scales, ...) of low-passed maps that do what such weights of bands do.

    >>> of_bands(torch.tensor([3.0, 5.0])).tolist()  # 3 (x - low) + 5 low
    [3.0, 2.0]
    """
    return torch.cat([weights[:1], weights.diff(dim=0)])


def weigh_terms(terms: Sequence[Tensor], row: Tensor) -> Tensor:
    """The combination of terms (B, ...) with the first weights of a row.

    Args:
        terms: Initial noise and predictions.
        row: Weights (scales, terms or more): of the terms as they are, and of what each scale lets pass of them. Where
            those of each sample differ, (scales, terms or more, B, 1, ...).
    """
    total, *passed = (combine(terms, weights.unbind()) for weights in row[:, : len(terms)])
    for scale, part in enumerate(passed, start=1):
        total = total + low_pass(part, scale)
    return total
