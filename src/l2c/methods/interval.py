"""The whole network at every n-th evaluation, nothing but stand-ins in between."""

from __future__ import annotations

import torch
from torch import nn

from l2c.cache.predictors import Predictor
from l2c.cache.schedule import CacheSchedule, Contract
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Sampler


def interval(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    every: int = 2,
    predictor: str | Predictor = "copy",
    *,
    spacing: str = "linspace",
) -> CacheSchedule:
    """Computes every layer at evaluations 0, every, 2 * every, ... and reuses all of them in between.

    Args:
        model: A model that has a layer adapter; its weights are not looked at.
        solver: Solver name.
        steps: Number of model evaluations.
        every: Length of the interval; 1 computes everything.
        predictor: `copy`, `taylor` (order 1), `taylor-N`, or a `Predictor`.
        spacing: Spacing of the evaluations.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: with `copy`, FORA (arXiv 2407.01425); with `taylor`, TaylorSeer (arXiv 2503.06923), whose finite
    differences over steps are here the polynomial over log-SNR.
    """
    if every < 1:
        raise ConfigError(f"the interval must be at least 1, got {every}")
    denoiser = Denoiser.of(model)
    run = Sampler(denoiser, solver, steps, spacing).make_solver().run
    table = find_layers(model)
    compute = torch.zeros(len(run.timesteps), len(table), dtype=torch.bool)
    compute[::every] = True
    chosen = Predictor.parse(predictor) if isinstance(predictor, str) else predictor
    return CacheSchedule(
        compute,
        table,
        Contract(run, prediction_type=denoiser.noise_schedule.prediction_type),
        chosen,
        provenance={"method": "interval", "every": every},
    )
