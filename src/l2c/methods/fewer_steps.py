"""The rival of every cache: no cache, but fewer steps, perhaps of a better solver."""

from __future__ import annotations

from torch import nn

from l2c.errors import ConfigError
from l2c.methods.base import Method, Target
from l2c.schedule.schedule import CacheSchedule


def fewer_steps(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    *,
    spacing: str = "linspace",
    budget: float = 0.5,
    to_solver: str | None = None,
    to_spacing: str | None = None,
) -> CacheSchedule:
    """A run with a share of the steps, everything computed.

    Args:
        model: A model that has a layer adapter; its weights are not looked at.
        solver: Solver of the run that is to become faster.
        steps: Its model evaluations.
        spacing: Its spacing.
        budget: Share of the evaluations that is left, rounded.
        to_solver: Another solver to take.
        to_spacing: Another spacing to take.

    Returns:
        A schedule for the run with fewer steps, which its contract names.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: the baseline of every paper on solvers; for caches, table 1 of arXiv 2406.01733.
    """
    if not 0 < budget <= 1:
        raise ConfigError(f"a budget is a share of the steps above 0 and up to 1, got {budget}")
    fewer = max(1, round(budget * steps))
    target = Target.of(model, to_solver or solver, fewer, to_spacing or spacing)
    return CacheSchedule(
        target.all_computed(),
        target.layers,
        target.contract,
        provenance={"method": "fewer-steps"},
    )


METHOD = Method("fewer-steps", "fewer steps", fewer_steps, "the solver itself", published={"budget": 0.5})
