"""`host_of`: the host of whatever is given, a model or a pipeline."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torch import nn

from l2c.errors import ConfigError
from l2c.hosts.base import Host
from l2c.hosts.native import ModelHost
from l2c.hosts.pipeline.host import PipelineHost
from l2c.schedule.schedule import CacheSchedule

MODEL_RUN = tuple(inspect.signature(ModelHost.of).parameters)[1:]
"""What says how a model is sampled; without `self` and the model."""


def host_of(target: Any, **run: Any) -> Host:
    """The host of a model or of a diffusers pipeline.

    Args:
        target: A model from `load_model`, or any that is sampled by class labels; a diffusers pipeline; or a host,
            which is returned as it is.
        run: How it is sampled. For a model: `solver`, `steps`, `spacing`, `guidance`, `guidance_mode` and
            `guidance_channels`. For a pipeline: what it is called with, and `prompts` or `conditions` where learning or
            checking is to have several.

    Raises:
        ConfigError: If an argument is unknown or out of range, or the target is neither.
    """
    if isinstance(target, (ModelHost, PipelineHost)):
        if run:
            raise ConfigError(f"a host has its run already; leave out {', '.join(sorted(run))}")
        return target
    if isinstance(target, nn.Module):
        known = tuple(name for name in MODEL_RUN if name != "model")
        for name in run:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ConfigError(f"a model takes no argument '{name}'; {hint}known are {', '.join(known)}")
        return ModelHost.of(target, **run)
    if callable(target) and hasattr(target, "scheduler"):
        return PipelineHost.of(target, **run)
    raise ConfigError(
        f"this needs a model or a diffusers pipeline, got {type(target).__name__}; load one with "
        "l2c.load_model, or with diffusers"
    )


def host_for(target: Any, schedule: CacheSchedule, **run: Any) -> Host:
    """The host of a target with the run of a schedule, as far as nothing else is asked for.

    Args:
        target: See `host_of`.
        schedule: Its run and, for a pipeline, what it was called with.
        run: See `host_of`; goes before what the schedule says.
    """
    if isinstance(target, nn.Module):
        if not set(run) - {"guidance"}:
            return ModelHost.of_schedule(target, schedule, **run)
        mine = schedule.contract.run
        own = {"solver": mine.solver, "steps": mine.steps, "spacing": mine.spacing}
        if mine.guidance is not None:
            own["guidance"] = mine.guidance
        return host_of(target, **{**own, **run})
    if isinstance(target, (ModelHost, PipelineHost)):
        return host_of(target, **run)
    recorded = schedule.provenance.get("call")
    call = {**recorded, **run} if isinstance(recorded, dict) else run
    return host_of(target, **call)
