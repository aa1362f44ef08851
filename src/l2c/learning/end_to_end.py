"""Learning forecasts, and a solver with them, by what they do to the final picture.

Gradients go back through the whole sampled run of the frozen model, with its own forecasts, its own stored features
and guidance, from the distance of the final picture to a fine-step solution from the same noise. Fitting
coefficients to the features instead, layer by layer, leaves small biases that pile up over layers and evaluations.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.layers import find_layers, fingerprint
from l2c.learning.checkpoint import digest
from l2c.learning.pictures import Pictures, errors, solve
from l2c.learning.session import OnProgress, Session
from l2c.learning.student import Student
from l2c.learning.task import TaskSettings, draw, rate_at
from l2c.learning.trainer import Outcome, Trainer
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler
from l2c.schedule.contract import Contract, Run
from l2c.schedule.schedule import CacheSchedule

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class LearnSettings(TaskSettings):
    """How masks, forecasts and solvers are learned in the closed loop.

    Attributes:
        num_pictures: Pictures whose fine-step solutions are computed beforehand; a quarter of them is held out.
        history: How many computed values a forecast reads at most.
        learning_rate: Of Adam, for the coefficients of forecasts; it warms up over 5 steps and falls to 0 on a cosine.
        reference_steps: Evaluations of the fine-step solution (DPM-Solver++(3M), evenly spaced in log-SNR).
        trials: Masks that are judged for a budget, at most.
        trial_pictures: Pictures that each of them makes to be judged.
        recompute: Keep only the inputs of computed layers for the backward pass and compute the layers again in
            it: a third more time, for a fraction of the memory.
    """

    iterations: int = 30
    num_pictures: int = 32
    history: int = 3
    learning_rate: float = 4e-3
    reference_steps: int = 40
    trials: int = 32
    trial_pictures: int = 6
    recompute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reference_steps", "trials", "trial_pictures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.history <= 5:
            raise ConfigError(f"history must be from 1 to 5, got {self.history}")
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


class StudentTask:
    """A student, its optimizer, and the pictures it comes close to.

    Args:
        student: What is learned.
        fraction: Share of the MACs that its mask computes.
        settings: How to learn.
        pictures: What to learn on.
        rows: Rows of a batch to learn on; the other processes have the others.
    """

    def __init__(
        self, student: Student, fraction: float, settings: LearnSettings, pictures: Pictures, rows: slice
    ) -> None:
        self.student, self.fraction = student, fraction
        self._settings, self._pictures, self._rows = settings, pictures, rows
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(student.groups(), betas=(0.9, 0.99))

    def backward(self, iteration: int) -> tuple[Tensor, Tensor]:
        """See `Task.backward`."""
        batch = self._pictures.rows(self._draw(iteration)[self._rows])
        error = errors(self.student(batch.noise, batch.labels), batch.target).mean()
        error.backward()  # type: ignore[no-untyped-call]
        return error.detach(), error.detach()

    def update(self, iteration: int) -> None:
        """See `Task.update`."""
        rate = self._settings.learning_rate * rate_at(iteration, self._settings.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.step()

    def _draw(self, iteration: int) -> Tensor:
        """Indices of a batch's pictures: all of them in random order, then all again, and so on."""
        count, size = len(self._pictures), self._settings.batch_size
        places = range(iteration * size, (iteration + 1) * size)
        epochs = {
            epoch: torch.randperm(count, generator=draw(self._settings.seed, "epoch", epoch))
            for epoch in {place // count for place in places}
        }
        return torch.stack([epochs[place // count][place % count] for place in places])


class ClosedLoop:
    """What learning for one model, run and set of pictures shares, however many schedules come of it.

    Args:
        trainer: Processes, checkpoint and limits.
        sampler: The frozen model and its run.
        settings: How to learn.
        model_name: Recorded in schedules, for people.

    Attributes:
        training: Pictures to learn on.
        trial: Those of them by which masks are judged.
    """

    def __init__(self, trainer: Trainer, sampler: Sampler, settings: LearnSettings, model_name: str) -> None:
        self.trainer, self.sampler, self.settings = trainer, sampler, settings
        self._model_name = model_name
        self._table = find_layers(sampler.denoiser.model)
        self._fingerprint = fingerprint(sampler.denoiser.model, self._table)
        pictures = solve(
            trainer, sampler.denoiser, settings.num_pictures, settings.reference_steps, sampler.guidance, 1.0
        )
        self._held_out = pictures.rows(slice(0, settings.num_held_out))
        self.training = pictures.rows(slice(settings.num_held_out, None))
        self.trial = self.training.rows(slice(0, settings.trial_pictures))

    def error(self, student: Student, pictures: Pictures | None = None) -> float:
        """Mean root mean square error of the held-out pictures, or of others."""
        pictures = pictures or self._held_out
        with torch.no_grad():
            size = 2 * self.settings.batch_size
            made = self.trainer.processes.in_rounds(student, pictures.noise, pictures.labels, size)
            return errors(torch.cat(list(made)), pictures.target).mean().item()

    def kept_error(self, name: str, student: Student) -> float:
        """The held-out error of a student, from the checkpoint if that has it."""
        if name not in self.trainer.kept:
            self.trainer.kept[name] = torch.tensor(self.error(student))
        return self.trainer.kept[name].item()

    def student(self, compute: Tensor, order: int | None = None, *, free_solver: bool = False) -> Student:
        """A student with a mask, nothing learned yet; for the order see `Student`."""
        return self.student_of(self.sampler, compute, order, free_solver=free_solver)

    def student_of(
        self, sampler: Sampler, compute: Tensor, order: int | None = None, *, free_solver: bool = False
    ) -> Student:
        """A student of another run of the model."""
        settings = self.settings
        return Student(
            sampler,
            compute,
            settings.history,
            order=order,
            free_solver=free_solver,
            bf16=settings.bf16,
            recompute=settings.recompute,
        )

    def fit(
        self,
        compute: Tensor,
        provenance: dict[str, Any],
        *,
        order: int | None = None,
        free_solver: bool = False,
        stage: str = "",
    ) -> tuple[CacheSchedule, Outcome]:
        """Learns the parameters of a student with a mask.

        Args:
            compute: The mask, bool (evaluations, layers).
            provenance: What to record beside the figures of learning.
            order: See `Student`.
            free_solver: Learn the solver, too.
            stage: See `Trainer.run`.
        """
        student = self.student(compute, order, free_solver=free_solver)
        start = CacheSchedule(compute, self._table, self._contract(self.sampler.run))
        before = self.kept_error(f"error before {stage}", student)
        task = StudentTask(student, start.cost.fraction, self.settings, self.training, self.trainer.rows)
        outcome = self.trainer.run(task, stage)
        error = self.error(student)
        if round(error, 4) > round(before, 4):
            logger.warning(
                "learning took the error of pictures that it did not see from %.4f to %.4f; "
                "try a lower learning rate (--lr) or more iterations",
                before,
                error,
            )
        run, predictor = student.result()
        return (
            replace(
                start,
                predictor=predictor,
                contract=self._contract(replace(run, guidance=self.sampler.guidance.scale)),
                provenance={
                    **provenance,
                    "predictor": "linear, learned end to end on the final picture",
                    "settings": asdict(self.settings),
                    "iterations": outcome.iterations,
                    "held_out_error_before": round(before, 5),
                    "held_out_error": round(error, 5),
                    "interrupted": outcome.interrupted,
                    "time_was_up": outcome.time_was_up,
                },
            ),
            outcome,
        )

    def _contract(self, run: Run) -> Contract:
        denoiser = self.sampler.denoiser
        return Contract(run, self._model_name, self._fingerprint, denoiser.noise_schedule.prediction_type)


def fit_predictor(
    model: nn.Module,
    schedule: CacheSchedule,
    *,
    guidance: float = 1.5,
    settings: LearnSettings | None = None,
    session: Session | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
) -> CacheSchedule:
    """Learns a linear predictor for the mask of a schedule, end to end on the final picture.

    Learning starts at the polynomial through the last `history` computed values. The result is the schedule with
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
        ConfigError: If the schedule computes everything, so that nothing is forecast; if the checkpoint is that
            of another run; or if the time limit leaves none for learning.
        ContractError: If the schedule is for another model.
        NumericsError: If the error is not finite.
    """
    settings = settings or LearnSettings()
    schedule.check_layers(find_layers(model))
    if schedule.compute.all():
        raise ConfigError("the schedule computes everything; a predictor needs layers that are reused")
    sampler = Sampler.of_run(Denoiser.of(model), schedule.contract.run, Guidance(guidance))
    schedule.contract.check_run(sampler.run)
    trainer = Trainer("predictor", sampler, settings, session, on_progress, mask=digest(schedule.compute))
    loop = ClosedLoop(trainer, sampler, settings, model_name)
    learned, _ = loop.fit(schedule.compute, dict(schedule.provenance))
    return learned
