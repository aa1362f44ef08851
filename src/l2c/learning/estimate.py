"""What learning would do, said before anything long begins: layers, work, memory and minutes, from one timed step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from l2c.errors import ConfigError, OneByOneError, Told
from l2c.hosts.base import Examples, Host
from l2c.hosts.targets import host_of
from l2c.learning.arguments import checked
from l2c.learning.least_squares import Paths
from l2c.learning.mask_search import check_budget
from l2c.learning.masks import spread
from l2c.learning.memory import AliveBytes, kept_bytes, weight_bytes
from l2c.learning.prices import Prices, Structures, stage_seconds
from l2c.learning.references import of_first_size
from l2c.learning.settings import LearnSettings
from l2c.learning.solver import structures_of
from l2c.learning.student import Student
from l2c.schedule.cost import CostTable

PER_COMPUTED = 2
"""Evaluations of a learned solver for each that is computed, as the estimate assumes."""
QUICK_S = 10.0
"""While timing has taken less, everything that is timed is timed once more, in turns; medians count."""
MOST_ROUNDS = 5
SHORT_RUNS = (2, 6)
"""Steps of the runs whose difference tells what an evaluation takes, and what a run takes besides."""
TOGETHER = 4
"""Pictures of a fit that is timed."""


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
    per_computed: float | None = None,
    settings: LearnSettings | None = None,
    **run: Any,
) -> LearningEstimate:
    """What `learn` would do, from a short run and one step of learning, which is thrown away.

    Args:
        target: See `learn`.
        budget: Share of the MACs; of several budgets their mean.
        num_budgets: How many.
        evaluations: For a learned solver: what a run may cost, in whole evaluations, instead of a budget.
        per_computed: See `learn`; by default 2, and the search for the best.
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
    starts = (
        [base]
        if evaluations is None
        else base.solver_starts(int((per_computed or PER_COMPUTED) * evaluations))
    )
    host = starts[0]
    count, costs = len(host.run.timesteps), CostTable.macs(host.table)
    wholes = count * budget if evaluations is None else float(evaluations)
    everything = evaluations is not None and per_computed == 1
    mask = (
        torch.ones(count, len(costs.layers), dtype=torch.bool)
        if everything
        else _mask(host, wholes / count, costs)
    )
    with host.prepared():
        too_much = (
            f"a step of learning takes more memory than {host.device} has; take recompute='evaluations' or 'offload' "
            "(--recompute-evaluations, --offload), a smaller budget, or fewer pixels"
        )
        with Told(ConfigError, too_much, torch.OutOfMemoryError):
            prices, kept, peak, made = _prices(
                base, host, mask, settings, free_solver=evaluations is not None
            )
    if settings.recompute in ("evaluations", "offload"):
        kept = kept_bytes(host, mask, settings.history)
    solver = None
    if evaluations is not None:
        kinds = structures_of(base, settings, per_computed)
        whole = kinds.count((1.0, False))
        known = [len(one.run.timesteps) for one in base.fewer_steps(int(evaluations)).values()]
        solver = Structures(len(kinds) - whole, whole, len(starts), known)
    seconds = stage_seconds(prices, settings, base, num_budgets, solver)
    pictures = settings.num_examples + settings.num_validation
    if prices.path_s and (fine := base.reference(settings.reference_steps)) is not base:
        pictures += settings.num_fitted * len(fine.run.timesteps)  # what these come through is kept, too
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
        prices.step_s * settings.batch_size,
        {name: spent_s / 60 for name, spent_s in seconds.items()},
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


def _prices(
    base: Host, host: Host, mask: Tensor, settings: LearnSettings, *, free_solver: bool
) -> tuple[Prices, int, int | None, Tensor]:
    """What learning takes, timed in turns; bytes kept by a step, the most bytes in it, and what it made."""
    device = host.device
    few = base.examples(2 * settings.batch_size if base.batched else 1, settings.seed, "timing")
    batch = host.examples(settings.batch_size if host.batched else 1, settings.seed, "timing")
    short, longer = (base.with_steps(steps) for steps in SHORT_RUNS)
    evaluations = [len(one.run.timesteps) for one in (short, longer)]

    def student() -> Student:
        return Student.of(host, mask, settings, (1, *host.table.sample_shape), solver=free_solver)

    drawn = [one.examples(TOGETHER, settings.seed, "timing") for one in (longer, host)]
    several, others = (some.rows(of_first_size(some, range(len(some)))) for some in drawn)

    def solved() -> tuple[float, Paths | None]:
        """Seconds of an evaluation of runs that are made together, and what they come through, if they can be."""
        try:
            path_s, (_, states) = _timed(device, partial(longer.together, several))
        except OneByOneError:
            return 0.0, None
        paths = Paths(longer.run.log_snrs, torch.stack(list(states), dim=1).to(device))
        return path_s / len(several) / evaluations[1], paths

    rounds: list[tuple[float, ...]] = []
    kept, peak, learner = 0, None, student()
    while not rounds or (sum(map(sum, rounds)) < QUICK_S and len(rounds) < MOST_ROUNDS):
        took = []
        with torch.no_grad():
            took += [_timed(device, partial(one.sample, few))[0] / len(few) for one in (short, longer)]
            path_s, paths = solved() if free_solver else (0.0, None)
            attach_s, judge = _timed(device, student)
            with judge.attached():
                judge.eval()
                took.append(_timed(device, partial(judge, few))[0] / len(few))
                fit = partial(judge.fit_solver, others, paths) if paths is not None else None
                took += [path_s, 0.0 if fit is None else _timed(device, fit)[0] / len(others)]
        with learner.attached():
            if not rounds:
                kept, peak, made = _kept(host, learner, batch)
            step_s, made = _timed(device, lambda: _step(learner, batch))
        rounds.append((*took, step_s / len(batch), attach_s))
    timed = rounds[1:] or rounds  # the first warms up
    brief, long, sample_s, path_s, fit_s, step_s, attach_s = map(median, zip(*timed, strict=True))
    more = evaluations[1] - evaluations[0]
    each = max(0.0, (long - brief) / more) if more else brief / evaluations[0]
    prices = Prices(max(0.0, brief - evaluations[0] * each), each, sample_s, step_s, attach_s, path_s, fit_s)
    return prices, kept, peak, made.detach()


def _timed(device: torch.device, function: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.monotonic()
    made = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - begun, made


def _step(student: Student, examples: Examples) -> Tensor:
    made: Tensor = student(examples)
    made.square().mean().backward()  # type: ignore[no-untyped-call]
    return made


def _kept(host: Host, student: Student, examples: Examples) -> tuple[int, int | None, Tensor]:
    """Bytes kept between the forward and backward pass of a step, the most bytes in it, and what was made."""
    device, on_gpu = host.device, host.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with AliveBytes() as alive:
        made: Tensor = student(examples)
    kept = alive.nbytes
    made.square().mean().backward()  # type: ignore[no-untyped-call]
    return kept, torch.cuda.max_memory_allocated(device) if on_gpu else None, made


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(2_150_000_000)
    '2.15 GB'
    """
    power = min(4, int(math.log10(max(count, 1)) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
