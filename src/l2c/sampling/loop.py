"""The one loop over the evaluations of a run, apart from how predictions are made.

A loop is a generator of (evaluation, network input) that is sent what is predicted there and returns where it ends.
So whoever drives it decides how predictions are made: sampling guides and caches, learning compares.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from torch import Tensor

from l2c.sampling.solvers import Solver

SamplingLoop = Generator[tuple[int, Tensor], Tensor, Tensor]


def sampling_loop(solver: Solver, noise: Tensor) -> SamplingLoop:
    """The whole run of a fresh solver from unit normal noise (B, C, H, W) to samples (B, C, H, W)."""
    x = noise * solver.init_scale
    for evaluation in range(len(solver.run.timesteps)):
        predicted = yield evaluation, solver.scale_input(x, evaluation)
        x = solver.step(evaluation, x, predicted)
    return x


def run_loop(loop: SamplingLoop, predict: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Takes a loop to its end with the predictions of a function (evaluation, network input) -> prediction.

    Returns:
        Where the loop ends.
    """
    evaluation, x = next(loop)
    while True:
        predicted = predict(evaluation, x)
        try:
            evaluation, x = loop.send(predicted)
        except StopIteration as stop:
            end: Tensor = stop.value
            return end
