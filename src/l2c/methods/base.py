"""What all methods share: masks, the blocks of a model, and `Method`, what is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from l2c.documents import Count, Fraction, Whole, check_value
from l2c.hosts.base import Host
from l2c.layers import LayerTable
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule


def all_computed(host: Host) -> Tensor:
    """A mask (evaluations, layers), bool, that computes everything."""
    return torch.ones(len(host.run.timesteps), len(host.table), dtype=torch.bool)


def pattern(
    host: Host, compute: Tensor, provenance: Mapping[str, Any], predictor: Predictor | None = None
) -> CacheSchedule:
    """The schedule of a mask for which no weights were looked at."""
    contract = host.contract(weights=False)
    recorded = {**provenance, **host.provenance}
    return CacheSchedule(compute, host.table, contract, predictor or Predictor(), None, recorded)


def blocks_of(table: LayerTable) -> list[list[int]]:
    """Indices of the layers of each block, in execution order.

    >>> from l2c.testing import tiny_dit
    >>> from l2c.layers import find_layers
    >>> blocks_of(find_layers(tiny_dit()))
    [[0, 1], [2, 3], [4, 5]]
    """
    blocks: dict[str, list[int]] = {}
    for index, name in enumerate(table.names):
        blocks.setdefault(name.rpartition(".")[0], []).append(index)
    return list(blocks.values())


def check_every(every: int) -> None:
    """Refuses an interval that is none.

    Raises:
        ConfigError: If it is below 1.
    """
    check_value("the interval", every, Count)


def at_intervals(host: Host, every: int, first: int) -> list[int]:
    """Evaluations 0 to `first` - 1, and from the last of these on every `every`-th.

    Raises:
        ConfigError: If a number is below 1.
    """
    check_every(every)
    check_value("first", first, Count)
    total = len(host.run.timesteps)
    return [*range(min(first, total)), *range(first - 1 + every, total, every)]


def evaluations_of(host: Host, evaluations: int | None, budget: float | None) -> int:
    """How many evaluations compute everything, where no other computes anything: half of them by default.

    Args:
        host: Whose run it is.
        evaluations: The number itself.
        budget: Instead of that, the share of the run's MACs to come close to.

    Raises:
        ConfigError: If one is out of range.
    """
    total = len(host.run.timesteps)
    if budget is not None:
        check_value("the budget, a share of the MACs,", budget, Fraction)
        rest = host.table.rest_macs / host.table.full_macs
        evaluations = min(max(1, round(total * (budget - rest) / (1 - rest))), total)
    elif evaluations is None:
        evaluations = max(1, total // 2)
    check_value("evaluations", evaluations, Annotated[Whole, Field(ge=1, le=total)])
    return evaluations


@dataclass(frozen=True)
class Method:
    """A published way to be faster, as the comparison runs it.

    Attributes:
        name: In configurations: `fora`.
        title: For people.
        make: The function, (target, **settings) -> CacheSchedule, for a model, a pipeline or a host.
        source: Where it was published.
        published: The settings of its authors.
        choices: Settings among which a budget chooses, for a method whose cost follows from them alone. Without
            any, `make` takes the keyword `budget`, a share of the run's multiply-accumulates.
        architectures: Architectures that it is for; empty for any.
        unsuited: Architectures that it is not for.
        prepare: For a method that calibrates or learns: the costly part, which all budgets share, with the
            arguments (target, **settings); what it returns is handed to `make` as `prepared`.
        prepare_settings: Names of the settings that are `prepare`'s.
    """

    name: str
    title: str
    make: Callable[..., CacheSchedule]
    source: str
    published: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[Mapping[str, Any], ...] = ()
    architectures: tuple[str, ...] = ()
    unsuited: tuple[str, ...] = ()
    prepare: Callable[..., Any] | None = None
    prepare_settings: tuple[str, ...] = ()

    def suits(self, architecture: str) -> bool:
        """Whether it is for an architecture."""
        return architecture not in self.unsuited and (
            not self.architectures or architecture in self.architectures
        )
