"""What runs between the matrix products: sums into the residual stream, forecasts and norms, in plain PyTorch.

A layer's output is not added to the stream at once. It is *pending* until the next layer needs the stream, so that the
sum, the forecasts of reused layers and the next norm are one pass over the tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.models.dit import modulated_norm


class Pending(NamedTuple):
    """Output of a layer that has not been added to the stream yet.

    Attributes:
        values: What it computed, or the stored values that forecast it; (B, T, D) each.
        weights: Weights (len(values),) of the stored values; None for a single value that counts as it is.
        gate: Factor (B, 1, D) of the output; None for none.
    """

    values: tuple[Tensor, ...]
    weights: Tensor | None
    gate: Tensor | None

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What a piece depends on."""
        return len(self.values), self.weights is not None, self.gate is not None


def settle(x: Tensor, pending: tuple[Pending, ...]) -> Tensor:
    """The stream (B, T, D) with everything pending added."""
    for values, weights, gate in pending:
        term = values[0]
        if weights is not None:
            term = term * weights[0]
            for index, value in enumerate(values[1:], start=1):
                term = term + value * weights[index]
            term = term.to(x.dtype)
        x = x + term if gate is None else torch.addcmul(x, gate, term)
    return x


def settle_modulate(
    x: Tensor, pending: tuple[Pending, ...], shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The stream with everything pending added, and its modulated norm."""
    x = settle(x, pending)
    return x, modulated_norm(x, shift, scale)


def settle_norm(
    x: Tensor, pending: tuple[Pending, ...], weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The stream with everything pending added, and its norm."""
    x = settle(x, pending)
    return x, F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def settle_join(x: Tensor, pending: tuple[Pending, ...], skip: Tensor) -> Tensor:
    """The stream with everything pending added, beside a long skip: (B, T, 2 * D)."""
    return torch.cat([settle(x, pending), skip], dim=-1)
