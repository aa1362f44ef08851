"""Learning how reused layers are stood in for, by what it does to the final picture: `fit_predictor`.

The coefficients of a linear predictor are learned by gradient descent through the whole sampled run of the frozen
model, with its own stand-ins, its own stored features and guidance, on the squared distance of the final picture
to a fine-step solution from the same noise. Fitting them to the features instead, layer by layer, leaves small
biases that pile up over layers and evaluations.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2c.cache.clock import Clock
from l2c.cache.predictors import Predictor, StandInPlan, plan_stand_ins
from l2c.cache.runtime import Compute, HardGates, attach
from l2c.cache.schedule import CacheSchedule, Contract
from l2c.cache.values import Value
from l2c.errors import ConfigError
from l2c.layers import find_layers, fingerprint
from l2c.learning.checkpoint import digest
from l2c.learning.session import OnProgress, Session
from l2c.learning.task import TaskSettings, draw
from l2c.learning.trainer import Trainer
from l2c.learning.trajectories import random_labels
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler

HELD_OUT_SHARE = 0.25
WARM_UP = 5


@dataclass(frozen=True)
class PredictorSettings(TaskSettings):
    """How a predictor is learned.

    Attributes:
        num_pictures: Pictures whose fine-step solutions are computed beforehand; a quarter of them is held out.
        depth: How many computed values a stand-in reads at most.
        learning_rate: Of Adam; it warms up over 5 steps and falls to 0 on a cosine.
        reference_steps: Evaluations of the fine-step solution (DPM-Solver++, evenly spaced in log-SNR).
        recompute: Keep only the inputs of computed layers for the backward pass and compute the layers again in
            it: a third more time, for a fraction of the memory.
    """

    iterations: int = 150
    num_pictures: int = 32
    depth: int = 3
    learning_rate: float = 4e-3
    reference_steps: int = 60
    recompute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference_steps < 1:
            raise ConfigError(f"reference_steps must be at least 1, got {self.reference_steps}")
        if not 1 <= self.depth <= 5:
            raise ConfigError(f"depth must be from 1 to 5, got {self.depth}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"the learning rate must be more than 0, got {self.learning_rate}")
        if self.num_held_out < 1 or self.num_pictures - self.num_held_out < self.batch_size:
            raise ConfigError(
                f"num_pictures must leave at least one batch of {self.batch_size} when a quarter is held out, "
                f"got {self.num_pictures}"
            )

    @property
    def num_held_out(self) -> int:
        """Pictures that take no part in learning and tell how good it is."""
        return int(self.num_pictures * HELD_OUT_SHARE)


class _LearnedGates(HardGates):
    """Hard gates whose weights are tensors with a graph."""

    def __init__(self, plan: StandInPlan, num_evaluations: int, recompute: bool) -> None:
        super().__init__(plan, num_evaluations)
        self.recompute = recompute

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """See `Gating.output`."""
        if not (self.recompute and torch.is_grad_enabled()):
            return super().output(clock, layer, compute)
        return super().output(clock, layer, lambda: checkpoint(compute, use_reentrant=False))


@dataclass(frozen=True)
class _Pictures:
    """Fine-step solutions to come close to, and what they were sampled from; a row each."""

    noise: Tensor
    labels: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.noise)

    def rows(self, rows: slice | Tensor) -> _Pictures:
        """Some of them."""
        return _Pictures(self.noise[rows], self.labels[rows], self.target[rows])


class _PredictorTask:
    """A run whose stand-in coefficients are parameters: what all layers share, plus each layer's own part.

    Args:
        sampler: The frozen model and its run.
        schedule: Where to compute.
        settings: How to learn.
        pictures: What to learn on.
        rows: Rows of a batch to learn on; the other processes have the others.
    """

    def __init__(
        self,
        sampler: Sampler,
        schedule: CacheSchedule,
        settings: PredictorSettings,
        pictures: _Pictures,
        rows: slice,
    ) -> None:
        self.sampler = sampler
        self.settings = settings
        self.schedule = schedule
        self.rows = rows
        self.pictures = pictures
        self.table = find_layers(sampler.denoiser.model)
        taylor = Predictor("taylor", settings.depth - 1) if settings.depth > 1 else Predictor()
        self.start_plan = plan_stand_ins(schedule.compute, taylor, sampler.run.log_snrs)
        start = torch.zeros(*schedule.compute.shape, settings.depth)
        for (evaluation, layer), terms in self.start_plan.items():
            for index, (_, weight) in enumerate(terms):
                start[evaluation, layer, index] = weight
        self.start = start.to(sampler.denoiser.device)
        self.shared = nn.Parameter(torch.zeros_like(self.start[:, :1]))
        self.own = nn.Parameter(torch.zeros_like(self.start))
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam([self.shared, self.own], betas=(0.9, 0.99))

    @property
    def fraction(self) -> float:
        """See `Task.fraction`."""
        return self.schedule.cost.fraction

    @property
    def coefficients(self) -> Tensor:
        """Weights (evaluations, layers, depth)."""
        return self.start + self.shared + self.own

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Final pictures (B, C, H, W) with the coefficients as they are, differentiable in them."""
        coefficients = self.coefficients
        plan: StandInPlan = {
            (evaluation, layer): tuple(
                (source, coefficients[evaluation, layer, index]) for index, (source, _) in enumerate(terms)
            )
            for (evaluation, layer), terms in self.start_plan.items()
        }
        gates = _LearnedGates(plan, self.schedule.num_evaluations, self.settings.recompute)
        with (
            attach(self.sampler.denoiser.model, self.table, gates),
            torch.autocast(noise.device.type, torch.bfloat16, enabled=self.settings.bf16),
        ):
            return self.sampler(noise, labels)

    def backward(self, iteration: int) -> tuple[Tensor, Tensor]:
        """See `Task.backward`."""
        batch = self.pictures.rows(self._draw(iteration)[self.rows])
        squares = _mean_squares(self.sample(batch.noise, batch.labels), batch.target)
        loss = squares.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), squares.detach().sqrt().mean()

    def update(self, iteration: int) -> None:
        """See `Task.update`."""
        warm_up = min(1.0, (iteration + 1) / WARM_UP)
        fall = 0.5 * (1 + math.cos(math.pi * iteration / self.settings.iterations))
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * warm_up * fall
        self.optimizer.step()

    def _draw(self, iteration: int) -> Tensor:
        """Indices of a batch's pictures: all of them in random order, then all again, and so on."""
        count, size = len(self.pictures), self.settings.batch_size
        places = range(iteration * size, (iteration + 1) * size)
        epochs = {
            epoch: torch.randperm(count, generator=draw(self.settings.seed, "epoch", epoch))
            for epoch in {place // count for place in places}
        }
        return torch.stack([epochs[place // count][place % count] for place in places])


def fit_predictor(
    model: nn.Module,
    schedule: CacheSchedule,
    *,
    guidance: float = 1.5,
    settings: PredictorSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
) -> CacheSchedule:
    """Learns a linear predictor for the mask of a schedule, end to end on the final picture.

    Learning starts at the polynomial through the last `depth` computed values. The result is the schedule with
    the same mask and the learned coefficients; its provenance holds the errors of both on held-out pictures.
    Ctrl-C ends learning with the coefficients so far. Started by `accelerate launch`, the processes share every
    batch, and all return the schedule.

    Args:
        model: The frozen model.
        schedule: Where to compute; its own predictor is not used.
        guidance: Guidance scale of the run.
        settings: Everything else that decides the result.
        session: Checkpoint, time limit and log.
        model_name: Recorded in the schedule, for people.
        on_progress: Called in the main process after every iteration, and before learning as the fine-step
            solutions are computed.

    Raises:
        CheckpointError: If the session's checkpoint cannot be read.
        ConfigError: If the schedule computes everything, so that nothing is stood in for; if the checkpoint is that
            of another run; or if the time limit leaves none for learning.
        ContractError: If the schedule is for another model.
        NumericsError: If the error is not finite.
    """
    settings = settings or PredictorSettings()
    denoiser = Denoiser.of(model)
    table = find_layers(model)
    schedule.check_layers(table)
    if schedule.compute.all():
        raise ConfigError("the schedule computes everything; a predictor needs layers that are reused")
    run = schedule.contract.run
    sampler = Sampler(denoiser, run.solver, run.steps, run.spacing, Guidance(guidance))
    schedule.contract.check_run(sampler.run)
    trainer = Trainer("predictor", sampler, settings, session, on_progress, mask=digest(schedule.compute))
    pictures = _solve(trainer, denoiser, settings, guidance, schedule.cost.fraction)
    held_out = pictures.rows(slice(0, settings.num_held_out))
    training = pictures.rows(slice(settings.num_held_out, None))
    task = _PredictorTask(sampler, schedule, settings, training, trainer.rows)

    def held_out_error() -> Tensor:
        size = 2 * settings.batch_size
        with torch.no_grad():
            sampled = trainer.processes.in_rounds(task.sample, held_out.noise, held_out.labels, size)
            return _mean_squares(torch.cat(list(sampled)), held_out.target).sqrt().mean().cpu()

    if "error before" not in trainer.kept:
        trainer.kept["error before"] = held_out_error()
    outcome = trainer.run(task)
    return replace(
        schedule,
        predictor=Predictor("linear", coefficients=task.coefficients.detach().cpu()),
        contract=Contract(
            sampler.run, model_name, fingerprint(model, table), denoiser.noise_schedule.prediction_type
        ),
        provenance={
            **schedule.provenance,
            "predictor": "linear, learned end to end on the final picture",
            "predictor_settings": asdict(settings),
            "predictor_steps": outcome.iterations,
            "held_out_error_before": round(trainer.kept["error before"].item(), 5),
            "held_out_error": round(held_out_error().item(), 5),
            "interrupted": outcome.interrupted,
        },
    )


@torch.no_grad()
def _solve(
    trainer: Trainer, denoiser: Denoiser, settings: PredictorSettings, guidance: float, fraction: float
) -> _Pictures:
    """Fine-step solutions for all noise and labels."""
    generator = draw(settings.seed, "pictures")
    noise = torch.randn((settings.num_pictures, *denoiser.sample_shape), generator=generator).to(
        denoiser.device
    )
    labels = random_labels(generator, settings.num_pictures, denoiser.num_classes).to(denoiser.device)
    fine = Sampler(denoiser, "dpmsolver++", settings.reference_steps, "logsnr", Guidance(guidance))
    target = trainer.compute("fine-step solutions", fine, noise, labels, 2 * settings.batch_size, fraction)
    return _Pictures(noise, labels, target)


def _mean_squares(pictures: Tensor, target: Tensor) -> Tensor:
    """Mean square error of each picture (B,)."""
    return (pictures - target).square().mean(dim=(1, 2, 3))
