"""Gates: per layer and evaluation, whether it is computed, stood in for, or mixed.

Two sources of gates share the cached forward. A `CacheSchedule` gives hard gates, resolved beforehand into a stand-in
plan, for sampling. `SoftGates` give a tensor in [0, 1] per (evaluation, layer), for learning. Soft gates at 0 and 1
do what hard ones do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from l2c.cache.clock import Clock
from l2c.cache.predictors import Predictor, StandInPlan
from l2c.cache.store import FeatureStore, last_reads
from l2c.cache.values import Value, combine_values, mix_values
from l2c.errors import CacheStateError

Compute = Callable[[], Any]
"""Runs a layer; returns its `Value`."""


class LayerGate(Protocol):
    """Decides for one layer between computing and standing in."""

    def output(self, compute: Compute) -> Value:
        """Output of the layer now; calls `compute` only if it must."""
        ...

    def computes(self) -> bool:
        """Whether `output` would call `compute`."""
        ...


class Gating(Protocol):
    """Decides, per layer and evaluation, between computing and standing in; owns the stored features."""

    @property
    def num_evaluations(self) -> int:
        """How many evaluations it covers."""
        ...

    def layer_gate(self, clock: Clock, layer: int) -> LayerGate:
        """The gate of a layer at whatever evaluation and branch the clock is."""
        ...

    def clear(self) -> None:
        """Forgets all features."""
        ...


class _Asked(Protocol):
    def output(self, clock: Clock, layer: int, compute: Compute) -> Value: ...

    def computes(self, clock: Clock, layer: int) -> bool: ...


@dataclass
class AskedGate:
    """The gate of a layer in a `Gating` that looks everything up when it is asked.

    Attributes:
        gating: Has `output` and `computes` as a `LayerGate` does, of a clock and the index of a layer.
        clock: Which evaluation and branch it is.
        layer: Index of the layer.
    """

    gating: _Asked
    clock: Clock
    layer: int

    def output(self, compute: Compute) -> Value:
        """See `LayerGate.output`."""
        return self.gating.output(self.clock, self.layer, compute)

    def computes(self) -> bool:
        """See `LayerGate.computes`."""
        return self.gating.computes(self.clock, self.layer)


class HardGates:
    """Gates of a static schedule: a reused layer is not called."""

    def __init__(self, plan: StandInPlan, num_evaluations: int) -> None:
        self.num_evaluations = num_evaluations
        self.plan = plan
        self.store = FeatureStore(last_reads(plan))

    def layer_gate(self, clock: Clock, layer: int) -> LayerGate:
        """See `Gating.layer_gate`."""
        return AskedGate(self, clock, layer)

    def computes(self, clock: Clock, layer: int) -> bool:
        """Whether a layer is computed now."""
        return (clock.evaluation, layer) not in self.plan

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """Output of a layer now; calls `compute` only if it must."""
        evaluation, branch = clock.evaluation, clock.branch
        terms = self.plan.get((evaluation, layer))
        if terms is None:
            fresh: Value = compute()
            self.store.put(branch, evaluation, layer, fresh)
            return fresh
        values = [self.store.read(branch, source, layer, evaluation) for source, _ in terms]
        return combine_values(values, [weight for _, weight in terms])

    def clear(self) -> None:
        """See `Gating.clear`."""
        self.store.clear()


@dataclass
class SoftGates:
    """Gates of a router that is being learned, differentiable in the gates.

    A layer's output is `g * fresh + (1 - g) * stand_in`, and its history moves on by the same share: after a
    gate of 1 it starts with the fresh value, after a gate of 0 it is what it was. `True` stands for 1 and
    computes without mixing; `False` for 0, and the layer is not called.

    Attributes:
        gates: Function (evaluation, layer) -> bool or tensor () in [0, 1].
        predictor: Stand-in for what is not computed; the first `predictor.depth` evaluations must have gate
            True where a tensor gate follows.
        log_snrs: Half log-SNR of every evaluation.

    Source: the mix is equation 6 of arXiv 2406.01733; the moving history is ours.
    """

    gates: Callable[[int, int], bool | Tensor]
    predictor: Predictor
    log_snrs: tuple[float, ...]
    _history: dict[tuple[str, int], tuple[list[Value], list[float | Tensor]]] = field(default_factory=dict)

    @property
    def num_evaluations(self) -> int:
        """See `Gating.num_evaluations`."""
        return len(self.log_snrs)

    def layer_gate(self, clock: Clock, layer: int) -> LayerGate:
        """See `Gating.layer_gate`."""
        return AskedGate(self, clock, layer)

    def computes(self, clock: Clock, layer: int) -> bool:
        """Whether a layer's gate is open at all now."""
        return self.gates(clock.evaluation, layer) is not False

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """Output of a layer now; calls `compute` only if it must."""
        now = self.log_snrs[clock.evaluation]
        gate = self.gates(clock.evaluation, layer)
        values, times = self._history.get((clock.branch, layer), ([], []))
        if gate is True:
            fresh: Value = compute()
            depth = self.predictor.depth
            self._history[clock.branch, layer] = ([fresh, *values][:depth], [now, *times][:depth])
            return fresh
        stand_in = self._stand_in(clock.evaluation, layer, values, times)
        if gate is False:
            return stand_in
        if len(values) < self.predictor.depth:
            raise CacheStateError(
                f"layer {layer} has a soft gate at evaluation {clock.evaluation} after {len(values)} computed "
                f"values, but the {self.predictor.name} predictor reads {self.predictor.depth}; "
                "let the evaluations before compute"
            )
        fresh = compute()
        output = mix_values(gate, fresh, stand_in)
        self._history[clock.branch, layer] = (
            [mix_values(gate, new, old) for new, old in zip([fresh, *values], values, strict=False)],
            [gate * new + (1 - gate) * old for new, old in zip([now, *times], times, strict=False)],
        )
        return output

    def _stand_in(
        self, evaluation: int, layer: int, values: list[Value], times: list[float | Tensor]
    ) -> Value:
        if not values:
            raise CacheStateError(
                f"layer {layer} is reused at evaluation {evaluation} before it was ever computed"
            )
        weights = self.predictor.weights_at(evaluation, layer, self.log_snrs[evaluation], times)
        return combine_values(values, weights)

    def clear(self) -> None:
        """See `Gating.clear`."""
        self._history.clear()
