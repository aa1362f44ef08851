"""A schedule as settings of cache-dit, which caches whole evaluations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from l2c.errors import ScheduleError


def cache_dit_settings(compute: Tensor, *, brings_solver: bool, has_branches: bool) -> dict[str, Any]:
    """What `cache_dit.DBCacheConfig` takes; arguments of `CacheSchedule.to_cache_dit` apart.

    Args:
        compute: Bool (evaluations, layers), every row all or nothing.
        brings_solver: Whether the schedule has a solver of its own.
        has_branches: Whether its passes of guidance have rows of their own.

    Raises:
        ScheduleError: If cache-dit has nothing that corresponds.
    """
    if brings_solver:
        raise ScheduleError(
            "the schedule brings its own solver, which cache-dit has no place for; use it with l2c.enable_cache, or "
            "learn one without solver='auto'"
        )
    if has_branches:
        raise ScheduleError(
            "the schedule has rows of its own for each pass of guidance, and cache-dit one mask for both; learn one "
            "with branches=False (--no-branches)"
        )
    counts, width = compute.sum(1).tolist(), compute.shape[1]
    mixed = next((index for index, count in enumerate(counts) if 0 < count < width), None)
    if mixed is not None:
        raise ScheduleError(
            f"evaluation {mixed} computes {counts[mixed]} of {width} layers, and cache-dit's steps mask is for whole "
            "evaluations; use the schedule with l2c.enable_cache, or one of l2c.methods.interval"
        )
    mask = [int(count > 0) for count in counts]
    return {
        "Fn_compute_blocks": 1,  # the fewest that it takes
        "Bn_compute_blocks": 0,
        "max_warmup_steps": [*mask, 0].index(0),
        "num_inference_steps": len(mask),
        "steps_computation_mask": mask,
        "steps_computation_policy": "static",
    }
