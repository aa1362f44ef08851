"""Schedules for one budget after the other, in one run of learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from l2c.learning.trainer import Trainer
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule


def learn_each(
    trainer: Trainer, budgets: Sequence[float], learn_one: Callable[[float, str], tuple[CacheSchedule, bool]]
) -> ScheduleFamily:
    """Learns a schedule for every budget; each has an equal share of the time that is left.

    Args:
        trainer: Of all of them.
        budgets: In order.
        learn_one: Called as (budget, stage), where the stage tells a budget from others and is empty if it is the only
            one. Returns the schedule and whether learning it was interrupted.

    Returns:
        The schedules so far, if one was interrupted.

    Raises:
        KeyboardInterrupt: If there is no schedule yet, or other processes do not know of it.
    """
    schedules: list[CacheSchedule] = []
    for index, budget in enumerate(budgets):
        trainer.allow(1 / (len(budgets) - index))
        try:
            schedule, interrupted = learn_one(budget, f"{budget:g}" if len(budgets) > 1 else "")
        except KeyboardInterrupt:
            if schedules and trainer.processes.count == 1:
                break
            raise
        schedules.append(schedule)
        if interrupted:
            break
    return ScheduleFamily(schedules)
