"""Trials of a search: judged one after another, reported, and kept in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from l2c.learning.session import Progress
from l2c.learning.trainer import Trainer

Tried = TypeVar("Tried")


class Trials(Generic[Tried]):
    """Judges what a search tries by what it makes, and remembers in the checkpoint how far it has come.

    A search that goes on takes the same way again, so that errors in the order of trials are all there is to know.

    Args:
        trainer: Checkpoint and limits.
        error_of: Error of what is tried.
        count: Trials that there may be.
        name: Of the stage, for people.
        key: Of the errors in the checkpoint.
        fraction: Share of the work that is computed, for people.
        until: Share of the time limit after which no more are made.
    """

    def __init__(
        self,
        trainer: Trainer,
        error_of: Callable[[Tried], float],
        count: int,
        name: str,
        key: str,
        fraction: float,
        until: float,
    ) -> None:
        self._trainer, self._error_of, self._count = trainer, error_of, count
        self._name, self._key, self._fraction, self._until = name, key, fraction, until
        self._known: list[float] = trainer.kept.get(key, _NONE).tolist()
        self._made, self._began_s = 0, trainer.elapsed_s

    def error(self, tried: Tried) -> float:
        """Error of what is tried."""
        self._made += 1
        if self._made <= len(self._known):
            return self._known[self._made - 1]
        trainer, error = self._trainer, self._error_of(tried)
        trainer.kept[self._key] = torch.cat([trainer.kept.get(self._key, _NONE), _NONE.new_tensor([error])])
        trainer.save(if_due=True)
        return error

    def report(self, trial: int, error: float) -> bool:
        """Reports so many trials and the least error; returns whether the time for searching is over.

        What the checkpoint has takes no time, so that a search never stops short of where it was.
        """
        trainer, elapsed_s, fresh = self._trainer, self._trainer.elapsed_s, self._made - len(self._known)
        if fresh < 0:
            return False
        left_s = (elapsed_s - self._began_s) / max(fresh, 1) * (self._count - trial)
        trainer.report(
            Progress(self._name, trial, self._count, error**2, error, self._fraction, elapsed_s, left_s)
        )
        return trainer.used_up(self._until)


_NONE = torch.zeros(0, dtype=torch.float64)
