"""What `l2c sample` does: loads, samples under a progress bar, writes pictures and a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import safetensors.torch
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from l2c.bench.timing import synchronize
from l2c.cache.runtime import enable_cache
from l2c.cache.schedule import CacheSchedule
from l2c.cli.console import macs, note, print_json, progress_bar, results, seconds
from l2c.cli.options import parse_numbers, resolve_device, resolve_dtype
from l2c.cli.processes import num_processes
from l2c.cli.schedules import read_schedule
from l2c.errors import ConfigError
from l2c.files import atomic_write, output_folder
from l2c.layers import find_layers
from l2c.models import load_model
from l2c.records import RunRecord, describe_device
from l2c.report.pictures import enlargement, picture_grid, png, to_pixels
from l2c.sampling.compiled import resolve_engine
from l2c.sampling.decoding import LatentDecoder
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Observer, Sampler, planned_store_bytes, resolve_sampler, seeded_noise

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


def run_sample(request: SampleRequest, out: Path) -> RunRecord | None:
    """Samples and writes everything to the folder `out`.

    Returns:
        The record; None in all but the first of several processes.

    Raises:
        L2CError: Whatever is wrong; a new folder that is still empty is then removed again.
    """
    if request.budget is not None and request.schedule is None:
        raise ConfigError("--budget chooses from a family of schedules; name its file with --schedule")
    if request.npz or request.resume or num_processes() > 1:
        from l2c.cli.sample_set import run_sample_set

        return run_sample_set(request, out)
    labels = None if request.labels is None else parse_numbers(request.labels, "--labels")
    seeds = plan_seeds(request, labels)
    device = resolve_device(request.device)
    dtype = resolve_dtype(request.dtype, device)
    with output_folder(out) as folder:
        schedule = (
            None if request.schedule is None else read_schedule(request.schedule, budget=request.budget)
        )
        decoder = None if request.vae is None else LatentDecoder(request.vae, device)
        began = perf_counter()
        model = load_model(request.model, dtype=dtype, device=device)
        load_s = perf_counter() - began
        sampler = make_sampler(model, request, schedule)
        if decoder is not None and not sampler.denoiser.latent:
            raise ConfigError(f"{request.model} makes pictures, not latents, so --vae has nothing to decode")
        labels = assign_labels(labels, len(seeds), sampler.denoiser.num_classes)
        samples, sample_s, costs = _sample(sampler, schedule, request, labels, seeds)
        files, decode_s = _write(folder, samples, sampler.denoiser.latent, decoder, seeds, labels)
        record = RunRecord(
            command="sample",
            config=used_config(request, sampler, labels),
            seeds=tuple(seeds),
            timings={"load_s": [load_s], "sample_s": [sample_s], "decode_s": decode_s},
            results={"files": files, **costs},
            device=describe_device(device),
        )
        record.save(folder / "record.json")
    return record


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


def _sample(
    sampler: Sampler,
    schedule: CacheSchedule | None,
    request: SampleRequest,
    labels: list[int],
    seeds: list[int],
) -> tuple[Tensor, float, dict[str, Any]]:
    """Samples under a progress bar.

    Returns:
        Samples on the CPU, seconds, and costs.
    """
    denoiser, size = sampler.denoiser, request.batch_size
    mode = resolve_engine(request.engine, denoiser)
    parts = [slice(begin, begin + size) for begin in range(0, len(seeds), size)]
    steps = len(sampler.run.timesteps) if mode == "eager" else 1  # of the bar, for each batch
    with progress_bar() as bar:
        task = bar.add_task("sampling", total=len(parts) * steps)
        with ready(sampler, schedule, request, lambda *_: bar.advance(task)) as run_batch:
            costs = sampling_costs(sampler, schedule, mode, min(size, len(seeds)))
            if schedule is not None:
                note(f"stored layer outputs will take at most {costs['store_peak_bytes'] / 1e6:.1f} MB")
            samples = []
            synchronize()
            began = perf_counter()
            for part in parts:
                noise = seeded_noise(seeds[part], denoiser.sample_shape).to(denoiser.device)
                samples.append(run_batch(noise, torch.tensor(labels[part], device=denoiser.device)))
                if mode != "eager":
                    bar.advance(task)
            synchronize()
            taken = perf_counter() - began
    return torch.cat(samples).cpu(), taken, costs


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


def _write(
    folder: Path,
    samples: Tensor,
    latent: bool,
    decoder: LatentDecoder | None,
    seeds: list[int],
    labels: list[int],
) -> tuple[list[str], list[float]]:
    """Writes latents, pictures and their grid.

    Returns:
        Names of the files, and the seconds of decoding where there was any.
    """
    files: list[str] = []
    decode_s: list[float] = []

    def write(name: str, data: bytes) -> None:
        atomic_write(folder / name, data)
        files.append(name)

    if latent:
        metadata = {"seeds": ",".join(map(str, seeds)), "labels": ",".join(map(str, labels))}
        write("latents.safetensors", safetensors.torch.save({"latents": samples.contiguous()}, metadata))
        if decoder is None:
            note("the model makes latents; to see pictures, name an autoencoder with --vae FOLDER")
            return files, decode_s
        began = perf_counter()
        samples = decoder(samples).cpu()
        decode_s.append(perf_counter() - began)
    pixels = to_pixels(samples)
    for index, (seed, label) in enumerate(zip(seeds, labels, strict=True)):
        write(picture_name(seed, label), png(picture_grid(pixels[index : index + 1])))
    write("grid.png", png(picture_grid(pixels, scale=enlargement(pixels.shape[1]))))
    return files, decode_s


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


def report(record: RunRecord, folder: Path, *, as_json: bool) -> None:
    """Prints what came out."""
    if as_json:
        print_json({"folder": str(folder), **record.to_json()})
        return
    config, costs, taken = record.config, record.results, record.timings["sample_s"][0]
    full, left, count = costs["full_macs_per_picture"], costs["macs_per_picture"], len(record.seeds)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    grid.add_row("pictures" if "grid.png" in costs["files"] else "latents", Text(f"{count} in {folder}"))
    grid.add_row(
        "run",
        f"{config['solver']}, {len(config['timesteps'])} evaluations, {config['spacing']} spacing, "
        f"guidance {config['guidance']:g}, engine {config['engine']}",
    )
    grid.add_row("time", f"{seconds(taken)}, {seconds(taken / count)} per picture")
    guided = ", twice that with guidance" if costs["guidance_factor"] == 2 else ""
    share = f"all of {macs(full)}" if left == full else f"{macs(left)} of {macs(full)} ({left / full:.1%})"
    grid.add_row("MACs", f"{share} per picture{guided}")
    results().print(grid)
