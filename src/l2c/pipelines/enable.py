"""`enable_cache` for whatever it is given: a pipeline, a transformer with its scheduler, or a transformer alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from l2c.cache import runtime
from l2c.cache.clock import DEFAULT_BRANCH
from l2c.cache.runtime import CachedModel, attach
from l2c.cache.schedule import CacheSchedule
from l2c.cache.shadows import Shadow
from l2c.errors import CacheStateError, ConfigError
from l2c.layers import find_layers, fingerprint
from l2c.pipelines.clock import SchedulerClock, WatchedBar
from l2c.pipelines.gates import PipelineGates
from l2c.pipelines.runs import describe_run, run_problem
from l2c.pipelines.summary import RunSummary, summarize_model

_HANDLE = "_l2c_cache"
_NAMES = ("transformer", "transformer_2")


def transformers_of(pipe: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by name of the component, without the wrapper of `torch.compile`.

    Raises:
        ConfigError: If it has none.
    """
    found = {name: getattr(pipe, name, None) for name in _NAMES}
    models = {
        name: getattr(model, "_orig_mod", model)
        for name, model in found.items()
        if isinstance(model, nn.Module)
    }
    if not models:
        raise ConfigError(
            f"{type(pipe).__name__} has no component called {' or '.join(_NAMES)}; enable the cache on the model "
            "itself, with enable_cache(model, schedule, scheduler=...)"
        )
    return models


