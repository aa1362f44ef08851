"""`sample_set`: pictures in a folder, batch by batch; large sets resumable, shared by processes, also as one `.npz`.

A batch is made whole or not at all, always of the same pictures, so that what comes out depends neither on the number
of processes nor on interruptions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from l2c.bench.timing import synchronize
from l2c.cache.cached_model import enable_cache
from l2c.documents import Count, Seeds, check_path, check_same, check_value, read_document
from l2c.errors import ConfigError, check_finite
from l2c.files import atomic_write, check_kind, output_folder
from l2c.layers import find_layers
from l2c.processes import is_main, num_processes, process_index, wait_for_all
from l2c.records import Record, describe_device
from l2c.report.pictures import enlargement, picture_grid, png, read_pixels, to_pixels, write_npz
from l2c.sampling.compiled import resolve_engine
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.images import check_labels, resolve_sampler
from l2c.sampling.memory import planned_store_bytes
from l2c.sampling.sampler import Observer, Sampler, seeded_noise
from l2c.schedule.schedule import CacheSchedule

SETTINGS, RECORD, GRID, LATENTS, NPZ = (
    "settings.json", "record.json", "grid.png", "latents.safetensors", "samples.npz",
)  # fmt: skip
_SHOWN = 64
_ADVICE = "free some space or choose another --out; with --resume, what is finished is kept"

Decoder = Callable[[Tensor], Tensor]
SampleBatch = Callable[[Tensor, Tensor], Tensor]


def sample_set(
    model: nn.Module,
    folder: str | Path,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    *,
    schedule: CacheSchedule | None = None,
    any_weights: bool = False,
    batch_size: int = 8,
    engine: str = "auto",
    decoder: Decoder | None = None,
    npz: bool = False,
    resume: bool = False,
    names: Mapping[str, Any] | None = None,
    note: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **run: Any,
) -> Record | None:
    """Samples into a folder: a PNG for each picture, named by seed and label, `grid.png` and `record.json`.

    Large sets, which are those with `npz` or `resume` and those of several processes, keep a file of settings beside
    them, and show the first pictures in the grid. Several processes share the batches; start them as for learning.

    Args:
        model: As for `l2c.sample`.
        folder: Where the pictures go.
        seeds: Seed of each picture.
        labels: Class labels, which the pictures have in turn; by default all.
        schedule: What to compute and what to reuse; None computes everything.
        any_weights: Warn, instead of refusing, when the schedule was learned on other weights.
        batch_size: Pictures at a time.
        engine: How the model is run, see `Sampler.compile`.
        decoder: For a model of latents, from latents to pictures, such as a `LatentDecoder`. Without it, latents are
            written instead of pictures.
        npz: Also write `samples.npz` with all pictures as `arr_0` (uint8, N x H x W x 3), as ADM's evaluation reads it.
        resume: Go on where a run with the same settings was interrupted: what is in the folder is not made again.
        names: What else belongs to the settings, such as the model's name; plain data.
        note: Called with a sentence that the user should read.
        on_progress: Called as (evaluations or batches done, all of them).
        run: `solver`, `steps`, `spacing`, `guidance`, `guidance_mode`, `guidance_channels`, as for `l2c.sample`.

    Returns:
        What is in `record.json`; None in all but the first of several processes.

    Raises:
        ConfigError: If an argument is out of range, or the folder has pictures of other settings.
        ContractError: If the schedule was made for another model or run.
        DataError: If a picture in the folder cannot be read.
        NumericsError: If pictures are not finite; names the first evaluation where they are not.
        OutputError: If a file cannot be written; pictures that are finished stay.
    """
    denoiser, folder = Denoiser.of(model), check_path("the folder", folder)
    sampler = resolve_sampler(denoiser, schedule, **run)
    if schedule is not None:
        schedule.contract.check_run(sampler.run)
    check_value("batch_size", batch_size, Count)
    seeds = check_value("seeds", seeds, Seeds)
    mode = resolve_engine(engine, denoiser)
    lasting = npz or resume or num_processes() > 1
    if decoder is not None and not denoiser.latent:
        raise ConfigError("the model makes pictures, not latents, so --vae has nothing to decode")
    if decoder is None and denoiser.latent and lasting:
        raise ConfigError(
            "the model makes latents and a set is of pictures; name an autoencoder with --vae FOLDER"
        )
    listed = check_labels(list(labels or range(denoiser.num_classes)), denoiser.num_classes, False).tolist()
    pictures = [(seed, listed[index % len(listed)]) for index, seed in enumerate(seeds)]
    job = _Set(Path(folder), sampler, schedule, pictures, batch_size, mode, decoder, lasting)
    count = _Count(on_progress)
    with output_folder(folder), _ready(sampler, schedule, mode, any_weights, count.advance) as sample:
        config = {**job.config, "any_weights": any_weights, **(names or {})}
        job.settle(config, resume)
        costs = sampling_costs(sampler, schedule, mode, min(batch_size, len(pictures)))
        if schedule is not None and is_main():
            note(f"stored layer outputs will take at most {costs['store_peak_bytes'] / 1e6:.1f} MB")
        latents, timings = job.fill(sample, count, note)
        wait_for_all()
        if not is_main():
            return None
        if denoiser.latent and decoder is None:
            note("the model makes latents; to see pictures, name an autoencoder with --vae FOLDER")
        record = Record(
            command="sample",
            config={**config, "processes": num_processes()},
            seeds=tuple(seeds),
            timings=timings,
            results={"files": job.finish(latents, npz), **costs},
            device=describe_device(str(denoiser.device)),
        )
        record.save(job.folder / RECORD)
    return record


def picture_name(seed: int, label: int) -> str:
    """Name of a picture's file."""
    return f"seed{seed:06d}-label{label:03d}.png"


