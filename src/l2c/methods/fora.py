"""FORA: the whole network at every N-th evaluation, its outputs copied in between."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from l2c.methods.base import Method
from l2c.methods.interval import interval
from l2c.schedule.schedule import CacheSchedule


def fora(
    model: nn.Module, solver: str = "ddim", steps: int = 50, *, spacing: str = "linspace", every: int = 3
) -> CacheSchedule:
    """Computes every layer at evaluations 0, every, 2 * every, ... and copies it in between.

    Nothing differs from the publication: it stores the outputs of attention and MLP before the adaLN gate, as
    the layers of a DiT are here. It was published for DiT; on a U-ViT the same pattern is used.

    Args:
        model: A model that has a layer adapter; its weights are not looked at.
        solver: Solver name.
        steps: Number of model evaluations.
        spacing: Spacing of the evaluations.
        every: Length of the interval; the authors use 3 for their best trade on DiT-XL/2 at 50 DDIM steps.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Selvaraju et al., arXiv 2407.01425.
    """
    schedule = interval(model, solver, steps, every, "copy", spacing=spacing)
    return replace(schedule, provenance={"method": "fora", "every": every})


METHOD = Method(
    "fora",
    "FORA",
    fora,
    "arXiv 2407.01425",
    published={"every": 3},
    choices=tuple({"every": every} for every in range(1, 13)),
)
