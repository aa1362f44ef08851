"""`Sampler`: a model sampled by a solver, with guidance and whatever cache is enabled; and `sample`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from l2c.cache.clock import Clock
from l2c.cache.contract import Run
from l2c.cache.gates import HardGates
from l2c.cache.runtime import CachedModel, active_cache, attach, check_model, enable_cache
from l2c.cache.schedule import CacheSchedule
from l2c.cache.store import peak_bytes
from l2c.engine.graphs import held_elements, share_graphs
from l2c.errors import CacheStateError, ConfigError, ContractError
from l2c.layers import find_layers
from l2c.sampling.compiled import CompiledSampler, log_engine, resolve_engine
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.linear import LinearSolver
from l2c.sampling.solvers import Solver, make_solver
from l2c.sampling.walk import drive, solver_walk

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

    def make_solver(self) -> Solver:
        """A fresh solver for one run."""
        if self.learned is not None:
            return LinearSolver.of_run(self.learned)
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
            A function of noise (B, C, H, W) and labels (B,), both on the model's device, that returns samples.

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
            if schedule is not None and (note := schedule.contract.guidance_note(run)):
                warnings.warn(note, stacklevel=2)
            return CompiledSampler(self.denoiser, self.guidance, run, schedule, mode)

        @torch.no_grad()
        def eager(noise: Tensor, labels: Tensor) -> Tensor:
            if schedule is None or table is None:
                return self(noise, labels)
            with attach(model, table, HardGates(schedule.plan, schedule.num_evaluations), schedule):
                return self(noise, labels)

        return eager

    def __call__(self, noise: Tensor, labels: Tensor, observer: Observer | None = None) -> Tensor:
        """Samples one batch.

        Args:
            noise: Unit normal (B, C, H, W), float32, on the model's device.
            labels: Class labels (B,), int64.
            observer: Called as (evaluation, network input, guided noise prediction) at every evaluation.

        Returns:
            Samples (B, C, H, W), unclamped. Differentiable where gradients are enabled.
        """
        solver = self.make_solver()
        timesteps = torch.tensor(solver.run.timesteps, device=noise.device)
        run = replace(solver.run, guidance=self.guidance.scale)
        with _clocked(self.denoiser.model, run) as clock:

            def predict(evaluation: int, x: Tensor) -> Tensor:
                if clock is not None:
                    clock.tick(evaluation)
                predicted = self.guidance.predict(self.denoiser, x, timesteps[evaluation], labels, clock)
                if observer is not None:
                    observer(evaluation, x, predicted)
                return predicted

            return drive(solver_walk(solver, noise), predict)


@contextmanager
def _clocked(model: nn.Module, run: Run) -> Iterator[Clock | None]:
    cache = active_cache(model)
    if cache is None:
        yield None
        return
    with cache.run(run) as clock:
        yield clock


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Unit normal noise (len(seeds), *shape), each image from its own generator.

    Image `seed` is the same alone, in any batch and in any order. The numbers are drawn on the CPU, so they are
    the same on every device.

    >>> bool((seeded_noise([7, 3], (1, 2, 2))[1] == seeded_noise([3], (1, 2, 2))[0]).all())
    True
    """
    noise = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(noise)


def check_labels(
    labels: int | Sequence[int] | Tensor, num_classes: int, has_null_class: bool = True
) -> Tensor:
    """Labels as an int64 tensor (B,).

    Args:
        labels: One label, or one per image.
        num_classes: Number of classes of the model.
        has_null_class: Whether `num_classes` itself is a label too, which stands for no class.

    Raises:
        ConfigError: If there are none or one is not a class of the model.
    """
    tensor = torch.as_tensor([labels] if isinstance(labels, int) else labels)
    if tensor.ndim != 1 or not tensor.numel() or tensor.is_floating_point():
        raise ConfigError(f"labels must be a list of whole numbers, one per image, got {labels!r}")
    bad = [int(label) for label in tensor if not 0 <= int(label) < num_classes + has_null_class]
    if bad:
        null_class = f" ({num_classes} is the null class)" if has_null_class else ""
        raise ConfigError(
            f"class label {bad[0]} is out of range; the model has classes 0 to {num_classes - 1}{null_class}"
        )
    return tensor.long()


