"""What closed-loop learning comes close to: fine-step solutions from drawn noise and labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.learning.task import draw
from l2c.learning.trainer import Trainer
from l2c.learning.trajectories import random_labels
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler

FINE_SOLVER = ("dpmsolver++3", "logsnr")


@dataclass(frozen=True)
class Pictures:
    """Fine-step solutions (B, C, H, W) to come close to, and the noise and labels that they were sampled from."""

    noise: Tensor
    labels: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.noise)

    def rows(self, rows: slice | Tensor) -> Pictures:
        """Some of them."""
        return Pictures(self.noise[rows], self.labels[rows], self.target[rows])


@torch.no_grad()
def solve(
    trainer: Trainer, denoiser: Denoiser, count: int, steps: int, guidance: Guidance, fraction: float
) -> Pictures:
    """Solutions for `count` pictures in `steps` evaluations, shared by the processes and kept in the checkpoint.

    Raises:
        NumericsError: If one of them is not finite.
        ConfigError: If the time is up before they are done.
    """
    settings = trainer.settings
    generator = draw(settings.seed, "pictures")
    noise = torch.randn((count, *denoiser.sample_shape), generator=generator).to(denoiser.device)
    labels = random_labels(generator, count, denoiser.num_classes).to(denoiser.device)
    fine = Sampler(denoiser, FINE_SOLVER[0], steps, FINE_SOLVER[1], guidance)
    target = trainer.compute("fine-step solutions", fine, noise, labels, 2 * settings.batch_size, fraction)
    return Pictures(noise, labels, target)


def errors(pictures: Tensor, target: Tensor) -> Tensor:
    """Root mean square error of each picture (B,); its gradient is 0 where there is none."""
    distances: Tensor = torch.linalg.vector_norm(pictures - target, dim=(1, 2, 3))
    return distances / math.sqrt(target[0].numel())
