"""The handle of a cache on a pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from torch import nn

from l2c.cache.patch import MethodPatch, not_taken_along
from l2c.cache.policy import Compute, ReusePolicy, compute_once
from l2c.cache.summary import RunSummary, summarize_model
from l2c.cache.values import Value
from l2c.errors import CacheStateError, UndoneOnError
from l2c.hosts.pipeline.clock import SchedulerClock, WatchedBar
from l2c.hosts.pipeline.modular import LeavingPatch, is_modular
from l2c.hosts.pipeline.passes import not_apart
from l2c.hosts.pipeline.policy import PipelinePolicy
from l2c.hosts.pipeline.runs import call_now, describe_run, guidance_now, resolution_now
from l2c.hosts.pipeline.transformer import CachedTransformer, refuse_other_cache
from l2c.schedule.contract import Run
from l2c.schedule.forecast import ReusePlan
from l2c.schedule.schedule import CacheSchedule
from l2c.schedule.sizes import size_name, size_note

HANDLE = "_l2c_cache"
"""Attribute of a pipeline or model that holds the handle of its enabled cache."""


class PipelineCache:
    """An enabled cache on a pipeline: the handle that `enable_cache` returns, also a context manager.

    Args:
        target: The pipeline, or a transformer alone.
        scheduler: Its scheduler.
        models: The transformers by name of the component.
        reuse: The schedules of what they compute and reuse, likewise; or one policy for all of them.
        any_weights: Whether other weights are accepted with a warning.
        any_run: Whether other timesteps and resolutions are.
        wrapper: What `torch.compile` has wrapped around a transformer alone.
        around: What computes a layer.
        quiet: Compare no run with that of the schedule.
        recompute: Where gradients are taken, compute whole calls of a transformer again in the backward pass.
        offload: Then, let stored values wait for that in CPU memory.
        engine: How its transformers are called, see `enable_cache`.

    Attributes:
        clock: The scheduler's clock.
        transformers: The cached transformers by name of the component.
        any_weights: As given.
        any_run: As given.
        recompute: As given.
        offload: As given.
        engine: As given.
    """

    def __init__(
        self,
        target: Any,
        scheduler: Any,
        models: Mapping[str, nn.Module],
        reuse: Mapping[str, CacheSchedule] | ReusePolicy,
        any_weights: bool = False,
        any_run: bool = False,
        wrapper: Any = None,
        around: Callable[[Compute], Value] = compute_once,
        quiet: bool = False,
        recompute: bool = False,
        offload: bool = False,
        engine: str = "eager",
    ) -> None:
        self.any_weights, self.any_run, self.around = any_weights, any_run, around
        self.recompute, self.offload, self.engine = recompute, offload, engine
        self.transformers: dict[str, CachedTransformer] = {}
        self._target, self._wrapper = target, wrapper
        self._bar: MethodPatch | LeavingPatch | None = None
        self._checked, self._quiet = False, quiet
        self._adapters: dict[str, int] = {}
        self._own_scheduler = getattr(target, "scheduler", None)
        if self._own_scheduler is not None and self._own_scheduler is not scheduler:
            target.scheduler = scheduler
        self.clock = SchedulerClock(scheduler, self._start, self._end, self._step)
        with UndoneOnError(self.restore):
            parts = dict.fromkeys(models, reuse) if isinstance(reuse, ReusePolicy) else dict(reuse)
            if len(parts) > 1 and any(
                isinstance(one, CacheSchedule) and one.has_branches for one in parts.values()
            ):
                raise not_apart("on several transformers")
            for name, part in parts.items():
                self.transformers[name] = CachedTransformer(name, models[name], part, self)
            if is_modular(target):
                self._bar = LeavingPatch(target, self.clock.end)
            elif callable(getattr(target, "progress_bar", None)):
                self._bar = MethodPatch(target, "progress_bar", self._progress_bar)
            learned = any(
                part.schedule is not None and part.schedule.contract.fingerprint
                for part in self.transformers.values()
            )
            self._adapters = dict.fromkeys(self.transformers, 0) if learned else self._count_adapters()
            setattr(target, HANDLE, self)

    def _start(self) -> None:
        self._checked = False
        for name, transformer in self.transformers.items():
            component = getattr(self._target, name, None) if self._wrapper is None else self._wrapper
            if isinstance(component, nn.Module) and transformer.model not in component.modules():
                self.clock.end()
                raise CacheStateError(
                    f"another model was put in the place of the pipeline's {name} since the cache was enabled; call "
                    "l2c.disable_cache(pipe), and enable a cache on the pipeline as it is now"
                )
            transformer.begin_run(component)

    def _end(self) -> None:
        for transformer in self.transformers.values():
            transformer.end_run()

    def _step(self, prediction: Any) -> None:
        for transformer in self.transformers.values():
            transformer.combined(prediction)

    def _progress_bar(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> WatchedBar:
        return WatchedBar(original(*args, **kwargs), self.clock.end)

    def enter_evaluation(self) -> int:
        """The evaluation at which a transformer is called; checks the run before its first.

        Raises:
            CacheStateError: Outside a run, or if the model's own cache has been enabled since.
            ContractError: If the schedule was made for another run.
        """
        evaluation = self.clock.evaluation
        if not self._checked:
            with UndoneOnError(self.clock.end):
                self._check_run()
            self._checked = True
        return evaluation

    def _check_run(self) -> None:
        run = describe_run(self.clock.scheduler, guidance_now(self._target), call_now(self._target))
        first = self.clock.evaluation
        told: set[str] = set()
        for transformer in self.transformers.values():
            refuse_other_cache(transformer.model)
            transformer.begin_at(first, len(run.timesteps))
            transformer.tells_shapes = not self._quiet
            if transformer.schedule is not None and not self._quiet:
                size = size_note(transformer.schedule.provenance, size_name(resolution_now(self._target)))
                transformer.tells_shapes = size is None
                self._compare_run(transformer.schedule, run.since(transformer.offset), told, size)
            transformer.cache.follow()
            if note := transformer.compile_note():
                warnings.warn(note, stacklevel=2)
        self._note_adapters()

    def _compare_run(self, schedule: CacheSchedule, run: Run, told: set[str], size: str | None) -> None:
        problem = schedule.contract.run_problem(run)
        if problem is not None:
            if not self.any_run or len(run.timesteps) != schedule.num_evaluations:
                raise problem
            warnings.warn(problem.args[0], stacklevel=3)
        for note in (*schedule.contract.notes(run, shifted=size is None), size):
            if note and note not in told:  # of two transformers, once
                told.add(note)
                warnings.warn(note, stacklevel=3)

    def use(self, plan: ReusePlan) -> None:
        """Takes another plan, between runs; all transformers have it."""
        for transformer in self.transformers.values():
            transformer.cache.use(plan)

    def _count_adapters(self) -> dict[str, int]:
        return {
            name: sum(".lora_" in key for key, _ in transformer.model.named_parameters())
            for name, transformer in self.transformers.items()
        }

    def _note_adapters(self) -> None:
        now = self._count_adapters()
        if now != self._adapters and not self._quiet:
            self._adapters = now
            warnings.warn(
                "a LoRA was loaded or unloaded since the schedule was made or the cache was enabled; it is used, but "
                "how far off the schedule is with it was not measured: "
                "l2c.check tells, and l2c.repair learns a little more",
                stacklevel=2,
            )

    def summary(self) -> RunSummary:
        """What was computed and reused in the last run."""
        models = {
            name: summarize_model(transformer.policy.counts, transformer.cache.table)
            for name, transformer in self.transformers.items()
            if isinstance(transformer.policy, PipelinePolicy)
        }
        return RunSummary(self.clock.num_evaluations, self.clock.finished, models)

    def restore(self) -> None:
        """Disables the cache; doing it twice does nothing."""
        self.clock.restore()
        for transformer in self.transformers.values():
            transformer.restore()
        if self._bar is not None:
            self._bar.remove()
        if (
            getattr(self._target, "scheduler", None) is self.clock.scheduler
            and self._own_scheduler is not None
        ):
            self._target.scheduler = self._own_scheduler
        if vars(self._target).get(HANDLE) is self:
            with suppress(AttributeError):
                delattr(self._target, HANDLE)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise not_taken_along("copied", self._target)

    def __reduce__(self) -> NoReturn:
        raise not_taken_along("pickled", self._target)

    def __enter__(self) -> PipelineCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def refuse_enabled(target: Any) -> None:
    """Refuses a pipeline whose cache is enabled, where another schedule is to be made, learned or checked.

    Raises:
        CacheStateError: If it is.
    """
    if vars(target).get(HANDLE) is not None:
        raise CacheStateError(
            "a cache is already enabled on this pipeline; call l2c.disable_cache(pipe) before another schedule is "
            "made, learned, checked or enabled"
        )
