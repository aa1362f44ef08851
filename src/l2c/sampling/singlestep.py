"""DPM-Solver singlestep.

It is written here because diffusers' takes its intermediate points from the grid of timesteps and not, as the U-ViT of
the L2C paper, at the middle of the outer step in log-SNR.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from l2c.models.config import NUM_TRAIN_TIMESTEPS
from l2c.sampling.noise_schedule import ForwardProcess, data_prediction
from l2c.sampling.solvers import exponential_step, register_solver
from l2c.schedule.contract import Run


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

    def __init__(self, noise_schedule: ForwardProcess, name: str, steps: int, spacing: str) -> None:
        num_outer = (steps + 1) // 2
        self._process = noise_schedule
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

    def step(self, evaluation: int, x: Tensor, prediction: Tensor) -> Tensor:
        """See `Solver.step`."""
        process, log_snr = self._process, self.run.log_snrs[evaluation]
        alpha, sigma = process.alpha_sigma(log_snr)
        data = data_prediction(x, prediction, alpha, sigma, process.prediction_type)
        end = self._outer[evaluation // 2 + 1]
        if evaluation % 2 == 0:
            self._start = (x, data)
            middle = evaluation + 1
            target = self.run.log_snrs[middle] if middle < len(self.run.log_snrs) else end
            return exponential_step(x, data, log_snr, target, process)
        assert self._start is not None
        x_start, data_start = self._start
        slope = data - data_start  # over half of the outer step, so twice that over the whole: (1 / 2 r1) = 1
        return exponential_step(x_start, data_start + slope, self._outer[evaluation // 2], end, process)


def _outer_log_snrs(noise_schedule: ForwardProcess, num_steps: int, spacing: str) -> list[float]:
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


register_solver("dpmsolver-singlestep", SinglestepSolver, evaluations_per_step=2)
