"""Where to compute for a budget: a local search over masks, each judged by the pictures that it makes.

What reusing a layer costs in quality cannot be added up over layers and evaluations, since their errors are correlated
and feed back (measured: masks of the smallest summed sensitivities are worse than a fixed interval). So every mask is
judged in the closed loop, by the error of the final pictures of whole runs, without gradients. Moves change one by one
the evaluations that compute, and a part of the network at one more evaluation takes up what is left of the budget. The
order of the polynomial that forecasts follow is searched with the mask, since the best mask depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l2c.learning.branch_masks import guided_moves, renamed
from l2c.learning.placement import FILLS, Placement, along, widest_gap
from l2c.sampling.draw import draw
from l2c.schedule.cost import CostTable

ORDERS = (2, 1, 0)
"""Of polynomials that forecasts follow. The smoother a run is, the higher is the best one: in few steps with strong
guidance a copy, the order 0, has half the error of a parabola (measured on a flow at guidance 4.5)."""

BEGUN = ((3, 1.5), (3, 1.0), (2, 1.0))
"""Of placements to start from: evaluations at the beginning that all compute, and the density of the others; see
`along`."""


def spread(evaluations: int, budget: float, costs: CostTable, order: int = 2) -> list[Placement]:
    """Placements to start from: as many whole evaluations as a budget allows, spread over a run.

    What is left computes a part of one more evaluation: of one of the places where it is more than half of one,
    otherwise in the widest gap. The first placement is even. Others compute the first evaluations one after another, so
    that nothing is forecast before it has a direction and a curvature: on a flow in 28 steps that takes most of the
    error that reusing half of them adds (measured: .067 with everything, .092 evenly, .072 so), and more of it if
    the others are denser early, too (.080 after .093, on other pictures). Further ones end later, are denser at
    either end of the run, or have their evaluations in the middle of the steps of a solver with two evaluations per
    step, before any at their start, where forecasts cost least (measured on DPM-Solver singlestep).

    Args:
        evaluations: Of the run.
        budget: What a run may cost, in the unit of the costs.
        costs: Cost of every layer.
        order: See `Placement`.
    """
    room = _Room.of(evaluations, budget, costs)
    total, starts = room.total, list[Placement]()
    every, all_but_last = range(evaluations), range(max(1, evaluations - 1))
    for places in (
        along(all_but_last, total, 1.0),
        *(_begun(first, evaluations, total, power) for first, power in BEGUN if 2 * first <= total),
        _middles_first(evaluations, total, 1.25),
        along(every, total, 1.0),
        along(every, total, 1.25),
        _middles_first(evaluations, total, 1.0),
        along(every, total, 0.8),
    ):
        if len(places) == total:
            start = room.placement(places, order, total // 2)
            starts += [] if start in starts else [start]
    return starts


def near(
    compute: Tensor, budget: float, costs: CostTable, order: int = 2, count: int = 1, seed: int = 0
) -> list[Placement]:
    """Placements for a budget that have evaluations of a mask for another one left out, or more of them added.

    Which are left out is drawn at random, none beside another if possible, and so is which one computes in part: what
    does least harm cannot be told from gaps (measured: leaving out one of 15 gives errors from .014 to .028). More
    are added in the middle of the widest gaps.

    Args:
        compute: The mask, bool (evaluations, layers).
        budget: See `spread`.
        costs: See `spread`.
        order: See `Placement`.
        count: How many to draw.
        seed: Of what is drawn.
    """
    room = _Room.of(len(compute), budget, costs)
    known = [0, *(compute[1:].double().mean(1) > 0.5).nonzero().flatten().add(1).tolist()]
    found: list[Placement] = []
    for index in range(count):
        generator, places = draw(seed, "near", index), list(known)
        ranks = torch.randperm(len(known) - 1, generator=generator).add(1).tolist()
        left_out: list[int] = []
        for apart in (True, False):
            for rank in ranks:
                beside = apart and {rank - 1, rank + 1} & set(left_out)
                if len(known) - len(left_out) > room.total and rank not in left_out and not beside:
                    left_out.append(rank)
        places = [place for rank, place in enumerate(known) if rank not in left_out]
        while len(places) < room.total:
            places = sorted([*places, widest_gap(places, room.evaluations)])
        drawn = 1 + int(torch.rand(1, generator=generator) * (len(places) - 1))
        found.append(room.placement(places, order, drawn, "last"))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Room:
    """What a budget has room for.

    Attributes:
        evaluations: Of the run.
        count: Evaluations that may be whole.
        total: The same, with the partial one where that is more than half of a whole one.
        more: Whether there is a layer's worth left beside the whole ones.
    """

    evaluations: int
    count: int
    total: int
    more: bool

    @classmethod
    def of(cls, evaluations: int, budget: float, costs: CostTable) -> _Room:
        layers = costs.full - costs.rest
        spent = (budget - evaluations * costs.rest) / layers + 1e-6
        count = min(evaluations, max(1, int(spent)))
        left = (spent - count) * layers
        total = count + (count < evaluations and 2 * left > layers)
        return cls(evaluations, count, total, count < evaluations and left >= min(costs.layers))

    def placement(self, places: list[int], order: int, which: int, fill: str = "first") -> Placement:
        """So many places as evaluations that compute, one of them, or one more, in part where not all can be whole."""
        partial = None
        if self.total > self.count:
            partial = places.pop(which)
        elif self.more and self.total < self.evaluations:
            partial = widest_gap(places, self.evaluations)
        return Placement(tuple(places), partial, fill, order)


def _begun(first: int, evaluations: int, total: int, power: float) -> list[int]:
    """So many evaluations in a row from the beginning, and the others over what is left but the last."""
    rest = range(first - 1, max(first, evaluations - 1))
    return [*range(first - 1), *along(rest, total - first + 1, power)]


def _middles_first(evaluations: int, total: int, power: float) -> list[int]:
    """The first evaluation, then of the odd ones as many as there may be, and then of the even ones; see `_along`."""
    chosen = [0]
    for grid in (range(1, evaluations, 2), range(2, evaluations, 2)):
        chosen += along(grid, min(total - len(chosen), len(grid)), power)
    return sorted(chosen)


def moves(placement: Placement, evaluations: int) -> Iterator[Placement]:
    """Placements nearby: one evaluation is a little earlier or later, or the partial one computes other layers."""
    whole, partial = placement.whole, placement.partial
    for index in range(len(whole) - 1, 0, -1):
        for step in (-2, -1, 1, 2):
            yield from _moved(placement, index, whole[index] + step, evaluations)
    if placement.guided is not None:
        yield from guided_moves(placement, placement.guided, evaluations)
    if partial is None:
        return
    for fill in FILLS:
        if fill != placement.fill:
            yield replace(placement, fill=fill)
    for target in (partial - 2, partial - 1, partial + 1, partial + 2):
        if target in whole[1:]:
            changed = tuple(sorted({*whole, partial} - {target}))
            yield replace(
                placement, whole=changed, partial=target, guided=renamed(placement.guided, target, partial)
            )
        elif 0 < target < evaluations:
            yield replace(placement, partial=target)


def far_moves(placement: Placement, evaluations: int) -> Iterator[Placement]:
    """Placements in which one whole evaluation is anywhere else."""
    for index in range(len(placement.whole) - 1, 0, -1):
        for target in range(1, evaluations):
            if abs(target - placement.whole[index]) > 2:
                yield from _moved(placement, index, target, evaluations)


def _moved(placement: Placement, index: int, target: int, evaluations: int) -> Iterator[Placement]:
    """One whole evaluation at another place, if that is free; the partial one changes places with it."""
    whole, partial = placement.whole, placement.partial
    if 0 < target < evaluations and target not in whole:
        moved = tuple(sorted({*whole, target} - {whole[index]}))
        yield replace(
            placement,
            whole=moved,
            partial=whole[index] if target == partial else partial,
            guided=renamed(placement.guided, whole[index], target),
        )


def search(
    starts: Sequence[Placement],
    error_of: Callable[[Placement], float],
    evaluations: int,
    trials: int,
    seed: int,
    on_trial: Callable[[int, float], bool] | None = None,
    orders: Sequence[int] = ORDERS,
    fits: Callable[[Placement], bool] = lambda placement: True,
) -> list[Placement]:
    """Placements that a local search judges, the best one first.

    The first start is judged with every order, and the other starts with the best one. After that every move that makes
    the pictures better is taken at once; the next one is drawn at random, about as often from `moves` as from
    `far_moves`, and now and then another order.

    Args:
        starts: Where to begin: the best of them.
        error_of: Error of the pictures that a placement makes.
        evaluations: Of the run.
        trials: Placements to judge at most.
        seed: Of the order of the moves.
        on_trial: Called with the number of placements judged and the least error after each; True ends the search.
        orders: Of polynomials to try.
        fits: Whether a placement is within the budget; the others are not judged.
    """
    best, least = starts[0], error_of(starts[0])
    seen = {best: least}
    for trial in range(1, trials):
        if on_trial is not None and on_trial(trial, least):
            break
        ahead = _unseen((replace(starts[0], order=order) for order in orders), seen)[:1]
        if not ahead and trial < len(starts) + len(orders) - 1:
            ahead = _unseen((replace(start, order=best.order) for start in starts[1:]), seen)[:1]
        if not ahead:
            drawn = torch.rand(2, generator=draw(seed, "move", trial)).tolist()
            reordered = (replace(best, order=order) for order in orders)
            ways = [moves(best, evaluations), far_moves(best, evaluations), reordered]
            first = 0 if drawn[0] < 0.5 else 1 if drawn[0] < 0.92 else 2
            for way in (ways[first], *ways[:first], *ways[first + 1 :]):
                if found := [one for one in _unseen(way, seen) if fits(one)]:
                    ahead = [found[int(drawn[1] * len(found))]]
                    break
        if not ahead:
            break
        seen[ahead[0]] = error = error_of(ahead[0])
        if error < least:
            best, least = ahead[0], error
    return sorted(seen, key=seen.__getitem__)


def _unseen(placements: Iterable[Placement], seen: Container[Placement]) -> list[Placement]:
    return [placement for placement in placements if placement not in seen]
