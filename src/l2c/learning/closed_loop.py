"""Learning forecasts, and a solver with them, by what they do to the final picture.

Gradients go back through the whole sampled run of the frozen model, with its own forecasts, its own stored features
and guidance, from the distance of the final picture to a fine-step solution from the same noise. Fitting
coefficients to the features instead, layer by layer, leaves small biases that pile up over layers and evaluations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from l2c.hosts.base import Host, errors
from l2c.hosts.labelled_noise import LabelledNoise
from l2c.learning.objective import power_mean, powers
from l2c.learning.references import References, round_size
from l2c.learning.settings import LearnSettings
from l2c.learning.solver_fit import SolverFit
from l2c.learning.student import Student
from l2c.learning.task import rate_at
from l2c.learning.trainer import Outcome, Trainer
from l2c.sampling.draw import draw
from l2c.schedule.contract import Run
from l2c.schedule.schedule import CacheSchedule

logger = logging.getLogger(__name__)


class StudentTask:
    """A student, its optimizer, and the references it comes close to.

    Args:
        student: What is learned, attached.
        host: What it runs on.
        fraction: Share of the MACs that its mask computes.
        settings: How to learn.
        references: What to learn on.
        rows: Rows of a batch to learn on; the other processes have the others.
        scale: What errors are measured in where the worst pictures count for more: the mean error at first.
        validation: Tells the error by which the best state is kept.
    """

    def __init__(
        self,
        student: Student,
        host: Host,
        fraction: float,
        settings: LearnSettings,
        references: References,
        rows: slice,
        scale: float,
        validation: Callable[[], float],
    ) -> None:
        self.student, self.fraction = student, fraction
        self.validate_every, self.patience = settings.validate_every, settings.patience
        self._scale, self._validation = scale, validation
        self._host, self._settings, self._references, self._rows = host, settings, references, rows
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(student.groups(), betas=(0.9, 0.99))

    def backward(self, iteration: int) -> tuple[Tensor, Tensor]:
        """See `Task.backward`; a host that runs one example after another goes back through each by itself.

        With a tail, the loss of a picture is a power of its error, or its logarithm. So it needs no other pictures,
        and batches with hard ones weigh more.
        """
        mine = self._draw(iteration)[self._rows].tolist()
        parts = [mine] if self._host.batched else [[row] for row in mine]
        power, scale = self._settings.tail, self._scale
        total, loss = (torch.zeros((), device=self._host.device) for _ in range(2))
        for part in parts:
            batch = self._references.rows(part)
            made = self.student(batch.examples)
            each = errors(made, batch.target, self._host.unit)
            weighed = scale * powers(each / scale, power).sum()
            (weighed / len(mine)).backward()  # type: ignore[no-untyped-call]
            loss += weighed.detach() / len(mine)
            total += each.detach().sum() / len(mine)
        return loss, total

    def update(self, iteration: int) -> None:
        """See `Task.update`."""
        rate = self._settings.learning_rate * rate_at(iteration, self._settings.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.step()

    def validate(self) -> float:
        """See `Task.validate`."""
        return self._validation()

    def _draw(self, iteration: int) -> Tensor:
        """Indices of a batch's examples: all of them in random order, then all again, and so on."""
        count, size = len(self._references), self._settings.batch_size
        places = range(iteration * size, (iteration + 1) * size)
        epochs = {
            epoch: torch.randperm(count, generator=draw(self._settings.seed, "epoch", epoch))
            for epoch in {place // count for place in places}
        }
        return torch.stack([epochs[place // count][place % count] for place in places])


class ClosedLoop:
    """What learning on one host and set of references shares, however many schedules come of it.

    Args:
        trainer: Processes, checkpoint and limits.
        host: The frozen model and its run.
        references: Held-out ones first.
        settings: How to learn.
        model_name: Recorded in schedules, for people.

    Attributes:
        training: References to learn on.
    """

    def __init__(
        self,
        trainer: Trainer,
        host: Host,
        references: References,
        settings: LearnSettings,
        model_name: str,
    ) -> None:
        self.trainer, self.host, self.settings = trainer, host, settings
        self._model_name, self._references = model_name, references
        self._held_out = references.rows(slice(0, settings.num_held_out))
        self.training = references.rows(slice(settings.num_held_out, None))

    def error(self, student: Student, references: References | None = None) -> float:
        """Mean error of the held-out examples, or of others; for the unit see `Host`.

        Held-out examples are made in the precision that the schedule will be used in.
        """
        return self._errors_alone(student, references).mean().item()

    def _errors_alone(self, student: Student, references: References | None = None) -> Tensor:
        """Error of every example, made by a student that is not attached."""
        student.train(references is not None)
        with student.attached():
            found = self._errors(student, references or self._held_out)
        student.train()
        return found

    def _error_of_first(self, student: Student, count: int, power: float) -> float:
        """Power mean of the errors of the first examples to learn on, the geometric mean for 0."""
        examples = self._references.fitting or self.training
        return power_mean(self._errors_alone(student, examples.rows(slice(0, count))), power)

    @torch.no_grad()
    def _errors(self, student: Student, references: References) -> Tensor:
        """Error of every example, made by a student that is attached."""
        size = round_size(self.trainer, self.host)
        made = list(self.trainer.processes.in_rounds(student, references.examples, size))
        return errors(torch.cat(made), references.target, self.host.unit)

    def _validate(self, student: Student) -> float:
        """Error of the examples by which the best state is kept: as the loss, but of all of them together."""
        assert self._references.validation is not None, "settings that validate have solved some"
        student.eval()
        found = self._errors(student, self._references.validation)
        student.train()
        return self._mean(found)

    def _at_scales(self) -> dict[float, References]:
        """For a range of guidance: the held-out pictures at its ends, in its middle, and half again above it."""
        scales, examples = self.host.run.guidance_range, self._held_out.examples
        if scales is None or not isinstance(examples, LabelledNoise):
            return {}
        fine, size = self.host.reference(self.settings.reference_steps), round_size(self.trainer, self.host)
        found: dict[float, References] = {}
        for scale in (scales[0], sum(scales) / 2, scales[1], 1.5 * scales[1]):
            here = examples.at_scale(scale)
            target = self.trainer.compute(f"solutions at guidance {scale:g}", fine.sample, here, size)
            found[scale] = References(here, target.to(self.host.device))
        return found

    def _mean(self, found: Tensor) -> float:
        """The mean of errors that is made small, see `LearnSettings.tail`."""
        return power_mean(found, self.settings.tail)

    def trial_error(self, student: Student, *, unseen: bool = False) -> float:
        """Typical error of the pictures that masks are judged by; for a free solver see `SolverFit.trial_error`.

        It is the geometric mean, or with `unseen`, by which structures are told apart, the mean. Some pictures of a
        strongly guided run turn out quite different whatever the mask; in the mean of few pictures these decide, and it
        tells less of the mean of others (measured, `docs/learning.md`).
        """
        fit = self._solver_fit(student)
        if fit is not None:
            return fit.trial_error(student, unseen=unseen)
        return self._error_of_first(student, self.settings.trial_examples, 1 if unseen else 0)

    def error_of_more(self, student: Student) -> float:
        """The geometric mean for more pictures, which tells a few masks apart for a solver that stays."""
        return self._error_of_first(student, self.settings.num_fitted, 0)

    def crossed_error(self, student: Student) -> float:
        """Mean error by which structures are told apart; see `SolverFit.crossed_error`."""
        fit = self._solver_fit(student)
        if fit is not None:
            return fit.crossed_error(student)
        return self._error_of_first(student, self.settings.num_fitted, 1)

    def _solver_fit(self, student: Student) -> SolverFit | None:
        """What fits a student's solver; None if it has none of its own, or no paths are known."""
        fitting = self._references.fitting
        if fitting is None or student.corrections is None:
            return None
        return SolverFit(self.trainer, self.host.unit, self.settings, fitting, self._mean)

    def kept_error(self, name: str, student: Student) -> float:
        """The held-out error of a student, from the checkpoint if that has it."""
        return self.trainer.keep(name, lambda: torch.tensor(self.error(student))).item()

    def student(
        self,
        compute: Tensor,
        order: int | None = None,
        *,
        start: Tensor | None = None,
        solver: Run | bool = False,
    ) -> Student:
        """A student with a mask, nothing learned yet.

        Args:
            compute: The mask.
            order: See `Student`.
            start: See `Student`.
            solver: See `Student.of`.
        """
        shape = (self._references.fitting or self._references).target.shape
        return Student.of(self.host, compute, self.settings, shape, order=order, start=start, solver=solver)

    def everything(self) -> Student:
        """A student that computes everything."""
        return self.student(torch.ones(len(self.host.run.timesteps), len(self.host.table), dtype=torch.bool))

    def on(self, host: Host) -> ClosedLoop:
        """The same on another host of the same models."""
        return ClosedLoop(self.trainer, host, self._references, self.settings, self._model_name)

    def fit(
        self,
        compute: Tensor,
        provenance: Mapping[str, Any],
        *,
        order: int | None = None,
        start: Tensor | None = None,
        solver: Run | bool = False,
        stage: str = "",
        starts: Sequence[Sequence[float]] = (),
    ) -> tuple[CacheSchedule, Outcome]:
        """Learns the parameters of a student with a mask.

        Args:
            compute: The mask, bool (evaluations, layers).
            provenance: What to record beside the figures of learning.
            order: See `Student`.
            start: See `Student`.
            solver: See `Student.of`; with a run, the error before learning is that of what is given.
            stage: See `Trainer.run`.
            starts: Noise levels that a free solver may begin at instead of the host's, see `SolverFit.begin`.
        """
        host = self.host
        student = self.student(compute, order, start=start, solver=solver)
        contract = host.contract(self._model_name)
        begun = CacheSchedule(compute, host.table, contract)
        fraction = begun.cost.fraction
        given = isinstance(solver, Run)
        before = self.kept_error(f"error given {stage}", student) if given else None
        solver_fit = self._solver_fit(student)
        if solver_fit is not None:
            checked = self._references.validation is not None
            solver_fit.begin(student, stage, fraction, self._validate if checked else None, starts)
        begun_at = self.kept_error(f"error before {stage}", student)
        before = begun_at if before is None else before
        at_scales = self._at_scales()
        task = StudentTask(
            student,
            host,
            fraction,
            self.settings,
            self.training,
            self.trainer.rows,
            begun_at,
            lambda: self._validate(student),
        )
        with student.attached():
            outcome = self.trainer.run(task, stage)
            student.eval()
            each = self._errors(student, self._held_out)
            by_scale = {
                f"{scale:g}": round(self._errors(student, references).mean().item(), 5)
                for scale, references in at_scales.items()
            }
            student.train()
        error, means = each.mean().item(), host.means_by_size(self._held_out.examples, each)
        if round(error, 4) > round(before, 4):
            logger.warning(
                "learning took the error of pictures that it did not see from %.4f to %.4f; "
                "try a lower learning rate (--lr) or more iterations",
                before,
                error,
            )
        run, predictor = student.result()
        by_size = {size: round(mean, 5) for size, mean in means.items()}
        figures = {
            "predictor": "linear, learned end to end on the final picture",
            "settings": asdict(self.settings),
            "iterations": outcome.iterations,
            "iterations_kept": outcome.kept,
            "held_out_error_before": round(before, 5),
            "held_out_error": round(error, 5),
            "held_out_error_p95": round(each.quantile(0.95).item(), 5),
            "held_out_error_worst": round(each.max().item(), 5),
            "held_out_worst": self._held_out.examples.describe(int(each.argmax())),
            **({"held_out_error_by_guidance": by_scale} if by_scale else {}),
            **({"held_out_error_by_size": by_size} if len(by_size) > 1 else {}),
            "error_unit": host.unit,
            "interrupted": outcome.interrupted,
            "time_was_up": outcome.time_was_up,
        }
        learned = replace(
            begun,
            predictor=predictor,
            contract=replace(contract, run=replace(run, guidance=host.run.guidance)),
            provenance={**provenance, **host.provenance, **figures},
        )
        return learned, outcome
