"""What evaluations cost, layer by layer, in multiply-accumulates or in milliseconds, and budgets of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.layers import LayerTable

BUDGET_TOLERANCE = 0.01
"""How far above a budget counts as within it, relatively."""


@dataclass(frozen=True)
class CostTable:
    """Cost of one evaluation, part by part.

    Attributes:
        unit: `MACs`, for one image without guidance, or `ms`, at the batch that was measured.
        layers: Of every layer, in the order of the `LayerTable`.
        rest: Of everything that no schedule can save.
    """

    unit: str
    layers: tuple[float, ...]
    rest: float

    @classmethod
    def macs(cls, table: LayerTable) -> CostTable:
        """In multiply-accumulates."""
        return cls("MACs", tuple(float(layer.macs) for layer in table.layers), float(table.rest_macs))

    @property
    def full(self) -> float:
        """Of an evaluation that computes everything."""
        return sum(self.layers) + self.rest

    def of(self, compute: Tensor) -> float:
        """Cost of a run with a mask, bool (evaluations, layers)."""
        per_layer = torch.tensor(self.layers, dtype=torch.float64)
        return float(compute.sum(dim=0).double().cpu() @ per_layer) + len(compute) * self.rest

    def check_budget(self, budget: float, evaluations: int) -> None:
        """Refuses a budget that no mask can meet.

        Args:
            budget: In `unit`, for a whole run.
            evaluations: Of the run.

        Raises:
            ConfigError: If it is less than a first evaluation and the rest of all others, or more than computing
                everything.
        """
        full = evaluations * self.full
        least = self.full + (evaluations - 1) * self.rest
        if not budget <= full * (1 + BUDGET_TOLERANCE):  # NaN is not, either
            raise ConfigError(
                f"a budget of {self.show(budget)} is more than the {self.show(full)} of computing everything; "
                "no schedule is needed"
            )
        if not budget >= least * (1 - BUDGET_TOLERANCE):
            raise ConfigError(
                f"a budget of {self.show(budget)} cannot be met: the first evaluation has to compute every layer, and "
                f"with what no schedule can save the run takes at least {self.show(least)} ({least / full:.1%}); allow "
                "more, or take more steps"
            )

    def show(self, cost: float) -> str:
        """A cost with its unit, for people.

        >>> CostTable("MACs", (1.0,), 0.0).show(1.5e9)
        '1.5 GMACs'
        """
        return f"{cost / 1e9:.4g} GMACs" if self.unit == "MACs" else f"{cost:.4g} {self.unit}"
