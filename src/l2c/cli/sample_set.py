"""Large sets of pictures: batch by batch, shared by processes, resumable, also as one `.npz` file.

A batch is made whole or not at all, always of the same pictures, so that what comes out depends neither on the number
of processes nor on interruptions.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image

from l2c.bench.timing import synchronize
from l2c.cli.console import note, progress_bar
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
from l2c.devices import resolve_dtype
from l2c.errors import ConfigError, DataError
from l2c.files import atomic_open, atomic_write, output_folder
from l2c.models import load_model
from l2c.processes import is_main, num_processes, own_device, part, wait_for_all
from l2c.records import RunRecord, describe_device
from l2c.report.pictures import enlargement, picture_grid, png, to_pixels
from l2c.sampling.compiled import resolve_engine
from l2c.sampling.decoding import LatentDecoder
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.schedule.schedule import CacheSchedule

SETTINGS, NPZ = "settings.json", "samples.npz"
_SHOWN = 64
_ADVICE = "free some space or choose another --out; with --resume, what is finished is kept"


def run_sample_set(request: SampleRequest, out: Path) -> RunRecord | None:
    """Samples what is not in the folder yet and writes it there; see `run_sample`.

    Raises:
        L2CError: Whatever is wrong; pictures that are finished stay.
    """
    labels = None if request.labels is None else parse_numbers(request.labels, "--labels")
    seeds = plan_seeds(request, labels)
    device = own_device(request.device)
    dtype = resolve_dtype(request.dtype, device)
    with output_folder(out) as folder:
        schedule = (
            None if request.schedule is None else read_schedule(request.schedule, budget=request.budget)
        )
        decoder = None if request.vae is None else LatentDecoder(request.vae, device)
        model = load_model(request.model, dtype=dtype, device=device)
        sampler = make_sampler(model, request, schedule)
        if sampler.denoiser.latent and decoder is None:
            raise ConfigError(
                f"{request.model} makes latents and a set is of pictures; name an autoencoder with --vae FOLDER"
            )
        labels = assign_labels(labels, len(seeds), sampler.denoiser.num_classes)
        config = used_config(request, sampler, labels)
        _settle(folder, {**config, "seeds": seeds}, request.resume)
        pictures = list(zip(seeds, labels, strict=True))
        taken, costs = _fill(folder, sampler, schedule, request, pictures, decoder)
        record = None
        if is_main():
            record = _finish(folder, request, config, pictures, taken, costs, device)
        part()
    return record


def _settle(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Refuses a folder with pictures of other settings; forgets what is there unless it is to go on."""
    path = folder / SETTINGS
    plain = json.loads(json.dumps(settings))
    if is_main():
        if resume and path.is_file():
            try:
                there = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{path} cannot be read ({error}); choose another --out") from error
            differing = [key for key in plain if there.get(key) != plain[key]]
            if differing:
                raise ConfigError(
                    f"{folder} holds pictures with another {' and '.join(differing)}; choose another --out"
                )
        elif not resume:
            for seed, label in zip(settings["seeds"], settings["labels"], strict=True):
                (folder / picture_name(seed, label)).unlink(missing_ok=True)
        atomic_write(path, (json.dumps(plain) + "\n").encode(), _ADVICE)
    wait_for_all()


def _fill(
    folder: Path,
    sampler: Sampler,
    schedule: CacheSchedule | None,
    request: SampleRequest,
    pictures: Sequence[tuple[int, int]],
    decoder: LatentDecoder | None,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Makes this process's batches of what is missing.

    Returns:
        Seconds of every batch, and costs.
    """
    size, denoiser = request.batch_size, sampler.denoiser
    rank = int(os.environ.get("RANK", "0"))
    batches = [pictures[begin : begin + size] for begin in range(0, len(pictures), size)]
    mine = batches[rank :: num_processes()]
    missing = [b for b in mine if not all((folder / picture_name(*picture)).is_file() for picture in b)]
    if len(missing) < len(mine):
        note(f"{len(mine) - len(missing)} of {len(mine)} batches are there already")
    costs = sampling_costs(sampler, schedule, resolve_engine(request.engine, denoiser), size)
    taken: dict[str, list[float]] = {"sample_s": [], "decode_s": []}
    with ready(sampler, schedule, request) as run_batch, progress_bar() as bar:
        for batch in bar.track(missing, description="sampling"):
            noise = seeded_noise([seed for seed, _ in batch], denoiser.sample_shape).to(denoiser.device)
            labels = torch.tensor([label for _, label in batch], device=denoiser.device)
            synchronize()
            began = perf_counter()
            samples = run_batch(noise, labels)
            synchronize()
            taken["sample_s"].append(perf_counter() - began)
            if decoder is not None:
                began = perf_counter()
                samples = decoder(samples)
                synchronize()
                taken["decode_s"].append(perf_counter() - began)
            for picture, pixels in zip(batch, to_pixels(samples), strict=True):
                atomic_write(folder / picture_name(*picture), png(Image.fromarray(pixels)), _ADVICE)
    wait_for_all()
    return taken, costs


def _finish(
    folder: Path,
    request: SampleRequest,
    config: dict[str, Any],
    pictures: Sequence[tuple[int, int]],
    taken: dict[str, list[float]],
    costs: dict[str, Any],
    device: str,
) -> RunRecord:
    """Writes what is of the whole set: a grid of the first ones, the `.npz`, the record."""
    paths = [folder / picture_name(*picture) for picture in pictures]
    first = np.stack([_pixels(path) for path in paths[:_SHOWN]])
    atomic_write(folder / "grid.png", png(picture_grid(first, scale=enlargement(first.shape[1]))), _ADVICE)
    files = ["grid.png"]
    if request.npz:
        write_npz(folder / NPZ, paths)
        files.append(NPZ)
    record = RunRecord(
        command="sample",
        config={**config, "processes": num_processes()},
        seeds=tuple(seed for seed, _ in pictures),
        timings={
            "sample_s": [sum(taken["sample_s"])],
            "batch_s": taken["sample_s"],
            "decode_s": taken["decode_s"],
        },
        results={"files": files, **costs},
        device=describe_device(device),
    )
    record.save(folder / "record.json")
    return record


def write_npz(path: Path, pictures: Sequence[Path]) -> None:
    """Writes pictures as one array `arr_0` (N, H, W, 3), uint8, one after another without holding them all.

    Raises:
        OutputError: If the file cannot be written.
        DataError: If a picture cannot be read or has another size than the first.
    """
    shape = _pixels(pictures[0]).shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(pictures), *shape)}
    with (
        atomic_open(path, _ADVICE) as file,
        zipfile.ZipFile(file, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as array,
    ):
        npy.write_array_header_1_0(array, header)
        for picture in pictures:
            pixels = _pixels(picture)
            if pixels.shape != shape:
                raise DataError(
                    f"{picture} is {pixels.shape[1]}x{pixels.shape[0]} pixels but the first picture of the set is "
                    f"{shape[1]}x{shape[0]}; delete it and go on with --resume"
                )
            array.write(pixels.tobytes())


def _pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"), dtype=np.uint8)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read as a picture ({error}); delete it and go on with --resume"
        ) from error
