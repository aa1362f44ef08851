"""TaylorSeer: the whole network at every N-th evaluation, a Taylor series over step numbers in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from l2c.documents import Whole, check_value
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, at_intervals, pattern
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule

MAX_ORDER = 6


def taylorseer(
    target: Any,
    *,
    every: int = 4,
    order: int = 4,
    first: int = 2,
    **run: Any,
) -> CacheSchedule:
    """Computes everything at the first evaluations and at every N-th after them; forecasts in between.

    The forecast is the publication's: the derivatives of a layer's output are finite differences of its last
    computed values over *step numbers*, each order a difference of the order below, and enter a Taylor series. As
    that is a linear combination of stored values with weights that are known beforehand, it is expressed exactly.
    (`interval(predictor="taylor-N")` is the polynomial through the same values over log-SNR instead, which is
    something else from order 2 on.)

    What differs: nothing in what is forecast. The released code does not compute the layers' norms at forecast
    evaluations either, as here on our own models; in diffusers' DiT they run.

    Args:
        target: A model, a diffusers pipeline, or a host; its weights are not looked at.
        every: Length of the interval, N.
        order: Order of the series, lower while fewer values have been computed.
        first: Evaluations at the beginning that compute everything.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Liu et al., arXiv 2503.06923, equations 2 to 5; `first` and the defaults from the released code for DiT.
    """
    check_value("order", order, Annotated[Whole, Field(ge=0, le=MAX_ORDER)])
    host = host_of(target, taylorseer, **run)
    compute = ~all_computed(host)
    compute[at_intervals(host, every, first)] = True
    coefficients = torch.zeros(*compute.shape, order + 1)
    for evaluation in range(len(host.run.timesteps)):
        if not compute[evaluation, 0]:
            past = [e for e in range(evaluation) if compute[e, 0]]
            weights = forecast_weights(evaluation, past[::-1], order)
            coefficients[evaluation, :, : len(weights)] = weights
    settings = {"every": every, "order": order, "first": first}
    predictor = Predictor("linear", coefficients=coefficients)
    return pattern(host, compute, {"method": "taylorseer", **settings}, predictor)


def forecast_weights(target: int, computed: Sequence[int], order: int) -> Tensor:
    """Weights on the last computed values in the forecast at an evaluation.

    Args:
        target: The evaluation that is forecast.
        computed: Evaluations that were computed, the latest first.
        order: Order of the series.

    Returns:
        (min(order + 1, len(computed)),), float32, the latest first.

    >>> forecast_weights(6, [4, 0], order=1).tolist()
    [1.5, -0.5]
    """
    used = list(computed[: order + 1])[::-1]
    ahead = target - used[-1]
    series = [factor * ahead**i / math.factorial(i) for i, factor in enumerate(derivatives(used))]
    return torch.stack(series).sum(dim=0).flip(0).float()


def derivatives(used: Sequence[int]) -> list[Tensor]:
    """Finite differences of every order at the last of some computed values.

    Args:
        used: Evaluations of the values, rising.

    Returns:
        For each order from 0 on, weights (values,) on the values, float64, the earliest first.
    """
    depth = len(used)
    factors: list[Tensor] = []
    for index, evaluation in enumerate(used):
        updated = [torch.zeros(depth, dtype=torch.float64)]
        updated[0][index] = 1.0
        for i in range(len(factors)):
            updated.append((updated[i] - factors[i]) / (evaluation - used[index - 1]))
        factors = updated
    return factors


METHOD = Method(
    "taylorseer",
    "TaylorSeer",
    taylorseer,
    "arXiv 2503.06923",
    published={"every": 4, "order": 4, "first": 2},
    choices=tuple({"every": every} for every in range(1, 13)),
)
