"""`host_of`: the host of whatever is given, a model or a pipeline."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from l2c.errors import ConfigError
from l2c.hosts.base import Host
from l2c.hosts.native import ModelHost
from l2c.hosts.pipeline.conditions import check_call
from l2c.hosts.pipeline.host import PipelineHost
from l2c.hosts.pipeline.learned_scheduler import OTHER_STEPS
from l2c.hosts.pipeline.modular import arguments_of
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.images import resolve_sampler
from l2c.schedule.schedule import CacheSchedule

logger = logging.getLogger(__name__)

MODEL_RUN = tuple(inspect.signature(ModelHost.of).parameters)[1:]
"""What says how a model is sampled; without `self` and the model."""


def host_of(target: Any, verb: Callable[..., Any] | None = None, /, **run: Any) -> Host:
    """The host of a model or of a diffusers pipeline.

    Args:
        target: A model from `load_model`, or any that is sampled by class labels; a diffusers pipeline; or a host,
            which is returned as it is.
        verb: What was given the run among arguments of its own, which a misspelt name may be meant for.
        run: How it is sampled. For a model: `solver`, `steps`, `spacing`, `guidance` (a scale, or a range to learn for
            such as (1, 5)), `guidance_mode` and `guidance_channels`. For a pipeline: what it is called with, and
            `prompts` or `conditions` where learning or checking is to have several.

    Raises:
        ConfigError: If an argument is unknown or out of range, or the target is neither.
    """
    if isinstance(target, (ModelHost, PipelineHost)):
        for name in run:
            near = difflib.get_close_matches(name, _arguments(verb), n=1, cutoff=0.7)
            advice = f"did you mean {near[0]}?" if near else "leave it out"
            raise ConfigError(f"a host has its run already and takes no argument '{name}'; {advice}")
        return target
    if isinstance(target, nn.Module):
        _check_names(run, verb)
        return ModelHost.of(target, **run)
    if callable(target) and hasattr(target, "scheduler"):
        several = ("prompts", "conditions")
        if isinstance(run.get("guidance_scale"), (tuple, list)):
            raise ConfigError(
                "a range of guidance is learned for models so far, and this is a pipeline; name one guidance_scale"
            )
        check_call(target, set(run) - set(several), [*several, *_arguments(verb)])
        return PipelineHost.of(target, **run)
    raise ConfigError(
        f"this needs a model or a diffusers pipeline, got {type(target).__name__}; load one with "
        "l2c.load_model, or with diffusers"
    )


def _arguments(verb: Callable[..., Any] | None) -> list[str]:
    """Names of a function's own arguments."""
    if verb is None:
        return []
    parameters = inspect.signature(verb).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [name for name in named if name not in ("target", "schedule", *MODEL_RUN)]


def _check_names(run: Mapping[str, Any], verb: Callable[..., Any] | None) -> None:
    known = [*MODEL_RUN, *_arguments(verb)]
    for name in run:
        if name not in MODEL_RUN:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"a model takes no argument '{name}'; {hint}known are {', '.join(known)}")


def host_for(
    target: Any, schedule: CacheSchedule, verb: Callable[..., Any] | None = None, /, **run: Any
) -> Host:
    """The host of a target with the run of a schedule, as far as nothing else is asked for.

    Args:
        target: See `host_of`.
        schedule: Its run and, for a pipeline, what it was called with.
        verb: See `host_of`.
        run: See `host_of`; goes before what the schedule says.
    """
    if isinstance(target, nn.Module):
        _check_names(run, verb)
        scales = schedule.contract.run.guidance_range if run.get("guidance") is None else None
        return ModelHost(resolve_sampler(Denoiser.of(target), schedule, **run), scales)
    if isinstance(target, (ModelHost, PipelineHost)):
        return host_of(target, verb, **run)
    made, recorded = schedule.contract.run, schedule.provenance.get("call")
    takes = arguments_of(target)
    asked = run.get("num_inference_steps", made.steps)
    if made.weights is not None and asked != made.steps:
        logger.warning(OTHER_STEPS, made.steps, asked)
    known = {"num_inference_steps": made.steps, "guidance_scale": made.guidance}
    call = {name: value for name, value in known.items() if name in takes and value is not None}
    return host_of(target, verb, **{**call, **(recorded if isinstance(recorded, dict) else {}), **run})
