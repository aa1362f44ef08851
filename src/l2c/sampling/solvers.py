"""Solvers: from noise to a sample by asking for one model evaluation after another.

The multistep solvers are diffusers' schedulers. DPM-Solver singlestep is written here, because diffusers' takes
its intermediate points from the grid of timesteps and not, as the U-ViT of the L2C paper, at the middle of the
outer step in log-SNR.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from l2c.errors import ConfigError
from l2c.models.config import NUM_TRAIN_TIMESTEPS
from l2c.sampling.noise_schedule import NoiseSchedule, alpha_sigma
from l2c.schedule.contract import Run

SPACINGS = ("linspace", "trailing", "karras", "logsnr")


class Solver(Protocol):
    """One run of a solver; make a new one for every run.

    Attributes:
        run: What it does: evaluations with their timesteps and log-SNRs.
        init_scale: Standard deviation of the initial sample, as a factor on unit noise.
    """

    run: Run
    init_scale: float

    def scale_input(self, x: Tensor, evaluation: int) -> Tensor:
        """What the network is given at an evaluation."""
        ...

    def step(self, evaluation: int, x: Tensor, noise: Tensor) -> Tensor:
        """Next sample from the current one and the noise that the network predicts at it."""
        ...


class SchedulerSolver:
    """A diffusers scheduler as a solver.

    Args:
        scheduler: Scheduler on which `set_timesteps` has been called.
        name: Name of the solver that it stands for.
        steps: Number of model evaluations.
        spacing: Spacing of the evaluations.
    """

    def __init__(self, scheduler: Any, name: str, steps: int, spacing: str) -> None:
        self.scheduler = scheduler
        scheduler.set_begin_index(0)
        timesteps = tuple(float(t) for t in scheduler.timesteps)
        log_snrs = tuple(-math.log(float(sigma)) for sigma in scheduler.sigmas[: len(timesteps)])
        self.run = Run(name, steps, spacing, timesteps, log_snrs)
        self.init_scale = float(scheduler.init_noise_sigma)

    def scale_input(self, x: Tensor, evaluation: int) -> Tensor:
        """See `Solver.scale_input`."""
        scaled: Tensor = self.scheduler.scale_model_input(x, self.scheduler.timesteps[evaluation])
        return scaled

    def step(self, evaluation: int, x: Tensor, noise: Tensor) -> Tensor:
        """See `Solver.step`."""
        timestep = self.scheduler.timesteps[evaluation]
        stepped: Tensor = self.scheduler.step(noise, timestep, x, return_dict=False)[0]
        return stepped


class SinglestepSolver:
    """DPM-Solver++ singlestep of order 2: two evaluations per outer step, at its start and at its middle.

    Outer times go from the last training timestep to the first, where the run ends. With an odd number of
    evaluations, the last outer step is of order 1.

    Args:
        noise_schedule: The forward process.
        name: Name of the solver, as the run records it.
        steps: Number of model evaluations (NFE).
        spacing: Spacing of the outer times.

    Source: arXiv 2211.01095, algorithm 1, with r1 = 1/2.
    """

    init_scale = 1.0

    def __init__(self, noise_schedule: NoiseSchedule, name: str, steps: int, spacing: str) -> None:
        num_outer = (steps + 1) // 2
        self._outer = _outer_log_snrs(noise_schedule, num_outer, spacing)
        points: list[float] = []
        for start, end in zip(self._outer[:-1], self._outer[1:], strict=True):
            points += [start, 0.5 * (start + end)]
        points = points[:steps]
        self.run = Run(name, steps, spacing, tuple(map(noise_schedule.timestep, points)), tuple(points))
        self._start: tuple[Tensor, Tensor] | None = None  # sample and data prediction at the outer start

    def scale_input(self, x: Tensor, evaluation: int) -> Tensor:
        """See `Solver.scale_input`."""
        return x

    def step(self, evaluation: int, x: Tensor, noise: Tensor) -> Tensor:
        """See `Solver.step`."""
        log_snr = self.run.log_snrs[evaluation]
        alpha, sigma = alpha_sigma(log_snr)
        data = (x - sigma * noise) / alpha
        end = self._outer[evaluation // 2 + 1]
        if evaluation % 2 == 0:
            self._start = (x, data)
            middle = evaluation + 1
            target = self.run.log_snrs[middle] if middle < len(self.run.log_snrs) else end
            return exponential_step(x, data, log_snr, target)
        assert self._start is not None
        x_start, data_start = self._start
        slope = data - data_start  # over half of the outer step, so twice that over the whole: (1 / 2 r1) = 1
        return exponential_step(x_start, data_start + slope, self._outer[evaluation // 2], end)


def exponential_step(x: Tensor, data: Tensor, log_snr: float, target: float) -> Tensor:
    """Solution at `target` if the data prediction is constant from `log_snr` on."""
    (_, sigma), (alpha_target, sigma_target) = alpha_sigma(log_snr), alpha_sigma(target)
    return (sigma_target / sigma) * x - alpha_target * math.expm1(log_snr - target) * data


def _outer_log_snrs(noise_schedule: NoiseSchedule, num_steps: int, spacing: str) -> list[float]:
    """Half log-SNRs of the `num_steps + 1` outer times of a singlestep solver, noisiest first."""
    last = NUM_TRAIN_TIMESTEPS - 1
    first_snr, last_snr = noise_schedule.log_snr(last), noise_schedule.log_snr(0)
    if spacing == "linspace":
        return [noise_schedule.log_snr(t) for t in np.linspace(last, 0, num_steps + 1)]
    if spacing == "trailing":
        times = np.arange(NUM_TRAIN_TIMESTEPS, 0, -NUM_TRAIN_TIMESTEPS / num_steps)[:num_steps] - 1
        return [*(noise_schedule.log_snr(t) for t in times), last_snr]
    if spacing == "logsnr":
        return [float(s) for s in np.linspace(first_snr, last_snr, num_steps + 1)]
    rho = 7.0  # karras: arXiv 2206.00364, equation 5
    roots = np.linspace(math.exp(-first_snr / rho), math.exp(-last_snr / rho), num_steps + 1)
    return [float(-rho * math.log(root)) for root in roots]


def _scheduler_options(noise_schedule: NoiseSchedule, spacing: str, logsnr_option: str) -> dict[str, Any]:
    start, end = noise_schedule.beta_range
    options: dict[str, Any] = {
        "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": noise_schedule.beta_schedule,
        "prediction_type": noise_schedule.prediction_type,
        "timestep_spacing": "trailing" if spacing == "trailing" else "linspace",
    }
    if spacing in ("karras", "logsnr"):
        options["use_karras_sigmas" if spacing == "karras" else logsnr_option] = True
    return options


def _ddim(noise_schedule: NoiseSchedule, name: str, steps: int, spacing: str) -> Solver:
    """DDIM, which is DPM-Solver++ of order 1 (arXiv 2206.00927, section 4.1).

    diffusers' `DDIMScheduler` steps back by a fixed stride that is not the distance of its `linspace` timesteps,
    so its multistep scheduler at order 1 serves, at the timesteps that DiT samples: `round(linspace(0, 999, N))`.
    """
    from diffusers import DPMSolverMultistepScheduler

    options = _scheduler_options(noise_schedule, spacing, "use_lu_lambdas")
    scheduler = DPMSolverMultistepScheduler(solver_order=1, **options)
    if spacing == "linspace":
        times = np.linspace(0, NUM_TRAIN_TIMESTEPS - 1, steps).round()[::-1] if steps > 1 else [999]
        scheduler.set_timesteps(timesteps=[int(t) for t in times])
    else:
        scheduler.set_timesteps(steps)
    return SchedulerSolver(scheduler, name, steps, spacing)


def _dpm_multistep(order: int) -> Callable[[NoiseSchedule, str, int, str], Solver]:
    def make(noise_schedule: NoiseSchedule, name: str, steps: int, spacing: str) -> Solver:
        from diffusers import DPMSolverMultistepScheduler

        options = _scheduler_options(noise_schedule, spacing, "use_lu_lambdas")
        scheduler = DPMSolverMultistepScheduler(solver_order=order, **options)
        scheduler.set_timesteps(steps)
        return SchedulerSolver(scheduler, name, steps, spacing)

    return make


def _unipc(noise_schedule: NoiseSchedule, name: str, steps: int, spacing: str) -> Solver:
    from diffusers import UniPCMultistepScheduler

    options = _scheduler_options(noise_schedule, spacing, "use_exponential_sigmas")
    scheduler = UniPCMultistepScheduler(final_sigmas_type="zero", **options)
    scheduler.set_timesteps(steps)
    return SchedulerSolver(scheduler, name, steps, spacing)


def _euler(noise_schedule: NoiseSchedule, name: str, steps: int, spacing: str) -> Solver:
    from diffusers import EulerDiscreteScheduler

    options = _scheduler_options(noise_schedule, spacing, "use_exponential_sigmas")
    scheduler = EulerDiscreteScheduler(final_sigmas_type="zero", **options)
    scheduler.set_timesteps(steps)
    return SchedulerSolver(scheduler, name, steps, spacing)


_SOLVERS: dict[str, Callable[[NoiseSchedule, str, int, str], Solver]] = {
    "ddim": _ddim,
    "dpmsolver++": _dpm_multistep(2),
    "dpmsolver++3": _dpm_multistep(3),
    "dpmsolver-singlestep": SinglestepSolver,
    "euler": _euler,
    "unipc": _unipc,
}
SOLVERS = tuple(_SOLVERS)


def evaluations_per_step(solver: str) -> int:
    """Model evaluations in one step of a solver, by its name."""
    return 2 if solver == "dpmsolver-singlestep" else 1


def make_solver(
    name: str, steps: int, spacing: str = "linspace", noise_schedule: NoiseSchedule | None = None
) -> Solver:
    """A fresh solver for one run.

    Args:
        name: One of `SOLVERS`.
        steps: Number of model evaluations.
        spacing: `linspace`, `trailing`, `karras` or `logsnr`, with diffusers' meaning.
        noise_schedule: The forward process; linear betas by default.

    Raises:
        ConfigError: If the name or spacing is unknown or the number of steps is out of range.

    >>> make_solver("ddim", 4).run.timesteps
    (999.0, 666.0, 333.0, 0.0)
    """
    if name not in _SOLVERS:
        near = difflib.get_close_matches(name.lower(), _SOLVERS, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown solver '{name}'; {hint}choose one of {', '.join(_SOLVERS)}")
    if spacing not in SPACINGS:
        raise ConfigError(f"unknown spacing '{spacing}'; choose one of {', '.join(SPACINGS)}")
    least = evaluations_per_step(name)
    if not least <= steps <= NUM_TRAIN_TIMESTEPS:
        raise ConfigError(f"{name} takes from {least} to {NUM_TRAIN_TIMESTEPS} steps, got {steps}")
    return _SOLVERS[name](noise_schedule or NoiseSchedule(), name, steps, spacing)
