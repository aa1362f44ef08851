"""What a small transformer of diffusers is: its configuration, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TinyTransformer:
    """A small model of an architecture, and how to call it.

    Attributes:
        class_name: Name of its class in diffusers.
        config: Its configuration.
        shape: Shape of its input for one image, without the batch.
        conditions: Function of the batch size that returns everything but samples and timesteps.
        names: What its call names samples and timesteps.
        listed: Whether it takes and returns samples as a list.
    """

    class_name: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    conditions: Callable[[int], dict[str, Any]]
    names: tuple[str, str] = ("hidden_states", "timestep")
    listed: bool = False

    def build(self, seed: int = 0) -> nn.Module:
        """The model with weights from `seed`, frozen."""
        import diffusers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = getattr(diffusers, self.class_name)(**self.config)
        return model.eval().requires_grad_(False)

    def call(self, model: nn.Module, x: Tensor, timestep: float) -> Tensor:
        """What the model predicts for samples (B, ...) at a timestep."""
        output = model(**self.arguments(x, timestep), return_dict=False)[0]
        return torch.stack(output) if isinstance(output, list) else output

    def arguments(self, x: Tensor, timestep: float) -> dict[str, Any]:
        """What the model is called with for samples (B, ...) at a timestep."""
        samples = list(x) if self.listed else x
        values = (samples, torch.full(x.shape[:1], timestep))
        return {**dict(zip(self.names, values, strict=True)), **self.conditions(x.shape[0])}
