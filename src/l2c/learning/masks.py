"""Where to compute for a budget: a local search over masks, each judged by the pictures that it makes.

What reusing a layer costs in quality cannot be added up over layers and evaluations, since their errors are correlated
and feed back (measured: masks of the smallest summed sensitivities are worse than a fixed interval). So every mask is
judged in the closed loop, by the error of the final pictures of whole runs, without gradients. Moves shift, one by one,
the evaluations that compute, and a part of the network at one more evaluation takes up what is left of the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l2c.cache.cost import CostTable
from l2c.learning.task import draw

FILLS = ("first", "last", "middle")


@dataclass(frozen=True)
class Placement:
    """A mask by its whole and its partial evaluations.

    Attributes:
        whole: Evaluations that compute every layer, rising; the first is 0.
        partial: Evaluation that computes some layers; None where nothing is left for one.
        fill: Which layers those are: the `first` ones, the `last`, or those in the `middle`.
    """

    whole: tuple[int, ...]
    partial: int | None
    fill: str = "first"

    def mask(self, evaluations: int, budget: float, costs: CostTable) -> Tensor:
        """Bool (evaluations, layers); the partial evaluation computes as many layers as the budget allows."""
        compute = torch.zeros(evaluations, len(costs.layers), dtype=torch.bool)
        compute[list(self.whole)] = True
        if self.partial is not None:
            for layer in _fill_order(self.fill, len(costs.layers)):
                compute[self.partial, layer] = True
                compute[self.partial, layer] = costs.of(compute) <= budget
        return compute


def _fill_order(fill: str, count: int) -> list[int]:
    if fill == "middle":
        return sorted(range(count), key=lambda layer: abs(layer - (count - 1) / 2))
    return list(range(count)) if fill == "first" else list(reversed(range(count)))


def spread(evaluations: int, budget: float, costs: CostTable) -> list[Placement]:
    """Placements to start from: whole evaluations evenly over a run, as many as a budget allows.

    What is left computes a part of one more evaluation: of one of the even places where it is more than half of one,
    otherwise in the widest gap. The placements differ in how late the last one is, and in a shift of all but the first
    by one. The last placement has its evaluations in the middle of the steps of a solver with two evaluations per step,
    before any at their start, where stand-ins cost least (measured on DPM-Solver singlestep).
    """
    layers = costs.full - costs.rest
    spent = (budget - evaluations * costs.rest) / layers + 1e-6
    if spent >= evaluations:
        return [Placement(tuple(range(evaluations)), None)]
    count = max(1, int(spent))
    left = (spent - count) * layers
    fits = left >= min(costs.layers)
    total = count + (2 * left > layers)
    starts: list[Placement] = []
    candidates: list[list[int]] = []
    for last, shift in (
        (evaluations - 2, 0),
        (evaluations - 1, 0),
        (evaluations - 2, -1),
        (evaluations - 2, 1),
    ):
        even = [round(index * last / max(1, total - 1)) for index in range(total)]
        candidates.append(sorted({0, *(place + shift for place in even[1:])}))
    candidates.append(_middles_first(evaluations, total))
    for places in candidates:
        if len(places) < total or places[0] < 0 or places[-1] >= evaluations:
            continue
        partial = None
        if total > count:
            partial = places.pop(total // 2)
        elif fits and total < evaluations:
            partial = _widest_gap(places, evaluations)
        start = Placement(tuple(places), partial)
        starts += [] if start in starts else [start]
    return starts or [Placement(tuple(range(count)), None)]


def _middles_first(evaluations: int, total: int) -> list[int]:
    """The first evaluation, then of the odd ones evenly as many as there may be, and then of the even ones."""
    odd, even = list(range(1, evaluations, 2)), list(range(2, evaluations, 2))
    chosen = [0]
    for grid in (odd, even):
        count = min(total - len(chosen), len(grid))
        chosen += [grid[round(index * (len(grid) - 1) / max(1, count - 1))] for index in range(count)]
    return sorted(chosen)


def _widest_gap(whole: Sequence[int], evaluations: int) -> int:
    """The middle of the longest row of evaluations that compute nothing."""
    gaps = [after - before for before, after in zip(whole, [*whole[1:], evaluations], strict=True)]
    widest = max(range(len(gaps)), key=lambda index: gaps[index])
    return whole[widest] + gaps[widest] // 2


def moves(placement: Placement, evaluations: int) -> Iterator[Placement]:
    """Placements that differ in where one evaluation is, or in which layers the partial one computes."""
    whole, partial = placement.whole, placement.partial
    for index in range(len(whole) - 1, 0, -1):
        for target in (whole[index] - 1, whole[index] + 1):
            if 0 < target < evaluations and target not in whole:
                moved = tuple(sorted({*whole, target} - {whole[index]}))
                yield replace(placement, whole=moved, partial=whole[index] if target == partial else partial)
    if partial is None:
        return
    for fill in FILLS:
        if fill != placement.fill:
            yield replace(placement, fill=fill)
    for target in (partial - 2, partial - 1, partial + 1, partial + 2):
        if target in whole[1:]:
            yield replace(placement, whole=tuple(sorted({*whole, partial} - {target})), partial=target)
        elif 0 < target < evaluations:
            yield replace(placement, partial=target)


def search(
    starts: Sequence[Placement],
    mask_of: Callable[[Placement], Tensor],
    error_of: Callable[[Tensor], float],
    evaluations: int,
    trials: int,
    seed: int,
    on_trial: Callable[[int, float], bool] | None = None,
) -> Placement:
    """The best placement that a local search finds.

    Every move that makes the pictures better is taken at once. Of the possible moves the next is drawn at random.

    Args:
        starts: Where to begin: the best of them.
        mask_of: Mask of a placement.
        error_of: Error of the pictures that a mask makes.
        evaluations: Of the run.
        trials: Masks to judge at most.
        seed: Of the order of the moves.
        on_trial: Called with the number of masks judged and the least error after each; True ends the search.
    """
    best, least = starts[0], error_of(mask_of(starts[0]))
    seen = {best}
    for trial in range(1, trials):
        if on_trial is not None and on_trial(trial, least):
            break
        ahead = list(starts[trial : trial + 1]) or [
            placement for placement in moves(best, evaluations) if placement not in seen
        ]
        if not ahead:
            break
        chosen = ahead[int(torch.randint(len(ahead), (), generator=draw(seed, "move", trial)))]
        seen.add(chosen)
        error = error_of(mask_of(chosen))
        if error < least:
            best, least = chosen, error
    return best
