"""Opening whatever holds schedules: files, families, names that come with l2c, folders, a hub, published routers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import l2c
from l2c.documents import check_path
from l2c.errors import ConfigError, ScheduleError
from l2c.schedule import family, hub
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.file import kind_of, shipped
from l2c.schedule.schedule import CacheSchedule

ROUTER_SUFFIXES = (".pt", ".pth")
"""Of the router files that the authors of Learning-to-Cache published."""


def open_schedule(
    source: CacheSchedule | ScheduleFamily | str | Path, *, model: str | None = None
) -> CacheSchedule | ScheduleFamily:
    """Reads what there is: a schedule, or all schedules of a family. Arguments and errors as of `load_schedule`.

    >>> len(open_schedule("dit-mini-cifar10-ddim-20"))
    4
    """
    if isinstance(source, CacheSchedule | ScheduleFamily):
        return source
    path = check_path("a schedule", source)
    if path.suffix in ROUTER_SUFFIXES:
        return l2c.import_router(path, model=model)
    if path.is_dir() or _is_repository(path):
        path = hub.fetch(path.as_posix(), revision=None, token=None, local_files_only=False)
    return ScheduleFamily.load(path) if kind_of(path) == family.FORMAT else CacheSchedule.load(path)


def load_schedule(
    source: CacheSchedule | ScheduleFamily | str | Path,
    budget: float | None = None,
    threshold: float | None = None,
    *,
    model: str | None = None,
) -> CacheSchedule:
    """Reads one schedule, wherever it is; nothing in a file is ever executed.

    Args:
        source: A `.safetensors` file; the name of one that comes with l2c; a folder that `save_pretrained` wrote, or a
            repository on the Hugging Face hub (`user/name`); or a router file (`.pt`, `.pth`) published with the
            Learning-to-Cache paper. What has been read already is taken as it is.
        budget: Share of the multiply-accumulates (MACs), for which the best of a family is taken.
        threshold: Decide anew from the scores that a router learned, instead of as it was saved or published.
        model: Name of the published model that a router file is for, where the file does not say.

    Raises:
        ScheduleError: If it cannot be read, or is a family and there is no budget.
        ConfigError: If the budget is out of range, there is no family, or it has nothing within the budget; or if the
            threshold is out of range, or there are no scores for it.

    Example:
        >>> import l2c
        >>> round(l2c.load_schedule("dit-mini-cifar10-ddim-20", budget=0.5).cost.fraction, 1)
        0.5
    """
    found = open_schedule(source, model=model)
    name = "this" if source is found else source
    if isinstance(found, ScheduleFamily):
        if budget is None:
            raise ScheduleError(
                f"{name} is a family of schedules; take one with a budget, such as budget=0.5, or --budget 0.5 on the "
                "command line"
            )
        found = found.at(budget)
    elif budget is not None:
        raise ConfigError(f"{name} is not a family of schedules, so that a budget has nothing to choose from")
    return found if threshold is None else found.at_threshold(threshold)


def load_schedules(
    sources: Sequence[str | Path], budget: float | None = None, reserved: Sequence[str] = ()
) -> dict[str, CacheSchedule]:
    """Reads several schedules, by names to show them with: those of their files, in full where these are alike.

    Args:
        sources: See `load_schedule`.
        budget: Of those that are families.
        reserved: Names that stand for something else.

    Raises:
        ConfigError: If one is named twice, or there is a budget and no family.
        ScheduleError: See `load_schedule`.
    """
    if len(set(sources)) < len(sources):
        raise ConfigError("a schedule is named twice; name each once")
    opened = {str(source): open_schedule(source) for source in sources}
    families = {name for name, one in opened.items() if isinstance(one, ScheduleFamily)}
    if budget is not None and not families:
        raise ConfigError(
            "a budget chooses from families of schedules, and none is given; name the file of one"
        )
    stems = {name: Path(name).stem if Path(name).suffix else Path(name).name for name in opened}
    taken = [*stems.values(), *reserved]
    return {
        stems[name] if taken.count(stems[name]) == 1 else name: load_schedule(
            name if name in families else one, budget if name in families else None
        )
        for name, one in opened.items()
    }


def _is_repository(path: Path) -> bool:
    """Whether this can only be the name of a repository on a hub: `user/name`, and no file."""
    return (
        len(path.parts) == 2
        and path.parts[0] not in ("..", "~")
        and path.suffix != ".safetensors"
        and not path.is_absolute()
        and not path.is_file()
        and str(path) not in shipped()
    )
