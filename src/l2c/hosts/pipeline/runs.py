"""A scheduler's run as a schedule records it: which solver, at which timesteps and noise levels."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np

from l2c.errors import ConfigError
from l2c.hosts.pipeline.learned_scheduler import PROCESS, LearnedScheduler
from l2c.hosts.pipeline.modular import given_now, is_modular
from l2c.schedule.contract import LARGEST_LOG_SNR, Run
from l2c.schedule.sizes import SIZES

Call = tuple[tuple[str, float | str | tuple[float, ...]], ...]
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


_LEVELS = (
    *PROCESS,
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
    "lambda_min_clipped",
    "shift",
    "flow_shift",
    "shift_terminal",
    "snr_shift_scale",
    "sigma_min",
    "sigma_max",
    "sigma_schedule",
    "rho",
)
"""What its timesteps and noise levels tell already."""

_THRESHOLDS = ("dynamic_thresholding_ratio", "sample_max_value")
"""What matters only where thresholding is on."""

_GUIDANCE_WORDS = ("guidance", "cfg", "scale")
"""In the names of arguments that change a run."""


def describe_run(scheduler: Any, guidance: float | None = None, call: Call = ()) -> Run:
    """The run that a scheduler is set to make.

    Args:
        scheduler: A diffusers scheduler on which `set_timesteps` has been called.
        guidance: Guidance scale, if it is known.
        call: See `Run.call`.

    Raises:
        ConfigError: If no timesteps are set.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or not len(timesteps):
        raise ConfigError(f"{type(scheduler).__name__} has no timesteps; call its set_timesteps first")
    times = tuple(float(t) for t in timesteps.tolist())
    if isinstance(scheduler, LearnedScheduler):
        learned: Run = scheduler.learned_run(guidance)
        return replace(learned, call=call)
    steps = getattr(scheduler, "num_inference_steps", None) or len(times)
    return Run(
        type(scheduler).__name__,
        int(steps),
        settings_of(scheduler),
        times,
        _log_snrs(scheduler, times),
        guidance,
        call=call,
    )


def settings_of(scheduler: Any) -> str:
    """What of a scheduler's configuration decides its steps, as text."""
    config = getattr(scheduler, "config", {})
    given = {key: config.get(key) for key in _SETTINGS}
    told = [f"{key}={value}" for key, value in given.items() if value not in (None, False)]
    skipped = {*_SETTINGS, *_LEVELS, *(() if config.get("thresholding") else _THRESHOLDS)}
    for key, parameter in inspect.signature(type(scheduler).__init__).parameters.items():
        value = config.get(key, parameter.default)
        if key not in skipped and parameter.default is not parameter.empty and value != parameter.default:
            told.append(f"{key}={value}")
    return ", ".join(told) or "default"


def call_now(pipe: Any) -> Call:
    """What a pipeline is being called with that changes the run besides its guidance scale; see `Run.call`.

    They are read where the pipeline's own call stands, below the transformer that asks: what a pipeline has worked out
    itself by then, as a second guidance scale that follows the first, counts. Empty outside such a call.
    """
    values = arguments_now(pipe)
    found: dict[str, float | str | tuple[float, ...]] = {}
    for name, value in values.items():
        named = name == "eta" or any(word in name for word in _GUIDANCE_WORDS)
        if not named or name in ("guidance_scale", "decode_noise_scale"):
            continue
        if isinstance(value, (int, float, str)):
            found[name] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(part, (int, float)) for part in value):
            found[name] = tuple(value)
    return tuple(sorted(found.items()))


def guidance_now(pipe: Any) -> float | None:
    """The guidance scale that a pipeline is being called with; None where it does not say."""
    scale = (
        arguments_now(pipe).get("guidance_scale")
        if is_modular(pipe)
        else getattr(pipe, "_guidance_scale", None)
    )
    return float(scale) if isinstance(scale, (int, float)) else None


def resolution_now(pipe: Any) -> dict[str, int]:
    """`height`, `width` and `num_frames` of what a pipeline is making, as far as it speaks of them."""
    values = arguments_now(pipe)
    sizes = {name: values.get(name) for name in SIZES}
    return {name: int(value) for name, value in sizes.items() if isinstance(value, (int, float))}


def arguments_now(pipe: Any) -> dict[str, Any]:
    """What the innermost call of a pipeline that is being made has for its arguments."""
    code = getattr(inspect.unwrap(type(pipe).__call__), "__code__", None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    if frame is None or code is None:
        return {}
    values = frame.f_locals
    if is_modular(pipe):
        return given_now(pipe, values["state"])
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {name: values.get(name) for name in names}


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
    elif len(getattr(scheduler, "betas", ())) >= len(times) <= len(getattr(scheduler, "alphas", ())):  # IPNDM
        pairs = zip(scheduler.alphas.tolist(), scheduler.betas.tolist(), strict=True)
        values = [_ratio(alpha, beta) for alpha, beta in pairs][: len(times)]
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
