"""`learn_solver`: learning a whole run for a budget, the solver with the schedule.

Structures of a run are judged as masks are, by the pictures that they make before anything is learned; so is then the
mask of the best of them. What is left, noise levels, weights of the solver and stand-ins, has gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from l2c.cache.cost import CostTable
from l2c.cache.schedule import CacheSchedule
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.learning.end_to_end import ClosedLoop, LearnSettings
from l2c.learning.judge import Found, find_mask
from l2c.learning.masks import Placement, spread
from l2c.learning.session import OnProgress, Session
from l2c.learning.trainer import Trainer
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler

RATIOS = (2, 3)
SPACINGS = ("logsnr", "karras")
"""What `learn_solver` tries: evaluations for each that is computed, and the spacing that learning starts from."""
PLAIN = (("dpmsolver++", "logsnr"), ("dpmsolver++3", "logsnr"), ("unipc", "logsnr"), ("unipc", "linspace"))
"""Solvers and spacings that it compares with."""


@dataclass(frozen=True)
class _Structure:
    """A run that a solver could begin as.

    Attributes:
        loop: Learns for it.
        start: A mask to begin with.
        name: For people.
    """

    loop: ClosedLoop
    start: Placement
    name: str


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
    the one that makes the best pictures before learning is taken, and a mask is searched for it. Then everything else
    is learned together, end to end. The schedule brings its own solver; `provenance` says which structure was chosen,
    and what plain fewer steps of known solvers give on the same held-out pictures.

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
    costs = CostTable.macs(find_layers(model))
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
    budget = evaluations * costs.full
    structures, tried = list[_Structure](), dict[str, float]()
    for ratio in ratios:
        for spacing in SPACINGS:
            sampler = Sampler(denoiser, "dpmsolver++", int(evaluations * ratio), spacing, guided)
            structure = _structure(ClosedLoop(trainer, sampler, settings, model_name), ratio, budget, costs)
            structures.append(structure)
            loop, name = structure.loop, structure.name
            compute = structure.start.mask(len(sampler.run.timesteps), budget, costs)
            student = loop.student(compute, structure.start.order, free_solver=True)
            tried[name] = loop.kept_error(f"error of {name}", student, loop.trial)
    best = min(structures, key=lambda structure: tried[structure.name])
    found = _find_mask(best, budget, costs)
    schedule, _ = best.loop.fit(
        found.compute,
        {
            "method": "l2c, closed loop, with its solver",
            "budget": evaluations,
            "budget_unit": "whole evaluations",
            "structure": best.name,
            "structures_before_learning": {name: round(error, 5) for name, error in tried.items()},
            "masks_judged": found.judged,
            "polynomial_order": found.order,
            "fewer_steps": _fewer_steps(best.loop, int(evaluations)),
        },
        order=found.order,
        free_solver=True,
    )
    return schedule


def _structure(loop: ClosedLoop, ratio: int, budget: float, costs: CostTable) -> _Structure:
    """Whole evaluations at every `ratio`-th place, and the last one of them without the layers over budget."""
    run = loop.sampler.run
    steps = len(run.timesteps)
    whole = tuple(range(0, steps, ratio))
    start = Placement(whole, None)
    if costs.of(start.mask(steps, budget, costs)) > budget:
        start = Placement(whole[:-1], whole[-1], "last")
    if costs.of(start.mask(steps, budget, costs)) > budget:  # what no schedule can save is a whole evaluation
        costs.check_budget(budget, steps)
        start = spread(steps, budget, costs)[0]
    return _Structure(loop, start, f"{steps} evaluations, {run.spacing} spacing")


def _find_mask(structure: _Structure, budget: float, costs: CostTable) -> Found:
    """A mask for a structure, or that with everything if it begins so."""
    loop, steps = structure.loop, len(structure.loop.sampler.run.timesteps)
    compute = structure.start.mask(steps, budget, costs)
    if compute.all():
        return Found(compute, structure.start.order, judged=0)
    return find_mask(
        loop.trainer,
        lambda mask, order: loop.error(loop.student(mask, order, free_solver=True), loop.trial),
        steps,
        budget,
        costs,
        loop.settings.trials,
        depth=loop.settings.depth,
        first=[structure.start],
    )


def _fewer_steps(loop: ClosedLoop, steps: int) -> dict[str, float]:
    """Errors of the held-out pictures by known solvers with so many evaluations."""
    errors = {}
    for solver, spacing in PLAIN:
        sampler = Sampler(loop.sampler.denoiser, solver, steps, spacing, loop.sampler.guidance)
        everything = torch.ones(steps, len(find_layers(sampler.denoiser.model)), dtype=torch.bool)
        student = loop.student_of(sampler, everything)
        errors[f"{solver}, {spacing}"] = round(loop.kept_error(f"error of {solver} {spacing}", student), 5)
    return errors
