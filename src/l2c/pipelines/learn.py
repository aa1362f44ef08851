"""Schedules for budgets, learned through a pipeline's own run on prompts or labels of the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2c.cache.contract import Contract
from l2c.cache.cost import CostTable
from l2c.cache.schedule import CacheSchedule
from l2c.errors import ConfigError
from l2c.learning.judge import check_budget, find_mask
from l2c.learning.session import OnProgress, Session
from l2c.pipelines.conditions import Condition, conditions_of
from l2c.pipelines.interval import prediction_of, provenance_of
from l2c.pipelines.lean import lean
from l2c.pipelines.loop import PipelineLoop
from l2c.pipelines.rehearsal import rehearse
from l2c.pipelines.settings import FitSettings


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

    The call is rehearsed, which tells its run and what its layers cost. A mask is then searched by what runs with it
    make, and its stand-ins are learned by gradients through whole runs, all of it on the given prompts or labels.
    Where two transformers share a run, as in Wan 2.2, so do they the budget and the schedule, each with its own
    evaluations. Ctrl-C ends learning with the stand-ins so far. Started by `accelerate launch`, each process with the
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
        The schedule; its provenance has the errors on held-out runs before and after its stand-ins were learned.

    Raises:
        CheckpointError: If the session's checkpoint cannot be read.
        ConfigError: If the budget cannot be met, there is nothing to learn on, the pipeline cannot be learned on, the
            checkpoint is that of another run, or the time limit leaves none for learning.
        NumericsError: If the pipeline or the error is not finite.

    Example:
        >>> import l2c
        >>> pipe = l2c.testing.tiny_pipeline("pixart")
        >>> quick = l2c.pipelines.FitSettings(iterations=1, num_runs=1, num_held_out=1, trials=2)
        >>> small = dict(height=16, width=16, use_resolution_binning=False, clean_caption=False)
        >>> schedule = l2c.learn(pipe, prompts=["a cat"], budget=0.6, settings=quick, num_inference_steps=6, **small)
        >>> schedule.cost.fraction <= 0.6
        True
    """
    settings = settings or FitSettings()
    conditions = conditions_of(conditions, prompts)
    if not 0 < budget <= 1:
        raise ConfigError(f"a budget is a fraction of the MACs, more than 0 and at most 1, got {budget:g}")
    rehearsal = rehearse(pipe, **{**call, **conditions[0]})
    run, table, begins = rehearsal.run, rehearsal.table, rehearsal.begins
    costs, evaluations = CostTable.macs(table), len(run.timesteps)
    scale = evaluations * costs.full
    check_budget(budget, evaluations, costs, scale, begins[1:])
    with lean(pipe):
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
        found = find_mask(
            loop.trainer,
            lambda mask, order: loop.mask_error(mask, order, contract),
            evaluations,
            budget * scale,
            costs,
            settings.trials,
            depth=settings.depth,
            always=begins[1:],
        )
        provenance = {
            "method": "l2c, closed loop",
            "budget": budget,
            "budget_unit": "fraction of MACs",
            "budget_cost": costs.of(found.compute) / scale,
            "conditions": len(conditions),
            "masks_judged": found.judged,
            "polynomial_order": found.order,
            **provenance_of(pipe, call, rehearsal),
        }
        if len(begins) > 1:
            provenance["transformers_begin"] = dict(zip(rehearsal.order, begins, strict=True))
        return loop.fit(loop.blank(found.compute, found.order, contract), provenance)
