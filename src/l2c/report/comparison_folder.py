"""The folder of a comparison: where its files are, and reading its records, those of earlier versions too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from l2c.bootstrap import ConfidenceInterval, ErrorSummary, mean_confidence_interval
from l2c.documents import parse
from l2c.errors import DataError
from l2c.records import NOT_ONE, Record
from l2c.report.comparison import FULL, GROUPS, ComparisonResults, VariantResult
from l2c.report.comparison_schema import FailedVariant, Round, Variant

RECORDS, TIMING, SCHEDULES, PICTURES = "records", "timing", "schedules", "pictures"
FAILED = "failed"
"""What the results of a variant that cannot be run have: the sentence that says why."""

_RENAMED = {"way": "variant", "ways": "variants", "peer": "baseline"}
"""Keys of records since version 0.1."""


def read_comparison(folder: str | Path) -> ComparisonResults:
    """Reads the records of a comparison, leaving out those that cannot be read.

    Raises:
        DataError: If the folder has no record of a comparison, or errors in several units.
    """
    folder = Path(folder)
    records, problems = _read(folder, RECORDS, "compare")
    unable = {str(r.results["id"]): str(r.results[FAILED]) for r in records if FAILED in r.results}
    records = [record for record in records if FAILED not in record.results]
    if not records:
        found = f"; {problems[0]}" if problems else ""
        raise DataError(
            f"{folder} has no records of a comparison; make them with l2c compare --out {folder}{found}"
        )
    if len(units := {str(record.results["unit"]) for record in records}) > 1:
        raise DataError(
            f"the records in {folder} have errors in several units, {' and '.join(sorted(units))}; make them anew "
            "in another folder"
        )
    rounds, broken = _read(folder, TIMING, "compare-timing")
    images = max((len(timed.seeds) for timed in rounds), default=1)
    decode = tuple(s for timed in rounds for s in timed.timings.get("decode", ()))
    variants = [_result(record, rounds) for record in records]
    groups = list(GROUPS)

    def order(variant: VariantResult) -> tuple[str, bool, int, str, float]:
        group = groups.index(variant.group)
        return variant.base, variant.method != FULL, group, variant.method, -variant.fraction

    variants.sort(key=order)
    return ComparisonResults(
        folder, records[0].config, tuple(variants), images, decode, (*problems, *broken), unable
    )


def read_record(path: Path, within: Path | None = None) -> Record:
    """A record of a comparison, with the names of today; what has no unit is absolute.

    Args:
        path: The file.
        within: Folder that it must really be in, with a path from there.

    Raises:
        DataError: If the file is missing or not a record.
    """
    record = Record.load(path, within)
    config, results = ({_RENAMED.get(k, k): v for k, v in d.items()} for d in (record.config, record.results))
    return replace(record, config=config, results={"unit": "absolute", **results})


def _read(folder: Path, part: str, command: str) -> tuple[list[Record], list[str]]:
    records, problems = [], []
    for path in sorted((folder / part).glob("*.json")):
        try:
            record = read_record(Path(part, path.name), folder)
            if record.command == command:
                kind = Round if part == TIMING else FailedVariant if FAILED in record.results else Variant
                parse(kind, record.to_json(), f"{path} {NOT_ONE}")
                records.append(record)
        except DataError as error:
            problems.append(f"{error}; it is left out")
    return records, problems


def _result(record: Record, rounds: Sequence[Record]) -> VariantResult:
    name = str(record.results["id"])
    seconds = tuple(taken / len(timed.seeds) for timed in rounds for taken in timed.timings.get(name, ()))
    metrics: dict[str, ConfidenceInterval | None] = {}
    for metric, values in record.results["metrics"].items():
        if isinstance(values, Mapping):
            metrics[metric] = ConfidenceInterval(values["value"], values["low"], values["high"])
        else:
            finite = [value for value in values if value is not None]
            metrics[metric] = mean_confidence_interval(finite) if finite else None
    return VariantResult(record, ErrorSummary.of(record.results["metrics"]["rmse"]), seconds, metrics)
