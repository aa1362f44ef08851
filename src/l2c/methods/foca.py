"""FoCa: forecasts that go on from each other, held to the last computed values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, at_intervals, pattern
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule

HORIZON = 3
"""Evaluations after a computed one beyond which forecasts fall back towards it."""


def foca(target: Any, *, every: int = 3, first: int = 3, **run: Any) -> CacheSchedule:
    """Computes everything at the first evaluations and at every N-th after them; forecasts in between.

    A layer's output is taken for the solution of a differential equation. A forecast goes on from the last computed
    value by the mean of two slopes, as Heun's method does: that between the last two computed values, and that between
    the last two values of any kind, forecasts among them. So forecasts depend on each other, but all of them on
    computed values, linearly and with weights that are known beforehand.

    What differs: nothing in what is forecast from the form in cache-dit, which takes evaluations for one step apart
    whatever their distance, and goes back towards the last computed value after three of them; but that looks at each
    picture to decide where to compute. The publication's predictor, which cache-dit leaves out, enters nowhere. Earlier
    computed values, which count for ever less, stay stored here, where four tensors would do.

    Args:
        target: A model, a diffusers pipeline, or a host; its weights are not looked at.
        every: Length of the interval, N.
        first: Evaluations at the beginning that compute everything.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Zheng et al., arXiv 2508.16211, in the form of cache-dit's calibrator, version 1.5.
    """
    host = host_of(target, foca, **run)
    compute = ~all_computed(host)
    computed = at_intervals(host, every, first)
    compute[computed] = True
    coefficients = torch.zeros(*compute.shape, len(computed))
    for evaluation, weights in heun_weights(len(compute), computed).items():
        coefficients[evaluation, :, : len(weights)] = weights
    predictor = Predictor("linear", coefficients=coefficients)
    return pattern(host, compute, {"method": "foca", "every": every, "first": first}, predictor)


def heun_weights(evaluations: int, computed: Sequence[int]) -> dict[int, Tensor]:
    """Weights of computed values in the forecast at every other evaluation.

    Args:
        evaluations: Of the run.
        computed: Those that are computed, rising, from 0 on.

    Returns:
        By evaluation, weights (computed values before it,), float32, the latest first.

    >>> {at: weights.tolist() for at, weights in heun_weights(4, [0, 1]).items()}
    {2: [2.0, -1.0], 3: [3.0, -2.0]}
    """
    unit = torch.eye(len(computed), dtype=torch.float64)  # each value as weights on the computed ones
    latest: list[Tensor] = []  # last two values of any kind, newest first
    anchors: list[Tensor] = []  # all computed ones, newest first
    found: dict[int, Tensor] = {}
    for evaluation in range(evaluations):
        if evaluation in computed:
            value = unit[len(anchors)]
            anchors.insert(0, value)
        else:
            value = anchors[0]
            ahead = evaluation - computed[len(anchors) - 1]
            if len(anchors) > 1:
                slopes = anchors[0] - anchors[1] + latest[0] - latest[1]
                reach = min(ahead, HORIZON)
                value = anchors[0] + min(1.0, HORIZON / ahead) * reach / 2 * slopes
            found[evaluation] = value[: len(anchors)].flip(0).float()
            if len(anchors) < 2:
                continue  # a copy is no step of the recursion
        latest = [value, *latest[:1]]
    return found


METHOD = Method(
    "foca",
    "FoCa",
    foca,
    "arXiv 2508.16211",
    published={"every": 3, "first": 3},
    choices=tuple({"every": every} for every in range(1, 13)),
)
