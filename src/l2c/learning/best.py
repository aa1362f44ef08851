"""The best state of what is learned, by pictures that take part in neither learning nor reporting."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from l2c.learning.task import Task


def parameters_of(task: Task) -> list[torch.nn.Parameter]:
    """What a task learns, in the order of its optimizer."""
    return [parameter for group in task.optimizer.param_groups for parameter in group["params"]]


def copy_of(task: Task) -> list[Tensor]:
    """What a task has learned so far, on the CPU."""
    return [parameter.detach().cpu().clone() for parameter in parameters_of(task)]


@torch.no_grad()
def put(task: Task, values: list[Tensor]) -> None:
    """Inverse of `copy_of`."""
    for parameter, value in zip(parameters_of(task), values, strict=True):
        parameter.copy_(value)


def vector_of(task: Task) -> Tensor:
    """What a task has learned so far as one vector, float32, on the CPU."""
    return torch.cat([value.flatten().float() for value in copy_of(task)])


def put_vector(task: Task, vector: Tensor) -> None:
    """Inverse of `vector_of`."""
    parameters = parameters_of(task)
    parts = torch.split(vector, [parameter.numel() for parameter in parameters])
    put(task, [part.view_as(parameter) for parameter, part in zip(parameters, parts, strict=True)])


@dataclass
class BestState:
    """The state of the least validation error so far.

    Attributes:
        error: That error; infinite before there is one.
        iteration: Iterations after which it was.
        parameters: What had been learned then.
        validated: Iterations at the last validation.
        stale: Validations since the best.
    """

    error: float = math.inf
    iteration: int = 0
    parameters: list[Tensor] = field(default_factory=list)
    validated: int = -1
    stale: int = 0

    @classmethod
    def of(cls, state: dict[str, Any] | None) -> BestState:
        """From what `to_state` has given; nothing yet for None."""
        return cls() if state is None else cls(**state)

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain data, for a checkpoint."""
        return dict(vars(self))

    def due(self, task: Task, iteration: int, *, last: bool = False) -> bool:
        """Whether to validate now: at every so many iterations, and at the last."""
        every = task.validate_every
        return bool(every) and self.validated < iteration and (last or iteration % every == 0)

    def validate(self, task: Task, iteration: int) -> None:
        """Compares the state of a task with the best one."""
        error = task.validate()
        self.validated = iteration
        if error < self.error:
            self.error, self.iteration, self.stale = error, iteration, 0
            self.parameters = copy_of(task)
        else:
            self.stale += 1

    def exhausted(self, task: Task) -> bool:
        """Whether the error has not fallen for as many validations as the task waits for."""
        return task.patience is not None and self.stale >= task.patience
