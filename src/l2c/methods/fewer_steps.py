"""The rival of every cache: no cache, but fewer steps, perhaps of a better solver."""

from __future__ import annotations

from typing import Any

from l2c.documents import Fraction, check_value
from l2c.errors import known
from l2c.hosts.base import Host
from l2c.hosts.native import ModelHost, check_class_host
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, pattern
from l2c.schedule.schedule import CacheSchedule


def fewer_steps(
    target: Any,
    *,
    budget: float = 0.5,
    to_solver: str | None = None,
    to_spacing: str | None = None,
    **run: Any,
) -> CacheSchedule:
    """A run with a share of the steps, everything computed.

    Args:
        target: A model, a diffusers pipeline, or a host; its weights are not looked at.
        budget: Share of the evaluations that is left, rounded.
        to_solver: Another solver to take; of a pipeline by its name in `Host.fewer_steps`: `unipc, shift 3`.
        to_spacing: Of a model: another spacing to take.
        run: How the target is sampled before it becomes faster, see `l2c.learn`.

    Returns:
        A schedule for the run with fewer steps, which its contract names.

    Raises:
        ConfigError: If an argument is unknown or out of range, or a pipeline's number of steps or solver cannot be set.

    Source: the baseline of every paper on solvers; for caches, table 1 of arXiv 2406.01733.
    """
    check_value("the budget, a share of the steps,", budget, Fraction)
    host = host_of(target, fewer_steps, **run)
    steps = max(1, round(budget * host.run.steps))
    fewer: Host
    if to_solver is None and to_spacing is None:
        fewer = host.with_steps(steps)
    elif to_spacing is None and not isinstance(host, ModelHost):
        rivals = host.fewer_steps(steps)
        fewer = rivals[known(f"solver of {type(host.target).__name__}", str(to_solver), rivals)]
    else:
        model = check_class_host(host, "another spacing")
        fewer = model.with_run(to_solver or host.run.solver, to_spacing or host.run.spacing, steps)
    return pattern(fewer, all_computed(fewer), {"method": "fewer-steps"})


METHOD = Method("fewer-steps", "fewer steps", fewer_steps, "the solver itself", published={"budget": 0.5})
