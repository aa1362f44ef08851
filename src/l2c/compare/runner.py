"""Runs a comparison: samples every way, scores it and records it, then times all of them in turn.

In the folder, `records` has a file per way and `timing` one per round in which all ways took turns; both are written
whole or not at all and not made again when they are there. `schedules` and `pictures` hold what the records name, and
`work` what is only needed to go on, which may be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.compare.baselines import PEERS
from l2c.compare.candidates import Candidate, Maker
from l2c.compare.config import CompareConfig, to_plain
from l2c.compare.plan import FULL, Way, plan
from l2c.compare.rounds import Rounds
from l2c.compare.samples import ADVICE, Gallery, step_errors
from l2c.compare.scoring import Scorer, check_metrics
from l2c.errors import ConfigError, DataError
from l2c.files import atomic_write, make_folder
from l2c.layers import find_layers
from l2c.methods.registry import find_method
from l2c.models import load_model
from l2c.records import RunRecord, describe_device, find_versions
from l2c.report.comparison import PICTURES, RECORDS, SCHEDULES
from l2c.report.pictures import picture_grid, png, to_pixels
from l2c.sampling.decoding import LatentDecoder
from l2c.sampling.denoiser import Denoiser

WORK, CONFIG = "work", "config.json"

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, ways done, ways in all)."""


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
        decoder = None if config.vae is None else LatentDecoder(config.vae, device)
        self._maker = Maker(config, self.model)
        self._gallery = Gallery(config, self.model, self._maker, decoder, folder / WORK)
        self._rounds = Rounds(config, self.ways, self._maker, decoder, folder, device, note)
        self._scorer: Scorer | None = None

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
            self._rounds.measure(repetition, lambda what: on_progress(f"timing {what}", total, total))
        return records

    def _path(self, way: Way) -> Path:
        return self.folder / RECORDS / f"{way.id}.json"

    def _found(self, way: Way) -> RunRecord | None:
        path = self._path(way)
        if not path.is_file():
            return None
        try:
            record = RunRecord.load(path)
        except DataError as error:
            self._note(f"{error}; it is made again")
            return None
        if record.config.get("way") != _plain_way(way):
            self._note(f"{path} was made with other settings; it is made again")
            return None
        return record

    def _measure(self, way: Way) -> RunRecord:
        candidate = self._maker.make(way)
        full = self._gallery.full(way) if way.method != FULL else None
        with candidate.ready() as (sample, macs):
            made = self._gallery.sample(sample, len(candidate.run.timesteps))
            per_picture = macs()
        if full is None:
            full = made
            self._gallery.keep(way.base.name, made)
        results = {
            **self._describe(candidate, per_picture),
            "metrics": self._score(made.images, full.images),
            "step_errors": step_errors(candidate, made, full),
            "pictures": self._write_pictures(way, made.images),
        }
        if candidate.schedule is not None:
            candidate.schedule.save(self.folder / SCHEDULES / f"{way.id}.safetensors")
        record = RunRecord(
            command="compare",
            config={**self.config.identity(), "way": _plain_way(way)},
            seeds=tuple(self._gallery.seeds),
            timings={"sample_s": [made.seconds], "prepare_s": [candidate.prepare_s]},
            results=results,
            device=describe_device(self.device),
            versions={**find_versions(), **_peer_versions(way)},
        )
        atomic_write(self._path(way), (json.dumps(record.to_json(), indent=1) + "\n").encode(), ADVICE)
        return record

    def _score(self, images: Tensor, full: Tensor) -> dict[str, Any]:
        if self._scorer is None:
            self._scorer = Scorer(self.config, images.shape[-1], self.folder / WORK, self.device)
        return self._scorer.score(images, full, self._gallery.solution())

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


def _plain_way(way: Way) -> dict[str, Any]:
    base = way.base
    run = {"solver": base.solver, "steps": base.steps, "spacing": base.spacing}
    plain = {"base": run, "method": way.method, "settings": dict(way.settings), "budget": way.budget}
    as_read: dict[str, Any] = json.loads(json.dumps(plain))
    return as_read


def _peer_versions(way: Way) -> dict[str, str]:
    if not way.is_peer or PEERS[way.method].package == "diffusers":
        return {}
    from importlib.metadata import version

    return {"cache-dit": version("cache-dit")}
