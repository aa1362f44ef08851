"""What decides how masks, forecasts and solvers are learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from l2c.errors import ConfigError
from l2c.learning.task import TaskSettings

HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class LearnSettings(TaskSettings):
    """How schedules are learned in the closed loop, for a model or a pipeline.

    Attributes:
        num_examples: Pictures whose references are computed beforehand; a quarter of them is held out, on a pipeline
            with prompts that nothing is learned on, as far as there are enough.
        history: How many computed values a forecast reads at most.
        learning_rate: Of Adam, for the coefficients of forecasts; it warms up over 5 steps and falls to 0 on a cosine.
        reference_steps: Evaluations of the fine-step solution that pictures come close to; None takes what the run
            itself makes with everything computed, which is also taken where no fine solution can be had.
        trials: Masks that are tried for a budget, at most.
        trial_examples: Pictures that each of them makes.
        recompute: Keep only the inputs of computed layers for the backward pass and compute the layers again in
            it: a third more time, for a fraction of the memory. `evaluations`, for pipelines: keep only the latents of
            the run and the values that are reused, and compute whole evaluations again, one at a time.
    """

    iterations: int = 30
    num_examples: int = 32
    history: int = 3
    learning_rate: float = 4e-3
    reference_steps: int | None = 40
    trials: int = 32
    trial_examples: int = 6
    recompute: bool | Literal["evaluations"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reference_steps", "trials", "trial_examples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.recompute not in (False, True, "evaluations"):
            raise ConfigError(f"recompute is False, True (layers) or 'evaluations', got {self.recompute!r}")
        if not 1 <= self.history <= 5:
            raise ConfigError(f"history must be from 1 to 5, got {self.history}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"the learning rate must be more than 0, got {self.learning_rate}")
        if self.num_held_out < 1 or self.num_examples - self.num_held_out < self.batch_size:
            raise ConfigError(
                f"num_examples must leave at least one batch of {self.batch_size} when a quarter is held out, "
                f"got {self.num_examples}"
            )

    @property
    def num_held_out(self) -> int:
        """Pictures that take no part in learning and tell how good it is."""
        return int(self.num_examples * HELD_OUT_SHARE)
