"""How much work learning takes, in three sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2c.errors import known

EFFORTS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"iterations": 12, "num_examples": 16, "trials": 12, "level_trials": 2},
    "default": {},
    "best": {
        "iterations": 64,
        "num_examples": 64,
        "trials": 64,
        "trial_examples": 16,
        "fit_examples": 48,
        "level_trials": 16,
        "patience": 8,
    },
}
"""What each changes of `LearnSettings`."""


def effort_settings(effort: str) -> Mapping[str, Any]:
    """What an effort changes of `LearnSettings`.

    >>> effort_settings("quick")["iterations"]
    12

    Raises:
        ConfigError: If there is no such effort.
    """
    return EFFORTS[known("effort", effort, EFFORTS)]
