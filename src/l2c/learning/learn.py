"""`learn` and `repair`: schedules for budgets, families of them, and whole runs with their solver, on any host.

For every budget, a mask is searched in the closed loop, tried with forecasts that follow a polynomial, and then its
forecasts are learned end to end, starting at that polynomial. So a mask is chosen for forecasting and not for copying.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from l2c.digest import digest
from l2c.errors import ConfigError, known
from l2c.hosts.base import Host
from l2c.hosts.targets import host_for, host_of
from l2c.layers import find_layers
from l2c.learning.arguments import amounts_of, checked, refuse
from l2c.learning.closed_loop import ClosedLoop
from l2c.learning.data import ImageData
from l2c.learning.families import learn_each
from l2c.learning.mask_search import MaskSearchResult, check_budget, kept_costs, search_mask
from l2c.learning.masks import near
from l2c.learning.paper import RouterSettings, learn_router
from l2c.learning.placement import Placement
from l2c.learning.references import solve
from l2c.learning.session import OnProgress, Session
from l2c.learning.settings import LearnSettings
from l2c.learning.solver import CURVE_EVALUATIONS, learn_with_solver
from l2c.learning.trainer import Trainer
from l2c.schedule.branches import has_branches
from l2c.schedule.budget import CURVE, check_fractions
from l2c.schedule.cost import CostTable
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.open import load_schedule
from l2c.schedule.schedule import CacheSchedule

NEAR_SHARE = 0.25
"""Share of the trials that begin at the mask of another budget."""
PATTERNS = ("closed-loop", "alternate")


@overload
def learn(
    target: Any,
    *,
    budget: float | None = None,
    budgets: None = None,
    solver: str | None = None,
    evaluations: float | None = None,
    per_computed: int | None = None,
    pattern: str = "closed-loop",
    data: ImageData | str | Path | None = None,
    costs: CostTable | None = None,
    settings: LearnSettings | RouterSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
    **run: Any,
) -> CacheSchedule: ...


@overload
def learn(
    target: Any,
    *,
    budgets: Sequence[float] | Literal["curve"],
    solver: str | None = None,
    costs: CostTable | None = None,
    settings: LearnSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
    **run: Any,
) -> ScheduleFamily: ...


def learn(
    target: Any,
    *,
    budget: float | None = None,
    budgets: Sequence[float] | Literal["curve"] | None = None,
    solver: str | None = None,
    evaluations: float | None = None,
    per_computed: int | None = None,
    pattern: str = "closed-loop",
    data: ImageData | str | Path | None = None,
    costs: CostTable | None = None,
    settings: LearnSettings | RouterSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
    **run: Any,
) -> CacheSchedule | ScheduleFamily:
    """Learns a schedule: which layers to compute at which evaluation, and how the others follow.

    A model needs nothing else: it learns on pictures that it makes itself. A diffusers pipeline learns through its own
    code, on the prompts or labels that it is given. Both come close to fine-step solutions from the same noise. Ctrl-C
    ends learning with the schedule so far. Started by `accelerate launch`, the processes share every batch, and all
    return the schedule.

    Args:
        target: A model from `load_model`, or any with a layer adapter; a diffusers pipeline without a cache enabled;
            or a host. It is not changed.
        budget: What a run may cost: a fraction of the multiply-accumulates (MACs) of computing everything, half if
            none is given. With `costs`, a cost in its unit.
        budgets: Several budgets, or `curve` for nine of them: a family of schedules in one run. With `auto` they are in
            whole evaluations, and the curve is of five.
        solver: For a model, its solver; `auto`, for either, learns a solver with the schedule.
        evaluations: With `auto`: what a run may cost, in whole evaluations of the model; at least 2.
        per_computed: With `auto`: evaluations for each that is computed; None tries several. 1 reuses nothing and
            learns the solver alone.
        pattern: `closed-loop`, or `alternate`: Learning-to-Cache as published, a router for every second evaluation.
        data: With `alternate` on a model: real images to noise, as in the paper, or where they are, see `load_images`.
        costs: Cost of every layer; multiply-accumulates by default, milliseconds from `l2c.measure_costs`.
        settings: Everything else that decides the result: `LearnSettings`, or `RouterSettings` with `alternate`.
        session: Checkpoint, time limit and log.
        model_name: Recorded in the schedule, for people.
        on_progress: Called in the main process as work goes on.
        run: How the target is sampled, see `host_of`: `steps`, `spacing` and `guidance` of a model; what a pipeline is
            called with, and `prompts` (texts, or a file with one in each line) or `conditions`.

    Returns:
        The schedule; for `budgets` the family, which after Ctrl-C has those that were finished and the one that was
        being learned. Its provenance has the errors on held-out examples before and after learning.

    Raises:
        CheckpointError: If the session's checkpoint cannot be read.
        ConfigError: If an argument is unknown or out of range, the budget cannot be met, the target cannot be learned
            on, the checkpoint is that of another run, or the time limit leaves none for learning.
        NumericsError: If the error is not finite.

    Source: with `alternate`, arXiv 2406.01733, section 3.3.

    Example:
        >>> import l2c
        >>> model = l2c.testing.tiny_dit()
        >>> quick = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=2)
        >>> schedule = l2c.learn(model, solver="dpmsolver++", steps=8, budget=0.5, settings=quick)
        >>> schedule.cost.fraction <= 0.5
        True
        >>> pipe = l2c.testing.tiny_pipeline("pixart")
        >>> small = dict(height=16, width=16, use_resolution_binning=False, clean_caption=False)
        >>> schedule = l2c.learn(pipe, prompts=["a cat"], budget=0.6, settings=quick, num_inference_steps=6, **small)
        >>> schedule.cost.fraction <= 0.6
        True
    """
    known("pattern", pattern, PATTERNS)
    if pattern == "alternate":
        chosen: LearnSettings | RouterSettings = checked(settings, RouterSettings, "the pattern 'alternate'")
    else:
        chosen = checked(settings, LearnSettings, "learning in the closed loop")
    if solver == "auto":
        refuse(
            "with solver='auto', which is learned for a number of evaluations=",
            budget=budget,
            budgets=None if evaluations is None else budgets,
            data=data,
            costs=costs,
            steps=run.get("steps"),
            spacing=run.get("spacing"),
        )
        if pattern != "closed-loop" or (evaluations is None and budgets is None):
            raise ConfigError(
                "solver='auto' learns a run in the closed loop for a number of evaluations=, such as evaluations=8"
            )
        amounts = amounts_of(evaluations, budgets, CURVE_EVALUATIONS)
    else:
        refuse("without solver='auto'", evaluations=evaluations, per_computed=per_computed)
        if solver is not None:
            run["solver"] = solver
        amounts = amounts_of(budget, budgets, CURVE)
    if pattern == "alternate":
        refuse("with pattern='alternate'", budget=budget, budgets=budgets, costs=costs)
        if isinstance(run.get("guidance"), (tuple, list)):
            raise ConfigError("a router is learned for one guidance scale; name that instead of a range")
    else:
        refuse("with pattern='closed-loop'", data=data)
    host = host_of(target, learn, **run)
    how = (session, model_name, on_progress)
    with host.prepared():
        if isinstance(chosen, RouterSettings):
            return learn_router(host, chosen, data, *how)
        if solver == "auto":
            family = learn_with_solver(host, amounts, per_computed, chosen, *how)
        else:
            family = _learn_family(host, amounts, costs, chosen, *how)
    return next(iter(family)) if budgets is None else family


def _learn_family(
    host: Host,
    budgets: Sequence[float],
    costs: CostTable | None,
    settings: LearnSettings,
    session: Session | None,
    model_name: str,
    on_progress: OnProgress | None,
) -> ScheduleFamily:
    """Schedules for several budgets, on the same references; arguments and errors as for `learn`."""
    evaluations, table = len(host.run.timesteps), host.table
    unit = costs or CostTable.macs(table)
    unit.check_layers(table)
    if not budgets:
        raise ConfigError("name at least one budget")
    if costs is None:
        check_fractions(budgets, list(budgets))
    scale = 1.0 if costs is not None else evaluations * unit.full
    for budget in budgets:
        check_budget(budget, evaluations, unit, scale, host.segments[1:])
    trainer = Trainer(
        "schedules",
        host,
        settings,
        session,
        on_progress,
        budgets=list(budgets),
        costs=digest([unit.unit, list(unit.layers), unit.rest]) if unit.unit == "MACs" else unit.unit,
    )
    unit = kept_costs(trainer, unit)
    loop = ClosedLoop(trainer, host, solve(trainer, host, settings), settings, model_name)
    everything = loop.kept_error("error of everything", loop.everything())
    masks: dict[float, MaskSearchResult] = {}

    def learn_one(budget: float, stage: str) -> tuple[CacheSchedule, bool]:
        masks[budget] = found = _search(loop, budget * scale, unit, stage, _nearest(budget, masks))
        schedule, outcome = loop.fit(
            found.compute,
            {
                "method": "l2c, closed loop",
                "budget": budget,
                "budget_unit": "fraction of MACs" if costs is None else unit.unit,
                "budget_cost": unit.of(found.compute) / scale,
                "held_out_error_of_everything": round(everything, 5),
                "masks_tried": found.trials,
                "polynomial_order": found.order,
            },
            order=found.order,
            stage=f"at {stage}" if stage else "",
        )
        return schedule, outcome.interrupted

    return learn_each(trainer, budgets, learn_one)


def _nearest(budget: float, masks: Mapping[float, MaskSearchResult]) -> MaskSearchResult | None:
    """The mask of the nearest budget, by their ratio, of those that have one."""
    nearest = min(masks, key=lambda other: abs(math.log(other / budget)), default=None)
    return None if nearest is None else masks[nearest]


def _search(
    loop: ClosedLoop, budget: float, costs: CostTable, stage: str, other: MaskSearchResult | None
) -> MaskSearchResult:
    """The mask for a budget; the search starts near the one for another budget, too."""
    settings, host = loop.settings, loop.host
    always = host.segments[1:]
    first: list[Placement] = []
    apart = None if settings.branches and host.has_branches and costs.unit == "MACs" else False
    if other is not None and not always and not has_branches(other.compute.shape[1], len(host.table)):
        count = max(1, round(NEAR_SHARE * settings.trials))
        first = near(other.compute, budget, costs, other.order, count, settings.seed)
    return search_mask(
        loop.trainer,
        lambda compute, order: loop.trial_error(loop.student(compute, order)),
        len(host.run.timesteps),
        budget,
        costs,
        settings.trials,
        history=settings.history,
        stage=stage,
        always=always,
        first=first,
        apart=apart,
        error_of_more=lambda compute, order: loop.error_of_more(loop.student(compute, order)),
    )


def repair(
    target: Any,
    schedule: CacheSchedule | str,
    *,
    settings: LearnSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
    **run: Any,
) -> CacheSchedule:
    """Learns the forecasts of a schedule, for weights, a LoRA or prompts that it was not learned on; its mask stays.

    Learning begins at the coefficients that the schedule has learned, or, where it has none, at the polynomial through
    the last `history` computed values. A solver that the schedule brings is fitted anew, and learned further with its
    noise levels; it stays as it is where the fit makes it no better. Everything is computed where a second transformer
    takes over, as it is in any case.

    Args:
        target: See `learn`.
        schedule: Where to compute, a schedule or whatever `l2c.load_schedule` opens; its run is taken where `run` says
            nothing else.
        settings: See `learn`.
        session: See `learn`.
        model_name: See `learn`; that of the schedule by default.
        on_progress: See `learn`.
        run: See `learn`.

    Returns:
        The schedule with learned coefficients; its provenance has the errors on held-out examples before and after.

    Raises:
        CheckpointError: See `learn`.
        ConfigError: If the schedule computes everything and brings no solver; and see `learn`.
        ContractError: If the schedule is for another model or another run.
        NumericsError: See `learn`.
    """
    settings = checked(settings, LearnSettings, "repair")
    schedule = load_schedule(schedule)
    host = host_for(target, schedule, repair, **run)
    for model in host.models.values():  # sizes in this call are not compared: a LoRA changes them
        schedule.check_layers(find_layers(model).with_sizes_of(schedule.layers))
    made = schedule.contract.run
    solver = False if made.weights is None else made
    if not solver:
        schedule.contract.check_run(host.run)
    compute = schedule.compute.clone()
    compute[list(host.segments)] = True
    if compute.all() and not solver:
        raise ConfigError("the schedule computes everything; a predictor needs layers that are reused")
    start = schedule.predictor.coefficients
    with host.prepared():
        driven = host.for_schedule(schedule)
        trainer = Trainer(
            "predictor and solver" if solver else "predictor",
            driven,
            settings,
            session,
            on_progress,
            mask=digest(compute),
            start=schedule.predictor.name if start is None else digest(start),
        )
        references = solve(trainer, host, settings, fit_solver=bool(solver))
        name = model_name or schedule.contract.model
        loop = ClosedLoop(trainer, driven, references, settings, name)
        learned, _ = loop.fit(compute, schedule.provenance, start=start, solver=solver)
    return learned
