"""Every error that l2c raises on purpose, in one tree.

::

    L2CError
    ├── CheckpointError    a weights file is missing, truncated, or not one of the known layouts
    ├── DataError          an image folder or Parquet file cannot be used
    ├── ScheduleError      a schedule or router file cannot be read or makes no sense
    │   └── ContractError  a sound schedule, but not made for this model or this run
    ├── CacheStateError    enabled twice, not enabled, or called outside a run
    ├── ConfigError        an argument is unknown or out of range (also a ValueError)
    ├── OutputError        a result cannot be written
    └── NumericsError      a value that must be finite is not

The command line prints the message of any of these as one sentence and exits with 1, or with 2 for
`ConfigError`, so a message says what is wrong, what was got, what was expected and what to do.
"""

from __future__ import annotations

import re

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


class OutputError(L2CError):
    """A result cannot be written."""


class NumericsError(L2CError):
    """A value that must be finite is not."""


def plain_text(text: str) -> str:
    r"""Text without what moves a terminal: control characters but newlines and tabs, and changes of direction.

    >>> plain_text("a\x1b[31mb")
    'a?[31mb'
    """
    return _NOT_TEXT.sub("?", text)
