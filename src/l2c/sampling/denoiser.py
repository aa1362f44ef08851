"""One way to call every model: a prediction from (x, t, y), whatever class the network is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.sampling.noise_schedule import ForwardProcess, process_of


@dataclass(frozen=True)
class Denoiser:
    """A model with what sampling has to know about it.

    Attributes:
        model: Our `DiT` or `UViT`, or diffusers' `DiTTransformer2DModel`.
        sample_shape: (channels, height, width) of its input.
        num_classes: Number of classes; labels run from 0 to `num_classes - 1`.
        first_timestep: What the network is fed for training timestep 0.
        noise_schedule: The forward process that it was trained on, with what it predicts.
    """

    model: nn.Module
    sample_shape: tuple[int, ...]
    num_classes: int
    first_timestep: int
    noise_schedule: ForwardProcess

    @classmethod
    def of(cls, model: nn.Module) -> Denoiser:
        """Reads everything from the model's configuration.

        Raises:
            ConfigError: If it is no model, there is no layer adapter for its class, or it does not take class labels.
        """
        if not isinstance(model, nn.Module):
            raise ConfigError(f"this needs a model, got {type(model).__name__}; load one with l2c.load_model")
        table = find_layers(model)
        if not table.sized:
            raise ConfigError(
                f"{type(model).__name__} is not sampled by class labels; make its pipeline and use l2c.hosts.pipeline"
            )
        config: Any = model.config
        num_classes = getattr(config, "num_classes", None)
        if num_classes is None:
            num_classes = config.num_embeds_ada_norm
        return cls(
            model,
            table.sample_shape,
            num_classes,
            getattr(config, "first_timestep", 0),
            process_of(
                getattr(config, "prediction_type", "epsilon"), getattr(config, "beta_schedule", "linear")
            ),
        )

    @property
    def has_null_class(self) -> bool:
        """Whether the model was trained with a label for no class."""
        return bool(getattr(self.model.config, "has_null_class", True))

    @property
    def null_class(self) -> int:
        """Label that stands for no class.

        Raises:
            ConfigError: If the model was trained without one.
        """
        if not self.has_null_class:
            raise ConfigError(
                "the model was trained without a null class, so it has no guidance and learns on labelled images "
                "only; use guidance 1"
            )
        return self.num_classes

    @property
    def latent(self) -> bool:
        """Whether samples are latents and not pictures."""
        return self.sample_shape[0] == 4

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights."""
        return next(self.model.parameters()).dtype

    def __call__(self, x: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        """What the network predicts: noise, v, data or velocity, as `noise_schedule.prediction_type` says.

        Args:
            x: Noisy samples (B, C, H, W).
            timestep: Training timestep, a tensor (); it may be fractional. Of a flow, 1000 s.
            labels: Class labels (B,).

        Returns:
            Prediction (B, C, H, W) in the dtype of `x`; a learned variance is left out.
        """
        times = (timestep + self.first_timestep).expand(x.shape[0])
        output: Any = self.model(x.to(self.dtype), times, labels)
        prediction: Tensor = getattr(output, "sample", output)
        return prediction[:, : x.shape[1]].to(x.dtype)
