"""From a pipeline's final latents to pictures, by the pipeline's own code: unpacking, scaling, autoencoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from l2c.cache.patch import MethodPatch
from l2c.hosts.pipeline.conditions import Condition
from l2c.hosts.pipeline.trajectory import PipelineTrajectory


class PipelineDecoder:
    """Decodes what a pipeline puts out as latents: it is called for no steps, beginning with these latents.

    Args:
        pipe: A diffusers pipeline with an autoencoder.
        call: What it is called with besides prompt or labels, by name.
        encoded: Prompts that have been encoded already.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any], encoded: dict[str, Any] | None = None) -> None:
        self._pipe, self._trajectory = pipe, PipelineTrajectory(pipe, call, encoded)

    @torch.no_grad()
    def __call__(self, latents: Tensor, condition: Condition) -> Tensor:
        """The picture (1, 3, H, W), or the frames of a video, in [-1, 1], float32.

        Args:
            latents: As `PipelineHost.sample` makes them (1, ...).
            condition: Prompt or label of the run.
        """
        pipe, modular = self._pipe, self._trajectory.modular
        if modular is not None:
            return modular.decode({**self._trajectory.call, **condition}, latents).float() * 2 - 1
        if not self._trajectory.puts_out_latents:  # these are what it gives to its autoencoder
            weight = next(pipe.vae.parameters())
            picture: Tensor = pipe.vae.decode(latents.to(weight)).sample
            return picture.float().clamp(-1, 1)
        with ExitStack() as stack:
            own, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
            stack.callback(setattr, pipe, "scheduler", own)

            def begin(original: Any, *args: Any, **kwargs: Any) -> Any:
                made = original(*args, **kwargs)
                if isinstance(made, tuple):
                    return (latents.to(made[0]), *made[1:])
                return latents.to(made)

            stack.callback(MethodPatch(pipe, "prepare_latents", begin).remove)
            stack.callback(MethodPatch(pipe.scheduler, "set_timesteps", _no_steps(pipe.scheduler)).remove)
            unit: Tensor = self._trajectory.sample(condition, 0, output_type="pt")
        return unit.float() * 2 - 1


def _no_steps(scheduler: Any) -> Any:
    def set_timesteps(original: Any, *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        scheduler.timesteps = scheduler.timesteps[:0]

    return set_timesteps