def sampling_costs(
    sampler: Sampler, schedule: CacheSchedule | None, mode: str, batch_size: int
) -> dict[str, Any]:
    """What a picture costs in multiply-accumulates, and the stored values of a batch in bytes."""
    table, guidance, dtype = find_layers(sampler.denoiser.model), sampler.guidance, sampler.denoiser.dtype
    full, rows = len(sampler.run.timesteps) * table.full_macs, guidance.call_size(batch_size)
    return {
        "macs_per_picture": full if schedule is None else schedule.cost.macs,
        "full_macs_per_picture": full,
        "guidance_factor": 1 if guidance.scale == 1 else 2,
        "store_peak_bytes": planned_store_bytes(schedule, table, rows, guidance.calls, dtype, mode),
    }


@dataclass(frozen=True)
class _Set:
    """A set that is being made; `pictures` are seeds and labels."""

    folder: Path
    sampler: Sampler
    schedule: CacheSchedule | None
    pictures: Sequence[tuple[int, int]]
    batch_size: int
    mode: str
    decoder: Decoder | None
    lasting: bool

    @cached_property
    def paths(self) -> list[Path]:
        """Of the pictures."""
        return [self.folder / picture_name(*picture) for picture in self.pictures]

    @property
    def config(self) -> dict[str, Any]:
        """Every setting with the value that is used."""
        run, guidance = self.sampler.run, self.sampler.guidance
        return {
            "labels": [label for _, label in self.pictures],
            "solver": run.solver,
            "steps": run.steps,
            "spacing": run.spacing,
            "timesteps": list(run.timesteps),
            "guidance": guidance.scale,
            "guidance_mode": guidance.mode,
            "guidance_channels": guidance.channels,
            "batch_size": self.batch_size,
            "engine": self.mode,
        }

    def settle(self, config: Mapping[str, Any], resume: bool) -> None:
        """Refuses to go on with pictures of other settings; forgets what is there if it is not to go on."""
        path = self.folder / SETTINGS
        made = {"seeds": [seed for seed, _ in self.pictures], "schedule's content": _digest(self.schedule)}
        settings = json.loads(json.dumps({**config, **made}))
        if is_main():
            if resume and path.is_file():
                self._compare(path, settings)
            else:
                for file in (path, *(self.paths if self.lasting else ())):
                    check_kind(file, "PNG picture" if file.suffix == ".png" else "JSON document")
                    file.unlink(missing_ok=True)
            if self.lasting:
                atomic_write(path, (json.dumps(settings) + "\n").encode(), _ADVICE)
        wait_for_all()

    def _compare(self, path: Path, settings: Mapping[str, Any]) -> None:
        there = read_document(
            path, dict[str, Any], advice="choose another --out", what="cannot be read as settings"
        )
        check_same(f"{self.folder} holds pictures", there, settings)

    def fill(
        self, sample: SampleBatch, count: _Count, note: Callable[[str], None]
    ) -> tuple[list[Tensor], dict[str, list[float]]]:
        """Makes this process's batches of what is missing.

        Returns:
            Latents, where they are kept, and seconds.
        """
        size, denoiser = self.batch_size, self.sampler.denoiser
        batches = [self.pictures[begin : begin + size] for begin in range(0, len(self.pictures), size)]
        mine = batches[process_index() :: num_processes()]
        missing = [batch for batch in mine if not (self.lasting and self._has(batch))]
        if len(missing) < len(mine):
            note(f"{len(mine) - len(missing)} of {len(mine)} batches are there already")
        count.begin(len(missing) * (len(self.sampler.run.timesteps) if self.mode == "eager" else 1))
        latents: list[Tensor] = []
        sample_s: list[float] = []
        decode_s: list[float] = []
        for batch in missing:
            noise = seeded_noise([seed for seed, _ in batch], denoiser.sample_shape).to(denoiser.device)
            labels = torch.tensor([label for _, label in batch], device=denoiser.device)
            samples = _timed(sample_s, partial(sample, noise, labels))
            self.sampler.check_finite(samples, noise, labels, self.schedule if self.mode != "eager" else None)
            if self.mode != "eager":
                count.advance()
            if denoiser.latent and not self.lasting:
                latents.append(samples.cpu())
            if self.decoder is not None:
                samples = _timed(decode_s, partial(self.decoder, samples))
                check_finite("the autoencoder makes", samples, advice="use --dtype float32")
            elif denoiser.latent:
                continue
            for picture, pixels in zip(batch, to_pixels(samples), strict=True):
                atomic_write(self.folder / picture_name(*picture), png(Image.fromarray(pixels)), _ADVICE)
        return latents, {"sample_s": [sum(sample_s)], "batch_s": sample_s, "decode_s": decode_s}

    def _has(self, batch: Sequence[tuple[int, int]]) -> bool:
        return all((self.folder / picture_name(*picture)).is_file() for picture in batch)

    def finish(self, latents: Sequence[Tensor], npz: bool) -> list[str]:
        """Writes what is of the whole set; returns the names of the files."""
        files: list[str] = []
        if latents:
            metadata = {
                name: ",".join(map(str, values))
                for name, values in zip(("seeds", "labels"), zip(*self.pictures, strict=True), strict=True)
            }
            data = safetensors.torch.save({"latents": torch.cat(list(latents)).contiguous()}, metadata)
            atomic_write(self.folder / LATENTS, data, _ADVICE)
            files.append(LATENTS)
            if self.decoder is None:
                return files
        if not self.lasting:
            files += [path.name for path in self.paths]
        shown = np.stack([read_pixels(path) for path in self.paths[: _SHOWN if self.lasting else None]])
        grid = picture_grid(shown, scale=enlargement(shown.shape[1]))
        atomic_write(self.folder / GRID, png(grid), _ADVICE)
        files.append(GRID)
        if npz:
            write_npz(self.folder / NPZ, self.paths, _ADVICE)
            files.append(NPZ)
        return files


