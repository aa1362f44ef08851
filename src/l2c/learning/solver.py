"""`learn_solver`: learning a whole run for a budget, the solver with the schedule.

How many evaluations there are and where they compute is searched, by the pictures that come out before anything is
learned. What is left, noise levels, weights of the solver and forecasts, has gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.learning.end_to_end import ClosedLoop, LearnSettings
from l2c.learning.mask_search import MaskSearchResult, search_mask
from l2c.learning.masks import Placement, spread
from l2c.learning.session import OnProgress, Session
from l2c.learning.trainer import Trainer
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler
from l2c.schedule.cost import CostTable
from l2c.schedule.schedule import CacheSchedule

RATIOS = (2.0, 2.5)
"""Evaluations for each that is computed, of the structures that `learn_solver` tries."""
START = ("dpmsolver++", "logsnr")
"""Solver and spacing that learning starts from."""
PLAIN = (("dpmsolver++", "logsnr"), ("dpmsolver++3", "logsnr"), ("unipc", "logsnr"), ("unipc", "linspace"))
"""Solvers and spacings that it compares with."""


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

    For several structures (how many evaluations there are for each that is computed), a mask is searched, and the one
    that makes the best pictures before learning is taken. Then everything else is learned together, end to end. The
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
    costs = CostTable.macs(find_layers(model))
    ratios = (float(per_computed),) if per_computed else RATIOS
    samplers = [Sampler(denoiser, START[0], int(evaluations * ratio), START[1], guided) for ratio in ratios]
    for sampler in samplers:
        _ = sampler.run  # more evaluations than a solver can make are refused before anything is computed
    trainer = Trainer(
        "schedule and solver",
        Sampler(denoiser, START[0], int(evaluations), START[1], guided),
        settings,
        session,
        on_progress,
        evaluations=evaluations,
        per_computed=per_computed,
    )
    budget = evaluations * costs.full
    structures: list[tuple[ClosedLoop, MaskSearchResult]] = []
    for index, (sampler, ratio) in enumerate(zip(samplers, ratios, strict=True)):
        loop = ClosedLoop(trainer, sampler, settings, model_name)
        until = 0.5 * (index + 1) / len(ratios)
        structures.append((loop, _find_mask(loop, ratio, budget, costs, until)))
    loop, found = min(structures, key=lambda structure: structure[1].error)
    schedule, _ = loop.fit(
        found.compute,
        {
            "method": "l2c, closed loop, with its solver",
            "budget": evaluations,
            "budget_unit": "whole evaluations",
            "structure": _name(loop),
            "structures_before_learning": {_name(other): round(it.error, 5) for other, it in structures},
            "masks_tried": sum(it.judged for _, it in structures),
            "polynomial_order": found.order,
            "fewer_steps": _fewer_steps(loop, int(evaluations)),
        },
        order=found.order,
        free_solver=True,
    )
    return schedule


def _name(loop: ClosedLoop) -> str:
    return f"{len(loop.sampler.run.timesteps)} evaluations"


def _find_mask(
    loop: ClosedLoop, ratio: float, budget: float, costs: CostTable, until: float
) -> MaskSearchResult:
    """A mask for a structure, or that with everything if nothing is reused; for `until` see `search_mask`."""
    steps = len(loop.sampler.run.timesteps)

    def error_of(mask: Tensor, order: int) -> float:
        return loop.error(loop.student(mask, order, free_solver=True), loop.trial)

    start = _every(ratio, steps, budget, costs)
    compute = start.mask(steps, budget, costs)
    if compute.all():
        return MaskSearchResult(compute, start.order, error_of(compute, start.order), judged=0)
    return search_mask(
        loop.trainer,
        error_of,
        steps,
        budget,
        costs,
        loop.settings.trials,
        history=loop.settings.history,
        stage=f"of {_name(loop)}",
        first=[start],
        until=until,
    )


def _every(ratio: float, steps: int, budget: float, costs: CostTable) -> Placement:
    """Whole evaluations at every `ratio`-th place, and the last one of them without the layers over budget."""
    whole = tuple(int(index * ratio) for index in range(math.ceil(steps / ratio)))
    start = Placement(whole, None)
    if costs.of(start.mask(steps, budget, costs)) > budget:
        start = Placement(whole[:-1], whole[-1], "last")
    if costs.of(start.mask(steps, budget, costs)) > budget:  # what no schedule can save is a whole evaluation
        costs.check_budget(budget, steps)
        start = spread(steps, budget, costs)[0]
    return start


def _fewer_steps(loop: ClosedLoop, steps: int) -> dict[str, float]:
    """Errors of the held-out pictures by known solvers with so many evaluations."""
    errors = {}
    for solver, spacing in PLAIN:
        sampler = Sampler(loop.sampler.denoiser, solver, steps, spacing, loop.sampler.guidance)
        everything = torch.ones(steps, len(find_layers(sampler.denoiser.model)), dtype=torch.bool)
        student = loop.student_of(sampler, everything)
        errors[f"{solver}, {spacing}"] = round(loop.kept_error(f"error of {solver} {spacing}", student), 5)
    return errors
