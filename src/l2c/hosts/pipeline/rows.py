"""The rows of a transformer's call: halves of its arguments, and which half is the conditional pass of guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.schedule.branches import BRANCHES


def num_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Rows of the samples that a transformer is called with; 0 if they are no tensor."""
    sample = kwargs.get("hidden_states", args[0] if args else None)
    return len(sample) if isinstance(sample, Tensor) and sample.ndim else 0


def half(value: Any, rows: int, index: int) -> Any:
    """The first or second half of the rows of every tensor in arguments that has so many; all else as it is."""
    if isinstance(value, Tensor):
        return value.chunk(2)[index] if value.ndim and len(value) == rows else value
    if type(value) is dict:
        return {key: half(part, rows, index) for key, part in value.items()}
    if type(value) is list and len(value) == rows and not any(isinstance(part, Tensor) for part in value):
        return value[index * rows // 2 : (index + 1) * rows // 2]
    return type(value)(half(part, rows, index) for part in value) if type(value) in (list, tuple) else value


def sample_of(output: Any) -> Tensor:
    """The prediction in what a transformer returns: a tensor, a tuple, or an output of diffusers."""
    sample: Tensor = output if isinstance(output, Tensor) else output[0]
    return sample


def with_sample(output: Any, sample: Tensor) -> Any:
    """What a transformer returns, with another prediction."""
    if isinstance(output, Tensor):
        return sample
    if isinstance(output, Mapping):  # diffusers' outputs
        return type(output)(**{**output, next(iter(output)): sample})
    return type(output)((sample, *output[1:]))


@torch.no_grad()
def order_of(prediction: Tensor, combined: Any) -> tuple[str, ...]:
    """Passes of guidance that are in the rows of a prediction, in order; `cond` alone where there is no guidance.

    With guidance a scheduler is given `uncond + scale * (cond - uncond)`, so that the conditional half has the larger
    weight, and the other one the opposite sign, whatever the scale above 1. Its rows are half of those of the
    prediction, or the same twice; without a learned variance, its channels may be fewer.

    Args:
        prediction: What the transformer returned (2 * B, C, ...).
        combined: What the scheduler is given.

    Raises:
        ConfigError: If the rows are those of guidance, but do not tell which are which.
    """
    rows = len(prediction)
    if not isinstance(combined, Tensor) or rows % 2 or len(combined) not in (rows, rows // 2):
        return BRANCHES[:1]
    first, second = prediction.float().chunk(2)
    if not (
        prediction.isfinite().all() and combined.isfinite().all()
    ):  # which whoever reads the result will say
        return BRANCHES[:1]
    if len(combined) == rows:
        one, other = combined.chunk(2)
        if torch.equal(first, second) or not torch.equal(one, other):
            return BRANCHES[:1]
        combined = one
    if first.ndim == combined.ndim > 1:
        first, second = (part[:, : combined.shape[1]] for part in (first, second))
    if first.shape == combined.shape:
        if torch.equal(first, second):
            return BRANCHES
        mean, difference = ((first + second) / 2).flatten(), (first - second).flatten()
        basis = torch.stack([mean, difference])
        products = (basis @ basis.T).cpu().double()
        weights = torch.linalg.lstsq(
            products, (basis @ combined.float().flatten()).cpu().double()[:, None]
        ).solution
        lean = float(weights[0] * weights[1])  # of one sign where the first half counts for more
        if lean:
            return BRANCHES if lean > 0 else BRANCHES[::-1]
    raise ConfigError(
        "which half of the rows of a call is the conditional pass of guidance cannot be told from what the pipeline "
        "makes of them; learn a schedule for it with branches=False (--no-branches)"
    )
