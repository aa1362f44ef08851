"""The loop in which everything is learned: processes, checkpoints, limits, interrupts, and a log.

What is learned are some thousand numbers beside a frozen model. So every process and every checkpoint holds all of
them, and gradients are averaged over processes in one message.

Random numbers of an iteration depend on the seed and the iteration alone, and are drawn for the whole batch, of which
a process takes its rows. Thus a run that goes on from a checkpoint needs no generator state, and several processes
learn what one does, up to rounding.
"""

from __future__ import annotations

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.errors import CheckpointError, ConfigError, NumericsError, Told
from l2c.hosts.base import Examples, Host, of_one_size
from l2c.hosts.parallel import context_of
from l2c.learning.best import BestState, copy_of, parameters_of, put, put_vector, vector_of
from l2c.learning.checkpoint import Checkpoint
from l2c.learning.interrupts import Interrupts
from l2c.learning.log import Log
from l2c.learning.processes import Processes
from l2c.learning.session import LEARNING, OnProgress, Progress, Session
from l2c.learning.task import Task, TaskSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run of learning ended.

    Attributes:
        iterations: Iterations done, those before it was resumed included.
        kept: Iterations after which the state was that was kept: the best by validation.
        interrupted: Whether Ctrl-C ended it.
        time_was_up: Whether the time limit ended it.
    """

    iterations: int
    kept: int
    interrupted: bool = False
    time_was_up: bool = False


class Trainer:
    """One run of learning.

    Args:
        name: What is learned: `router`.
        host: The frozen model and its run.
        settings: What decides the result, with `identity`.
        session: How to carry it out.
        on_progress: Called in the main process after every iteration.
        identity: What else decides the result, in JSON types.

    Attributes:
        processes: The processes that take part.
        rows: This process's rows of a batch.
        kept: Tensors that were costly to make; they are part of the checkpoint.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        ConfigError: If the checkpoint is that of another run, or the processes cannot share the work.
    """

    def __init__(
        self,
        name: str,
        host: Host,
        settings: TaskSettings,
        session: Session | None = None,
        on_progress: OnProgress | None = None,
        **identity: object,
    ) -> None:
        self._started = time.monotonic()
        self.name, self.settings, self.session = name, settings, session or Session()
        self.processes = Processes(host.device, self.session.log_dir, context_of(host.models))
        self.rows = self.processes.rows(settings.batch_size)
        self._log = Log(self.processes, name)
        self._on_progress = on_progress
        precision = self.processes.accelerator.mixed_precision
        if precision != "no" and not settings.bf16 and self.processes.is_main:
            warnings.warn(
                f"the mixed precision of accelerate ({precision}) is not used; ask for bf16=True (--bf16)",
                stacklevel=3,
            )
        self._identity = {
            "what is learned": name,
            **host.identity,
            "processes": self.processes.num_groups,
            **asdict(settings),
            **identity,
        }
        self.processes.check_alike(self._identity)
        self._checkpoint: Checkpoint | None = None
        if self.session.checkpoint is not None:
            path = Path(self.session.checkpoint)
            self._checkpoint = Checkpoint(path, self._identity, self.session.save_every_s)
        state = self.processes.agree(self._load)
        self.kept: dict[str, Tensor] = state.get("kept", {})
        self._stage: str = state.get("stage", "")
        self._iteration: int = state.get("iteration", 0)
        if self._iteration > settings.iterations:
            raise CheckpointError(
                f"{self.session.checkpoint} is of iteration {self._iteration} of {settings.iterations}; delete it"
            )
        self._learned: dict[str, Any] = state.get("learned", {})
        self._aside: dict[str, tuple[int, dict[str, Any]]] = state.get("aside", {})  # stages that time ended
        self._task: Task | None = None
        self._best = BestState()
        limit = self.session.time_limit_s
        self._allowed_s = None if limit is None else (0.0, limit)  # from when on, and how long

    def _load(self) -> dict[str, Any]:
        return (self._checkpoint and self._checkpoint.load(self.session.restart)) or {}

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def allow(self, share: float) -> None:
        """Lets what comes next take a share of the time that is left."""
        if self.session.time_limit_s is not None:
            self._allowed_s = (self.elapsed_s, share * (self.session.time_limit_s - self.elapsed_s))

    def used_up(self, share: float) -> bool:
        """Whether a share of the time that is allowed is over, in one of the processes."""
        if self._allowed_s is None:
            return False
        since, allowed = self._allowed_s
        return self.processes.any(self.elapsed_s - since > share * allowed)

    def run(self, task: Task, stage: str = "") -> Outcome:
        """Learns until the iterations are done, the time is up, or Ctrl-C.

        Args:
            task: What to learn.
            stage: Name of this task, where one after another is learned. What was learned in earlier stages is kept in
                the checkpoint, too.

        Raises:
            NumericsError: If the loss or its gradient is not finite.
        """
        if stage != self._stage:
            if (done := self.kept.get(f"learned {stage}")) is not None:
                put_vector(task, done[2:])
                return Outcome(int(done[0]), int(done[1]))
            if 0 < self._iteration < self.settings.iterations:
                self._aside[self._stage] = (self._iteration, self._state())
            self._stage, self._task = stage, None
            self._iteration, self._learned = self._aside.pop(stage, (0, {}))
        self._restore(task)
        started, first = time.monotonic(), self._iteration
        ended = interrupted = failed = False
        self._log.open(self._identity, first)
        with Interrupts(hold=self.processes.count > 1) as interrupts:
            try:
                while not (ended or interrupted or self._is_done(task)):
                    begun = time.monotonic()
                    if self._best.due(task, self._iteration):
                        self._best.validate(task, self._iteration)
                        if self._best.exhausted(task):
                            break
                    task.optimizer.zero_grad(set_to_none=True)
                    loss, error = task.backward(self._iteration)
                    late = self._is_late(time.monotonic() - begun)
                    means, (ended, interrupted) = self._share(task, (loss, error), (late, interrupts.asked))
                    with interrupts.held():
                        task.update(self._iteration)
                        self._iteration += 1
                        self.save(if_due=True)
                    per_iteration_s = (time.monotonic() - started) / (self._iteration - first)
                    self._tell(task, *means, per_iteration_s)
            except KeyboardInterrupt:
                if failed := self.processes.count > 1:
                    raise  # not from the keyboard, since that is held back, and the others do not know of it
                interrupted = True
            except BaseException:
                failed = True
                raise
            finally:
                interrupts.hold()
                self._learned, self._task = self._state(), None  # a checkpoint goes on from the last state
                kept = self._iteration if failed else self._keep_best(task)
                if stage and self._is_done(task):
                    counts = torch.tensor([float(self._iteration), float(kept)])
                    self.kept[f"learned {stage}"] = torch.cat([counts, vector_of(task)])
                if self._iteration > first:
                    self.save()
                self._log.close()
        ended_early = not self._is_done(task)
        if ended_early:
            reason = "interrupted" if interrupted else "time is up"
            logger.warning("%s after %d of %d iterations", reason, self._iteration, self.settings.iterations)
        logger.info(
            "learned the %s: %d iterations in %.1f s", self.name, self._iteration - first, self.elapsed_s
        )
        return Outcome(self._iteration, kept, interrupted, time_was_up=ended_early and not interrupted)

    def _is_done(self, task: Task) -> bool:
        """Whether nothing is left to learn: all iterations are done, or the error falls no more."""
        return self._iteration >= self.settings.iterations or self._best.exhausted(task)

    def _keep_best(self, task: Task) -> int:
        """Puts a task into its best state; returns after how many iterations that was."""
        if self._best.due(task, self._iteration, last=True):
            self._best.validate(task, self._iteration)
        if not self._best.parameters:
            return self._iteration
        put(task, self._best.parameters)
        return self._best.iteration

    def compute(
        self, name: str, function: Callable[[Examples], Tensor], examples: Examples, size: int
    ) -> Tensor:
        """Pictures that take long to compute: shared by the processes, and kept in the checkpoint as they come.

        Args:
            name: What they are, for people and for the checkpoint.
            function: Examples to pictures.
            examples: All of them.
            size: Examples to compute at a time.

        Returns:
            Pictures (N, ...), on the CPU.

        Raises:
            NumericsError: If one of them is not finite.
            ConfigError: If the time is up before they are done, or they are of several sizes.
        """
        pictures = self.kept.get(name)
        first = 0 if pictures is None else len(pictures)
        started, total = time.monotonic(), len(examples)
        try:
            for part in self.processes.in_rounds(function, examples, size, first):
                if not (part.isfinite().all() and part.any()):
                    raise NumericsError(
                        f"the {name} are zeros, or not finite; check the weights for NaN, or use float32"
                    )
                pictures = of_one_size([*([] if pictures is None else [pictures]), part.cpu()])
                self.kept[name] = pictures
                self.save(if_due=True)
                done = len(pictures)
                left_s = (time.monotonic() - started) / (done - first) * (total - done)
                self.report(Progress(name, done, total, math.nan, math.nan, 1.0, self.elapsed_s, left_s))
                if done < total and self.processes.any(self._is_late(0.0)):
                    raise ConfigError(
                        f"time is up after {done} of {total} {name}, before learning began; allow more time, or take "
                        "fewer pictures; with a checkpoint, the same call goes on from there"
                    )
        finally:
            if pictures is not None and len(pictures) > first:
                self.save()
        assert pictures is not None
        return pictures

    def keep(self, key: str, tell: Callable[[], Tensor]) -> Tensor:
        """What the checkpoint has under a key, or is told now and kept in it."""
        if key not in self.kept:
            self.kept[key] = tell()
            self.save(if_due=True)
        return self.kept[key]

    def save(self, *, if_due: bool = False) -> None:
        """Writes the checkpoint, if there is to be one, from the main process."""
        checkpoint = self._checkpoint
        if checkpoint is None or not self.processes.is_main or (if_due and not checkpoint.due):
            return
        state: dict[str, Any] = {
            "kept": self.kept,
            "stage": self._stage,
            "iteration": self._iteration,
            "learned": self._state(),
            "aside": self._aside,
        }
        checkpoint.save(state)

    def _state(self) -> dict[str, Any]:
        """Where the task of this stage is, or was when the checkpoint was written."""
        if self._task is None:
            return self._learned
        optimizer = copy.deepcopy(self._task.optimizer.state_dict())  # its tensors go on changing
        return {"parameters": copy_of(self._task), "optimizer": optimizer, "best": self._best.to_state()}

    def _restore(self, task: Task) -> None:
        """Puts a task where the checkpoint was written."""
        self._task, self._best = task, BestState.of(self._learned.get("best"))
        if not self._learned:
            return
        other = f"{self.session.checkpoint} is of something else ({{said}}); delete it"
        with Told(CheckpointError, other, KeyError, TypeError, ValueError, RuntimeError):
            put(task, self._learned["parameters"])
            task.optimizer.load_state_dict(self._learned["optimizer"])

    def _share(
        self, task: Task, means: tuple[Tensor, Tensor], flags: tuple[bool, bool]
    ) -> tuple[tuple[float, float], tuple[bool, bool]]:
        """Averages gradients and means over the processes; a flag of one of them becomes one of all."""
        gradients = [parameter.grad for parameter in parameters_of(task) if parameter.grad is not None]
        head = torch.stack([*means, *(means[0].new_tensor(float(flag)) for flag in flags)]).detach()
        message = self.processes.mean(torch.cat([head, *(gradient.flatten() for gradient in gradients)]))
        loss, error, first, second = message[:4].tolist()
        if not message.isfinite().all():
            what = "gradient is not finite" if math.isfinite(loss) else f"loss is {loss}"
            raise NumericsError(
                f"the {what} at iteration {self._iteration + 1}; check the weights for NaN, lower the learning rate, "
                "or learn in float32"
            )
        if self.processes.count > 1:
            shared = torch.split(message[4:], [gradient.numel() for gradient in gradients])
            for gradient, mean in zip(gradients, shared, strict=True):
                gradient.copy_(mean.view_as(gradient))
        return (loss, error), (first > 0, second > 0)

    def _is_late(self, next_s: float) -> bool:
        """Whether the time limit will be over in so many seconds."""
        return self._allowed_s is not None and self.elapsed_s + next_s > sum(self._allowed_s)

    def _tell(self, task: Task, loss: float, error: float, per_iteration_s: float) -> None:
        """Reports an iteration, from the main process."""
        if not self.processes.is_main or (self._on_progress is None and not self._log.writes):
            return
        done, total = self._iteration, self.settings.iterations
        left_s = per_iteration_s * (total - done)
        if self._allowed_s is not None:
            left_s = max(0.0, min(left_s, sum(self._allowed_s) - self.elapsed_s))
        fraction = task.fraction
        self._log.add({"loss": loss, "error": error, "fraction": fraction}, done)
        name = f"{LEARNING} {self._stage}".rstrip()
        self.report(Progress(name, done, total, loss, error, fraction, self.elapsed_s, left_s))

    def report(self, progress: Progress) -> None:
        """Passes progress on, from the main process."""
        if self.processes.is_main and self._on_progress is not None:
            self._on_progress(progress)
