"""The hosts of a comparison: what it is about, with the run of each base, of each schedule, and in fine steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from l2c.compare.choices import TINY, Base, PipelineChoice
from l2c.compare.config import CompareConfig
from l2c.compare.plan import Variant
from l2c.errors import known
from l2c.hosts.base import Host
from l2c.hosts.native import ModelHost
from l2c.hosts.pipeline.conditions import Condition, conditions_of
from l2c.hosts.pipeline.host import PipelineHost
from l2c.hosts.pipeline.loading import load_pipeline, make_scheduler, read_scheduler
from l2c.hosts.targets import host_of
from l2c.models import load_model
from l2c.schedule.schedule import CacheSchedule


class Hosts:
    """A host for every run of a comparison, made once.

    Args:
        config: The comparison.
        device: Where to compute.
        host: What is compared, if it is there already; by default it is loaded.

    Raises:
        CheckpointError: If the model or pipeline cannot be loaded.
        ConfigError: If a base's run cannot be made.
    """

    def __init__(self, config: CompareConfig, device: str, host: Host | None = None) -> None:
        self._config, self._made = config, dict[str, Host]()
        self.root = _open(config, device) if host is None else host

    def base(self, base: Base) -> Host:
        """With the run of a base.

        Raises:
            ConfigError: If there is no such scheduler, or the number of steps cannot be set.
        """
        if base.name not in self._made:
            root = self.root
            if isinstance(root, ModelHost):
                made: Host = root.with_run(base.solver, base.spacing, base.steps)
            elif base.scheduler:
                made = self._with_scheduler(base.scheduler, base.steps)
            else:
                made = root.with_steps(base.steps)
            self._made[base.name] = made
        return self._made[base.name]

    def to_learn_on(self, base: Base) -> Host:
        """With the run of a base, and prompts to learn and calibrate on where there are some of their own.

        Raises:
            ConfigError: See `base`.
        """
        host, chosen = self.base(base), self._config.pipeline
        if chosen is None or not chosen.learning_prompts:
            return host
        key = f"{base.name}, to learn on"
        if key not in self._made:
            made = copy.copy(host)
            assert isinstance(made, PipelineHost)
            made.conditions = tuple(conditions_of(None, chosen.learning_prompts))
            self._made[key] = made
        return self._made[key]

    def of_schedule(self, variant: Variant, schedule: CacheSchedule) -> Host:
        """With the run of a variant's schedule, which may have another solver or fewer steps than the base.

        Raises:
            ContractError: If the run cannot be had, or the schedule was made for another model.
        """
        base, run = self.base(variant.base), schedule.contract.run
        if schedule.contract.fingerprint and (
            problem := schedule.contract.compare_weights(base.contract().fingerprint)
        ):
            raise problem
        if isinstance(base, ModelHost):
            host: Host = ModelHost.of_schedule(base.target, schedule, self._config.guidance)
        elif name := variant.settings.get("to_solver"):
            count = len(run.timesteps)
            key = f"{variant.base.name} {name} {count}"
            if key not in self._made:
                self._made[key] = base.fewer_steps(count)[name]
            host = self._made[key]
        elif run.weights is not None:
            host = base.for_schedule(schedule)
        else:
            host = base if run.steps == base.run.steps else base.with_steps(run.steps)
        schedule.contract.check_run(host.run)
        schedule.check_layers(host.table.with_sizes_of(schedule.layers))
        return host

    @cached_property
    def reference(self) -> Host:
        """In fine steps; the own run, `root`, where no fine solution can be had."""
        fine = self._config.reference
        if isinstance(self.root, ModelHost):
            return self.root.with_run(fine.solver, fine.spacing, fine.steps)
        return self.root.reference(fine.steps)

    def _with_scheduler(self, name: str, steps: int) -> Host:
        root = self.root
        assert isinstance(root, PipelineHost)
        rivals = root.fewer_steps(steps)
        if name in rivals:
            return rivals[name]
        import diffusers

        first = name.partition(",")[0]
        if "=" not in first and not (first.endswith("Scheduler") and hasattr(diffusers, first)):
            known("scheduler", name, rivals, ", or a scheduler of diffusers")
        made = make_scheduler(root.target.scheduler, *read_scheduler(name))
        call = {**root.call, "num_inference_steps": steps}
        return PipelineHost(root.target, root.conditions, call, made, root.encoded)


def _open(config: CompareConfig, device: str) -> Host:
    dtype = getattr(torch, config.dtype)
    if isinstance(config.model, str):
        model, guidance = load_model(config.model, dtype=dtype, device=device), config.guidance
        return ModelHost.of(model) if guidance is None else ModelHost.of(model, guidance=guidance)
    chosen, steps = config.model, config.bases[0].steps
    if chosen.pipeline.startswith(TINY):
        pipe, call, conditions = _tiny(chosen)
        pipe.to(device)
    else:
        where = None if "device_map" in chosen.load else device
        pipe = load_pipeline(chosen.pipeline, dtype=dtype, device=where, quiet=True, **chosen.load)
        call, conditions = dict(chosen.call), chosen.conditions
    return host_of(
        pipe,
        num_inference_steps=steps,
        prompts=list(chosen.prompts) or None,
        conditions=list(conditions) or None,
        **call,
    )


def _tiny(chosen: PipelineChoice) -> tuple[Any, dict[str, Any], tuple[Mapping[str, Any], ...]]:
    """A pipeline for tests, what it is called with, and its labels or encoded prompts unless there are others."""
    from l2c.testing import tiny_call, tiny_pipeline

    name = chosen.pipeline.removeprefix(TINY)
    call = tiny_call(name)
    for left_out in ("generator", "num_inference_steps", "output_type"):
        del call[left_out]
    told = [key for key in call if key in ("prompt", "class_labels") or "prompt_embeds" in key]
    own: Condition = {key: call.pop(key) for key in told}
    given = chosen.prompts or chosen.conditions
    return tiny_pipeline(name), {**call, **chosen.call}, chosen.conditions if given else (own,)
