"""A schedule as settings of cache-dit, which caches whole evaluations."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2c.errors import ScheduleError, check_installed
from l2c.schedule.forecast import ReusePlan


def cache_dit_settings(
    compute: Tensor, names: Sequence[str], *, brings_solver: bool, has_branches: bool
) -> dict[str, Any]:
    """What `cache_dit.DBCacheConfig` takes; arguments of `CacheSchedule.to_cache_dit` apart.

    Args:
        compute: Bool (evaluations, layers), every row all or nothing but the same first blocks.
        names: Of the layers.
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
    first = [_first_blocks(names, row) for row in compute.tolist()]
    width, fewest = compute.shape[1], min((count for count in first if count is not None), default=0)
    for index, (row, count) in enumerate(zip(compute.tolist(), first, strict=True)):
        if not all(row) and count != fewest:
            raise ScheduleError(
                f"evaluation {index} computes {sum(row)} of {width} layers, and cache-dit's steps mask is for whole "
                "evaluations, or all but the same first blocks; use the schedule with l2c.enable_cache, or one of "
                "l2c.methods.interval"
            )
    mask = [int(all(row)) for row in compute.tolist()]
    return {
        "Fn_compute_blocks": max(1, 0 if all(mask) else fewest),  # the fewest that it takes
        "Bn_compute_blocks": 0,
        "max_warmup_steps": [*mask, 0].index(0),
        "num_inference_steps": len(mask),
        "steps_computation_mask": mask,
        "steps_computation_policy": "static",
    }


def _first_blocks(names: Sequence[str], computed: Sequence[bool]) -> int | None:
    """How many blocks at the beginning of every list are computed where nothing else is; None if it is not so.

    >>> _first_blocks(["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn"], [True, True, False])
    1
    """
    if not any(computed):
        return 0
    numbers = [re.search(r"\.(\d+)(\.|$)", name) for name in names]
    blocks = [int(number[1]) if number else -1 for number in numbers]
    count = 1 + max(block for block, computes in zip(blocks, computed, strict=True) if computes)
    alike = all((0 <= block < count) == computes for block, computes in zip(blocks, computed, strict=True))
    return count if alike else None


SAME_WEIGHT = 1e-5
"""Weights of layers that are closer than this are one."""
CALIBRATOR = "l2c"
"""What the calibrator is called among those of cache-dit."""
Sums = Mapping[int, Sequence[tuple[int, float]]]
"""For evaluations that reuse: evaluations whose values are read, and their weights."""


def sums_of(plan: ReusePlan) -> Sums:
    """The combinations that continue all layers of an evaluation at once.

    Where those of the layers differ, as learned ones do, each is their mean, of which a warning tells.
    """
    rows: dict[int, list[dict[int, float]]] = {}
    for (evaluation, _layer), terms in plan.items():
        rows.setdefault(evaluation, []).append({source: float(weight) for source, weight in terms})
    sums: dict[int, list[tuple[int, float]]] = {}
    apart = 0.0
    for evaluation, layers in rows.items():
        sources = sorted({source for row in layers for source in row}, reverse=True)
        each = [[row.get(source, 0.0) for row in layers] for source in sources]
        apart = max([apart, *(max(weights) - min(weights) for weights in each)])
        means = [sum(weights) / len(weights) for weights in each]
        sums[evaluation] = list(zip(sources, means, strict=True))
    if apart > SAME_WEIGHT:
        warnings.warn(
            f"the forecasts of layers differ by up to {apart:.2g} in their weights, and cache-dit continues all "
            "blocks with one combination: it is given their mean, and what was learned of each layer is lost; "
            "l2c.enable_cache keeps it",
            stacklevel=3,
        )
    return sums


class WeightedSums:
    """A calibrator of cache-dit that continues what blocks add by sums that are known beforehand.

    Args:
        sums: See `Sums`.
    """

    def __init__(self, sums: Sums) -> None:
        self._sums = sums
        self._last = {source: evaluation for evaluation, terms in sorted(sums.items()) for source, _ in terms}
        self.reset_cache()

    def reset_cache(self) -> None:
        """Begins a run."""
        self._evaluation = -1
        self._values: dict[str, dict[int, Tensor]] = {}

    def mark_step_begin(self) -> None:
        """Begins an evaluation, and lets go of what none reads from here on."""
        self._evaluation += 1
        for values in self._values.values():
            for source in [it for it in values if self._last.get(it, -1) < self._evaluation]:
                del values[source]

    def update(self, value: Tensor, name: str = "default") -> None:
        """Keeps what was computed, of any shape, under a name."""
        self._values.setdefault(name, {})[self._evaluation] = value

    def approximate(self, name: str = "default") -> Tensor | None:
        """What stands for it at an evaluation that reuses; None if nothing was computed under the name."""
        if (values := self._values.get(name)) is None:
            return None
        terms = [(values[source], weight) for source, weight in self._sums[self._evaluation]]
        total = torch.stack([value.float() * weight for value, weight in terms]).sum(0)
        return total.to(terms[0][0].dtype)


def calibrator_config(sums: Sums) -> Any:
    """What `cache_dit.enable_cache` takes as `calibrator_config`.

    Raises:
        ScheduleError: If cache-dit is not installed.
    """
    check_installed("the calibrator", "cache_dit", "'l2c[baselines]'", ScheduleError)
    from cache_dit.caching.cache_contexts.calibrators import Calibrator, CalibratorConfig

    known = Calibrator._supported_calibrators
    if CALIBRATOR not in known:
        make = Calibrator.__new__

        def new(cls: type, config: Any) -> Any:
            own = config.calibrator_type == CALIBRATOR
            return WeightedSums(**config.to_kwargs()) if own else make(cls, config)

        Calibrator.__new__ = staticmethod(new)
        known.append(CALIBRATOR)
    both = {"enable_calibrator": True, "enable_encoder_calibrator": True}
    return CalibratorConfig(**both, calibrator_type=CALIBRATOR, calibrator_kwargs={"sums": sums})
