"""Budgets as people write them: shares of the work, the curve, or multiply-accumulates with a prefix."""

from __future__ import annotations

import re
from collections.abc import Sequence

from l2c.errors import ConfigError

DEFAULT = 0.5
"""Share of the multiply-accumulates that is learned for if nothing is asked for."""
CURVE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25)
"""Budgets of a family, as fractions of the MACs."""
_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_fractions(text: str) -> tuple[float, ...]:
    """Fractions of the MACs from a list with commas, or `curve`.

    Raises:
        ConfigError: If it is anything else.

    >>> parse_fractions("0.7,0.5")
    (0.7, 0.5)
    """
    if text == "curve":
        return CURVE
    try:
        amounts = tuple(float(part) for part in text.split(","))
    except ValueError:
        amounts = ()
    check_fractions(amounts, text)
    if len(set(amounts)) < len(amounts):
        raise ConfigError(f"a budget names a fraction twice: '{text}'")
    return amounts


def check_fractions(amounts: Sequence[float], given: object) -> None:
    """Refuses budgets that are no fractions.

    Args:
        amounts: The budgets.
        given: What they were given as.

    Raises:
        ConfigError: If there is none, or one is out of range.
    """
    if not amounts or not all(0 < amount <= 1 for amount in amounts):
        raise ConfigError(
            "budgets are fractions of the MACs, more than 0 and at most 1, such as 0.5 or 0.7,0.5,0.3, or curve; got "
            f"{given!r}"
        )


def parse_macs(text: str) -> float:
    """Multiply-accumulates from a number with a prefix.

    Raises:
        ConfigError: If it is anything else.

    >>> parse_macs("16.6G")
    16600000000.0
    """
    match = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?) ?([KMGT]?)", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]) > 0:
        raise ConfigError(f"a budget in MACs is a number such as 16.6G, 2.3T or 5e12, got '{text}'")
    return float(round(float(match[1]) * _PREFIXES[match[2].upper()]))
