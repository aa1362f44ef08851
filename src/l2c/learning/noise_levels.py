"""Noise levels of a learned solver by search: moved a little at a time, as long as pictures get closer.

Gradients take levels only a little way, since the weights that fit others are others. So a trial fits the weights anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STEPS = (0.3, 0.15, 0.08)
"""Of moves, in distances of a level to its nearer neighbour, the larger ones first."""
GROWTH, LONGEST = 1.5, 0.6
"""Of a move that got closer, and is made again: so a level that is far from its place gets there in few trials."""
MOST_PLACES = 8
"""Around which levels are moved. Of more evaluations, neighbours go along."""
LEAST_GAIN = 0.002
"""Share of the error that a move has to save."""


def search_levels(
    log_snrs: Tensor,
    error_of: Callable[[Tensor], float],
    trials: int,
    report: Callable[[int, float], bool] = lambda _trial, _error: False,
    others: Sequence[Tensor] = (),
) -> tuple[Tensor, float, int]:
    """Moves noise levels to where the error is small. The first one stays, since the initial noise is given.

    One place after another is tried to either side; a move that gets closer is made again, longer, until none does.

    Args:
        log_snrs: Half log-SNR of every evaluation (N,), rising, to begin at.
        error_of: Error of a run with such levels.
        trials: Levels that are tried, at most, beside those to begin at.
        report: Takes the number of trials so far and the least error, and returns whether the time for them is up.
        others: Where it might begin instead, which are tried first.

    Returns:
        The best half log-SNRs (N,), their error, and how many were tried.
    """
    count, best, error, tried = len(log_snrs), log_snrs, error_of(log_snrs), 0

    def is_over() -> bool:
        return tried >= trials or (tried > 0 and report(tried, error))

    for other in others:
        if is_over():
            return best, error, tried
        found, tried = error_of(other), tried + 1
        if found < error:
            best, error = other, found
    width = math.ceil((count - 1) / MOST_PLACES)
    signs = dict.fromkeys(range(1, count, max(width, 1)), 1.0)
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for place, along in list(signs.items()):
                near = torch.arange(count, device=best.device, dtype=best.dtype).sub(place).abs() / width
                share = (1 - near).clamp_min(0)
                sign, length, gained = along, step, False
                while True:
                    if is_over():
                        return best, error, tried
                    trial = best + sign * length * room(best) * share
                    found, tried = error_of(trial), tried + 1
                    if found < (1 - LEAST_GAIN) * error:
                        best, error, signs[place] = trial, found, sign
                        gained, length = True, min(length * GROWTH, LONGEST)
                    elif gained or sign != along:
                        break
                    else:
                        sign = -along
                moved = moved or gained
    return best, error, tried


def room(log_snrs: Tensor) -> Tensor:
    """Distance of every noise level to its nearer neighbour (N,); none for the first, which stays."""
    distances = torch.zeros_like(log_snrs)
    gaps = log_snrs.diff()
    distances[1:] = gaps
    distances[1:-1] = torch.minimum(gaps[:-1], gaps[1:])
    return distances
