"""`sample`: images by label and seed, with a schedule, by any engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from l2c.cache.cached_model import CachedModel, active_cache, enable_cache
from l2c.documents import MOST_EVALUATIONS, Count, Seeds, check_value
from l2c.errors import CacheStateError, ConfigError, ContractError, check_as_many
from l2c.sampling.compiled import log_engine, resolve_engine
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.lock import model_lock
from l2c.sampling.memory import store_bytes
from l2c.sampling.sampler import Observer, Sampler, seeded_noise
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.open import load_schedule
from l2c.schedule.schedule import CacheSchedule

logger = logging.getLogger(__name__)


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
    try:
        tensor = torch.as_tensor([labels] if isinstance(labels, int) else labels)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        tensor = torch.empty(0)
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
    schedule: CacheSchedule | ScheduleFamily | str | Path | None = None,
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
        solver: One of `l2c.sampling.solver_names()`. What is left out of solver, steps, spacing and guidance is that of
            the schedule, and without one `ddim`, 50, `linspace` and 1.5.
        steps: Number of model evaluations.
        guidance: Classifier-free guidance scale; 1 is without.
        schedule: What to compute and what to reuse, or where that is, as for `load_schedule`; None computes everything,
            or what the cache says that `enable_cache` has enabled.
        spacing: Spacing of the evaluations: `linspace`, `trailing`, `karras` or `logsnr`.
        guidance_mode: `batch` or `split`, see `Guidance`.
        guidance_channels: Guide only the first channels, see `Guidance`.
        batch_size: Images at a time; all at once by default.
        observer: See `Sampler`; it needs the eager engine, which `auto` then takes.
        engine: How the model is run: `graph`, `compile`, `eager` or `auto`, see `Sampler.compile`. A cache that
            `enable_cache` has enabled runs eagerly.

    Returns:
        Images (B, C, H, W) in [-1, 1], or latents for a latent model; on the model's device, float32. Calls on one
        model from several threads take turns.

    Raises:
        ConfigError: If an argument is unknown or out of range.
        ContractError: If the schedule was made for another model or run.
        NumericsError: If the images are not finite; names the first evaluation where they are not.

    Example:
        >>> import l2c
        >>> model = l2c.load_model("dit-mini-cifar10")
        >>> l2c.sample(model, labels=[3, 5], solver="dpmsolver++", steps=2).shape
        torch.Size([2, 3, 32, 32])
    """
    denoiser = Denoiser.of(model)
    schedule = None if schedule is None else load_schedule(schedule)
    label_tensor = check_labels(labels, denoiser.num_classes, denoiser.has_null_class)
    count = len(label_tensor)
    if noise is None:
        seeds = range(count) if seeds is None else seeds
        seeds = check_value("seeds", seeds, Seeds)
        check_as_many("seeds", seeds, "labels", label_tensor)
        noise = seeded_noise(seeds, denoiser.sample_shape)
    elif tuple(noise.shape) != (count, *denoiser.sample_shape):
        raise ConfigError(
            f"noise must have shape {(count, *denoiser.sample_shape)} for {count} labels, got {tuple(noise.shape)}"
        )
    elif seeds is not None:
        raise ConfigError("give either seeds or noise, not both")
    size = check_value("batch_size", batch_size, Count | None) or count
    parts = zip(torch.split(noise, size), torch.split(label_tensor, size), strict=True)
    inputs = [(part.to(denoiser.device, torch.float32), some.to(denoiser.device)) for part, some in parts]
    with model_lock(model):
        enabled = active_cache(model)
        made_for = schedule or (enabled.schedule if enabled else None)
        sampler = resolve_sampler(
            denoiser, made_for, solver, steps, spacing, guidance, guidance_mode, guidance_channels
        )
        mode = _engine_for(engine, denoiser, enabled, observer)
        if mode == "eager":
            reason = (
                "a cache is enabled" if enabled is not None else "" if observer is None else "an observer"
            )
            log_engine(mode, engine, denoiser, reason if engine == "auto" else "")
            with _scheduled(sampler, schedule, min(size, count)):
                samples = [sampler(part, some, observer) for part, some in inputs]
        else:
            compiled = sampler.compile(schedule, engine)
            samples = [compiled(part, some) for part, some in inputs]
        for made, (part, some) in zip(samples, inputs, strict=True):
            sampler.check_finite(made, part, some, schedule)
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
    check_value("steps", steps, Annotated[Count, Field(le=MOST_EVALUATIONS)] | None)
    most = denoiser.sample_shape[0]
    check_value("guidance_channels", guidance_channels, Annotated[Count, Field(le=most)] | None)
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
            f"with: l2c learn MODEL --solver {solver or 'NAME'}"
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
