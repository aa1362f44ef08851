"""How far a schedule is off with a pipeline as it is now: the quick check for a LoRA, a quantised or tuned variant."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from l2c.errors import ConfigError, NumericsError
from l2c.hosts.pipeline.dry_run import takes_latent_output
from l2c.hosts.pipeline.enable import enable_cache
from l2c.schedule.schedule import CacheSchedule

LIMIT = 1.5
"""Times the error when learned that is still accepted."""


@dataclass(frozen=True)
class Drift:
    """Distance between what a pipeline makes with a schedule and without.

    Attributes:
        error: Root mean square distance, in units of the root mean square of what it makes without.
        reference: The same when the schedule was made; None if that was not recorded.
        limit: Times the reference that is accepted.
        runs: Over how many runs it was measured.
        fraction: Share of the multiply-accumulates that was computed; None if the schedule has no sizes.
    """

    error: float
    reference: float | None
    limit: float
    runs: int
    fraction: float | None

    @property
    def ratio(self) -> float | None:
        """Error now over error when the schedule was made."""
        return self.error / self.reference if self.reference else None

    @property
    def accepted(self) -> bool | None:
        """Whether the error is within the limit; None if there is nothing to compare with."""
        return None if self.ratio is None else self.ratio <= self.limit

    def record(self, schedule: CacheSchedule) -> CacheSchedule:
        """The schedule with this error as what later checks are compared with."""
        figures = {"error": round(self.error, 6), "runs": self.runs}
        return replace(schedule, provenance={**schedule.provenance, "drift": figures})

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "ratio": self.ratio, "accepted": self.accepted}

    def __str__(self) -> str:
        text = f"error {self.error:.4f} over {self.runs} runs"
        if self.ratio is None:
            return f"{text}; none was recorded when the schedule was made"
        verdict = "within" if self.accepted else "beyond"
        return (
            f"{text}, {self.ratio:.2f} times the {self.reference:.4f} when the schedule was made: {verdict} the "
            f"limit of {self.limit:g}"
        )


def check(
    pipe: Any, schedule: CacheSchedule | Mapping[str, CacheSchedule], *, seeds: Sequence[int] = (0, 1),
    limit: float = LIMIT, **call: Any,
) -> Drift:  # fmt: skip
    """Samples with and without a schedule, from the same noise, and compares.

    Weights that the schedule was not learned on are accepted: the check is there to tell whether they may be.

    Args:
        pipe: A diffusers pipeline without a cache enabled.
        schedule: What `enable_cache` takes.
        seeds: A run for each.
        limit: Times the error when learned that is accepted.
        call: What the pipeline is called with, by name, without a generator.

    Raises:
        ConfigError: If there are no seeds, or a generator is given.
        ContractError: If the schedule is for other layers or another run.
        NumericsError: If the pipeline makes values that are not finite.
    """
    if not seeds or "generator" in call:
        raise ConfigError("the check takes one seed or more, and makes the generators itself")
    if takes_latent_output(pipe):
        call.setdefault("output_type", "latent")
    squares, norm, fractions = 0.0, 0.0, []
    for seed in seeds:
        bare = _sample(pipe, seed, call)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*learned on other weights")
            cache = enable_cache(pipe, schedule, any_weights=True)
        with cache:
            cached = _sample(pipe, seed, call)
            models = cache.summary().models.values()
        squares += float((cached - bare).square().sum())
        norm += float(bare.square().sum())
        fractions += [model.fraction for model in models if model.fraction is not None]
    if not norm > 0 or squares != squares:
        raise NumericsError(
            "the pipeline makes nothing but zeros, or values that are not finite; nothing compares"
        )
    first = schedule if isinstance(schedule, CacheSchedule) else next(iter(schedule.values()))
    recorded = first.provenance.get("drift", {})
    return Drift(
        error=(squares / norm) ** 0.5,
        reference=recorded.get("error"),
        limit=limit,
        runs=len(seeds),
        fraction=sum(fractions) / len(fractions) if fractions else None,
    )


def _sample(pipe: Any, seed: int, call: Mapping[str, Any]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    given = {"output_type": "np", **call}
    result = pipe(**given, generator=generator, return_dict=False)[0]
    return torch.as_tensor(result).double()
