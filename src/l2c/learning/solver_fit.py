"""Where learning a solver begins: weights by least squares, noise levels by search with them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from l2c.hosts.base import errors
from l2c.learning.noise_levels import search_levels
from l2c.learning.objective import power_mean
from l2c.learning.recall import Recall
from l2c.learning.references import References
from l2c.learning.settings import LearnSettings
from l2c.learning.student import Student
from l2c.learning.trainer import Trainer
from l2c.learning.trials import Trials

UNTIL = 0.7
"""Share of a time limit after which no more noise levels are tried."""

logger = logging.getLogger(__name__)


class SolverFit:
    """Fits free solvers of students to paths of fine-step solutions.

    Args:
        trainer: Processes, checkpoint and limits.
        unit: Of errors, see `Host`.
        settings: How to learn.
        fitting: References with paths.
        mean: What is made small over the errors (B,) of pictures.
    """

    def __init__(
        self,
        trainer: Trainer,
        unit: str,
        settings: LearnSettings,
        fitting: References,
        mean: Callable[[Tensor], float],
    ) -> None:
        self._trainer, self._unit, self._settings, self._mean = trainer, unit, settings, mean
        self._fitting = fitting

    def trial_error(self, student: Student, *, unseen: bool = False) -> float:
        """Typical error of the pictures that masks are judged by, to which the solver is fitted first.

        That tells students with as many weights apart, by the geometric mean. A fit with more weights is closer to what
        it is fitted to: with `unseen`, the mean error of as many other pictures judges, of the same run.
        """
        count = self._settings.trial_examples
        run = self._fitting.rows(slice(0, 2 * count if unseen else count))
        fitted = (len(run) + 1) // 2 if unseen else len(run)
        return power_mean(self._errors_apart(student, run, fitted), 1 if unseen else 0)

    def crossed_error(self, student: Student) -> float:
        """Mean error of all pictures that there are paths of: each half by the solver that is fitted to the other."""
        count = len(self._fitting)
        first, last = list(range((count + 1) // 2)), list(range((count + 1) // 2, count))
        folds = [(first, last), (last, first)] if last else [(first, last)]
        found = [
            self._errors_apart(student, self._fitting.rows(fitted + judged), len(fitted))
            for fitted, judged in folds
        ]
        return torch.cat(found).mean().item()

    def _errors_apart(self, student: Student, run: References, fitted: int) -> Tensor:
        """Errors of the pictures of a run after those that are fitted to, or of these if there are no others."""
        made = self._fit(student, run, fitted)
        judged = slice(fitted if fitted < len(run) else 0, None)
        return errors(made[judged], run.target[judged], self._unit)

    def begin(
        self,
        student: Student,
        stage: str,
        fraction: float,
        validate: Callable[[Student], float] | None,
        others: Sequence[Sequence[float]] = (),
    ) -> None:
        """Gives a student the noise levels and weights to begin with.

        Args:
            student: Whose solver is free.
            stage: Tells it from others in the checkpoint.
            fraction: Share of the work that it computes, for people.
            validate: Error of pictures that nothing is fitted to: if they were closer with the weights and levels to
                begin with, as may be with very few pictures, those stay.
            others: Noise levels that the search may begin at instead, as half log-SNRs (N,); they take half of its
                trials at most.
        """
        given = student.log_snrs, student.fitted
        self._search(student, stage, fraction, others)
        if validate is None:
            return
        found = student.log_snrs, student.fitted

        def is_closer() -> Tensor:
            error = validate(student)
            student.begin_at(*given)
            return torch.tensor(error <= validate(student))

        with student.attached(), torch.no_grad():
            kept = self._trainer.keep(f"fit is kept {stage}".rstrip(), is_closer)
            student.begin_at(*(found if kept else given))

    def _search(
        self, student: Student, stage: str, fraction: float, others: Sequence[Sequence[float]]
    ) -> None:
        """Noise levels whose fitted solver comes closest to the pictures that it is fitted to, and that solver."""
        fitting, key = self._fitting, f"noise levels {stage}".rstrip()
        reuses = not bool(student.compute.all())

        def error_of(log_snrs: Tensor, recall: Recall | None = None) -> float:
            student.begin_at(log_snrs)
            made = self._fit(student, fitting, len(fitting), recall)
            found = self._mean(errors(made, fitting.target, self._unit))
            return self._trainer.processes.mean(torch.tensor(found, device=log_snrs.device)).item()

        def searched() -> Tensor:
            count, least = self._settings.num_levels(reuses=reuses), math.inf
            recall = None if reuses else Recall(student.models)  # with reuse, layers have values of their own

            def trial(log_snrs: Tensor) -> float:
                nonlocal least
                error = error_of(log_snrs, recall)
                if error < least:
                    least = error
                    if recall is not None:
                        recall.keep()
                return error

            trials = Trials[Tensor](
                self._trainer, trial, count, f"trying {key}", f"trials of {key}", fraction, UNTIL
            )
            first = student.log_snrs
            rest = [first.new_tensor(levels) for levels in others[: count // 2]]
            levels, error, tried = search_levels(first, trials.error, count, trials.report, rest)
            logger.info("%d sets of noise levels tried, error %.4f", tried, error)
            return levels.cpu()

        levels = self._trainer.keep(key, searched)
        student.eval()  # in the precision that the schedule will be used in
        error_of(levels.to(student.log_snrs))
        student.train()

    def _fit(self, student: Student, run: References, fitted: int, recall: Recall | None = None) -> Tensor:
        """Fits to the first pictures of a run, and returns what is made of all."""
        assert run.paths is not None
        with nullcontext() if recall is None else recall.run(), student.attached():
            made = student.fit_solver(run.examples, run.paths.rows(slice(0, fitted)))
        assert student.fitted is not None
        table, steps = student.fitted
        student.fitted = self._trainer.processes.mean(table), self._trainer.processes.mean(steps)
        return made
