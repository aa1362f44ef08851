"""`Student`: a whole sampling run of a frozen model, differentiable in its forecasts and, if wanted, in its solver.

Nothing of the model is learned. The parameters are some thousand numbers: the coefficients of the forecasts, and for
a solver that is learned with them the noise levels of its evaluations and the weights of its steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2c.hosts.base import Examples, Handle, Host, SolverTable
from l2c.hosts.parallel import ContextGroup, context_of
from l2c.learning.coefficients import Coefficients
from l2c.learning.least_squares import Paths, StepFit
from l2c.learning.noise_levels import room
from l2c.learning.recompute import again_in_backward
from l2c.learning.settings import LearnSettings
from l2c.sampling.linear import learned_run
from l2c.sampling.noise_schedule import FLOW_PREDICTION
from l2c.schedule.contract import Run
from l2c.schedule.forecast import Predictor, ReusePlan
from l2c.schedule.scales import scales_of
from l2c.schedule.schedule import CacheSchedule

LARGEST_SHIFT = 0.45
"""Of a noise level, in distances to the nearer neighbour: so they never pass each other."""
SHIFT_RATE, TABLE_RATE = 0.5, 0.1
"""Learning rates of noise levels and of solver weights, relative to that of the coefficients."""
PLAIN_STEP = 2.5
"""Of a weight, where no fit has found steps."""


class Student(nn.Module):
    """A run with a fixed mask and learned forecasts.

    With all parameters at zero, reused layers follow the polynomial through their last computed values over half
    log-SNR, and a solver that is free is DPM-Solver++(2M) at the noise levels of the host; `fit_solver` fits
    its weights.

    Args:
        host: The frozen model and its run; of `Host.solver_starts` for a free solver.
        compute: Where to compute, bool (evaluations, layers), or with rows for each pass of guidance.
        history: How many computed values a forecast reads at most.
        order: Of the polynomial; `history - 1` if not given.
        start: Weights (evaluations, layers, history) that forecasts begin with instead.
        free_solver: Learn the noise levels of the evaluations and the weights of the solver, too.
        table: Weights that a free solver begins with instead, at the noise levels of the host.
        scales: Of detail, which a free solver weighs apart; see `l2c.schedule.scales`.
        degree: Of the polynomial in the guidance scale that its weights are, on a host with a range of guidance.
        bf16: Run the network in bfloat16 in training mode; in evaluation mode, it runs in its own precision.
        recompute: Keep only the inputs of computed layers for the backward pass; `evaluations`: only those of whole
            calls of the network, and the values that are reused; `offload`: those in CPU memory.

    Attributes:
        forecasts: Their weights.
        shifts: With a free solver, how far each noise level is moved (evaluations,), in distances to its nearer
            neighbour. The first stays where it is, since the initial noise is given.
        corrections: With a free solver, how far each row of its table goes along the columns of its steps
            (evaluations + 1, powers scales (evaluations + 1)).
        fitted: With a free solver, what a fit has added to its table (evaluations + 1, powers scales (evaluations +
            1)), and the steps that it goes on in; see `StepFit`.

    Raises:
        ScheduleError: If a layer is reused before it was ever computed.
    """

    def __init__(
        self,
        host: Host,
        compute: Tensor,
        history: int,
        *,
        order: int | None = None,
        start: Tensor | None = None,
        free_solver: bool = False,
        table: Tensor | None = None,
        scales: int = 1,
        degree: int = 0,
        bf16: bool = False,
        recompute: bool | str = False,
    ) -> None:
        super().__init__()
        self._host, self._bf16, self._recompute = host, bf16, recompute
        self.compute = compute
        run, device, count = host.run, host.device, len(compute)
        flow = host.contract(weights=False).prediction_type == FLOW_PREDICTION
        self.forecasts = Coefficients(
            compute, run.log_snrs, history, device, order, start, host.segments, len(host.table), flow
        )
        self._log_snrs = torch.tensor(run.log_snrs, dtype=torch.float64, device=device)
        self._room = room(self._log_snrs)
        self.shifts = nn.Parameter(torch.zeros(count, device=device)) if free_solver else None
        self._degree = degree if run.guidance_range is not None else 0
        self._tables = scales * (self._degree + 1)
        size = self._tables * (count + 1)
        self.corrections = nn.Parameter(torch.zeros(count + 1, size, device=device)) if free_solver else None
        self.fitted = self._begun(table) if free_solver else None
        self._handle: Handle | None = None
        self._context = context_of(host.models)

    @classmethod
    def of(
        cls,
        host: Host,
        compute: Tensor,
        settings: LearnSettings,
        shape: Sequence[int],
        *,
        order: int | None = None,
        start: Tensor | None = None,
        solver: Run | bool = False,
    ) -> Student:
        """A student as settings say.

        Args:
            host: See `Student`.
            compute: See `Student`.
            settings: How to learn.
            shape: Of samples (B, ...).
            order: See `Student`.
            start: See `Student`.
            solver: Whether its solver is free; the run of the host, if that brings the solver to begin with.
        """
        scales, degree, table = scales_of(shape, settings.scales), settings.guidance_degree, None
        if isinstance(solver, Run):
            scales, degree, table = solver.scales, solver.guidance_degree, torch.tensor(solver.weights)
        return cls(
            host,
            compute,
            settings.history,
            order=order,
            start=start,
            free_solver=bool(solver),
            table=table,
            scales=scales,
            degree=degree,
            bf16=settings.bf16,
            recompute=settings.recompute,
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

    @property
    def models(self) -> Sequence[nn.Module]:
        """What it runs."""
        return list(self._host.models.values())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attaches it to its host, which it has to be while it runs."""
        contract = self._host.contract(weights=False)
        blank = CacheSchedule(self.compute, self._host.table, contract, self.forecasts.predictor())
        whole = self._recompute in ("evaluations", "offload")
        around = again_in_backward if self._recompute and not whole else None
        offload = self._recompute == "offload"
        with self._host.attach(blank, around=around, recompute=whole, offload=offload) as handle:
            self._handle = handle
            try:
                yield
            finally:
                self._handle = None

    def forward(self, examples: Examples) -> Tensor:
        """Final pictures or latents (B, ...) of examples."""
        assert self._handle is not None, "a student runs while it is attached"
        solver = self._solver()
        plan = self.forecasts.plan(None if solver is None else solver.log_snrs)
        self._handle.use(plan if self._context is None or not plan else _shared(plan, self._context))
        return self._host.sample(examples, bf16=self._bf16 and self.training, solver=solver)

    @torch.no_grad()
    def fit_solver(self, examples: Examples, paths: Paths) -> Tensor:
        """Finds the weights of the solver by least squares, with the forecasts as they are; see `StepFit`.

        Args:
            examples: All run together.
            paths: Solutions of the first of them, which it is fitted to.

        Returns:
            Final pictures or latents (B, ...), made with these weights.
        """
        assert self._handle is not None, "a student runs while it is attached"
        assert self.corrections is not None, "its solver is free"
        solver = self._solver()
        assert solver is not None
        self._handle.use(self.forecasts.plan(solver.log_snrs))
        base = self._start_of(solver.log_snrs)
        fit = StepFit(paths, solver.log_snrs.tolist(), base, self._degree)
        made, _ = self._host.together(
            examples, bf16=self._bf16 and self.training, solver=replace(solver, fit=fit)
        )
        self.fitted = fit.table.to(base) - base, fit.steps.to(base)
        self.corrections.zero_()
        return made

    @property
    def log_snrs(self) -> Tensor:
        """Half log-SNR of every evaluation (N,), as learning began or `begin_at` set them."""
        return self._log_snrs

    @torch.no_grad()
    def begin_at(self, log_snrs: Tensor, fitted: tuple[Tensor, Tensor] | None = None) -> None:
        """Sets the noise levels of a free solver, as half log-SNRs (N,), with the weights of DPM-Solver++(2M).

        Args:
            log_snrs: The levels.
            fitted: What is added to these weights, as the attribute has it; nothing by default.
        """
        assert self.shifts is not None, "its solver is free"
        assert self.corrections is not None
        self._log_snrs, self._room = log_snrs, room(log_snrs)
        self.fitted = self._begun() if fitted is None else fitted
        self.shifts.zero_()
        self.corrections.zero_()

    @torch.no_grad()
    def result(self) -> tuple[Run, Predictor]:
        """The run and the predictor that have been learned so far."""
        solver = self._solver()
        if solver is None:
            return self._host.run, self.forecasts.predictor()
        levels, times = solver.log_snrs, self._host.timesteps_of(solver.log_snrs)
        run = learned_run(self._host.run, levels, solver.weights, times, solver.degree)
        return run, self.forecasts.predictor(solver.log_snrs)

    def _solver(self) -> SolverTable | None:
        """The solver as it is, with a graph; None for that of the host."""
        if self.shifts is None or self.corrections is None:
            return None
        assert self.fitted is not None
        moved = self.shifts.clamp(-LARGEST_SHIFT, LARGEST_SHIFT)
        log_snrs = self._log_snrs + self._room * moved
        known, steps = self.fitted
        added = known + (steps @ self.corrections[:, :, None])[..., 0]
        free = torch.ones(len(added), len(added), device=added.device).tril()
        free[0] = 0  # the initial noise is the first input
        table = self._start_of(log_snrs) + free.repeat(1, self._tables) * added
        return SolverTable(log_snrs, table, degree=self._degree)

    def _start_of(self, log_snrs: Tensor) -> Tensor:
        """The table that a free solver has before anything is fitted or learned."""
        start = self._host.multistep_table(log_snrs).float()
        return F.pad(start, (0, (self._tables - 1) * len(start)))

    def _begun(self, table: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What a table has beyond the one that learning begins with, nothing by default, and steps that no fit made."""
        assert self.corrections is not None
        added, size = torch.zeros_like(self.corrections), self.corrections.shape[1]
        if table is not None:
            added = table.to(added) - self._start_of(self._log_snrs)
        steps = PLAIN_STEP * torch.eye(size, device=added.device)
        return added, steps.expand(len(added), size, size)


def _shared(plan: ReusePlan, context: ContextGroup) -> ReusePlan:
    """A plan whose weights have the gradients of all parts of the sequence, in one message."""
    weights = [weight for terms in plan.values() for _, weight in terms]
    whole = iter(context.shared(torch.stack([torch.as_tensor(weight) for weight in weights])).unbind())
    return {place: tuple((source, next(whole)) for source, _ in terms) for place, terms in plan.items()}
