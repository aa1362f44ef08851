"""The cached forward: replaces the forwards of a model's layers while a cache is enabled.

Two sources of gates share it. A `CacheSchedule` gives hard gates, resolved beforehand into a stand-in plan, for
sampling. `SoftGates` give a tensor in [0, 1] per (evaluation, layer), for learning. Soft gates at 0 and 1 do
what hard ones do.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from l2c.cache.clock import Clock
from l2c.cache.predictors import Predictor, StandInPlan
from l2c.cache.schedule import CacheSchedule, Run
from l2c.cache.shadows import Shadow
from l2c.cache.store import FeatureStore, last_reads, peak_bytes
from l2c.cache.values import Value, combine_values, mix_values, placeholder
from l2c.errors import CacheStateError
from l2c.layers import LayerTable, find_layers, fingerprint

Compute = Callable[[], Any]
"""Runs a layer; returns its `Value`."""


class Gating(Protocol):
    """Decides, per layer and evaluation, between computing and standing in; owns the stored features."""

    @property
    def num_evaluations(self) -> int:
        """How many evaluations it covers."""
        ...

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """Output of a layer at the clock's evaluation and branch; calls `compute` only if it must."""
        ...

    def computes(self, clock: Clock, layer: int) -> bool:
        """Whether `output` would call `compute`."""
        ...

    def clear(self) -> None:
        """Forgets all features."""
        ...


class HardGates:
    """Gates of a static schedule: a reused layer is not called."""

    def __init__(self, plan: StandInPlan, num_evaluations: int) -> None:
        self.num_evaluations = num_evaluations
        self.plan = plan
        self.store = FeatureStore(last_reads(plan))

    def computes(self, clock: Clock, layer: int) -> bool:
        """See `Gating.computes`."""
        return (clock.evaluation, layer) not in self.plan

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """See `Gating.output`."""
        evaluation, branch = clock.evaluation, clock.branch
        terms = self.plan.get((evaluation, layer))
        if terms is None:
            fresh: Value = compute()
            self.store.put(branch, evaluation, layer, fresh)
            return fresh
        values = [self.store.read(branch, source, layer, evaluation) for source, _ in terms]
        return combine_values(values, [weight for _, weight in terms])

    def clear(self) -> None:
        """See `Gating.clear`."""
        self.store.clear()


@dataclass
class SoftGates:
    """Gates of a router that is being learned, differentiable in the gates.

    A layer's output is `g * fresh + (1 - g) * stand_in`, and its history moves on by the same share: after a
    gate of 1 it starts with the fresh value, after a gate of 0 it is what it was. `True` stands for 1 and
    computes without mixing; `False` for 0, and the layer is not called.

    Attributes:
        gates: Function (evaluation, layer) -> bool or tensor () in [0, 1].
        predictor: Stand-in for what is not computed; the first `predictor.depth` evaluations must have gate
            True where a tensor gate follows.
        log_snrs: Half log-SNR of every evaluation.

    Source: the mix is equation 6 of arXiv 2406.01733; the moving history is ours.
    """

    gates: Callable[[int, int], bool | Tensor]
    predictor: Predictor
    log_snrs: tuple[float, ...]
    _history: dict[tuple[str, int], tuple[list[Value], list[float | Tensor]]] = field(default_factory=dict)

    @property
    def num_evaluations(self) -> int:
        """See `Gating.num_evaluations`."""
        return len(self.log_snrs)

    def computes(self, clock: Clock, layer: int) -> bool:
        """See `Gating.computes`."""
        return self.gates(clock.evaluation, layer) is not False

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """See `Gating.output`."""
        now = self.log_snrs[clock.evaluation]
        gate = self.gates(clock.evaluation, layer)
        values, times = self._history.get((clock.branch, layer), ([], []))
        if gate is True:
            fresh: Value = compute()
            depth = self.predictor.depth
            self._history[clock.branch, layer] = ([fresh, *values][:depth], [now, *times][:depth])
            return fresh
        stand_in = self._stand_in(clock.evaluation, layer, values, times)
        if gate is False:
            return stand_in
        if len(values) < self.predictor.depth:
            raise CacheStateError(
                f"layer {layer} has a soft gate at evaluation {clock.evaluation} after {len(values)} computed "
                f"values, but the {self.predictor.name} predictor reads {self.predictor.depth}; "
                "let the evaluations before compute"
            )
        fresh = compute()
        output = mix_values(gate, fresh, stand_in)
        self._history[clock.branch, layer] = (
            [mix_values(gate, new, old) for new, old in zip([fresh, *values], values, strict=False)],
            [gate * new + (1 - gate) * old for new, old in zip([now, *times], times, strict=False)],
        )
        return output

    def _stand_in(
        self, evaluation: int, layer: int, values: list[Value], times: list[float | Tensor]
    ) -> Value:
        if not values:
            raise CacheStateError(
                f"layer {layer} is reused at evaluation {evaluation} before it was ever computed"
            )
        weights = self.predictor.weights_at(evaluation, layer, self.log_snrs[evaluation], times)
        return combine_values(values, weights)

    def clear(self) -> None:
        """See `Gating.clear`."""
        self._history.clear()


