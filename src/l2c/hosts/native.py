"""`ModelHost`: a model that `l2c.sample` samples by class labels, with a solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from l2c.cache.branches import policy_of
from l2c.cache.cached_model import attach
from l2c.cache.policy import ReusePolicy
from l2c.digest import digest
from l2c.documents import Real, check_value
from l2c.errors import ConfigError
from l2c.hosts.base import Examples, Handle, Host, SolverTable
from l2c.hosts.labelled_noise import LabelledNoise
from l2c.layers import LayerTable, find_layers, fingerprint
from l2c.sampling.compiled import engine_of, resolve_engine
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.draw import draw, random_labels
from l2c.sampling.guidance import Guidance
from l2c.sampling.linear import LinearSolver, learned_run, multistep_table, start_levels
from l2c.sampling.noise_schedule import FLOW_PREDICTION
from l2c.sampling.sampler import Observer, Sampler, seeded_noise
from l2c.schedule.contract import Contract, Run
from l2c.schedule.schedule import CacheSchedule

FINE_SOLVER = ("dpmsolver++3", "logsnr")
"""Solver and spacing of fine-step solutions."""
START, STARTS = "dpmsolver++", ("logsnr", "linspace")
"""Solver that a learned one begins with, and spacings that its noise levels are between."""
KNOWN = (
    ("dpmsolver++", "logsnr"),
    ("dpmsolver++3", "logsnr"),
    ("unipc", "logsnr"),
    ("unipc", "linspace"),
)
"""Solvers and spacings of fewer steps."""


class ModelHost:
    """A model with a solver and guidance; see `Host`.

    Args:
        sampler: The model and its run.
        scales: Lowest and highest guidance scale that examples are drawn with; None: that of the sampler.
    """

    batched = True

    def __init__(self, sampler: Sampler, scales: tuple[float, float] | None = None) -> None:
        self.sampler, self.scales = sampler, scales
        self.target: nn.Module = sampler.denoiser.model
        self.unit = "relative" if sampler.denoiser.latent else "absolute"

    @classmethod
    def of(
        cls,
        model: nn.Module,
        solver: str = "ddim",
        steps: int = 50,
        spacing: str = "linspace",
        guidance: float | tuple[float, float] = 1.5,
        guidance_mode: str = "batch",
        guidance_channels: int | None = None,
    ) -> ModelHost:
        """A host of a model; arguments as for `l2c.sample`, and guidance may be a range, from which examples draw.

        Raises:
            ConfigError: If one is unknown or out of range, or the model is not sampled by class labels.
        """
        scales = _range_of(guidance) if isinstance(guidance, (tuple, list)) else None
        scale = guidance if scales is None else sum(scales) / 2
        guided = Guidance(scale, guidance_mode, guidance_channels)  # type: ignore[arg-type]
        sampler = Sampler(Denoiser.of(model), solver, steps, spacing, guided)
        _ = sampler.run  # an unknown solver or number of steps is refused here
        return cls(sampler, scales)

    @classmethod
    def of_schedule(
        cls, model: nn.Module, schedule: CacheSchedule, guidance: float | None = None
    ) -> ModelHost:
        """A host whose run is that of a schedule."""
        run = schedule.contract.run
        scale = 1.5 if run.guidance is None else run.guidance
        return cls(Sampler.of_run(Denoiser.of(model), run, Guidance(scale if guidance is None else guidance)))

    @cached_property
    def run(self) -> Run:
        """See `Host.run`."""
        learned, run = self.sampler.learned, self.sampler.run
        if learned is not None and learned.guidance_range == self.scales:  # with weights for all of the range
            return replace(learned, guidance=run.guidance)
        return replace(run, guidance_range=self.scales)

    @cached_property
    def table(self) -> LayerTable:
        """See `Host.table`."""
        return find_layers(self.target)

    segments: tuple[int, ...] = (0,)

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """See `Host.models`."""
        return {"model": self.target}

    @property
    def device(self) -> torch.device:
        """See `Host.device`."""
        return self.sampler.denoiser.device

    @property
    def rows_and_calls(self) -> tuple[int, int]:
        """See `Host.rows_and_calls`."""
        return self.sampler.guidance.call_size(1), self.sampler.guidance.calls

    @property
    def has_branches(self) -> bool:
        """See `Host.has_branches`."""
        return self.sampler.guidance.scale != 1

    @cached_property
    def _fingerprint(self) -> tuple[float, ...]:
        return fingerprint(self.target, self.table)

    @property
    def identity(self) -> dict[str, Any]:
        """See `Host.identity`."""
        sampler, denoiser = self.sampler, self.sampler.denoiser
        return {
            "model": f"{self.table.architecture} with {len(self.table)} layers",
            "weights": digest(self._fingerprint, self.table.to_json()),
            "dtype": str(denoiser.dtype).removeprefix("torch."),
            "device": denoiser.device.type,
            "solver": sampler.solver,
            "steps": sampler.steps,
            "spacing": sampler.spacing,
            "timesteps": digest(self.run.timesteps),
            "guidance": sampler.guidance.scale,
            **({} if self.scales is None else {"guidance_range": list(self.scales)}),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """See `Host.provenance`."""
        return {}

    def contract(self, model_name: str = "", *, weights: bool = True) -> Contract:
        """See `Host.contract`; a schedule that fits any weights fits any guidance, too."""
        kind = self.sampler.denoiser.noise_schedule.prediction_type
        if not weights:
            run = replace(self.run, guidance=None, guidance_range=None)
            return Contract(run, model_name, prediction_type=kind)
        return Contract(self.run, model_name, self._fingerprint, kind)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """See `Host.prepared`."""
        weights = [weight for weight in self.target.parameters() if weight.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        try:
            with torch.enable_grad():
                yield
        finally:
            for weight in weights:
                weight.requires_grad_(True)

    def examples(self, count: int, *key: int | str, held_out: int = 0) -> LabelledNoise:
        """See `Host.examples`."""
        denoiser, (seed, *what) = self.sampler.denoiser, key
        generator = draw(int(seed), *what)
        noise = torch.randn((count, *denoiser.sample_shape), generator=generator)
        labels = random_labels(generator, count, denoiser.num_classes)
        drawn = None
        if self.scales is not None:
            low, high = self.scales
            drawn = (low + (high - low) * torch.rand(count, generator=generator)).to(denoiser.device)
        return LabelledNoise(noise.to(denoiser.device), labels.to(denoiser.device), drawn)

    def seeded(self, seeds: Sequence[int]) -> LabelledNoise:
        """See `Host.seeded`."""
        denoiser = self.sampler.denoiser
        noise = seeded_noise(seeds, denoiser.sample_shape).to(denoiser.device)
        labels, count = torch.arange(len(seeds), device=denoiser.device), len(seeds)
        scales = None
        if self.scales is not None:
            low, high = self.scales
            scales = low + (high - low) * (labels + 0.5) / count
        return LabelledNoise(noise, labels % denoiser.num_classes, scales)

    def sample(
        self,
        examples: Examples,
        *,
        bf16: bool = False,
        solver: SolverTable | None = None,
        observer: Observer | None = None,
    ) -> Tensor:
        """See `Host.sample`; for the observer see `Sampler`."""
        assert isinstance(examples, LabelledNoise)
        own = None
        if solver is not None:
            run = replace(self.run, guidance_degree=solver.degree)
            linear = LinearSolver(run, solver.weights.float(), solver.fit, examples.scales)
            own = linear, self.timesteps_of(solver.log_snrs).float()
        return self.sampler(
            examples.noise, examples.labels, observer, solver=own, bf16=bf16, scales=examples.scales
        )

    def means_by_size(self, examples: Examples, values: Tensor) -> dict[str, float]:
        """See `Host.means_by_size`; they have one size, which has no name."""
        return {}

    @torch.no_grad()
    def together(
        self, examples: Examples, *, bf16: bool = False, solver: SolverTable | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """See `Host.together`."""
        states: list[Tensor] = []
        made = self.sample(
            examples,
            bf16=bf16,
            solver=solver,
            observer=lambda _evaluation, x, _predicted: states.append(x),
        )
        return made, [*states, made]

    @contextmanager
    def attach(
        self,
        policy: CacheSchedule | ReusePolicy,
        *,
        around: Callable[[Callable[[], Any]], Any] | None = None,
        recompute: bool = False,
        offload: bool = False,
    ) -> Iterator[Handle]:
        """See `Host.attach`."""
        if recompute:
            raise ConfigError(
                "whole evaluations are computed again on pipelines; take recompute=True (--recompute) for this model"
            )
        if isinstance(policy, CacheSchedule):
            policy = policy_of(policy, around)
        with attach(self.target, self.table, policy) as cache:
            yield cache

    def reference(self, steps: int | None) -> Host:
        """See `Host.reference`."""
        return self if steps is None else self.with_run(*FINE_SOLVER, steps)

    def fewer_steps(self, steps: int) -> Mapping[str, Host]:
        """See `Host.fewer_steps`."""
        spacings = self.sampler.denoiser.noise_schedule.spacings
        return {
            f"{solver}, {spacing}": self.with_run(solver, spacing, steps)
            for solver, spacing in KNOWN
            if spacing in spacings
        }

    def solver_starts(self, steps: int) -> Sequence[Host]:
        """See `Host.solver_starts`."""
        ends = [self.with_run(START, spacing, steps) for spacing in STARTS]
        if self.sampler.denoiser.noise_schedule.prediction_type == FLOW_PREDICTION:
            ends.reverse()
        first, last = ends
        _, *between = start_levels(first.run.log_snrs, last.run.log_snrs)
        return [first, *(first._at(torch.tensor(levels, dtype=torch.float64)) for levels in between)]

    def _at(self, log_snrs: Tensor) -> ModelHost:
        """The host with DPM-Solver++(2M) at other noise levels, as half log-SNRs (N,)."""
        sampler, times = self.sampler, self.timesteps_of(log_snrs)
        run = learned_run(self.run, log_snrs, self.multistep_table(log_snrs), times)
        return ModelHost(Sampler.of_run(sampler.denoiser, run, sampler.guidance), self.scales)

    def with_run(self, solver: str, spacing: str, steps: int) -> ModelHost:
        """A host of the same model with another solver, spacing and number of steps."""
        sampler = self.sampler
        made = ModelHost(Sampler(sampler.denoiser, solver, steps, spacing, sampler.guidance), self.scales)
        _ = made.run  # more evaluations than a solver can make are refused here
        return made

    def multistep_table(self, log_snrs: Tensor) -> Tensor:
        """See `Host.multistep_table`."""
        kind = self.sampler.denoiser.noise_schedule.prediction_type
        return multistep_table(log_snrs, kind, flow=kind == FLOW_PREDICTION)

    def timesteps_of(self, log_snrs: Tensor) -> Tensor:
        """See `Host.timesteps_of`."""
        return self.sampler.denoiser.noise_schedule.timesteps_of(log_snrs)

    def for_schedule(self, schedule: CacheSchedule) -> Host:
        """See `Host.for_schedule`."""
        if schedule.contract.run.weights is None:
            return self
        sampler = Sampler.of_run(self.sampler.denoiser, schedule.contract.run, self.sampler.guidance)
        return ModelHost(sampler, self.scales)

    def with_steps(self, steps: int) -> Host:
        """See `Host.with_steps`."""
        if self.sampler.learned is not None:
            return self
        return self.with_run(self.sampler.solver, self.sampler.spacing, steps)

    def resolve_engine(self, engine: str) -> str:
        """See `Host.resolve_engine`."""
        mode = resolve_engine(engine, self.sampler.denoiser)
        if mode != "eager":
            engine_of(self.target, mode)  # refuses what does not fit
        return mode

    def ready(
        self, schedule: CacheSchedule | None, batch_size: int, engine: str = "auto"
    ) -> Callable[[], object]:
        """See `Host.ready`."""
        batch = self.seeded(range(batch_size))
        noise, labels = batch.noise, batch.labels
        sample = self.sampler.compile(schedule, engine)
        return lambda: sample(noise, labels)


def _range_of(guidance: Sequence[float]) -> tuple[float, float]:
    scales = tuple(check_value("guidance", scale, Annotated[Real, Field(ge=1)]) for scale in guidance)
    if len(scales) != 2 or not scales[0] < scales[1]:
        raise ConfigError(
            "a range of guidance is two scales from 1 up, the lower one first, such as (1, 5), got "
            f"{tuple(guidance)}"
        )
    return scales[0], scales[1]


def check_class_host(host: Host, what: str) -> ModelHost:
    """The host, if it is a model sampled by class labels.

    Raises:
        ConfigError: If it is a pipeline; the sentence says what needs a model.
    """
    if not isinstance(host, ModelHost):
        raise ConfigError(f"{what} needs a model sampled by class labels, not a pipeline")
    return host
