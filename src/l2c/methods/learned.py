"""Ours: schedules learned end to end, read from files or learned on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from l2c.errors import ConfigError
from l2c.hosts.pipeline.loading import ASSET_PREFIX
from l2c.learning.learn import learn
from l2c.learning.settings import LearnSettings
from l2c.methods.base import Method
from l2c.schedule.open import load_schedule
from l2c.schedule.schedule import CacheSchedule

SETTINGS = tuple(field.name for field in fields(LearnSettings))
"""What can be set of learning."""


def learned(
    target: Any,
    *,
    path: str | Path = "",
    budget: float | None = None,
    evaluations: float | None = None,
    per_computed: int | None = None,
    **options: Any,
) -> CacheSchedule:
    """A schedule whose mask and forecasts, and with `evaluations` its solver, were learned together.

    Args:
        target: A model, a diffusers pipeline, or a host; without learning, only for the form of all methods.
        path: A file that `l2c learn` wrote, or `l2c:NAME` for one that comes with the package. Without one, learning is
            done here.
        budget: Share of the run's MACs: to learn for, or of a file that holds schedules of several costs.
        evaluations: Learn a solver, too, for the cost of so many whole evaluations.
        per_computed: See `l2c.learn`.
        options: Settings of `LearnSettings`, and how the target is sampled. Of a file, it says itself for which run it
            is.

    Raises:
        ConfigError: If there is neither a file nor a cost to learn for, or a setting is unknown.
        KeyboardInterrupt: While learning.
        ScheduleError: If the file cannot be read.

    Source: `l2c.learn`.
    """
    if path:
        return load_schedule(find_schedule(path), budget)
    if budget is None and evaluations is None:
        raise ConfigError(
            "the method 'learned' needs the path of a schedule file, which l2c learn --out makes, or a budget or "
            "evaluations to learn for"
        )
    chosen, options = split_settings(options)
    settings = LearnSettings(**chosen)
    if evaluations is not None:
        options |= {"solver": "auto", "evaluations": evaluations, "per_computed": per_computed}
    schedule: CacheSchedule = learn(target, budget=budget, settings=settings, **options)
    if schedule.provenance["interrupted"]:
        raise KeyboardInterrupt  # which learning had caught
    return schedule


def split_settings(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of options, the settings of `LearnSettings`, and the others."""
    settings = {name: value for name, value in options.items() if name in SETTINGS}
    return settings, {name: value for name, value in options.items() if name not in SETTINGS}


def find_schedule(path: str | Path) -> Path:
    """The file that a path names, which may be one of the package's own: `l2c:NAME`."""
    name = str(path)
    if name.startswith(ASSET_PREFIX):
        return Path(str(resources.files("l2c") / "assets" / name.removeprefix(ASSET_PREFIX)))
    return Path(path)


METHOD = Method("learned", "learned end to end (ours)", learned, "this library")
