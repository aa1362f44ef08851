"""A run as the engine sees it: everything but the noise, the labels and the guidance scale."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from l2c.schedule.forecast import ReusePlan

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(conditional prediction, unconditional prediction, scale ()) -> guided prediction."""


@dataclass(frozen=True, eq=False)
class Job:
    """A run as the engine sees it.

    Attributes:
        timesteps: What the network is given at every evaluation.
        solver: Table (N + 1, scales (N + 1)) of the solver's weights; see `l2c.sampling.linear.LinearSolver`.
        forecasts: What is reused from where; empty computes everything.
        null_class: Label for no class, of guided runs; None without guidance.
        split: Whether the two halves of guidance are calls of their own.
        passes: What each evaluation runs where the passes of guidance have rows of their own, see `passes_of`; then
            forecasts are by column.
        differences: With `passes`, weights (N, N) that continue the difference of the passes where one is derived.
        num_layers: With `passes`, layers of the model.
        combine: Guided prediction from both halves; `combine_key` tells different ones apart.
    """

    timesteps: tuple[float, ...]
    solver: Tensor
    forecasts: ReusePlan
    null_class: int | None = None
    split: bool = False
    passes: tuple[str, ...] | None = None
    differences: Tensor | None = None
    num_layers: int = 0
    combine: Combine | None = None
    combine_key: Hashable = None

    @property
    def num_evaluations(self) -> int:
        """How many evaluations it makes."""
        return len(self.timesteps)

    @cached_property
    def key(self) -> str:
        """Equal for jobs that do the same work."""
        parts = (
            self.timesteps, self.solver.tolist(), sorted(self.forecasts.items()), self.null_class, self.split,
            self.combine_key, self.passes, None if self.differences is None else self.differences.tolist(),
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()
