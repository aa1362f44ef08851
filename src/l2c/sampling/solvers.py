"""Solvers: from noise to a sample by asking for one model evaluation after another; and all of them by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from l2c.documents import Count, Whole, check_value
from l2c.errors import check_new, known
from l2c.models.config import NUM_TRAIN_TIMESTEPS
from l2c.sampling.noise_schedule import SPACINGS, FlowSchedule, ForwardProcess, NoiseSchedule
from l2c.schedule.contract import Run


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

    def step(self, evaluation: int, x: Tensor, prediction: Tensor) -> Tensor:
        """Next sample from the current one and what the network predicts at it: noise, v, data or velocity."""
        ...


MakeSolver = Callable[[ForwardProcess, str, int, str], Solver]
"""(forward process, name, number of model evaluations, spacing) -> a fresh solver."""


@dataclass(frozen=True)
class _Registered:
    make: MakeSolver
    evaluations_per_step: int


_SOLVERS: dict[str, _Registered] = {}


def register_solver(name: str, make: MakeSolver, *, evaluations_per_step: int = 1) -> None:
    """Adds a solver, which can then be named wherever a solver is.

    Every sample must be a fixed linear combination of the noise and the predictions, as all solvers of ordinary
    differential equations at fixed noise levels are; so it can be compiled, too.

    Args:
        name: Its name.
        make: Makes a fresh solver from the forward process, the name, the number of evaluations and the spacing. It
            says beforehand, in `Solver.run`, where the model will be evaluated; `data_prediction` tells what a
            prediction means.
        evaluations_per_step: Model evaluations in one step; its runs have at least as many.

    Raises:
        ConfigError: If there is a solver of that name, or a step has no evaluation.
    """
    check_new("solver", name, _SOLVERS)
    check_value("evaluations_per_step", evaluations_per_step, Count)
    _SOLVERS[name] = _Registered(make, evaluations_per_step)


def solver_names() -> tuple[str, ...]:
    """Names of all solvers, sorted.

    >>> "dpmsolver++" in solver_names()
    True
    """
    return tuple(sorted(_SOLVERS))


def evaluations_per_step(solver: str) -> int:
    """Model evaluations in one step of a solver, by its name; 1 for those that have none."""
    return _SOLVERS[solver].evaluations_per_step if solver in _SOLVERS else 1


def make_solver(
    name: str, steps: int, spacing: str = "linspace", noise_schedule: ForwardProcess | None = None
) -> Solver:
    """A fresh solver for one run.

    Args:
        name: One of `solver_names()`.
        steps: Number of model evaluations.
        spacing: `linspace`, `trailing`, `karras` or `logsnr`, with diffusers' meaning; a flow takes the first or the
            last.
        noise_schedule: The forward process; linear betas and noise predictions by default.

    Raises:
        ConfigError: If the name or spacing is unknown or the number of steps is out of range.

    >>> make_solver("ddim", 4).run.timesteps
    (999.0, 666.0, 333.0, 0.0)
    """
    known("solver", name, solver_names())
    known("spacing", spacing, SPACINGS)
    process = noise_schedule or NoiseSchedule()
    what = "a flow" if isinstance(process, FlowSchedule) else f"a {type(process).__name__}"
    known(f"spacing of {what}", spacing, process.spacings)
    allowed = Annotated[Whole, Field(ge=evaluations_per_step(name), le=NUM_TRAIN_TIMESTEPS)]
    check_value(f"the number of steps of {name}", steps, allowed)
    return _SOLVERS[name].make(process, name, steps, spacing)


def exponential_step(
    x: Tensor, data: Tensor, log_snr: float, target: float, noise_schedule: ForwardProcess | None = None
) -> Tensor:
    """Solution at `target` if the data prediction is constant from `log_snr` on.

    Args:
        x: Sample at `log_snr`.
        data: Prediction of clean data there.
        log_snr: Half log-SNR where the step begins.
        target: Half log-SNR where it ends; infinity is clean data.
        noise_schedule: The forward process; a variance-preserving one by default.
    """
    process = noise_schedule or NoiseSchedule()
    (_, sigma), (alpha_target, sigma_target) = process.alpha_sigma(log_snr), process.alpha_sigma(target)
    return (sigma_target / sigma) * x - alpha_target * math.expm1(log_snr - target) * data
