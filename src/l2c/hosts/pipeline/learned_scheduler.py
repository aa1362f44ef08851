"""`LearnedScheduler`: a solver that was learned with a schedule, as diffusers' pipelines call one."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor
from torch.nn import functional as F

from l2c.errors import ConfigError, check_finite
from l2c.sampling.linear import LEARNED, RowFit, check_table, multistep_table
from l2c.sampling.noise_schedule import alphas_sigmas
from l2c.schedule.contract import Run
from l2c.schedule.scales import weigh_terms
from l2c.schedule.schedule import CacheSchedule

logger = logging.getLogger(__name__)

OTHER_STEPS = "the learned solver makes %d steps, not the %d that were asked for"
"""What a run is told, whatever asked."""
PROCESS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "time_shift_type",
)
"""What a learned scheduler takes over from the scheduler in whose place it is put."""


class LearnedScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A non-stationary linear solver: noise levels, and a table of weights on initial noise and predictions.

    Every network input is a fixed linear combination of the initial sample and all predictions so far. The number of
    steps is that of the table, whatever a pipeline asks for.

    Args:
        log_snrs: Half log-SNR of every evaluation, rising.
        weights: Lower triangular table (N + 1, N + 1), or several side by side; see
            `l2c.sampling.linear.LinearSolver`.
        prediction_type: What the network predicts: `epsilon`, `v_prediction`, `sample` or `flow_prediction`.
        mu: Of a scheduler with dynamic shifting, the shift at which the levels were learned. Another resolution moves
            them in log-SNR, and the weights of the solver with them.
        num_train_timesteps: See diffusers.
        beta_start: See diffusers; for noise schedules with betas.
        beta_end: See diffusers.
        beta_schedule: See diffusers: `linear`, `scaled_linear` or `squaredcos_cap_v2`.
        trained_betas: See diffusers.
        use_dynamic_shifting: See diffusers.
        base_shift: See diffusers.
        max_shift: See diffusers.
        base_image_seq_len: See diffusers.
        max_image_seq_len: See diffusers.
        time_shift_type: `exponential` or `linear`, see diffusers.

    Raises:
        ConfigError: If levels and weights do not fit each other, or are not finite.

    Source: arXiv 2403.01329, section 3.
    """

    _compatibles: list[str] = []  # noqa: RUF012 (diffusers reads it)
    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,  # diffusers takes what is given by place for a default, and would not save it
        log_snrs: Sequence[float] = (),
        weights: Sequence[Sequence[float]] = (),
        prediction_type: str = "epsilon",
        mu: float | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        time_shift_type: str = "exponential",
    ) -> None:
        if not log_snrs:
            raise ConfigError(
                "a learned solver has a table of weights, and none was given; load one with "
                "LearnedScheduler.from_pretrained, or learn one with l2c.learn(..., solver='auto')"
            )
        check_table(weights, len(log_snrs))
        self._own_levels = torch.tensor([float(level) for level in log_snrs], dtype=torch.float64)
        self._own_table = torch.tensor([[float(w) for w in row] for row in weights], dtype=torch.float64)
        check_finite(
            "the levels and weights of a solver have", self._own_levels, self._own_table, error=ConfigError
        )
        self.flow = prediction_type == "flow_prediction"
        self.alphas_cumprod = None if self.flow else self._read_alphas()
        self.init_noise_sigma = 1.0
        self._begin_index: int | None = None
        self._told = False
        self.use(self._own_levels, self._own_table)
        self.set_timesteps()

    def _read_alphas(self) -> Tensor:
        from diffusers import DDIMScheduler

        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        alphas: Tensor = DDIMScheduler(**{name: self.config[name] for name in names}).alphas_cumprod
        return alphas

    def use(self, levels: Tensor, table: Tensor, fit: RowFit | None = None) -> None:
        """Takes other levels (N,) and another table, which may have a graph; learning does that.

        With `fit`, that gives the weights of each step instead, as a run gets there.
        """
        self._levels, self._table, self._fit = levels, table, fit

    @torch.no_grad()
    def learned_run(self, guidance: float | None = None) -> Run:
        """The run as it was learned, before a resolution shifts it."""
        levels, rows = self._levels, self._table.float().tolist()
        times = tuple(self.timesteps_of(levels).float().tolist())
        table = tuple(tuple(row) for row in rows)
        return Run(LEARNED, len(times), LEARNED, times, tuple(levels.tolist()), guidance, table)

    @property
    def step_index(self) -> int | None:
        """Index of the evaluation that is stepped from next; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the evaluation that a run begins at, if it was told."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Lets a run begin later, as image to image does."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Begins a run over the levels of the table.

        Args:
            num_inference_steps: What a pipeline asks for; there are as many steps as the table has.
            device: Where timesteps are put.
            sigmas: Those of a pipeline; the learned ones are taken.
            timesteps: The same.
            mu: Shift of the resolution, under dynamic shifting.
        """
        count = len(self._levels)
        asked = num_inference_steps or len(sigmas if sigmas is not None else timesteps or ()) or count
        if asked != count and not self._told:
            self._told = True
            logger.warning(OTHER_STEPS, count, asked)
        levels, table = self._shifted(mu)
        self.num_inference_steps = count
        self._run_levels, self._run_table = levels.to(device), table.to(device, torch.float32)
        alphas, noise = alphas_sigmas(
            self._run_levels.detach(), flow=self.flow
        )  # pipelines read numbers there
        sigmas_now = noise if self.flow else noise / alphas
        self.sigmas = torch.cat([sigmas_now, sigmas_now.new_zeros(1)]).float().detach()
        self.timesteps = self.timesteps_of(self._run_levels).float()
        self._step_index: int | None = None
        self._begin_index = None
        self._terms: list[Tensor] = []
        self._first = 0

    def _shifted(self, mu: float | None) -> tuple[Tensor, Tensor]:
        """Levels and table at another shift: the learned corrections stay, the solver under them is another."""
        learned = self.config.mu
        if mu is None or learned is None or not self.config.use_dynamic_shifting or math.isclose(mu, learned):
            return self._levels, self._table
        exponential = self.config.time_shift_type == "exponential"
        moved = self._levels - ((mu - learned) if exponential else math.log(mu / learned))
        if self.flow:
            moved = torch.cat([self._levels[:1], moved[1:]])  # a flow begins at pure noise at any shift
        kind = self.config.prediction_type
        base, other = (multistep_table(it, kind, flow=self.flow) for it in (self._levels, moved))
        more = self._table.shape[1] - base.shape[1]  # coarser scales, which are corrections altogether
        return moved, self._table + F.pad(other - base, (0, more))

    def timesteps_of(self, levels: Tensor) -> Tensor:
        """Training timesteps (N,) of half log-SNRs (N,), unrounded and differentiable in them."""
        count: int = self.config.num_train_timesteps
        if self.alphas_cumprod is None:
            return alphas_sigmas(levels, flow=True)[1] * count
        table = -0.5 * self.alphas_cumprod.double().log().to(levels.device)
        values = 0.5 * torch.nn.functional.softplus(-2 * levels)
        above = torch.searchsorted(table, values.detach()).clamp(1, len(table) - 1)
        share = (values - table[above - 1]) / (table[above] - table[above - 1])
        times: Tensor = above - 1 + share.clamp(0, 1)
        return times

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Samples are given to the network as they are."""
        return sample

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """Evaluation at a timestep, the nearest one."""
        wanted = torch.as_tensor(timestep).detach().to(self.timesteps)
        return int((self.timesteps.detach() - wanted).abs().argmin())

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next sample.

        Args:
            model_output: What the network predicts (B, ...), after guidance.
            timestep: Of the evaluation.
            sample: The current sample (B, ...).
            generator: Not used: nothing is drawn.
            return_dict: Whether to wrap the sample as diffusers does.
        """
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin
            self._begin_from(self._step_index, sample)
        self._terms.append(model_output.float())
        place = len(self._terms) - 2
        table = self._run_table
        own = table[place + 1].view(-1, len(table))
        total = weigh_terms(self._terms, own if self._fit is None else self._fit(place, self._terms, None))
        self._step_index += 1
        if self._step_index == len(self.timesteps):
            self._terms = []
        result = total.to(sample.dtype)
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def _begin_from(self, first: int, sample: Tensor) -> None:
        """Begins at an evaluation; the solver from a later one on is DPM-Solver++(2M) at the learned levels."""
        self._terms = [sample.float()]
        if first:
            rest = self._run_levels[first:]
            self._run_table = multistep_table(rest, self.config.prediction_type, flow=self.flow).float()

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """The forward process: a clean sample with the noise of a timestep."""
        assert noise is not None
        index = torch.as_tensor(timestep).flatten().tolist()
        return self.add_noise(sample, noise, torch.tensor(index))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy samples (B, ...) of clean ones at timesteps (B,) or ()."""
        places = [self.index_for_timestep(t) for t in timesteps.flatten().tolist()]
        alphas, sigmas = alphas_sigmas(self._run_levels, flow=self.flow)
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (part[places].to(original_samples).view(shape) for part in (alphas, sigmas))
        return alpha * original_samples + sigma * noise

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def learned_from(
    scheduler: Any,
    log_snrs: Sequence[float],
    weights: Sequence[Sequence[float]] | None = None,
    prediction_type: str | None = None,
    mu: float | None = None,
) -> LearnedScheduler:
    """A learned scheduler in the place of another one.

    Args:
        scheduler: What the pipeline has: its noise schedule and its shifting are taken over.
        log_snrs: Half log-SNRs of the evaluations.
        weights: The table; DPM-Solver++(2M) if not given.
        prediction_type: That of the scheduler if not given.
        mu: Shift at which the levels were learned.
    """
    config = scheduler.config
    kind = prediction_type or prediction_of(scheduler)
    levels = [float(level) for level in log_snrs]
    if weights is None:
        table = multistep_table(
            torch.tensor(levels, dtype=torch.float64), kind, flow=kind == "flow_prediction"
        )
        weights = table.float().tolist()
    taken = {name: config[name] for name in PROCESS if config.get(name) is not None}
    betas = taken.get("trained_betas")
    if isinstance(betas, np.ndarray):
        taken["trained_betas"] = betas.tolist()
    rows = [[float(weight) for weight in row] for row in weights]
    made: LearnedScheduler = LearnedScheduler(
        log_snrs=levels, weights=rows, prediction_type=kind, mu=mu, **taken
    )
    return made


def scheduler_of(schedule: CacheSchedule, scheduler: Any) -> LearnedScheduler:
    """The scheduler that a schedule with a learned solver brings, in the place of another one."""
    run, kind = schedule.contract.run, schedule.contract.prediction_type
    return learned_from(scheduler, run.log_snrs, run.weights, kind, schedule.provenance.get("mu"))


def prediction_of(scheduler: Any) -> str:
    """What a network predicts, as its scheduler is told."""
    told = scheduler.config.get("prediction_type")
    return str(told or ("epsilon" if "trained_betas" in scheduler.config else "flow_prediction"))
