"""A mask for a budget, found by judging masks one after another, with what is known kept in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.learning.branch_masks import spread_apart
from l2c.learning.masks import ORDERS, search, spread
from l2c.learning.placement import Placement
from l2c.learning.session import SEARCHING
from l2c.learning.trainer import Trainer
from l2c.learning.trials import Trials
from l2c.schedule.cost import BUDGET_TOLERANCE, CostTable

FINALISTS = 4
"""Masks that more pictures decide between. The least of many errors of few pictures is in part the luck of its mask."""


def check_budget(
    budget: float, evaluations: int, costs: CostTable, scale: float, always: Sequence[int] = ()
) -> None:
    """Refuses a budget that no mask can meet, or that needs none.

    Args:
        budget: What a run may cost, in units of `scale`.
        evaluations: Of the run.
        costs: Cost of every layer.
        scale: In the unit of the costs.
        always: Evaluations besides the first that have to compute everything.

    Raises:
        ConfigError: If it is too small or too large.
    """
    costs.check_budget(budget * scale, evaluations)
    others, left = evaluations - len(always), budget * scale - len(always) * costs.full
    least = torch.zeros(evaluations, len(costs.layers), dtype=torch.bool)
    least[[0, *always]] = True
    if always and costs.of(least) > budget * scale * (1 + BUDGET_TOLERANCE):
        raise ConfigError(
            f"a budget of {budget:g} cannot be met: the first evaluation of each of the {1 + len(always)} models that "
            f"share the run has to compute every layer, so that it takes at least {costs.of(least) / scale:.1%} of the "
            "work; allow more, or take more steps"
        )
    if spread(others, left, costs)[0].mask(others, left, costs).all():
        raise ConfigError(f"a budget of {budget:g} computes everything; no schedule is needed")


def kept_costs(trainer: Trainer, costs: CostTable) -> CostTable:
    """The costs that learning began with: those that are measured again are a little different every time."""
    own = torch.tensor([*costs.layers, costs.rest], dtype=torch.float64)
    trainer.kept["costs"] = trainer.processes.agree(lambda: trainer.kept.get("costs", own))
    *layers, rest = trainer.kept["costs"].tolist()
    return replace(costs, layers=tuple(layers), rest=rest)


@dataclass(frozen=True)
class MaskSearchResult:
    """What a search found.

    Attributes:
        compute: The mask, bool (evaluations, layers).
        order: Of the polynomial that forecasts follow best with it.
        error: The least of all that were tried.
        trials: Masks that were tried.
    """

    compute: Tensor
    order: int
    error: float
    trials: int


def search_mask(
    trainer: Trainer,
    error_of: Callable[[Tensor, int], float],
    evaluations: int,
    budget: float,
    costs: CostTable,
    trials: int,
    *,
    history: int,
    stage: str = "",
    always: Sequence[int] = (),
    first: Sequence[Placement] = (),
    until: float = 0.5,
    apart: bool | None = False,
    error_of_more: Callable[[Tensor, int], float] | None = None,
) -> MaskSearchResult:
    """The mask that a search finds for a budget, or the checkpoint has.

    A search with more trials goes on where one of the same stage with fewer ended.

    Args:
        trainer: Its seed, checkpoint and time limit are the search's, too.
        error_of: Error of what a mask makes, with forecasts that follow a polynomial of an order.
        evaluations: Of the run.
        budget: What a run may cost, in the unit of the costs.
        costs: Cost of every layer.
        trials: Masks to judge at most.
        history: How many computed values forecasts read at most: more than the order of a polynomial.
        stage: Tells it from other searches of the same checkpoint.
        always: Evaluations besides the first that have to compute everything; the search is for the others.
        first: Placements to start from besides those that `spread` makes, and before them.
        until: Share of the time limit after which no more masks are judged.
        apart: Whether the passes of guidance have rows of their own; None tries both.
        error_of_more: The error by more pictures, which decides between the best few masks while there is time.
    """
    key, order_key = (f"{what} {stage}".rstrip() + f" after {trials}" for what in ("mask", "order"))
    trials_key = f"trials {stage}".rstrip()
    if key not in trainer.kept:
        orders = [order for order in ORDERS if order < history]
        whole = torch.zeros(evaluations, dtype=torch.bool)
        whole[list(always)] = True
        others, left = evaluations - len(always), budget - len(always) * costs.full

        def mask_of(placement: Placement) -> Tensor:
            found = placement.mask(others, left, costs)
            mask = torch.ones(evaluations, found.shape[1], dtype=torch.bool)
            mask[~whole] = found
            return mask

        def fits(placement: Placement) -> bool:
            return placement.guided is None or costs.of(placement.mask(others, left, costs)) <= left

        known = [replace(placement, order=min(placement.order, orders[0])) for placement in first]
        alike = [] if apart else spread(others, left, costs, orders[0])
        split = [] if apart is False else spread_apart(others, left, costs, orders[0])
        starts = list(dict.fromkeys([*known, *alike, *split]))
        fraction = costs.of(mask_of(starts[0])) / (evaluations * costs.full)

        def judge(by: Callable[[Tensor, int], float], count: int, name: str, key: str) -> Trials[Placement]:
            def error(placement: Placement) -> float:
                return by(mask_of(placement), placement.order)

            return Trials(trainer, error, count, f"{name} {stage}".rstrip(), key, fraction, until)

        few = judge(error_of, trials, SEARCHING, trials_key)
        ranked = search(starts, few.error, others, trials, trainer.settings.seed, few.report, orders, fits)
        found, best = ranked[0], ranked[:FINALISTS]
        if error_of_more is not None and len(best) > 1 and not trainer.used_up(until):
            more_key = f"finalists {stage}".rstrip() + f" after {trials}"
            more = judge(error_of_more, len(best), f"{SEARCHING} by more pictures", more_key)
            found = _closest(best, more)
        trainer.kept[key] = mask_of(found).to(torch.uint8)
        trainer.kept[order_key] = torch.tensor(found.order)
        trainer.save()
    kept = trainer.kept
    errors = kept[trials_key].tolist()
    return MaskSearchResult(kept[key].bool(), int(kept[order_key]), min(errors), len(errors))


def _closest(placements: Sequence[Placement], judge: Trials[Placement]) -> Placement:
    """The placement of the least error, of as many as there is time for."""
    errors: list[float] = []
    for place, placement in enumerate(placements, 1):
        errors.append(judge.error(placement))
        if judge.report(place, min(errors)):
            break
    return placements[errors.index(min(errors))]
