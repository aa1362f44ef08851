"""A pipeline's run as a function that gradients go through: the pipeline's own code is the loop."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from l2c.cache.patch import MethodPatch
from l2c.errors import ConfigError, L2CError, OneByOneError, first_line
from l2c.hosts.pipeline.dry_run import takes_latent_output
from l2c.hosts.pipeline.modular import ModularRun, is_modular
from l2c.hosts.pipeline.offload import execution_device
from l2c.hosts.pipeline.timesteps import timesteps_with_gradients


class PipelineTrajectory:
    """Latents that a pipeline makes, differentiable where gradients are enabled.

    Guidance, scaling, packing of latents and solver steps are the pipeline's and the scheduler's own; where gradients
    are enabled, only the `no_grad` around the pipeline's call is left out. Prompts are encoded once. A pipeline that
    cannot put out latents is stopped where it would decode them.

    Args:
        pipe: A diffusers pipeline with latents, `encoders_offloaded` where gradients are taken.
        call: What it is called with besides prompt or labels, by name, without a generator.
        encoded: Prompts that have been encoded already.

    Attributes:
        puts_out_latents: Whether the pipeline can be asked for latents.
        modular: What runs a modular pipeline; None for any other.

    Raises:
        ConfigError: If there are no latents.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any], encoded: dict[str, Any] | None = None) -> None:
        self.modular = ModularRun(pipe, encoded) if is_modular(pipe) else None
        self.puts_out_latents = self.modular is not None or takes_latent_output(pipe)
        if not self.puts_out_latents and not hasattr(getattr(pipe, "vae", None), "decode"):
            raise ConfigError(f"{type(pipe).__name__} cannot put out latents, which learning compares")
        self.pipe = pipe
        always = {} if self.modular else {"output_type": "latent", "return_dict": False}
        self.call = {**call, **always}
        self.encoded: dict[str, Any] = {} if encoded is None else encoded

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
        return self._run({**condition, **changes}, [seed], bf16)

    def together(
        self, condition: Mapping[str, Any], seeds: Sequence[int], *, bf16: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Final latents (B, ...) of several pictures, and the noisy samples before each step and after the last.

        Args:
            condition: Of all pictures, each argument with a value for each of them.
            seeds: Of their noise.
            bf16: Let matrix products be in bfloat16.

        Raises:
            OneByOneError: If the pipeline does not take that.
        """
        states: list[Tensor] = []

        def step(original: Any, output: Any, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            made = original(output, timestep, sample, *args, **kwargs)
            states[-1:] = [sample, made[0]]
            return made

        patch, rows = MethodPatch(self.pipe.scheduler, "step", step), torch.arange(len(seeds))
        try:
            made = self._run(condition, seeds, bf16).float()
            return made[rows], [state[rows].float() for state in states]
        except (L2CError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of foreign code, whatever it is
            raise OneByOneError(
                f"{type(self.pipe).__name__} does not draw several pictures in one call ({first_line(error)})"
            ) from error
        finally:
            patch.remove()

    def _run(self, arguments: Mapping[str, Any], seeds: Sequence[int], bf16: bool) -> Tensor:
        inner = type(self.pipe).__call__
        if torch.is_grad_enabled():
            inner = inspect.unwrap(inner)
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        given = {**self.call, **arguments, "generator": noise if len(noise) > 1 else noise[0]}
        with ExitStack() as stack:
            device = execution_device(self.pipe)
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            torch.manual_seed(seeds[0])  # of schedulers that draw elsewhere than from the generator
            stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=bf16))
            stack.enter_context(timesteps_with_gradients(self.pipe))
            if self.modular is not None:
                return self.modular.latents(given)
            if hasattr(self.pipe, "encode_prompt"):
                stack.callback(MethodPatch(self.pipe, "encode_prompt", self._encode).remove)
            if not self.puts_out_latents:
                stack.callback(MethodPatch(self.pipe.vae, "decode", _stop).remove)
            try:
                latents: Tensor = inner(self.pipe, **given)[0]
            except _ReachedLatents as reached:
                latents = reached.latents
        return latents

    def _encode(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if any(isinstance(value, Tensor) for value in given):
            return original(*args, **kwargs)
        key = repr((args, sorted(kwargs.items(), key=lambda item: item[0])))
        if key not in self.encoded:
            kind = execution_device(self.pipe).type
            with torch.no_grad(), torch.autocast(kind, enabled=False):
                self.encoded[key] = original(*args, **kwargs)
        return self.encoded[key]


class _ReachedLatents(Exception):  # noqa: N818 (it is no error)
    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


def _stop(_decode: Any, latents: Tensor, *_: Any, **__: Any) -> None:
    raise _ReachedLatents(latents)
