"""What the records of a comparison must have for a page, as a schema; what else they have is left as it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict

from l2c.documents import MOST_EVALUATIONS, MOST_LAYERS, Cost, Count, Finite

_More = ConfigDict(extra="allow")
Price = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Interval(TypedDict):
    """Of a metric of a whole set."""

    value: Finite
    low: Finite
    high: Finite


class Base(TypedDict, total=False):
    """The run that was to become faster: of a model with solver and spacing, of a pipeline with a scheduler."""

    __pydantic_config__ = _More  # type: ignore[misc]
    solver: str
    spacing: str
    scheduler: str
    steps: Annotated[int, Field(ge=1)]


class VariantPlan(TypedDict):
    """What was to be run."""

    __pydantic_config__ = _More  # type: ignore[misc]
    base: Base
    settings: dict[str, Any]


class Reference(TypedDict):
    """The fine run."""

    __pydantic_config__ = _More  # type: ignore[misc]
    steps: int


class Call(TypedDict, total=False):
    """What a pipeline was called with."""

    __pydantic_config__ = _More  # type: ignore[misc]
    guidance_scale: Finite | None


class Pipeline(TypedDict):
    """What was compared, if it was a pipeline."""

    __pydantic_config__ = _More  # type: ignore[misc]
    pipeline: str
    call: Call


class Config(TypedDict):
    """Settings of the comparison."""

    __pydantic_config__ = _More  # type: ignore[misc]
    model: str | Pipeline
    guidance: Finite | None
    images: Count
    metrics: list[str]
    reference: Reference
    variant: VariantPlan


class RunFigures(TypedDict):
    """The run that was made."""

    __pydantic_config__ = _More  # type: ignore[misc]
    solver: str
    steps: int
    spacing: str


class Row(TypedDict):
    """An evaluation of a schedule, with a character per layer."""

    __pydantic_config__ = _More  # type: ignore[misc]
    mask: Annotated[str, Field(pattern=r"^[01]*$", max_length=MOST_LAYERS)]


class Summary(TypedDict):
    """A schedule, as its heat map is drawn from it."""

    __pydantic_config__ = _More  # type: ignore[misc]
    rows: Annotated[list[Row], Field(max_length=MOST_EVALUATIONS)]
    layer_kinds: Annotated[list[str], Field(max_length=MOST_LAYERS)]


def _even(summary: Summary) -> Summary:
    if any(len(row["mask"]) != len(summary["layer_kinds"]) for row in summary["rows"]):
        raise ValueError(f"its rows are not those of {len(summary['layer_kinds'])} layers")
    return summary


def _with_errors(
    metrics: dict[str, list[float | None] | Interval],
) -> dict[str, list[float | None] | Interval]:
    errors = metrics.get("rmse")
    if not isinstance(errors, list) or not errors or any(error is None or error < 0 for error in errors):
        raise ValueError("it has no metric rmse of every picture, which the page is drawn from")
    return metrics


class Results(TypedDict):
    """Figures of a variant."""

    __pydantic_config__ = _More  # type: ignore[misc]
    id: str
    base: str
    method: str
    title: str
    source: str
    baseline: bool
    run: RunFigures
    macs: Price
    full_macs: Price
    store_bytes: Finite | None
    provenance: dict[str, Any]
    summary: Annotated[Summary, AfterValidator(_even)] | None
    metrics: Annotated[dict[str, list[Finite | None] | Interval], AfterValidator(_with_errors)]
    pictures: str | None
    unit: Literal["absolute", "relative"]


class Failure(TypedDict):
    """Of a variant that cannot be run."""

    __pydantic_config__ = _More  # type: ignore[misc]
    id: str
    failed: str


class Timings(TypedDict):
    """Seconds of a variant."""

    __pydantic_config__ = _More  # type: ignore[misc]
    prepare_s: Annotated[list[Cost], Field(min_length=1)]


class Device(TypedDict):
    """Where it was."""

    __pydantic_config__ = _More  # type: ignore[misc]
    name: str


class Variant(TypedDict):
    """The record of a variant."""

    __pydantic_config__ = _More  # type: ignore[misc]
    config: Config
    seeds: Annotated[list[int], Field(min_length=1)]
    timings: Timings
    device: Device
    results: Results


class FailedVariant(TypedDict):
    """The record of a variant that cannot be run."""

    __pydantic_config__ = _More  # type: ignore[misc]
    results: Failure


class Round(TypedDict):
    """The record of a round of timing."""

    __pydantic_config__ = _More  # type: ignore[misc]
    seeds: Annotated[list[int], Field(min_length=1)]
    timings: dict[str, list[Price]]
