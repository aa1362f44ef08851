"""Pictures of several sizes that one schedule is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from l2c.errors import ConfigError
from l2c.hosts.base import filled_up, of_one_size
from l2c.hosts.pipeline.conditions import Condition
from l2c.hosts.pipeline.dry_run import DryRun, dry_run
from l2c.hosts.pipeline.learned_scheduler import prediction_of
from l2c.schedule.contract import Contract
from l2c.schedule.sizes import size_name


@dataclass(frozen=True)
class Sizes:
    """What a call of a pipeline does, for each size of pictures that conditions ask for.

    Attributes:
        runs: Dry runs by what conditions say of their size, that of the first condition first.
    """

    runs: Mapping[str, DryRun]

    @classmethod
    def of(cls, pipe: Any, call: Mapping[str, Any], conditions: Sequence[Condition]) -> Sizes:
        """Dry-runs a condition of each size.

        Args:
            pipe: The pipeline.
            call: What it is called with besides, by name.
            conditions: What tells runs apart.

        Raises:
            ConfigError: If their runs are not of one kind; and see `dry_run`.
        """
        runs: dict[str, DryRun] = {}
        for condition in conditions:
            if (asked := size_name(condition)) not in runs:
                runs[asked] = dry_run(pipe, **{**call, **condition})
        (first, made), *others = runs.items()
        for asked, other in others:
            contract = Contract(made.run, prediction_type=prediction_of(pipe.scheduler))
            if problem := contract.run_problem(other.run):
                raise ConfigError(
                    f"a schedule for several sizes is for one run, and that of {asked} is another than that of "
                    f"{first}; learn for each size by itself ({problem})"
                )
        return cls(runs)

    @property
    def first(self) -> DryRun:
        """That of the first condition."""
        return next(iter(self.runs.values()))

    @property
    def provenance(self) -> dict[str, Any]:
        """What a schedule records of them, in JSON types."""
        several = {"sizes": [size_name(run.resolution) for run in self.runs.values()]}
        return {**self.first.provenance, **(several if len(self.runs) > 1 else {})}

    def as_one(self, made: Sequence[Tensor]) -> Tensor:
        """Final latents (B, ...), or flattened (B, M) and filled up with zeros where conditions ask for several sizes.

        Zeros in both of what is compared change neither their distance nor the size of either.

        Args:
            made: Latents (1, ...) of every picture.

        Raises:
            ConfigError: If sizes differ where conditions ask for one.
        """
        if len(self.runs) == 1:
            return of_one_size(made)
        most = max(run.elements for run in self.runs.values())
        return of_one_size([filled_up(part, most) for part in made])

    def means(self, conditions: Sequence[Condition], values: Tensor) -> dict[str, float]:
        """Means of values (B,) of runs with conditions, by the names of their sizes; see `size_name`.

        A run may make several pictures, as of a list of labels.
        """
        found: dict[str, list[float]] = {}
        for condition, each in zip(conditions, values.view(len(conditions), -1).tolist(), strict=True):
            asked = self.runs.get(size_name(condition), self.first)
            found.setdefault(size_name(asked.resolution), []).extend(each)
        return {name: sum(each) / len(each) for name, each in found.items() if name}
