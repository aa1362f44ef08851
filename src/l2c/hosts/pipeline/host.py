"""`PipelineHost`: a diffusers pipeline and what it is called with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from l2c.cache.policy import ReusePolicy, compute_once
from l2c.digest import digest
from l2c.errors import ConfigError
from l2c.hosts.base import Examples, Handle, Host, SolverTable
from l2c.hosts.pipeline.components import transformers_of
from l2c.hosts.pipeline.conditions import (
    Condition,
    SeededConditions,
    check_call,
    check_takes_steps,
    choose,
    conditions_of,
    joined,
    plain,
    repeated,
    takes_steps,
)
from l2c.hosts.pipeline.dry_run import DryRun
from l2c.hosts.pipeline.handle import PipelineCache, refuse_enabled
from l2c.hosts.pipeline.learned_scheduler import LearnedScheduler, prediction_of, scheduler_of
from l2c.hosts.pipeline.offload import encoders_offloaded, execution_device
from l2c.hosts.pipeline.rivals import fine_scheduler, known_schedulers, start_schedulers
from l2c.hosts.pipeline.sizes import Sizes
from l2c.hosts.pipeline.trajectory import PipelineTrajectory
from l2c.layers import LayerTable, find_layers, fingerprint
from l2c.sampling.draw import draw
from l2c.sampling.linear import multistep_table
from l2c.schedule.contract import Contract, Run
from l2c.schedule.schedule import CacheSchedule
from l2c.schedule.sizes import SIZES

logger = logging.getLogger(__name__)


class PipelineHost:
    """A diffusers pipeline whose own code is the sampling loop; see `Host`.

    Args:
        pipe: A pipeline without a cache enabled; it is not changed.
        conditions: What tells runs apart, by the pipeline's names: `{"prompt": "a cat"}`.
        call: What it is called with besides, by name.
        scheduler: What drives it instead of its own scheduler.
        encoded: Prompts that have been encoded already.
    """

    batched = False
    unit = "relative"

    def __init__(
        self,
        pipe: Any,
        conditions: Sequence[Condition],
        call: Mapping[str, Any],
        scheduler: Any = None,
        encoded: dict[str, Any] | None = None,
    ) -> None:
        self.target, self.encoded = pipe, {} if encoded is None else encoded
        self.conditions, self.call = tuple(conditions), dict(call)
        self._scheduler = scheduler if scheduler is not None else pipe.scheduler

    @cached_property
    def _trajectory(self) -> PipelineTrajectory:
        return PipelineTrajectory(self.target, self.call, self.encoded)

    @classmethod
    def of(
        cls,
        pipe: Any,
        *,
        prompts: Any = None,
        conditions: Sequence[Condition] | None = None,
        **call: Any,
    ) -> PipelineHost:
        """A host of a pipeline.

        Args:
            pipe: A diffusers pipeline.
            prompts: Prompts, or a text file with one in each line.
            conditions: Instead of prompts: what tells runs apart, by the pipeline's names.
            call: What it is called with besides, by name.

        Raises:
            ConfigError: If there are both prompts and conditions, or the pipeline does not take an argument.
            CacheStateError: If a cache is enabled on it.
        """
        refuse_enabled(pipe)
        if prompts is None and conditions is None:
            names = ("prompt", "class_labels")
            chosen: Sequence[Condition] = [{name: call.pop(name) for name in names if name in call}]
        else:
            chosen = conditions_of(conditions, prompts)
        check_call(pipe, {**call, **chosen[0]})
        return cls(pipe, chosen, call)

    @contextmanager
    def _driven(self, solver: SolverTable | None = None) -> Iterator[None]:
        """Lets the host's scheduler drive the pipeline until it ends, with a solver that is being learned."""
        own = self.target.scheduler
        self.target.scheduler = self._scheduler
        if solver is not None:
            assert isinstance(self._scheduler, LearnedScheduler)
            self._scheduler.use(solver.log_snrs, solver.weights, solver.fit)
        try:
            yield
        finally:
            self.target.scheduler = own

    @cached_property
    def sizes(self) -> Sizes:
        """What a call of the pipeline does, for each size of pictures."""
        with self._driven():
            return Sizes.of(self.target, self.call, self.conditions)

    @property
    def dry(self) -> DryRun:
        """What a call of the pipeline does, for the first condition."""
        return self.sizes.first

    @property
    def run(self) -> Run:
        """See `Host.run`."""
        return self.dry.run

    @property
    def table(self) -> LayerTable:
        """See `Host.table`."""
        return self.dry.table

    @property
    def segments(self) -> tuple[int, ...]:
        """See `Host.segments`."""
        return self.dry.begins

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """See `Host.models`."""
        return transformers_of(self.target)

    @property
    def device(self) -> torch.device:
        """See `Host.device`."""
        return execution_device(self.target)

    @property
    def rows_and_calls(self) -> tuple[int, int]:
        """See `Host.rows_and_calls`."""
        return self.dry.rows, self.dry.calls_per_evaluation[self.dry.order[0]]

    @property
    def has_branches(self) -> bool:
        """See `Host.has_branches`."""
        return self.dry.apart

    @cached_property
    def _fingerprint(self) -> tuple[float, ...]:
        return tuple(it for model in self.models.values() for it in fingerprint(model, find_layers(model)))

    @property
    def identity(self) -> dict[str, Any]:
        """See `Host.identity`."""
        first = next(iter(self.models.values()))
        run = replace(self.run, weights=None)
        return {
            "pipeline": type(self.target).__name__,
            "weights": digest(self._fingerprint, self.table.to_json()),
            "dtype": str(next(first.parameters()).dtype).removeprefix("torch."),
            "device": self.device.type,
            "run": digest([run.solver, run.spacing, run.timesteps, run.log_snrs, run.guidance, run.call]),
            "call": digest(plain(self.call)),
            "conditions": digest(plain(self.conditions)),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """See `Host.provenance`."""
        given = {**self.call, **{k: v for k, v in self.conditions[0].items() if k in SIZES}}
        call = {k: v for k, v in given.items() if type(v) in (int, float, bool) and k != "seed"}
        name = type(self.target).__name__
        return {"pipeline": name, "call": call, "conditions": len(self.conditions), **self.sizes.provenance}

    def contract(self, model_name: str = "", *, weights: bool = True) -> Contract:
        """See `Host.contract`."""
        kind = prediction_of(self._scheduler)
        if not weights:
            return Contract(replace(self.run, guidance=None, call=()), model_name, prediction_type=kind)
        return Contract(self.run, model_name, self._fingerprint, kind)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """See `Host.prepared`."""
        with encoders_offloaded(self.target), torch.enable_grad():
            yield

    def examples(self, count: int, *key: int | str, held_out: int = 0) -> SeededConditions:
        """See `Host.examples`."""
        if clash := {"generator", "latents"} & {*self.call, *(k for one in self.conditions for k in one)}:
            raise ConfigError(f"learning draws its own noise, from settings.seed; leave out {min(clash)}")
        seeds = torch.randint(2**31, (count,), generator=draw(int(key[0]), *key[1:])).tolist()
        return SeededConditions(choose(self.conditions, count, held_out), tuple(seeds))

    def seeded(self, seeds: Sequence[int]) -> SeededConditions:
        """See `Host.seeded`."""
        return SeededConditions(choose(self.conditions, len(seeds)), tuple(int(seed) for seed in seeds))

    def sample(self, examples: Examples, *, bf16: bool = False, solver: SolverTable | None = None) -> Tensor:
        """See `Host.sample`; one example after another."""
        assert isinstance(examples, SeededConditions)
        with self._driven(solver):
            given = zip(examples.conditions, examples.seeds, strict=True)
            made = [self._trajectory.sample(one, seed, bf16=bf16).float() for one, seed in given]
        return self.sizes.as_one(made)

    def means_by_size(self, examples: Examples, values: Tensor) -> dict[str, float]:
        """See `Host.means_by_size`."""
        assert isinstance(examples, SeededConditions)
        return self.sizes.means(examples.conditions, values)

    @torch.no_grad()
    def together(
        self, examples: Examples, *, bf16: bool = False, solver: SolverTable | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """See `Host.together`."""
        assert isinstance(examples, SeededConditions)
        with self._driven(solver):
            every = joined(examples.conditions, self.call)
            return self._trajectory.together(every, examples.seeds, bf16=bf16)

    @contextmanager
    def attach(
        self,
        policy: CacheSchedule | ReusePolicy,
        *,
        around: Callable[[Callable[[], Any]], Any] | None = None,
        recompute: bool = False,
        offload: bool = False,
    ) -> Iterator[Handle]:
        """See `Host.attach`."""
        models = dict(self.models)
        reuse: Mapping[str, CacheSchedule] | ReusePolicy = (
            dict.fromkeys(models, policy.with_any_weights()) if isinstance(policy, CacheSchedule) else policy
        )
        how: dict[str, Any] = {"around": around or compute_once, "recompute": recompute, "offload": offload}
        own = self._scheduler
        with self._driven(), PipelineCache(self.target, own, models, reuse, quiet=True, **how) as cache:
            yield cache

    def reference(self, steps: int | None) -> Host:
        """See `Host.reference`."""
        if steps is None or self.dry.first:  # image to image begins at another noise level with other steps
            return self
        made = fine_scheduler(self._scheduler, self.run, steps, self.dry.mu)
        if made is None or not takes_steps(self.target, self.call) or not self._trajectory.puts_out_latents:
            said = "no fine-step solution can be had under %s; errors are measured against its own run"
            logger.info(said, type(self._scheduler).__name__)
            return self
        return self._with(made(self._levels_at(steps)) if callable(made) else made, steps)

    def fewer_steps(self, steps: int) -> Mapping[str, Host]:
        """See `Host.fewer_steps`."""
        check_takes_steps(self.target, self.call)
        levels = self._levels_at(steps)
        hosts: dict[str, Host] = {}
        for name, scheduler, asked in known_schedulers(self._scheduler, levels, steps, self.dry.mu):
            host = self._with(scheduler, asked)
            try:
                count = len(host.run.timesteps)
            except Exception as error:  # a scheduler that this pipeline cannot be driven by
                logger.info("%s does not drive this pipeline: %s", name, error)
                continue
            if count <= steps:
                hosts[name] = host
        return hosts

    def solver_starts(self, steps: int) -> Sequence[Host]:
        """See `Host.solver_starts`."""
        check_takes_steps(self.target, self.call)
        if self.dry.first:
            raise ConfigError("no solver is learned for a run that begins late, as image to image does")
        starts = start_schedulers(self._scheduler, self._levels_at, steps, self.dry.mu)
        return [self._with(scheduler, steps) for scheduler in starts]

    def _levels_at(self, steps: int) -> Run:
        """The run of the host's own scheduler with another number of steps."""
        return self.run if steps == self.run.steps else self._with(self._scheduler, steps).run

    def _with(self, scheduler: Any, steps: int) -> PipelineHost:
        call = {**self.call, "num_inference_steps": steps}
        return PipelineHost(self.target, self.conditions, call, scheduler, self.encoded)

    def multistep_table(self, log_snrs: Tensor) -> Tensor:
        """See `Host.multistep_table`."""
        kind = prediction_of(self._scheduler)
        return multistep_table(log_snrs, kind, flow=kind == "flow_prediction")

    def timesteps_of(self, log_snrs: Tensor) -> Tensor:
        """See `Host.timesteps_of`."""
        assert isinstance(self._scheduler, LearnedScheduler)
        times: Tensor = self._scheduler.timesteps_of(log_snrs)
        return times

    def for_schedule(self, schedule: CacheSchedule) -> Host:
        """See `Host.for_schedule`."""
        run = schedule.contract.run
        return self if run.weights is None else self._with(scheduler_of(schedule, self._scheduler), run.steps)

    def with_steps(self, steps: int) -> Host:
        """See `Host.with_steps`."""
        if isinstance(self._scheduler, LearnedScheduler):
            return self
        check_takes_steps(self.target, self.call)
        return self._with(self._scheduler, steps)

    def resolve_engine(self, engine: str) -> str:
        """See `Host.resolve_engine`; the pipeline runs as it is, compiled if its transformer is."""
        if engine not in ("auto", "eager"):
            raise ConfigError(
                f"the engine '{engine}' runs l2c's own models; a pipeline runs as it is: compile its transformer, and "
                "take the engine 'eager'"
            )
        return "eager"

    def ready(
        self, schedule: CacheSchedule | None, batch_size: int, engine: str = "auto"
    ) -> Callable[[], object]:
        """See `Host.ready`."""
        self.resolve_engine(engine)
        batch = repeated(self.conditions[0], batch_size, self.call)

        @torch.no_grad()
        def sample() -> object:
            reuse = nullcontext() if schedule is None else self.attach(schedule)
            with self._driven(), reuse:
                return self._trajectory.sample(batch, 0)

        return sample
