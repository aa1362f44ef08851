"""What a router is learned on, as pure functions."""

from __future__ import annotations

from torch import Tensor

from l2c.errors import known

REDUCTIONS = ("mean", "sum")


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
