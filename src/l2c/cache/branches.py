"""The policy of a schedule whose conditional and unconditional pass have rows of their own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from l2c.cache.clock import Clock
from l2c.cache.policy import Compute, ReusePolicy, StaticPolicy, compute_once
from l2c.cache.values import Value, combine_values, copy_value, join_values, split_value
from l2c.errors import CacheStateError
from l2c.schedule.branches import BRANCHES, branch_masks, column_of, difference_column
from l2c.schedule.forecast import ReusePlan, combine
from l2c.schedule.schedule import CacheSchedule

BOTH = "both"
"""Branch of a call that has the conditional pass in the first half of its rows and the unconditional one after it."""


class BranchPolicy(StaticPolicy):
    """A static policy that looks a layer up in the columns of the pass that is being made.

    Values of the passes are stored apart, also those of one call, so that the passes may go separate ways afterwards.

    Args:
        plan: What is forecast from which stored values, by column.
        compute: The mask, bool (evaluations, 2 * layers + 1).
        around: See `StaticPolicy`.
    """

    def __init__(
        self, plan: ReusePlan, compute: Tensor, around: Callable[[Compute], Value] = compute_once
    ) -> None:
        super().__init__(plan, len(compute), around)
        self._num_layers = compute.shape[1] // 2
        cond, uncond, runs = branch_masks(compute, self._num_layers)
        self._runs: list[bool] = runs.tolist()
        self._alike: list[bool] = (cond == uncond).all(1).tolist()

    def runs_unconditional(self, evaluation: int) -> bool:
        """Whether the unconditional pass runs at an evaluation, and is not derived."""
        return self._runs[evaluation]

    def alike(self, evaluation: int) -> bool:
        """Whether both passes compute the same layers, so that one call can make both."""
        return self._alike[evaluation]

    def difference(self, evaluation: int, fresh: Tensor | None) -> Tensor:
        """Conditional minus unconditional prediction, continued where it is not known.

        Args:
            evaluation: Where.
            fresh: The difference, if the unconditional pass has run.
        """
        column = difference_column(self._num_layers)
        if fresh is not None:
            self.store.put(BRANCHES[1], evaluation, column, fresh)
            return fresh
        terms = self.plan[evaluation, column]
        self.counts.derived += 1
        values: list[Tensor] = [
            self.store.read(BRANCHES[1], source, column, evaluation)  # type: ignore[misc]
            for source, _ in terms
        ]
        return combine(values, [weight for _, weight in terms])

    def computes(self, clock: Clock, layer: int) -> bool:
        """See `ReusePolicy.computes`."""
        return any((clock.evaluation, column) not in self.plan for _, column in self._columns(clock, layer))

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """See `ReusePolicy.output`."""
        evaluation, counts = clock.evaluation, self.counts
        columns = self._columns(clock, layer)
        if layer == 0:
            for branch, _ in columns:
                counts.enter(evaluation, branch)
            counts.peak_bytes = max(counts.peak_bytes, self.store.nbytes)
        if self.computes(clock, layer):
            fresh = self.around(compute)
            counts.computed[layer] += len(columns)
            for (branch, column), part in zip(columns, split_value(fresh, len(columns)), strict=True):
                if (evaluation, column) in self.store.reads:  # a part of its own keeps no others in memory
                    self.store.put(branch, evaluation, column, part if part is fresh else copy_value(part))
            return fresh
        counts.reused[layer] += len(columns)
        return join_values([self._forecast(branch, evaluation, column) for branch, column in columns])

    def _forecast(self, branch: str, evaluation: int, column: int) -> Value:
        terms = self.plan[evaluation, column]
        values = [self.store.read(branch, source, column, evaluation) for source, _ in terms]
        return combine_values(values, [weight for _, weight in terms])

    def _columns(self, clock: Clock, layer: int) -> list[tuple[str, int]]:
        """Passes of the call that is being made, with the columns of the layer."""
        branches = BRANCHES if clock.branch == BOTH else (clock.branch,)
        if branches[0] not in BRANCHES:
            raise CacheStateError(
                "the schedule has rows of its own for each pass of guidance, and the model was called without saying "
                "which it makes; wrap calls in `with cache.clock.in_branch('cond'):` or 'uncond', or sample with "
                "l2c.sample"
            )
        return [(branch, column_of(branch, layer, self._num_layers)) for branch in branches]


def policy_of(schedule: CacheSchedule, around: Callable[[Compute], Value] | None = None) -> StaticPolicy:
    """The policy of a schedule, on a host that has one call, or one call per pass.

    Args:
        schedule: What to compute and what to reuse.
        around: What computes a layer.
    """
    around = around or compute_once
    if schedule.has_branches:
        return BranchPolicy(schedule.plan, schedule.compute, around)
    return StaticPolicy(schedule.plan, schedule.num_evaluations, around)


def branches_of(policy: ReusePolicy | None) -> BranchPolicy | None:
    """The policy, if it gives passes rows of their own."""
    return policy if isinstance(policy, BranchPolicy) else None
