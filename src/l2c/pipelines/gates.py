"""Hard gates for pipelines, whose calls come and go: a call without a history computes what it cannot reuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from l2c.cache.clock import Clock
from l2c.cache.predictors import StandInPlan
from l2c.cache.runtime import Compute, HardGates
from l2c.cache.values import Value, combine_values


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
        peak_bytes: Most that the store held after a call.
    """

    calls: Counter[str] = field(default_factory=Counter)
    evaluations: list[int] = field(default_factory=list)
    computed: Counter[int] = field(default_factory=Counter)
    reused: Counter[int] = field(default_factory=Counter)
    unplanned: int = 0
    peak_bytes: int = 0


def _call(compute: Compute) -> Value:
    value: Value = compute()
    return value


class PipelineGates(HardGates):
    """Hard gates that compute whatever a branch has no history for, and count.

    So a run may begin in the middle, a second transformer may take over, guidance may set in or out, and the batch
    may change: more is computed then, never something else reused. A layer that is called several times in a
    call, as with chunked feed-forward, has a history for each.

    Attributes:
        counts: What was done in the last run.
        around: What computes a layer; learning computes it again in the backward pass.
    """

    def __init__(self, plan: StandInPlan, num_evaluations: int) -> None:
        super().__init__(plan, num_evaluations)
        self.counts = CallCounts()
        self.around: Callable[[Compute], Value] = _call
        self._times: Counter[int] = Counter()

    def begin_run(self) -> None:
        """Forgets features and counts."""
        self.clear()
        self.counts = CallCounts()

    def begin_call(self, evaluation: int, branch: str) -> None:
        """Notes that the model is called."""
        self._times.clear()
        self.counts.calls[branch] += 1
        if self.counts.evaluations[-1:] != [evaluation]:
            self.counts.evaluations.append(evaluation)

    def end_call(self) -> None:
        """Notes that the call is over."""
        self.counts.peak_bytes = max(self.counts.peak_bytes, self.store.nbytes)

    def computes(self, clock: Clock, layer: int) -> bool:
        """See `Gating.computes`."""
        return not self._reusable(clock.branch, clock.evaluation, layer)

    def _reusable(self, branch: str, evaluation: int, layer: int) -> bool:
        terms = self.plan.get((evaluation, layer))
        return terms is not None and all(self.store.holds(branch, source, layer) for source, _ in terms)

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """See `Gating.output`."""
        evaluation, branch = clock.evaluation, clock.branch
        if self._times[layer]:
            branch = f"{branch}#{self._times[layer]}"
        self._times[layer] += 1
        if self._reusable(branch, evaluation, layer):
            terms = self.plan[evaluation, layer]
            self.counts.reused[layer] += 1
            values = [self.store.read(branch, source, layer, evaluation) for source, _ in terms]
            return combine_values(values, [weight for _, weight in terms])
        self.counts.computed[layer] += 1
        self.counts.unplanned += (evaluation, layer) in self.plan
        fresh: Value = self.around(compute)
        self.store.put(branch, evaluation, layer, fresh)
        return fresh
