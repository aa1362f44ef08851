"""Learning schedules for budgets: `learn` and `learn_family`.

For every budget, a mask is searched in the closed loop, judged with forecasts that follow a polynomial, and then its
forecasts are learned end to end, starting at that polynomial. So a mask is chosen for forecasting and not for copying.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.learning.checkpoint import digest
from l2c.learning.end_to_end import ClosedLoop, LearnSettings
from l2c.learning.mask_search import MaskSearchResult, check_budget, search_mask
from l2c.learning.masks import Placement, near
from l2c.learning.session import OnProgress, Session
from l2c.learning.trainer import Trainer
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler
from l2c.schedule.cost import CostTable
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule

CURVE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25)
"""Budgets of a family, as fractions of the MACs."""
NEAR_SHARE = 0.25
"""Share of the trials that begin at the mask of another budget."""


def learn(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    *,
    budget: float = 0.5,
    spacing: str = "linspace",
    guidance: float = 1.5,
    costs: CostTable | None = None,
    settings: LearnSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
) -> CacheSchedule:
    """Learns the schedule for a budget: which layers to compute at which evaluation, and how the others follow.

    Needs nothing but the model: it learns on pictures that the model itself makes, and compares with fine-step
    solutions from the same noise. Ctrl-C ends learning with the schedule so far. Started by `accelerate launch`, the
    processes share every batch, and all return the schedule.

    Args:
        model: A model from `load_model`, or any with a layer adapter; it is not changed.
        solver: Solver of the run.
        steps: Model evaluations of the run.
        budget: What a run may cost: a fraction of what computing everything does. With `costs`, a cost in its unit.
        spacing: Spacing of the evaluations.
        guidance: Guidance scale of the run.
        costs: Cost of every layer; multiply-accumulates by default, milliseconds from `l2c.measure_costs`.
        settings: Everything else that decides the result.
        session: Checkpoint, time limit and log.
        model_name: Recorded in the schedule, for people.
        on_progress: Called in the main process as work goes on.

    Raises:
        CheckpointError: If the session's checkpoint cannot be read.
        ConfigError: If an argument is unknown or out of range, the budget cannot be met, the checkpoint is that of
            another run, or the time limit leaves none for learning.
        NumericsError: If the error is not finite.

    Example:
        >>> import l2c
        >>> model = l2c.testing.tiny_dit()
        >>> quick = l2c.LearnSettings(iterations=1, batch_size=1, num_pictures=4, reference_steps=8, trials=2)
        >>> schedule = l2c.learn(model, "dpmsolver++", 8, budget=0.5, settings=quick)
        >>> schedule.cost.fraction <= 0.5
        True
    """
    family = learn_family(
        model,
        solver,
        steps,
        budgets=(budget,),
        spacing=spacing,
        guidance=guidance,
        costs=costs,
        settings=settings,
        session=session,
        model_name=model_name,
        on_progress=on_progress,
    )
    return next(iter(family))


def learn_family(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    *,
    budgets: Sequence[float] = CURVE,
    spacing: str = "linspace",
    guidance: float = 1.5,
    costs: CostTable | None = None,
    settings: LearnSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
) -> ScheduleFamily:
    """Learns schedules for several budgets in one run, on the same pictures; arguments and errors as for `learn`.

    After Ctrl-C the family has the schedules that were finished and the one that was being learned.
    """
    settings = settings or LearnSettings()
    sampler = Sampler(Denoiser.of(model), solver, steps, spacing, Guidance(guidance))
    evaluations = len(sampler.run.timesteps)
    table = find_layers(model)
    unit = costs or CostTable.macs(table)
    unit.check_layers(table)
    if not budgets:
        raise ConfigError("name at least one budget")
    if costs is None and not all(0 < budget <= 1 for budget in budgets):
        raise ConfigError(
            f"budgets are fractions of the MACs, more than 0 and at most 1, got {list(budgets)}"
        )
    scale = 1.0 if costs is not None else evaluations * unit.full
    for budget in budgets:
        check_budget(budget, evaluations, unit, scale)
    trainer = Trainer(
        "schedules",
        sampler,
        settings,
        session,
        on_progress,
        budgets=list(budgets),
        costs=digest([unit.unit, list(unit.layers), unit.rest]) if unit.unit == "MACs" else unit.unit,
    )
    unit = _kept_costs(trainer, unit)
    loop = ClosedLoop(trainer, sampler, settings, model_name)
    everything = loop.kept_error(
        "error of everything", loop.student(torch.ones(evaluations, len(table), dtype=torch.bool))
    )
    schedules, masks = list[CacheSchedule](), dict[float, MaskSearchResult]()
    for index, budget in enumerate(budgets):
        stage = f"{budget:g}" if len(budgets) > 1 else ""
        trainer.allow(1 / (len(budgets) - index))
        try:
            found = masks[budget] = _find_mask(loop, budget * scale, unit, stage, _nearest(budget, masks))
        except KeyboardInterrupt:
            if schedules and trainer.processes.count == 1:
                break
            raise
        schedule, outcome = loop.fit(
            found.compute,
            {
                "method": "l2c, closed loop",
                "budget": budget,
                "budget_unit": "fraction of MACs" if costs is None else unit.unit,
                "budget_cost": unit.of(found.compute) / scale,
                "held_out_error_of_everything": round(everything, 5),
                "masks_tried": found.judged,
                "polynomial_order": found.order,
            },
            order=found.order,
            stage=f"at {stage}" if stage else "",
        )
        schedules.append(schedule)
        if outcome.interrupted:
            break
    return ScheduleFamily(schedules)


def _kept_costs(trainer: Trainer, costs: CostTable) -> CostTable:
    """The costs that learning began with: those that are measured again are a little different every time."""
    own = torch.tensor([*costs.layers, costs.rest], dtype=torch.float64)
    trainer.kept["costs"] = trainer.processes.agree(lambda: trainer.kept.get("costs", own))
    *layers, rest = trainer.kept["costs"].tolist()
    return replace(costs, layers=tuple(layers), rest=rest)


def _nearest(budget: float, masks: Mapping[float, MaskSearchResult]) -> MaskSearchResult | None:
    """The mask of the nearest budget, by their ratio, of those that have one."""
    nearest = min(masks, key=lambda other: abs(math.log(other / budget)), default=None)
    return None if nearest is None else masks[nearest]


def _find_mask(
    loop: ClosedLoop, budget: float, costs: CostTable, stage: str, other: MaskSearchResult | None
) -> MaskSearchResult:
    """The mask for a budget; the search starts near the one for another budget, too."""
    settings = loop.settings
    first: list[Placement] = []
    if other is not None:
        count = max(1, round(NEAR_SHARE * settings.trials))
        first = near(other.compute, budget, costs, other.order, count, settings.seed)
    return search_mask(
        loop.trainer,
        lambda compute, order: loop.error(loop.student(compute, order), loop.trial),
        len(loop.sampler.run.timesteps),
        budget,
        costs,
        settings.trials,
        history=settings.history,
        stage=stage,
        first=first,
    )
