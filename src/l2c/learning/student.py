"""`Student`: a whole sampling run of a frozen model, differentiable in its forecasts and, if wanted, in its solver.

Nothing of the model is learned. The parameters are some thousand numbers: the coefficients of the forecasts, and for
a solver that is learned with them the noise levels of its evaluations and the weights of its steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from l2c.cache.cached_model import attach
from l2c.cache.clock import Clock
from l2c.cache.policy import Compute, StaticPolicy
from l2c.cache.values import Value
from l2c.layers import find_layers
from l2c.learning.coefficients import Coefficients
from l2c.learning.recompute import again_in_backward
from l2c.sampling.linear import LEARNED, LinearSolver, multistep_table
from l2c.sampling.loop import run_loop, sampling_loop
from l2c.sampling.sampler import Sampler
from l2c.sampling.solvers import Solver
from l2c.schedule.contract import Run
from l2c.schedule.forecast import Predictor, ReusePlan

LARGEST_SHIFT = 0.45
"""Of a noise level, in distances to the nearer neighbour: so they never pass each other."""
SHIFT_RATE, TABLE_RATE = 5.0, 0.25
"""Learning rates of noise levels and of solver weights, relative to that of the coefficients."""


class _LearnedPolicy(StaticPolicy):
    """static policy whose weights are tensors with a graph."""

    def __init__(self, plan: ReusePlan, num_evaluations: int, recompute: bool) -> None:
        super().__init__(plan, num_evaluations)
        self.recompute = recompute

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """See `StaticPolicy.output`."""
        if not self.recompute:
            return super().output(clock, layer, compute)
        return super().output(clock, layer, lambda: again_in_backward(compute))


class Student(nn.Module):
    """A run with a fixed mask and learned forecasts.

    With all parameters at zero, reused layers follow the polynomial through their last computed values over half
    log-SNR, and a solver that is free is DPM-Solver++(2M) at the noise levels of the sampler.

    Args:
        sampler: The frozen model and its run.
        compute: Where to compute, bool (evaluations, layers).
        history: How many computed values a forecast reads at most.
        order: Of the polynomial; `history - 1` if not given.
        free_solver: Learn the noise levels of the evaluations and the weights of the solver, too.
        bf16: Run the network in bfloat16.
        recompute: Keep only the inputs of computed layers for the backward pass.

    Attributes:
        forecasts: Their weights.
        shifts: With a free solver, how far each noise level is moved (evaluations,), in distances to its nearer
            neighbour. The first stays where it is, since the initial noise is given.
        corrections: With a free solver, what is added to its table of weights (evaluations + 1, evaluations + 1).

    Raises:
        ScheduleError: If a layer is reused before it was ever computed.
    """

    def __init__(
        self,
        sampler: Sampler,
        compute: Tensor,
        history: int,
        *,
        order: int | None = None,
        free_solver: bool = False,
        bf16: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self._sampler, self._bf16, self._recompute = sampler, bf16, recompute
        self._start = sampler.run
        self._table = find_layers(sampler.denoiser.model)
        self.compute = compute
        device, count = sampler.denoiser.device, len(compute)
        self.forecasts = Coefficients(compute, self._start.log_snrs, history, device, order)
        self._log_snrs = torch.tensor(self._start.log_snrs, dtype=torch.float64, device=device)
        self._room = _room(self._log_snrs)
        self.shifts = nn.Parameter(torch.zeros(count, device=device)) if free_solver else None
        self.corrections = (
            nn.Parameter(torch.zeros(count + 1, count + 1, device=device)) if free_solver else None
        )

    def groups(self) -> list[dict[str, object]]:
        """Parameters for an optimizer, with their learning rates relative to that of the coefficients."""
        groups: list[dict[str, object]] = [{"params": [self.forecasts.added], "rate": 1.0}]
        if self.shifts is not None:
            groups += [
                {"params": [self.shifts], "rate": SHIFT_RATE},
                {"params": [self.corrections], "rate": TABLE_RATE},
            ]
        return groups

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Final pictures (B, C, H, W) from unit normal noise (B, C, H, W) and labels (B,)."""
        sampler = self._sampler
        solver, timesteps, log_snrs = self._solver()
        policy = _LearnedPolicy(self.forecasts.plan(self._moved(log_snrs)), len(timesteps), self._recompute)
        model = sampler.denoiser.model
        with attach(model, self._table, policy) as cache, cache.run() as clock:

            def predict(evaluation: int, x: Tensor) -> Tensor:
                clock.tick(evaluation)
                with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bf16):
                    return sampler.guidance.predict(sampler.denoiser, x, timesteps[evaluation], labels, clock)

            return run_loop(sampling_loop(solver, noise), predict)

    @torch.no_grad()
    def result(self) -> tuple[Run, Predictor]:
        """The run and the predictor that have been learned so far."""
        solver, timesteps, log_snrs = self._solver()
        run = self._start
        if isinstance(solver, LinearSolver):
            run = replace(
                self._start,
                solver=LEARNED,
                spacing=LEARNED,
                timesteps=tuple(timesteps.tolist()),
                log_snrs=tuple(log_snrs.tolist()),
                weights=tuple(tuple(row) for row in solver.weights.tolist()),
            )
        return run, self.forecasts.predictor(self._moved(log_snrs))

    def _moved(self, log_snrs: Tensor) -> Tensor | None:
        return None if self.shifts is None else log_snrs

    def _solver(self) -> tuple[Solver, Tensor, Tensor]:
        """A fresh solver, and timesteps and half log-SNRs of its evaluations (evaluations,)."""
        if self.shifts is None or self.corrections is None:
            timesteps = torch.tensor(self._start.timesteps, device=self._log_snrs.device)
            return self._sampler.make_solver(), timesteps, self._log_snrs
        moved = self.shifts.clamp(-LARGEST_SHIFT, LARGEST_SHIFT)
        log_snrs = self._log_snrs + self._room * moved
        weights = multistep_table(log_snrs).float()
        free = torch.ones_like(weights).tril()
        free[0] = 0  # the initial noise is the first input
        timesteps = self._sampler.denoiser.noise_schedule.timesteps_of(log_snrs).float()
        return LinearSolver(self._start, weights + free * self.corrections), timesteps, log_snrs


def _room(log_snrs: Tensor) -> Tensor:
    """Distance of every noise level to its nearer neighbour (evaluations,); none for the first, which stays."""
    room = torch.zeros_like(log_snrs)
    gaps = log_snrs.diff()
    room[1:] = gaps
    room[1:-1] = torch.minimum(gaps[:-1], gaps[1:])
    return room
