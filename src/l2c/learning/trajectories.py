"""Where the noisy inputs of learning come from: the model's own trajectories, or real images.

A walk is a generator of (evaluation, network input) that is sent the noise predicted there. So whoever drives it
decides how predictions are made, and no prediction is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from l2c.sampling.guidance import Guidance
from l2c.sampling.noise_schedule import alpha_sigma
from l2c.sampling.sampler import Sampler
from l2c.sampling.solvers import SinglestepSolver, exponential_step

Walk = Generator[tuple[int, Tensor], Tensor, None]


def sampled_walk(sampler: Sampler, noise: Tensor) -> Walk:
    """The whole run of a sampler from unit normal noise (B, C, H, W)."""
    solver = sampler.make_solver()
    x = noise * solver.init_scale
    for evaluation in range(len(solver.run.timesteps)):
        predicted = yield evaluation, solver.scale_input(x, evaluation)
        x = solver.step(evaluation, x, predicted)


def guided_walk(walk: Walk, guidance: Guidance) -> Walk:
    """The same walk, which asks for the conditional and the unconditional prediction in one batch (2 B, ...)."""
    evaluation, x = next(walk)
    while True:
        predicted = yield evaluation, torch.cat([x, x])
        try:
            evaluation, x = walk.send(guidance.combine(*predicted.chunk(2)))
        except StopIteration:
            return


def drive(walk: Walk, predict: Callable[[int, Tensor], Tensor]) -> None:
    """Takes a walk to its end with the predictions of a function (evaluation, network input) -> noise."""
    evaluation, x = next(walk)
    while True:
        predicted = predict(evaluation, x)
        try:
            evaluation, x = walk.send(predicted)
        except StopIteration:
            return


def steps_before(solver: str) -> int:
    """Evaluations of the solver step that leads from a noised image to the evaluation that is learned."""
    return 2 if solver == "dpmsolver-singlestep" else 1


def image_walk(sampler: Sampler, images: Tensor, noise: Tensor, evaluation: int) -> Walk:
    """From noised images, by one solver step, to `evaluation`.

    The step is the two evaluations of DPM-Solver singlestep where that is the solver, and a DDIM step for every
    other, since a multistep solver has no history at a noised image.

    Args:
        sampler: Tells the solver.
        images: Clean images (B, C, H, W).
        noise: Unit normal noise of the same shape.
        evaluation: Where the walk ends; 1 or more, and the start of an outer step for singlestep.

    Source: arXiv 2406.01733, section 3.3.
    """
    solver = sampler.make_solver()
    log_snrs = solver.run.log_snrs
    singlestep = isinstance(solver, SinglestepSolver)
    first = evaluation - steps_before(sampler.solver)
    alpha, sigma = alpha_sigma(log_snrs[first])
    x = alpha * images + sigma * noise
    for index in range(first, evaluation):
        predicted = yield index, x
        if singlestep:
            x = solver.step(index, x, predicted)
        else:
            x = ddim_step(x, predicted, log_snrs[index], log_snrs[index + 1])
    yield evaluation, x


def ddim_step(x: Tensor, noise: Tensor, log_snr: float, target: float) -> Tensor:
    """One deterministic DDIM step between two half log-SNRs.

    Source: arXiv 2010.02502, equation 12 with sigma = 0.
    """
    alpha, sigma = alpha_sigma(log_snr)
    return exponential_step(x, (x - sigma * noise) / alpha, log_snr, target)


def random_labels(generator: torch.Generator, count: int, num_classes: int) -> Tensor:
    """Class labels (count,) drawn evenly."""
    return torch.randint(num_classes, (count,), generator=generator)
