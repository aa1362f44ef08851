"""Sizes of pictures that a schedule was made for or measured at, and what is to be expected at others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

SIZES = ("height", "width", "num_frames")
"""What pipelines call the size of what they make."""


def size_name(given: Mapping[str, Any]) -> str:
    """A size for people, of what a pipeline is called with; empty if that says nothing of it.

    >>> size_name({"width": 64, "height": 32, "prompt": "a cat"})
    'height 32, width 64'
    """
    told = {name: given[name] for name in SIZES if given.get(name) is not None}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())


def measured_errors(provenance: Mapping[str, Any]) -> dict[str, float]:
    """Errors of a schedule by the size of pictures: those of learning, and those that checks recorded."""
    found = dict(provenance.get("held_out_error_by_size") or {})
    own, error = size_name(provenance.get("resolution") or {}), provenance.get("held_out_error")
    if not found and own and error is not None:
        found = {own: error}
    return {**found, **((provenance.get("drift") or {}).get("by_size") or {})}


def size_note(provenance: Mapping[str, Any], size: str) -> str | None:
    """What to tell whoever makes pictures of a size with a schedule.

    Args:
        provenance: Of the schedule.
        size: See `size_name`.

    Returns:
        Nothing (empty) where the schedule was made for it, else a sentence with the error that is to be expected. None
        if no error was ever measured, or sizes are not known.
    """
    own = provenance.get("sizes") or [size_name(provenance.get("resolution") or {})]
    if size and size in own:
        return ""
    measured = measured_errors(provenance)
    if not size or not own[0] or not measured:
        return None
    said = f"the schedule was made for {' and for '.join(own)}, and the run is of {size}; it works"
    if size in measured:
        return f"{said}, and l2c.check has measured an error of {measured[size]:.4f} there"
    nearest = min(measured, key=lambda name: abs(math.log(_elements(name) / _elements(size))))
    return (
        f"{said}, and is expected to be off by about {measured[nearest]:.4f}, the error at the nearest size that was "
        f"measured ({nearest}): l2c.check tells"
    )


def _elements(name: str) -> int:
    return max(1, math.prod(int(number) for number in re.findall(r"\d+", name)))
