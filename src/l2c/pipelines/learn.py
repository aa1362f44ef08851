"""Schedules for budgets, learned through a pipeline's own run on prompts or labels of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2c.cache.cost import CostTable
from l2c.cache.schedule import CacheSchedule, Contract
from l2c.errors import ConfigError
from l2c.learning.judge import check_budget, find_mask
from l2c.learning.session import OnProgress, Session
from l2c.pipelines.fit import FitSettings, PipelineLoop
from l2c.pipelines.interval import prediction_of, provenance_of
from l2c.pipelines.rehearsal import rehearse
from l2c.pipelines.trajectory import frozen


def learn(
    pipe: Any,
    conditions: Sequence[Mapping[str, Any]] | None = None,
    *,
    prompts: Sequence[str] | str | Path | None = None,
    budget: float = 0.5,
    settings: FitSettings | None = None,
    session: Session | None = None,
    on_progress: OnProgress | None = None,
    **call: Any,
) -> CacheSchedule:
    """Learns the schedule for a budget: which layers to compute at which evaluation, and how the others follow.

    The call is rehearsed, which tells its run and what its layers cost. A mask is then searched by what runs with it
    make, and its stand-ins are learned by gradients through whole runs, all of it on the given prompts or labels.
    Ctrl-C ends learning with the stand-ins so far.

    Args:
        pipe: A diffusers pipeline with one transformer, without a cache enabled; it is not changed.
        conditions: What tells runs apart, by the pipeline's names: `{"class_labels": [3]}`. They take turns.
        prompts: Instead of conditions: prompts, or a text file with one in each line.
        budget: What a run may cost: a fraction of the multiply-accumulates of its transformer.
        settings: Everything else that decides the result.
        session: Checkpoint, time limit and log.
        on_progress: Called as work goes on.
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
    if (conditions is None) == (prompts is None):
        raise ConfigError("learning on a pipeline takes either prompts or conditions")
    if conditions is None:
        conditions = [{"prompt": prompt} for prompt in _read(prompts)]
    if not conditions:
        raise ConfigError("learning takes at least one prompt or label")
    if not 0 < budget <= 1:
        raise ConfigError(f"a budget is a fraction of the MACs, more than 0 and at most 1, got {budget:g}")
    rehearsal = rehearse(pipe, **{**call, **conditions[0]})
    if len(rehearsal.tables) > 1:
        raise ConfigError(
            f"this pipeline has {len(rehearsal.tables)} transformers, and a budget is met for one; make a schedule "
            "with l2c.pipelines.interval and learn its stand-ins with l2c.pipelines.fit_predictor"
        )
    ((_, table),) = rehearsal.tables.items()
    run, costs = rehearsal.run, CostTable.macs(table)
    evaluations = len(run.timesteps)
    scale = evaluations * costs.full
    check_budget(budget, evaluations, costs, scale)
    with frozen(pipe):
        loop = PipelineLoop(
            "schedule", pipe, run, table, conditions, call, settings, session, on_progress, budget=budget
        )
        contract = Contract(run, prediction_type=prediction_of(pipe))
        compute, order = find_mask(
            loop.trainer,
            lambda mask, order: loop.mask_error(mask, order, contract),
            evaluations,
            budget * scale,
            costs,
            settings.trials,
            depth=settings.depth,
        )
        provenance = {
            "method": "l2c, closed loop",
            "budget": budget,
            "budget_unit": "fraction of MACs",
            "budget_cost": costs.of(compute) / scale,
            "conditions": len(conditions),
            **provenance_of(pipe, call),
        }
        return loop.fit(loop.blank(compute, order, contract), provenance)


def _read(prompts: Sequence[str] | str | Path | None) -> list[str]:
    """Prompts of a file without empty lines, or those that are given."""
    if not isinstance(prompts, (str, Path)):
        return list(prompts or ())
    try:
        lines = Path(prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"'{prompts}' is no text file with prompts; give a file with one in each line, or a list of prompts"
        ) from error
    return [line.strip() for line in lines if line.strip()]
