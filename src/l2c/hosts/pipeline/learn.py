"""Schedules for budgets, learned through a pipeline's own run on prompts or labels of the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2c.errors import ConfigError
from l2c.hosts.pipeline.conditions import Condition, conditions_of
from l2c.hosts.pipeline.dry_run import dry_run
from l2c.hosts.pipeline.interval import prediction_of, provenance_of
from l2c.hosts.pipeline.loop import PipelineLoop
from l2c.hosts.pipeline.offload import encoders_offloaded
from l2c.hosts.pipeline.settings import FitSettings
from l2c.learning.mask_search import check_budget, search_mask
from l2c.learning.session import OnProgress, Session
from l2c.schedule.contract import Contract
from l2c.schedule.cost import CostTable
from l2c.schedule.schedule import CacheSchedule


def learn(
    pipe: Any,
    conditions: Sequence[Condition] | None = None,
    *,
    prompts: Sequence[str] | str | Path | None = None,
    budget: float = 0.5,
    settings: FitSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
    **call: Any,
) -> CacheSchedule:
    """Learns the schedule for a budget: which layers to compute at which evaluation, and how the others follow.

    The call is dry-run, which tells its run and what its layers cost. A mask is then searched by what runs with it
    make, and its forecasts are learned by gradients through whole runs, all of it on the given prompts or labels.
    Where two transformers share a run, as in Wan 2.2, so do they the budget and the schedule, each with its own
    evaluations. Ctrl-C ends learning with the forecasts so far. Started by `accelerate launch`, each process with the
    pipeline on its own device, the processes share the runs, and all return the schedule.

    Args:
        pipe: A diffusers pipeline without a cache enabled; it is not changed.
        conditions: What tells runs apart, by the pipeline's names: `{"class_labels": [3]}`. They take turns.
        prompts: Instead of conditions: prompts, or a text file with one in each line.
        budget: What a run may cost: a fraction of the multiply-accumulates of its transformer, or of all of them.
        settings: Everything else that decides the result.
        session: Checkpoint, time limit and log.
        model_name: Recorded in the schedule, for people.
        on_progress: Called in the main process as work goes on.
        call: What the pipeline is called with besides, by name: number of steps, resolution, guidance scale.

    Returns:
        The schedule; its provenance has the errors on held-out runs before and after its forecasts were learned.

    Raises:
        CheckpointError: If the session's checkpoint cannot be read.
        ConfigError: If the budget cannot be met, there is nothing to learn on, the pipeline cannot be learned on, the
            checkpoint is that of another run, or the time limit leaves none for learning.
        NumericsError: If the pipeline or the error is not finite.

    Example:
        >>> import l2c
        >>> pipe = l2c.testing.tiny_pipeline("pixart")
        >>> quick = l2c.hosts.pipeline.FitSettings(iterations=1, num_runs=1, num_held_out=1, trials=2)
        >>> small = dict(height=16, width=16, use_resolution_binning=False, clean_caption=False)
        >>> schedule = l2c.learn(pipe, prompts=["a cat"], budget=0.6, settings=quick, num_inference_steps=6, **small)
        >>> schedule.cost.fraction <= 0.6
        True
    """
    settings = settings or FitSettings()
    conditions = conditions_of(conditions, prompts)
    if not 0 < budget <= 1:
        raise ConfigError(f"a budget is a fraction of the MACs, more than 0 and at most 1, got {budget:g}")
    found = dry_run(pipe, **{**call, **conditions[0]})
    run, table, begins = found.run, found.table, found.begins
    costs, evaluations = CostTable.macs(table), len(run.timesteps)
    scale = evaluations * costs.full
    check_budget(budget, evaluations, costs, scale, begins[1:])
    with encoders_offloaded(pipe):
        loop = PipelineLoop(
            "schedule",
            pipe,
            run,
            table,
            begins,
            conditions,
            call,
            settings,
            session,
            on_progress,
            budget=budget,
        )
        contract = Contract(run, model_name, prediction_type=prediction_of(pipe))
        searched = search_mask(
            loop.trainer,
            lambda mask, order: loop.mask_error(mask, order, contract),
            evaluations,
            budget * scale,
            costs,
            settings.trials,
            history=settings.history,
            always=begins[1:],
        )
        provenance = {
            "method": "l2c, closed loop",
            "budget": budget,
            "budget_unit": "fraction of MACs",
            "budget_cost": costs.of(searched.compute) / scale,
            "conditions": len(conditions),
            "masks_tried": searched.judged,
            "polynomial_order": searched.order,
            **provenance_of(pipe, call, found),
        }
        if len(begins) > 1:
            provenance["transformers_begin"] = dict(zip(found.order, begins, strict=True))
        return loop.fit(loop.blank(searched.compute, searched.order, contract), provenance)
