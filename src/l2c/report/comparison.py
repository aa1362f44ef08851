"""The records of a comparison as a page needs them: figures with intervals, times, the front, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from l2c.bootstrap import ConfidenceInterval, mean_confidence_interval, paired_difference
from l2c.errors import DataError
from l2c.records import RunRecord

RECORDS, TIMING, SCHEDULES, PICTURES = "records", "timing", "schedules", "pictures"
"""Folders of a comparison."""

FULL, FEWER, OURS = "full", "fewer-steps", ("learned", "interval")
_ROUNDING = 1e-3  # the same run in another implementation is no closer
TIMING_TOLERANCE = 1.03
"""A rival that takes this much longer at most still counts as no slower."""


@dataclass(frozen=True)
class WayResult:
    """One way of sampling, as recorded.

    Attributes:
        record: Its record.
        seconds: Of sampling one picture, in every round; empty where nothing was timed.
        metrics: By name, with its interval; None where it is infinite for all pictures.
    """

    record: RunRecord
    seconds: tuple[float, ...] = ()
    metrics: Mapping[str, ConfidenceInterval | None] = field(default_factory=dict)

    @property
    def results(self) -> Mapping[str, Any]:
        """What its record says."""
        return self.record.results

    @property
    def id(self) -> str:
        """Name of its record."""
        return str(self.results["id"])

    @property
    def method(self) -> str:
        """Name of its method."""
        return str(self.results["method"])

    @property
    def title(self) -> str:
        """Its method, for people."""
        return str(self.results["title"])

    @property
    def group(self) -> str:
        """Kind of method: `steps`, `cache`, `peer` or `ours`."""
        if self.method in (FULL, FEWER, "diffusers"):
            return "steps"
        if self.results["peer"]:
            return "peer"
        return "ours" if self.method in OURS else "cache"

    @property
    def setting(self) -> str:
        """Its settings, for people."""
        results = self.results
        if self.method in (FULL, FEWER):
            run = results["run"]
            return f"{run['solver']}, {run['steps']} steps, {run['spacing']}"
        known = {
            **results["provenance"],
            **(self.record.config["way"]["settings"] if results["peer"] else {}),
        }
        if self.method == "learned":
            return f"{results['run']['solver']}, {results['run']['steps']} steps"
        return ", ".join(
            f"{key.rstrip('_').replace('_', ' ')} {_short(value)}"
            for key, value in known.items()
            if key in _SHOWN or results["peer"]
        )

    @property
    def fraction(self) -> float:
        """Its multiply-accumulates over those of its base."""
        return float(self.results["macs"] / self.results["full_macs"])

    @property
    def median_s(self) -> float | None:
        """Median seconds per picture."""
        return median(self.seconds) if self.seconds else None

    def per_picture(self, metric: str) -> list[float]:
        """A paired metric of every picture."""
        return [float(value) for value in self.results["metrics"][metric]]


_SHOWN = ("every", "shallow", "share", "order", "threshold", "keys", "lambda", "predictor")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{len(value)}" if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Verdict:
    """A way against the best run with everything computed that is no slower.

    Attributes:
        rival: That run, or None where there is none.
        difference: Error of the way less that of the rival, picture by picture.
    """

    rival: WayResult | None
    difference: ConfidenceInterval | None

    @property
    def word(self) -> str:
        """`closer`, `farther`, or that the difference is within noise."""
        if self.difference is None:
            return "no rival"
        if not self.difference.excludes_zero:
            return "within noise"
        return "closer" if self.difference.value < 0 else "farther"


@dataclass(frozen=True)
class ComparisonResults:
    """A comparison as it is forecast a folder.

    Attributes:
        config: As it was run.
        ways: All finished ways, by base, in the order of the configuration as far as it tells.
        timing_images: Pictures of a timed repetition.
        decode_s: Seconds of decoding as many.
        problems: Sentences on records that cannot be read.
    """

    folder: Path
    config: Mapping[str, Any]
    ways: tuple[WayResult, ...]
    timing_images: int
    decode_s: tuple[float, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def bases(self) -> list[str]:
        """Names of the bases."""
        return list(dict.fromkeys(str(way.results["base"]) for way in self.ways))

    def of_base(self, base: str) -> list[WayResult]:
        """The ways of a base."""
        return [way for way in self.ways if way.results["base"] == base]

    def front(self, ways: list[WayResult], cost: str) -> list[WayResult]:
        """Ways that no other beats in both cost (`macs` or `time`) and error, from cheap to dear."""
        priced = [(price, way) for way in ways if (price := self.cost(way, cost)) is not None]
        best, kept = float("inf"), []
        for _, way in sorted(priced, key=lambda pair: (pair[0], self.error(pair[1]))):
            if self.error(way) < best * (1 - _ROUNDING):
                best = self.error(way)
                kept.append(way)
        return kept

    def cost(self, way: WayResult, kind: str) -> float | None:
        """Multiply-accumulates or seconds of one picture."""
        return float(way.results["macs"]) if kind == "macs" else way.median_s

    def error(self, way: WayResult) -> float:
        """Mean error of a way."""
        found = way.metrics["rmse"]
        assert found is not None
        return found.value

    def best(self, ways: list[WayResult]) -> set[str]:
        """Of every method the way with the smallest product of error and cost, by id."""
        chosen: dict[str, tuple[float, str]] = {}
        for way in ways:
            price = way.median_s if way.median_s is not None else float(way.results["macs"])
            candidate = (self.error(way) * price, way.id)
            chosen[way.method] = min(chosen.get(way.method, candidate), candidate)
        return {way_id for _, way_id in chosen.values()}

    def verdict(self, way: WayResult) -> Verdict:
        """The way against simply fewer steps, of any solver that was run, at no more measured time.

        Without timings, at no more multiply-accumulates.
        """
        kind = "time" if way.median_s is not None else "macs"
        price = self.cost(way, kind)
        assert price is not None
        rivals = [
            other
            for other in self.ways
            if other.method in (FULL, FEWER)
            and other.id != way.id
            and (cost := self.cost(other, kind)) is not None
            and cost <= price * TIMING_TOLERANCE
        ]
        if not rivals:
            return Verdict(None, None)
        rival = min(rivals, key=self.error)
        return Verdict(rival, paired_difference(way.per_picture("rmse"), rival.per_picture("rmse")))


def read_comparison(folder: str | Path) -> ComparisonResults:
    """Reads the records of a comparison, leaving out those that cannot be read.

    Raises:
        DataError: If the folder has no record of a comparison.
    """
    folder = Path(folder)
    records, problems = _read(folder / RECORDS, "compare")
    if not records:
        found = f"; {problems[0]}" if problems else ""
        raise DataError(
            f"{folder} has no records of a comparison; make them with l2c compare --out {folder}{found}"
        )
    if "rmse" not in records[0].config["metrics"]:
        raise DataError(
            f"the comparison in {folder} has no metric rmse, which the page is drawn from; compare with it"
        )
    rounds, broken = _read(folder / TIMING, "compare-timing")
    images = max((len(timed.seeds) for timed in rounds), default=1)
    decode = tuple(s for timed in rounds for s in timed.timings.get("decode", ()))
    ways = [_result(record, rounds) for record in records]
    groups = ["steps", "cache", "ours", "peer"]

    def order(way: WayResult) -> tuple[str, bool, int, str, float]:
        group = groups.index(way.group)
        return str(way.results["base"]), way.method != FULL, group, way.method, -way.fraction

    ways.sort(key=order)
    return ComparisonResults(folder, records[0].config, tuple(ways), images, decode, (*problems, *broken))


def _read(folder: Path, command: str) -> tuple[list[RunRecord], list[str]]:
    records, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            record = RunRecord.load(path)
        except DataError as error:
            problems.append(f"{error}; it is left out")
            continue
        if record.command == command:
            records.append(record)
    return records, problems


def _result(record: RunRecord, rounds: list[RunRecord]) -> WayResult:
    way_id = str(record.results["id"])
    seconds = tuple(taken / len(timed.seeds) for timed in rounds for taken in timed.timings.get(way_id, ()))
    metrics: dict[str, ConfidenceInterval | None] = {}
    for name, values in record.results["metrics"].items():
        if isinstance(values, Mapping):
            metrics[name] = ConfidenceInterval(values["value"], values["low"], values["high"])
        else:
            finite = [value for value in values if value is not None]
            metrics[name] = mean_confidence_interval(finite) if finite else None
    return WayResult(record, seconds, metrics)
