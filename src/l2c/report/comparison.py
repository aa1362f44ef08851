"""The results of a comparison as a page needs them: figures with intervals, times, the front, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from l2c.bootstrap import ConfidenceInterval, ErrorSummary, paired_difference
from l2c.records import Record

FULL, FEWER, OURS = "full", "fewer-steps", ("learned", "interval")
GROUPS = {
    "steps": "everything computed, fewer steps",
    "cache": "published caches",
    "ours": "this library",
    "baseline": "caches of other libraries",
}
"""Kinds of methods, in the order of the tables."""

UNITS = {
    "absolute": "absolute, for pictures with values from -1 to 1",
    "relative": "relative to the root mean square of the reference",
}
TIMING_TOLERANCE = 1.03
"""A rival that takes this much longer at most still counts as no slower."""

BRING_SOLVER = ("learned", "bespoke", "neuralsolver")
"""Methods whose schedules may bring a solver of their own."""

_ROUNDING = 1e-3  # the same run in another implementation is no closer
_SHOWN = ("every", "shallow", "share", "order", "threshold", "keys", "lambda", "predictor", "evaluations")


@dataclass(frozen=True)
class VariantResult:
    """One variant, as recorded.

    Attributes:
        record: Its record.
        errors: Of all pictures, in three figures.
        seconds: Of sampling one picture, in every round; empty where nothing was timed.
        metrics: By name, mean or figure of the set; None where it is infinite for all pictures.
    """

    record: Record
    errors: ErrorSummary
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
    def base(self) -> str:
        """Name of its base."""
        return str(self.results["base"])

    @property
    def method(self) -> str:
        """Name of its method."""
        return str(self.results["method"])

    @property
    def title(self) -> str:
        """Its method, for people."""
        return str(self.results["title"])

    @property
    def everything(self) -> bool:
        """Whether everything is computed, in as many steps as its base or in fewer."""
        return self.method in (FULL, FEWER)

    @property
    def group(self) -> str:
        """Kind of method, of `GROUPS`."""
        if self.everything or self.method == "diffusers":
            return "steps"
        if self.results["baseline"]:
            return "baseline"
        return "ours" if self.method in OURS else "cache"

    @property
    def of_model(self) -> bool:
        """Whether a model alone was run, and not a pipeline, whose solvers are schedulers."""
        return "solver" in self.record.config["variant"]["base"]

    @property
    def setting(self) -> str:
        """Its settings, for people."""
        run, baseline = self.results["run"], self.results["baseline"]
        if self.everything:
            spaced = f", {run['spacing']}" if self.of_model else ""
            return f"{run['solver']}, {run['steps']} steps{spaced}"
        if self.method in BRING_SOLVER:
            return f"{run['solver']}, {run['steps']} steps"
        known = {
            **self.results["provenance"],
            **(self.record.config["variant"]["settings"] if baseline else {}),
        }
        return ", ".join(
            f"{key.rstrip('_').replace('_', ' ')} {_short(value)}"
            for key, value in known.items()
            if key in _SHOWN or baseline
        )

    @property
    def error(self) -> float:
        """Mean error."""
        return self.errors.mean.value

    @property
    def macs(self) -> float:
        """Multiply-accumulates of one picture, without guidance."""
        return float(self.results["macs"])

    @property
    def fraction(self) -> float:
        """Its multiply-accumulates over those of its base."""
        return float(self.macs / self.results["full_macs"])

    @property
    def median_s(self) -> float | None:
        """Median seconds per picture."""
        return median(self.seconds) if self.seconds else None

    def cost(self, kind: str) -> float | None:
        """Multiply-accumulates (`macs`) or seconds (`time`) of one picture."""
        return self.macs if kind == "macs" else self.median_s

    def per_picture(self, metric: str) -> list[float]:
        """A paired metric of every picture."""
        return [float(value) for value in self.results["metrics"][metric]]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{len(value)}" if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Verdict:
    """A variant against the best run with everything computed that is no slower.

    Attributes:
        rival: That run, or None where there is none.
        difference: Error of the variant less that of the rival, picture by picture.
    """

    rival: VariantResult | None
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
    """A comparison as a folder has it.

    Attributes:
        folder: Where it is.
        config: As it was run.
        variants: All finished ones, by base and group.
        timing_images: Pictures of a timed repetition.
        decode_s: Seconds of decoding as many.
        problems: Sentences on records that cannot be read.
        unable: Why variants could not be run, by their names.
    """

    folder: Path
    config: Mapping[str, Any]
    variants: tuple[VariantResult, ...]
    timing_images: int
    decode_s: tuple[float, ...] = ()
    problems: tuple[str, ...] = ()
    unable: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Name of the model or pipeline."""
        model = self.config["model"]
        return str(model["pipeline"] if isinstance(model, Mapping) else model)

    @property
    def guidance(self) -> float | None:
        """Guidance scale, if it is known."""
        model = self.config["model"]
        if isinstance(model, Mapping):
            found = model["call"].get("guidance_scale")
            return None if found is None else float(found)
        found = self.config["guidance"]
        return None if found is None else float(found)

    @property
    def unit(self) -> str:
        """Unit of the errors, of `UNITS`."""
        return str(self.variants[0].results["unit"])

    @property
    def bases(self) -> list[str]:
        """Names of the bases."""
        return list(dict.fromkeys(variant.base for variant in self.variants))

    def of_base(self, base: str) -> list[VariantResult]:
        """The variants of a base."""
        return [variant for variant in self.variants if variant.base == base]

    def front(self, variants: Sequence[VariantResult], kind: str) -> list[VariantResult]:
        """Variants that no other beats in both cost (`macs` or `time`) and error, from cheap to dear."""
        priced = [(price, variant) for variant in variants if (price := variant.cost(kind)) is not None]
        best, kept = float("inf"), []
        for _, variant in sorted(priced, key=lambda pair: (pair[0], pair[1].error)):
            if variant.error < best * (1 - _ROUNDING):
                best = variant.error
                kept.append(variant)
        return kept

    def best(self, variants: Sequence[VariantResult]) -> set[str]:
        """Of every method the variant with the smallest product of error and cost, by id."""
        chosen: dict[str, tuple[float, str]] = {}
        for variant in variants:
            price = variant.macs if variant.median_s is None else variant.median_s
            candidate = (variant.error * price, variant.id)
            chosen[variant.method] = min(chosen.get(variant.method, candidate), candidate)
        return {name for _, name in chosen.values()}

    def figures(self) -> dict[str, dict[str, Any]]:
        """Of every variant, by its name, what it costs and how far off it is, as plain data."""
        return {
            one.id: {
                "fraction": one.fraction,
                "median_s": one.median_s,
                "error": one.error,
                "error_p95": one.errors.p95,
                "error_worst": one.errors.worst,
                "verdict": self.verdict(one).word,
            }
            for one in self.variants
        }

    def verdict(self, variant: VariantResult) -> Verdict:
        """The variant against simply fewer steps, of any solver that was run, at no more measured time.

        Without timings, at no more multiply-accumulates.
        """
        kind = "macs" if variant.median_s is None else "time"
        price = variant.cost(kind)
        assert price is not None
        rivals = [
            other
            for other in self.variants
            if other.everything
            and other.id != variant.id
            and (cost := other.cost(kind)) is not None
            and cost <= price * TIMING_TOLERANCE
        ]
        if not rivals:
            return Verdict(None, None)
        rival = min(rivals, key=lambda other: other.error)
        return Verdict(rival, paired_difference(variant.per_picture("rmse"), rival.per_picture("rmse")))
