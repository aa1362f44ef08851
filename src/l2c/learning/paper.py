"""Learning a router by the paper's objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from l2c.cache.cached_model import active_cache
from l2c.cache.clock import Clock
from l2c.cache.policy import MixingPolicy
from l2c.documents import LearningRate, Real, Share, one_of
from l2c.errors import ConfigError
from l2c.hosts.base import Host
from l2c.hosts.native import check_class_host
from l2c.hosts.parallel import context_of
from l2c.learning.data import ImageData, images_for
from l2c.learning.objective import REDUCTIONS, router_loss
from l2c.learning.router import Router, alternating
from l2c.learning.session import OnProgress, Session
from l2c.learning.task import TaskSettings
from l2c.learning.trainer import Trainer
from l2c.learning.trajectories import image_loop
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.draw import draw
from l2c.sampling.loop import run_loop
from l2c.sampling.solvers import evaluations_per_step
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule, mask_of_scores


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

    lambda_: Annotated[Real, Field(ge=0)] = 1e-5
    reduction: Annotated[str, one_of(*REDUCTIONS)] = "mean"
    threshold: Share = 0.5
    learning_rate: LearningRate = 0.2
    label_dropout: Share = 0.1


def learn_router(
    host: Host,
    settings: RouterSettings,
    data: ImageData | str | Path | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
) -> CacheSchedule:
    """Learns which layers to compute at every second evaluation of a run; arguments and errors as for `learn`.

    The model is frozen: only the router's logits take gradients. Without `data` the noisy inputs come from the
    host's own sampling trajectories, so nothing but the host is needed.

    Source: arXiv 2406.01733, section 3.3.
    """
    if data is not None:
        data = images_for(check_class_host(host, "learning on images").sampler.denoiser, data)
    images = None if data is None else f"{data.source.name} ({len(data)} images)"
    trainer = Trainer("router", host, settings, session, on_progress, data=images)
    task = _RouterTask(host, settings, data, trainer.rows)
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
            **host.provenance,
        },
        model_name,
    )


class _RouterPolicy(MixingPolicy):
    """Compares every call that the router decides with the same call computed whole, which the run goes on with.

    Attributes:
        losses: Of the calls so far, detached.
        errors: Likewise, without the price of the scores.
    """

    def __init__(self, router: Router, settings: RouterSettings, log_snrs: tuple[float, ...]) -> None:
        super().__init__(self._share, Predictor(), log_snrs)
        self._router, self._settings = router, settings
        self._row: Tensor | None = None  # scores of the evaluation being mixed; None: everything computes
        self.losses: list[Tensor] = []
        self.errors: list[Tensor] = []

    def _share(self, evaluation: int, layer: int) -> bool | Tensor:
        return True if self._row is None else self._row[layer]

    def evaluate(self, clock: Clock, call: Callable[[], Any]) -> Any:
        """See `ReusePolicy.evaluate`."""
        evaluation = clock.evaluation
        mixed = None
        if self._router.decides(evaluation):
            self._row = self._router.scores(evaluation)
            try:
                mixed = call()
            finally:
                self._row = None
        with torch.no_grad():  # after the mixed call, so that what is stored is what was computed
            full = call()
        if mixed is not None:
            scores, settings = self._router.scores(evaluation), self._settings
            made, wanted = _prediction(mixed), _prediction(full)
            error, price = router_loss(made, wanted, scores, settings.lambda_, settings.reduction)
            (error + price).backward()  # type: ignore[no-untyped-call]
            self.losses.append((error + price).detach())
            self.errors.append(error.detach())
        return full


def _prediction(output: Any) -> Tensor:
    """What a model's output predicts, without the wrapper of diffusers."""
    value: Tensor = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    return value


