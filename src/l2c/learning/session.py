"""How learning is carried out, as asked for and as reported; what is learned has settings of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from l2c.documents import Positive, Real, check_value

LEARNING, SEARCHING = "learning", "judging masks"
FOLDER = "L2C_SOLUTIONS"
"""Environment variable with the folder that commands keep solutions in; `off` for none."""


@dataclass(frozen=True)
class Session:
    """How a run of learning is carried out, which has no part in what it learns.

    Attributes:
        checkpoint: File from which a run that was killed or ended early goes on when it is called again with the
            same settings. It stays when learning is done, and then gives the result at once; delete it when the
            result is safe.
        save_every_s: Seconds between two writes of the checkpoint, at least.
        restart: Begin anew even if there is a checkpoint.
        time_limit_s: No iteration is begun that would end later than so many seconds after the start; one is
            always done.
        log_dir: Folder for a TensorBoard log of loss, error and share of the MACs.
        solutions: Folder with fine-step solutions, which all runs of a model on the same examples can take from each
            other, whatever they learn; commands have `solutions_folder()`.
    """

    checkpoint: Path | None = None
    save_every_s: float = 30.0
    restart: bool = False
    time_limit_s: float | None = None
    log_dir: Path | None = None
    solutions: Path | None = None

    def __post_init__(self) -> None:
        check_value("the time limit", self.time_limit_s, Positive | None)
        check_value("save_every_s", self.save_every_s, Annotated[Real, Field(ge=0)])


@dataclass(frozen=True)
class Progress:
    """Where learning stands.

    Attributes:
        stage: `learning`, or what has to be done before it.
        iteration: Iterations of the stage that are done, pictures before learning.
        iterations: How many there are.
        loss: What is made small, averaged over the batch; NaN before learning.
        error: Of a router, the loss without the price of the scores; of a predictor, the root mean square error of
            the pictures. NaN before learning.
        fraction: Share of the run's multiply-accumulates that the schedule so far computes.
        elapsed_s: Seconds since the start.
        left_s: Seconds until the end of the stage, at the speed so far and within the time limit.
    """

    stage: str
    iteration: int
    iterations: int
    loss: float
    error: float
    fraction: float
    elapsed_s: float
    left_s: float


OnProgress = Callable[[Progress], None]


def solutions_folder() -> Path | None:
    """Where commands keep solutions: `L2C_SOLUTIONS`, or `l2c/solutions` in the user's folder for caches."""
    told = os.environ.get(FOLDER)
    if told is not None:
        return None if told in ("", "off") else Path(told)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "l2c" / "solutions"
