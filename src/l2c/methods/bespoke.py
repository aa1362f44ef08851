"""Bespoke non-stationary solvers: noise levels and all weights of a solver, learned for a model and few evaluations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from l2c.hosts.targets import host_of
from l2c.methods.base import Method
from l2c.methods.learned import learned, split_settings
from l2c.methods.solver_fit import fewer_evaluations
from l2c.schedule.schedule import CacheSchedule


def bespoke(
    target: Any, *, evaluations: int | None = None, budget: float | None = None, **options: Any
) -> CacheSchedule:
    """Fewer evaluations, nothing reused, by a solver whose every weight was learned on the frozen model.

    Every network input is a sum of the initial noise and all predictions so far, with weights of its own for each
    evaluation, learned by gradients through the whole run together with the noise levels. What is made small is the
    logarithm of each picture's error, which is the publication's, up to a factor. It is `l2c.learn(solver="auto",
    per_computed=1)` with `tail=0` and `scales=1`, as a baseline with a name: a solver without a cache.

    What differs: the solver begins at the levels of DPM-Solver++(2M), with weights that least squares fit to solutions,
    and not at Euler's or the midpoint method; and learning is short.

    Args:
        target: A model, a diffusers pipeline, or a host.
        evaluations: How many; half of the run's by default.
        budget: Instead of that, a share of the run's evaluations.
        options: Settings of `LearnSettings`, and how the target is sampled.

    Returns:
        A schedule for a run with fewer evaluations, everything computed, that brings its solver.

    Raises:
        ConfigError: If an argument is unknown or out of range, or no solver can be learned for the target.
        KeyboardInterrupt: While learning.

    Source: Shaul et al., arXiv 2403.01329, sections 3 and 4.
    """
    settings, run = split_settings(options)
    host = host_of(target, bespoke, **run)
    wanted = fewer_evaluations(host, evaluations, budget)
    schedule = learned(host, evaluations=wanted, per_computed=1, **{"tail": 0.0, "scales": 1, **settings})
    return replace(schedule, provenance={**schedule.provenance, "method": "bespoke"})


METHOD = Method("bespoke", "bespoke non-stationary solver", bespoke, "arXiv 2403.01329")
