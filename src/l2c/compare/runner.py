"""Runs a comparison: samples every way, scores it and records it, then times all of them in turn.

In the folder, `records` has a file per way and `timing` one per round in which all ways took turns; both are written
whole or not at all and not made again when they are there. `schedules` and `pictures` hold what the records name, and
`work` what is only needed to go on, which may be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from l2c.bench.timing import interleave, synchronize
from l2c.compare.candidates import Candidate, Maker, Sample
from l2c.compare.config import FULL, CompareConfig, Way, plan, to_plain
from l2c.compare.peers import PEERS
from l2c.compare.scoring import Scorer, check_metrics
from l2c.errors import ConfigError, DataError
from l2c.evaluation.metrics import rmse
from l2c.files import atomic_write, make_folder
from l2c.layers import find_layers
from l2c.methods.registry import find_method
from l2c.models import load_model
from l2c.records import RunRecord, describe_device, find_versions
from l2c.report.comparison import PICTURES, RECORDS, SCHEDULES, TIMING
from l2c.report.pictures import picture_grid, png, to_pixels
from l2c.sampling.decoding import LatentDecoder
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler

WORK, CONFIG = "work", "config.json"
ADVICE = "free some space or choose another --out; finished runs are kept"

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, ways done, ways in all)."""


@dataclass
class _Pictures:
    """Pictures of all seeds, and how the first of them came about.

    Attributes:
        images: (B, C, H, W), on the CPU, decoded where they were latents.
        trajectory: Network inputs (evaluations, shown, C, H, W) of the first ones.
        seconds: Of sampling.
    """

    images: Tensor
    trajectory: Tensor
    seconds: float


