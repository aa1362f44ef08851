"""Budgets as the command line takes them, one of several units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2c.errors import ConfigError
from l2c.schedule.budget import DEFAULT, parse_fractions, parse_macs

if TYPE_CHECKING:
    from l2c.hosts.base import Host


@dataclass(frozen=True)
class Budget:
    """The options of `l2c learn` that say what a run may cost; None where they were not given."""

    budget: str | None = None
    macs: str | None = None
    latency_ms: float | None = None
    budget_evals: float | None = None
    latency_batch: int | None = None
    engine: str | None = None
    costs: Path | None = None
    per_computed: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Budget:
        """From the options that a command was given."""
        return cls(**{name: given[name] for name in BUDGETS})

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        return [name for name, value in vars(self).items() if value is not None]

    def check(self, *, auto: bool) -> None:
        """Refuses options that do not go together, or not with the solver.

        Raises:
            ConfigError: If there are some, or one is out of range.
        """
        given = [f"--{name.replace('_', '-')}" for name in self.given]
        units = [name for name in given if name in ("--budget", "--macs", "--latency-ms", "--budget-evals")]
        if len(units) > 1:
            raise ConfigError(f"{' and '.join(units)} are budgets in different units; give one of them")
        how = [name for name in given if name in ("--latency-batch", "--engine", "--costs")]
        if how and self.latency_ms is None:
            raise ConfigError(f"{how[0]} is for --latency-ms; leave it out or give a budget in milliseconds")
        if self.costs is not None and len(how) > 1:
            raise ConfigError(
                f"{how[0]} is for measuring, and --costs reads what was measured; leave one of the two out"
            )
        if auto and self.budget_evals is None:
            raise ConfigError(
                "--solver auto needs --budget-evals, what a run may cost in whole evaluations of the model"
            )
        if not auto and self.budget_evals is not None:
            raise ConfigError("--budget-evals is for --solver auto; for a solver with a name give --budget")
        if not auto and self.per_computed is not None:
            raise ConfigError("--per-computed is for --solver auto; leave it out")
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise ConfigError(f"--latency-ms must be more than 0, got {self.latency_ms:g}")
        if self.macs is not None:
            parse_macs(self.macs)
        if self.latency_batch is not None and self.latency_batch < 1:
            raise ConfigError(f"--latency-batch must be at least 1, got {self.latency_batch}")

    @property
    def count(self) -> int:
        """How many schedules are learned."""
        return 1 if self.budget is None else len(parse_fractions(self.budget))

    def arguments(self, host: Host) -> dict[str, Any]:
        """What `l2c.learn` is called with for the budget.

        Raises:
            ConfigError: If it is malformed, a file of costs is of another model, or the engine does not fit.
            DataError: If a file of costs cannot be read.
        """
        from l2c.schedule.cost import CostTable

        if self.budget_evals is not None:
            return {"solver": "auto", "evaluations": self.budget_evals, "per_computed": self.per_computed}
        if self.macs is not None:
            return {"budget": parse_macs(self.macs), "costs": CostTable.macs(host.table)}
        if self.latency_ms is not None:
            return {"budget": self.latency_ms, "costs": self._milliseconds(host)}
        fractions = (DEFAULT,) if self.budget is None else parse_fractions(self.budget)
        return {"budget": fractions[0]} if len(fractions) == 1 else {"budgets": fractions}

    def _milliseconds(self, host: Host) -> Any:
        from l2c.bench import cost
        from l2c.hosts.native import check_class_host
        from l2c.sampling.compiled import release_engines

        sampler = check_class_host(host, "a budget in milliseconds").sampler
        if self.costs is not None:
            return cost.read_costs(self.costs, sampler)
        costs = cost.measure_costs(sampler, self.latency_batch or 1, engine=self.engine or "auto")
        release_engines(sampler.denoiser.model)  # learning needs the memory
        return costs


BUDGETS = {field.name for field in fields(Budget)}
"""Names of these options."""
