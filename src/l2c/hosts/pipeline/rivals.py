"""Schedulers that stand in place of a pipeline's own: in fine steps, as known rivals, and as the start of learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from l2c.errors import ConfigError
from l2c.hosts.pipeline.learned_scheduler import LearnedScheduler, learned_from, prediction_of
from l2c.hosts.pipeline.runs import is_flow
from l2c.sampling.linear import start_levels
from l2c.schedule.contract import Run

_LOG_SNR = {
    "timestep_spacing": "linspace",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "euler_at_final": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_MULTISTEP = {**_LOG_SNR, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "use_lu_lambdas": True}
_DRAWS = ("Ancestral", "SDE", "LCM", "TCD", "DDPM", "Consistency")
"""Parts of the names of schedulers that draw noise as they go."""


def draws_noise(scheduler: Any) -> bool:
    """Whether a scheduler draws noise in its steps, so that it solves no equation that another one could solve."""
    config = getattr(scheduler, "config", {})
    return (
        any(part in type(scheduler).__name__ for part in _DRAWS)
        or "sde" in str(config.get("algorithm_type", ""))
        or bool(config.get("stochastic_sampling"))
    )


def _has_betas(scheduler: Any) -> bool:
    clips = scheduler.config.get("clip_sample") or scheduler.config.get("thresholding")
    return not is_flow(scheduler) and hasattr(scheduler, "alphas_cumprod") and not clips


def fine_scheduler(
    scheduler: Any, run: Run, steps: int, mu: float | None = None
) -> Any | Callable[[Run], Any] | None:
    """What solves a scheduler's equation in fine steps: a scheduler, or one of the run in so many steps; or None.

    With betas it is DPM-Solver++(3M), evenly spaced in log-SNR, as for native models. A flow is solved by
    DPM-Solver++(2M) at its own scheduler's noise levels in so many steps, which are shifted with the size of pictures
    from where they are at `mu`.
    """
    if draws_noise(scheduler) or scheduler.config.get("invert_sigmas"):
        return None
    if _has_betas(scheduler):
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler.from_config(scheduler.config, **{**_MULTISTEP, "solver_order": 3})
    if is_flow(scheduler) and len(set(run.log_snrs)) == len(run.log_snrs):
        return lambda fine: learned_from(scheduler, fine.log_snrs, mu=mu)
    return None


LEAST_LAST_STEP = 0.25
"""Least share that the last step of a flow has of the step before, in sigma, for levels that learning begins with."""


START_SHIFTS, HALF_SHIFTS = (1.0, 0.5, 1.5, 2.0, 3.0), (1.0, 1.5, 2.0)
"""Of the levels that learning begins with, beside the shift that a flow has itself: such as the scheduler has them, and
such as end with half a step. With few evaluations other levels are best than with many, and searching takes them only a
little way."""


def start_schedulers(
    scheduler: Any, run_of: Callable[[int], Run], steps: int, mu: float | None = None
) -> list[LearnedScheduler]:
    """The schedulers that a learned solver can begin as, each DPM-Solver++(2M), the likeliest first.

    With betas, levels are even in log-SNR, or between these and even timesteps without the last, see `start_levels`.
    For a flow, they are those of the scheduler, also shifted, or every second one of nearly twice as many, so that the
    last step to the picture is half as long: a fitted solver needs a shorter one than Euler's method, whose steps are
    alike (measured at 8 evaluations and shift 3, 48 pictures that nothing was fitted to: .146 and .132). Where the last
    evaluation is next to the picture, as of some schedulers, it is left out.

    Args:
        scheduler: The pipeline's own.
        run_of: Its run with a number of steps.
        steps: Evaluations.
        mu: Shift of the run, under dynamic shifting.

    Raises:
        ConfigError: If no solver can be learned in place of the scheduler.
    """
    name = type(scheduler).__name__
    run = run_of(steps)
    levels = run.log_snrs
    reasons = {
        "draws noise in its steps": draws_noise(scheduler),
        "runs from picture to noise (invert_sigmas)": scheduler.config.get("invert_sigmas"),
        "evaluates a noise level twice": is_flow(scheduler) and len(set(levels)) < len(levels),
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ConfigError(f"{name} {found[0]}; a solver is learned in place of a scheduler that does not")
    if is_flow(scheduler):
        sigmas = [1 / (1 + math.exp(level)) for level in levels]
        next_to_picture = steps > 1 and sigmas[-1] < LEAST_LAST_STEP * (sigmas[-2] - sigmas[-1])
        if next_to_picture:
            whole, half = run_of(steps + 1).log_snrs[:-1], run_of(2 * steps).log_snrs[:-1:2]
        else:
            whole, half = levels, run_of(2 * steps - 1).log_snrs[::2]
        kinds = [(whole, START_SHIFTS), (half, HALF_SHIFTS if len(half) == steps > 1 else ())]
        return [
            learned_from(scheduler, [levels[0], *(level - math.log(shift) for level in levels[1:])], mu=mu)
            for levels, shifts in kinds
            for shift in shifts
        ]
    if not _has_betas(scheduler):
        clips = [key for key in ("clip_sample", "thresholding") if scheduler.config.get(key)]
        said = f"{name} with {' and '.join(clips)}" if clips else name
        raise ConfigError(
            "a solver is learned in place of a scheduler of a flow, or one with betas that clips nothing, not of "
            f"{said}"
        )
    table = 0.5 * (scheduler.alphas_cumprod.double() / (1 - scheduler.alphas_cumprod.double())).log()
    count, last, kind = len(run.log_snrs), len(table) - 1, prediction_of(scheduler)
    even = np.linspace(float(table[-1]), float(table[0]), count).tolist()
    in_time = table[np.linspace(last, 0, count + 1).round()[:-1].astype(int)].tolist()
    starts = start_levels(even, in_time)
    return [learned_from(scheduler, levels, prediction_type=kind) for levels in starts]


SHIFTS = (1.0, 3.0, 5.0)
"""Of the noise levels of flows, among which the best of plain solvers is looked for."""


def known_schedulers(
    scheduler: Any, run: Run, steps: int, mu: float | None = None
) -> Iterator[tuple[str, Any, int]]:
    """Known solvers with about as many evaluations, the scheduler among them: name, scheduler, and steps to ask for.

    Args:
        scheduler: The pipeline's own.
        run: Its run with so many steps.
        steps: Evaluations.
        mu: Shift of the run, under dynamic shifting.
    """
    if not isinstance(scheduler, LearnedScheduler):
        yield type(scheduler).__name__, scheduler, steps
    if draws_noise(scheduler) or scheduler.config.get("invert_sigmas"):
        return
    if is_flow(scheduler):
        yield from _known_of_flow(scheduler, run, steps, mu)
    elif _has_betas(scheduler):
        yield from _known_of_betas(scheduler, steps)


def _known_of_flow(scheduler: Any, run: Run, steps: int, mu: float | None) -> Iterator[tuple[str, Any, int]]:
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    if len(set(run.log_snrs)) == len(run.log_snrs):
        yield "dpmsolver++, own levels", learned_from(scheduler, run.log_snrs, mu=mu), steps
    if scheduler.config.get("use_dynamic_shifting"):
        return
    own = scheduler.config.get("shift") or scheduler.config.get("flow_shift") or 1.0
    for shift in dict.fromkeys((own, *SHIFTS)):
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        yield f"unipc, shift {shift:g}", UniPCMultistepScheduler(**flow), steps
        yield f"dpmsolver++, shift {shift:g}", DPMSolverMultistepScheduler(**flow), steps
        yield f"euler, shift {shift:g}", FlowMatchEulerDiscreteScheduler(shift=shift), steps
        if steps > 1:
            yield f"heun, shift {shift:g}", FlowMatchHeunDiscreteScheduler(shift=shift), (steps + 1) // 2


def _known_of_betas(scheduler: Any, steps: int) -> Iterator[tuple[str, Any, int]]:
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    for name, order in (("dpmsolver++, logsnr", 2), ("dpmsolver++3, logsnr", 3)):
        options = {**_MULTISTEP, "solver_order": order}
        yield name, DPMSolverMultistepScheduler.from_config(scheduler.config, **options), steps
    options = {**_LOG_SNR, "use_exponential_sigmas": True}
    yield "unipc, logsnr", UniPCMultistepScheduler.from_config(scheduler.config, **options), steps
