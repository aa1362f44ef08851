"""Where the noisy inputs of learning come from: loops along the model's own trajectories, or from real images."""

from __future__ import annotations

from torch import Tensor

from l2c.sampling.loop import SamplingLoop
from l2c.sampling.noise_schedule import ForwardProcess, data_prediction
from l2c.sampling.sampler import Sampler
from l2c.sampling.solvers import evaluations_per_step, exponential_step


def image_loop(sampler: Sampler, images: Tensor, noise: Tensor, evaluation: int) -> SamplingLoop:
    """From noised images, by one solver step, to `evaluation`.

    The step is the two evaluations of DPM-Solver singlestep where that is the solver, and a DDIM step for every
    other, since a multistep solver has no history at a noised image.

    Args:
        sampler: Tells the solver.
        images: Clean images (B, C, H, W).
        noise: Unit normal noise of the same shape.
        evaluation: Where the loop ends; 1 or more, and the start of an outer step for singlestep.

    Source: arXiv 2406.01733, section 3.3.
    """
    solver = sampler.make_solver()
    log_snrs = solver.run.log_snrs
    per_step = evaluations_per_step(sampler.solver)
    first = evaluation - per_step
    process = sampler.denoiser.noise_schedule
    alpha, sigma = process.alpha_sigma(log_snrs[first])
    x = alpha * images + sigma * noise
    for index in range(first, evaluation):
        predicted = yield index, x
        if per_step > 1:
            x = solver.step(index, x, predicted)
        else:
            x = ddim_step(x, predicted, log_snrs[index], log_snrs[index + 1], process)
    yield evaluation, x
    return x


def ddim_step(
    x: Tensor, prediction: Tensor, log_snr: float, target: float, process: ForwardProcess
) -> Tensor:
    """One deterministic DDIM step between two half log-SNRs.

    Source: arXiv 2010.02502, equation 12 with sigma = 0.
    """
    alpha, sigma = process.alpha_sigma(log_snr)
    data = data_prediction(x, prediction, alpha, sigma, process.prediction_type)
    return exponential_step(x, data, log_snr, target, process)
