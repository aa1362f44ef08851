"""Budgets as the command line takes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from l2c.errors import ConfigError

if TYPE_CHECKING:
    from l2c.sampling.sampler import Sampler
    from l2c.schedule.cost import CostTable

DEFAULT = 0.5
_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Budget:
    """What a run may cost.

    Attributes:
        unit: `fraction` of the MACs, `MACs`, `ms`, or `evaluations` for a solver that is learned.
        amounts: In that unit; several make a family.
        batch_size: Pictures at a time, for milliseconds.
        engine: What milliseconds are measured with.
        costs_file: Where milliseconds are read from instead of being measured.
    """

    unit: str
    amounts: tuple[float, ...]
    batch_size: int = 1
    engine: str = "auto"
    costs_file: Path | None = None

    @classmethod
    def parse(
        cls,
        budget: str | None,
        macs: str | None,
        latency_ms: float | None,
        latency_batch: int | None,
        budget_evals: float | None,
        engine: str | None = None,
        costs_file: Path | None = None,
        *,
        auto: bool,
    ) -> Budget:
        """From the options of `l2c learn`.

        Raises:
            ConfigError: If several are given, one is malformed, or one does not go with the solver.
        """
        given = {
            "--budget": budget,
            "--macs": macs,
            "--latency-ms": latency_ms,
            "--budget-evals": budget_evals,
        }
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ConfigError(f"{' and '.join(names)} are budgets in different units; give one of them")
        how = {"--latency-batch": latency_batch, "--engine": engine, "--costs": costs_file}
        options = [name for name, value in how.items() if value is not None]
        if options and latency_ms is None:
            raise ConfigError(
                f"{options[0]} is for --latency-ms; leave it out or give a budget in milliseconds"
            )
        if costs_file is not None and len(options) > 1:
            raise ConfigError(
                f"{options[0]} is for measuring, and --costs reads what was measured; leave one of the two out"
            )
        if auto != (budget_evals is not None):
            if auto:
                raise ConfigError(
                    "--solver auto needs --budget-evals, what a run may cost in whole evaluations of the model"
                )
            raise ConfigError("--budget-evals is for --solver auto; for a solver with a name give --budget")
        if budget_evals is not None:
            return cls("evaluations", (budget_evals,))
        if latency_ms is not None:
            if not latency_ms > 0:
                raise ConfigError(f"--latency-ms must be more than 0, got {latency_ms:g}")
            if latency_batch is not None and latency_batch < 1:
                raise ConfigError(f"--latency-batch must be at least 1, got {latency_batch}")
            return cls("ms", (latency_ms,), latency_batch or 1, engine or "auto", costs_file)
        if macs is not None:
            return cls("MACs", (_parse_macs(macs),))
        return cls("fraction", parse_fractions(budget) if budget is not None else (DEFAULT,))

    def costs(self, sampler: Sampler) -> CostTable | None:
        """The table of costs that the amounts are in; None for fractions of the MACs.

        Raises:
            ConfigError: If a file of costs is of another model, or the engine does not fit.
            DataError: If a file of costs cannot be read.
        """
        if self.unit == "ms":
            from l2c.bench.cost import measure_costs, read_costs
            from l2c.hosts.native import ModelHost
            from l2c.sampling.compiled import release_engines

            if self.costs_file is not None:
                return read_costs(self.costs_file, ModelHost(sampler))
            costs = measure_costs(ModelHost(sampler), batch_size=self.batch_size, engine=self.engine)
            release_engines(sampler.denoiser.model)  # learning needs the memory
            return costs
        if self.unit == "MACs":
            from l2c.layers import find_layers
            from l2c.schedule.cost import CostTable

            return CostTable.macs(find_layers(sampler.denoiser.model))
        return None


def parse_fractions(text: str) -> tuple[float, ...]:
    """Fractions from a list with commas, or `curve`.

    Raises:
        ConfigError: If it is anything else.

    >>> parse_fractions("0.7,0.5")
    (0.7, 0.5)
    """
    if text == "curve":
        from l2c.learning.learn import CURVE

        return CURVE
    try:
        amounts = tuple(float(part) for part in text.split(","))
    except ValueError:
        amounts = ()
    if not amounts or not all(0 < amount <= 1 for amount in amounts):
        raise ConfigError(
            f"--budget takes fractions of the MACs, more than 0 and at most 1, such as 0.5 or 0.7,0.5,0.3, or curve; "
            f"got '{text}'"
        )
    if len(set(amounts)) < len(amounts):
        raise ConfigError(f"--budget names a fraction twice: '{text}'")
    return amounts


def _parse_macs(text: str) -> float:
    """Multiply-accumulates from a number with a prefix: `16.6G`."""
    match = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?) ?([KMGT]?)", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]) > 0:
        raise ConfigError(f"--macs takes a number such as 16.6G, 2.3T or 5e12, got '{text}'")
    return float(match[1]) * _PREFIXES[match[2].upper()]
