"""A pipeline's run as a function that gradients go through: the pipeline's own code is the walk."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2c.cache.predictors import StandInPlan
from l2c.cache.schedule import CacheSchedule
from l2c.cache.shadows import Shadow
from l2c.errors import ConfigError
from l2c.pipelines.enable import enable_cache
from l2c.pipelines.handle import PipelineCache
from l2c.pipelines.rehearsal import takes_latent_output


class PipelineTrajectory:
    """Latents that a pipeline makes, differentiable in the weights of the stand-ins.

    Guidance, scaling, packing of latents and solver steps are the pipeline's and the scheduler's own; only the
    `no_grad` around the pipeline's call is left out. Prompts are encoded once.

    Args:
        pipe: A diffusers pipeline that can put out latents; its weights are not to require gradients.
        call: What it is called with besides prompt or labels, by name, without a generator.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        if not takes_latent_output(pipe):
            raise ConfigError(f"{type(pipe).__name__} cannot put out latents, which learning compares")
        if any(
            p.requires_grad
            for c in pipe.components.values()
            if isinstance(c, nn.Module)
            for p in c.parameters()
        ):
            raise ConfigError(
                "some weights of the pipeline require gradients; freeze them with requires_grad_(False)"
            )
        self.pipe = pipe
        self.call = {**call, "output_type": "latent", "return_dict": False}
        self._encoded: dict[str, Any] = {}

    def sample(self, condition: Mapping[str, Any], seed: int, **changes: Any) -> Tensor:
        """Final latents (1, ...) from the noise of a seed; with a graph where gradients are enabled."""
        inner = inspect.unwrap(type(self.pipe).__call__)
        generator = torch.Generator().manual_seed(seed)
        with ExitStack() as stack:
            if hasattr(self.pipe, "encode_prompt"):
                stack.callback(Shadow(self.pipe, "encode_prompt", self._encode).remove)
            latents: Tensor = inner(self.pipe, **{**self.call, **condition, **changes}, generator=generator)[
                0
            ]
        return latents

    def _encode(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if any(isinstance(value, Tensor) for value in given):
            return original(*args, **kwargs)
        key = repr((args, sorted(kwargs.items(), key=lambda item: item[0])))
        if key not in self._encoded:
            with torch.no_grad():
                self._encoded[key] = original(*args, **kwargs)
        return self._encoded[key]

    @contextmanager
    def cached(self, schedule: CacheSchedule, *, recompute: bool = False) -> Iterator[PipelineCache]:
        """Enables a schedule whose plan may be replaced by one with a graph, with `use_plan`.

        Args:
            schedule: What to compute and from where to stand in.
            recompute: Compute layers again in the backward pass instead of keeping what they need for it.
        """
        anyones = replace(schedule, contract=replace(schedule.contract, fingerprint=()))
        cache = enable_cache(self.pipe, anyones)
        with cache:
            if recompute:
                for transformer in cache.transformers.values():
                    transformer.gates.around = _again_in_backward
            yield cache


def use_plan(cache: PipelineCache, plan: StandInPlan) -> None:
    """Lets a cache stand in with other weights on the same values."""
    for transformer in cache.transformers.values():
        transformer.gates.plan = plan


def _again_in_backward(compute: Any) -> Any:
    return checkpoint(compute, use_reentrant=False) if torch.is_grad_enabled() else compute()
