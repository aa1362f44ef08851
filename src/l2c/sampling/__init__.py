"""Forward processes, solvers, guidance, and the sampling loop."""

from l2c.sampling import schedulers as _schedulers  # noqa: F401  (registers its solvers)
from l2c.sampling import singlestep as _singlestep  # noqa: F401
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.images import sample
from l2c.sampling.noise_schedule import SPACINGS, FlowSchedule, NoiseSchedule
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.solvers import Solver, make_solver, register_solver, solver_names

__all__ = [
    "SPACINGS",
    "Denoiser",
    "FlowSchedule",
    "Guidance",
    "NoiseSchedule",
    "Sampler",
    "Solver",
    "make_solver",
    "register_solver",
    "sample",
    "seeded_noise",
    "solver_names",
]
