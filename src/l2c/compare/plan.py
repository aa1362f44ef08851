"""A comparison as single variants, each with a name for its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2c.compare.baselines import BASELINES
from l2c.compare.choices import Base, MethodChoice
from l2c.compare.config import CompareConfig
from l2c.methods.registry import find_method

FULL = "full"
"""The method that computes everything; every base has it."""


@dataclass(frozen=True)
class Variant:
    """A base run, a method with settings, and a budget.

    Attributes:
        id: Name of its record.
        base: The run that is to become faster.
        method: Name of the method or baseline; `full` computes everything.
        settings: Of the method.
        budget: Share of the base's MACs to aim at; None takes the settings as they are.
    """

    id: str
    base: Base
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: float | None = None

    @classmethod
    def full(cls, base: Base) -> Variant:
        """The one that computes everything."""
        return cls(f"{base.name}--{FULL}", base, FULL)

    @property
    def is_baseline(self) -> bool:
        """Whether it is run by another library."""
        return self.method in BASELINES

    @property
    def described(self) -> tuple[str, str]:
        """Title and source of its method."""
        if self.method == FULL:
            return "everything computed", ""
        method = BASELINES[self.method] if self.is_baseline else find_method(self.method)
        return method.title, method.source

    def to_plain(self) -> dict[str, Any]:
        """All of it but its name, in the types of JSON."""
        plain = {
            "base": self.base.to_plain(),
            "method": self.method,
            "settings": dict(self.settings),
            "budget": self.budget,
        }
        as_read: dict[str, Any] = json.loads(json.dumps(plain))
        return as_read


def plan(config: CompareConfig) -> list[Variant]:
    """All variants of a comparison, in the order of bases, each base's `full` first."""
    variants: list[Variant] = []
    for base in config.bases:
        variants.append(Variant.full(base))
        for method in config.methods:
            if method.bases is None or base.name in method.bases:
                variants += _variants(base, method)
    return list({variant.id: variant for variant in variants}.values())


def _variants(base: Base, method: MethodChoice) -> list[Variant]:
    settings, name = method.settings, method.name
    if name in BASELINES:
        if settings == ({},):
            settings = BASELINES[name].settings
        return [
            Variant(_slug(base.name, name, f"{index}"), base, name, options)
            for index, options in enumerate(settings, 1)
        ]
    budgets: tuple[float | None, ...] = base.budgets if method.budgets is None else method.budgets
    return [
        Variant(
            _slug(base.name, name, *_words(options), *([] if budget is None else [f"b{budget:g}"])),
            base,
            name,
            options,
            budget,
        )
        for options in settings
        for budget in budgets or (None,)
    ]


def _words(options: Mapping[str, Any]) -> list[str]:
    named = ((key, Path(value).stem if key == "path" else value) for key, value in options.items())
    return [f"{key}-{value}".replace("_", "-") for key, value in named]


def _slug(*parts: str) -> str:
    text = "--".join(part.strip("-") for part in parts)
    return "".join(c if c.isalnum() or c in "-." else "-" for c in text.replace("+", "p"))
