"""A pipeline's run as a function that gradients go through: the pipeline's own code is the loop."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from l2c.cache.patch import MethodPatch
from l2c.cache.store import last_reads
from l2c.errors import ConfigError
from l2c.hosts.pipeline.dry_run import takes_latent_output
from l2c.hosts.pipeline.enable import enable_cache
from l2c.hosts.pipeline.handle import PipelineCache
from l2c.hosts.pipeline.offload import execution_device
from l2c.hosts.pipeline.runs import is_flow
from l2c.learning.recompute import again_in_backward
from l2c.schedule.forecast import ReusePlan
from l2c.schedule.schedule import CacheSchedule

_FINE = {
    "solver_order": 3,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "timestep_spacing": "linspace",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "euler_at_final": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": True,
}
"""Settings of the multistep scheduler by which native learning makes its fine-step solutions."""


class PipelineTrajectory:
    """Latents that a pipeline makes, differentiable in the weights of the forecasts.

    Guidance, scaling, packing of latents and solver steps are the pipeline's and the scheduler's own; only the
    `no_grad` around the pipeline's call is left out. Prompts are encoded once. A pipeline that cannot put out latents
    is stopped where it would decode them.

    Args:
        pipe: A diffusers pipeline with latents, `encoders_offloaded` where gradients are taken.
        call: What it is called with besides prompt or labels, by name, without a generator.

    Attributes:
        puts_out_latents: Whether the pipeline can be asked for latents.

    Raises:
        ConfigError: If there are no latents.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        self.puts_out_latents = takes_latent_output(pipe)
        if not self.puts_out_latents and not hasattr(getattr(pipe, "vae", None), "decode"):
            raise ConfigError(f"{type(pipe).__name__} cannot put out latents, which learning compares")
        self.pipe = pipe
        self.call = {**call, "output_type": "latent", "return_dict": False}
        self._encoded: dict[str, Any] = {}

    def sample(
        self, condition: Mapping[str, Any], seed: int, *, bf16: bool = False, **changes: Any
    ) -> Tensor:
        """Final latents (1, ...) from the noise of a seed; with a graph where gradients are enabled.

        Args:
            condition: Prompt or label.
            seed: Of the noise.
            bf16: Let matrix products be in bfloat16.
            changes: What else is called otherwise.
        """
        inner = inspect.unwrap(type(self.pipe).__call__)
        generator = torch.Generator().manual_seed(seed)
        given = {**self.call, **condition, **changes, "generator": generator}
        with ExitStack() as stack:
            kind = execution_device(self.pipe).type
            stack.enter_context(torch.autocast(kind, torch.bfloat16, enabled=bf16))
            if hasattr(self.pipe, "encode_prompt"):
                stack.callback(MethodPatch(self.pipe, "encode_prompt", self._encode).remove)
            if not self.puts_out_latents:
                stack.callback(MethodPatch(self.pipe.vae, "decode", _stop).remove)
            try:
                latents: Tensor = inner(self.pipe, **given)[0]
            except _ReachedLatents as reached:
                latents = reached.latents
        return latents

    def with_steps(self, steps: int | None) -> dict[str, int]:
        """Changes of the call for another number of steps, none for None.

        Raises:
            ConfigError: If the pipeline is not told a number of steps.
        """
        if steps is None:
            return {}
        name = "num_inference_steps"
        if name not in inspect.signature(type(self.pipe).__call__).parameters:
            raise ConfigError(
                f"{type(self.pipe).__name__} takes no {name}, so that reference_steps cannot be set; leave it out"
            )
        return {name: steps}

    @contextmanager
    def finely_solved(self, wanted: bool = True) -> Iterator[None]:
        """Lets DPM-Solver++(3M), evenly spaced in log-SNR, drive the pipeline until it ends, if that is wanted.

        Raises:
            ConfigError: If the pipeline's own scheduler does not solve the equation that this solver does.
        """
        if not wanted:
            yield
            return
        own = self.pipe.scheduler
        config = own.config
        if is_flow(own) or not hasattr(own, "alphas_cumprod") or config.get("clip_sample"):
            raise ConfigError(
                f"a reference_solver needs a scheduler with betas that clips nothing, not {type(own).__name__} "
                f"(clip_sample={bool(config.get('clip_sample'))}); leave it out, and take more reference_steps"
            )
        from diffusers import DPMSolverMultistepScheduler

        self.pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, **_FINE)
        try:
            yield
        finally:
            self.pipe.scheduler = own

    def _encode(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if any(isinstance(value, Tensor) for value in given):
            return original(*args, **kwargs)
        key = repr((args, sorted(kwargs.items(), key=lambda item: item[0])))
        if key not in self._encoded:
            kind = execution_device(self.pipe).type
            with torch.no_grad(), torch.autocast(kind, enabled=False):
                self._encoded[key] = original(*args, **kwargs)
        return self._encoded[key]

    @contextmanager
    def cached(self, schedule: CacheSchedule, *, recompute: bool = False) -> Iterator[PipelineCache]:
        """Enables a schedule whose plan may be replaced by one with a graph, with `use_plan`.

        Args:
            schedule: What to compute and from where to forecast.
            recompute: Compute layers again in the backward pass instead of keeping what they need for it.
        """
        anyones = replace(schedule, contract=replace(schedule.contract, fingerprint=()))
        cache = enable_cache(self.pipe, anyones)
        with cache:
            if recompute:
                for transformer in cache.transformers.values():
                    transformer.policy.around = again_in_backward
            yield cache


def use_plan(cache: PipelineCache, plan: ReusePlan) -> None:
    """Lets a cache forecast with other weights."""
    reads = last_reads(plan)
    for transformer in cache.transformers.values():
        transformer.policy.plan = plan
        transformer.policy.store.reads = reads


class _ReachedLatents(Exception):  # noqa: N818 (it is no error)
    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


def _stop(_decode: Any, latents: Tensor, *_: Any, **__: Any) -> None:
    raise _ReachedLatents(latents)
