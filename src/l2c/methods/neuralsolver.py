"""NeuralSolver: steps along sums of all velocities so far, whose weights and whose times are searched by gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from l2c.documents import Count, LearningRate, Seed, check_value
from l2c.hosts.base import Host, SolverTable
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed
from l2c.methods.smoothcache import CALIBRATION_SEED
from l2c.methods.solver_fit import TimeGrid, fewer_evaluations, fit, fitted_contract, noise_shares
from l2c.sampling.linear import alphas_sigmas
from l2c.sampling.noise_schedule import FLOW_PREDICTION, data_prediction
from l2c.schedule.schedule import CacheSchedule

HUBER = 1e-3
"""Distance of an element beyond which the loss grows linearly."""
FEW = 6
"""Evaluations up to which the last two steps look back by one velocity only, as in the released code."""


def neuralsolver(
    target: Any,
    *,
    evaluations: int | None = None,
    budget: float | None = None,
    iterations: int = 60,
    batch_size: int = 4,
    num_examples: int = 32,
    learning_rate: float = 1e-2,
    reference_steps: int = 100,
    seed: int = CALIBRATION_SEED,
    **run: Any,
) -> CacheSchedule:
    """Fewer evaluations, nothing reused, by a solver that was searched on the frozen model.

    A step goes along a weighted sum of the velocities at all evaluations so far, whose weights add up to 1; weights and
    times are searched by gradients through the whole run. It begins as Euler's method at even times.

    What differs: a model with betas is solved as the flow that it amounts to, over the share of noise
    sigma / (alpha + sigma), where the publication has the equation of its own times; pictures are compared at the end
    only, and not at every step; and the search is short: the publication's is of some thousand steps.

    Args:
        target: A model, a diffusers pipeline, or a host.
        evaluations: How many; half of the run's by default.
        budget: Instead of that, a share of the run's evaluations.
        iterations: Steps of the search.
        batch_size: Pictures of a step.
        num_examples: Pictures in all, made in fine steps beforehand.
        learning_rate: Of Lion, how far every number moves in a step; it falls to 0 on a line.
        reference_steps: Evaluations of the fine steps.
        seed: Of the pictures.
        run: How the target is sampled, see `l2c.learn`.

    Returns:
        A schedule for a run with fewer evaluations, everything computed, that brings its solver.

    Raises:
        ConfigError: If an argument is unknown or out of range, or no solver can be learned for the target.

    Source: Wang et al., arXiv 2505.21114, section 4 and the released search.
    """
    check_value("iterations", iterations, Count)
    check_value("batch_size", batch_size, Count)
    check_value("num_examples", num_examples, Count)
    check_value("learning_rate", learning_rate, LearningRate)
    check_value("reference_steps", reference_steps, Count)
    check_value("seed", seed, Seed)
    own = host_of(target, neuralsolver, **run)
    wanted = fewer_evaluations(own, evaluations, budget)
    host = own.solver_starts(wanted)[0]
    solver = SearchedSolver(host)
    examples = host.examples(num_examples, seed, "neuralsolver")
    with torch.no_grad():
        solutions = own.reference(reference_steps).sample(examples)
    optimizer = Lion(solver.parameters(), learning_rate)
    with host.prepared():
        losses = fit(
            host,
            solver.table,
            examples,
            solutions,
            lambda made, wanted: nn.functional.huber_loss(made, wanted, delta=HUBER) / HUBER,
            optimizer,
            iterations=iterations,
            batch_size=batch_size,
            seed=seed,
            rate=lambda iteration: 1 - iteration / iterations,
        )
    with torch.no_grad():
        contract = fitted_contract(host, solver.table())
    recorded = {
        "method": "neuralsolver",
        "evaluations": wanted,
        "iterations": iterations,
        "loss_first": round(losses[0], 5),
        "loss_last": round(losses[-1], 5),
        **host.provenance,
    }
    return CacheSchedule(all_computed(host), host.table, contract, provenance=recorded)


class SearchedSolver(nn.Module):
    """The parameters of a searched solver, n (n + 1) / 2 for n evaluations.

    Args:
        host: The run that it is for; of it, its number of evaluations, its first level, and what it predicts.

    Attributes:
        coefficients: (n, n), those below the diagonal: weights of earlier velocities in each step.
        grid: The times.
    """

    def __init__(self, host: Host) -> None:
        super().__init__()
        contract = host.contract(weights=False)
        count, self._first = len(contract.run.log_snrs), contract.run.log_snrs[0]
        self._kind = contract.prediction_type
        earlier = torch.ones(count, count, device=host.device).tril(-1)
        if count <= FEW:
            earlier[-2:] *= torch.ones_like(earlier).triu(-1)[-2:]
        self._earlier = earlier
        self.coefficients = nn.Parameter(torch.zeros(count, count, device=host.device))
        start = noise_shares(torch.tensor(self._first, dtype=torch.float64, device=host.device))
        even = torch.arange(count, 0, -1, device=host.device, dtype=torch.float64) / count
        self.grid = TimeGrid(start * even)

    def table(self) -> SolverTable:
        """The solver as a table, with a graph."""
        log_snrs = self.grid.log_snrs(self._first)
        looked_back = self.coefficients.double() * self._earlier
        own = torch.diag_embed(1 - looked_back.sum(1))
        return SolverTable(log_snrs, velocity_table(log_snrs, looked_back + own, self._kind))


def velocity_table(log_snrs: Tensor, weights: Tensor, prediction_type: str) -> Tensor:
    """Table (n + 1, n + 1) of `LinearSolver` for steps along sums of velocities, to zero noise at the end.

    Args:
        log_snrs: Half log-SNR of every evaluation (n,), rising.
        weights: (n, n), in row i those of the velocities at evaluations 0 to i in step i.
        prediction_type: What the network predicts.
    """
    count, flow = len(log_snrs), prediction_type == FLOW_PREDICTION
    alpha, sigma = alphas_sigmas(log_snrs, flow=flow)
    shares = torch.cat([sigma / (alpha + sigma), sigma.new_zeros(1)])
    scale = torch.cat([alpha + sigma, sigma.new_ones(1)])  # a sample over this is one of the flow
    unit = torch.eye(count + 1, dtype=log_snrs.dtype, device=log_snrs.device)
    rows, velocities = [unit[0]], []
    for i in range(count):
        data = data_prediction(rows[i], unit[i + 1], alpha[i], sigma[i], prediction_type)
        noise = (rows[i] - alpha[i] * data) / sigma[i]
        velocities.append(noise - data)
        along = sum((weights[i, j] * velocities[j] for j in range(i + 1)), torch.zeros_like(unit[0]))
        rows.append(scale[i + 1] * (rows[i] / scale[i] + (shares[i + 1] - shares[i]) * along))
    return torch.stack(rows)


class Lion(torch.optim.Optimizer):
    """Steps of one length for every number, in the direction of a mean of gradients.

    Args:
        parameters: What is learned.
        lr: Length of a step.
        betas: Of the mean that a step follows, and of the one that is kept.

    Source: Chen et al., arXiv 2302.06675, algorithm 2, without decay of weights.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; a closure is not called."""
        for group in self.param_groups:
            followed, kept = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                parameter -= group["lr"] * mean.lerp(parameter.grad, 1 - followed).sign()
                mean.lerp_(parameter.grad, 1 - kept)


METHOD = Method(
    "neuralsolver",
    "NeuralSolver, searched on the model",
    neuralsolver,
    "arXiv 2505.21114",
)
