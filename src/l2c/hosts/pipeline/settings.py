"""What decides how a schedule for a pipeline is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from l2c.errors import ConfigError
from l2c.learning.pictures import FINE_SOLVER
from l2c.learning.task import TaskSettings


@dataclass(frozen=True)
class FitSettings(TaskSettings):
    """How a schedule for a pipeline is learned.

    Attributes:
        batch_size: Runs of the pipeline per step, shared by the processes, and in each of them one after the other.
        bf16: Run the pipeline under autocast to bfloat16 while learning; it is compared with runs in its own precision.
        num_runs: Runs, each with a seed and a condition, that are learned on.
        num_held_out: Further runs, which tell how good it is, with conditions that nothing is learned on, as far as
            there are enough: at most half of them are kept for that.
        history: How many computed values a forecast reads at most.
        learning_rate: Of Adam; it warms up over 5 steps and falls to 0 on a cosine.
        reference_steps: Steps of the runs to come close to, under the same scheduler, with everything computed; None
            takes the call's own. More of them let a schedule correct the solver, too; that is for schedulers which
            draw no noise.
        reference_solver: `dpmsolver++3`: those runs are made by DPM-Solver++(3M), evenly spaced in log-SNR, as those
            of native learning are, which comes closer to the exact solution in as many steps; None takes the
            pipeline's own scheduler.
        trials: Masks that are judged for a budget, at most.
        trial_runs: Of the runs that are learned on, those that each of them makes to be judged.
        recompute: Compute layers again in the backward pass: a third more time, for a fraction of the memory.
    """

    batch_size: int = 1
    num_runs: int = 8
    num_held_out: int = 2
    history: int = 3
    learning_rate: float = 4e-3
    reference_steps: int | None = None
    reference_solver: str | None = None
    trials: int = 24
    trial_runs: int = 2
    recompute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_runs", "num_held_out", "reference_steps", "trials", "trial_runs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 1 <= self.history <= 5:
            raise ConfigError(f"history must be from 1 to 5, got {self.history}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"the learning rate must be more than 0, got {self.learning_rate}")
        if self.reference_solver not in (None, FINE_SOLVER[0]):
            raise ConfigError(
                f"reference_solver is '{FINE_SOLVER[0]}' or None, got '{self.reference_solver}'"
            )
        if self.reference_solver is not None and self.reference_steps is None:
            raise ConfigError("a reference_solver needs reference_steps, more than the call's own")
