"""The whole network at every n-th evaluation, nothing but forecasts in between."""

from __future__ import annotations

from typing import Any

from l2c.errors import ConfigError
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, check_every, pattern
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule


def interval(
    target: Any, *, every: int = 2, predictor: str | Predictor = "copy", **run: Any
) -> CacheSchedule:
    """Computes every layer at evaluations 0, every, 2 * every, ... and reuses all of them in between.

    Args:
        target: A model, a diffusers pipeline, or a host; its weights are not looked at.
        every: Length of the interval; 1 computes everything.
        predictor: `copy`, `taylor` (order 1), `taylor-N`, or a `Predictor`.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range, or a `taylor` predictor is asked for under a solver that
            evaluates a noise level twice.

    Source: with `copy`, FORA (arXiv 2407.01425). With `taylor`, the idea of TaylorSeer (arXiv 2503.06923), but the
    polynomial through the last values over log-SNR; `taylorseer` has the published finite differences over steps.
    """
    check_every(every)
    chosen = Predictor.parse(predictor) if isinstance(predictor, str) else predictor
    host = host_of(target, interval, **run)
    levels = host.run.log_snrs
    if chosen.needs_log_snrs and len(set(levels)) < len(levels):
        raise ConfigError(
            f"{host.run.solver} evaluates a noise level twice, so that no polynomial goes through its values; use copy"
        )
    compute = ~all_computed(host)
    compute[::every] = True
    return pattern(host, compute, {"method": "interval", "every": every}, chosen)


METHOD = Method(
    "interval",
    "interval, polynomial over log-SNR",
    interval,
    "this library",
    published={"every": 2, "predictor": "taylor-2"},
    choices=tuple({"every": every} for every in range(1, 13)),
)
