"""What is made small, as pure functions: the loss of a router, and power means of the errors of pictures."""

from __future__ import annotations

from torch import Tensor

from l2c.errors import known

REDUCTIONS = ("mean", "sum")
LEAST_ERROR = 1e-4
"""Of a picture whose logarithm is taken, in what errors are measured in."""


def router_loss(
    mixed: Tensor, full: Tensor, scores: Tensor, lambda_: float, reduction: str
) -> tuple[Tensor, Tensor]:
    """Error of the mixed output and price of the scores; the loss is their sum.

    Args:
        mixed: Model output (B, C, H, W) with layers mixed from fresh and stored values.
        full: Model output (B, C, H, W) with all layers fresh, at the same input.
        scores: Scores (layers,) of the evaluation.
        lambda_: Price of one computed layer.
        reduction: Over the elements of an image: `mean`, as for DiT, or `sum`, as for U-ViT. Always the mean
            over images.

    Source: arXiv 2406.01733, equation 7; reductions and lambdas as released.
    """
    known("reduction", reduction, REDUCTIONS)
    per_element = (mixed.float() - full.float()).square().flatten(1)
    per_image = per_element.mean(dim=1) if reduction == "mean" else per_element.sum(dim=1)
    return per_image.mean(), lambda_ * scores.sum()


def powers(errors: Tensor, power: float) -> Tensor:
    """What each error counts for in a power mean, with the gradient of the error itself where that is 1.

    Args:
        errors: Of pictures (B,).
        power: Of the mean; 0 for the geometric mean.
    """
    return errors.clamp_min(LEAST_ERROR).log() if power == 0 else errors**power / power


def power_mean(errors: Tensor, power: float) -> float:
    """Mean of the errors (B,) of pictures; see `powers`.

    >>> import torch
    >>> [round(power_mean(torch.tensor([0.1, 0.4]), power), 2) for power in (0, 1, 4)]
    [0.2, 0.25, 0.34]
    """
    if power == 0:
        return float(powers(errors, 0).mean().exp())
    return float((errors**power).mean() ** (1 / power))
