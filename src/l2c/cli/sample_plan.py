"""What `l2c sample` was asked for, and what follows from it: seeds, labels, the run, its costs and its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2c.cache.cached_model import enable_cache
from l2c.cli.options import parse_numbers
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.sampling.compiled import resolve_engine
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.images import resolve_sampler
from l2c.sampling.memory import planned_store_bytes
from l2c.sampling.sampler import Observer, Sampler
from l2c.schedule.schedule import CacheSchedule

DEFAULT_COUNT = 8


@dataclass(frozen=True)
class SampleRequest:
    """What was asked for, as on the command line; None where the schedule or the program decides."""

    model: str
    schedule: Path | None
    budget: float | None
    any_weights: bool
    labels: str | None
    num: int | None
    seed: int
    seeds: str | None
    solver: str | None
    steps: int | None
    spacing: str | None
    guidance: float | None
    guidance_mode: str
    guidance_channels: int | None
    batch_size: int
    device: str
    dtype: str
    vae: Path | None
    engine: str = "auto"
    npz: bool = False
    resume: bool = False


def plan_seeds(request: SampleRequest, labels: list[int] | None) -> list[int]:
    """Seed of every picture; their number decides how many there are."""
    if request.seeds is None:
        count = request.num or (DEFAULT_COUNT if labels is None else len(labels))
        return list(range(request.seed, request.seed + count))
    seeds = parse_numbers(request.seeds, "--seeds")
    if request.num is not None and request.num != len(seeds):
        raise ConfigError(
            f"--seeds lists {len(seeds)} pictures but --num asks for {request.num}; leave one of them out"
        )
    return seeds


def assign_labels(labels: list[int] | None, count: int, num_classes: int) -> list[int]:
    """Label of every picture: the listed ones, or all classes, in turn."""
    listed: Sequence[int] = labels or range(num_classes)
    bad = [label for label in listed if label >= num_classes]
    if bad:
        raise ConfigError(
            f"class label {bad[0]} is out of range; the model has classes 0 to {num_classes - 1}"
        )
    return [listed[index % len(listed)] for index in range(count)]


def make_sampler(model: nn.Module, request: SampleRequest, schedule: CacheSchedule | None) -> Sampler:
    """The run that was asked for, with the schedule's own wherever nothing was."""
    sampler = resolve_sampler(
        Denoiser.of(model),
        schedule,
        request.solver,
        request.steps,
        request.spacing,
        request.guidance,
        request.guidance_mode,
        request.guidance_channels,
    )
    run = sampler.run  # an unknown solver or spacing ends here
    if schedule is not None:
        schedule.contract.check_run(run)
    return sampler


@contextmanager
def ready(
    sampler: Sampler, schedule: CacheSchedule | None, request: SampleRequest, observer: Observer | None = None
) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """A function of noise and labels that samples one batch with the engine that was asked for.

    Args:
        sampler: The run.
        schedule: What to compute and what to reuse.
        request: Which engine, and whether other weights are allowed.
        observer: Of every evaluation; only the eager engine has them.
    """
    mode = resolve_engine(request.engine, sampler.denoiser)
    if mode != "eager":
        yield sampler.compile(schedule, mode, any_weights=request.any_weights)
        return
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if schedule is not None:
            model = sampler.denoiser.model
            stack.enter_context(enable_cache(model, schedule, any_weights=request.any_weights))
        yield partial(sampler, observer=observer)


def sampling_costs(
    sampler: Sampler, schedule: CacheSchedule | None, mode: str, batch_size: int
) -> dict[str, Any]:
    """What a picture costs in multiply-accumulates, and the stored values of a batch in bytes."""
    table, guidance = find_layers(sampler.denoiser.model), sampler.guidance
    evaluations = len(sampler.run.timesteps)
    return {
        "macs_per_picture": evaluations * table.full_macs if schedule is None else schedule.cost.macs,
        "full_macs_per_picture": evaluations * table.full_macs,
        "guidance_factor": 1 if guidance.scale == 1 else 2,
        "store_peak_bytes": planned_store_bytes(sampler, schedule, mode, batch_size),
    }


def picture_name(seed: int, label: int) -> str:
    """Name of a picture's file."""
    return f"seed{seed:06d}-label{label:03d}.png"


def used_config(request: SampleRequest, sampler: Sampler, labels: list[int]) -> dict[str, Any]:
    """Every setting with the value that was used."""
    run = sampler.run
    return {
        "model": request.model,
        "schedule": None if request.schedule is None else str(request.schedule),
        "budget": request.budget,
        "any_weights": request.any_weights,
        "labels": labels,
        "solver": run.solver,
        "steps": run.steps,
        "spacing": run.spacing,
        "timesteps": list(run.timesteps),
        "guidance": sampler.guidance.scale,
        "guidance_mode": request.guidance_mode,
        "guidance_channels": request.guidance_channels,
        "batch_size": request.batch_size,
        "engine": resolve_engine(request.engine, sampler.denoiser),
        "dtype": request.dtype,
        "vae": None if request.vae is None else str(request.vae),
    }
