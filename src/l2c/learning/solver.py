"""Learning a whole run for a budget, the solver with the schedule.

How many evaluations there are and where they compute is searched, by the pictures that come out before anything is
learned. What is left, noise levels, weights of the solver and forecasts, has gradients.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import chain
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from l2c.documents import Real, check_value
from l2c.errors import ConfigError
from l2c.hosts.base import Host
from l2c.learning.closed_loop import ClosedLoop
from l2c.learning.families import learn_each
from l2c.learning.mask_search import MaskSearchResult, search_mask
from l2c.learning.masks import ORDERS, spread
from l2c.learning.placement import Placement
from l2c.learning.references import solve
from l2c.learning.session import OnProgress, Session
from l2c.learning.settings import LearnSettings
from l2c.learning.trainer import Trainer
from l2c.schedule.cost import CostTable
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule

logger = logging.getLogger(__name__)

RATIOS = (1.0, 1.5, 2.0, 2.5)
"""Evaluations for each that is computed, of the structures that are tried; with 1, nothing is reused."""
LOOK_UNTIL, SEARCH_UNTIL = 0.3, 0.5
"""Shares of a time limit after which masks of every structure, and of the best one, are no longer tried."""
REUSE_GAINS = 0.75
"""Share of its error that a structure which reuses layers has left, at most, when its forecasts are learned, too."""
APART = 2.5
"""Evaluations for each whole one that is paid for, of the structure whose passes of guidance have rows of their own."""

CURVE_EVALUATIONS = (12.0, 10.0, 8.0, 6.0, 4.0)
"""In whole evaluations, what a family of learned solvers is for where it is to be along the curve of costs."""


def learn_with_solver(
    host: Host,
    budgets: Sequence[float],
    per_computed: int | None,
    settings: LearnSettings,
    session: Session | None,
    model_name: str,
    on_progress: OnProgress | None,
) -> ScheduleFamily:
    """Learns a whole run for each budget: noise levels, solver, what to compute, and how the rest follows.

    For several structures (how many evaluations there are for each that is computed), a mask is searched, and the one
    that makes the best pictures before learning is taken. Then everything else is learned together, end to end. The
    schedule brings its own solver; `provenance` says which structure was chosen, and what plain fewer steps of known
    solvers give on the same held-out examples. Budgets are in whole evaluations and share their references. Other
    arguments and errors as for `learn`.
    """
    if not budgets:
        raise ConfigError("name at least one budget, in whole evaluations")
    for evaluations in budgets:
        if not 2 <= evaluations < float("inf"):
            raise ConfigError(f"a run costs at least 2 whole evaluations, got {evaluations:g}")
    check_value("per_computed", per_computed, Annotated[Real, Field(ge=1)] | None)
    kinds = structures_of(host, settings, per_computed)
    tried = {
        evaluations: [(host.solver_starts(int(evaluations * ratio)), ratio, apart) for ratio, apart in kinds]
        for evaluations in budgets
    }
    for starts, *_rest in chain.from_iterable(tried.values()):
        _ = starts[0].run  # more evaluations than a solver can make are refused before anything is computed
    trainer = Trainer(
        "schedule and solver",
        host.solver_starts(int(max(budgets)))[0],
        settings,
        session,
        on_progress,
        evaluations=budgets[0] if len(budgets) == 1 else list(budgets),
        per_computed=per_computed,
    )
    references = solve(trainer, host, settings, fit_solver=True)
    own = ClosedLoop(trainer, host, references, settings, model_name)

    def learn_one(evaluations: float, stage: str) -> tuple[CacheSchedule, bool]:
        return _learn_one(own, evaluations, tried[evaluations], f"at {stage}" if stage else "")

    return learn_each(trainer, budgets, learn_one)


def structures_of(
    host: Host, settings: LearnSettings, per_computed: float | None
) -> list[tuple[float, bool]]:
    """The structures that are tried: evaluations for each computed one, and whether passes of guidance are apart."""
    kinds = [(float(per_computed), False)] if per_computed else [(ratio, False) for ratio in RATIOS]
    if settings.branches and host.has_branches and per_computed != 1:
        kinds.append((APART, True))
    return kinds


def _learn_one(
    own: ClosedLoop, evaluations: float, tried: Sequence[tuple[Sequence[Host], float, bool]], stage: str
) -> tuple[CacheSchedule, bool]:
    """The schedule for a budget, and whether learning it was interrupted.

    Args:
        own: Learning on the host whose solver is not learned.
        evaluations: The budget.
        tried: Hosts that structures can begin as, with the evaluations for each that is computed, and whether passes
            are apart.
        stage: Tells it from other budgets.
    """
    host, costs = own.host, CostTable.macs(own.host.table)
    budget, trials = evaluations * costs.full, own.settings.trials
    structures: list[_Structure] = []
    for index, (starts, ratio, apart) in enumerate(tried):
        start = _every(ratio, len(starts[0].run.timesteps), budget, costs)
        one = _Structure(
            _from_best_start(own, starts, start, budget, stage), start, budget, costs, stage, apart=apart
        )
        one.search(first_look(trials), until=LOOK_UNTIL * (index + 1) / len(tried))
        one.judge()
        structures.append(one)
    best = min(structures, key=lambda structure: structure.expected)
    best.search(trials, until=SEARCH_UNTIL)
    loop, found = best.loop, best.found
    schedule, outcome = loop.fit(
        found.compute,
        {
            "method": "l2c, closed loop, with its solver",
            "budget": evaluations,
            "budget_unit": "whole evaluations",
            "structure": best.name,
            "structures_before_learning": {one.name: round(one.error, 5) for one in structures},
            "masks_tried": sum(one.found.trials for one in structures),
            "polynomial_order": found.order,
            "fewer_steps": _fewer_steps(loop, host, int(evaluations), stage),
        },
        order=found.order,
        free_solver=True,
        stage=stage,
    )
    return schedule, outcome.interrupted


def first_look(trials: int) -> int:
    """Masks that are tried for every structure, of so many for the best one."""
    return math.ceil(trials / 3)


def _from_best_start(
    own: ClosedLoop, starts: Sequence[Host], placement: Placement, budget: float, stage: str
) -> ClosedLoop:
    """Learning from the noise levels that a placement makes the best pictures with before anything is learned."""
    loops, kept = [own.on(host) for host in starts], own.trainer.kept
    if len(loops) == 1:
        return loops[0]
    steps = len(starts[0].run.timesteps)
    mask = placement.mask(steps, budget, CostTable.macs(own.host.table))
    mask[list(own.host.segments[1:])] = True

    def error_of(loop: ClosedLoop, order: int) -> float:
        return loop.trial_error(loop.student(mask, order, free_solver=True))

    key = f"starts of {steps} evaluations {stage}".rstrip()
    if key not in kept:
        orders = [order for order in ORDERS if order < own.settings.history]
        first = {order: error_of(loops[0], order) for order in (orders[:1] if mask.all() else orders)}
        order = min(first, key=first.__getitem__)
        kept[key] = torch.tensor([first[order], *(error_of(loop, order) for loop in loops[1:])])
        own.trainer.save(if_due=True)
    return loops[int(kept[key].argmin())]


class _Structure:
    """A number of evaluations, with the mask that has been found for it so far.

    Args:
        loop: Learning on a host with so many evaluations.
        start: Where it computes at first.
        budget: What a run may cost, in the unit of the costs.
        costs: Cost of every layer.
        stage: Tells it from other budgets.
        apart: Whether passes of guidance have rows of their own.

    Attributes:
        found: The mask.
        error: That it was compared with others by.
    """

    found: MaskSearchResult
    error: float

    def __init__(
        self, loop: ClosedLoop, start: Placement, budget: float, costs: CostTable, stage: str, *, apart: bool
    ) -> None:
        self.loop, self._start, self._budget, self._costs, self._apart = loop, start, budget, costs, apart
        self._steps = len(loop.host.run.timesteps)
        self.name = f"{self._steps} evaluations{', passes apart' if apart else ''}"
        self._stage = f"of {self.name} {stage}".rstrip()

    def search(self, trials: int, until: float) -> None:
        """Searches a mask, with so many trials in all and up to a share of the time limit."""
        compute, loop = self._start.mask(self._steps, self._budget, self._costs), self.loop
        if compute.all() and not self._apart:  # nothing is reused
            self.found = MaskSearchResult(compute, self._start.order, math.nan, trials=0)
            return
        self.found = search_mask(
            loop.trainer,
            self._error_of,
            self._steps,
            self._budget,
            self._costs,
            trials,
            history=loop.settings.history,
            stage=self._stage,
            always=loop.host.segments[1:],
            first=[] if self._apart or len(loop.host.segments) > 1 else [self._start],
            until=until,
            apart=self._apart,
        )

    def judge(self) -> None:
        """Judges what has been found by pictures that its solver is not fitted to."""
        kept, key = self.loop.trainer.kept, f"error {self._stage}"
        if key not in kept:
            kept[key] = torch.tensor(self._error_of(self.found.compute, self.found.order, unseen=True))
            self.loop.trainer.save(if_due=True)
        self.error = kept[key].item()

    @property
    def expected(self) -> float:
        """Its error when all is learned, as far as can be told: forecasts gain by it, a fitted solver hardly."""
        return self.error * (1.0 if self.found.compute.all() else REUSE_GAINS)

    def _error_of(self, mask: Tensor, order: int, *, unseen: bool = False) -> float:
        return self.loop.trial_error(self.loop.student(mask, order, free_solver=True), unseen=unseen)


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


def _fewer_steps(loop: ClosedLoop, host: Host, steps: int, stage: str) -> dict[str, float]:
    """Errors of the held-out examples by known solvers with so many evaluations."""
    errors = {}
    for name, other in host.fewer_steps(steps).items():
        on = loop.on(other)
        key = f"error of {name.replace(',', '')} {stage}".rstrip()
        errors[name] = round(on.kept_error(key, on.everything()), 5)
    return errors
