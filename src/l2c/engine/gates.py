"""Gates of static runs: what stands in as the plan says at an evaluation, or in every way there is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from l2c.cache.predictors import StandInPlan
from l2c.cache.store import FeatureStore
from l2c.engine.graphs import Slots


class PlanGate:
    """What the plan says at one evaluation, and where values are stored.

    Args:
        plan: What stands in where.
        store: Stored values.
        branch: Call within the evaluation.
        evaluation: Its number.
        weights: Weights (layers, at least depth) of the stand-ins.
        depth: How many values every stand-in reads; 0 where all are plain copies.
    """

    def __init__(
        self,
        plan: StandInPlan,
        store: FeatureStore | Slots,
        branch: str,
        evaluation: int,
        weights: Tensor,
        depth: int,
    ) -> None:
        self._plan, self._store, self._branch = plan, store, branch
        self._evaluation, self._weights, self._depth = evaluation, weights, depth

    def stand_in(self, layer: int) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
        """See `Gate.stand_in`."""
        terms = self._plan.get((self._evaluation, layer))
        if terms is None:
            return None
        values: list[Any] = [
            self._store.read(self._branch, source, layer, self._evaluation) for source, _ in terms
        ]
        if self._depth == 0:
            return tuple(values), None
        for _ in range(self._depth - len(values)):
            values.append(_again(values[-1]))  # counts 0, but keeps the kind of piece
        return tuple(values), self._weights[layer]

    def place(self, layer: int) -> Tensor | None:
        """See `Gate.place`."""
        if isinstance(self._store, FeatureStore):
            return None
        return self._store.place(self._branch, self._evaluation, layer)

    def keep(self, layer: int, value: Tensor) -> None:
        """See `Gate.keep`."""
        self._store.put(self._branch, self._evaluation, layer, value)


class RehearsalGate:
    """Reuses so many layers between computed ones, the first of which is layer `first`.

    Args:
        depth: How many values every stand-in reads; 0 where all are plain copies.
        weights: Weights (at least depth) of every stand-in.

    Attributes:
        reused: Layers between computed ones.
        first: The first computed layer.
    """

    def __init__(self, depth: int, weights: Tensor) -> None:
        self._depth, self._weights = depth, weights
        self._value: Tensor | None = None
        self.reused = self.first = 0

    def stand_in(self, layer: int) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
        """See `Gate.stand_in`."""
        if self._value is None or (layer - self.first) % (self.reused + 1) == 0:
            return None
        if self._depth == 0:
            return (_again(self._value),), None
        return tuple(_again(self._value) for _ in range(self._depth)), _again(self._weights)

    def place(self, layer: int) -> Tensor | None:
        """See `Gate.place`."""
        return None

    def keep(self, layer: int, value: Tensor) -> None:
        """See `Gate.keep`."""
        self._value = value


def _again(value: Tensor) -> Tensor:
    """The same tensor as an object of its own; a compiler makes another variant where two inputs are one object."""
    return value.view(value.shape)
