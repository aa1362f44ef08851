"""Placements in which the unconditional pass of guidance runs at some evaluations only, and is derived elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from l2c.learning.placement import Placement, along, widest_gap
from l2c.schedule.cost import CostTable

GUIDED_SHARES = (0.6, 0.5, 0.75)
"""Unconditional passes for each conditional one, of the placements that a search begins with."""


def spread_apart(evaluations: int, budget: float, costs: CostTable, order: int = 2) -> list[Placement]:
    """Placements to start from, with several shares of unconditional passes.

    These are spread evenly over the evaluations that compute, or over all but the first of them, since the difference
    of the passes has a direction from two values on. Arguments as for `spread`; none where the budget has no room.
    """
    starts: list[Placement] = []
    for grid in (range(max(1, evaluations - 1)), range(evaluations)):
        fitting: list[Placement] = []
        for count in range(2, len(grid) + 1):
            whole = tuple(along(grid, count, 1.0))
            for number in range(count - 1, 0, -1):
                made = Placement(whole, None, "first", order, _guided_places(whole, number))
                left = budget - costs.of(made.mask(evaluations, budget, costs))
                if left >= 0:
                    if left < costs.full / 2:  # no other pass fits
                        fitting.append(_filled(made, evaluations, left, costs))
                    break
        for share in GUIDED_SHARES if fitting else ():
            starts.append(min(fitting, key=lambda one: abs(_share(one) - share)))
    return list(dict.fromkeys(starts))


def _share(placement: Placement) -> float:
    assert placement.guided is not None
    return len(placement.guided) / len(placement.whole)


def _guided_places(whole: tuple[int, ...], number: int) -> tuple[int, ...]:
    """So many of the evaluations that compute: the first, and others spread from the second to the last."""
    return whole[:1] + tuple(whole[place] for place in along(range(1, len(whole)), number - 1, 1.0))


def _filled(placement: Placement, evaluations: int, left: float, costs: CostTable) -> Placement:
    """The placement with a part of one more conditional pass, where what is left has room for a layer of it."""
    if len(placement.whole) == evaluations or left < min(costs.layers) / 2:
        return placement
    return replace(placement, partial=widest_gap(placement.whole, evaluations))


def guided_moves(placement: Placement, guided: tuple[int, ...], evaluations: int) -> Iterator[Placement]:
    """The unconditional pass computes elsewhere, is forecast and not derived, or gives way to the conditional one."""
    yield replace(placement, derived=not placement.derived)
    others = [at for at in placement.whole if at not in guided]
    for at in guided[1:]:
        for other in others:
            yield replace(placement, guided=renamed(guided, at, other))
    for other in others:  # instead of the conditional pass there, one more unconditional pass
        left = tuple(at for at in placement.whole if at != other)
        for at in others:
            if at != other:
                yield replace(placement, whole=left, guided=tuple(sorted((*guided, at))))
    for at in guided[1:]:  # the other way round
        for place in range(1, evaluations):
            if place not in (*placement.whole, placement.partial):
                whole = tuple(sorted((*placement.whole, place)))
                yield replace(placement, whole=whole, guided=tuple(one for one in guided if one != at))


def renamed(guided: tuple[int, ...] | None, old: int, new: int) -> tuple[int, ...] | None:
    """Evaluations with an unconditional pass, one of them elsewhere if it is among them."""
    if guided is None or old not in guided:
        return guided
    return tuple(sorted(new if at == old else at for at in guided))