_ENABLED: weakref.WeakKeyDictionary[nn.Module, CachedModel] = weakref.WeakKeyDictionary()


class CachedModel:
    """An enabled cache: the handle that `enable_cache` returns, also a context manager that disables it.

    The forward of each layer's submodule is shadowed by an instance attribute and uncovered again by
    `disable_cache`; parameters, buffers, hooks and state-dict keys are not touched.
    """

    def __init__(
        self, model: nn.Module, table: LayerTable, gating: Gating, schedule: CacheSchedule | None
    ) -> None:
        self.table = table
        self.gating = gating
        self.schedule = schedule
        self.clock = Clock(gating.num_evaluations)
        self._model = weakref.ref(model)
        self._shadows: list[Shadow] = []
        self._cover(model)

    def _cover(self, model: nn.Module) -> None:
        """Shadows the forwards of all layers and of what only feeds them."""
        targets = [
            (model.get_submodule(path), index, feeds)
            for index, layer in enumerate(self.table.layers)
            for path, feeds in ((layer.module_path, False), *((path, True) for path in layer.feeders))
        ]
        for module, index, feeds in targets:
            make = self._feeder_forward if feeds else self._layer_forward
            self._shadows.append(Shadow(module, "forward", make(index)))

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
        if all(module is shadow.owner for module, shadow in zip(now, self._shadows, strict=True)):
            return False
        self._uncover()
        self._cover(model)
        return True

    def _uncover(self) -> None:
        for shadow in self._shadows:
            shadow.remove()
        self._shadows.clear()

    def _layer_forward(self, layer: int) -> Callable[..., Value]:
        clock, gating = self.clock, self.gating

        def forward(original: Callable[..., Value], *args: Any, **kwargs: Any) -> Value:
            if not clock.entered:
                raise CacheStateError(
                    "the model was called with a cache enabled but outside a run; sample with l2c.sample or the "
                    "pipeline that it was enabled on, or wrap your own loop in `with cache.run():` and call "
                    "`cache.clock.tick(i)` at each evaluation"
                )
            return gating.output(clock, layer, lambda: original(*args, **kwargs))

        return forward

    def _feeder_forward(self, layer: int) -> Callable[..., Value]:
        clock, gating = self.clock, self.gating
        blank: Value | None = None

        def forward(original: Callable[..., Value], *args: Any, **kwargs: Any) -> Value:
            nonlocal blank
            if blank is not None and clock.entered and not gating.computes(clock, layer):
                return blank
            output = original(*args, **kwargs)
            blank = placeholder(output)
            return output

        return forward

    @contextmanager
    def run(self, run: Run | None = None, first: int = 0) -> Iterator[Clock]:
        """One sampling run: starts from an empty store and leaves an empty one, also after an exception.

        Args:
            run: The run that is about to start, checked against the schedule's contract; None skips the check.
            first: Evaluation that it starts with; learning walks parts of runs.

        Raises:
            ContractError: If the schedule was made for another run.
            CacheStateError: If a run is already in progress.
        """
        if self.clock.running:
            raise CacheStateError("a run is already in progress on this model; finish it before another")
        if self.schedule is not None and run is not None:
            self.schedule.contract.check_run(run)
            if note := self.schedule.contract.guidance_note(run):
                warnings.warn(note, stacklevel=3)
        self.gating.clear()
        self.clock.start(first)
        try:
            yield self.clock
        finally:
            self.clock.stop()
            self.gating.clear()

    def peak_store_bytes(self, batch_size: int, branches: int = 1, dtype: torch.dtype = torch.float32) -> int:
        """Peak memory of the store in bytes, known before anything runs; see `l2c.cache.store.peak_bytes`."""
        plan = self.gating.plan if isinstance(self.gating, HardGates) else {}
        return peak_bytes(plan, self.table, batch_size, branches, dtype)

    def restore(self) -> None:
        """Disables this cache: uncovers the original forwards; doing it twice does nothing."""
        model = self._model()
        if model is not None and _ENABLED.get(model) is self:
            del _ENABLED[model]
        self._uncover()
        self.gating.clear()
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
    return attach(model, table, HardGates(schedule.plan, schedule.num_evaluations), schedule)


def check_model(model: nn.Module, schedule: CacheSchedule, *, any_weights: bool = False) -> LayerTable:
    """Checks that a schedule was made for a model; arguments and errors as of `enable_cache`.

    Returns:
        The model's layers.
    """
    table = find_layers(model).with_sizes_of(schedule.layers)
    schedule.check_layers(table)
    if schedule.contract.fingerprint:
        problem = schedule.contract.compare_weights(fingerprint(model, table))
        if problem and any_weights:
            warnings.warn(problem.args[0], stacklevel=3)
        elif problem:
            raise problem
    return table


def attach(
    model: nn.Module, table: LayerTable, gating: Gating, schedule: CacheSchedule | None = None
) -> CachedModel:
    """Enables any gating on a model; `enable_cache` and the learner go through here.

    Raises:
        CacheStateError: If a cache is already enabled on the model.
    """
    if model in _ENABLED:
        raise CacheStateError("a cache is already enabled on this model; call l2c.disable_cache(model) first")
    cache = CachedModel(model, table, gating, schedule)
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