@torch.no_grad()
def sample(
    model: nn.Module,
    labels: int | Sequence[int] | Tensor,
    seeds: Sequence[int] | None = None,
    noise: Tensor | None = None,
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    schedule: CacheSchedule | None = None,
    *,
    spacing: str | None = None,
    guidance_mode: str = "batch",
    guidance_channels: int | None = None,
    batch_size: int | None = None,
    observer: Observer | None = None,
    engine: str = "auto",
) -> Tensor:
    """Samples images, one per label.

    Args:
        model: A model from `load_model`, or diffusers' `DiTTransformer2DModel`.
        labels: Class label of each image.
        seeds: Seed of each image; 0, 1, 2, ... by default. A seed always gives the same image.
        noise: Initial noise (B, C, H, W) instead of seeds.
        solver: One of `l2c.sampling.SOLVERS`. What is left out of solver, steps, spacing and guidance is that of
            the schedule, and without one `ddim`, 50, `linspace` and 1.5.
        steps: Number of model evaluations.
        guidance: Classifier-free guidance scale; 1 is without.
        schedule: What to compute and what to reuse; None computes everything, or what the cache says that
            `enable_cache` has enabled.
        spacing: Spacing of the evaluations: `linspace`, `trailing`, `karras` or `logsnr`.
        guidance_mode: `batch` or `split`, see `Guidance`.
        guidance_channels: Guide only the first channels, see `Guidance`.
        batch_size: Images at a time; all at once by default.
        observer: See `Sampler`; it needs the eager engine, which `auto` then takes.
        engine: How the model is run: `graph`, `compile`, `eager` or `auto`, see `Sampler.compile`. A cache that
            `enable_cache` has enabled runs eagerly.

    Returns:
        Images (B, C, H, W) in [-1, 1], or latents for a latent model; on the model's device, float32.

    Raises:
        ConfigError: If an argument is unknown or out of range.
        ContractError: If the schedule was made for another model or run.

    Example:
        >>> import l2c
        >>> model = l2c.load_model("dit-mini-cifar10")
        >>> l2c.sample(model, labels=[3, 5], solver="dpmsolver++", steps=2).shape
        torch.Size([2, 3, 32, 32])
    """
    denoiser = Denoiser.of(model)
    label_tensor = check_labels(labels, denoiser.num_classes, denoiser.has_null_class)
    count = len(label_tensor)
    if noise is None:
        seeds = range(count) if seeds is None else seeds
        if len(seeds) != count:
            raise ConfigError(f"got {len(seeds)} seeds for {count} labels; give one seed per image")
        noise = seeded_noise(seeds, denoiser.sample_shape)
    elif tuple(noise.shape) != (count, *denoiser.sample_shape):
        raise ConfigError(
            f"noise must have shape {(count, *denoiser.sample_shape)} for {count} labels, got {tuple(noise.shape)}"
        )
    elif seeds is not None:
        raise ConfigError("give either seeds or noise, not both")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    enabled = active_cache(model)
    made_for = schedule or (enabled.schedule if enabled else None)
    sampler = resolve_sampler(
        denoiser, made_for, solver, steps, spacing, guidance, guidance_mode, guidance_channels
    )
    mode = _engine_for(engine, denoiser, enabled, observer)
    parts = zip(
        torch.split(noise, batch_size or count), torch.split(label_tensor, batch_size or count), strict=True
    )
    inputs = ((part.to(denoiser.device, torch.float32), some.to(denoiser.device)) for part, some in parts)
    if mode == "eager":
        reason = "a cache is enabled" if enabled is not None else "" if observer is None else "an observer"
        log_engine(mode, engine, denoiser, reason if engine == "auto" else "")
        with _scheduled(sampler, schedule, min(batch_size or count, count)):
            samples = [sampler(part, some, observer) for part, some in inputs]
    else:
        compiled = sampler.compile(schedule, engine)
        samples = [compiled(part, some) for part, some in inputs]
    images = torch.cat(samples)
    return images if denoiser.latent else images.clamp(-1, 1)


