"""A scheduler's run as a schedule records it: which solver, at which timesteps and noise levels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from l2c.errors import ConfigError
from l2c.hosts.pipeline.learned_scheduler import LearnedScheduler
from l2c.schedule.contract import LARGEST_LOG_SNR, Run

SAME_LOG_SNR = 1e-4
"""Half log-SNRs that are closer than this are one noise level, computed with other rounding."""

_SETTINGS = (
    "solver_order",
    "algorithm_type",
    "solver_type",
    "prediction_type",
    "thresholding",
    "stochastic_sampling",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "skip_prk_steps",
)
"""What decides a scheduler's step besides its timesteps and noise levels."""


def describe_run(scheduler: Any, guidance: float | None = None) -> Run:
    """The run that a scheduler is set to make.

    Args:
        scheduler: A diffusers scheduler on which `set_timesteps` has been called.
        guidance: Guidance scale, if it is known.

    Raises:
        ConfigError: If no timesteps are set.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or not len(timesteps):
        raise ConfigError(f"{type(scheduler).__name__} has no timesteps; call its set_timesteps first")
    times = tuple(float(t) for t in timesteps.tolist())
    if isinstance(scheduler, LearnedScheduler):
        learned: Run = scheduler.learned_run(guidance)
        return learned
    steps = getattr(scheduler, "num_inference_steps", None) or len(times)
    return Run(
        type(scheduler).__name__,
        int(steps),
        settings_of(scheduler),
        times,
        _log_snrs(scheduler, times),
        guidance,
    )


def settings_of(scheduler: Any) -> str:
    """What of a scheduler's configuration decides its steps, as text."""
    config = getattr(scheduler, "config", {})
    given = {key: config.get(key) for key in _SETTINGS}
    return (
        ", ".join(f"{key}={value}" for key, value in given.items() if value not in (None, False)) or "default"
    )


def is_flow(scheduler: Any) -> bool:
    """Whether noisy samples are (1 - sigma) * picture + sigma * noise."""
    config = getattr(scheduler, "config", {})
    return (
        "FlowMatch" in type(scheduler).__name__
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def _log_snrs(scheduler: Any, times: tuple[float, ...]) -> tuple[float, ...]:
    sigmas = getattr(scheduler, "sigmas", None)
    interleaved = getattr(scheduler, "sigmas_interpol", None) is not None  # KDPM2: two lists take turns
    if sigmas is not None and len(sigmas) >= len(times) and not interleaved:
        sigmas = [float(sigma) for sigma in sigmas.tolist()[: len(times)]]
        if is_flow(scheduler):
            values = [_ratio(1 - sigma, sigma) for sigma in sigmas]
        else:
            values = [_ratio(1.0, sigma) for sigma in sigmas]
    elif (alphas := getattr(scheduler, "alphas_cumprod", None)) is not None:
        table = 0.5 * (alphas.double().log() - (1 - alphas.double()).clamp_min(1e-12).log()).cpu().numpy()
        values = [float(np.interp(t, np.arange(len(table)), table)) for t in times]
    else:
        values = [_ratio(1000.0 - t, t) for t in times]
    levels = [min(max(value, -LARGEST_LOG_SNR), LARGEST_LOG_SNR) for value in values]
    for index in range(1, len(levels)):
        if abs(levels[index] - levels[index - 1]) < SAME_LOG_SNR:
            levels[index] = levels[index - 1]
    return tuple(levels)


def _ratio(signal: float, noise: float) -> float:
    if noise <= 0:
        return math.inf
    return math.log(signal / noise) if signal > 0 else -math.inf
