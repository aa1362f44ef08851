"""`ScheduleFamily`: schedules for one model and run along the whole curve of costs, in one file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from l2c.documents import Real, check_value, parse
from l2c.errors import ConfigError, ScheduleError
from l2c.schedule.budget import check_fractions
from l2c.schedule.contract import Contract
from l2c.schedule.cost import BUDGET_TOLERANCE
from l2c.schedule.file import ANEW, read_tensors, write_tensors
from l2c.schedule.header import FamilyHeader
from l2c.schedule.schedule import CacheSchedule

FORMAT = "l2c.schedule-family"
VERSION = 3
"""Of what is read; a family is written in the version that its schedules need."""
ROUNDING = 1e-4
"""Difference of timesteps, half log-SNRs and numbers of a fingerprint that is no other run and no other model."""


class ScheduleFamily:
    """Schedules for the same model and solver, from the most expensive to the cheapest.

    Where each brings a solver of its own, their runs are different, and what they cost is in whole evaluations.

    Args:
        schedules: At least one, in any order.

    Raises:
        ScheduleError: If there are none, or they are for different models or solvers.
    """

    def __init__(self, schedules: Sequence[CacheSchedule]) -> None:
        if not schedules:
            raise ScheduleError("a family needs at least one schedule")
        self._schedules = sorted(schedules, key=lambda schedule: -schedule.cost.macs)
        for schedule in schedules:
            schedule.check_layers(schedules[0].layers)
            if not _alike(_in_family(schedule.contract, schedules[0].contract), schedules[0].contract):
                raise ScheduleError(
                    "the schedules of a family are for one model and one run; save these apart"
                )

    def __len__(self) -> int:
        return len(self._schedules)

    def __iter__(self) -> Iterator[CacheSchedule]:
        return iter(self._schedules)

    @property
    def brings_solvers(self) -> bool:
        """Whether each schedule has a run and a solver of its own."""
        return self._schedules[0].contract.run.weights is not None

    def at(self, budget: float) -> CacheSchedule:
        """The best schedule that costs at most a share of the run's multiply-accumulates (MACs), within 1 %.

        The best is the one of the least error on held-out pictures, among those that were judged by the same ones as
        the one of the highest cost; where errors are not recorded, it is that one.

        Args:
            budget: Fraction of the MACs, from 0 to 1; whole evaluations where schedules bring their solvers.

        Raises:
            ConfigError: If the budget is no fraction, or less than what the cheapest schedule costs.
        """
        if self.brings_solvers:
            return self._at_evaluations(budget)
        check_fractions([budget], budget)
        costs = [schedule.cost.fraction for schedule in self]
        return self._within(costs, budget, "of the MACs", f"--budget {budget:g}")

    def _at_evaluations(self, budget: float) -> CacheSchedule:
        what = "a budget of a family of learned solvers, which is in whole evaluations,"
        check_value(what, budget, Annotated[Real, Field(gt=1)])
        costs = [schedule.cost.fraction * schedule.num_evaluations for schedule in self]
        return self._within(costs, budget, "evaluations", f"--solver auto --budget-evals {budget:g}")

    def _within(self, costs: Sequence[float], budget: float, unit: str, options: str) -> CacheSchedule:
        """The best of the schedules that cost at most a budget."""
        pairs = zip(costs, self, strict=True)
        if within := [one for cost, one in pairs if cost <= budget * (1 + BUDGET_TOLERANCE)]:
            alike = [one for one in within if _judged_by(one) == _judged_by(within[0])]
            return min(alike, key=lambda schedule: schedule.provenance.get("held_out_error", math.inf))
        raise ConfigError(
            f"the cheapest schedule of the family takes {costs[-1]:.3f} {unit}, more than the budget of {budget:g}; "
            f"ask for as much or more, or learn one with l2c learn MODEL {options}"
        )

    def save(self, path: str | Path) -> None:
        """Writes all schedules as one `.safetensors` file; an interrupted write leaves the old file.

        Raises:
            OutputError: If the file cannot be written.
        """
        tensors, headers = {}, []
        for index, schedule in enumerate(self._schedules):
            parts, header = schedule.pack()
            tensors.update({f"{index}.{name}": tensor for name, tensor in parts.items()})
            headers.append(header)
        version = max(schedule.version for schedule in self._schedules)
        write_tensors(path, FORMAT, tensors, {"version": version, "schedules": headers})

    @classmethod
    def load(cls, path: str | Path) -> ScheduleFamily:
        """Reads a family, or one that comes with l2c by its name; nothing in the file is ever executed.

        Raises:
            ScheduleError: If the file is missing, truncated, of another kind, or malformed.
        """
        tensors, header = read_tensors(path, FORMAT, VERSION)
        found = parse(FamilyHeader, header, f"{path} is malformed", ScheduleError, ANEW)
        schedules = []
        for index, entry in enumerate(found["schedules"]):
            prefix = f"{index}."
            parts = {name[len(prefix) :]: tensors[name] for name in tensors if name.startswith(prefix)}
            schedules.append(CacheSchedule.unpack(parts, entry, path))
        return cls(schedules)


def _in_family(contract: Contract, first: Contract) -> Contract:
    """A contract as it is compared with the first of a family: solvers that were learned may differ."""
    run, other = contract.run, first.run
    if run.weights is None or other.weights is None or run.guidance != other.guidance:
        return contract
    return replace(contract, run=other)


def _judged_by(schedule: CacheSchedule) -> list[object]:
    """What decides which pictures a schedule was judged by."""
    settings: Any = schedule.provenance.get("settings")
    known = settings if isinstance(settings, dict) else {}
    return [known.get(name) for name in ("seed", "num_examples", "reference_steps")]


def _alike(one: Contract, other: Contract) -> bool:
    """Whether two contracts are the same but for rounding, which differs between machines."""
    numbers = [(it.run.timesteps, it.run.log_snrs, it.fingerprint) for it in (one, other)]
    run = replace(one.run, timesteps=other.run.timesteps, log_snrs=other.run.log_snrs)
    return replace(one, run=run, fingerprint=other.fingerprint) == other and all(
        len(mine) == len(theirs)
        and all(abs(a - b) <= ROUNDING or a == b for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in zip(*numbers, strict=True)
    )
