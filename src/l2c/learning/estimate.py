"""What learning would do, said before anything long begins: layers, work, memory and minutes, from one timed step."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from l2c.errors import ConfigError, Told
from l2c.hosts.base import Examples, Host
from l2c.hosts.targets import host_of
from l2c.learning.arguments import checked
from l2c.learning.effort import seconds_per_evaluation, stage_evaluations
from l2c.learning.mask_search import check_budget
from l2c.learning.masks import spread
from l2c.learning.memory import AliveBytes, kept_bytes, weight_bytes
from l2c.learning.settings import LearnSettings
from l2c.learning.solver import NUM_STRUCTURES
from l2c.learning.student import Student
from l2c.schedule.cost import CostTable

PER_COMPUTED = 2
"""Evaluations of a learned solver for each that is computed, as the estimate assumes."""
QUICK_S = 10.0
"""A first step that took less is made once more, so that what is timed is no warming up."""


@dataclass(frozen=True)
class LearningEstimate:
    """What learning would do.

    Attributes:
        target: Class of the model or pipeline.
        num_layers: Layers that a schedule decides on.
        num_evaluations: Of a run.
        computed: Share of the work that a run may cost; of several budgets their mean.
        num_budgets: Schedules to learn.
        weights_bytes: Of all models.
        kept_bytes: What one step keeps for its backward pass, all examples that are run at a time together: measured,
            or with `recompute="evaluations"` by the formula.
        peak_bytes: The most that the device held in a step; None where it does not count.
        checkpoint_bytes: Size of the checkpoint, about.
        iteration_s: Seconds of a step.
        minutes: Of each stage.
    """

    target: str
    num_layers: int
    num_evaluations: int
    computed: float
    num_budgets: int
    weights_bytes: int
    kept_bytes: int
    peak_bytes: int | None
    checkpoint_bytes: int
    iteration_s: float
    minutes: dict[str, float]

    @property
    def total_minutes(self) -> float:
        """Of all stages."""
        return sum(self.minutes.values())

    def to_json(self) -> dict[str, Any]:
        """The fields, with the sum of the minutes."""
        return {**asdict(self), "total_minutes": self.total_minutes}

    def __str__(self) -> str:
        peak = (
            ""
            if self.peak_bytes is None
            else f", {_size(self.peak_bytes)} at most in the step that was timed"
        )
        stages = ", ".join(f"{name} {minutes:.1f}" for name, minutes in self.minutes.items())
        return (
            f"{self.target}: {self.num_layers} layers at {self.num_evaluations} evaluations, {self.computed:.0%} of "
            f"the work, {self.num_budgets} schedule{'s' * (self.num_budgets > 1)}\n"
            f"memory: {_size(self.weights_bytes)} of weights, {_size(self.kept_bytes)} kept for the gradient{peak}\n"
            f"disk: {_size(self.checkpoint_bytes)} for the checkpoint\n"
            f"time: a step takes {self.iteration_s:.3g} s; {self.total_minutes:.1f} minutes in all: {stages}"
        )


def estimate_learning(
    target: Any,
    *,
    budget: float = 0.5,
    num_budgets: int = 1,
    evaluations: float | None = None,
    settings: LearnSettings | None = None,
    **run: Any,
) -> LearningEstimate:
    """What `learn` would do, from a short run and one step of learning, which is thrown away.

    Args:
        target: See `learn`.
        budget: Share of the MACs; of several budgets their mean.
        num_budgets: How many.
        evaluations: For a learned solver: what a run may cost, in whole evaluations, instead of a budget.
        settings: See `learn`.
        run: See `learn`.

    Raises:
        ConfigError: If the budget cannot be met, the target cannot be learned on, or the step takes more memory than
            there is.

    Example:
        >>> import l2c
        >>> estimate = l2c.estimate_learning(l2c.testing.tiny_dit(), steps=6, solver="ddim")
        >>> estimate.num_evaluations, list(estimate.minutes)
        (6, ['fine-step solutions', 'searching masks', 'learning'])
    """
    settings = checked(settings, LearnSettings, "learning in the closed loop")
    base = host_of(target, estimate_learning, **run)
    host = base if evaluations is None else base.solver_starts(round(PER_COMPUTED * evaluations))[0]
    count, costs = len(host.run.timesteps), CostTable.macs(host.table)
    wholes = count * budget if evaluations is None else float(evaluations)
    mask = _mask(host, wholes / count, costs)
    with host.prepared():
        size = settings.batch_size if host.batched else 1
        each_s = seconds_per_evaluation(base, 2 * settings.batch_size)
        examples = host.examples(size, settings.seed, "timing")
        student = Student(
            host,
            mask,
            settings.history,
            free_solver=evaluations is not None,
            bf16=settings.bf16,
            recompute=settings.recompute,
        )
        too_much = (
            f"a step of learning takes more memory than {host.device} has; take recompute='evaluations' or 'offload' "
            "(--recompute-evaluations, --offload), a smaller budget, or fewer pixels"
        )
        with Told(ConfigError, too_much, torch.OutOfMemoryError):
            step_s, kept, peak, made = _trial(host, student, examples)
    if settings.recompute in ("evaluations", "offload"):
        kept = kept_bytes(host, mask, settings.history)
    searches = 1 if evaluations is None else NUM_STRUCTURES
    factor = step_s / size / (wholes * each_s)
    stages = stage_evaluations(settings, wholes, factor, num_budgets, searches)
    repeats = 0 if host.batched else 2  # whether two runs from the same noise are the same
    stages["fine-step solutions"] += (settings.num_held_out + repeats) * len(base.run.timesteps)
    pictures = settings.num_examples + settings.num_validation
    return LearningEstimate(
        type(base.target).__name__,
        len(host.table),
        count,
        wholes / count,
        num_budgets,
        weight_bytes(host),
        kept,
        peak,
        pictures * made[0].nbytes + num_budgets * 3 * 4 * mask.numel() * settings.history,
        step_s / size * settings.batch_size,
        {name: work * each_s / 60 for name, work in stages.items()},
    )


def _mask(host: Host, share: float, costs: CostTable) -> Tensor:
    """A mask within a budget, as the search begins at."""
    count, always = len(host.run.timesteps), host.segments[1:]
    scale = count * costs.full
    check_budget(share, count, costs, scale, always)
    others, left = count - len(always), share * scale - len(always) * costs.full
    mask = torch.ones(count, len(costs.layers), dtype=torch.bool)
    rows = [row for row in range(count) if row not in always]
    mask[rows] = spread(others, left, costs)[0].mask(others, left, costs)
    return mask


def _trial(host: Host, student: Student, examples: Examples) -> tuple[float, int, int | None, Tensor]:
    """Seconds of a forward and backward pass, bytes kept between them, most bytes in them, and what was made."""
    device, on_gpu = host.device, host.device.type == "cuda"

    def back(made: Tensor, begun: float) -> float:
        made.square().mean().backward()  # type: ignore[no-untyped-call]
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.monotonic() - begun

    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with student.attached():
        begun = time.monotonic()
        with AliveBytes() as alive:
            made = student(examples)
        kept = alive.nbytes
        took_s = back(made, begun)
        if took_s < QUICK_S:
            begun = time.monotonic()
            took_s = back(student(examples), begun)
    return took_s, kept, torch.cuda.max_memory_allocated(device) if on_gpu else None, made.detach()


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(2_150_000_000)
    '2.15 GB'
    """
    power = min(4, int(math.log10(max(count, 1)) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
