"""The forward process that a model was trained on: x_t = alpha_t x_0 + sigma_t noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2c.errors import ConfigError
from l2c.models.config import BETA_RANGES, NUM_TRAIN_TIMESTEPS, training_betas


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noise schedule over training timesteps 0 to 999.

    Attributes:
        beta_schedule: `linear`, betas evenly spaced from 1e-4 to 0.02, as DiT uses them; or `scaled_linear`,
            square roots of the betas evenly spaced, 0.00085 to 0.012, as latent U-ViTs do.
        prediction_type: What the network predicts; `epsilon`, the noise.
    """

    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETA_RANGES:
            raise ConfigError(
                f"unknown beta schedule '{self.beta_schedule}'; choose {' or '.join(BETA_RANGES)}"
            )
        if self.prediction_type != "epsilon":
            raise ConfigError(f"only noise prediction (epsilon) is supported, got '{self.prediction_type}'")

    @property
    def beta_range(self) -> tuple[float, float]:
        """First and last beta."""
        return BETA_RANGES[self.beta_schedule]

    @cached_property
    def log_alphas(self) -> NDArray[np.float64]:
        """log(alpha_t) at every training timestep, (1000,)."""
        betas = training_betas(self.beta_schedule).numpy()
        return np.asarray(0.5 * np.cumsum(np.log1p(-betas)))

    def log_snr(self, timestep: float) -> float:
        """Half log-SNR log(alpha / sigma) at a training timestep, which may be fractional.

        log(alpha) is interpolated linearly between training timesteps.

        Source: arXiv 2206.00927, appendix D.4.
        """
        log_alpha = np.interp(timestep, np.arange(NUM_TRAIN_TIMESTEPS), self.log_alphas)
        return float(log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha)))

    def timestep(self, log_snr: float) -> float:
        """Fractional training timestep of a half log-SNR; the inverse of `log_snr`.

        >>> schedule = NoiseSchedule()
        >>> round(schedule.timestep(schedule.log_snr(123.4)), 6)
        123.4
        """
        log_alpha = -0.5 * np.logaddexp(0.0, -2 * log_snr)
        return float(np.interp(-log_alpha, -self.log_alphas, np.arange(NUM_TRAIN_TIMESTEPS)))

    def timesteps_of(self, log_snrs: Tensor) -> Tensor:
        """What `timestep` says of every half log-SNR in a tensor, differentiable in them."""
        table = -torch.from_numpy(self.log_alphas).to(log_snrs)
        values = 0.5 * torch.nn.functional.softplus(-2 * log_snrs)
        above = torch.searchsorted(table, values.detach()).clamp(1, len(table) - 1)
        share = (values - table[above - 1]) / (table[above] - table[above - 1])
        return above - 1 + share.clamp(0, 1)


def alpha_sigma(log_snr: float) -> tuple[float, float]:
    """Alpha and sigma of a variance-preserving process at a half log-SNR."""
    log_alpha = -0.5 * np.logaddexp(0.0, -2 * log_snr)
    log_sigma = -0.5 * np.logaddexp(0.0, 2 * log_snr)
    return float(np.exp(log_alpha)), float(np.exp(log_sigma))
