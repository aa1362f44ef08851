"""Runs a comparison: samples every variant, scores it and records it, then times all of them in turn.

In the folder, `records` has a file per variant and `timing` one per round in which all variants took turns; both are
written whole or not at all and not made again when they are there. `schedules` and `pictures` hold what the records
name, and `work` what is only needed to go on, which may be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from l2c.compare.baselines import BASELINES
from l2c.compare.candidates import BaselineCandidate, Candidate, Maker, ScheduleCandidate
from l2c.compare.config import CompareConfig, to_plain
from l2c.compare.hosts import Hosts
from l2c.compare.pictures import prompts_of
from l2c.compare.plan import FULL, Variant, plan
from l2c.compare.rounds import time_round
from l2c.compare.samples import ADVICE, Drawn, Samples
from l2c.compare.scoring import Scorer
from l2c.documents import check_same, read_document
from l2c.errors import ConfigError, DataError, L2CError, OutputError
from l2c.files import atomic_write, make_folder, remove_partial
from l2c.hosts.base import Host
from l2c.records import Record, describe_device, find_versions
from l2c.report.comparison_folder import FAILED, PICTURES, RECORDS, SCHEDULES, TIMING, read_record
from l2c.report.pictures import picture_grid, png, to_pixels

WORK, CONFIG = "work", "config.json"

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, variants done, variants in all)."""


