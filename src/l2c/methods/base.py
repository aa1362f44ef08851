"""What all methods share: the run that a schedule is for, the blocks of a model, and `Method`, what is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.layers import LayerTable, find_layers, fingerprint
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler
from l2c.schedule.contract import Contract
from l2c.schedule.schedule import CacheSchedule


@dataclass(frozen=True)
class Target:
    """A model and a run that a schedule is made for.

    Attributes:
        sampler: The model with its solver.
        layers: The model's layers.
        contract: Of the schedule.
    """

    sampler: Sampler
    layers: LayerTable
    contract: Contract

    @classmethod
    def of(
        cls,
        model: nn.Module,
        solver: str,
        steps: int,
        spacing: str,
        *,
        guidance: float | None = None,
    ) -> Target:
        """The target of a method.

        Args:
            model: A model that has a layer adapter.
            solver: Solver name.
            steps: Number of model evaluations.
            spacing: Spacing of the evaluations.
            guidance: Of a method that looks at the weights, which then go into the contract; None for a pattern.

        Raises:
            ConfigError: If an argument is unknown or out of range.
        """
        denoiser, table = Denoiser.of(model), find_layers(model)
        sampler = Sampler(denoiser, solver, steps, spacing, Guidance(1.0 if guidance is None else guidance))
        run = sampler.run if guidance is not None else sampler.make_solver().run
        weights = () if guidance is None else fingerprint(model, table)
        prediction = denoiser.noise_schedule.prediction_type
        return cls(sampler, table, Contract(run, fingerprint=weights, prediction_type=prediction))

    @property
    def num_evaluations(self) -> int:
        """Model evaluations of the run."""
        return len(self.contract.run.timesteps)

    def all_computed(self) -> Tensor:
        """A mask (evaluations, layers), bool, that computes everything."""
        return torch.ones(self.num_evaluations, len(self.layers), dtype=torch.bool)


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
    if every < 1:
        raise ConfigError(f"the interval must be at least 1, got {every}")


@dataclass(frozen=True)
class Method:
    """A published way to be faster, as the comparison runs it.

    Attributes:
        name: In configurations: `fora`.
        title: For people.
        make: The function, (model, solver, steps, *, spacing, **settings) -> CacheSchedule.
        source: Where it was published.
        published: The settings of its authors.
        choices: Settings among which a budget chooses, for a method whose cost follows from them alone. Without
            any, `make` takes the keyword `budget`, a share of the run's multiply-accumulates.
        architectures: Architectures that it is for.
        prepare: For a method that calibrates or learns: the costly part, which all budgets share, with the
            arguments (model, solver, steps, *, spacing, guidance, **settings); what it returns is handed to
            `make` as `prepared`.
        prepare_settings: Names of the settings that are `prepare`'s.
    """

    name: str
    title: str
    make: Callable[..., CacheSchedule]
    source: str
    published: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[Mapping[str, Any], ...] = ()
    architectures: tuple[str, ...] = ("dit", "uvit")
    prepare: Callable[..., Any] | None = None
    prepare_settings: tuple[str, ...] = ()
