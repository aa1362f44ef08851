"""What the loop of learning is given: a task, its settings, and its random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from l2c.documents import Count, Seed, check_fields

WARM_UP = 5
"""Iterations in which a learning rate rises."""


class Task(Protocol):
    """What is learned: the parameters of an optimizer.

    Attributes:
        optimizer: Has the parameters.
        validate_every: Iterations between two validations, by which the best state is kept; 0 keeps the last.
        patience: Validations without a lower error after which learning ends; None never ends it.
    """

    optimizer: torch.optim.Optimizer
    validate_every: int
    patience: int | None

    @property
    def fraction(self) -> float:
        """See `Progress.fraction`."""
        ...

    def backward(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Adds the gradients of this process's rows of a batch; returns their mean loss and error.

        Args:
            iteration: Iterations done before this one.
        """
        ...

    def update(self, iteration: int) -> None:
        """One step of the optimizer."""
        ...

    def validate(self) -> float:
        """Error of examples that nothing is learned on and nothing is reported of; the same in every process."""
        ...


@dataclass(frozen=True)
class TaskSettings:
    """What the settings of every task have.

    Attributes:
        iterations: Optimizer steps.
        batch_size: Pictures per step, over all processes.
        bf16: Run the network in bfloat16; what is learned stays in float32.
        seed: Of everything that is drawn.
    """

    iterations: Count = 60
    batch_size: Count = 4
    bf16: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)


def rate_at(iteration: int, iterations: int) -> float:
    """Share of the learning rate at an iteration: it rises at first, and falls to 0 on a cosine."""
    rise = min(1.0, (iteration + 1) / WARM_UP)
    return rise * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
