"""Every error that l2c raises on purpose, in one tree.

::

    L2CError
    ├── CheckpointError    a weights file is missing, truncated, or not one of the known layouts
    ├── DataError          an image folder or Parquet file cannot be used
    ├── ScheduleError      a schedule or router file cannot be read or makes no sense
    │   └── ContractError  a sound schedule, but not made for this model or this run
    ├── CacheStateError    enabled twice, not enabled, or called outside a run
    ├── ConfigError        an argument is unknown or out of range (also a ValueError)
    │   └── OneByOneError  pictures cannot be made in one go
    ├── OutputError        a result cannot be written
    └── NumericsError      a value that must be finite is not

The command line prints the message of any of these as one sentence and exits with 1, or with 2 for
`ConfigError`, so a message says what is wrong, what was got, what was expected and what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sized
from importlib.util import find_spec
from types import TracebackType
from typing import Any

_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class L2CError(Exception):
    """Base of all errors that l2c raises on purpose."""


class CheckpointError(L2CError):
    """A weights file is missing, truncated, or not in a known layout."""


class DataError(L2CError):
    """An image folder or Parquet file cannot be used."""


class ScheduleError(L2CError):
    """A schedule or router file cannot be read or makes no sense."""


class ContractError(ScheduleError):
    """A sound schedule is applied to a model or a run that it was not made for."""


class CacheStateError(L2CError):
    """A cache is enabled twice, not enabled, or called outside a run."""


class ConfigError(L2CError, ValueError):
    """An argument is unknown or out of range."""


class OneByOneError(ConfigError):
    """Pictures cannot be made in one go, but one after another."""


class OutputError(L2CError):
    """A result cannot be written."""


class NumericsError(L2CError):
    """A value that must be finite is not."""


class Told:
    """`with Told(DataError, "a.json is no record ({said})", OSError):` tells what goes wrong there as an error of ours.

    Args:
        error: Its class.
        sentence: What is wrong and what to do; `{said}` stands for the first line of what the other error says.
        kinds: Classes of errors that are meant.
    """

    def __init__(self, error: type[L2CError], sentence: str, *kinds: type[BaseException]) -> None:
        self._error, self._sentence, self._kinds = error, sentence, kinds

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _: type[BaseException] | None, problem: BaseException | None, __: TracebackType | None
    ) -> None:
        if isinstance(problem, self._kinds):
            raise self._error(self._sentence.replace("{said}", first_line(problem))) from problem


class UndoneOnError:
    """`with UndoneOnError(undo):` calls a function when something goes wrong there, whatever it is.

    Args:
        undo: The function.
    """

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._undo()


def first_line(problem: BaseException) -> str:
    r"""What an error says, without what belongs to other readers.

    >>> first_line(OSError(28, "No space left on device")), first_line(ValueError("no number\nat all"))
    ('No space left on device', 'no number')
    """
    said = getattr(problem, "strerror", None) or next(iter(str(problem).strip().splitlines()), "")
    return str(said).rstrip(".")


def known(
    what: str, name: str, names: Iterable[str], advice: str = "", error: type[L2CError] = ConfigError
) -> str:
    """A name that is one of those there are.

    Args:
        what: Of what, for the sentence.
        name: What was given.
        names: Those that there are.
        advice: What else may be done.
        error: What to raise.

    Raises:
        L2CError: Of the class `error`, if there is none of that name; the message has the nearest.

    >>> known("solver", "ddim", ["ddim", "euler"])
    'ddim'
    """
    choices = list(names)
    if name not in choices:
        near = difflib.get_close_matches(str(name).lower(), choices, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise error(f"unknown {what} '{name}'; {hint}choose one of {', '.join(choices)}{advice}")
    return name


def check_new(what: str, name: str, names: Iterable[str]) -> None:
    """Refuses to register what is there.

    Raises:
        ConfigError: If the name is taken, or is none.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"the name of a {what} must be text, got {name!r}")
    if name in names:
        raise ConfigError(f"there is a {what} '{name}' already; give the new one another name")


def check_installed(what: str, package: str, install: str, error: type[L2CError] = ConfigError) -> None:
    """Refuses what needs a package that is not there.

    Args:
        what: What needs it.
        package: Its name for `import`.
        install: What to give to pip, and what else may be done.
        error: What to raise.

    Raises:
        L2CError: Of the class `error`, if it is not installed.
    """
    if find_spec(package) is None:
        raise error(f"{what} needs {package}, which is not installed; pip install {install}")


def check_as_many(what: str, values: Sized, of: str, others: Sized) -> None:
    """Refuses lists that go together and are not equally long.

    Args:
        what: What the first has, in the plural.
        values: The first.
        of: What the second has, in the plural.
        others: The second.

    Raises:
        ConfigError: If they have another length.
    """
    if len(values) != len(others):
        raise ConfigError(f"got {len(values)} {what} for {len(others)} {of}; give one for each")


def check_finite(what: str, *tensors: Any, advice: str = "", error: type[L2CError] = NumericsError) -> None:
    """Refuses tensors with NaN or infinity.

    Args:
        what: What they are, for the sentence.
        tensors: The tensors.
        advice: What to do about it.
        error: What to raise.

    Raises:
        L2CError: Of the class `error`, if there is a number in one of them that is none.
    """
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise error(f"{what} values that are not finite{advice and f'; {advice}'}")


def plain_text(text: str) -> str:
    r"""Text without what moves a terminal: control characters but newlines and tabs, and changes of direction.

    >>> plain_text("a\x1b[31mb")
    'a?[31mb'
    """
    return _NOT_TEXT.sub("?", text)
