"""How sure a mean is, from the images at hand: intervals by resampling them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2c.errors import ConfigError

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval that it lies in at the confidence level.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether it is a difference beyond noise."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of a figure per image, with its percentile bootstrap interval at 95 %.

    Raises:
        ConfigError: If there are no values.

    >>> mean_interval([1.0, 1.0, 1.0])
    Interval(value=1.0, low=1.0, high=1.0)
    """
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        raise ConfigError("there are no images to take a mean over")
    means = numbers[_draws(len(numbers), RESAMPLES, seed)].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(numbers.mean()), float(low), float(high))


def paired_difference(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of `values - others`, image by image; beyond noise if its interval excludes 0.

    Raises:
        ConfigError: If they are not of the same images.

    >>> paired_difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]).excludes_zero
    True
    """
    if len(values) != len(others):
        raise ConfigError(
            f"a paired difference is between figures of the same images, got {len(values)} and {len(others)}"
        )
    return mean_interval([a - b for a, b in zip(values, others, strict=True)], seed=seed)


def statistic_interval(
    count: int, statistic: Callable[[NDArray[np.int64]], float], *, resamples: int = 40, seed: int = 0
) -> Interval:
    """Interval of a figure of a whole set, such as a Frechet distance, by resampling its images.

    Resampled sets repeat images, which shifts such figures; so only the spread of the resampled figures is used, around
    the figure of the whole set.

    Args:
        count: Number of images.
        statistic: The figure of the images with these indices.
        resamples: How many sets are drawn.
        seed: Of the draws.
    """
    value = statistic(np.arange(count))
    drawn = np.array([statistic(row) for row in _draws(count, resamples, seed)])
    low, high = np.quantile(drawn - drawn.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(value + low), float(value + high))


def _draws(count: int, resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count))
