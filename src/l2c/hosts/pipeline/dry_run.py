"""A run of a pipeline with the transformers called once each: what a schedule has to know before there is one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from l2c.cache.patch import MethodPatch
from l2c.documents import Count, check_value
from l2c.errors import ConfigError, L2CError
from l2c.hosts.parallel import context_of
from l2c.hosts.pipeline.clock import SchedulerClock
from l2c.hosts.pipeline.compilation import eagerly, find_compilation
from l2c.hosts.pipeline.components import transformers_of
from l2c.hosts.pipeline.modular import ModularRun, arguments_of, guiders_of, is_modular
from l2c.hosts.pipeline.rows import order_of, sample_of
from l2c.hosts.pipeline.runs import Call, call_now, describe_run, resolution_now
from l2c.layers import LayerTable, find_layers, measure_layers
from l2c.layers.measure import rows_and_shape
from l2c.schedule.branches import BRANCHES
from l2c.schedule.contract import Run


@dataclass(frozen=True)
class DryRun:
    """What a call of a pipeline does.

    Attributes:
        run: Its scheduler's run.
        tables: Layers of each transformer, with their sizes in this call, by name of the component.
        evaluations: At which evaluations each transformer is called, counted from the first that is made.
        calls_per_evaluation: Calls of a transformer in its first evaluation: 2 for guidance in two calls.
        first: Evaluation of the scheduler at which the run begins: above 0 for image to image.
        mu: Shift of the noise levels that the pipeline worked out for its resolution, if it did.
        resolution: `height`, `width` and `num_frames` of what it makes, as far as the pipeline speaks of them.
        rows: Of the batch in the first call of a transformer: 2 for guidance in one call.
        apart: Whether the passes of guidance can be run apart.
        elements: Of what its scheduler steps.
    """

    run: Run
    tables: dict[str, LayerTable]
    evaluations: dict[str, list[int]]
    calls_per_evaluation: dict[str, int]
    resolution: dict[str, int]
    mu: float | None = None
    first: int = 0
    rows: int = 1
    apart: bool = False
    elements: int = 0

    @property
    def table(self) -> LayerTable:
        """The layers, which all transformers have.

        Raises:
            ConfigError: If they differ.
        """
        first, *others = self.tables.values()
        if any(table != first for table in others):
            raise ConfigError(
                f"the transformers of this pipeline ({', '.join(self.tables)}) have different layers, and a schedule "
                "is for one kind"
            )
        return first

    @property
    def provenance(self) -> dict[str, Any]:
        """What a schedule records of it, in JSON types."""
        found: dict[str, Any] = {"resolution": self.resolution}
        if self.mu is not None:
            found["mu"] = self.mu
        if len(self.begins) > 1:
            found["transformers_begin"] = dict(zip(self.order, self.begins, strict=True))
        return found

    @property
    def order(self) -> list[str]:
        """Names of the transformers in the order in which they begin."""
        return sorted(self.evaluations, key=lambda name: min(self.evaluations[name]))

    @property
    def begins(self) -> tuple[int, ...]:
        """Evaluations at which a transformer begins, which are its own until the next one takes over.

        Raises:
            ConfigError: If several of them are called in turns.
        """
        spans = sorted((min(called), max(called)) for called in self.evaluations.values())
        if any(last >= begin for (_, last), (begin, _) in pairwise(spans)):
            raise ConfigError(
                f"the transformers of this pipeline ({', '.join(self.tables)}) are called in turns, and a schedule is "
                "for one after another"
            )
        return (0, *(begin for begin, _ in spans[1:]))


class _DryForward:
    """Replaces a transformer's forward: the first call is real and measured, the others return zeros."""

    def __init__(self, pipe: Any, name: str, model: nn.Module, clock: SchedulerClock) -> None:
        self.pipe, self.model, self.clock = pipe, model, clock
        self.call: Call = ()
        self.resolution: dict[str, int] = {}
        self.table: LayerTable | None = None
        self.evaluations: list[int] = []
        self.rows = 1
        self.contexts: list[str] = []
        found = find_compilation(model, getattr(pipe, name, None))
        self._compiled = bool(found.entries or found.blocks)
        self.first: Tensor | None = None
        self._blanks: dict[Any, Any] = {}
        self._real = False

    def forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self._real:
            return original(*args, **kwargs)
        self.evaluations.append(self.clock.evaluation)
        shape = rows_and_shape(args, kwargs)
        if shape not in self._blanks:
            self._real = True
            try:
                if self.table is None:
                    self.call, self.resolution = call_now(self.pipe), resolution_now(self.pipe)
                    self.rows = 1 if shape is None else shape[0]
                    table = find_layers(self.model)
                    self.table, output = measure_layers(self.model, table, args, kwargs)
                    context = context_of({"transformer": self.model})
                    if context is not None:  # each of the processes counts its part
                        self.table = self.table.times(context.size)
                else:
                    output = original(*args, **kwargs)
            finally:
                self._real = False
            self._blanks[shape] = _zeros(output)
            if len(self.evaluations) == 1:
                self.first = sample_of(output)
                return output
        return self._blanks[shape]

    def cache_context(self, original: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if len(self.contexts) < 3:
            self.contexts.append(name)
        return original(name, *args, **kwargs)

    def apart(self, combined: Any) -> bool:
        """Whether the calls of the first evaluation tell the passes of guidance, and what came of them does."""
        if (
            not isinstance(self.first, Tensor)
            or self._compiled
            or context_of({"transformer": self.model}) is not None
        ):
            return False
        if len(self.evaluations) == 2:
            return tuple(self.contexts) == BRANCHES
        try:
            return len(self.evaluations) == 1 and len(order_of(self.first, combined)) == 2
        except ConfigError:
            return False


def _zeros(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, Mapping):  # diffusers' outputs, too
        return type(value)(**{key: _zeros(part) for key, part in value.items()})
    if isinstance(value, (tuple, list)):
        return type(value)([_zeros(part) for part in value])
    return value


@torch.no_grad()
def dry_run(pipe: Any, /, *args: Any, **call: Any) -> DryRun:
    """Calls a pipeline with its transformers computing once and returning zeros from then on.

    Text encoders and scheduler run as in earnest, so timesteps, shapes and the number of calls are the actual
    ones; the picture is thrown away. Random numbers that a generator or the global one hold are not used up.

    Args:
        pipe: A diffusers pipeline without a cache enabled.
        args: What it will be called with.
        call: What it will be called with, by name.

    Raises:
        ConfigError: If it is called for no steps, refuses what it is called with, or calls no transformer under its
            scheduler.
    """
    call.pop("generator", None)
    if isinstance(steps := call.get("num_inference_steps"), int):
        check_value("num_inference_steps", steps, Count)
    parameters, modular = arguments_of(pipe), is_modular(pipe)
    if not modular and takes_latent_output(pipe):
        call["output_type"] = "latent"
    run: Run | None = None
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(eagerly())
        models = transformers_of(pipe)
        told: list[tuple[bool, int]] = []

        def watch(combined: Any) -> None:
            if not told:
                apart = len(actors) == 1 and next(iter(actors.values())).apart(combined)
                told.append((apart, combined.numel() if isinstance(combined, Tensor) else 0))

        clock = SchedulerClock(pipe.scheduler, lambda: None, lambda: None, watch)
        stack.callback(clock.restore)
        actors = {name: _DryForward(pipe, name, model, clock) for name, model in models.items()}
        for name, actor in actors.items():
            stack.callback(MethodPatch(models[name], "forward", actor.forward).remove)
            if hasattr(models[name], "cache_context"):
                stack.callback(MethodPatch(models[name], "cache_context", actor.cache_context).remove)
        if hasattr(pipe, "progress_bar"):
            stack.callback(MethodPatch(pipe, "progress_bar", _quiet).remove)
        try:
            if modular:
                ModularRun(pipe).state(call)
            else:
                pipe(*args, **call)
        except (TypeError, ValueError, ArithmeticError) as error:
            if isinstance(error, L2CError) or any(actor.evaluations for actor in actors.values()):
                raise
            said = " ".join(str(error).split("\n")[0].split()).rstrip(".")
            raise ConfigError(f"{type(pipe).__name__} refuses the call: {said}") from error
        known = next((actor.call for actor in actors.values() if actor.call), ())
        run = describe_run(pipe.scheduler, _guidance(pipe, parameters, call), known)
    tables = {name: actor.table for name, actor in actors.items() if actor.table is not None}
    if not tables:
        raise ConfigError(f"{type(pipe).__name__} called no transformer in its scheduler's run")
    first = min(min(actors[name].evaluations) for name in tables)
    evaluations = {name: sorted({at - first for at in actors[name].evaluations}) for name in tables}
    calls = {name: actors[name].evaluations.count(first + evaluations[name][0]) for name in tables}
    rows = max(actors[name].rows for name in tables)
    resolution = next((actor.resolution for actor in actors.values() if actor.resolution), {})
    (seen,) = told or [(False, 0)]
    return DryRun(run.since(first), tables, evaluations, calls, resolution, clock.mu, first, rows, *seen)


def takes_latent_output(pipe: Any) -> bool:
    """Whether a pipeline can be asked for latents, so that nothing has to be decoded."""
    call = type(pipe).__call__
    return "output_type" in inspect.signature(call).parameters and '"latent"' in inspect.getsource(call)


def _quiet(original: Any, *args: Any, **kwargs: Any) -> Any:
    bar = original(*args, **kwargs)
    bar.disable = True
    return bar


def _guidance(pipe: Any, parameters: Mapping[str, Any], call: Mapping[str, Any]) -> float | None:
    if is_modular(pipe) and (guiders := guiders_of(pipe)):
        scale = getattr(next(iter(guiders.values())), "guidance_scale", None)
        return float(scale) if isinstance(scale, (int, float)) else None
    default = parameters.get("guidance_scale")
    scale = call.get("guidance_scale", getattr(pipe, "_guidance_scale", default))
    return float(scale) if isinstance(scale, (int, float)) else None
