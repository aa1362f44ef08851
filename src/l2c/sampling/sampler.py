"""`Sampler`: a model sampled by a solver, with guidance and whatever cache is enabled."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from l2c.cache.branches import branches_of, policy_of
from l2c.cache.cached_model import active_cache, attach, check_model
from l2c.errors import NumericsError
from l2c.sampling.compiled import CompiledSampler, log_engine, resolve_engine
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.linear import LinearSolver
from l2c.sampling.lock import model_lock
from l2c.sampling.loop import run_loop, sampling_loop
from l2c.sampling.solvers import Solver, make_solver
from l2c.schedule.contract import Run
from l2c.schedule.schedule import CacheSchedule

logger = logging.getLogger(__name__)

Observer = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Sampler:
    """A model with a solver: noise and labels in, samples out.

    A cache that is enabled on the model is used; without one, everything is computed.

    Attributes:
        denoiser: The model.
        solver: Solver name.
        steps: Number of model evaluations.
        spacing: Spacing of the evaluations.
        guidance: Classifier-free guidance.
        learned: Run that brings the weights of its solver, instead of a solver by name.
    """

    denoiser: Denoiser
    solver: str = "ddim"
    steps: int = 50
    spacing: str = "linspace"
    guidance: Guidance = field(default_factory=Guidance)
    learned: Run | None = None

    @classmethod
    def of_run(cls, denoiser: Denoiser, run: Run, guidance: Guidance) -> Sampler:
        """A sampler that makes a run as a schedule records it, apart from guidance."""
        learned = run if run.weights is not None else None
        return cls(denoiser, run.solver, run.steps, run.spacing, guidance, learned)

    def make_solver(self, scales: Tensor | None = None) -> Solver:
        """A fresh solver for one run, with the guidance scale of each picture (B,) where they differ."""
        if self.learned is not None:
            return LinearSolver.of_run(replace(self.learned, guidance=self.guidance.scale), scales)
        return make_solver(self.solver, self.steps, self.spacing, self.denoiser.noise_schedule)

    @property
    def run(self) -> Run:
        """The run that sampling makes, as schedules record it."""
        return replace(self.make_solver().run, guidance=self.guidance.scale)

    def compile(
        self, schedule: CacheSchedule | None = None, engine: str = "auto", *, any_weights: bool = False
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """This sampler with a schedule, made for being called many times.

        Args:
            schedule: What to compute and what to reuse; None computes everything.
            engine: `graph` captures the evaluations as CUDA graphs, `compile` runs them as compiled pieces, `eager`
                runs the model as it is; `auto` takes graphs on CUDA devices and eager elsewhere.
            any_weights: Warn, instead of refusing, when the schedule was learned on other weights.

        Returns:
            A function of noise (B, C, H, W) and labels (B,), both on the model's device, that returns samples. Calls
            from several threads take turns.

        Raises:
            ConfigError: If the engine is unknown or does not fit the model or its device.
            ContractError: If the schedule was made for another model or run.
        """
        model, run = self.denoiser.model, self.run
        mode = resolve_engine(engine, self.denoiser)
        log_engine(mode, engine, self.denoiser)
        table = None
        if schedule is not None:
            schedule.contract.check_run(run)
            table = check_model(model, schedule, any_weights=any_weights)
        if mode != "eager":
            if schedule is not None and (note := schedule.guidance_note(run)):
                warnings.warn(note, stacklevel=2)
            return CompiledSampler(self.denoiser, self.guidance, run, schedule, mode)

        @torch.no_grad()
        def eager(noise: Tensor, labels: Tensor, observer: Observer | None = None) -> Tensor:
            with model_lock(model), ExitStack() as stack:
                if schedule is not None and table is not None:
                    stack.enter_context(attach(model, table, policy_of(schedule), schedule))
                return self(noise, labels, observer)

        return eager

    def check_finite(
        self, samples: Tensor, noise: Tensor, labels: Tensor, schedule: CacheSchedule | None = None
    ) -> None:
        """Refuses samples that are not finite; looks at them once, and samples again to find out where it began.

        Args:
            samples: What came out (B, C, H, W).
            noise: What they were sampled from, and with which labels (B,).
            labels: Class labels.
            schedule: What was reused, other than by a cache that is enabled.

        Raises:
            NumericsError: If there are NaN or infinite values; names the first evaluation with one.
        """
        if samples.isfinite().all():
            return
        found: list[int] = []

        def look(evaluation: int, x: Tensor, predicted: Tensor) -> None:
            if not (x.isfinite().all() and predicted.isfinite().all()):
                found.append(evaluation)

        again: Any = self.compile(schedule, "eager", any_weights=True)
        again(noise, labels, look)
        where = (
            f"first at evaluation {found[0]} of {len(self.run.timesteps)}" if found else "in the last step"
        )
        raise NumericsError(
            f"the pictures are not finite, {where}; check the weights and the schedule for NaN, lower the guidance "
            f"{self.guidance.scale:g}, or use float32"
        )

    def __call__(
        self,
        noise: Tensor,
        labels: Tensor,
        observer: Observer | None = None,
        *,
        solver: tuple[Solver, Tensor] | None = None,
        bf16: bool = False,
        scales: Tensor | None = None,
    ) -> Tensor:
        """Samples one batch.

        Args:
            noise: Unit normal (B, C, H, W), float32, on the model's device.
            labels: Class labels (B,), int64.
            observer: Called as (evaluation, network input, guided prediction) at every evaluation.
            solver: A fresh solver with the timesteps (N,) of its evaluations, instead of the sampler's.
            bf16: Let matrix products be in bfloat16.
            scales: Guidance scale of each picture (B,), in place of the sampler's, which must not be 1.

        Returns:
            Samples (B, C, H, W), unclamped. Differentiable where gradients are enabled.
        """
        fresh, timesteps = solver or (self.make_solver(scales), None)
        times = torch.tensor(fresh.run.timesteps, device=noise.device) if timesteps is None else timesteps
        run = replace(fresh.run, guidance=self.guidance.scale)
        cache = active_cache(self.denoiser.model)
        branches = None if cache is None else branches_of(cache.policy)
        each = None if scales is None else scales[:, None, None, None]
        with nullcontext() if cache is None else cache.run(run) as clock:

            def predict(evaluation: int, x: Tensor) -> Tensor:
                if clock is not None:
                    clock.tick(evaluation)
                with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                    predicted = self.guidance.predict(
                        self.denoiser, x, times[evaluation], labels, clock, branches, each
                    )
                if observer is not None:
                    observer(evaluation, x, predicted)
                return predicted

            return run_loop(sampling_loop(fresh, noise), predict)


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Unit normal noise (len(seeds), *shape), each image from its own generator.

    Image `seed` is the same alone, in any batch and in any order. The numbers are drawn on the CPU, so they are
    the same on every device.

    >>> bool((seeded_noise([7, 3], (1, 2, 2))[1] == seeded_noise([3], (1, 2, 2))[0]).all())
    True
    """
    noise = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(noise)
