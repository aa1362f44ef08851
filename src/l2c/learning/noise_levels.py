"""Noise levels of a learned solver by search: moved a little at a time, as long as pictures get closer.

Gradients take levels only a little way, since the weights that fit others are others. So a trial fits the weights anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

STEPS = (0.3, 0.15, 0.08)
"""Of moves, in distances of a level to its nearer neighbour, the larger ones first."""
MOST_PLACES = 8
"""Around which levels are moved. Of more evaluations, neighbours go along."""
LEAST_GAIN = 0.002
"""Share of the error that a move has to save."""


def search_levels(
    log_snrs: Tensor,
    error_of: Callable[[Tensor], float],
    trials: int,
    report: Callable[[int, float], bool] = lambda _trial, _error: False,
) -> tuple[Tensor, float, int]:
    """Moves noise levels to where the error is small. The first one stays, since the initial noise is given.

    Args:
        log_snrs: Half log-SNR of every evaluation (N,), rising, to begin at.
        error_of: Error of a run with such levels.
        trials: Levels that are tried, at most, beside those to begin at.
        report: Takes the number of trials so far and the least error, and returns whether the time for them is up.

    Returns:
        The best half log-SNRs (N,), their error, and how many were tried.
    """
    count, best, error, tried = len(log_snrs), log_snrs, error_of(log_snrs), 0
    width = math.ceil((count - 1) / MOST_PLACES)
    signs = dict.fromkeys(range(1, count, max(width, 1)), 1.0)
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for place, along in list(signs.items()):
                for sign in (along, -along):
                    if tried >= trials or (tried and report(tried, error)):
                        return best, error, tried
                    near = torch.arange(count, device=best.device, dtype=best.dtype).sub(place).abs() / width
                    trial = best + sign * step * room(best) * (1 - near).clamp_min(0)
                    found, tried = error_of(trial), tried + 1
                    if found < (1 - LEAST_GAIN) * error:
                        best, error, signs[place], moved = trial, found, sign, True
                        break
    return best, error, tried


def room(log_snrs: Tensor) -> Tensor:
    """Distance of every noise level to its nearer neighbour (N,); none for the first, which stays."""
    distances = torch.zeros_like(log_snrs)
    gaps = log_snrs.diff()
    distances[1:] = gaps
    distances[1:-1] = torch.minimum(gaps[:-1], gaps[1:])
    return distances
