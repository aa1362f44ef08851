"""Forward processes, solvers, guidance, and the sampling loop."""

from l2c.sampling import singlestep as _singlestep  # noqa: F401  (registers its solver, as `schedulers` does)
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.images import sample
from l2c.sampling.noise_schedule import SPACINGS, FlowSchedule, ForwardProcess, NoiseSchedule, data_prediction
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.schedulers import SchedulerSolver
from l2c.sampling.solvers import Solver, exponential_step, make_solver, register_solver, solver_names

__all__ = [
    "SPACINGS",
    "Denoiser",
    "FlowSchedule",
    "ForwardProcess",
    "Guidance",
    "NoiseSchedule",
    "Sampler",
    "SchedulerSolver",
    "Solver",
    "data_prediction",
    "exponential_step",
    "make_solver",
    "register_solver",
    "sample",
    "seeded_noise",
    "solver_names",
]
