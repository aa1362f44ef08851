"""FORA: the whole network at every N-th evaluation, its outputs copied in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from l2c.methods.base import Method
from l2c.methods.interval import interval
from l2c.schedule.schedule import CacheSchedule


def fora(target: Any, *, every: int = 3, **run: Any) -> CacheSchedule:
    """Computes every layer at evaluations 0, every, 2 * every, ... and copies it in between.

    Nothing differs from the publication: it stores the outputs of attention and MLP before the adaLN gate, as
    the layers of a DiT are here. It was published for DiT; elsewhere the same pattern is used.

    Args:
        target: A model, a diffusers pipeline, or a host; its weights are not looked at.
        every: Length of the interval; the authors use 3 for their best trade on DiT-XL/2 at 50 DDIM steps.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Selvaraju et al., arXiv 2407.01425.
    """
    schedule = interval(target, every=every, predictor="copy", **run)
    return replace(schedule, provenance={**schedule.provenance, "method": "fora"})


METHOD = Method(
    "fora",
    "FORA",
    fora,
    "arXiv 2407.01425",
    published={"every": 3},
    choices=tuple({"every": every} for every in range(1, 13)),
)
