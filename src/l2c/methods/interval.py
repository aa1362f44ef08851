"""The whole network at every n-th evaluation, nothing but forecasts in between."""

from __future__ import annotations

from torch import nn

from l2c.methods.base import Method, Target, check_every
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule


def interval(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    every: int = 2,
    predictor: str | Predictor = "copy",
    *,
    spacing: str = "linspace",
) -> CacheSchedule:
    """Computes every layer at evaluations 0, every, 2 * every, ... and reuses all of them in between.

    Args:
        model: A model that has a layer adapter; its weights are not looked at.
        solver: Solver name.
        steps: Number of model evaluations.
        every: Length of the interval; 1 computes everything.
        predictor: `copy`, `taylor` (order 1), `taylor-N`, or a `Predictor`.
        spacing: Spacing of the evaluations.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: with `copy`, FORA (arXiv 2407.01425). With `taylor`, the idea of TaylorSeer (arXiv 2503.06923), but the
    polynomial through the last values over log-SNR; `taylorseer` has the published finite differences over steps.
    """
    check_every(every)
    target = Target.of(model, solver, steps, spacing)
    compute = ~target.all_computed()
    compute[::every] = True
    chosen = Predictor.parse(predictor) if isinstance(predictor, str) else predictor
    return CacheSchedule(
        compute,
        target.layers,
        target.contract,
        chosen,
        provenance={"method": "interval", "every": every},
    )


METHOD = Method(
    "interval",
    "interval, polynomial over log-SNR",
    interval,
    "this library",
    published={"every": 2, "predictor": "taylor-2"},
    choices=tuple({"every": every} for every in range(1, 13)),
)
