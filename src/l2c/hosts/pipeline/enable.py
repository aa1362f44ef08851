"""`enable_cache` for whatever it is given: a pipeline, a transformer with its scheduler, or a transformer alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

from torch import nn

from l2c.cache import cached_model
from l2c.cache.cached_model import CachedModel
from l2c.errors import CacheStateError, ConfigError
from l2c.hosts.pipeline.handle import HANDLE, PipelineCache
from l2c.hosts.pipeline.summary import RunSummary
from l2c.hosts.pipeline.transformer import refuse_other_cache
from l2c.schedule.schedule import CacheSchedule

_NAMES = ("transformer", "transformer_2")


def transformers_of(pipe: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by name of the component, without the wrapper of `torch.compile`.

    Raises:
        ConfigError: If it has none.
    """
    found = {name: getattr(pipe, name, None) for name in _NAMES}
    models = {name: _unwrapped(model) for name, model in found.items() if isinstance(model, nn.Module)}
    if not models:
        raise ConfigError(
            f"{type(pipe).__name__} has no component called {' or '.join(_NAMES)}; enable the cache on the model "
            "itself, with enable_cache(model, schedule, scheduler=...)"
        )
    return models


def _unwrapped(target: Any) -> Any:
    """A model without the wrapper of `torch.compile`."""
    return getattr(target, "_orig_mod", target) if isinstance(target, nn.Module) else target


@overload
def enable_cache(
    target: nn.Module, schedule: CacheSchedule, *, scheduler: None = None, any_weights: bool = False
) -> CachedModel: ...


@overload
def enable_cache(
    target: Any,
    schedule: CacheSchedule | Mapping[str, CacheSchedule],
    *,
    scheduler: Any = None,
    any_weights: bool = False,
    any_run: bool = False,
) -> PipelineCache: ...


def enable_cache(
    target: Any,
    schedule: CacheSchedule | Mapping[str, CacheSchedule],
    *,
    scheduler: Any = None,
    any_weights: bool = False,
    any_run: bool = False,
) -> CachedModel | PipelineCache:
    """Lets a pipeline or model reuse layers as a schedule says, until `disable_cache` or the end of a `with` block.

    On a pipeline, its scheduler is the clock: call the pipeline as before. A schedule serves every transformer of
    the pipeline that has its layers; where they need schedules of their own, give them by name.

    Args:
        target: A diffusers pipeline; or a model that has a layer adapter.
        schedule: What to compute and what to reuse; or schedules by name of the component.
        scheduler: For a model in a loop of your own: the diffusers scheduler that drives it.
        any_weights: Warn, instead of refusing, when the schedule was learned on other weights.
        any_run: Warn, instead of refusing, when the scheduler or its timesteps differ from those that the
            schedule was made for. The number of evaluations must be the same.

    Returns:
        The handle of the enabled cache, which is also a context manager.

    Raises:
        CacheStateError: If a cache is already enabled, ours or diffusers' own.
        ContractError: If the schedule was made for another model. For another run, the pipeline raises it when it
            is called.
        ConfigError: If the target has no transformer or scheduler that could be used.
    """
    wrapper, target = target, _unwrapped(target)
    if isinstance(target, nn.Module) and scheduler is None:
        if not isinstance(schedule, CacheSchedule):
            raise ConfigError("a model takes one schedule; several by name are for a pipeline")
        refuse_other_cache(target)
        return cached_model.enable_cache(target, schedule, any_weights=any_weights)
    if vars(target).get(HANDLE) is not None:
        raise CacheStateError(
            "a cache is already enabled on this pipeline; call l2c.disable_cache(pipe) first"
        )
    models = {"transformer": target} if isinstance(target, nn.Module) else transformers_of(target)
    chosen = scheduler if scheduler is not None else getattr(target, "scheduler", None)
    if not hasattr(chosen, "set_timesteps"):
        raise ConfigError(
            f"{type(target).__name__} has no diffusers scheduler, which would be the clock; enable the cache on "
            "its model and drive a run yourself"
        )
    schedules = dict.fromkeys(models, schedule) if isinstance(schedule, CacheSchedule) else dict(schedule)
    if unknown := set(schedules) - set(models):
        raise ConfigError(
            f"the pipeline has no transformer called {', '.join(sorted(unknown))}; it has {', '.join(models)}"
        )
    return PipelineCache(
        target, chosen, models, schedules, any_weights, any_run, wrapper if wrapper is not target else None
    )


def disable_cache(target: Any) -> None:
    """Restores a pipeline or model to what it was before `enable_cache`, exactly.

    Raises:
        CacheStateError: If no cache is enabled on it.
    """
    target = _unwrapped(target)
    cache = vars(target).get(HANDLE)
    if cache is not None:
        cache.restore()
    elif isinstance(target, nn.Module):
        cached_model.disable_cache(target)
    else:
        raise CacheStateError("no cache is enabled on this pipeline")


def summary(target: Any) -> RunSummary:
    """What was computed and reused in the last run of a pipeline with a cache.

    Args:
        target: What `enable_cache` was called on.

    Raises:
        CacheStateError: If no cache is enabled on it.
    """
    cache = vars(_unwrapped(target)).get(HANDLE)
    if cache is None:
        raise CacheStateError(
            "no cache is enabled on this pipeline; its handle keeps the summary of the last run"
        )
    found: RunSummary = cache.summary()
    return found
