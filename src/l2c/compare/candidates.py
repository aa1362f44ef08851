"""A variant made ready: something that can be switched on, sampled for given examples, and told the cost of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from l2c.cache.cached_model import CachedModel, enable_cache
from l2c.compare.baselines import BASELINES, ForwardCount, in_diffusers
from l2c.compare.model import ComparedModel
from l2c.compare.plan import FULL, Variant
from l2c.errors import ConfigError
from l2c.hosts.native import ModelHost
from l2c.methods.registry import find_method, schedule_for
from l2c.sampling.memory import store_bytes
from l2c.sampling.sampler import Sampler
from l2c.schedule.contract import Run
from l2c.schedule.schedule import CacheSchedule

Sample = Callable[..., Tensor]
"""(*examples) -> samples of one batch."""

Ready = tuple[Sample, Callable[[], float]]
"""What samples a batch, and what tells the multiply-accumulates per picture, without guidance, of what ran."""

CALIBRATION_SEED = 7_500_000


@dataclass(frozen=True)
class Candidate(ABC):
    """A variant that can be sampled.

    Attributes:
        variant: Which one.
        sampler: Makes its run, which may be another than its base's.
        prepare_s: Seconds of calibration or learning.
    """

    variant: Variant
    sampler: Sampler
    prepare_s: float = 0.0

    @property
    def run(self) -> Run:
        """The run that it makes."""
        return self.sampler.run

    @abstractmethod
    def ready(self) -> AbstractContextManager[Ready]:
        """Switches it on while the context lasts."""

    @abstractmethod
    def store_bytes(self, batch_size: int) -> int | None:
        """Peak memory of stored features; None where nobody tells."""


@dataclass(frozen=True)
class ScheduleCandidate(Candidate):
    """A method, as the schedule that it made."""

    schedule: CacheSchedule = field(kw_only=True)

    @property
    def caches(self) -> bool:
        """Whether it reuses anything."""
        return not bool(self.schedule.compute.all())

    def _enabled(self) -> AbstractContextManager[CachedModel | None]:
        return enable_cache(self.sampler.denoiser.model, self.schedule) if self.caches else nullcontext()

    @contextmanager
    def ready(self) -> Iterator[Ready]:
        """See `Candidate.ready`."""
        with self._enabled():
            yield self.sampler, lambda: float(self.schedule.cost.macs)

    def store_bytes(self, batch_size: int) -> int:
        """See `Candidate.store_bytes`."""
        with self._enabled() as cache:
            return 0 if cache is None else store_bytes(cache, self.sampler, batch_size)


@dataclass(frozen=True)
class BaselineCandidate(Candidate):
    """A cache of another library, and what it found out beforehand."""

    prepared: Mapping[str, Any] = field(kw_only=True)

    @contextmanager
    def ready(self) -> Iterator[Ready]:
        """See `Candidate.ready`."""
        baseline, evaluations = BASELINES[self.variant.method], len(self.run.timesteps)
        copied = in_diffusers(self.sampler)
        count = ForwardCount(copied.denoiser.model)
        settings = {**self.variant.settings, **self.prepared}
        with baseline.enable(copied.denoiser.model, evaluations, settings) as around:
            yield (
                lambda *examples: around(lambda: copied(*examples)),
                lambda: evaluations * count.macs,
            )

    def store_bytes(self, batch_size: int) -> int | None:
        """See `Candidate.store_bytes`."""
        return 0 if self.variant.method == "diffusers" else None


class Maker:
    """Makes candidates, and shares what is costly between those of one method and base.

    Args:
        model: What is compared.
        guidance: Guidance scale, for methods that calibrate or learn.
    """

    def __init__(self, model: ComparedModel, guidance: float) -> None:
        self._model, self._guidance = model, guidance
        self._shared: dict[str, tuple[Any, float]] = {}

    def make(
        self, variant: Variant, saved: Path | None = None, prepared: Mapping[str, Any] | None = None
    ) -> Candidate:
        """A candidate, made anew, or from what an earlier run saved.

        Args:
            variant: Which one.
            saved: File of its schedule, if there may be one.
            prepared: What a baseline found out.

        Raises:
            L2CError: If the method does not fit the model or a setting is wrong.
        """
        base = variant.base
        if variant.is_baseline:
            return self._baseline(variant, prepared)
        if saved is not None and saved.is_file():
            schedule, seconds = CacheSchedule.load(saved), 0.0
        elif variant.method == FULL:
            full = find_method("fewer-steps").make(
                ModelHost(self._model.sampler(base.solver, base.steps, base.spacing)), budget=1.0
            )
            schedule, seconds = replace(full, provenance={"method": FULL}), 0.0
        else:
            schedule, seconds = self._schedule(variant)
        sampler = self._model.sampler_of(schedule.contract.run)
        schedule.contract.check_run(sampler.run)
        schedule.check_layers(self._model.table)
        return ScheduleCandidate(variant, sampler, seconds, schedule=schedule)

    def _schedule(self, variant: Variant) -> tuple[CacheSchedule, float]:
        base, method = variant.base, find_method(variant.method)
        host = ModelHost(self._model.sampler(base.solver, base.steps, base.spacing))
        if not method.suits(host.table.architecture):
            raise ConfigError(
                f"{method.title} is not for {host.table.architecture}, which {self._model.name} is; leave "
                f"'{method.name}' out"
            )
        prepared, seconds = None, 0.0
        if method.prepare is not None:
            options = {k: v for k, v in variant.settings.items() if k in method.prepare_settings}
            key = f"{method.name} {base.name} {sorted(options.items())}"
            if key not in self._shared:
                began = perf_counter()
                found = method.prepare(host, **options)
                self._shared[key] = (found, perf_counter() - began)
            prepared, seconds = self._shared[key]
        schedule = schedule_for(
            method, host, budget=variant.budget, prepared=prepared, settings=variant.settings
        )
        return schedule, seconds

    def _baseline(self, variant: Variant, prepared: Mapping[str, Any] | None) -> BaselineCandidate:
        baseline, base = BASELINES[variant.method], variant.base
        baseline.check_installed()
        sampler, seconds = self._model.sampler(base.solver, base.steps, base.spacing), 0.0
        if baseline.prepare is not None and prepared is None:
            began, copied = perf_counter(), in_diffusers(sampler)
            examples = self._model.examples(range(CALIBRATION_SEED, CALIBRATION_SEED + 2))
            with torch.no_grad():
                prepared = baseline.prepare(
                    copied.denoiser.model, len(sampler.run.timesteps), lambda: copied(*examples)
                )
            seconds = perf_counter() - began
        return BaselineCandidate(variant, sampler, seconds, prepared=prepared or {})
