"""Ours: schedules learned end to end, read from files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from torch import nn

from l2c.errors import ConfigError
from l2c.methods.base import Method
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule

ASSET_PREFIX = "l2c:"


def learned(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    *,
    spacing: str = "linspace",
    path: str | Path = "",
    budget: float | None = None,
) -> CacheSchedule:
    """A schedule from a file that `l2c learn` wrote, whose mask and forecasts were learned together.

    Args:
        model: Only for the form of all methods; the schedule is checked against it when it is enabled.
        solver: The file says for which run it is.
        steps: The same.
        spacing: The same.
        path: The file, or `l2c:NAME` for one that comes with the package.
        budget: For a file that holds schedules of several costs, the share of the run's MACs.

    Raises:
        ConfigError: If no file is named.
        ScheduleError: If it cannot be read.

    Source: `l2c.fit_predictor`.
    """
    if not path:
        raise ConfigError(
            "the method 'learned' needs the path of a schedule file, which l2c learn --out makes"
        )
    return _read(find_schedule(path), budget)


def find_schedule(path: str | Path) -> Path:
    """The file that a path names, which may be one of the package's own: `l2c:NAME`."""
    name = str(path)
    if name.startswith(ASSET_PREFIX):
        return Path(str(resources.files("l2c") / "assets" / name.removeprefix(ASSET_PREFIX)))
    return Path(path)


def _read(path: Path, budget: float | None) -> CacheSchedule:
    """The one place that knows what kinds of files there are."""
    return CacheSchedule.load(path) if budget is None else ScheduleFamily.load(path).at(budget)


METHOD = Method("learned", "learned end to end (ours)", learned, "this library")
