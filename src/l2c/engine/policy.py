"""Reuse policies of static runs: what is forecast as the plan says at an evaluation, or in every way there is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from l2c.cache.store import FeatureStore
from l2c.engine.graphs import Slots
from l2c.schedule.forecast import ReusePlan


class PlanPolicy:
    """What the plan says at one evaluation, and where values are stored.

    Args:
        plan: What is forecast from where.
        store: Stored values.
        branch: Call within the evaluation.
        evaluation: Its number.
        weights: Weights (layers, at least history) of the forecasts.
        history: How many values every forecast reads; 0 where all are plain copies.
        first: Column of the first layer, where the passes of guidance have columns of their own.
    """

    def __init__(
        self,
        plan: ReusePlan,
        store: FeatureStore | Slots,
        branch: str,
        evaluation: int,
        weights: Tensor,
        history: int,
        first: int = 0,
    ) -> None:
        self._plan, self._store, self._branch, self._first = plan, store, branch, first
        self._evaluation, self._weights, self._history_length = evaluation, weights, history

    def forecast(self, layer: int) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
        """See `EvaluationPolicy.forecast`."""
        layer += self._first
        terms = self._plan.get((self._evaluation, layer))
        if terms is None:
            return None
        values: list[Any] = [
            self._store.read(self._branch, source, layer, self._evaluation) for source, _ in terms
        ]
        if self._history_length == 0:
            return tuple(values), None
        for _ in range(self._history_length - len(values)):
            values.append(_again(values[-1]))  # counts 0, but keeps the kind of piece
        return tuple(values), self._weights[layer]

    def place(self, layer: int) -> Tensor | None:
        """See `EvaluationPolicy.place`."""
        if isinstance(self._store, FeatureStore):
            return None
        return self._store.place(self._branch, self._evaluation, self._first + layer)

    def take(self, layer: int, value: Tensor) -> None:
        """Keeps a copy of a value that was computed elsewhere, if it is read later."""
        if isinstance(self._store, FeatureStore):
            if (self._evaluation, self._first + layer) in self._store.reads:
                self.keep(layer, value.clone())
        elif (place := self.place(layer)) is not None:
            place.copy_(value)

    def keep(self, layer: int, value: Tensor) -> None:
        """See `EvaluationPolicy.keep`."""
        self._store.put(self._branch, self._evaluation, self._first + layer, value)


class PairPolicy:
    """Both passes of guidance in one call that computes everything; what is kept is kept for each by itself.

    Args:
        halves: The policies of the passes.
    """

    def __init__(self, *halves: PlanPolicy) -> None:
        self._halves = halves

    def forecast(self, layer: int) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
        """See `EvaluationPolicy.forecast`."""
        return None

    def place(self, layer: int) -> Tensor | None:
        """See `EvaluationPolicy.place`."""
        return None

    def keep(self, layer: int, value: Tensor) -> None:
        """See `EvaluationPolicy.keep`."""
        for half, part in zip(self._halves, value.chunk(2), strict=True):
            half.take(layer, part)


class TrialPolicy:
    """Reuses so many layers between computed ones, the first of which is layer `first`.

    Args:
        history: How many values every forecast reads; 0 where all are plain copies.
        weights: Weights (at least history) of every forecast.

    Attributes:
        reused: Layers between computed ones.
        first: The first computed layer.
    """

    def __init__(self, history: int, weights: Tensor) -> None:
        self._history_length, self._weights = history, weights
        self._value: Tensor | None = None
        self.reused = self.first = 0

    def forecast(self, layer: int) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
        """See `EvaluationPolicy.forecast`."""
        if self._value is None or (layer - self.first) % (self.reused + 1) == 0:
            return None
        if self._history_length == 0:
            return (_again(self._value),), None
        return tuple(_again(self._value) for _ in range(self._history_length)), _again(self._weights)

    def place(self, layer: int) -> Tensor | None:
        """See `EvaluationPolicy.place`."""
        return None

    def keep(self, layer: int, value: Tensor) -> None:
        """See `EvaluationPolicy.keep`."""
        self._value = value


def _again(value: Tensor) -> Tensor:
    """The same tensor as an object of its own; a compiler makes another variant where two inputs are one object."""
    return value.view(value.shape)
