"""Learning a solver of few parameters by the pictures that a run makes, for published solvers and time grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from l2c.documents import Fraction, Whole, check_value
from l2c.hosts.base import Examples, Host, SolverTable
from l2c.sampling.draw import draw
from l2c.sampling.linear import learned_run
from l2c.schedule.contract import Contract


def noise_shares(log_snrs: Tensor) -> Tensor:
    """Share of noise sigma / (alpha + sigma) at half log-SNRs: the time of the flow that a run amounts to, 1 to 0."""
    return torch.sigmoid(-log_snrs)


def fewer_evaluations(host: Host, evaluations: int | None, budget: float | None) -> int:
    """Evaluations of a solver that is learned instead of a host's own: half as many by default, at least two.

    Args:
        host: Whose run is to become faster.
        evaluations: The number itself.
        budget: Instead of that, the share of the host's evaluations.

    Raises:
        ConfigError: If one is out of range.
    """
    if budget is not None:
        check_value("the budget, a share of the evaluations,", budget, Fraction)
    elif evaluations is not None:
        number: int = check_value("evaluations", evaluations, Annotated[Whole, Field(ge=2)])
        return number
    return max(2, round((budget or 0.5) * len(host.run.timesteps)))


class TimeGrid(nn.Module):
    """The shares of noise that a run evaluates at, falling from that of its first evaluation to none.

    Args:
        shares: To begin with (N,), falling.

    Attributes:
        logits: Parameters (N,): logarithms of the gaps after each evaluation, up to a common term.
    """

    def __init__(self, shares: Tensor) -> None:
        super().__init__()
        self.first = shares[0].double()
        gaps = -torch.cat([shares.double(), shares.new_zeros(1, dtype=torch.float64)]).diff()
        self.logits = nn.Parameter((gaps / self.first).log().float())

    def forward(self) -> Tensor:
        """The shares (N,), float64."""
        passed = self.logits.double().softmax(0).cumsum(0)
        later: Tensor = self.first * (1 - passed[:-1])
        return torch.cat([self.first[None], later])

    def log_snrs(self, first: float) -> Tensor:
        """Half log-SNRs (N,) of the shares, the first as it is given, which may be that of pure noise."""
        later = self()[1:]
        return torch.cat([later.new_tensor([first]), ((1 - later) / later).log()])


def fit(
    host: Host,
    table: Callable[[], SolverTable],
    examples: Examples,
    target: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    iterations: int,
    batch_size: int,
    seed: int,
    rate: Callable[[int], float] = lambda iteration: 1.0,
) -> list[float]:
    """Takes steps of an optimizer, each by the gradient of a loss of some pictures through the whole run.

    Args:
        host: Of `Host.solver_starts`, in the context `Host.prepared`, with a policy attached if something is reused.
        table: The solver as it is, with a graph.
        examples: What is run.
        target: What the pictures come close to (B, ...).
        loss: Mean over the pictures of a batch, of what was made and its target.
        optimizer: Has the parameters.
        iterations: Steps.
        batch_size: Pictures of a step.
        seed: Of their order.
        rate: Share of the learning rate at an iteration.

    Returns:
        The loss before each step.
    """
    rates, losses = [group["lr"] for group in optimizer.param_groups], []
    order = _orders(len(examples), seed)
    for iteration in range(iterations):
        rows = [next(order) for _ in range(batch_size)]
        total = 0.0
        for part in [rows] if host.batched else [[row] for row in rows]:
            made = host.sample(examples.rows(part), solver=table())
            value = loss(made, target[part]) * (len(part) / len(rows))
            value.backward()  # type: ignore[no-untyped-call]
            total += value.item()
        losses.append(total)
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * rate(iteration)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def _orders(count: int, seed: int) -> Iterator[int]:
    """All indices in random order, then all again in another, and so on."""
    epoch = 0
    while True:
        yield from torch.randperm(count, generator=draw(seed, "epoch", epoch)).tolist()
        epoch += 1


@torch.no_grad()
def fitted_contract(host: Host, table: SolverTable, **how: Any) -> Contract:
    """The contract of a schedule that brings a solver.

    Args:
        host: What the solver was learned on.
        table: The solver.
        how: See `Host.contract`.
    """
    contract = host.contract(**how)
    levels = table.log_snrs
    run = learned_run(host.run, levels, table.weights, host.timesteps_of(levels))
    return replace(contract, run=replace(run, guidance=contract.run.guidance))
