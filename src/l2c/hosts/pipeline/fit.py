"""Forecasts for a mask that is there already, learned end to end on the latents that a pipeline ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from l2c.errors import ConfigError
from l2c.hosts.pipeline.conditions import Condition, conditions_of
from l2c.hosts.pipeline.dry_run import dry_run
from l2c.hosts.pipeline.enable import transformers_of
from l2c.hosts.pipeline.loop import PipelineLoop
from l2c.hosts.pipeline.offload import encoders_offloaded
from l2c.hosts.pipeline.runs import run_problem
from l2c.hosts.pipeline.settings import FitSettings
from l2c.layers import find_layers
from l2c.learning.checkpoint import digest
from l2c.learning.session import OnProgress, Session
from l2c.schedule.schedule import CacheSchedule


def fit_predictor(
    pipe: Any,
    schedule: CacheSchedule,
    conditions: Sequence[Condition] | None = None,
    *,
    prompts: Sequence[str] | str | Path | None = None,
    settings: FitSettings | None = None,
    session: Session | None = None,
    on_progress: OnProgress | None = None,
    **call: Any,
) -> CacheSchedule:
    """Learns the forecasts of a schedule for a pipeline, through its own run, on its own prompts.

    The target of a run is what the pipeline makes from the same noise with everything computed. The mask stays, but
    that everything is computed where a second transformer takes over, as it is in any case. Coefficients that the
    schedule has already learned are where learning begins, so that a few iterations repair it for a fine-tuned model
    or a LoRA.

    Args:
        pipe: A diffusers pipeline without a cache enabled; it is not changed.
        schedule: Where to compute.
        conditions: What tells runs apart, by the pipeline's names: `{"prompt": "a cat"}`. They take turns.
        prompts: Instead of conditions: prompts, or a text file with one in each line.
        settings: Everything else that decides the result.
        session: Checkpoint, time limit and log.
        on_progress: Called in the main process as work goes on.
        call: What the pipeline is called with besides, by name.

    Returns:
        The schedule with learned coefficients; its provenance has the errors on held-out runs before and after.

    Raises:
        CheckpointError: If the session's checkpoint cannot be read.
        ConfigError: If there is nothing to learn, or the pipeline cannot be learned on.
        ContractError: If the schedule is for another model or another run.
        NumericsError: If the error is not finite.
    """
    settings = settings or FitSettings()
    conditions = conditions_of(conditions, prompts)
    for model in transformers_of(pipe).values():
        schedule.check_layers(find_layers(model).with_sizes_of(schedule.layers))
    found = dry_run(pipe, **{**call, **conditions[0]})
    if problem := run_problem(schedule.contract, found.run):
        raise problem
    schedule = _whole_at(schedule, found.begins)
    if schedule.compute.all():
        raise ConfigError("the schedule computes everything; a predictor needs layers that are reused")
    coefficients = schedule.predictor.coefficients
    with encoders_offloaded(pipe):
        loop = PipelineLoop(
            "predictor",
            pipe,
            schedule.contract.run,
            schedule.layers,
            found.begins,
            conditions,
            call,
            settings,
            session,
            on_progress,
            mask=digest(schedule.compute),
            start=schedule.predictor.name if coefficients is None else digest(coefficients),
        )
        return loop.fit(schedule, schedule.provenance)


def _whole_at(schedule: CacheSchedule, begins: Sequence[int]) -> CacheSchedule:
    """The schedule with everything computed where transformers begin."""
    compute = schedule.compute.clone()
    compute[list(begins)] = True
    return replace(schedule, compute=compute)
