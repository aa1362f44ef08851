"""What `l2c sample` does: loads, samples under a progress bar, writes pictures and a record."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import safetensors.torch
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from l2c.bench.timing import synchronize
from l2c.cli.console import macs, note, print_json, progress_bar, results, seconds
from l2c.cli.options import parse_numbers
from l2c.cli.sample_plan import (
    SampleRequest,
    assign_labels,
    make_sampler,
    picture_name,
    plan_seeds,
    ready,
    sampling_costs,
    used_config,
)
from l2c.cli.schedules import read_schedule
from l2c.devices import resolve_device, resolve_dtype
from l2c.errors import ConfigError
from l2c.files import atomic_write, output_folder
from l2c.models import load_model
from l2c.records import RunRecord, describe_device
from l2c.report.pictures import enlargement, picture_grid, png, to_pixels
from l2c.sampling.compiled import resolve_engine
from l2c.sampling.decoding import LatentDecoder
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.schedule.schedule import CacheSchedule


def run_sample(request: SampleRequest, out: Path) -> RunRecord:
    """Samples and writes everything to the folder `out`.

    Raises:
        L2CError: Whatever is wrong; a new folder that is still empty is then removed again.
    """
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
