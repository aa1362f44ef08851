"""Learning schedules for budgets: `learn`, `learn_family`, and `learn_solver`, which learns the solver with them.

For every budget, a mask is searched in the closed loop, judged with stand-ins that follow a polynomial, and then its
stand-ins are learned end to end, starting at that polynomial. So a mask is chosen for forecasting and not for copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from l2c.cache.cost import CostTable
from l2c.cache.family import ScheduleFamily
from l2c.cache.schedule import CacheSchedule
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.learning.checkpoint import digest
from l2c.learning.end_to_end import ClosedLoop, LearnSettings
from l2c.learning.judge import check_budget, find_mask
from l2c.learning.masks import Placement, spread
from l2c.learning.session import OnProgress, Session
from l2c.learning.trainer import Trainer
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler

CURVE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25)
"""Budgets of a family, as fractions of the MACs."""
RATIOS = (2, 3)
SPACINGS = ("logsnr", "karras")
"""What `learn_solver` tries: evaluations for each that is computed, and the spacing that learning starts from."""
PLAIN = (("dpmsolver++", "logsnr"), ("dpmsolver++3", "logsnr"), ("unipc", "logsnr"), ("unipc", "linspace"))
"""Solvers and spacings that it compares with."""


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
    schedules: list[CacheSchedule] = []
    for index, budget in enumerate(budgets):
        stage = f"{budget:g}" if len(budgets) > 1 else ""
        trainer.allow(1 / (len(budgets) - index))
        try:
            compute, order = _find_mask(loop, budget * scale, unit, stage)
        except KeyboardInterrupt:
            if schedules and trainer.processes.count == 1:
                break
            raise
        schedule, outcome = loop.fit(
            compute,
            {
                "method": "l2c, closed loop",
                "budget": budget,
                "budget_unit": "fraction of MACs" if costs is None else unit.unit,
                "budget_cost": unit.of(compute) / scale,
                "held_out_error_of_everything": round(everything, 5),
                "polynomial_order": order,
            },
            order=order,
            stage=f"at {stage}" if stage else "",
        )
        schedules.append(schedule)
        if outcome.interrupted:
            break
    return ScheduleFamily(schedules)


def learn_solver(
    model: nn.Module,
    evaluations: float,
    *,
    guidance: float = 1.5,
    per_computed: int | None = None,
    settings: LearnSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
) -> CacheSchedule:
    """Learns a whole run for a budget: noise levels, solver, what to compute, and how the rest follows.

    Of several structures (how many evaluations there are for each that is computed, and how they are spaced at first),
    the one that makes the best pictures before learning is taken. Then everything is learned together, end to end. The
    schedule brings its own solver; `provenance` says which structure was chosen, and what plain fewer steps of known
    solvers give on the same held-out pictures.

    Args:
        model: See `learn`.
        evaluations: What a run may cost, in whole evaluations of the model; at least 2.
        guidance: Guidance scale of the run.
        per_computed: Evaluations for each that is computed; None tries several. 1 reuses nothing and learns the
            solver alone.
        settings: See `learn`.
        session: See `learn`.
        model_name: See `learn`.
        on_progress: See `learn`.

    Raises:
        CheckpointError: See `learn`.
        ConfigError: See `learn`.
        NumericsError: See `learn`.
    """
    if not 2 <= evaluations < float("inf"):
        raise ConfigError(f"a run costs at least 2 whole evaluations, got {evaluations:g}")
    if per_computed is not None and per_computed < 1:
        raise ConfigError(f"per_computed must be at least 1, got {per_computed}")
    settings = settings or LearnSettings()
    denoiser, guided = Denoiser.of(model), Guidance(guidance)
    unit = CostTable.macs(find_layers(model))
    ratios = (per_computed,) if per_computed else RATIOS
    for ratio in ratios:  # more evaluations than a solver can make are refused before anything is computed
        _ = Sampler(denoiser, "dpmsolver++", int(evaluations * ratio), "logsnr", guided).run
    trainer = Trainer(
        "schedule and solver",
        Sampler(denoiser, "dpmsolver++", int(evaluations), "logsnr", guided),
        settings,
        session,
        on_progress,
        evaluations=evaluations,
        per_computed=per_computed,
    )
    best: tuple[float, ClosedLoop, Tensor, str] | None = None
    tried: dict[str, float] = {}
    for ratio in ratios:
        for spacing in SPACINGS:
            steps = int(evaluations * ratio)
            sampler = Sampler(denoiser, "dpmsolver++", steps, spacing, guided)
            loop = ClosedLoop(trainer, sampler, settings, model_name)
            name = f"{steps} evaluations, {spacing} spacing"
            compute = _every(ratio, steps, evaluations * unit.full, unit)
            tried[name] = loop.kept_error(f"error of {name}", loop.student(compute, free_solver=True))
            if best is None or tried[name] < best[0]:
                best = tried[name], loop, compute, name
    assert best is not None
    _, loop, compute, name = best
    schedule, _ = loop.fit(
        compute,
        {
            "method": "l2c, closed loop, with its solver",
            "budget": evaluations,
            "budget_unit": "whole evaluations",
            "structure": name,
            "structures_before_learning": {key: round(value, 5) for key, value in tried.items()},
            "fewer_steps": _fewer_steps(loop, int(evaluations)),
        },
        free_solver=True,
    )
    return schedule


def _every(ratio: int, steps: int, budget: float, costs: CostTable) -> Tensor:
    """Whole evaluations at every `ratio`-th place, and the last one of them without the layers over budget."""
    whole = tuple(range(0, steps, ratio))
    compute = Placement(whole, None).mask(steps, budget, costs)
    if costs.of(compute) > budget:
        compute = Placement(whole[:-1], whole[-1], "last").mask(steps, budget, costs)
    if costs.of(compute) > budget:  # what no schedule can save is more than a whole evaluation
        costs.check_budget(budget, steps)
        compute = spread(steps, budget, costs)[0].mask(steps, budget, costs)
    return compute


def _fewer_steps(loop: ClosedLoop, steps: int) -> dict[str, float]:
    """Errors of the held-out pictures by known solvers with so many evaluations."""
    errors = {}
    for solver, spacing in PLAIN:
        sampler = Sampler(loop.sampler.denoiser, solver, steps, spacing, loop.sampler.guidance)
        everything = torch.ones(steps, len(find_layers(sampler.denoiser.model)), dtype=torch.bool)
        student = loop.student_of(sampler, everything)
        errors[f"{solver}, {spacing}"] = round(loop.kept_error(f"error of {solver} {spacing}", student), 5)
    return errors


def _kept_costs(trainer: Trainer, costs: CostTable) -> CostTable:
    """The costs that learning began with: those that are measured again are a little different every time."""
    own = torch.tensor([*costs.layers, costs.rest], dtype=torch.float64)
    trainer.kept["costs"] = trainer.processes.agree(lambda: trainer.kept.get("costs", own))
    *layers, rest = trainer.kept["costs"].tolist()
    return replace(costs, layers=tuple(layers), rest=rest)


def _find_mask(loop: ClosedLoop, budget: float, costs: CostTable, stage: str) -> tuple[Tensor, int]:
    settings = loop.settings
    pictures = loop.training.rows(slice(0, settings.trial_pictures))
    return find_mask(
        loop.trainer,
        lambda compute, order: loop.error(loop.student(compute, order), pictures),
        len(loop.sampler.run.timesteps),
        budget,
        costs,
        settings.trials,
        depth=settings.depth,
        stage=stage,
    )
