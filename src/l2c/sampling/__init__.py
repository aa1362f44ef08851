"""Noise schedules, solvers, guidance, and the sampling loop."""

from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.images import sample
from l2c.sampling.noise_schedule import NoiseSchedule
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.solvers import SOLVERS, SPACINGS, Solver, make_solver

__all__ = [
    "SOLVERS",
    "SPACINGS",
    "Denoiser",
    "Guidance",
    "NoiseSchedule",
    "Sampler",
    "Solver",
    "make_solver",
    "sample",
    "seeded_noise",
]
