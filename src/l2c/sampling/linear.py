"""Solvers as tables of weights: every network input is a fixed linear combination of the noise and the predictions.

All solvers here have that form at fixed noise levels, whatever their order, so a table can hold any of them, and its
entries can be learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.sampling.loop import run_loop, sampling_loop
from l2c.sampling.noise_schedule import alphas_sigmas as alphas_sigmas
from l2c.sampling.noise_schedule import data_prediction
from l2c.sampling.solvers import Solver
from l2c.schedule.contract import Run
from l2c.schedule.scales import MOST_SCALES, scales_in, weigh_terms

LEARNED = "learned"
"""Name of solvers whose table was learned."""


RowFit = Callable[[int, Sequence[Tensor], Tensor | None], Tensor]
"""(evaluation, initial noise and predictions so far, powers of the guidance scales) -> weights (scales, terms), or one
after another those for each power (powers scales, terms), that make the next network input."""


def check_table(rows: Sequence[Sequence[float]] | Tensor, evaluations: int, degree: int = 0) -> None:
    """Checks the size of the table of a `LinearSolver`.

    Raises:
        ConfigError: If it is not one of so many evaluations.
    """
    if not scales_in(rows, evaluations, degree):
        size, widths = evaluations + 1, sorted({len(row) for row in rows})
        raise ConfigError(
            f"a learned solver of {evaluations} evaluations has a table of {size} x {size} weights, or up to "
            f"{MOST_SCALES} such tables side by side, got {len(rows)} rows of {' or '.join(map(str, widths)) or 0}"
        )


class LinearSolver:
    """A solver given by a table of weights.

    Args:
        run: Where it evaluates.
        weights: Lower triangular (N + 1, N + 1) for N evaluations. Row i has the weights, first on the initial noise,
            then on the predictions at evaluations 0 to i - 1, that give the network input at evaluation i; the
            last row gives the sample. They may be tensors with a graph. Beside it there may be more such tables,
            (N + 1, scales (N + 1)), for what each further scale lets pass of noise and predictions
            (`l2c.schedule.scales.low_pass`).
        fit: What gives the weights of a step instead, where they are found on the way.
        scales: Guidance scale of each sample (B,). Where weights follow it, they are so many tables side by side as
            there are powers, each times its own, together; see `Run.at_guidance`.

    Source: Non-stationary solvers, arXiv 2403.01329, section 3.
    """

    init_scale = 1.0

    def __init__(
        self, run: Run, weights: Tensor, fit: RowFit | None = None, scales: Tensor | None = None
    ) -> None:
        powers = run.powers(scales)
        check_table(weights, len(run.timesteps), 0 if powers is None else run.guidance_degree)
        self.run = run
        self.weights = weights
        self._fit, self._powers = fit, powers
        self._terms: list[Tensor] = []  # the initial noise, then every prediction so far

    @classmethod
    def of_run(cls, run: Run, scales: Tensor | None = None) -> LinearSolver:
        """The solver whose weights a run brings with it, for its guidance scale, or for that of each sample (B,).

        Raises:
            ConfigError: If it brings none, or a table of another size.
        """
        if run.weights is None:
            raise ConfigError(f"{run.title} brings no weights of a solver")
        if scales is None:
            run = run.at_guidance(run.guidance)
        return cls(run, torch.tensor(run.weights), scales=scales)

    def scale_input(self, x: Tensor, evaluation: int) -> Tensor:
        """See `Solver.scale_input`."""
        return x if evaluation else x * self.weights[0, 0]

    def step(self, evaluation: int, x: Tensor, prediction: Tensor) -> Tensor:
        """See `Solver.step`."""
        if evaluation == 0:
            self._terms = [x]
        self._terms.append(prediction)
        if self._fit is not None:
            row = self._fit(evaluation, self._terms, self._powers)
        else:
            row = self.weights[evaluation + 1].view(-1, len(self.weights))
        if self._powers is not None:
            row = row.reshape(self._powers.shape[1], -1, row.shape[-1])
            row = torch.einsum("bp,pst->stb", self._powers, row)[..., None, None, None]
        return weigh_terms(self._terms, row)


def learned_run(run: Run, log_snrs: Tensor, weights: Tensor, timesteps: Tensor, degree: int = 0) -> Run:
    """A run with a solver that was learned in place of its own.

    Args:
        run: Whose solver is replaced.
        log_snrs: Half log-SNR of every evaluation (N,).
        weights: Table of a `LinearSolver`, or several side by side.
        timesteps: Of every evaluation (N,).
        degree: Of the polynomial in the guidance scale that the weights are.
    """
    return replace(
        run,
        solver=LEARNED,
        spacing=LEARNED,
        timesteps=tuple(timesteps.float().tolist()),
        log_snrs=tuple(log_snrs.tolist()),
        weights=tuple(tuple(row) for row in weights.float().tolist()),
        guidance_degree=degree,
    )


BLENDS = (0.0, 0.3, 0.6, 0.8)
"""Places between levels that are even in log-SNR and such that are even in time, where learned solvers begin."""


def start_levels(even: Sequence[float], in_time: Sequence[float]) -> list[list[float]]:
    """Noise levels that a solver can begin to be learned at, as half log-SNRs.

    Neither even steps in log-SNR nor in time are best: the ones are too long where the coarse is decided, the others
    where the fine is.

    Args:
        even: Levels that are even in log-SNR (N,).
        in_time: Levels at even timesteps (N,).

    Returns:
        Lists (N,) for each of `BLENDS`.
    """
    pairs = list(zip(even, in_time, strict=True))
    return [[first + share * (second - first) for first, second in pairs] for share in BLENDS]


def solver_table(solver: Solver) -> Tensor:
    """The table (N + 1, N + 1) that does what any solver does, found by driving it on unit vectors.

    Args:
        solver: A fresh solver, which is used up.
    """
    size = len(solver.run.timesteps) + 1
    unit = torch.eye(size).view(size, 1, size, 1, 1)  # of samples (1, size, 1, 1): one channel per term
    rows = []

    def predict(evaluation: int, x: Tensor) -> Tensor:
        rows.append(x.flatten())
        return unit[evaluation + 1]

    rows.append(run_loop(sampling_loop(solver, unit[0]), predict).flatten())
    return torch.stack(rows)


def multistep_table(log_snrs: Tensor, prediction_type: str = "epsilon", *, flow: bool = False) -> Tensor:
    """Weights of DPM-Solver++(2M) at any noise levels, differentiable in them.

    Args:
        log_snrs: Half log-SNR of every evaluation (N,), rising. The step after the last goes to zero noise.
        prediction_type: What the network predicts: `epsilon`, `v_prediction`, `sample` or `flow_prediction`.
        flow: Whether noisy samples are (1 - sigma) * picture + sigma * noise, and not of a variance that is kept. A
            flow that begins at `PURE_NOISE` or below begins at sigma = 1, exactly.

    Returns:
        The table (N + 1, N + 1) of `LinearSolver`, over predictions as the network makes them.

    Source: arXiv 2211.01095, algorithm 2.
    """
    count = len(log_snrs)
    alpha, sigma = alphas_sigmas(log_snrs, flow=flow)
    unit = torch.eye(count + 1, dtype=log_snrs.dtype, device=log_snrs.device)
    x = unit[0]
    rows, data = [x], []
    for i in range(count):
        data.append(data_prediction(x, unit[i + 1], alpha[i], sigma[i], prediction_type))
        if i == count - 1:
            x = data[-1]
        else:
            h = log_snrs[i + 1] - log_snrs[i]
            slope = data[-1] * 0
            if i > 0:
                slope = (data[-1] - data[-2]) * (h / (log_snrs[i] - log_snrs[i - 1]))
            fall = sigma[i + 1] / sigma[i]
            x = fall * x + (alpha[i + 1] - fall * alpha[i]) * (data[-1] + 0.5 * slope)
        rows.append(x)
    return torch.stack(rows)
