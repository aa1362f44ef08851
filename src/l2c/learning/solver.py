"""Learning a whole run for a budget, the solver with the schedule.

How many evaluations there are and where they compute is searched, by the pictures that come out before anything is
learned. What is left, noise levels, weights of the solver and forecasts, has gradients.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from l2c.documents import Real, check_value
from l2c.errors import ConfigError
from l2c.hosts.base import Host
from l2c.learning.branch_masks import spread_apart
from l2c.learning.closed_loop import ClosedLoop
from l2c.learning.families import learn_each
from l2c.learning.mask_search import MaskSearchResult, search_mask
from l2c.learning.masks import spread
from l2c.learning.placement import Placement
from l2c.learning.references import solve
from l2c.learning.session import OnProgress, Session
from l2c.learning.settings import LearnSettings
from l2c.learning.trainer import Trainer
from l2c.schedule.cost import CostTable
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule

logger = logging.getLogger(__name__)

RATIOS = (1.0, 2.0, 2.5)
"""Evaluations for each whole one that is paid for, of the structures that are tried. With 1, nothing is reused; in the
last one, passes of guidance have rows of their own in the mask, where a host can run them apart."""
SEARCHED = 2
"""Structures that masks are searched for: those whose first masks make the best pictures."""
LOOK_UNTIL, SEARCH_UNTIL = 0.3, 0.5
"""Shares of a time limit after which masks of each of these, and of the best one, are no longer tried."""
REUSE_GAINS = 0.75
"""Share of its error that a structure which reuses layers has left, at most, when its mask has been searched."""
SECOND_THOUGHTS = 4
"""Noise levels to begin with between which all pictures decide that a solver is fitted to. First they are compared by
few, which it is fitted to, too, and can meet more closely than others."""
FIRST_ORDERS = (1, 2)
"""Of the polynomials that forecasts follow at first: noise levels to begin with are compared with the first of them."""

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
    split = settings.branches and host.has_branches
    if per_computed is not None:
        alone = (float(per_computed), False)
        return [alone, (RATIOS[-1], True)] if split and per_computed != 1 else [alone]
    *together, last = RATIOS
    return [*((ratio, False) for ratio in together), (last, split)]


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
    looks = first_look(trials)
    structures = [
        _Structure(own, starts, ratio, budget, costs, stage, apart=apart) for starts, ratio, apart in tried
    ]
    best = structures[0]
    if len(structures) > 1:
        for structure in structures:
            structure.judge()
        ahead = sorted(structures, key=_Structure.expected)[:SEARCHED]
        for index, structure in enumerate(ahead):
            structure.search(looks, until=LOOK_UNTIL * (index + 1) / len(ahead))
            structure.judge()
        best, trials = _better(min(ahead, key=_Structure.expected), structures), 2 * looks
    found, loop = best.search(trials, until=SEARCH_UNTIL), best.loop
    schedule, outcome = loop.fit(
        found.compute,
        {
            "method": "l2c, closed loop, with its solver",
            "budget": evaluations,
            "budget_unit": "whole evaluations",
            "structure": best.name,
            "structures_before_learning": {
                one.name: round(one.error, 5) for one in structures if one.error is not None
            },
            "finalists_before_learning": {
                one.name: round(one.crossed, 5) for one in structures if one.crossed is not None
            },
            "masks_tried": sum(one.found.trials for one in structures if one.found),
            "polynomial_order": found.order,
            "fewer_steps": _fewer_steps(loop, host, int(evaluations), stage),
        },
        order=found.order,
        solver=True,
        stage=stage,
        starts=best.starts,
    )
    return schedule, outcome.interrupted


def _better(found: _Structure, structures: Sequence[_Structure]) -> _Structure:
    """The best structure that was found, or the one that reuses nothing, if that is better by more pictures.

    Few pictures are enough to compare masks of one structure, whose errors go together. They are not to compare
    structures, least of all one whose mask was searched with them.
    """
    whole = next((one for one in structures if not one.reuses), None)
    if whole is None or whole is found:
        return found
    return min(whole, found, key=_Structure.cross)


def first_look(trials: int) -> int:
    """Masks that are tried for each of the best two structures, of so many in all; the best one has as many again."""
    return math.ceil(trials / 4)


class _Structure:
    """A number of evaluations, with the mask that has been found for it so far.

    Args:
        own: Learning on the host whose solver is not learned.
        starts: Hosts that it can begin as, with the same number of evaluations at other noise levels.
        ratio: Evaluations for each that is computed.
        budget: What a run may cost, in the unit of the costs.
        costs: Cost of every layer.
        stage: Tells it from other budgets.
        apart: Whether passes of guidance have rows of their own, if the budget has room for that.

    Attributes:
        name: For people.
        loop: Learning on the host that it begins as.
        starts: The next best noise levels to begin at, as half log-SNRs; more pictures decide between them and those.
        found: What a search has found; None before one.
        error: That it is compared with others by; None before it is judged.
        crossed: The same by more pictures; None unless it is one of the last two.
    """

    def __init__(
        self,
        own: ClosedLoop,
        starts: Sequence[Host],
        ratio: float,
        budget: float,
        costs: CostTable,
        stage: str,
        *,
        apart: bool,
    ) -> None:
        self._trainer, self._budget, self._costs = own.trainer, budget, costs
        self._steps, self._always = len(starts[0].run.timesteps), list(own.host.segments[1:])
        split = spread_apart(self._steps, budget, costs) if apart else []
        self._apart = bool(split)
        self._start = split[0] if split else _every(ratio, self._steps, budget, costs)
        self.name = f"{self._steps} evaluations{', passes apart' if self._apart else ''}"
        self._stage = f"of {self.name} {stage}".rstrip()
        self.found: MaskSearchResult | None = None
        self.error: float | None = None
        self.crossed: float | None = None
        self._begin([own.on(host) for host in starts])

    def _begin(self, loops: Sequence[ClosedLoop]) -> None:
        """Takes the noise levels that its first mask makes the best pictures with, and the order of forecasts."""
        self.loop, mask = loops[0], self._mask
        self.starts: list[Sequence[float]] = []
        most = self.loop.settings.history - 1
        orders = [order for order in FIRST_ORDERS if order <= most][: 1 if mask.all() else None] or [most]

        def errors() -> Tensor:
            by_lines = [self._error_of(loop, mask, orders[0]) for loop in loops]
            best = loops[min(range(len(loops)), key=by_lines.__getitem__)]
            return torch.tensor([*by_lines, *(self._error_of(best, mask, order) for order in orders[1:])])

        if len(loops) > 1:
            found = self._trainer.keep(f"starts {self._stage}", errors)
            place, *others = found[: len(loops)].argsort()[:SECOND_THOUGHTS].tolist()
            self.loop, self.starts = loops[place], [loops[other].host.run.log_snrs for other in others]
            by_order = torch.cat([found[place : place + 1], found[len(loops) :]])
            self._start = replace(self._start, order=orders[int(by_order.argmin())])

    def search(self, trials: int, until: float) -> MaskSearchResult:
        """Searches a mask, with so many trials in all and up to a share of the time limit."""
        mask, order = self._mask, self._order
        if mask.all():  # nothing is reused
            self.found = MaskSearchResult(mask, order, math.nan, trials=0)
            return self.found
        self.found = search_mask(
            self._trainer,
            partial(self._error_of, self.loop),
            self._steps,
            self._budget,
            self._costs,
            trials,
            history=self.loop.settings.history,
            stage=self._stage,
            always=self._always,
            first=[] if self._always else [self._start],
            until=until,
            apart=self._apart,
        )
        return self.found

    def judge(self) -> None:
        """Judges what has been found so far by pictures that its solver is not fitted to."""
        mask, order = self._mask, self._order
        self.error = self._told("error", lambda: self._error_of(self.loop, mask, order, unseen=True))

    def cross(self) -> float:
        """Judges it by all pictures that its solver can be fitted to, each half by the solver of the other half."""
        student = self.loop.student(self._mask, self._order, solver=True)
        self.crossed = self._told("crossed error", lambda: self.loop.crossed_error(student))
        return self.crossed

    def expected(self) -> float:
        """Its error when its mask has been searched, as far as can be told."""
        assert self.error is not None, "it has been judged"
        return self.error * (REUSE_GAINS if self.reuses else 1.0)

    @property
    def reuses(self) -> bool:
        """Whether it reuses anything."""
        return not bool(self._mask.all())

    @property
    def _mask(self) -> Tensor:
        """Where it computes so far."""
        if self.found is not None:
            return self.found.compute
        mask = self._start.mask(self._steps, self._budget, self._costs)
        mask[self._always] = True
        return mask

    @property
    def _order(self) -> int:
        """Of the polynomials that forecasts follow so far."""
        return self._start.order if self.found is None else self.found.order

    def _told(self, what: str, tell: Callable[[], float]) -> float:
        """A figure of what has been found so far, from the checkpoint if that has it."""
        tried = self.found.trials if self.found is not None else 0
        key = f"{what} {self._stage}" + (f" after {tried}" if tried else "")
        return self._trainer.keep(key, lambda: torch.tensor(tell())).item()

    @staticmethod
    def _error_of(loop: ClosedLoop, mask: Tensor, order: int, *, unseen: bool = False) -> float:
        return loop.trial_error(loop.student(mask, order, solver=True), unseen=unseen)


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
