"""Learning a router by the paper's objective: `learn_router`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from l2c.cache.cached_model import attach
from l2c.cache.policy import MixingPolicy
from l2c.errors import ConfigError
from l2c.layers import find_layers, fingerprint
from l2c.learning.data import ImageData
from l2c.learning.objective import REDUCTIONS, router_loss
from l2c.learning.router import Router, alternating
from l2c.learning.session import OnProgress, Session
from l2c.learning.task import TaskSettings, draw
from l2c.learning.trainer import Trainer
from l2c.learning.trajectories import (
    guided_loop,
    image_loop,
    random_labels,
)
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.loop import SamplingLoop, run_loop, sampling_loop
from l2c.sampling.sampler import Sampler
from l2c.sampling.solvers import evaluations_per_step
from l2c.schedule.contract import Contract
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule


@dataclass(frozen=True)
class RouterSettings(TaskSettings):
    """Settings of the paper's objective.

    One iteration covers a whole trajectory, all evaluations that the router decides; with real images, one evaluation
    drawn at random, as in the paper.

    Attributes:
        lambda_: Price of a computed layer; larger removes more.
        reduction: See `router_loss`.
        threshold: Scores above it compute.
        learning_rate: Of AdamW, without weight decay.
        label_dropout: Share of labels replaced by the null class, with real images, for a model that has one.
            Trajectories under guidance always carry both.
    """

    lambda_: float = 1e-5
    reduction: str = "mean"
    threshold: float = 0.5
    learning_rate: float = 0.2
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be from 0 to 1, got {self.threshold}")
        if not 0 <= self.lambda_ < math.inf or not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"lambda must be 0 or more and the learning rate more than 0, got {self.lambda_} and "
                f"{self.learning_rate}"
            )
        if self.reduction not in REDUCTIONS:
            raise ConfigError(f"unknown reduction '{self.reduction}'; choose {' or '.join(REDUCTIONS)}")


def learn_router(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    *,
    spacing: str = "linspace",
    guidance: float = 1.5,
    data: ImageData | None = None,
    settings: RouterSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
) -> CacheSchedule:
    """Learns which layers to compute at every second evaluation of a run.

    The model is frozen: only the router's logits take gradients. Without `data` the noisy inputs come from the
    model's own sampling trajectories, so nothing but the model is needed. Ctrl-C ends learning with the schedule
    so far, marked in its provenance. Started by `accelerate launch`, the processes share every batch, and all return
    the schedule.

    Args:
        model: A model from `load_model`, or any with a layer adapter.
        solver: Solver of the run.
        steps: Model evaluations of the run.
        spacing: Spacing of the evaluations.
        guidance: Guidance scale of the trajectories.
        data: Real images to noise instead, as in the paper; guidance then plays no part.
        settings: Everything else that decides the result.
        session: Checkpoint, time limit and log.
        model_name: Recorded in the schedule, for people.
        on_progress: Called after every iteration, in the main process.

    Returns:
        A schedule with the router's scores in it.

    Raises:
        CheckpointError: If the session's checkpoint cannot be read.
        ConfigError: If an argument is unknown or out of range, or the checkpoint is that of another run.
        NumericsError: If the loss is not finite.

    Source: arXiv 2406.01733, section 3.3.
    """
    settings = settings or RouterSettings()
    sampler = Sampler(Denoiser.of(model), solver, steps, spacing, Guidance(guidance))
    images = None if data is None else f"{data.source.name} ({len(data)} images)"
    trainer = Trainer("router", sampler, settings, session, on_progress, data=images)
    task = _RouterTask(sampler, settings, data, trainer.rows)
    outcome = trainer.run(task)
    return task.schedule(
        {
            "method": "l2c",
            "source": "arXiv 2406.01733",
            "inputs": "real images" if data is not None else "own trajectories",
            "iterations": outcome.iterations,
            "batch_size": settings.batch_size,
            "lambda": settings.lambda_,
            "reduction": settings.reduction,
            "threshold": settings.threshold,
            "learning_rate": settings.learning_rate,
            "bf16": settings.bf16,
            "seed": settings.seed,
            "interrupted": outcome.interrupted,
            "time_was_up": outcome.time_was_up,
        },
        model_name,
    )


class _RouterTask:
    """A router, its optimizer, and the batches that it is learned on.

    Args:
        sampler: The frozen model and its run.
        settings: Settings of the objective.
        data: Real images, or None for the model's own trajectories.
        rows: Rows of a batch to learn on; the other processes have the others.
    """

    def __init__(
        self, sampler: Sampler, settings: RouterSettings, data: ImageData | None, rows: slice
    ) -> None:
        self.sampler = sampler
        self.settings = settings
        self.data = data
        self.rows = rows
        self.table = find_layers(sampler.denoiser.model)
        self.run = sampler.run if data is None else replace(sampler.run, guidance=None)
        self.label_dropout = settings.label_dropout if sampler.denoiser.has_null_class else 0.0
        if data is not None and data.labels is None:
            _ = sampler.denoiser.null_class  # what they are learned with: refused here if there is none
        evaluations = alternating(self.run)
        if not evaluations:
            raise ConfigError(f"{self.run.title} has no evaluation that could reuse another; take more steps")
        self.device = sampler.denoiser.device
        self.router = Router(evaluations, len(self.table)).to(self.device)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.router.parameters(), lr=settings.learning_rate, weight_decay=0.0
        )
        self.timesteps = torch.tensor(self.run.timesteps, device=self.device)
        self.fingerprint = fingerprint(sampler.denoiser.model, self.table)
        self._row: Tensor | None = None  # scores of the evaluation being mixed; None: everything computes

    @property
    def fraction(self) -> float:
        """See `Task.fraction`."""
        return self.schedule({}, "").cost.fraction

    def backward(self, iteration: int) -> tuple[Tensor, Tensor]:
        """See `Task.backward`; means are over the evaluations of the loop, too."""
        losses: list[Tensor] = []
        errors: list[Tensor] = []
        loop, first, labels = self._start_loop(draw(self.settings.seed, iteration))
        policy = MixingPolicy(self._gate, Predictor(), self.run.log_snrs)
        with (
            attach(self.sampler.denoiser.model, self.table, policy) as cache,
            cache.run(first=first) as clock,
        ):

            def predict(evaluation: int, x: Tensor) -> Tensor:
                clock.tick(evaluation)
                mixed = self._mixed(evaluation, x, labels)
                with torch.no_grad():  # after the mixed call, so that what is stored is what was computed
                    full = self._predict(evaluation, x, labels)
                if mixed is not None:
                    error, price = self._loss(mixed, full, self.router.scores(evaluation))
                    (error + price).backward()  # type: ignore[no-untyped-call]
                    losses.append((error + price).detach())
                    errors.append(error.detach())
                return full

            run_loop(loop, predict)
        return torch.stack(losses).mean(), torch.stack(errors).mean()

    def update(self, iteration: int) -> None:
        """See `Task.update`."""
        self.optimizer.step()
        self.router.clamp_()

    def _loss(self, mixed: Tensor, full: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return router_loss(mixed, full, scores, self.settings.lambda_, self.settings.reduction)

    def _start_loop(self, generator: torch.Generator) -> tuple[SamplingLoop, int, Tensor]:
        """A new loop, the evaluation that it starts with, and the labels of its network inputs."""
        denoiser, size = self.sampler.denoiser, self.settings.batch_size
        noise = torch.randn((size, *denoiser.sample_shape), generator=generator)[self.rows].to(self.device)
        if self.data is None:
            guidance = self.sampler.guidance
            labels = random_labels(generator, size, denoiser.num_classes)[self.rows].to(self.device)
            loop = sampling_loop(self.sampler.make_solver(), noise)
            if guidance.scale == 1:
                return loop, 0, labels
            null = torch.full_like(labels, denoiser.null_class)
            return guided_loop(loop, guidance), 0, torch.cat([labels, null])
        decided = self.router.evaluations
        evaluation = decided[int(torch.randint(len(decided), (), generator=generator))]
        images, labels = self._images(self.data, generator)
        loop = image_loop(self.sampler, images, noise, evaluation)
        return loop, evaluation - evaluations_per_step(self.run.solver), labels

    def _images(self, data: ImageData, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """This process's real images of a batch and their labels, some replaced by the null class."""
        denoiser, size = self.sampler.denoiser, self.settings.batch_size
        images, labels = data.batch(generator, size, self.rows)
        if labels is None:
            labels = torch.full((len(images),), denoiser.null_class)
        dropped = (torch.rand(size, generator=generator) < self.label_dropout)[self.rows]
        if dropped.any():
            labels = torch.where(dropped, denoiser.null_class, labels)
        return images.to(self.device), labels.to(self.device)

    def _gate(self, evaluation: int, layer: int) -> bool | Tensor:
        return True if self._row is None else self._row[layer]

    def _mixed(self, evaluation: int, x: Tensor, labels: Tensor) -> Tensor | None:
        """Prediction with layers mixed by the router, with its graph; None where the router decides nothing."""
        if not self.router.decides(evaluation):
            return None
        self._row = self.router.scores(evaluation)
        try:
            return self._predict(evaluation, x, labels)
        finally:
            self._row = None

    def _predict(self, evaluation: int, x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            return self.sampler.denoiser(x, self.timesteps[evaluation], labels)

    def schedule(self, provenance: dict[str, Any], model_name: str) -> CacheSchedule:
        """The schedule that the scores say now."""
        scores = self.router.score_table(len(self.run.timesteps))
        return CacheSchedule(
            compute=scores.isnan() | (scores > self.settings.threshold),
            layers=self.table,
            contract=Contract(
                self.run, model_name, self.fingerprint, self.sampler.denoiser.noise_schedule.prediction_type
            ),
            scores=scores,
            provenance=provenance,
        )
