"""The cached forward: replaces the forwards of a model's layers while a cache is enabled."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn

from l2c.cache.branches import branches_of, policy_of
from l2c.cache.clock import Clock
from l2c.cache.patch import MethodPatch
from l2c.cache.policy import LayerPolicy, ReusePolicy, StaticPolicy
from l2c.cache.store import peak_bytes
from l2c.cache.summary import RunSummary, summarize_model
from l2c.cache.values import Blank, Value
from l2c.errors import CacheStateError
from l2c.layers import LayerTable, find_layers, fingerprint
from l2c.schedule.contract import Run
from l2c.schedule.forecast import ReusePlan
from l2c.schedule.schedule import CacheSchedule

_ENABLED: weakref.WeakKeyDictionary[nn.Module, CachedModel] = weakref.WeakKeyDictionary()


class CachedModel:
    """An enabled cache: the handle that `enable_cache` returns, also a context manager that disables it.

    The forward of each layer's submodule is patched by an instance attribute and uncovered again by
    `disable_cache`; parameters, buffers, hooks and state-dict keys are not touched.
    """

    def __init__(
        self, model: nn.Module, table: LayerTable, policy: ReusePolicy, schedule: CacheSchedule | None
    ) -> None:
        self.table = table
        self.policy = policy
        self.schedule = schedule
        self.clock = Clock(policy.num_evaluations)
        self._policies = [policy.layer_policy(self.clock, index) for index in range(len(table.layers))]
        self._model = weakref.ref(model)
        self._patches: list[MethodPatch] = []
        self._whole: MethodPatch | None = None
        self._finished = False
        self._cover(model)

    def _cover(self, model: nn.Module) -> None:
        """Patches the forwards of all layers and of what only feeds them."""
        targets = [
            (model.get_submodule(path), policy, make)
            for layer, policy in zip(self.table.layers, self._policies, strict=True)
            for path, make in (
                (layer.module_path, self._layer_forward),
                *((path, self._feeder_forward) for path in layer.feeders),
            )
        ]
        for module, policy, make in targets:
            self._patches.append(MethodPatch(module, "forward", make(policy)))
        if type(self.policy).evaluate is not ReusePolicy.evaluate:
            self._whole = MethodPatch(model, "forward", self._model_forward)

    def _model_forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.policy.evaluate(self.clock, lambda: original(*args, **kwargs))

    def use(self, plan: ReusePlan) -> None:
        """Takes another plan, between runs; for a policy that has one."""
        assert isinstance(self.policy, StaticPolicy)
        self.policy.use(plan)

    def follow(self) -> bool:
        """Covers submodules that have taken the place of others since, as loading a LoRA does.

        Returns:
            Whether there were any.
        """
        model = self._model()
        if model is None:
            return False
        paths = (path for layer in self.table.layers for path in (layer.module_path, *layer.feeders))
        now = [model.get_submodule(path) for path in paths]
        if all(module is patch.owner for module, patch in zip(now, self._patches, strict=True)):
            return False
        self._uncover()
        self._cover(model)
        return True

    def _uncover(self) -> None:
        if self._whole is not None:
            self._whole.remove()
            self._whole = None
        for patch in self._patches:
            patch.remove()
        self._patches.clear()

    def _layer_forward(self, policy: LayerPolicy) -> Callable[..., Value]:
        clock = self.clock

        def forward(original: Callable[..., Value], *args: Any, **kwargs: Any) -> Value:
            if not clock.entered:
                raise CacheStateError(
                    "the model was called with a cache enabled but outside a run; sample with l2c.sample or the "
                    "pipeline that it was enabled on, or wrap your own loop in `with cache.run():` and call "
                    "`cache.clock.tick(i)` at each evaluation"
                )
            return policy.output(lambda: original(*args, **kwargs))

        return forward

    def _feeder_forward(self, policy: LayerPolicy) -> Callable[..., Value]:
        clock, blank = self.clock, Blank()

        def forward(original: Callable[..., Value], *args: Any, **kwargs: Any) -> Value:
            if clock.entered and not policy.computes() and blank.known:
                return blank.zeros()
            output = original(*args, **kwargs)
            blank.note(output)
            return output

        return forward

    @contextmanager
    def run(self, run: Run | None = None, first: int = 0) -> Iterator[Clock]:
        """One sampling run: starts from an empty store and leaves an empty one, also after an exception.

        Args:
            run: The run that is about to start, checked against the schedule's contract; None skips the check.
            first: Evaluation that it starts with; learning loops parts of runs.

        Raises:
            ContractError: If the schedule was made for another run.
            CacheStateError: If a run is already in progress.
        """
        if self.clock.running:
            raise CacheStateError("a run is already in progress on this model; finish it before another")
        if self.schedule is not None and run is not None:
            self.schedule.contract.check_run(run)
            if note := self.schedule.guidance_note(run):
                warnings.warn(note, stacklevel=3)
        self.policy.begin_run()
        self.clock.start(first)
        self._finished = False
        try:
            yield self.clock
            self._finished = self.clock.evaluation == self.clock.num_evaluations - 1
        finally:
            self.clock.stop()
            self.policy.clear()

    def summary(self) -> RunSummary:
        """What was computed and reused in the last run; for the policy of a schedule."""
        assert isinstance(self.policy, StaticPolicy)
        model = summarize_model(self.policy.counts, self.table)
        return RunSummary(self.clock.num_evaluations, self._finished, {"model": model})

    def peak_store_bytes(self, batch_size: int, branches: int = 1, dtype: torch.dtype = torch.float32) -> int:
        """Peak memory of the store in bytes, known before anything runs; see `l2c.cache.store.peak_bytes`."""
        plan = self.policy.plan if isinstance(self.policy, StaticPolicy) else {}
        if branches_of(self.policy) is not None:  # columns are of one pass each
            batch_size, branches = max(1, batch_size * branches // 2), 1
        return peak_bytes(plan, self.table, batch_size, branches, dtype)

    def restore(self) -> None:
        """Disables this cache: uncovers the original forwards; doing it twice does nothing."""
        model = self._model()
        if model is not None and _ENABLED.get(model) is self:
            del _ENABLED[model]
        self._uncover()
        self.policy.clear()
        self.clock.stop()

    def __enter__(self) -> CachedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def enable_cache(model: nn.Module, schedule: CacheSchedule, *, any_weights: bool = False) -> CachedModel:
    """Lets a model reuse layers as a schedule says, until `disable_cache` or the end of a `with` block.

    Args:
        model: A model that has a layer adapter.
        schedule: What to compute and what to reuse.
        any_weights: Warn, instead of refusing, when the schedule was learned on other weights.

    Returns:
        The handle of the enabled cache, which is also a context manager.

    Raises:
        CacheStateError: If a cache is already enabled on the model.
        ContractError: If the schedule was made for another model.
    """
    table = check_model(model, schedule, any_weights=any_weights)
    return attach(model, table, policy_of(schedule), schedule)


def check_model(
    model: nn.Module, schedule: CacheSchedule, *, any_weights: bool = False, stacklevel: int = 3
) -> LayerTable:
    """Checks that a schedule was made for a model; arguments and errors as of `enable_cache`.

    Returns:
        The model's layers.
    """
    table = find_layers(model).with_sizes_of(schedule.layers)
    schedule.check_layers(table)
    if schedule.contract.fingerprint:
        problem = schedule.contract.compare_weights(fingerprint(model, table))
        if problem and any_weights:
            warnings.warn(problem.args[0], stacklevel=stacklevel)
        elif problem:
            raise problem
    return table


def attach(
    model: nn.Module, table: LayerTable, policy: ReusePolicy, schedule: CacheSchedule | None = None
) -> CachedModel:
    """Enables any policy on a model; `enable_cache` and the learner go through here.

    Raises:
        CacheStateError: If a cache is already enabled on the model.
    """
    if model in _ENABLED:
        raise CacheStateError("a cache is already enabled on this model; call l2c.disable_cache(model) first")
    cache = CachedModel(model, table, policy, schedule)
    _ENABLED[model] = cache
    return cache


def disable_cache(model: nn.Module) -> None:
    """Restores a model to what it was before `enable_cache`, exactly.

    Raises:
        CacheStateError: If no cache is enabled on the model.
    """
    cache = _ENABLED.get(model)
    if cache is None:
        raise CacheStateError("no cache is enabled on this model")
    cache.restore()


def active_cache(model: nn.Module) -> CachedModel | None:
    """The enabled cache of a model, if there is one."""
    return _ENABLED.get(model)
