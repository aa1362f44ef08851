"""The forward process that a model was trained on, x_t = alpha_t x_0 + sigma_t noise, and what it predicts of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2c.documents import check_fields, one_of
from l2c.errors import known
from l2c.models.config import BETA_RANGES, NUM_TRAIN_TIMESTEPS, PREDICTION_TYPES, training_betas

SPACINGS = ("linspace", "trailing", "karras", "logsnr")

FLOW_PREDICTION = "flow_prediction"
"""The prediction type of models that were trained on a flow."""

_Level = TypeVar("_Level", float, Tensor)


class ForwardProcess(Protocol):
    """What solvers know of a model's training: noise levels, and what its predictions mean.

    Attributes:
        prediction_type: What the network predicts, as diffusers names it; see `data_prediction`.
        spacings: Spacings of the evaluations that it can be sampled with.
    """

    @property
    def prediction_type(self) -> str:
        """What the network predicts."""
        ...

    @property
    def spacings(self) -> tuple[str, ...]:
        """Those of `SPACINGS` that make sense for it."""
        ...

    def log_snr(self, timestep: float) -> float:
        """Half log-SNR log(alpha / sigma) at what the network is fed, which may be fractional."""
        ...

    def timestep(self, log_snr: float) -> float:
        """What the network is fed at a half log-SNR; the inverse of `log_snr`."""
        ...

    def timesteps_of(self, log_snrs: Tensor) -> Tensor:
        """What `timestep` says of every half log-SNR in a tensor, differentiable in them."""
        ...

    def alpha_sigma(self, log_snr: float) -> tuple[float, float]:
        """Alpha and sigma at a half log-SNR."""
        ...

    def alphas_sigmas(self, log_snrs: Tensor) -> tuple[Tensor, Tensor]:
        """What `alpha_sigma` says of every half log-SNR in a tensor, differentiable in them."""
        ...

    def __hash__(self) -> int:
        """Equal for processes that are the same."""
        ...


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noise schedule over training timesteps 0 to 999.

    Attributes:
        beta_schedule: `linear`, betas evenly spaced from 1e-4 to 0.02, as DiT uses them; or `scaled_linear`,
            square roots of the betas evenly spaced, 0.00085 to 0.012, as latent U-ViTs do.
        prediction_type: What the network predicts: `epsilon`, the noise; `v_prediction`, alpha noise - sigma x_0; or
            `sample`, x_0.
    """

    beta_schedule: Annotated[str, one_of(*BETA_RANGES)] = "linear"
    prediction_type: Annotated[str, one_of("epsilon", "v_prediction", "sample")] = "epsilon"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def spacings(self) -> tuple[str, ...]:
        """See `ForwardProcess.spacings`."""
        return SPACINGS

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

    def alpha_sigma(self, log_snr: float) -> tuple[float, float]:
        """See `ForwardProcess.alpha_sigma`."""
        return alpha_sigma(log_snr)

    def alphas_sigmas(self, log_snrs: Tensor) -> tuple[Tensor, Tensor]:
        """See `ForwardProcess.alphas_sigmas`."""
        return alphas_sigmas(log_snrs, flow=False)