class CachedTransformer:
    """A transformer whose evaluations are told by a scheduler's clock.

    Args:
        name: Name of the component.
        model: The transformer.
        schedule: What it computes and reuses.
        owner: The pipeline's cache that it belongs to.
    """

    def __init__(self, name: str, model: nn.Module, schedule: CacheSchedule, owner: PipelineCache) -> None:
        table = find_layers(model).with_sizes_of(schedule.layers)
        schedule.check_layers(table)
        refuse_other_cache(model)
        problem = schedule.contract.compare_weights(fingerprint(model, table))
        if problem and not owner.any_weights:
            raise problem
        if problem:
            warnings.warn(problem.args[0], stacklevel=5)
        self.name, self.model, self.schedule = name, model, schedule
        self.gates = PipelineGates(schedule.plan, schedule.num_evaluations)
        self.cache: CachedModel = attach(model, table, self.gates, schedule)
        self._owner = owner
        self._context = DEFAULT_BRANCH
        self._shapes: dict[str, list[Any]] = {}
        self._calls: dict[str, int] = {}
        self._shadows = [Shadow(model, "forward", self._forward)]
        if hasattr(model, "cache_context"):
            self._shadows.append(Shadow(model, "cache_context", self._cache_context))

    def begin_run(self) -> None:
        """Starts from nothing."""
        self.gates.begin_run()
        self.cache.clock.stop()
        self._shapes.clear()

    def end_run(self) -> None:
        """Lets go of all features; counts stay."""
        self.gates.clear()
        self.cache.clock.stop()

    def restore(self) -> None:
        """Gives the model its own methods back."""
        for shadow in self._shadows:
            shadow.remove()
        self._shadows.clear()
        self.cache.restore()

    def _cache_context(self, original: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        return _NamedCall(self, name, original(name, *args, **kwargs))

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        evaluation = self._owner.enter_evaluation(self)
        clock = self.cache.clock
        if not clock.running or clock.evaluation != evaluation:
            clock.start(evaluation)
            clock.tick(evaluation)
            self._calls.clear()
        branch = self._branch(kwargs.get("hidden_states", args[0] if args else None), kwargs)
        self.gates.begin_call(evaluation, branch)
        try:
            with clock.in_branch(branch):
                return original(*args, **kwargs)
        except BaseException:
            self._owner.clock.end()
            raise
        finally:
            self.gates.end_call()

    def _branch(self, sample: Any, kwargs: Mapping[str, Any]) -> str:
        """Name of a call: its `cache_context`, then its place among the calls of the evaluation, then its shape."""
        name = self._context
        place = self._calls[name] = self._calls.get(name, 0) + 1
        if place > 1:
            name = f"{name}-{place}"
        text = kwargs.get("encoder_hidden_states")
        shape = [value.shape if isinstance(value, Tensor) else None for value in (sample, text)]
        shapes = self._shapes.setdefault(name, [])
        if not shapes:
            self._owner.check_shape(self, sample)
        if shape not in shapes:
            shapes.append(shape)
        number = shapes.index(shape)
        return f"{name} (shape {number + 1})" if number else name


class _NamedCall:
    """diffusers' `cache_context`, which here names the branch as well."""

    def __init__(self, transformer: CachedTransformer, name: str, inner: Any) -> None:
        self._transformer, self._name, self._inner = transformer, name, inner
        self._before = DEFAULT_BRANCH

    def __enter__(self) -> Any:
        self._before, self._transformer._context = self._transformer._context, self._name
        return self._inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._transformer._context = self._before
        return self._inner.__exit__(*error)


class PipelineCache:
    """An enabled cache on a pipeline: the handle that `enable_cache` returns, also a context manager.

    Attributes:
        clock: The scheduler's clock.
        transformers: The cached transformers by name of the component.
        any_weights: Whether other weights are accepted with a warning.
        any_run: Whether other timesteps and resolutions are.
    """

    def __init__(
        self,
        target: Any,
        scheduler: Any,
        models: Mapping[str, nn.Module],
        schedules: Mapping[str, CacheSchedule],
        any_weights: bool,
        any_run: bool,
    ) -> None:
        self.any_weights, self.any_run = any_weights, any_run
        self.transformers: dict[str, CachedTransformer] = {}
        self._target, self._bar = target, None
        self._checked = False
        self._adapters: dict[str, int] = {}
        self.clock = SchedulerClock(scheduler, self._start, self._end)
        try:
            for name, schedule in schedules.items():
                self.transformers[name] = CachedTransformer(name, models[name], schedule, self)
            if callable(getattr(target, "progress_bar", None)):
                self._bar = Shadow(target, "progress_bar", self._progress_bar)
            self._adapters = self._count_adapters()
            setattr(target, _HANDLE, self)
        except BaseException:
            self.restore()
            raise

    def _start(self) -> None:
        self._checked = False
        for transformer in self.transformers.values():
            transformer.begin_run()

    def _end(self) -> None:
        for transformer in self.transformers.values():
            transformer.end_run()

    def _progress_bar(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> WatchedBar:
        return WatchedBar(original(*args, **kwargs), self.clock.end)

    def enter_evaluation(self, transformer: CachedTransformer) -> int:
        """The evaluation at which a transformer is called; checks the run before its first.

        Raises:
            CacheStateError: Outside a run, or if the model's own cache has been enabled since.
            ContractError: If the schedule was made for another run.
        """
        evaluation = self.clock.evaluation
        if not self._checked:
            try:
                self._check_run()
            except BaseException:
                self.clock.end()
                raise
            self._checked = True
        return evaluation

    def _check_run(self) -> None:
        guidance = getattr(self._target, "_guidance_scale", None)
        run = describe_run(self.clock.scheduler, float(guidance) if guidance is not None else None)
        for transformer in self.transformers.values():
            refuse_other_cache(transformer.model)
            contract = transformer.schedule.contract
            problem = run_problem(contract, run)
            if problem is not None:
                if not self.any_run or len(run.timesteps) != transformer.schedule.num_evaluations:
                    raise problem
                warnings.warn(problem.args[0], stacklevel=2)
            if note := contract.guidance_note(run):
                warnings.warn(note, stacklevel=2)
            transformer.cache.follow()
            if note := compile_note(transformer.model, len(run.timesteps)):
                warnings.warn(note, stacklevel=2)
        self._note_adapters()

    def _count_adapters(self) -> dict[str, int]:
        return {
            name: sum(".lora_" in key for key, _ in transformer.model.named_parameters())
            for name, transformer in self.transformers.items()
        }

    def _note_adapters(self) -> None:
        now = self._count_adapters()
        if now != self._adapters:
            self._adapters = now
            warnings.warn(
                "a LoRA was loaded or unloaded since the cache was enabled; it is used, but how far off the "
                "schedule is with it was not measured: l2c.check tells",
                stacklevel=2,
            )

    def check_shape(self, transformer: CachedTransformer, sample: Any) -> None:
        """Warns when samples have another shape than those that a schedule was made for."""
        expected = transformer.schedule.layers.sample_shape
        got = tuple(sample.shape[1:]) if isinstance(sample, Tensor) else ()
        if expected and got and got != expected:
            warnings.warn(
                f"the schedule was made for samples of {'x'.join(map(str, expected))} and the run has "
                f"{'x'.join(map(str, got))}; it works, but how close the pictures are was not measured there",
                stacklevel=2,
            )

    def summary(self) -> RunSummary:
        """What was computed and reused in the last run."""
        models = {
            name: summarize_model(transformer.gates.counts, transformer.cache.table)
            for name, transformer in self.transformers.items()
        }
        return RunSummary(self.clock.num_evaluations, self.clock.finished, models)

    def restore(self) -> None:
        """Disables the cache; doing it twice does nothing."""
        self.clock.restore()
        for transformer in self.transformers.values():
            transformer.restore()
        if self._bar is not None:
            self._bar.remove()
        if vars(self._target).get(_HANDLE) is self:
            with suppress(AttributeError):
                delattr(self._target, _HANDLE)

    def __enter__(self) -> PipelineCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def compile_note(model: nn.Module, evaluations: int) -> str | None:
    """What to tell whoever compiled a model without room for the evaluations of a schedule.

    The compiler follows the cache into its decisions, without graph breaks, and compiles what it finds: every
    evaluation, in every branch, is a graph of its own. Beyond its limit it gives up.
    """
    parts = sum(module._compiled_call_impl is not None for module in model.modules())
    if not parts:
        return None
    import torch._dynamo.config as settings

    needed, limit = 2 * evaluations * parts + 8, int(settings.recompile_limit)
    if limit >= needed:
        return None
    return (
        f"the {type(model).__name__} is compiled, and with a schedule every evaluation is compiled for itself; set "
        f"torch._dynamo.config.recompile_limit = {needed}, or it runs without compiling after {limit} of them"
    )


def refuse_other_cache(model: nn.Module) -> None:
    """Refuses a model whose own diffusers cache is enabled.

    Raises:
        CacheStateError: If it is.
    """
    if getattr(model, "is_cache_enabled", False):
        raise CacheStateError(
            f"diffusers' own cache ({type(getattr(model, '_cache_config', None)).__name__}) is enabled on this "
            f"{type(model).__name__}, and two caches would feed each other stale features; call its disable_cache() "
            "first"
        )


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
    if isinstance(target, nn.Module) and scheduler is None:
        if not isinstance(schedule, CacheSchedule):
            raise ConfigError("a model takes one schedule; several by name are for a pipeline")
        refuse_other_cache(target)
        return runtime.enable_cache(target, schedule, any_weights=any_weights)
    if vars(target).get(_HANDLE) is not None:
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
    return PipelineCache(target, chosen, models, schedules, any_weights, any_run)


def disable_cache(target: Any) -> None:
    """Restores a pipeline or model to what it was before `enable_cache`, exactly.

    Raises:
        CacheStateError: If no cache is enabled on it.
    """
    cache = vars(target).get(_HANDLE)
    if cache is not None:
        cache.restore()
    elif isinstance(target, nn.Module):
        runtime.disable_cache(target)
    else:
        raise CacheStateError("no cache is enabled on this pipeline")


def summary(target: Any) -> RunSummary:
    """What was computed and reused in the last run of a pipeline with a cache.

    Args:
        target: What `enable_cache` was called on.

    Raises:
        CacheStateError: If no cache is enabled on it.
    """
    cache = vars(target).get(_HANDLE)
    if cache is None:
        raise CacheStateError(
            "no cache is enabled on this pipeline; its handle keeps the summary of the last run"
        )
    found: RunSummary = cache.summary()
    return found