class Comparison:
    """A comparison in a folder.

    Args:
        config: What is compared.
        folder: Where records are and come to be.
        device: Where to compute.
        note: Called with a sentence that the user should read.
        host: What is compared, if it is there already; by default it is loaded.

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
        host: Host | None = None,
    ) -> None:
        self.config, self.folder, self.device, self._note = config, make_folder(folder), device, note
        for name in (RECORDS, PICTURES, SCHEDULES, TIMING, WORK):
            remove_partial(folder / name)
        self.variants = self._installed(plan(config))
        self._settle_config()
        self._hosts = Hosts(config, device, host)
        self._maker = Maker(self._hosts, config.model_name)
        self._samples = Samples(config, self._hosts, self._maker, folder / WORK)
        self._scorer: Scorer | None = None
        if self._hosts.reference is self._hosts.root:
            driver = type(self._hosts.root.target.scheduler).__name__
            self._note(
                f"no fine solution can be had under {driver}; errors are distances to the run of the first base"
            )

    def _installed(self, variants: list[Variant]) -> list[Variant]:
        optional = {method.name for method in self.config.methods if method.optional}
        baselines = [BASELINES[name] for name in sorted({v.method for v in variants if v.is_baseline})]
        missing = [baseline for baseline in baselines if not baseline.installed]
        for baseline in missing:
            if baseline.name not in optional:
                baseline.check_installed()
            self._note(f"{baseline.title} is not installed and is left out")
        left_out = {baseline.name for baseline in missing}
        return [variant for variant in variants if variant.method not in left_out]

    def _settle_config(self) -> None:
        """Writes the configuration, unless the folder is that of another comparison."""
        path = self.folder / CONFIG
        if path.is_file():
            stored = read_document(path, dict[str, Any], ConfigError, "delete it or choose another --out")
            there = CompareConfig.from_plain(stored, str(path))
            check_same(f"{self.folder} holds a comparison", there.identity(), self.config.identity())
        data = json.dumps(to_plain(self.config), indent=2) + "\n"
        atomic_write(path, data.encode(), ADVICE)
        atomic_write(self.folder / WORK / ".gitignore", b"*\n", ADVICE)

    def run(self, on_progress: Progress = lambda what, done, total: None) -> list[Record]:
        """Does what is not done yet. A variant that cannot be run is recorded as such, and tried again next time.

        Returns:
            The records of all variants, in their order.

        Raises:
            L2CError: Whatever is wrong; what is finished stays.
        """
        total = len(self.variants)
        records = []
        for done, variant in enumerate(self.variants):
            on_progress(variant.id, done, total)
            found = self._found(f"{RECORDS}/{variant.id}", {"variant": variant.to_plain()})
            records.append(found if found and FAILED not in found.results else self._measure(variant))
        if unable := [record for record in records if FAILED in record.results]:
            self._note(f"{len(unable)} of {total} variants cannot be run, and are recorded as such")
        for repetition in range(self.config.repetitions):
            able = [
                v for v, record in zip(self.variants, records, strict=True) if FAILED not in record.results
            ]
            self._time(able, repetition, lambda what: on_progress(f"timing {what}", total, total))
        return records

    def _found(self, name: str, settings: Mapping[str, Any]) -> Record | None:
        """A record that was made with these settings, if it is there."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            record = read_record(path)
        except DataError as error:
            self._note(f"{error}; it is made again")
            return None
        if any(record.config.get(key) != value for key, value in settings.items()):
            self._note(f"{path} was made with other settings; it is made again")
            return None
        return record

    def _measure(self, variant: Variant) -> Record:
        try:
            candidate = self._maker.make(variant)
            with candidate.ready() as (sample, macs):
                samples, seconds = self._samples.draw(sample)
                per_picture = macs()
        except L2CError as error:
            if variant.method == FULL or isinstance(error, OutputError):
                raise
            self._note(f"{variant.id} cannot be run: {error}")
            return self._record(variant, {FAILED: str(error)}, {})
        made = self._samples.decode(samples)
        full = self._samples.full(variant, made if variant.method == FULL else None)
        results = {
            **self._describe(candidate, per_picture),
            "metrics": self._score(made, full),
            "pictures": self._write_pictures(variant, made.pictures),
        }
        if isinstance(candidate, ScheduleCandidate):
            candidate.schedule.save(self.folder / SCHEDULES / f"{variant.id}.safetensors")
        return self._record(variant, results, {"sample_s": [seconds], "prepare_s": [candidate.prepare_s]})

    def _record(
        self, variant: Variant, results: Mapping[str, Any], timings: Mapping[str, list[float]]
    ) -> Record:
        package = BASELINES[variant.method].package if variant.is_baseline else "diffusers"
        name = package.replace("_", "-")
        title, source = variant.described
        what = {
            "id": variant.id,
            "base": variant.base.name,
            "method": variant.method,
            "title": title,
            "source": source,
            "baseline": variant.is_baseline,
        }
        record = Record(
            command="compare",
            config={**self.config.identity(), "variant": variant.to_plain()},
            seeds=tuple(self._samples.seeds),
            timings=timings,
            results={**what, **results},
            device=describe_device(self.device),
            versions=find_versions() | ({} if package == "diffusers" else {name: version(name)}),
        )
        data = json.dumps(record.to_json(), indent=1) + "\n"
        atomic_write(self.folder / RECORDS / f"{variant.id}.json", data.encode(), ADVICE, replace=True)
        return record

    def _score(self, made: Drawn, full: Drawn) -> dict[str, Any]:
        if self._scorer is None:
            unit, side = self._samples.pictures.unit, made.pictures.shape[-1]
            prompts = prompts_of(self._samples.examples)
            self._scorer = Scorer(self.config, unit, prompts, side, self.folder / WORK, self.device)
        return self._scorer.score(made, full, self._samples.reference())

    def _describe(self, candidate: Candidate, macs: float) -> dict[str, Any]:
        variant, run = candidate.variant, candidate.host.run
        base = self._hosts.base(variant.base)
        schedule = candidate.schedule if isinstance(candidate, ScheduleCandidate) else None
        solver = run.solver
        if variant.base.scheduler or "to_solver" in variant.settings:  # named schedulers of pipelines
            named = variant.settings.get("to_solver", variant.base.scheduler)
            brought = variant.method == "learned" or run.weights is not None
            solver = run.solver if variant.base.solver or brought else named
        return {
            "run": {"solver": solver, "steps": run.steps, "spacing": run.spacing},
            "evaluations": len(run.timesteps),
            "macs": macs,
            "full_macs": base.table.full_macs * len(base.run.timesteps),
            "store_bytes": candidate.store_bytes(self.config.batch_size),
            "provenance": {} if schedule is None else dict(schedule.provenance),
            "prepared": dict(candidate.prepared) if isinstance(candidate, BaselineCandidate) else {},
            "summary": None if schedule is None or schedule.compute.all() else schedule.summary(),
            "unit": self._samples.pictures.unit,
        }

    def _write_pictures(self, variant: Variant, images: Tensor) -> str | None:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            return None
        pixels = to_pixels(images[: self.config.shown_images])
        name = f"{PICTURES}/{variant.id}.png"
        atomic_write(self.folder / name, png(picture_grid(pixels, columns=4)), ADVICE)
        return name

    def _time(self, variants: list[Variant], repetition: int, announce: Callable[[str], None]) -> None:
        """A round of timing, each of which begins with another variant, unless it is recorded."""
        config, name = self.config, f"{TIMING}/round-{repetition}"
        settings = {
            "variants": [variant.id for variant in variants],
            "timing_images": config.timing_images,
            "model": to_plain(config)["model"],
        }
        if self._found(name, settings):
            return
        turn = repetition * len(variants) // config.repetitions
        candidates = {v.id: self._recalled(v) for v in (*variants[turn:], *variants[:turn])}
        seeds = range(config.seed, config.seed + config.timing_images)
        examples = self._hosts.root.seeded(seeds)
        Record(
            command="compare-timing",
            config=settings,
            seeds=tuple(seeds),
            timings=time_round(candidates, self._samples.pictures, examples, announce),
            device=describe_device(self.device),
        ).save(self.folder / f"{name}.json")

    def _recalled(self, variant: Variant) -> Candidate:
        record = read_record(self.folder / RECORDS / f"{variant.id}.json")
        schedule = self.folder / SCHEDULES / f"{variant.id}.safetensors"
        return self._maker.make(variant, schedule, record.results["prepared"])
