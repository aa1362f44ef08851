"""What stands in the header of a schedule file, as a schema: everything in it that is no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict

from l2c.documents import Cost, Count, Finite
from l2c.layers import LayerTable
from l2c.schedule.contract import Contract

MOST_SCHEDULES = 1000
"""Of a family."""


class Versioned(TypedDict):
    """Any header, of whatever version."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    version: int


class Drift(TypedDict, total=False):
    """What a check recorded."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    error: Cost
    by_size: dict[str, Cost]


class Settings(TypedDict, total=False):
    """What learning was asked for, as far as it is read again."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    reference_steps: Count | None


class Provenance(TypedDict, total=False):
    """How a schedule came to be, as far as it is read again; methods may add what they like."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    method: str
    held_out_error: Cost
    held_out_error_before: Cost
    held_out_error_of_everything: Cost
    held_out_error_p95: Cost
    held_out_error_by_guidance: dict[str, Cost]
    held_out_error_by_size: dict[str, Cost]
    held_out_error_worst: Cost
    held_out_worst: str
    error_unit: str
    fewer_steps: dict[str, Cost]
    structure: str
    resolution: dict[str, int]
    drift: Drift
    settings: Settings
    sizes: list[str]
    call: dict[str, Any]
    mu: Finite | None
    threshold: Finite


@dataclass(frozen=True)
class Forecast:
    """Kind and order of a `Predictor`."""

    kind: str
    order: Annotated[int, Field(ge=0, le=16)] = 0


def _sized(table: LayerTable) -> LayerTable:
    if not table.full_macs - sum(layer.attention_macs for layer in table.layers):
        raise ValueError("the layers cost nothing, so that shares of their MACs mean nothing")
    return table


def _fitting(contract: Contract) -> Contract:
    run, count = contract.run, len(contract.run.timesteps)
    if len(run.log_snrs) != count or (run.weights is not None and not run.scales):
        raise ValueError(f"its log_snrs and weights are not those of {count} evaluations")
    if run.guidance_range is not None and not run.guidance_range[0] < run.guidance_range[1]:
        raise ValueError("its guidance_range does not rise")
    if run.guidance_degree and (run.guidance_range is None or run.weights is None):
        raise ValueError("its guidance_degree is of weights for a guidance_range, and one of them is missing")
    return contract


@dataclass(frozen=True)
class Header:
    """All of it; the fields are those of `CacheSchedule`."""

    layers: Annotated[LayerTable, AfterValidator(_sized)]
    contract: Annotated[Contract, AfterValidator(_fitting)]
    predictor: Forecast
    provenance: Provenance


class FamilyHeader(TypedDict):
    """Headers of the schedules of a family, each a `Header`."""

    schedules: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_SCHEDULES)]