class Comparison:
    """A comparison in a folder.

    Args:
        config: What is compared.
        folder: Where records are and come to be.
        device: Where to compute.
        note: Called with a sentence that the user should read.

    Raises:
        ConfigError: If the folder has another comparison in it, or the configuration does not fit the model.
        OutputError: If the folder cannot be written.
    """

    def __init__(
        self,
        config: CompareConfig,
        folder: Path,
        device: str,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config, self.folder, self.device, self._note = config, make_folder(folder), device, note
        self.ways = self._installed(plan(config))
        self._settle_config()
        self.model = load_model(config.model, dtype=getattr(torch, config.dtype), device=device)
        denoiser = Denoiser.of(self.model)
        check_metrics(config, denoiser.latent)
        self._decoder = None if config.vae is None else LatentDecoder(config.vae, device)
        self._maker = Maker(config, self.model)
        self._scorer: Scorer | None = None
        self._kept: dict[str, _Pictures] = {}

    def _installed(self, ways: list[Way]) -> list[Way]:
        optional = {method.name for method in self.config.methods if method.optional}
        missing = {way.method for way in ways if way.is_peer and not PEERS[way.method].installed}
        for name in sorted(missing):
            if name not in optional:
                raise ConfigError(
                    f"{PEERS[name].title} is not installed; pip install 'l2c[peers]', or leave '{name}' out"
                )
            self._note(f"{PEERS[name].title} is not installed and is left out")
        return [way for way in ways if way.method not in missing]

    def _settle_config(self) -> None:
        """Writes the configuration, unless the folder is that of another comparison."""
        path = self.folder / CONFIG
        if path.is_file():
            try:
                there = CompareConfig.from_plain(json.loads(path.read_text(encoding="utf-8")), str(path))
            except ValueError as error:
                raise ConfigError(
                    f"{path} cannot be read ({error}); delete it or choose another --out"
                ) from error
            old, new = there.identity(), self.config.identity()
            if differing := [key for key in new if old[key] != new[key]]:
                raise ConfigError(
                    f"{self.folder} holds a comparison with another {' and '.join(differing)}; choose another --out"
                )
        data = json.dumps(to_plain(self.config), indent=2) + "\n"
        atomic_write(path, data.encode(), ADVICE)
        atomic_write(self.folder / WORK / ".gitignore", b"*\n", ADVICE)

    def run(self, on_progress: Progress = lambda what, done, total: None) -> list[RunRecord]:
        """Does what is not done yet.

        Returns:
            The records of all ways, in their order.

        Raises:
            L2CError: Whatever is wrong; what is finished stays.
        """
        total = len(self.ways)
        records = []
        for done, way in enumerate(self.ways):
            on_progress(way.id, done, total)
            records.append(self._found(way) or self._measure(way))
        for repetition in range(self.config.repetitions):
            self._time(repetition, lambda what: on_progress(f"timing {what}", total, total))
        return records

    def _path(self, way: Way) -> Path:
        return self.folder / RECORDS / f"{way.id}.json"

    def _found(self, way: Way) -> RunRecord | None:
        path = self._path(way)
        if not path.is_file():
            return None
        try:
            return RunRecord.load(path)
        except DataError as error:
            self._note(f"{error}; it is made again")
            return None

    def _measure(self, way: Way) -> RunRecord:
        candidate = self._maker.make(way)
        full = self._full(way) if way.method != FULL else None
        with candidate.ready() as (sample, macs):
            made = self._sample(sample, len(candidate.run.timesteps))
            per_picture = macs()
        if full is None:
            full = made
            self._keep(way.base.name, made)
        results = {
            **self._describe(candidate, per_picture),
            "metrics": self._score(made.images, full.images),
            "step_errors": _step_errors(candidate, made, full),
            "pictures": self._write_pictures(way, made.images),
        }
        if candidate.schedule is not None:
            candidate.schedule.save(self.folder / SCHEDULES / f"{way.id}.safetensors")
        record = RunRecord(
            command="compare",
            config={**self.config.identity(), "way": _plain_way(way)},
            seeds=tuple(self._seeds),
            timings={"sample_s": [made.seconds], "prepare_s": [candidate.prepare_s]},
            results=results,
            device=describe_device(self.device),
            versions={**find_versions(), **_peer_versions(way)},
        )
        atomic_write(self._path(way), (json.dumps(record.to_json(), indent=1) + "\n").encode(), ADVICE)
        return record

    @property
    def _seeds(self) -> range:
        return range(self.config.seed, self.config.seed + self.config.images)

    def _full(self, way: Way) -> _Pictures:
        """Pictures of the base with everything computed, sampled again only if the folder has lost them."""
        name = way.base.name
        return self._kept.get(name) or self._recall(name) or self._again(way)

    def _again(self, way: Way) -> _Pictures:
        candidate = self._maker.make(Way(f"{way.base.name}--{FULL}", way.base, FULL))
        with candidate.ready() as (sample, _):
            made = self._sample(sample, len(candidate.run.timesteps))
        self._keep(way.base.name, made)
        return made

    def _solution(self) -> Tensor:
        name = "solution"
        found = self._kept.get(name) or self._recall(name)
        if found is None:
            fine = self.config.reference
            denoiser, guidance = Denoiser.of(self.model), Guidance(self.config.guidance)
            sampler = Sampler(denoiser, fine.solver, fine.steps, fine.spacing, guidance)
            found = self._sample(sampler, len(sampler.run.timesteps))
            found = _Pictures(found.images, found.trajectory[:0], found.seconds)
            self._keep(name, found)
        return found.images

    def _keep(self, name: str, pictures: _Pictures) -> None:
        self._kept[name] = pictures
        tensors = {
            "images": pictures.images.contiguous(),
            "trajectory": pictures.trajectory.contiguous(),
            "seconds": torch.tensor(pictures.seconds),
        }
        atomic_write(self.folder / WORK / f"{name}.safetensors", safetensors.torch.save(tensors), ADVICE)

    def _recall(self, name: str) -> _Pictures | None:
        path = self.folder / WORK / f"{name}.safetensors"
        if not path.is_file():
            return None
        tensors = safetensors.torch.load_file(path)
        self._kept[name] = _Pictures(tensors["images"], tensors["trajectory"], float(tensors["seconds"]))
        return self._kept[name]

    @torch.no_grad()
    def _sample(self, sample: Sample, evaluations: int) -> _Pictures:
        """Samples all seeds batch by batch, keeping the network inputs of the first pictures."""
        inputs: list[Tensor] = []
        parts: list[Tensor] = []
        shown = min(self.config.shown_images, self.config.batch_size)

        def observe(evaluation: int, x: Tensor, predicted: Tensor) -> None:
            if len(inputs) < evaluations:
                inputs.append(x[:shown].float().cpu())

        seconds, seeds = 0.0, self._seeds
        for begin in range(0, len(seeds), self.config.batch_size):
            noise, labels = self._maker.batch(seeds[begin : begin + self.config.batch_size])
            synchronize()
            began = perf_counter()
            made = sample(noise, labels, observe)
            synchronize()
            seconds += perf_counter() - began
            parts.append(self._decoder(made) if self._decoder is not None else made)
        images = torch.cat(parts).cpu()
        if not Denoiser.of(self.model).latent:
            images = images.clamp(-1, 1)
        return _Pictures(images, torch.stack(inputs), seconds)

    def _score(self, images: Tensor, full: Tensor) -> dict[str, Any]:
        if self._scorer is None:
            self._scorer = Scorer(self.config, images.shape[-1], self.folder / WORK, self.device)
        return self._scorer.score(images, full, self._solution())

    def _describe(self, candidate: Candidate, macs: float) -> dict[str, Any]:
        way, run = candidate.way, candidate.run
        full_macs = find_layers(self.model).full_macs * way.base.steps
        described = (
            PEERS[way.method] if way.is_peer else None if way.method == FULL else find_method(way.method)
        )
        schedule = candidate.schedule
        cached = schedule is not None and not bool(schedule.compute.all())
        return {
            "id": way.id,
            "base": way.base.name,
            "method": way.method,
            "title": "everything computed" if described is None else described.title,
            "source": "" if described is None else described.source,
            "peer": way.is_peer,
            "run": {"solver": run.solver, "steps": run.steps, "spacing": run.spacing},
            "evaluations": len(run.timesteps),
            "macs": macs,
            "full_macs": full_macs,
            "store_bytes": candidate.store_bytes(self.config.batch_size),
            "provenance": {} if schedule is None else dict(schedule.provenance),
            "prepared": dict(candidate.prepared),
            "summary": schedule.summary() if schedule is not None and cached else None,
        }

    def _write_pictures(self, way: Way, images: Tensor) -> str | None:
        if images.shape[1] not in (1, 3):
            return None
        pixels = to_pixels(images[: self.config.shown_images])
        name = f"{PICTURES}/{way.id}.png"
        atomic_write(self.folder / name, png(picture_grid(pixels, columns=4)), ADVICE)
        return name

    @torch.no_grad()
    def _time(self, repetition: int, announce: Callable[[str], None]) -> None:
        """One round in which all ways take turns, unless it is recorded."""
        path = self.folder / TIMING / f"round-{repetition}.json"
        ids = [way.id for way in self.ways]
        settings = {"ways": ids, "timing_images": self.config.timing_images, "model": self.config.model}
        if path.is_file():
            try:
                if RunRecord.load(path).config == settings:
                    return
            except DataError as error:
                self._note(f"{error}; it is made again")
        turn = repetition * len(ids) // self.config.repetitions
        candidates = {way.id: self._saved(way) for way in (*self.ways[turn:], *self.ways[:turn])}
        seeds = self._seeds[: self.config.timing_images]
        active: dict[str, Sample] = {}

        @contextmanager
        def around(name: str) -> Iterator[None]:
            with candidates[name].ready() as (sample, _):
                active[name] = sample
                yield
                del active[name]

        def variant(name: str) -> Callable[[], Tensor]:
            noise, labels = self._maker.batch(seeds)
            return lambda: active[name](noise, labels)

        timings = interleave(
            {name: variant(name) for name in candidates},
            repetitions=1,
            warm_ups={name: variant(name) for name in list(candidates)[:1]},
            on_run=lambda name, _: announce(name),
            around=around,
        )
        record = RunRecord(
            command="compare-timing",
            config=settings,
            seeds=tuple(seeds),
            timings={
                **{name: list(timing.seconds) for name, timing in timings.items()},
                **self._decode_seconds(len(seeds)),
            },
            device=describe_device(self.device),
        )
        record.save(path)

    def _decode_seconds(self, count: int) -> dict[str, list[float]]:
        """Seconds of decoding as many latents, apart from the solver's."""
        if self._decoder is None:
            return {}
        noise, _ = self._maker.batch(self._seeds[:count])
        decoder = self._decoder
        timing = interleave({"decode": lambda: decoder(noise)}, 1, warm_ups={})["decode"]
        return {"decode": list(timing.seconds)}

    def _saved(self, way: Way) -> Candidate:
        record = RunRecord.load(self._path(way))
        schedule = self.folder / SCHEDULES / f"{way.id}.safetensors"
        return self._maker.make(way, schedule, record.results["prepared"])


def _plain_way(way: Way) -> dict[str, Any]:
    base = way.base
    run = {"solver": base.solver, "steps": base.steps, "spacing": base.spacing}
    return {"base": run, "method": way.method, "settings": dict(way.settings), "budget": way.budget}


def _peer_versions(way: Way) -> dict[str, str]:
    if not way.is_peer or PEERS[way.method].package == "diffusers":
        return {}
    from importlib.metadata import version

    return {"cache-dit": version("cache-dit")}


def _step_errors(candidate: Candidate, made: _Pictures, full: _Pictures) -> list[float] | None:
    """Distance of the network's inputs to those of the base, per evaluation; None for another run."""
    run, base = candidate.run, candidate.way.base
    if (run.solver, run.steps, run.spacing) != (base.solver, base.steps, base.spacing):
        return None
    pairs = zip(made.trajectory, full.trajectory, strict=True)
    return [float(rmse(mine, theirs).mean()) for mine, theirs in pairs]
