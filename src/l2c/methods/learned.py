"""Ours: schedules learned end to end, read from files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from l2c.errors import ConfigError
from l2c.hosts.pipeline.loading import ASSET_PREFIX
from l2c.methods.base import Method
from l2c.schedule.open import load_schedule
from l2c.schedule.schedule import CacheSchedule


def learned(target: Any, *, path: str | Path = "", budget: float | None = None, **run: Any) -> CacheSchedule:
    """A schedule from a file that `l2c learn` wrote, whose mask and forecasts were learned together.

    Args:
        target: Only for the form of all methods; the schedule is checked against it when it is enabled.
        path: The file, or `l2c:NAME` for one that comes with the package.
        budget: For a file that holds schedules of several costs, the share of the run's MACs.
        run: The file says for which run it is.

    Raises:
        ConfigError: If no file is named.
        ScheduleError: If it cannot be read.

    Source: `l2c.learn`.
    """
    if not path:
        raise ConfigError(
            "the method 'learned' needs the path of a schedule file, which l2c learn --out makes"
        )
    return load_schedule(find_schedule(path), budget)


def find_schedule(path: str | Path) -> Path:
    """The file that a path names, which may be one of the package's own: `l2c:NAME`."""
    name = str(path)
    if name.startswith(ASSET_PREFIX):
        return Path(str(resources.files("l2c") / "assets" / name.removeprefix(ASSET_PREFIX)))
    return Path(path)


METHOD = Method("learned", "learned end to end (ours)", learned, "this library")
