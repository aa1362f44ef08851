"""From a budget to a setting: the threshold whose schedule costs closest to a share of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from l2c.documents import Fraction, check_value
from l2c.errors import ConfigError
from l2c.schedule.schedule import CacheSchedule


def threshold_for(
    at: Callable[[float], CacheSchedule], values: Sequence[float], budget: float
) -> CacheSchedule:
    """The schedule, among those that thresholds make, whose cost is closest to a budget.

    Args:
        at: Schedule of a threshold; its cost falls or rises with the threshold, roughly.
        values: The numbers that thresholds are compared with; only they can change anything.
        budget: Share of the run's multiply-accumulates.

    Raises:
        ConfigError: If the budget is not from 0 to 1, or there is nothing to decide on.
    """
    check_value("the budget, a share of the MACs,", budget, Fraction)
    if not values:
        raise ConfigError("there are no scores or errors that a threshold could decide on; take more steps")
    thresholds = sorted(set(values))
    rising = at(thresholds[-1]).cost.fraction > at(thresholds[0]).cost.fraction
    low, high = 0, len(thresholds) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if (at(thresholds[middle]).cost.fraction > budget) == rising:
            high = middle
        else:
            low = middle
    candidates = [at(thresholds[index]) for index in (low, high)]
    return min(candidates, key=lambda schedule: abs(schedule.cost.fraction - budget))
