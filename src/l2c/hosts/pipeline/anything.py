"""`learn` for whatever it is given: a model or a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from torch import nn

from l2c.hosts.pipeline.learn import learn as learn_for_pipeline
from l2c.hosts.pipeline.settings import FitSettings
from l2c.learning.end_to_end import LearnSettings
from l2c.learning.learn import learn as learn_for_model
from l2c.learning.session import OnProgress, Session
from l2c.schedule.cost import CostTable
from l2c.schedule.schedule import CacheSchedule


@overload
def learn(
    target: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    *,
    budget: float = 0.5,
    spacing: str = "linspace",
    guidance: float = 1.5,
    costs: CostTable | None = None,
    settings: LearnSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
) -> CacheSchedule: ...


@overload
def learn(
    target: Any,
    conditions: Sequence[Mapping[str, Any]] | None = None,
    *,
    prompts: Sequence[str] | str | Path | None = None,
    budget: float = 0.5,
    settings: FitSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
    **call: Any,
) -> CacheSchedule: ...


def learn(target: Any, *args: Any, **options: Any) -> CacheSchedule:
    """Learns the schedule for a budget: which layers to compute at which evaluation, and how the others follow.

    A model learns on pictures of its own, for a solver and a number of steps; a diffusers pipeline on the given
    prompts or labels, for its scheduler and whatever it is called with.

    Args:
        target: A model from `load_model`, or any with a layer adapter; or a diffusers pipeline.
        args: What `l2c.learning.learn.learn` takes for a model, `l2c.hosts.pipeline.learn` for a pipeline.
        options: Likewise, by name; both take `budget`, `settings`, `session` and `on_progress`.

    Raises:
        CheckpointError: If the session's checkpoint cannot be read.
        ConfigError: If an argument is out of range, or there is nothing to learn.
        NumericsError: If the error is not finite.
    """
    if isinstance(target, nn.Module):
        return learn_for_model(target, *args, **options)
    return learn_for_pipeline(target, *args, **options)
