"""What decides how masks, forecasts and solvers are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from l2c.documents import MOST_EVALUATIONS, Count, LearningRate, Real, Whole
from l2c.errors import ConfigError
from l2c.learning.task import TaskSettings
from l2c.schedule.contract import MOST_DEGREE
from l2c.schedule.scales import MOST_SCALES

HELD_OUT_SHARE = 0.25
LEVELS_WITH_REUSE, LEVELS_ALONE = 4, 16
"""Sets of noise levels that are tried with a learned solver."""


@dataclass(frozen=True)
class LearnSettings(TaskSettings):
    """How schedules are learned in the closed loop, for a model or a pipeline.

    Attributes:
        num_examples: Pictures whose references are computed beforehand; a quarter of them is held out, on a pipeline
            with prompts that nothing is learned on, as far as there are enough.
        history: How many computed values a forecast reads at most.
        learning_rate: Of Adam, for the coefficients of forecasts; it warms up over 5 steps and falls to 0 on a cosine.
        validate_every: Steps between two validations on further pictures, an eighth as many; the state that is best on
            them is kept. 0 keeps the last state.
        patience: Validations without a lower error after which learning ends; None does all iterations.
        tail: Power of the mean over pictures that is made small: 1 is the mean error, more weighs the worst pictures,
            and 0, the geometric mean, those that come close.
        reference_steps: Evaluations of the fine-step solution that pictures come close to; None takes what the run
            itself makes with everything computed, which is also taken where no fine solution can be had.
        trials: Masks that are tried for a budget, at most. With a learned solver a quarter of them is tried for each of
            the two structures that begin best, and as many again for the one that is best then.
        trial_examples: Pictures that each of them is judged by. A learned solver is fitted to them first; where numbers
            of evaluations are compared, as many others judge.
        fit_examples: Pictures that the steps of a learned solver are fitted to, all run together.
        level_trials: Sets of noise levels that are tried with a learned solver, at most, each fitted anew; if not
            given, 4, and 16 where nothing is reused, which has more to gain by them and nothing else to search.
        scales: Of detail, at most, that a learned solver weighs apart, where its samples are maps and not tokens; 1
            weighs coarse and fine alike.
        guidance_degree: Of the polynomial in the guidance scale that the weights of a learned solver are, where
            guidance is a range; 0 has the same weights at every scale.
        branches: Whether the passes of guidance may have rows of their own, on a host that can run them apart.
        recompute: Keep only the inputs of computed layers for the backward pass and compute the layers again in
            it: a third more time, for a fraction of the memory. `evaluations`, for pipelines: keep only the latents of
            the run and the values that are reused, and compute whole evaluations again, one at a time. `offload`:
            likewise, and let those values rest in CPU memory, pinned for a GPU, until they are needed.
    """

    iterations: Count = 20
    num_examples: Count = 32
    history: Annotated[Count, Field(le=5)] = 3
    learning_rate: LearningRate = 4e-3
    validate_every: Annotated[Whole, Field(ge=0)] = 5
    patience: Count | None = None
    tail: Annotated[Real, Field(ge=0, le=16)] = 1.0
    reference_steps: Annotated[Count, Field(le=MOST_EVALUATIONS)] | None = 60
    trials: Count = 32
    trial_examples: Count = 8
    fit_examples: Count = 24
    level_trials: Annotated[Whole, Field(ge=0)] | None = None
    scales: Annotated[Count, Field(le=MOST_SCALES)] = MOST_SCALES
    guidance_degree: Annotated[Whole, Field(ge=0, le=MOST_DEGREE)] = 2
    branches: bool = True
    recompute: Literal[False, True, "evaluations", "offload"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience is not None and not self.validate_every:
            raise ConfigError(
                "patience counts validations, and validate_every=0 makes none; leave one of them out"
            )
        if self.num_held_out < 1 or self.num_examples - self.num_held_out < self.batch_size:
            raise ConfigError(
                f"num_examples must leave at least one batch of {self.batch_size} when a quarter is held out, "
                f"got {self.num_examples}"
            )

    def num_levels(self, *, reuses: bool) -> int:
        """Sets of noise levels that are tried with a learned solver, at most.

        Args:
            reuses: Whether anything is reused beside it.
        """
        if self.level_trials is not None:
            return self.level_trials
        return LEVELS_WITH_REUSE if reuses else LEVELS_ALONE

    @property
    def num_held_out(self) -> int:
        """Pictures that take no part in learning and tell how good it is."""
        return int(self.num_examples * HELD_OUT_SHARE)

    @property
    def num_fitted(self) -> int:
        """Pictures that steps of a learned solver are fitted to, of those that are learned on."""
        wanted = max(self.fit_examples, 2 * self.trial_examples)
        return min(wanted, self.num_examples - self.num_held_out)

    @property
    def num_validation(self) -> int:
        """Further pictures, by which the best state is kept."""
        return max(1, self.num_examples // 8) if self.validate_every else 0
