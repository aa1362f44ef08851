"""All methods by name: those of the package, each a file with a `METHOD` and a line here, and those registered."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from l2c.errors import ConfigError, Told, check_new, known
from l2c.methods.base import Method
from l2c.schedule.schedule import CacheSchedule

_FILES = (
    "fewer_steps",
    "fora",
    "deepcache",
    "faster_diffusion",
    "delta_dit",
    "smoothcache",
    "taylorseer",
    "spectrum",
    "foca",
    "dmd",
    "dpcache",
    "budcache",
    "adaptive_guidance",
    "bespoke",
    "neuralsolver",
    "l2c_paper",
    "interval",
    "learned",
)


_REGISTERED: dict[str, Method] = {}


def register_method(method: Method) -> None:
    """Adds a method, which `find_method` and comparisons then know by its name.

    Raises:
        ConfigError: If there is a method of that name, or it is no method.
    """
    check_new("method", getattr(method, "name", ""), all_methods())
    _REGISTERED[method.name] = method


@cache
def _built_in() -> Mapping[str, Method]:
    found: list[Method] = [importlib.import_module(f"l2c.methods.{name}").METHOD for name in _FILES]
    return {method.name: method for method in found}


def all_methods() -> Mapping[str, Method]:
    """Every method by its name: those of the package, then those that were registered."""
    return {**_built_in(), **_REGISTERED}


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: If there is none; the message names the nearest.

    >>> find_method("fora").source
    'arXiv 2407.01425'
    """
    methods = all_methods()
    return methods[known("method", name, methods)]


def schedule_for(
    method: Method,
    target: Any,
    *,
    budget: float | None = None,
    prepared: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> CacheSchedule:
    """A method's schedule for a run, with given settings, or with those closest to a budget.

    Args:
        method: From `find_method`.
        target: A host; or a model or pipeline, with what says how it is sampled among the settings.
        budget: Share of the run's MACs to come close to; None takes the settings as they are.
        prepared: What `method.prepare` returned.
        settings: Instead of, or besides, the published ones.

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """
    options: dict[str, Any] = dict(settings or {})
    if method.prepare is not None:
        options["prepared"] = prepared
    with Told(ConfigError, f"the method '{method.name}' does not take these settings ({{said}})", TypeError):
        if budget is None:
            return method.make(target, **{**method.published, **options})
        if not method.choices:
            return method.make(target, budget=budget, **options)
        made = [method.make(target, **{**method.published, **choice, **options}) for choice in method.choices]
    return min(made, key=lambda schedule: abs(schedule.cost.fraction - budget))