@contextmanager
def _ready(
    sampler: Sampler, schedule: CacheSchedule | None, mode: str, any_weights: bool, observer: Observer
) -> Iterator[SampleBatch]:
    """A function of noise and labels that samples a batch; only the eager engine tells of every evaluation."""
    if mode != "eager":
        yield sampler.compile(schedule, mode, any_weights=any_weights)
        return
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if schedule is not None:
            stack.enter_context(enable_cache(sampler.denoiser.model, schedule, any_weights=any_weights))
        yield partial(sampler, observer=observer)


class _Count:
    """Counts what is done and tells of it."""

    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        self._on_progress, self._done, self._total = on_progress, 0, 0

    def begin(self, total: int) -> None:
        self._total = total
        self._on_progress(0, total)

    def advance(self, *_: object) -> None:
        self._done += 1
        self._on_progress(self._done, self._total)


def _timed(seconds: list[float], work: Callable[[], Tensor]) -> Tensor:
    synchronize()
    began = perf_counter()
    result = work()
    synchronize()
    seconds.append(perf_counter() - began)
    return result


def _digest(schedule: CacheSchedule | None) -> str | None:
    """What decides the pictures in a schedule, in short, so that another file of the same name is noticed."""
    if schedule is None:
        return None
    tensors, header = schedule.pack()
    digest = hashlib.sha256(json.dumps([header["contract"], header["predictor"]], sort_keys=True).encode())
    for name in ("compute", "coefficients"):
        if name in tensors:
            digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
