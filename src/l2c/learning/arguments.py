"""What `learn` and `repair` are asked for, or a sentence on why it means nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from l2c.errors import ConfigError, Told
from l2c.learning.task import TaskSettings
from l2c.schedule.budget import DEFAULT

_Settings = TypeVar("_Settings", bound=TaskSettings)


def checked(settings: Any, kind: type[_Settings], what: str) -> _Settings:
    """Settings of a kind; its defaults where there are none.

    Args:
        settings: What was given.
        kind: Their class.
        what: What needs them, for the sentence.

    Raises:
        ConfigError: If they are of another kind.
    """
    if settings is None:
        return kind()
    if not isinstance(settings, kind):
        raise ConfigError(
            f"{what} takes settings of the class {kind.__name__}, got {type(settings).__name__}"
        )
    return settings


def amounts_of(
    budget: float | None, budgets: Sequence[float] | str | None, curve: Sequence[float]
) -> tuple[float, ...]:
    """The budgets that are asked for, as numbers.

    Args:
        budget: One, half by default.
        budgets: Or several, or `curve`.
        curve: What that stands for.

    Raises:
        ConfigError: If they are none, or there is one budget besides several.
    """
    if budgets is None:
        asked: Any = (DEFAULT if budget is None else budget,)
    else:
        refuse("where there are budgets=", budget=budget)
        asked = curve if budgets == "curve" else budgets
    if isinstance(asked, str) or not isinstance(asked, Iterable):
        raise ConfigError(f"budgets are several numbers, or 'curve', got {asked!r}; for one, take budget=")
    wrong = f"a budget is a number, got {budget if budgets is None else budgets!r}"
    with Told(ConfigError, wrong, TypeError, ValueError):
        return tuple(float(one) for one in asked)


def refuse(where: str, **given: object) -> None:
    """Refuses arguments that mean nothing there.

    Args:
        where: When that is, for the sentence.
        given: The arguments by name; None where one was not given.

    Raises:
        ConfigError: If one is given.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"{name} has no meaning {where}; leave it out")
