"""How far a schedule is off with a target as it is now: the quick check for a LoRA, a quantised or tuned variant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from l2c.errors import ConfigError, NumericsError
from l2c.hosts.base import errors
from l2c.hosts.targets import host_for
from l2c.layers import find_layers
from l2c.schedule.open import load_schedule
from l2c.schedule.schedule import CacheSchedule
from l2c.schedule.sizes import measured_errors

LIMIT = 1.5
"""Times the error when learned that is still accepted."""
REFERENCE_STEPS = 40


@dataclass(frozen=True)
class Drift:
    """Distance between what a target makes with a schedule and a fine-step solution.

    Attributes:
        error: Root mean square distance, mean over the runs.
        unit: `absolute` for pictures from -1 to 1, or `relative` to the reference's root mean square.
        worst: Of the run that is furthest off.
        recorded: The error when the schedule was made; None if that was not recorded.
        limit: Times the recorded error that is accepted.
        runs: Over how many runs it was measured.
        fraction: Share of the multiply-accumulates that is computed; None if the schedule has no sizes.
        by_size: Mean errors by the size of the pictures, as far as that has a name.
    """

    error: float
    unit: str
    worst: float
    recorded: float | None
    limit: float
    runs: int
    fraction: float | None
    by_size: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Error now over error when the schedule was made."""
        return self.error / self.recorded if self.recorded else None

    @property
    def accepted(self) -> bool | None:
        """Whether the error is within the limit; None if there is nothing to compare with."""
        return None if self.ratio is None else self.ratio <= self.limit

    def record(self, schedule: CacheSchedule) -> CacheSchedule:
        """The schedule with this error as what later checks are compared with.

        Errors by size are what runs of these sizes are told; those of other sizes that were recorded stay.
        """
        before = (schedule.provenance.get("drift") or {}).get("by_size") or {}
        by_size = {**before, **{size: round(error, 6) for size, error in self.by_size.items()}}
        figures: dict[str, Any] = {"error": round(self.error, 6), "unit": self.unit, "runs": self.runs}
        if by_size:
            figures["by_size"] = by_size
        return replace(schedule, provenance={**schedule.provenance, "drift": figures})

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "ratio": self.ratio, "accepted": self.accepted}

    def __str__(self) -> str:
        text = f"error {self.error:.4f} ({self.unit}; worst {self.worst:.4f}) over {self.runs} runs"
        if self.ratio is None:
            return f"{text}; none was recorded when the schedule was made"
        verdict = "within" if self.accepted else "beyond"
        return (
            f"{text}, {self.ratio:.2f} times the {self.recorded:.4f} when the schedule was made: {verdict} the "
            f"limit of {self.limit:g}"
        )


@torch.no_grad()
def check(
    target: Any,
    schedule: CacheSchedule | str,
    *,
    budget: float | None = None,
    seeds: Sequence[int] = (0, 1),
    limit: float = LIMIT,
    **run: Any,
) -> Drift:
    """Samples with a schedule and in fine steps, from the same noise, and compares.

    Weights that the schedule was not learned on are accepted: the check is there to tell whether they may be.

    Args:
        target: A model, or a diffusers pipeline without a cache enabled.
        schedule: The schedule, or whatever `l2c.load_schedule` opens.
        budget: See `l2c.load_schedule`.
        seeds: A run for each.
        limit: Times the error when learned that is accepted.
        run: How the target is sampled, see `l2c.learn`; the schedule's own run and call where nothing is said.

    Raises:
        ConfigError: If there are no seeds, or an argument of the run is unknown.
        ContractError: If the schedule is for other layers or another run.
        NumericsError: If the target makes values that are not finite.
    """
    if isinstance(seeds, int) or not seeds or "generator" in run:
        raise ConfigError("the check takes a list of one seed or more, and makes the generators itself")
    chosen = load_schedule(schedule, budget)
    host = host_for(target, chosen, check, **run)
    for model in host.models.values():  # sizes in this call are not compared: a LoRA changes them
        chosen.check_layers(find_layers(model).with_sizes_of(chosen.layers))
    settings = chosen.provenance.get("settings")
    steps = (
        settings.get("reference_steps", REFERENCE_STEPS) if isinstance(settings, dict) else REFERENCE_STEPS
    )
    examples = host.seeded(seeds)
    wanted = host.reference(steps).sample(examples)
    driven = host.for_schedule(chosen)
    if chosen.contract.run.weights is None:
        chosen.contract.check_run(driven.run)
    with driven.attach(chosen):
        made = driven.sample(examples)
    each = errors(made, wanted, host.unit)
    if not each.isfinite().all() or not wanted.any():
        raise NumericsError(
            "the target makes nothing but zeros, or values that are not finite; nothing compares"
        )
    by_size = host.means_by_size(examples, each)
    return Drift(
        error=each.mean().item(),
        unit=host.unit,
        worst=each.max().item(),
        recorded=recorded_error(chosen, by_size),
        limit=limit,
        runs=len(seeds),
        fraction=chosen.cost.fraction if chosen.layers.sized else None,
        by_size=by_size,
    )


def recorded_error(schedule: CacheSchedule, sizes: Iterable[str] = ()) -> float | None:
    """The error that was recorded with a schedule, by a check or when it was learned; None if there is none.

    Args:
        schedule: The schedule.
        sizes: Sizes of the pictures that it is compared with, see `l2c.schedule.sizes`: where errors of these and of
            others were recorded, theirs count.
    """
    asked, measured = set(sizes), measured_errors(schedule.provenance)
    if asked and asked < set(measured):
        return sum(measured[size] for size in asked) / len(asked)
    drift = schedule.provenance.get("drift")
    found = drift.get("error") if isinstance(drift, dict) else schedule.provenance.get("held_out_error")
    return float(found) if isinstance(found, (int, float)) else None
