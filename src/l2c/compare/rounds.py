"""Times all ways of a comparison in turn, one round after another, each round a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from l2c.bench.timing import interleave
from l2c.compare.candidates import Candidate, Maker, Sample
from l2c.compare.config import CompareConfig
from l2c.compare.plan import Way
from l2c.errors import DataError
from l2c.records import RunRecord, describe_device
from l2c.report.comparison import RECORDS, SCHEDULES, TIMING
from l2c.sampling.decoding import LatentDecoder


class Rounds:
    """Rounds of timing in a folder that has a record of every way.

    Args:
        config: How many pictures and rounds.
        ways: What takes turns.
        maker: Makes them ready again.
        decoder: Of a latent model, timed apart.
        folder: Of the comparison.
        device: Where to compute.
        note: Called with a sentence that the user should read.
    """

    def __init__(
        self,
        config: CompareConfig,
        ways: Sequence[Way],
        maker: Maker,
        decoder: LatentDecoder | None,
        folder: Path,
        device: str,
        note: Callable[[str], None],
    ) -> None:
        self._config, self._ways, self._maker, self._decoder = config, list(ways), maker, decoder
        self._folder, self._device, self._note = folder, device, note
        self._seeds = range(config.seed, config.seed + config.timing_images)

    @torch.no_grad()
    def measure(self, repetition: int, announce: Callable[[str], None]) -> None:
        """One round in which all ways take turns, unless it is recorded."""
        path = self._folder / TIMING / f"round-{repetition}.json"
        ids = [way.id for way in self._ways]
        settings = {"ways": ids, "timing_images": self._config.timing_images, "model": self._config.model}
        if path.is_file():
            try:
                if RunRecord.load(path).config == settings:
                    return
            except DataError as error:
                self._note(f"{error}; it is made again")
        turn = repetition * len(ids) // self._config.repetitions
        candidates = {way.id: self._saved(way) for way in (*self._ways[turn:], *self._ways[:turn])}
        seeds = self._seeds
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
            device=describe_device(self._device),
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
        record = RunRecord.load(self._folder / RECORDS / f"{way.id}.json")
        schedule = self._folder / SCHEDULES / f"{way.id}.safetensors"
        return self._maker.make(way, schedule, record.results["prepared"])