class _RouterTask:
    """A router, its optimizer, and the batches that it is learned on.

    Args:
        host: The frozen model and its run.
        settings: Settings of the objective.
        data: Real images, or None for the host's own trajectories.
        rows: Rows of a batch to learn on; the other processes have the others.
    """

    validate_every = 0
    patience: int | None = None

    def __init__(self, host: Host, settings: RouterSettings, data: ImageData | None, rows: slice) -> None:
        self._host, self._settings, self._data, self._rows = host, settings, data, rows
        self._contract = host.contract()
        if data is not None:
            self._contract = replace(self._contract, run=replace(host.run, guidance=None))
            denoiser = check_class_host(host, "learning on images").sampler.denoiser
            if data.labels is None:
                _ = denoiser.null_class  # what they are learned with: refused here if there is none
        self._run = self._contract.run
        evaluations = alternating(self._run)
        if context_of(host.models) is not None:
            raise ConfigError(
                "the paper's router is not learned on a pipeline that is split by context; learn in the closed loop, "
                "without pattern='alternate'"
            )
        if len(host.segments) > 1:
            raise ConfigError("the paper's router is for one model, and two take turns in this pipeline")
        if not evaluations:
            raise ConfigError(
                f"{self._run.title} has no evaluation that could reuse another; take more steps"
            )
        self._router = Router(evaluations, len(host.table)).to(host.device)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self._router.parameters(), lr=settings.learning_rate, weight_decay=0.0
        )

    @property
    def fraction(self) -> float:
        """See `Task.fraction`."""
        return self.schedule({}, "").cost.fraction

    def backward(self, iteration: int) -> tuple[Tensor, Tensor]:
        """See `Task.backward`; means are over the evaluations of the runs, too."""
        settings = self._settings
        policy = _RouterPolicy(self._router, settings, self._run.log_snrs)
        with self._host.attach(policy):
            if self._data is not None:
                self._step_from_images(iteration)
            else:
                examples = self._host.examples(settings.batch_size, settings.seed, iteration)
                mine = examples.rows(range(settings.batch_size)[self._rows])
                self._host.sample(mine, bf16=settings.bf16)
        return torch.stack(policy.losses).mean(), torch.stack(policy.errors).mean()

    def update(self, iteration: int) -> None:
        """See `Task.update`."""
        self.optimizer.step()
        self._router.clamp_()

    def validate(self) -> float:
        """See `Task.validate`; the last router is kept, as in the paper."""
        return math.nan

    def _step_from_images(self, iteration: int) -> None:
        """One solver step from noised images to an evaluation that the router decides, as in the paper."""
        sampler = check_class_host(self._host, "learning on images").sampler
        denoiser, settings = sampler.denoiser, self._settings
        generator = draw(settings.seed, iteration)
        shape = (settings.batch_size, *denoiser.sample_shape)
        noise = torch.randn(shape, generator=generator)[self._rows].to(denoiser.device)
        decided = self._router.evaluations
        evaluation = decided[int(torch.randint(len(decided), (), generator=generator))]
        images, labels = self._images(denoiser, generator)
        loop = image_loop(sampler, images, noise, evaluation)
        timesteps = torch.tensor(self._run.timesteps, device=denoiser.device)
        cache = active_cache(denoiser.model)
        assert cache is not None
        with cache.run(first=evaluation - evaluations_per_step(self._run.solver)) as clock:

            def predict(at: int, x: Tensor) -> Tensor:
                clock.tick(at)
                with torch.autocast(denoiser.device.type, torch.bfloat16, enabled=settings.bf16):
                    return denoiser(x, timesteps[at], labels)

            run_loop(loop, predict)

    def _images(self, denoiser: Denoiser, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """This process's real images of a batch and their labels, some replaced by the null class."""
        assert self._data is not None
        size = self._settings.batch_size
        images, labels = self._data.batch(generator, size, self._rows)
        if labels is None:
            labels = torch.full((len(images),), denoiser.null_class)
        dropout = self._settings.label_dropout if denoiser.has_null_class else 0.0
        dropped = (torch.rand(size, generator=generator) < dropout)[self._rows]
        if dropped.any():
            labels = torch.where(dropped, denoiser.null_class, labels)
        return images.to(denoiser.device), labels.to(denoiser.device)

    def schedule(self, provenance: dict[str, Any], model_name: str) -> CacheSchedule:
        """The schedule that the scores say now."""
        scores = self._router.score_table(len(self._run.timesteps))
        return CacheSchedule(
            compute=mask_of_scores(scores, self._settings.threshold),
            layers=self._host.table,
            contract=replace(self._contract, model=model_name),
            scores=scores,
            provenance=provenance,
        )
