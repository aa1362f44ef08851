"""`enable_cache` for whatever it is given: a pipeline, a transformer with its scheduler, or a transformer alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

from torch import nn

from l2c.cache import cached_model
from l2c.cache.cached_model import CachedModel, active_cache
from l2c.cache.summary import RunSummary
from l2c.errors import CacheStateError, ConfigError, known
from l2c.hosts.pipeline.components import transformers_of, unwrapped
from l2c.hosts.pipeline.graphs import check_engine
from l2c.hosts.pipeline.handle import HANDLE, PipelineCache, refuse_enabled
from l2c.hosts.pipeline.learned_scheduler import LearnedScheduler, scheduler_of
from l2c.hosts.pipeline.transformer import refuse_other_cache
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.open import load_schedule
from l2c.schedule.schedule import CacheSchedule

Reuse = CacheSchedule | ScheduleFamily | str | Path
"""What names a schedule: itself, a family, a file, a name that comes with l2c, or a repository on the hub."""


@overload
def enable_cache(
    target: nn.Module,
    schedule: Reuse,
    *,
    budget: float | None = None,
    scheduler: None = None,
    any_weights: bool = False,
) -> CachedModel: ...


@overload
def enable_cache(
    target: Any,
    schedule: Reuse | Mapping[str, Reuse],
    *,
    budget: float | None = None,
    scheduler: Any = None,
    any_weights: bool = False,
    any_run: bool = False,
    engine: str = "eager",
) -> PipelineCache: ...


def enable_cache(
    target: Any,
    schedule: Reuse | Mapping[str, Reuse],
    *,
    budget: float | None = None,
    scheduler: Any = None,
    any_weights: bool = False,
    any_run: bool = False,
    engine: str = "eager",
) -> CachedModel | PipelineCache:
    """Lets a pipeline or model reuse layers as a schedule says, until `disable_cache` or the end of a `with` block.

    On a pipeline, its scheduler is the clock: call the pipeline as before. A schedule serves every transformer of
    the pipeline that has its layers; where they need schedules of their own, give them by name. A schedule that was
    learned with its solver puts that in the place of the pipeline's scheduler meanwhile.

    Args:
        target: A diffusers pipeline; or a model that has a layer adapter.
        schedule: What to compute and what to reuse: a schedule, a family, a file of either, a name that comes with
            l2c, or a repository on the hub; or several by name of the component.
        budget: Of a family, the best schedule that costs at most this share of the multiply-accumulates.
        scheduler: For a model in a loop of your own: the diffusers scheduler that drives it.
        any_weights: Warn, instead of refusing, when the schedule was learned on other weights.
        any_run: Warn, instead of refusing, when the scheduler or its timesteps differ from those that the
            schedule was made for. The number of evaluations must be the same.
        engine: For a pipeline on a CUDA device: `graph` replays the calls of its transformers as CUDA graphs, one for
            each different row of the schedule, and warns where they have to run as they are; `eager` never does.

    Returns:
        The handle of the enabled cache, which is also a context manager.

    Raises:
        CacheStateError: If a cache is already enabled, ours or diffusers' own.
        ContractError: If the schedule was made for another model. For another run, the pipeline raises it when it
            is called.
        ConfigError: If the target has no transformer or scheduler that could be used, a family has no budget, or there
            is no such engine.
        ScheduleError: If a file or repository has no schedule.
    """
    wrapper, target = target, unwrapped(target)
    check_engine(engine)
    if isinstance(target, nn.Module) and scheduler is None:
        if engine != "eager":
            raise ConfigError(
                "a model that is driven by hand runs as it is; for CUDA graphs, sample with "
                "l2c.sample(engine='graph'), or name the scheduler= that drives it"
            )
        if isinstance(schedule, Mapping):
            raise ConfigError("a model takes one schedule; several by name are for a pipeline")
        refuse_other_cache(target)
        return cached_model.enable_cache(target, load_schedule(schedule, budget), any_weights=any_weights)
    if not hasattr(target, "__dict__") or isinstance(target, (str, Path, CacheSchedule)):
        raise ConfigError(
            f"a cache is enabled on a model or a diffusers pipeline, got {type(target).__name__}"
        )
    refuse_enabled(target)
    models = {"transformer": target} if isinstance(target, nn.Module) else transformers_of(target)
    chosen = scheduler if scheduler is not None else getattr(target, "scheduler", None)
    if not hasattr(chosen, "set_timesteps"):
        raise ConfigError(
            f"{type(target).__name__} has no diffusers scheduler, which would be the clock; enable the cache on "
            "its model and drive a run yourself"
        )
    named = schedule if isinstance(schedule, Mapping) else dict.fromkeys(models, schedule)
    schedules = {name: load_schedule(one, budget) for name, one in named.items()}
    for name in schedules:
        known("transformer of the pipeline", name, models)
    return PipelineCache(
        target,
        _solver_of(next(iter(schedules.values())), target, chosen),
        models,
        schedules,
        any_weights,
        any_run,
        wrapper if wrapper is not target else None,
        engine=engine,
    )


def _solver_of(schedule: CacheSchedule, target: Any, scheduler: Any) -> Any:
    """The scheduler that a schedule's run needs: its own where its solver was learned."""
    run = schedule.contract.run
    if run.weights is None or isinstance(scheduler, LearnedScheduler):
        return scheduler
    if isinstance(target, nn.Module):
        raise ConfigError(
            "the schedule brings its own solver; drive the model with an "
            "l2c.LearnedScheduler, and give that as scheduler"
        )
    return scheduler_of(schedule, scheduler)


def disable_cache(target: Any) -> None:
    """Restores a pipeline or model to what it was before `enable_cache`, exactly.

    Raises:
        CacheStateError: If no cache is enabled on it.
    """
    _cache_of(target).restore()


def summary(target: Any) -> RunSummary:
    """What was computed and reused in the last run of a model or pipeline with a cache.

    Args:
        target: What `enable_cache` was called on.

    Raises:
        CacheStateError: If no cache is enabled on it.
    """
    return _cache_of(target).summary()


def _cache_of(target: Any) -> CachedModel | PipelineCache:
    """The handle of the cache that is enabled on a model or pipeline."""
    target = unwrapped(target)
    cache: CachedModel | PipelineCache | None = getattr(target, "__dict__", {}).get(HANDLE)
    if cache is None and isinstance(target, nn.Module):
        cache = active_cache(target)
    if cache is None:
        raise CacheStateError(
            "no cache is enabled on this; the handle of one keeps the summary of the last run"
        )
    return cache
