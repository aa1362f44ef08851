"""A way made ready to sample: its schedule or peer, how it is switched on, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from l2c.cache.cached_model import enable_cache
from l2c.compare.baselines import PEERS, diffusers_copy, peer_sampler
from l2c.compare.config import CompareConfig
from l2c.compare.plan import FULL, Way
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.methods.registry import find_method, schedule_for
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.memory import store_bytes
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.schedule.contract import Run
from l2c.schedule.schedule import CacheSchedule

Sample = Callable[..., Tensor]
"""(noise, labels, observer=None) -> samples, as `Sampler`."""

CALIBRATION_SEED = 7_500_000


@dataclass(frozen=True)
class Candidate:
    """A way that can be sampled.

    Attributes:
        way: Which one.
        model: Our model.
        sampler: The model with the solver of the way, which may be another than its base's.
        schedule: What to compute; None for a peer.
        prepared: What a peer found out beforehand, plain data.
        prepare_s: Seconds of calibration or learning.
    """

    way: Way
    model: nn.Module
    sampler: Sampler
    schedule: CacheSchedule | None = None
    prepared: Mapping[str, Any] = field(default_factory=dict)
    prepare_s: float = 0.0

    @property
    def run(self) -> Run:
        """The run that it makes."""
        return self.sampler.run

    @contextmanager
    def ready(self) -> Iterator[tuple[Sample, Callable[[], float]]]:
        """Switches it on.

        Yields:
            The function that samples a batch, and one that tells the multiply-accumulates per picture, guidance not
            counted, from what ran since.
        """
        evaluations = len(self.run.timesteps)
        if self.way.is_peer:
            settings = {**self.way.settings, **self.prepared}
            batches = 0
            peer = PEERS[self.way.method]
            with peer_sampler(self.model, self.sampler, peer, settings) as (sample, count):

                def counted(*arguments: Any) -> Tensor:
                    nonlocal batches
                    batches += 1
                    return sample(*arguments)

                yield counted, lambda: count.macs(batches * evaluations) / max(1, batches)
            return
        assert self.schedule is not None
        if bool(self.schedule.compute.all()):
            macs = float(self.schedule.cost.macs)
            yield self.sampler, lambda: macs
            return
        with enable_cache(self.model, self.schedule):
            macs = float(self.schedule.cost.macs)
            yield self.sampler, lambda: macs

    def store_bytes(self, batch_size: int) -> int | None:
        """Peak memory of stored features; None where a peer does not tell."""
        if self.schedule is None:
            return None if self.way.method != "diffusers" else 0
        if bool(self.schedule.compute.all()):
            return 0
        with enable_cache(self.model, self.schedule) as cache:
            return store_bytes(cache, self.sampler, batch_size)


class Maker:
    """Makes candidates, and shares what is costly between those of one method and base."""

    def __init__(self, config: CompareConfig, model: nn.Module) -> None:
        self._config, self._model = config, model
        self._shared: dict[str, tuple[Any, float]] = {}

    def make(
        self, way: Way, saved: Path | None = None, prepared: Mapping[str, Any] | None = None
    ) -> Candidate:
        """A candidate, made anew, or from what an earlier run saved.

        Args:
            way: Which one.
            saved: File of its schedule, if there may be one.
            prepared: What a peer found out.

        Raises:
            L2CError: If the method does not fit the model or a setting is wrong.
        """
        sampler = self._sampler(way.base.solver, way.base.steps, way.base.spacing)
        if way.is_peer:
            return self._peer(way, sampler, prepared)
        if saved is not None and saved.is_file():
            schedule, seconds = CacheSchedule.load(saved), 0.0
        else:
            schedule, seconds = self._schedule(way, sampler)
        run = schedule.contract.run
        sampler = Sampler.of_run(Denoiser.of(self._model), run, Guidance(self._config.guidance))
        schedule.contract.check_run(sampler.run)
        schedule.check_layers(find_layers(self._model))
        return Candidate(way, self._model, sampler, schedule, prepare_s=seconds)

    def _schedule(self, way: Way, sampler: Sampler) -> tuple[CacheSchedule, float]:
        base = way.base
        if way.method == FULL:
            method = find_method("fewer-steps")
            full = method.make(self._model, base.solver, base.steps, spacing=base.spacing, budget=1.0)
            return replace(full, provenance={"method": FULL}), 0.0
        method = find_method(way.method)
        architecture = find_layers(self._model).architecture
        if architecture not in method.architectures:
            raise ConfigError(
                f"{method.title} is for {' and '.join(method.architectures)}, and {self._config.model} is a "
                f"{architecture}; "
                f"leave '{method.name}' out"
            )
        run: dict[str, Any] = {"spacing": base.spacing, "guidance": self._config.guidance}
        prepared, seconds = None, 0.0
        if method.prepare is not None:
            options = {k: v for k, v in way.settings.items() if k in method.prepare_settings}
            key = f"{method.name} {base.name} {sorted(options.items())}"
            if key not in self._shared:
                began = perf_counter()
                found = method.prepare(self._model, base.solver, base.steps, **run, **options)
                self._shared[key] = (found, perf_counter() - began)
            prepared, seconds = self._shared[key]
        schedule = schedule_for(
            method,
            self._model,
            base.solver,
            base.steps,
            **run,
            budget=way.budget,
            prepared=prepared,
            settings=way.settings,
        )
        return schedule, seconds

    def _peer(self, way: Way, sampler: Sampler, prepared: Mapping[str, Any] | None) -> Candidate:
        peer, seconds = PEERS[way.method], 0.0
        if peer.prepare is not None and prepared is None:
            began = perf_counter()
            transformer = diffusers_copy(self._model)
            copied = replace(sampler, denoiser=Denoiser.of(transformer))
            noise, labels = self.batch(range(CALIBRATION_SEED, CALIBRATION_SEED + 2))
            with torch.no_grad():
                prepared = peer.prepare(copied, noise, labels, way.settings)
            seconds = perf_counter() - began
        return Candidate(way, self._model, sampler, None, prepared or {}, seconds)

    def _sampler(self, solver: str, steps: int, spacing: str) -> Sampler:
        guidance = Guidance(self._config.guidance)
        return Sampler(Denoiser.of(self._model), solver, steps, spacing, guidance)

    def batch(self, seeds: range) -> tuple[Tensor, Tensor]:
        """Noise and labels of the pictures with these seeds; classes take turns."""
        denoiser = Denoiser.of(self._model)
        noise = seeded_noise(seeds, denoiser.sample_shape).to(denoiser.device)
        labels = torch.tensor([seed % denoiser.num_classes for seed in seeds], device=denoiser.device)
        return noise, labels
