"""Reuse policies: per layer and evaluation, whether it is computed, forecast, or mixed.

Two of them share the cached forward. `StaticPolicy` does what a schedule has resolved beforehand into a reuse plan, for
sampling. `MixingPolicy` has a share in [0, 1] per (evaluation, layer), for learning; at 0 and 1 it does what a static
policy does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from l2c.cache.clock import Clock
from l2c.cache.store import FeatureStore, last_reads
from l2c.cache.values import Value, combine_values, mix_values
from l2c.errors import CacheStateError
from l2c.schedule.forecast import Predictor, ReusePlan

Compute = Callable[[], Any]
"""Runs a layer; returns its `Value`."""


class LayerPolicy(Protocol):
    """Decides for one layer between computing and forecasting."""

    def output(self, compute: Compute) -> Value:
        """Output of the layer now; calls `compute` only if it must."""
        ...

    def computes(self) -> bool:
        """Whether `output` would call `compute`."""
        ...


class ReusePolicy:
    """Decides, per layer and evaluation, between computing and forecasting; owns the stored features.

    Attributes:
        num_evaluations: How many evaluations it covers.
    """

    num_evaluations: int

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """Output of a layer now; calls `compute` only if it must."""
        raise NotImplementedError

    def computes(self, clock: Clock, layer: int) -> bool:
        """Whether `output` would call `compute`."""
        return True

    def layer_policy(self, clock: Clock, layer: int) -> LayerPolicy:
        """The policy of one layer, at whatever evaluation and branch the clock is."""
        return BoundPolicy(self, clock, layer)

    def evaluate(self, clock: Clock, call: Callable[[], Any]) -> Any:
        """One call of the whole model; a policy that compares calls makes more than one of it."""
        return call()

    def begin_run(self) -> None:
        """Begins a run, from nothing."""
        self.clear()

    def clear(self) -> None:
        """Forgets all features."""


@dataclass
class BoundPolicy:
    """The policy of a layer that looks everything up when it is asked.

    Attributes:
        policy: Of all layers.
        clock: Which evaluation and branch it is.
        layer: Index of the layer.
    """

    policy: ReusePolicy
    clock: Clock
    layer: int

    def output(self, compute: Compute) -> Value:
        """See `LayerPolicy.output`."""
        place = self.clock.place(self.layer)
        if place == self.clock.branch:
            return self.policy.output(self.clock, self.layer, compute)
        with self.clock.in_branch(place):
            return self.policy.output(self.clock, self.layer, compute)

    def computes(self) -> bool:
        """See `LayerPolicy.computes`."""
        return self.policy.computes(self.clock, self.layer)


def compute_once(compute: Compute) -> Value:
    """Computes a layer."""
    value: Value = compute()
    return value


@dataclass
class CallCounts:
    """What the calls of one model did in a run.

    Attributes:
        calls: Calls of the model, by branch.
        evaluations: Evaluations at which it was called, in order.
        computed: How often each layer was computed, by index.
        reused: How often each layer was reused.
        unplanned: How often one was computed although the schedule reuses it, because its branch had no history:
            it began later than the run, or changed shape in it.
        derived: Unconditional passes that were not made, but derived from the conditional ones.
        peak_bytes: Most that the store held after a call.
    """

    calls: Counter[str] = field(default_factory=Counter)
    evaluations: list[int] = field(default_factory=list)
    computed: Counter[int] = field(default_factory=Counter)
    reused: Counter[int] = field(default_factory=Counter)
    unplanned: int = 0
    derived: int = 0
    peak_bytes: int = 0

    def enter(self, evaluation: int, branch: str) -> None:
        """Counts a call of the model."""
        self.calls[branch] += 1
        if self.evaluations[-1:] != [evaluation]:
            self.evaluations.append(evaluation)


class StaticPolicy(ReusePolicy):
    """The policy of a schedule: a reused layer is not called.

    Args:
        plan: What is forecast from which stored values.
        num_evaluations: Of the run.
        around: What computes a layer; learning computes it again in the backward pass.

    Attributes:
        plan: As given, or by `use`.
        store: Computed values that are read later.
        counts: What was done in the last run.
    """

    def __init__(
        self, plan: ReusePlan, num_evaluations: int, around: Callable[[Compute], Value] = compute_once
    ) -> None:
        self.num_evaluations, self.around = num_evaluations, around
        self.plan = plan
        self.store = FeatureStore(last_reads(plan))
        self.counts = CallCounts()

    def begin_run(self) -> None:
        """Forgets features and counts."""
        self.clear()
        self.counts = CallCounts()

    def use(self, plan: ReusePlan) -> None:
        """Takes another plan, between runs."""
        self.plan = plan
        self.store.reads = last_reads(plan)

    def computes(self, clock: Clock, layer: int) -> bool:
        """Whether a layer is computed now."""
        return (clock.evaluation, layer) not in self.plan

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """See `ReusePolicy.output`."""
        evaluation, branch, counts = clock.evaluation, clock.branch, self.counts
        if layer == 0:
            counts.enter(evaluation, branch)
            counts.peak_bytes = max(counts.peak_bytes, self.store.nbytes)
        terms = self.plan.get((evaluation, layer))
        if terms is None:
            fresh = self.around(compute)
            self.store.put(branch, evaluation, layer, fresh)
            counts.computed[layer] += 1
            return fresh
        counts.reused[layer] += 1
        values = [self.store.read(branch, source, layer, evaluation) for source, _ in terms]
        return combine_values(values, [weight for _, weight in terms])

    def clear(self) -> None:
        """See `ReusePolicy.clear`."""
        self.store.clear()


class MixingPolicy(ReusePolicy):
    """Mixes fresh and forecast outputs by the scores of a router that is being learned, differentiable in them.

    A layer's output is `s * fresh + (1 - s) * forecast`, and its history moves on by the same share: after a
    share of 1 it starts with the fresh value, after a share of 0 it is what it was. `True` stands for 1 and
    computes without mixing; `False` for 0, and the layer is not called.

    Attributes:
        shares: Function (evaluation, layer) -> bool or tensor () in [0, 1].
        predictor: Forecast for what is not computed; the first `predictor.history` evaluations must have the
            share True where a tensor follows.
        log_snrs: Half log-SNR of every evaluation.

    Source: the mix is equation 6 of arXiv 2406.01733; the moving history is ours.
    """

    def __init__(
        self,
        shares: Callable[[int, int], bool | Tensor],
        predictor: Predictor,
        log_snrs: tuple[float, ...],
    ) -> None:
        self.num_evaluations = len(log_snrs)
        self.shares, self.predictor, self.log_snrs = shares, predictor, log_snrs
        self._history: dict[tuple[str, int], tuple[list[Value], list[float | Tensor]]] = {}

    def computes(self, clock: Clock, layer: int) -> bool:
        """Whether a layer is computed at all now."""
        return self.shares(clock.evaluation, layer) is not False

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """Output of a layer now; calls `compute` only if it must."""
        now = self.log_snrs[clock.evaluation]
        share = self.shares(clock.evaluation, layer)
        values, times = self._history.get((clock.branch, layer), ([], []))
        if share is True:
            fresh: Value = compute()
            length = self.predictor.history
            self._history[clock.branch, layer] = ([fresh, *values][:length], [now, *times][:length])
            return fresh
        forecast = self._forecast(clock.evaluation, layer, values, times)
        if share is False:
            return forecast
        if len(values) < self.predictor.history:
            raise CacheStateError(
                f"layer {layer} is mixed at evaluation {clock.evaluation} after {len(values)} computed "
                f"values, but the {self.predictor.name} predictor reads {self.predictor.history}; "
                "let the evaluations before compute"
            )
        fresh = compute()
        output = mix_values(share, fresh, forecast)
        self._history[clock.branch, layer] = (
            [mix_values(share, new, old) for new, old in zip([fresh, *values], values, strict=False)],
            [share * new + (1 - share) * old for new, old in zip([now, *times], times, strict=False)],
        )
        return output

    def _forecast(
        self, evaluation: int, layer: int, values: list[Value], times: list[float | Tensor]
    ) -> Value:
        if not values:
            raise CacheStateError(
                f"layer {layer} is reused at evaluation {evaluation} before it was ever computed"
            )
        weights = self.predictor.weights_at(evaluation, layer, self.log_snrs[evaluation], times)
        return combine_values(values, weights)

    def clear(self) -> None:
        """See `ReusePolicy.clear`."""
        self._history.clear()
