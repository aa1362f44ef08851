"""A schedule for a pipeline without learning: the whole network at every n-th evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from l2c.errors import ConfigError
from l2c.hosts.pipeline.dry_run import DryRun, dry_run
from l2c.schedule.contract import Contract
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule


def interval(
    pipe: Any, /, *args: Any, every: int = 2, predictor: str | Predictor = "copy", **call: Any
) -> CacheSchedule:
    """Computes every layer at evaluations 0, every, 2 * every, ... and reuses all of them in between.

    Args:
        pipe: A diffusers pipeline without a cache enabled.
        args: What it will be called with.
        every: Length of the interval; 1 computes everything.
        predictor: `copy`, `taylor` (order 1), `taylor-N`, or a `Predictor`.
        call: What it will be called with, by name: prompt, number of steps, resolution.

    Raises:
        ConfigError: If an argument is out of range, a `taylor` predictor is asked for under a solver that evaluates a
            noise level twice, or the pipeline has transformers with different layers.

    Source: with `copy`, FORA (arXiv 2407.01425); with `taylor`, TaylorSeer (arXiv 2503.06923).
    """
    if every < 1:
        raise ConfigError(f"the interval must be at least 1, got {every}")
    chosen = Predictor.parse(predictor) if isinstance(predictor, str) else predictor
    found = dry_run(pipe, *args, **call)
    run = found.run
    if chosen.kind == "taylor" and len(set(run.log_snrs)) < len(run.log_snrs):
        raise ConfigError(
            f"{run.solver} evaluates a noise level twice, so that no polynomial goes through its values; use copy"
        )
    table = found.table
    compute = torch.zeros(len(run.timesteps), len(table), dtype=torch.bool)
    compute[::every] = True
    provenance = {"method": "interval", "every": every, **provenance_of(pipe, call, found)}
    return CacheSchedule(
        compute, table, Contract(run, prediction_type=prediction_of(pipe)), chosen, None, provenance
    )


def provenance_of(pipe: Any, call: Mapping[str, Any], found: DryRun) -> dict[str, Any]:
    """What a schedule records of the pipeline that it was made with, so that a check can call it alike."""
    plain = {key: value for key, value in call.items() if type(value) in (int, float, bool) and key != "seed"}
    return {"pipeline": type(pipe).__name__, "call": plain, "resolution": found.resolution}


def prediction_of(pipe: Any) -> str:
    """What the network of a pipeline predicts, as its scheduler is told."""
    return str(pipe.scheduler.config.get("prediction_type") or "flow_prediction")
