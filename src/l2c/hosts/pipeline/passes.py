"""Passes of guidance with rows of their own in a pipeline: which rows or calls are which, and which of them run.

A pipeline makes both passes in one call of the transformer, one in each half of the rows, or in two calls that it
names `cond` and `uncond` (diffusers' `cache_context`). Which half is the conditional one is not looked up: the first
evaluation computes both halves, and what the pipeline then gives its scheduler is a combination of the two, in which
the conditional one counts for more. Stored values get the names of their passes there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from l2c.cache.branches import BranchPolicy
from l2c.cache.policy import CallCounts, Compute, compute_once
from l2c.cache.values import Value
from l2c.errors import ConfigError
from l2c.hosts.pipeline.policy import PipelinePolicy
from l2c.hosts.pipeline.rows import half, num_rows, order_of, sample_of, with_sample
from l2c.schedule.branches import BRANCHES, difference_column
from l2c.schedule.forecast import ReusePlan

COND, UNCOND = BRANCHES
Call = Callable[[tuple[str, ...], tuple[Any, ...], dict[str, Any]], Any]
"""Calls the transformer for the branches of its rows, with arguments."""


class PassesPolicy(PipelinePolicy, BranchPolicy):
    """The policy of a schedule whose passes of guidance have rows of their own, on a pipeline.

    Args:
        plan: What is forecast from which stored values, by column.
        compute: The mask, bool (evaluations, 2 * layers + 1).
        around: See `StaticPolicy`.
    """

    def __init__(
        self, plan: ReusePlan, compute: Tensor, around: Callable[[Compute], Value] = compute_once
    ) -> None:
        BranchPolicy.__init__(self, plan, compute, around)
        self._make_cells(self._num_layers)
        self.holds_back = False
        self._held: tuple[int, Sequence[tuple[int, tuple[Value, ...]]]] | None = None

    def first_column(self, branch: str) -> int:
        """See `PipelinePolicy.first_column`; calls that are of neither pass follow the conditional one."""
        return self._num_layers if branch.split(" ")[0] == UNCOND else 0

    def knows_difference(self, evaluation: int) -> bool:
        """Whether the difference of the passes can be continued at an evaluation."""
        column = difference_column(self._num_layers)
        terms = self.plan.get((evaluation, column))
        return terms is not None and all(self.store.holds(UNCOND, source, column) for source, _ in terms)

    def _keep(
        self, evaluation: int, branches: tuple[str, ...], taken: Sequence[tuple[int, tuple[Value, ...]]]
    ) -> None:
        if self.holds_back:
            self._held = evaluation, taken
        else:
            super()._keep(evaluation, branches, taken)

    def name(self, branches: tuple[str, ...]) -> None:
        """Says which branches the rows are of that a call held back has computed, of two it was taken for."""
        assert self._held is not None
        (evaluation, taken), self._held = self._held, None
        if len(branches) == 1:
            counts, self.counts = self.counts, CallCounts()
            self.counts.enter(evaluation, *branches)
            self.counts.computed.update({layer: times // 2 for layer, times in counts.computed.items()})
        super()._keep(evaluation, branches, taken)

    def clear(self) -> None:
        """See `ReusePolicy.clear`."""
        super().clear()
        self.holds_back, self._held = False, None


class Passes:
    """What runs of the passes of guidance at each evaluation of a transformer.

    Args:
        policy: Of the schedule.
    """

    def __init__(self, policy: PassesPolicy) -> None:
        self.policy = policy
        self.begin_run()

    def begin_run(self) -> None:
        """Begins a run, of which nothing is known."""
        self._order: tuple[str, ...] | None = None
        self._rows, self._evaluation = 0, -1
        self._both: Tensor | None = None
        self._cond: Any = None

    def make(
        self, evaluation: int, branch: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call of the transformer, or as much of it as runs.

        Args:
            evaluation: Where.
            branch: Name of the call.
            call: Makes it.
            args: Arguments that the pipeline calls with.
            kwargs: The same by name.

        Returns:
            What the transformer would return for all rows.
        """
        begins, self._evaluation = evaluation != self._evaluation, evaluation
        if begins:
            self._cond = None
        if branch in BRANCHES:
            return self._named(evaluation, branch, call, args, kwargs)
        if not begins:  # of neither pass, as guidance by skipped layers
            return call((branch,), args, kwargs)
        rows = num_rows(args, kwargs)
        if self._order is None:
            self._rows = rows
            if rows and rows % 2 == 0:
                return self._first(call, args, kwargs)
            self._order = (COND,)
        if rows != self._rows:  # guidance has set in or ended
            return call((f"{COND} ({rows} rows)",), args, kwargs)
        if len(self._order) == 1:
            return call(self._order, args, kwargs)
        return self._halves(evaluation, call, args, kwargs)

    def combined(self, prediction: Any) -> None:
        """Takes what the pipeline has made of the calls of an evaluation, which its scheduler is given.

        Raises:
            ConfigError: If it does not tell the halves of the first call apart.
        """
        if self._both is None:
            return
        both, self._both = self._both, None
        self.policy.holds_back = False
        self._order = order_of(both, prediction)
        self.policy.name(self._order)
        if len(self._order) == 2:
            self._note(self._evaluation, *self._in_order(*both.chunk(2)))

    def _first(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The first call, whose rows may be of two passes; of which they are, `combined` tells."""
        self.policy.holds_back = True
        output = call(BRANCHES, args, kwargs)
        self._both = sample_of(output)
        return output

    def _named(
        self, evaluation: int, branch: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call that the pipeline says to be one pass."""
        if branch == COND:
            self._cond = call((COND,), args, kwargs)
            return self._cond
        if self._cond is None:  # before the conditional one: nothing to derive it from
            return call((UNCOND,), args, kwargs)
        return self._unconditional(evaluation, self._cond, call, args, kwargs)

    def _unconditional(
        self, evaluation: int, cond: Any, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The unconditional pass, derived where it does not run."""
        policy, sample = self.policy, sample_of(cond)
        if policy.runs_unconditional(evaluation) or not policy.knows_difference(evaluation):
            output = call((UNCOND,), args, kwargs)
            self._note(evaluation, sample, sample_of(output))
            return output
        return with_sample(cond, sample - policy.difference(evaluation, None))

    def _halves(self, evaluation: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Both passes, in one call only where both compute the same layers."""
        order, rows, policy = self._order, self._rows, self.policy
        assert order is not None
        if policy.runs_unconditional(evaluation) and policy.alike(evaluation):
            output = call(order, args, kwargs)
            self._note(evaluation, *self._in_order(*sample_of(output).chunk(2)))
            return output
        (cond_args, cond_kwargs), (args, kwargs) = (
            half((args, kwargs), rows, order.index(branch)) for branch in BRANCHES
        )
        cond = call((COND,), cond_args, cond_kwargs)
        uncond = self._unconditional(evaluation, cond, call, args, kwargs)
        first, second = self._in_order(sample_of(cond), sample_of(uncond))
        return with_sample(cond, torch.cat([first, second]))

    def _in_order(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """From the order of the rows to conditional and unconditional one, and back."""
        return (first, second) if self._order == BRANCHES else (second, first)

    def _note(self, evaluation: int, cond: Tensor, uncond: Tensor) -> None:
        self.policy.difference(evaluation, cond - uncond)


def not_apart(where: str) -> ConfigError:
    """What to raise where the passes of guidance cannot be run apart."""
    return ConfigError(
        f"the schedule has rows of its own for each pass of guidance, which a pipeline cannot run apart {where}; learn "
        "one with branches=False (--no-branches)"
    )
