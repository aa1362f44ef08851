"""Wall-clock comparison: the variants run in turn in one process, so that a busy machine is busy for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from l2c.documents import Count, check_value


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of every repetition, in the order in which they ran."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median."""
        return statistics.median(self.seconds)

    @property
    def min_s(self) -> float:
        """Fastest repetition."""
        return min(self.seconds)

    @property
    def max_s(self) -> float:
        """Slowest repetition."""
        return max(self.seconds)

    def against(self, full: Timing) -> dict[str, float]:
        """Figures for a table: median, fastest and slowest, their number, and the speed-up over other runs."""
        return {
            "median_s": self.median_s,
            "min_s": self.min_s,
            "max_s": self.max_s,
            "repetitions": len(self.seconds),
            "speedup": full.median_s / self.median_s,
        }


def interleave(
    variants: Mapping[str, Callable[[], object]],
    repetitions: int = 3,
    *,
    warm_ups: Mapping[str, Callable[[], object]] | None = None,
    time_limit_s: float | None = None,
    on_run: Callable[[str, int], None] | None = None,
    around: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext(),
) -> dict[str, Timing]:
    """Times several callables against each other: A, B, C, then B, C, A, and so on.

    Every run starts and ends with a synchronised device.

    Args:
        variants: Callables by name.
        repetitions: How often each is timed.
        warm_ups: What runs before the first timed repetition, untimed; by default each variant once.
        time_limit_s: Seconds, counted from the call, after which no further repetition is begun if it would
            probably end later; the first is always made.
        on_run: Called as (name, repetition) before each timed run.
        around: Context, by name of the variant, that each of its runs is in; entering and leaving are not timed.

    Returns:
        Timings by name, all with the same number of repetitions.

    Raises:
        ConfigError: If there is nothing to time.
    """
    check_value("repetitions", repetitions, Count)
    check_value("the number of variants", len(variants), Count)
    began = time.perf_counter()
    for name, warm_up in (variants if warm_ups is None else warm_ups).items():
        with around(name):
            _timed(warm_up)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for repetition in range(repetitions):
        round_began = time.perf_counter()
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            if on_run is not None:
                on_run(name, repetition)
            with around(name):
                seconds[name].append(_timed(variants[name]))
        now = time.perf_counter()
        if time_limit_s is not None and now - began + (now - round_began) > time_limit_s:
            break
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _timed(function: Callable[[], object]) -> float:
    synchronize()
    began = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    """Waits until the accelerator, if one is in use, has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
