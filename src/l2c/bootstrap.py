"""Figures of a set from those of its images: how sure a mean is, by resampling them, and how bad the worst are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2c.errors import ConfigError, check_as_many

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class ConfidenceInterval:
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


@dataclass(frozen=True)
class ErrorSummary:
    """The errors of a set of images in three figures, since a mean hides the worst one.

    Attributes:
        mean: With its confidence interval.
        p95: 95th percentile, linear between the two images next to it.
        worst: Largest.
    """

    mean: ConfidenceInterval
    p95: float
    worst: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> ErrorSummary:
        """Of an error per image.

        Raises:
            ConfigError: If there are none.

        >>> ErrorSummary.of([0.0] * 19 + [2.0]).worst
        2.0
        """
        mean = mean_confidence_interval(errors)
        return cls(mean, float(np.quantile(np.asarray(errors, dtype=float), 0.95)), float(max(errors)))


def mean_confidence_interval(values: Sequence[float], *, seed: int = 0) -> ConfidenceInterval:
    """Mean of a figure per image, with its percentile bootstrap confidence interval at 95 %.

    Raises:
        ConfigError: If there are no values.

    >>> mean_confidence_interval([1.0, 1.0, 1.0])
    ConfidenceInterval(value=1.0, low=1.0, high=1.0)
    """
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        raise ConfigError("there are no images to take a mean over")
    means = numbers[_draws(len(numbers), RESAMPLES, seed)].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return ConfidenceInterval(float(numbers.mean()), float(low), float(high))


def paired_difference(
    values: Sequence[float], others: Sequence[float], *, seed: int = 0
) -> ConfidenceInterval:
    """Mean of `values - others`, image by image; beyond noise if its confidence interval excludes 0.

    Raises:
        ConfigError: If they are not of the same images.

    >>> paired_difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]).excludes_zero
    True
    """
    check_as_many("figures", values, "figures of the same images", others)
    return mean_confidence_interval([a - b for a, b in zip(values, others, strict=True)], seed=seed)


def statistic_confidence_interval(
    count: int, statistic: Callable[[NDArray[np.int64]], float], *, resamples: int = 40, seed: int = 0
) -> ConfidenceInterval:
    """Confidence interval of a figure of a whole set, such as a Frechet distance, by resampling its images.

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
    return ConfidenceInterval(float(value), float(value + low), float(value + high))


def _draws(count: int, resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count))
