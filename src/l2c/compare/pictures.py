"""From what a host makes to pictures, by the autoencoder of the pipeline or the one that the configuration names."""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.bench.timing import interleave
from l2c.compare.config import CompareConfig
from l2c.errors import ConfigError
from l2c.evaluation.registry import all_metrics
from l2c.hosts.base import Examples, Host
from l2c.hosts.native import ModelHost
from l2c.hosts.pipeline.conditions import SeededConditions
from l2c.hosts.pipeline.decoding import PipelineDecoder
from l2c.hosts.pipeline.host import PipelineHost
from l2c.sampling.decoding import LatentDecoder


class Pictures:
    """Decodes what a host makes, where there is an autoencoder.

    Args:
        config: The comparison.
        host: What is compared.

    Attributes:
        decodes: Whether there is something to decode with.
        unit: Unit of errors of what comes out: `absolute` for pictures, `relative` for latents.

    Raises:
        CheckpointError: If the autoencoder cannot be loaded.
        ConfigError: If metrics of pictures are asked for, and there are only latents; or metrics of prompts, and there
            are none.
    """

    def __init__(self, config: CompareConfig, host: Host) -> None:
        self._of_model: LatentDecoder | None = None
        self._of_pipeline: PipelineDecoder | None = None
        if isinstance(host, ModelHost) and config.vae is not None:
            self._of_model = LatentDecoder(config.vae, host.device)
        elif isinstance(host, PipelineHost) and getattr(host.target, "vae", None) is not None:
            self._of_pipeline = PipelineDecoder(host.target, host.call, host.encoded)
        self.decodes = self._of_model is not None or self._of_pipeline is not None
        self.unit = "absolute" if self.decodes else host.unit
        known = all_metrics()
        of_pictures = [name for name in config.metrics if name not in known or not known[name].of_latents]
        if self.unit == "relative" and of_pictures:
            raise ConfigError(
                f"{config.model_name} makes latents, and {of_pictures[0]} is of pictures; name the autoencoder's "
                "folder as vae, or ask for rmse alone"
            )
        prompted = [name for name in config.metrics if name in known and known[name].of_prompts]
        if prompted and prompts_of(host.seeded([0])) is None:
            raise ConfigError(
                f"{prompted[0]} scores pictures against their prompts, and {config.model_name} is given none; leave "
                "it out of the metrics"
            )

    def __call__(self, samples: Tensor, examples: Examples) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] of samples, on the CPU; latents (B, ...) where nothing decodes them."""
        if self._of_model is not None:
            samples = self._of_model(samples)
        elif self._of_pipeline is not None:
            assert isinstance(examples, SeededConditions)
            made = [
                self._of_pipeline(samples[i : i + 1], condition)
                for i, condition in enumerate(examples.conditions)
            ]
            samples = torch.cat(made)
        return samples.cpu().clamp(-1, 1) if self.unit == "absolute" else samples.cpu()

    def decode_seconds(self, samples: Tensor, examples: Examples) -> list[float]:
        """Seconds of decoding, apart from sampling; none where there is nothing to decode."""
        if not self.decodes:
            return []
        return list(interleave({"decode": lambda: self(samples, examples)}, 1, warm_ups={})["decode"].seconds)


def prompts_of(examples: Examples) -> list[str] | None:
    """The prompts of examples, if they have any."""
    if not isinstance(examples, SeededConditions):
        return None
    found = [condition.get("prompt") for condition in examples.conditions]
    texts = [text[0] if isinstance(text, (list, tuple)) else text for text in found]
    return [str(text) for text in texts] if all(texts) else None
