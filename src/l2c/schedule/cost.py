"""What evaluations cost, layer by layer, in multiply-accumulates or in milliseconds, and budgets of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from l2c.documents import MOST_LAYERS, Finite, parse
from l2c.documents import Cost as Part
from l2c.errors import ConfigError, DataError
from l2c.layers import LayerTable
from l2c.schedule.branches import has_branches

BUDGET_TOLERANCE = 0.01
"""How far above a budget counts as within it, relatively."""


@dataclass(frozen=True)
class Cost:
    """What a schedule computes, in multiply-accumulates (MACs) for one image, without guidance.

    Attributes:
        macs: Of the whole run with the schedule.
        full_macs: Of the whole run with everything computed.
        linear_macs: Like `macs`, leaving out the attention products, as DiT papers count.
        full_linear_macs: Like `full_macs`, leaving out the attention products.
    """

    macs: int
    full_macs: int
    linear_macs: int
    full_linear_macs: int

    @property
    def fraction(self) -> float:
        """Share of the MACs that is left."""
        return self.macs / self.full_macs


@dataclass(frozen=True)
class CostTable:
    """Cost of one evaluation, part by part.

    Attributes:
        unit: `MACs`, for one image without guidance, or `ms`, at the batch that was measured.
        layers: Of every layer, in the order of the `LayerTable`.
        rest: Of everything that no schedule can save.
        architecture: Architecture that it is for; empty fits any with as many layers.
        names: Names of the layers; empty fits any.
        history: How many values a forecast reads, that `rest` has for every layer.
        per_value: Of each value that a forecast reads after the first: what is saved where fewer have been computed.
    """

    unit: str
    layers: Annotated[tuple[Part, ...], Field(max_length=MOST_LAYERS)]
    rest: Finite
    architecture: str = ""
    names: tuple[str, ...] = ()
    history: Annotated[int, Field(ge=1, le=16)] = 1
    per_value: Part = 0.0

    @classmethod
    def macs(cls, table: LayerTable) -> CostTable:
        """In multiply-accumulates."""
        costs = tuple(float(layer.macs) for layer in table.layers)
        return cls("MACs", costs, float(table.rest_macs), table.architecture, table.names)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostTable:
        """Inverse of `to_json`.

        Raises:
            DataError: If something is missing, of the wrong kind, or no cost.
        """
        return parse(
            _Usable, data, "the table of costs is malformed", DataError, "measure it anew with l2c profile"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "layers": list(self.layers), "names": list(self.names)}

    def check_layers(self, table: LayerTable) -> None:
        """Compares a model's layers with those that the costs are of.

        Raises:
            ConfigError: If architecture, number or names of the layers differ.
        """
        same = self.architecture in ("", table.architecture) and self.names in ((), table.names)
        if not same or len(self.layers) != len(table):
            raise ConfigError(
                f"the costs are those of {len(self.layers)} layers"
                f"{f' of a {self.architecture}' if self.architecture else ''}, but "
                f"the model is a {table.architecture} with {len(table)} layers; measure this one with l2c profile"
            )

    @property
    def full(self) -> float:
        """Of an evaluation that computes everything."""
        return sum(self.layers) + self.rest

    def of(self, compute: Tensor) -> float:
        """Cost of a run with a mask, bool (evaluations, layers) or with rows for each pass of guidance.

        A pass counts half, and so does what no schedule can save of an evaluation where the unconditional pass is
        derived.

        Raises:
            ConfigError: If the mask has another number of layers, or passes have rows and costs are not MACs.
        """
        count = len(self.layers)
        apart = compute.ndim == 2 and has_branches(compute.shape[1], count)
        if compute.ndim != 2 or not (apart or compute.shape[1] == count):
            raise ConfigError(
                f"the costs are those of {count} layers but the mask is {tuple(compute.shape)} "
                "(evaluations, layers)"
            )
        per_layer = torch.tensor(self.layers, dtype=torch.float64)
        compute = compute.cpu()
        if apart:
            if self.unit != "MACs":
                raise ConfigError(
                    f"the costs in {self.unit} are those of whole evaluations, not of a conditional pass alone; count "
                    "in MACs"
                )
            halves = torch.cat([per_layer, per_layer, per_layer.new_tensor([self.rest])]) / 2
            return float(compute.sum(dim=0).double() @ halves) + len(compute) * self.rest / 2
        missing = (self.history - compute.cumsum(dim=0)).clamp(min=0)[~compute].sum()
        least = len(compute) * self.rest - self.per_value * int(missing)
        return float(compute.sum(dim=0).double() @ per_layer) + least

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
        if self.unit == "ms" and not any(self.layers):
            raise ConfigError(
                "by the table of costs no layer saves any time when it is reused, so no schedule makes the run faster; "
                "measure larger batches, or with another engine"
            )
        first = torch.zeros(evaluations, len(self.layers), dtype=torch.bool)
        first[:1] = True
        least = self.of(first)
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


def _usable(table: CostTable) -> CostTable:
    if not table.layers or len(table.names) not in (0, len(table.layers)) or not 0 < table.full < math.inf:
        raise ValueError(
            f"it has {len(table.layers)} costs of layers, {len(table.names)} names, and {table.full:g} for all"
        )
    return table


_Usable = Annotated[CostTable, AfterValidator(_usable)]
