"""Learning a router by the paper's objective: `learn`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2c.cache.predictors import Predictor
from l2c.cache.runtime import SoftGates, attach
from l2c.cache.schedule import CacheSchedule, Contract
from l2c.errors import ConfigError, NumericsError
from l2c.layers import find_layers, fingerprint
from l2c.learning.data import ImageData
from l2c.learning.objective import REDUCTIONS, router_loss
from l2c.learning.router import Router, alternating
from l2c.learning.trajectories import Walk, drive, guided_walk, image_walk, sampled_walk, steps_before
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where learning stands after an iteration.

    Attributes:
        iteration: Iterations done.
        iterations: Iterations asked for.
        loss: Error plus price of the scores, averaged over the evaluations of the iteration.
        error: The error alone.
        fraction: Share of the run's multiply-accumulates that the schedule so far computes.
        elapsed_s: Seconds since the start.
    """

    iteration: int
    iterations: int
    loss: float
    error: float
    fraction: float
    elapsed_s: float


@dataclass(frozen=True)
class LearnSettings:
    """Settings of the paper's objective.

    Attributes:
        iterations: Optimizer steps. One covers a whole trajectory, all evaluations that the router decides; with
            real images, one evaluation drawn at random, as in the paper.
        batch_size: Images per iteration.
        lambda_: Price of a computed layer; larger removes more.
        reduction: See `router_loss`.
        threshold: Scores above it compute.
        learning_rate: Of AdamW, without weight decay.
        label_dropout: Share of labels replaced by the null class, with real images. Trajectories under guidance
            always carry both.
        seed: Of noise, labels and images.
    """

    iterations: int = 60
    batch_size: int = 4
    lambda_: float = 1e-5
    reduction: str = "mean"
    threshold: float = 0.5
    learning_rate: float = 0.2
    label_dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be from 0 to 1, got {self.threshold}")
        if not 0 <= self.lambda_ < math.inf or not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"lambda must be 0 or more and the learning rate more than 0, got {self.lambda_} and "
                f"{self.learning_rate}"
            )
        if self.reduction not in REDUCTIONS:
            raise ConfigError(f"unknown reduction '{self.reduction}'; choose {' or '.join(REDUCTIONS)}")


def learn(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    *,
    spacing: str = "linspace",
    guidance: float = 1.5,
    data: ImageData | None = None,
    settings: LearnSettings | None = None,
    model_name: str = "",
    on_progress: Callable[[Progress], None] | None = None,
) -> CacheSchedule:
    """Learns which layers to compute at every second evaluation of a run.

    The model is frozen: only the router's logits take gradients. Without `data` the noisy inputs come from the
    model's own sampling trajectories, so nothing but the model is needed. Ctrl-C ends learning with the schedule
    so far, marked in its provenance.

    Args:
        model: A model from `load_model`, or any with a layer adapter.
        solver: Solver of the run.
        steps: Model evaluations of the run.
        spacing: Spacing of the evaluations.
        guidance: Guidance scale of the trajectories.
        data: Real images to noise instead, as in the paper; guidance then plays no part.
        settings: Everything else.
        model_name: Recorded in the schedule, for people.
        on_progress: Called after every iteration.

    Returns:
        A schedule with the router's scores in it.

    Raises:
        ConfigError: If an argument is unknown or out of range.
        NumericsError: If the loss is not finite.

    Source: arXiv 2406.01733, section 3.3.
    """
    settings = settings or LearnSettings()
    denoiser = Denoiser.of(model)
    sampler = Sampler(denoiser, solver, steps, spacing, Guidance(guidance))
    learner = _Learner(sampler, settings, data)
    interrupted, started, done = False, time.monotonic(), 0
    try:
        for done in range(1, settings.iterations + 1):
            loss, error = learner.iterate()
            if not math.isfinite(loss):
                raise NumericsError(
                    f"the loss is {loss} at iteration {done}; check the weights for NaN, or learn in float32"
                )
            if on_progress is not None:
                fraction = learner.schedule({}, "").cost.fraction
                on_progress(
                    Progress(done, settings.iterations, loss, error, fraction, time.monotonic() - started)
                )
    except KeyboardInterrupt:
        interrupted = True
        logger.warning("interrupted after %d of %d iterations", done, settings.iterations)
    return learner.schedule(
        {
            "method": "l2c",
            "source": "arXiv 2406.01733",
            "inputs": "real images" if data is not None else "own trajectories",
            "iterations": done,
            "batch_size": settings.batch_size,
            "lambda": settings.lambda_,
            "reduction": settings.reduction,
            "threshold": settings.threshold,
            "learning_rate": settings.learning_rate,
            "seed": settings.seed,
            "seconds": round(time.monotonic() - started, 1),
            "interrupted": interrupted,
        },
        model_name,
    )


