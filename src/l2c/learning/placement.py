"""A mask by the evaluations that compute, as the search for one sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.schedule.branches import join_branches
from l2c.schedule.cost import CostTable

FILLS = ("first", "last", "middle")


@dataclass(frozen=True)
class Placement:
    """A mask by its whole and its partial evaluations, and how to continue what is stored.

    Attributes:
        whole: Evaluations that compute every layer, rising; the first is 0.
        partial: Evaluation that computes some layers; None where nothing is left for one.
        fill: Which layers those are: the `first` ones, the `last`, or those in the `middle`.
        order: Of the polynomial through stored values that forecasts follow before they are learned.
        guided: Those of the whole evaluations at which the unconditional pass computes, rising; the first is 0. None
            where both passes of guidance do the same.
        derived: Whether it is derived elsewhere; otherwise its layers are forecast.
    """

    whole: tuple[int, ...]
    partial: int | None
    fill: str = "first"
    order: int = 2
    guided: tuple[int, ...] | None = None
    derived: bool = True

    def mask(self, evaluations: int, budget: float, costs: CostTable) -> Tensor:
        """Bool (evaluations, layers), or with rows for each pass of guidance.

        The partial evaluation computes as many layers as the budget allows, of the conditional pass alone where the
        passes have rows of their own.
        """
        compute = torch.zeros(evaluations, len(costs.layers), dtype=torch.bool)
        compute[list(self.whole)] = True
        if self.guided is not None:
            guided = torch.zeros(evaluations, dtype=torch.bool)
            guided[list(self.guided)] = True
            runs = guided if self.derived else torch.ones_like(guided)
            compute = join_branches(compute, compute & guided[:, None], runs)
        if self.partial is not None:
            for layer in _fill_order(self.fill, len(costs.layers)):
                compute[self.partial, layer] = True
                compute[self.partial, layer] = costs.of(compute) <= budget
        return compute


def _fill_order(fill: str, count: int) -> list[int]:
    if fill == "middle":
        return sorted(range(count), key=lambda layer: abs(layer - (count - 1) / 2))
    return list(range(count)) if fill == "first" else list(reversed(range(count)))


def along(grid: Sequence[int], count: int, power: float) -> list[int]:
    """So many places of a grid, if it has them, from its first to its last; a power above 1 is denser at first."""
    if count > len(grid):
        return []
    places: list[int] = []
    for index in range(count):
        place = round((len(grid) - 1) * (index / max(1, count - 1)) ** power)
        places.append(max(place, places[-1] + 1) if places else place)
    room = range(len(grid) - count, len(grid))
    return [grid[min(place, most)] for place, most in zip(places, room, strict=True)]


def widest_gap(whole: Sequence[int], evaluations: int) -> int:
    """The middle of the longest row of evaluations that compute nothing."""
    gaps = [after - before for before, after in zip(whole, [*whole[1:], evaluations], strict=True)]
    widest = max(range(len(gaps)), key=lambda index: gaps[index])
    return whole[widest] + gaps[widest] // 2
