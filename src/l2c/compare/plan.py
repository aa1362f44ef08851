"""A comparison as single ways, each with a name for its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2c.compare.baselines import PEERS
from l2c.compare.config import Base, CompareConfig, MethodChoice

FULL = "full"
"""The way that computes everything; every base has it."""


@dataclass(frozen=True)
class Way:
    """One way of sampling: a base, a method with settings, and a budget.

    Attributes:
        id: Name of its record.
        base: The run that is to become faster.
        method: Name of the method or peer; `full` computes everything.
        settings: Of the method.
        budget: Share of the base's MACs to aim at; None takes the settings as they are.
    """

    id: str
    base: Base
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: float | None = None

    @property
    def is_peer(self) -> bool:
        """Whether it is run by another library."""
        return self.method in PEERS


def plan(config: CompareConfig) -> list[Way]:
    """All ways of a comparison, in the order of bases, each base's `full` first."""
    ways: list[Way] = []
    for base in config.bases:
        ways.append(Way(f"{base.name}--{FULL}", base, FULL))
        for method in config.methods:
            if method.bases is None or base.name in method.bases:
                ways += _ways(base, method)
    return list({way.id: way for way in ways}.values())


def _ways(base: Base, method: MethodChoice) -> list[Way]:
    settings = method.settings
    if method.name in PEERS:
        if settings == ({},):
            settings = PEERS[method.name].settings
        return [
            Way(_slug(base.name, method.name, f"{index + 1}"), base, method.name, options)
            for index, options in enumerate(settings)
        ]
    budgets: tuple[float | None, ...] = base.budgets if method.budgets is None else method.budgets
    return [
        Way(
            _slug(base.name, method.name, *_words(options), *([] if budget is None else [f"b{budget:g}"])),
            base,
            method.name,
            options,
            budget,
        )
        for options in settings
        for budget in budgets or (None,)
    ]


def _words(options: Mapping[str, Any]) -> list[str]:
    return [f"{key}-{Path(str(value)).stem}".replace("_", "-") for key, value in options.items()]


def _slug(*parts: str) -> str:
    text = "--".join(part.strip("-") for part in parts)
    return "".join(c if c.isalnum() or c in "-." else "-" for c in text.replace("+", "p"))
