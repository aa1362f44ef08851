"""A variant made ready: something that can be switched on, sampled for given examples, and told the cost of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from l2c.cache.cached_model import CachedModel
from l2c.compare.baselines import BASELINES, Baseline, running
from l2c.compare.diffusers_caches import SampleBatch
from l2c.compare.forward_count import ForwardCount
from l2c.compare.hosts import Hosts
from l2c.compare.plan import FULL, Variant
from l2c.errors import CacheStateError, ConfigError, L2CError
from l2c.hosts.base import Examples, Host
from l2c.methods.base import all_computed, pattern
from l2c.methods.registry import find_method, schedule_for
from l2c.sampling.memory import store_bytes
from l2c.schedule.schedule import CacheSchedule

Sample = Callable[[Examples], Tensor]
"""Samples of a batch."""

Ready = tuple[Sample, Callable[[], float]]
"""What samples a batch, and what tells the multiply-accumulates per picture, without guidance, of what ran."""

CALIBRATION_SEED = 7_500_000


@dataclass(frozen=True)
class Candidate(ABC):
    """A variant that can be sampled.

    Attributes:
        variant: Which one.
        host: Makes its run, which may be another than its base's.
        prepare_s: Seconds of calibration or learning.
    """

    variant: Variant
    host: Host
    prepare_s: float = 0.0

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

    @contextmanager
    def ready(self) -> Iterator[Ready]:
        """See `Candidate.ready`."""
        with self.host.attach(self.schedule) if self.caches else nullcontext():
            yield self.host.sample, lambda: float(self.schedule.cost.macs)

    def store_bytes(self, batch_size: int) -> int | None:
        """See `Candidate.store_bytes`; of a pipeline nobody tells."""
        if not self.caches:
            return 0
        with self.host.attach(self.schedule) as cache:
            sampler = getattr(self.host, "sampler", None)
            if sampler is None or not isinstance(cache, CachedModel):
                return None
            return store_bytes(cache, sampler, batch_size)


@dataclass(frozen=True)
class BaselineCandidate(Candidate):
    """A cache of another library, and what it found out beforehand."""

    prepared: Mapping[str, Any] = field(kw_only=True)

    @contextmanager
    def ready(self) -> Iterator[Ready]:
        """See `Candidate.ready`."""
        baseline, evaluations = BASELINES[self.variant.method], len(self.host.run.timesteps)
        table, settings = self.host.table, {**self.variant.settings, **self.prepared}
        with running(self.host) as host, ExitStack() as stack:
            count = ForwardCount(host.models.values(), table if host is self.host else host.table)
            with _explained(baseline, host):
                around = stack.enter_context(baseline.enable(host, settings))

            def sample(examples: Examples) -> Tensor:
                with _explained(baseline, host):
                    return _sample(host, around, examples)

            yield sample, lambda: evaluations * count.macs

    def store_bytes(self, batch_size: int) -> int | None:
        """See `Candidate.store_bytes`."""
        return 0 if self.variant.method == "diffusers" else None


def _sample(host: Host, around: SampleBatch, examples: Examples) -> Tensor:
    """Every call of a pipeline is a run of its own for what resets itself between runs."""
    if host.batched:
        return around(lambda: host.sample(examples))
    rows = [examples.rows([index]) for index in range(len(examples))]
    return torch.cat([around(partial(host.sample, row)) for row in rows])


@contextmanager
def _explained(baseline: Baseline, host: Host) -> Iterator[None]:
    """Says of what another library raises that it cannot be run here."""
    try:
        yield
    except (L2CError, MemoryError):
        raise
    except Exception as error:
        models = " and ".join(dict.fromkeys(type(model).__name__ for model in host.models.values()))
        said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise CacheStateError(
            f"{baseline.title} does not run on {models} as it is here: {type(error).__name__}, {said}"
        ) from error


class Maker:
    """Makes candidates, and shares what is costly between those of one method and base.

    Args:
        hosts: What is compared.
        name: Of that, for people.
    """

    def __init__(self, hosts: Hosts, name: str) -> None:
        self._hosts, self._name = hosts, name
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
        host = self._hosts.base(variant.base)
        if variant.is_baseline:
            return self._baseline(variant, host, prepared)
        seconds = 0.0
        if saved is not None and saved.is_file():
            schedule = CacheSchedule.load(saved)
        elif variant.method == FULL:
            schedule = pattern(host, all_computed(host), {"method": FULL})
        else:
            schedule, seconds = self._schedule(variant, self._hosts.to_learn_on(variant.base))
        return ScheduleCandidate(
            variant, self._hosts.of_schedule(variant, schedule), seconds, schedule=schedule
        )

    def _schedule(self, variant: Variant, host: Host) -> tuple[CacheSchedule, float]:
        method = find_method(variant.method)
        if not method.suits(host.table.architecture):
            raise ConfigError(
                f"{method.title} is not for {host.table.architecture}, which {self._name} is; leave "
                f"'{method.name}' out"
            )
        prepared, seconds, began = None, 0.0, perf_counter()
        if method.prepare is not None:
            options = {k: v for k, v in variant.settings.items() if k in method.prepare_settings}
            key = f"{method.name} {variant.base.name} {sorted(options.items())}"
            if key not in self._shared:
                found = method.prepare(host, **options)
                self._shared[key] = (found, perf_counter() - began)
            prepared, seconds = self._shared[key]
            began = perf_counter()
        schedule = schedule_for(
            method, host, budget=variant.budget, prepared=prepared, settings=variant.settings
        )
        return schedule, seconds + perf_counter() - began

    def _baseline(
        self, variant: Variant, host: Host, prepared: Mapping[str, Any] | None
    ) -> BaselineCandidate:
        baseline, seconds = BASELINES[variant.method], 0.0
        baseline.check_installed()
        if baseline.prepare is not None and prepared is None:
            own = self._hosts.to_learn_on(variant.base)
            began, examples = perf_counter(), own.seeded([CALIBRATION_SEED, CALIBRATION_SEED + 1])
            if not own.batched:
                examples = examples.rows([0])
            _ = own.run, own.table
            with torch.no_grad(), running(own) as other, _explained(baseline, other):
                prepared = baseline.prepare(other, lambda: other.sample(examples))
            seconds = perf_counter() - began
        return BaselineCandidate(variant, host, seconds, prepared=prepared or {})
