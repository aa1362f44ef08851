"""Solvers that are diffusers' schedulers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.models.config import NUM_TRAIN_TIMESTEPS
from l2c.sampling.noise_schedule import FlowSchedule, ForwardProcess, NoiseSchedule
from l2c.sampling.solvers import MakeSolver, Solver, register_solver
from l2c.schedule.contract import Run


class SchedulerSolver:
    """A diffusers scheduler as a solver.

    Args:
        scheduler: Scheduler on which `set_timesteps` has been called. A flow's must begin below pure noise, whose
            log-SNR is minus infinity.
        name: Name of the solver that it stands for.
        steps: Number of model evaluations.
        spacing: Spacing of the evaluations.
    """

    def __init__(self, scheduler: Any, name: str, steps: int, spacing: str) -> None:
        self.scheduler = scheduler
        scheduler.set_begin_index(0)
        sigmas = [float(sigma) for sigma in scheduler.sigmas[: len(scheduler.timesteps)]]
        if scheduler.config.get("use_flow_sigmas") or not hasattr(scheduler, "scale_model_input"):
            # A scheduler's own timesteps may be whole numbers; its sigmas are float32.
            timesteps = tuple(round(NUM_TRAIN_TIMESTEPS * sigma, 4) for sigma in sigmas)
            log_snrs = tuple(math.log((1 - sigma) / sigma) for sigma in sigmas)
        else:
            timesteps = tuple(float(t) for t in scheduler.timesteps)
            log_snrs = tuple(-math.log(sigma) for sigma in sigmas)
        self.run = Run(name, steps, spacing, timesteps, log_snrs)
        self.init_scale = float(getattr(scheduler, "init_noise_sigma", 1.0))

    def scale_input(self, x: Tensor, evaluation: int) -> Tensor:
        """See `Solver.scale_input`."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return x
        scaled: Tensor = self.scheduler.scale_model_input(x, self.scheduler.timesteps[evaluation])
        return scaled

    def step(self, evaluation: int, x: Tensor, prediction: Tensor) -> Tensor:
        """See `Solver.step`."""
        timestep = self.scheduler.timesteps[evaluation]
        stepped: Tensor = self.scheduler.step(prediction, timestep, x, return_dict=False)[0]
        return stepped


def scheduler_options(process: ForwardProcess, spacing: str, logsnr_option: str) -> dict[str, Any]:
    """What diffusers' schedulers are made with for a forward process.

    Args:
        process: A `NoiseSchedule` or a `FlowSchedule`.
        spacing: Spacing of the evaluations.
        logsnr_option: The scheduler's option for even steps in log-SNR.

    Raises:
        ConfigError: If diffusers has no such process.
    """
    options: dict[str, Any] = {
        "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
        "prediction_type": process.prediction_type,
    }
    if isinstance(process, FlowSchedule):
        return {**options, "use_flow_sigmas": True}
    if not isinstance(process, NoiseSchedule):
        raise ConfigError(f"diffusers' schedulers know no {type(process).__name__}; register a solver for it")
    options["beta_start"], options["beta_end"] = process.beta_range
    options["beta_schedule"] = process.beta_schedule
    options["timestep_spacing"] = "trailing" if spacing == "trailing" else "linspace"
    if spacing in ("karras", "logsnr"):
        options["use_karras_sigmas" if spacing == "karras" else logsnr_option] = True
    return options


def scheduler_solver(scheduler: Any, process: ForwardProcess, name: str, steps: int, spacing: str) -> Solver:
    """The solver that a new scheduler is, with the evaluations of the process."""
    scheduler.set_timesteps(steps)
    if isinstance(process, FlowSchedule):
        # diffusers has no even steps in log-SNR for flows, and some of its schedulers round the timesteps.
        sigmas = _flow_sigmas(process, steps, spacing)
        scheduler.sigmas = torch.tensor([*sigmas, 0.0])
        scheduler.timesteps = NUM_TRAIN_TIMESTEPS * scheduler.sigmas[:-1]
    return SchedulerSolver(scheduler, name, steps, spacing)


def _flow_sigmas(process: FlowSchedule, steps: int, spacing: str) -> list[float]:
    """Where a flow is evaluated before it ends at 0; even steps are those of diffusers' `use_flow_sigmas`."""
    last = NUM_TRAIN_TIMESTEPS - 1
    if spacing == "linspace":
        return [last / NUM_TRAIN_TIMESTEPS * (steps - i) / steps for i in range(steps)]
    return [process.alpha_sigma(s)[1] for s in np.linspace(process.log_snr(last), process.log_snr(0), steps)]


def _ddim(process: ForwardProcess, name: str, steps: int, spacing: str) -> Solver:
    """DDIM, which is DPM-Solver++ of order 1 (arXiv 2206.00927, section 4.1).

    diffusers' `DDIMScheduler` steps back by a fixed stride that is not the distance of its `linspace` timesteps,
    so its multistep scheduler at order 1 serves, at the timesteps that DiT samples: `round(linspace(0, 999, N))`.
    """
    from diffusers import DPMSolverMultistepScheduler

    options = scheduler_options(process, spacing, "use_lu_lambdas")
    scheduler = DPMSolverMultistepScheduler(solver_order=1, **options)
    if spacing == "linspace" and not isinstance(process, FlowSchedule):
        times = np.linspace(0, NUM_TRAIN_TIMESTEPS - 1, steps).round()[::-1] if steps > 1 else [999]
        scheduler.set_timesteps(timesteps=[int(t) for t in times])
        return SchedulerSolver(scheduler, name, steps, spacing)
    return scheduler_solver(scheduler, process, name, steps, spacing)


def _dpm_multistep(order: int) -> MakeSolver:
    def make(process: ForwardProcess, name: str, steps: int, spacing: str) -> Solver:
        from diffusers import DPMSolverMultistepScheduler

        options = scheduler_options(process, spacing, "use_lu_lambdas")
        scheduler = DPMSolverMultistepScheduler(solver_order=order, **options)
        return scheduler_solver(scheduler, process, name, steps, spacing)

    return make


def _unipc(process: ForwardProcess, name: str, steps: int, spacing: str) -> Solver:
    from diffusers import UniPCMultistepScheduler

    options = scheduler_options(process, spacing, "use_exponential_sigmas")
    scheduler = UniPCMultistepScheduler(final_sigmas_type="zero", **options)
    return scheduler_solver(scheduler, process, name, steps, spacing)


def _euler(process: ForwardProcess, name: str, steps: int, spacing: str) -> Solver:
    """Euler over sigma / alpha, or over the s of a flow, where it is DDIM."""
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    if isinstance(process, FlowSchedule):
        flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS)
        return scheduler_solver(flow, process, name, steps, spacing)
    options = scheduler_options(process, spacing, "use_exponential_sigmas")
    scheduler = EulerDiscreteScheduler(final_sigmas_type="zero", **options)
    return scheduler_solver(scheduler, process, name, steps, spacing)


register_solver("ddim", _ddim)
register_solver("dpmsolver++", _dpm_multistep(2))
register_solver("dpmsolver++3", _dpm_multistep(3))
register_solver("euler", _euler)
register_solver("unipc", _unipc)