def _engine_for(
    engine: str, denoiser: Denoiser, enabled: CachedModel | None, observer: Observer | None
) -> str:
    """The engine that a call of `sample` gets."""
    mode = resolve_engine(engine, denoiser)
    if mode == "eager" or (enabled is None and observer is None):
        return mode
    if engine == "auto":
        return "eager"
    if enabled is not None:
        raise CacheStateError(
            f"a cache is enabled on the model, which the engine '{engine}' passes by; disable it and name the "
            "schedule, or use the engine 'eager'"
        )
    raise ConfigError(f"an observer sees every evaluation, which the engine '{engine}' does not; use 'eager'")


def resolve_sampler(
    denoiser: Denoiser,
    schedule: CacheSchedule | None,
    solver: str | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    guidance: float | None = None,
    guidance_mode: str = "batch",
    guidance_channels: int | None = None,
) -> Sampler:
    """The sampler that is asked for, with the schedule's own run wherever nothing is; arguments as for `sample`."""
    made_for = None if schedule is None else schedule.contract.run
    if guidance is None:
        guidance = 1.5 if made_for is None or made_for.guidance is None else made_for.guidance
    guided = Guidance(guidance, guidance_mode, guidance_channels)
    if made_for is None:
        return Sampler(
            denoiser, solver or "ddim", 50 if steps is None else steps, spacing or "linspace", guided
        )
    if solver is None and steps is None and spacing is None:
        return Sampler.of_run(denoiser, made_for, guided)
    if made_for.weights is not None:
        raise ContractError(
            f"the schedule was made with a solver of its own for {len(made_for.timesteps)} evaluations; "
            "name no solver, steps or spacing, since the schedule brings its own solver, or get one for another "
            f"with: l2c learn --solver {solver or 'NAME'}"
        )
    return Sampler(
        denoiser,
        solver or made_for.solver,
        made_for.steps if steps is None else steps,
        spacing or made_for.spacing,
        guided,
    )


@contextmanager
def _scheduled(sampler: Sampler, schedule: CacheSchedule | None, batch_size: int) -> Iterator[None]:
    """Enables the schedule, if there is one, for the duration, after checking that it fits the run."""
    if schedule is None:
        yield
        return
    schedule.contract.check_run(sampler.run)
    with enable_cache(sampler.denoiser.model, schedule) as cache:
        logger.info("feature store: at most %.1f MB", store_bytes(cache, sampler, batch_size) / 1e6)
        yield


def store_bytes(cache: CachedModel, sampler: Sampler, batch_size: int) -> int:
    """Peak memory of the feature store in bytes while `sampler` samples `batch_size` images at a time."""
    guidance = sampler.guidance
    return cache.peak_store_bytes(guidance.call_size(batch_size), guidance.calls, sampler.denoiser.dtype)


def planned_store_bytes(sampler: Sampler, schedule: CacheSchedule | None, mode: str, batch_size: int) -> int:
    """Peak memory in bytes of what a schedule stores with an engine, known before anything runs.

    Args:
        sampler: Model and guidance.
        schedule: What is reused; None for nothing.
        mode: The engine, from `resolve_engine`. Captured runs hold values in fixed places, a little longer.
        batch_size: Pictures at a time.
    """
    if schedule is None:
        return 0
    denoiser, guidance = sampler.denoiser, sampler.guidance
    table, rows = find_layers(denoiser.model), guidance.call_size(batch_size)
    if mode != "graph":
        return peak_bytes(schedule.plan, table, rows, guidance.calls, denoiser.dtype)
    held = held_elements(share_graphs(schedule.plan, schedule.num_evaluations), table)
    return held * rows * guidance.calls * denoiser.dtype.itemsize