class _Learner:
    """State of a learning run: the router, its optimizer, and the random numbers."""

    def __init__(self, sampler: Sampler, settings: LearnSettings, data: ImageData | None) -> None:
        self.sampler = sampler
        self.settings = settings
        self.data = data
        self.table = find_layers(sampler.denoiser.model)
        self.run = sampler.run
        evaluations = alternating(self.run)
        if not evaluations:
            raise ConfigError(f"{self.run.title} has no evaluation that could reuse another; take more steps")
        self.device = sampler.denoiser.device
        self.router = Router(evaluations, len(self.table)).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.router.parameters(), lr=settings.learning_rate, weight_decay=0.0
        )
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.timesteps = torch.tensor(self.run.timesteps, device=self.device)
        self.fingerprint = fingerprint(sampler.denoiser.model, self.table)
        self._row: Tensor | None = None  # scores of the evaluation being mixed; None: everything computes

    def iterate(self) -> tuple[float, float]:
        """One optimizer step.

        Returns:
            Mean loss and mean error over the evaluations of the step.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        errors: list[Tensor] = []
        walk, first, labels = self._start_walk()
        gating = SoftGates(self._gate, Predictor(), self.run.log_snrs)
        with (
            attach(self.sampler.denoiser.model, self.table, gating) as cache,
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

            drive(walk, predict)
        self.optimizer.step()
        self.router.clamp_()
        return torch.stack(losses).mean().item(), torch.stack(errors).mean().item()

    def _loss(self, mixed: Tensor, full: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return router_loss(mixed, full, scores, self.settings.lambda_, self.settings.reduction)

    def _start_walk(self) -> tuple[Walk, int, Tensor]:
        """A new walk, the evaluation that it starts with, and the labels of its network inputs."""
        denoiser, size = self.sampler.denoiser, self.settings.batch_size
        shape = (size, *denoiser.sample_shape)
        noise = torch.randn(shape, generator=self.generator).to(self.device)
        if self.data is None:
            guidance = self.sampler.guidance
            labels = torch.randint(denoiser.num_classes, (size,), generator=self.generator).to(self.device)
            walk = sampled_walk(self.sampler, noise)
            if guidance.scale == 1:
                return walk, 0, labels
            null = torch.full_like(labels, denoiser.null_class)
            return guided_walk(walk, guidance), 0, torch.cat([labels, null])
        decided = self.router.evaluations
        evaluation = decided[int(torch.randint(len(decided), (), generator=self.generator))]
        images, labels = self._images()
        walk = image_walk(self.sampler, images, noise, evaluation)
        return walk, evaluation - steps_before(self.run.solver), labels

    def _images(self) -> tuple[Tensor, Tensor]:
        """A batch of real images and their labels, some replaced by the null class."""
        assert self.data is not None
        denoiser = self.sampler.denoiser
        images, labels = self.data.batch(self.generator, self.settings.batch_size)
        if labels is None:
            labels = torch.full((len(images),), denoiser.null_class)
        dropped = torch.rand(len(images), generator=self.generator) < self.settings.label_dropout
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
        return self.sampler.denoiser(x, self.timesteps[evaluation], labels)

    def schedule(self, provenance: dict[str, Any], model_name: str) -> CacheSchedule:
        """The schedule that the scores say now."""
        scores = self.router.score_table(len(self.run.timesteps))
        return CacheSchedule(
            compute=scores.isnan() | (scores > self.settings.threshold),
            layers=self.table,
            contract=Contract(self.run, model_name, self.fingerprint),
            scores=scores,
            provenance=provenance,
        )
