"""What all stages share: files that appear whole or not at all, clocks, learning rates."""

from __future__ import annotations

import functools
import io
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch

from l2c.errors import CheckpointError
from l2c.files import atomic_write

logger = logging.getLogger("pretrain_scenes")

SAVE_EVERY_S = 90.0
LOG_EVERY_S = 20.0


@functools.cache
def fast_dtype() -> torch.dtype:
    """The type this CPU multiplies matrices in fastest: bfloat16 where it has instructions for it, else float32."""

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(1024, 192, dtype=dtype), torch.ones(192, 768, dtype=dtype)
        torch.mm(a, b)
        start = time.perf_counter()
        for _ in range(5):
            torch.mm(a, b)
        return time.perf_counter() - start

    return min((torch.float32, torch.bfloat16), key=seconds)


def log_to_stderr() -> None:
    """Show progress; every process of a run calls it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Save tensors and numbers; the file appears whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic_write(path, buffer.getvalue())


def read_state(path: Path, stage: str) -> dict[str, Any]:
    """Read what `write_state` saved; `stage` is what makes the file, for the message.

    Raises:
        CheckpointError: The file is missing or cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); run the stage {stage!r} first, or remove the file"
        ) from error
    return state


class Clock:
    """The time of one run of a stage, and what is due.

    Args:
        minutes: How long the run may take.
    """

    def __init__(self, minutes: float) -> None:
        self.limit_s = 60 * minutes
        self.start = time.monotonic()
        self._saved = self._logged = self.start

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.start

    @property
    def progress(self) -> float:
        """Part of the run that is over, in [0, 1]."""
        return min(1.0, self.elapsed_s / self.limit_s) if self.limit_s else 1.0

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.elapsed_s >= self.limit_s

    def save_due(self) -> bool:
        """Whether a checkpoint is due; asking resets it."""
        now = time.monotonic()
        due = self.over or now - self._saved >= SAVE_EVERY_S
        self._saved = now if due else self._saved
        return due

    def log_due(self) -> bool:
        """Whether a line of progress is due; asking resets it."""
        now = time.monotonic()
        due = self.over or now - self._logged >= LOG_EVERY_S
        self._logged = now if due else self._logged
        return due


def lr_factor(step: int, progress: float, warmup_steps: int, finish: bool, decay_from: float = 0.0) -> float:
    """Factor on the learning rate: a linear rise, then constant, then down to 0 over a run that finishes a model.

    Args:
        step: Steps taken so far, over all runs.
        progress: Part of the run that is over, in [0, 1].
        warmup_steps: Length of the rise.
        finish: Whether this run is the model's last.
        decay_from: Part of the run after which the decay begins.
    """
    rise = min(1.0, (step + 1) / warmup_steps)
    fall = min(1.0, (1 - progress) / (1 - decay_from)) if finish else 1.0
    return rise * fall