@dataclass(frozen=True)
class FlowSchedule:
    """A straight flow, x_s = (1 - s) x_0 + s noise with s from 0 to 1; the network predicts the velocity noise - x_0.

    The network is fed 1000 s. Runs begin at s = 0.999, as those of diffusers' schedulers with `use_flow_sigmas` do,
    since pure noise has a log-SNR of minus infinity.

    Source: arXiv 2210.02747 and 2209.03003.
    """

    @property
    def prediction_type(self) -> str:
        """The velocity."""
        return FLOW_PREDICTION

    @property
    def spacings(self) -> tuple[str, ...]:
        """`linspace`, even in s, and `logsnr`."""
        return ("linspace", "logsnr")

    def log_snr(self, timestep: float) -> float:
        """Half log-SNR log((1 - s) / s) at a timestep 1000 s, which is kept from 1 to 999.

        >>> FlowSchedule().log_snr(500)
        0.0
        """
        s = min(max(timestep, 1.0), NUM_TRAIN_TIMESTEPS - 1.0) / NUM_TRAIN_TIMESTEPS
        return math.log((1 - s) / s)

    def timestep(self, log_snr: float) -> float:
        """1000 s at a half log-SNR; the inverse of `log_snr`."""
        return NUM_TRAIN_TIMESTEPS * self.alpha_sigma(log_snr)[1]

    def timesteps_of(self, log_snrs: Tensor) -> Tensor:
        """What `timestep` says of every half log-SNR in a tensor, differentiable in them."""
        return NUM_TRAIN_TIMESTEPS * self.alphas_sigmas(log_snrs)[1]

    def alpha_sigma(self, log_snr: float) -> tuple[float, float]:
        """See `ForwardProcess.alpha_sigma`; they add up to 1."""
        return float(np.exp(-np.logaddexp(0.0, -log_snr))), float(np.exp(-np.logaddexp(0.0, log_snr)))

    def alphas_sigmas(self, log_snrs: Tensor) -> tuple[Tensor, Tensor]:
        """See `ForwardProcess.alphas_sigmas`."""
        return alphas_sigmas(log_snrs, flow=True)


def process_of(prediction_type: str, beta_schedule: str = "linear") -> NoiseSchedule | FlowSchedule:
    """The forward process of a model that predicts this.

    Raises:
        ConfigError: If the prediction type or the beta schedule is unknown.
    """
    if prediction_type == FLOW_PREDICTION:
        return FlowSchedule()
    return NoiseSchedule(beta_schedule, prediction_type)


def data_prediction(
    x: Tensor, prediction: Tensor, alpha: _Level, sigma: _Level, prediction_type: str = "epsilon"
) -> Tensor:
    """Clean data in a noisy sample, by what the network predicts at it; all that a solver needs of a prediction.

    Args:
        x: The noisy sample, alpha data + sigma noise.
        prediction: What the network says of it, of the same shape.
        alpha: A number or a tensor ().
        sigma: A number or a tensor ().
        prediction_type: `epsilon`, the noise; `v_prediction`, alpha noise - sigma data, where the squares of both add
            up to 1; `sample`, the data; or `flow_prediction`, noise - data, where both add up to 1.

    Raises:
        ConfigError: If the prediction type is unknown.

    Source: arXiv 2202.00512, appendix D, for v; arXiv 2210.02747 for velocities.
    """
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * x - sigma * prediction
    if prediction_type == FLOW_PREDICTION:
        return x - sigma * prediction
    known("prediction type", prediction_type, ["sample", *PREDICTION_TYPES])
    return prediction


PURE_NOISE = -7.0
"""Half log-SNR from which on down a flow is all noise: there it is minus infinity, which no table holds."""


def alphas_sigmas(log_snrs: Tensor, *, flow: bool) -> tuple[Tensor, Tensor]:
    """Factors (N,) of data and noise in noisy samples, at half log-SNRs (N,), differentiable in them.

    Args:
        log_snrs: Half log-SNRs.
        flow: Whether both factors add up to 1, and not their squares. A flow at `PURE_NOISE` or below is at sigma = 1.
    """
    if not flow:
        return torch.sigmoid(2 * log_snrs).sqrt(), torch.sigmoid(-2 * log_snrs).sqrt()
    pure = log_snrs.detach() <= PURE_NOISE
    alpha = torch.sigmoid(log_snrs).masked_fill(pure, 0.0)
    return alpha, torch.sigmoid(-log_snrs).masked_fill(pure, 1.0)


def alpha_sigma(log_snr: float) -> tuple[float, float]:
    """Alpha and sigma of a variance-preserving process at a half log-SNR."""
    log_alpha = -0.5 * np.logaddexp(0.0, -2 * log_snr)
    log_sigma = -0.5 * np.logaddexp(0.0, 2 * log_snr)
    return float(np.exp(log_alpha)), float(np.exp(log_sigma))
