"""What the benchmark of the text-to-image pipeline compares, and how much of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import l2c
import quality_t2i_report as report
from l2c.hosts.base import Host
from l2c.hosts.pipeline.learned_scheduler import learned_from
from l2c.scenes import CALL
from l2c.schedule.schedule import CacheSchedule

STEPS = CALL["num_inference_steps"]
SHIFTS = (0.5, 1.0, 2.0, 3.0)
KINDS = ("default", "own", "plain", "learned", "solver")


@dataclass(frozen=True)
class Plan:
    """What is learned and judged.

    Attributes:
        images: Pictures that everything is judged by.
        fine_evaluations: Of their solution.
        costs: For which solvers are learned, in evaluations.
        shares: Of the work of the pipeline's own run, for which it is learned.
        iterations: Of learning.
        examples: Pictures to learn on, a quarter of which is held out.
        trials: Masks that are tried.
        reference_steps: Evaluations of the solutions to learn on, which `fine_evaluations` has nothing to do with.
        bf16: Learn in bfloat16; what is learned is judged in float32.
        kinds: Of variants that are measured; see `Variant`.
    """

    images: int = 64
    fine_evaluations: int = 200
    costs: tuple[int, ...] = (14, *report.COSTS)
    shares: tuple[float, ...] = tuple(report.SHARES)
    iterations: int = 60
    examples: int = 96
    trials: int = 4
    reference_steps: int = 80
    bf16: bool = True
    kinds: tuple[str, ...] = KINDS

    @classmethod
    def quick(cls) -> Plan:
        """One cost and half of the work."""
        return cls(costs=(8,), shares=(0.5,))

    def settings(self, solver: bool) -> l2c.LearnSettings:
        """Settings of learning, with a solver or without."""
        return l2c.LearnSettings(
            iterations=self.iterations,
            batch_size=min(8, self.examples - self.examples // 4),
            num_examples=self.examples,
            trials=self.trials,
            trial_examples=12,
            level_trials=16,
            fit_examples=self.examples,
            reference_steps=self.reference_steps,
            bf16=self.bf16,
            tail=0.0 if solver else 1.0,
        )


@dataclass(frozen=True)
class Variant:
    """One way of sampling.

    Attributes:
        kind: `default`, `plain`, `solver`, `learned` or `own`.
        name: Unique.
        cost: In full evaluations.
        steps: To ask the pipeline for.
        scheduler: What drives the pipeline instead of its own.
        schedule: What is reused, and the solver where it brings one.
    """

    kind: str
    name: str
    cost: float
    steps: int
    scheduler: Any = None
    schedule: CacheSchedule | None = None


def plain(host: Host, own: Any, evaluations: int) -> Iterator[Variant]:
    """Plain solvers with at most so many evaluations.

    Args:
        host: Of the pipeline.
        own: The scheduler that it has.
        evaluations: At most.
    """
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    levels = host.with_steps(evaluations).run.log_snrs
    shift = own.config.shift
    schedulers: dict[str, tuple[Any, int]] = {
        "euler, as the pipeline has it": (own, evaluations),
        "dpmsolver++, levels of the pipeline": (
            learned_from(own, levels),
            evaluations,
        ),
    }
    for spacing in ("karras", "exponential"):
        made = FlowMatchEulerDiscreteScheduler(shift=shift, **{f"use_{spacing}_sigmas": True})
        schedulers[f"euler, {spacing}"] = (made, evaluations)
    for shift in SHIFTS:
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        of_order = {order: DPMSolverMultistepScheduler(**flow, solver_order=order) for order in (1, 2, 3)}
        schedulers |= {
            f"euler, shift {shift:g}": (of_order[1], evaluations),
            f"dpmsolver++, shift {shift:g}": (of_order[2], evaluations),
            f"dpmsolver++3, shift {shift:g}": (of_order[3], evaluations),
            f"unipc, shift {shift:g}": (UniPCMultistepScheduler(**flow), evaluations),
            f"heun, shift {shift:g}": (
                FlowMatchHeunDiscreteScheduler(shift=shift),
                (evaluations + 1) // 2,
            ),
        }
    for name, (scheduler, steps) in schedulers.items():
        spent = 2 * steps - 1 if name.startswith("heun") else steps
        yield Variant("plain", f"{name}, {evaluations}", spent, steps, scheduler)
