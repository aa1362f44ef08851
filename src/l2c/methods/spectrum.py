"""Spectrum: Chebyshev polynomials over the run, fitted to all computed values by ridge regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from l2c.documents import Count, Real, Whole, check_value
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, pattern
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule


def spectrum(
    target: Any,
    *,
    window: int = 2,
    growth: float = 0.75,
    first: int = 5,
    degree: int = 4,
    ridge: float = 0.1,
    **run: Any,
) -> CacheSchedule:
    """Computes everything at the first evaluations, then at intervals that grow; forecasts in between.

    A layer's output is taken for a polynomial over the evaluations of the whole run, in Chebyshev's basis, fitted by
    ridge regression to all values that were computed so far. As the fit is linear in them, so is the forecast.

    What differs: each layer is forecast, where the publication forecasts the output of the last block alone.

    Args:
        target: A model, a diffusers pipeline, or a host; its weights are not looked at.
        window: Length of the first interval, N.
        growth: What an interval is longer than the one before it, alpha; interval lengths are rounded down.
        first: Evaluations at the beginning that compute everything.
        degree: Of the polynomial, M.
        ridge: Strength of the regularisation, lambda.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Han et al., arXiv 2603.01623; `first` and the defaults from the released settings for FLUX.1.
    """
    check_value("window", window, Count)
    check_value("growth", growth, Annotated[Real, Field(ge=0)])
    check_value("first", first, Count)
    check_value("degree", degree, Annotated[Whole, Field(ge=0)])
    check_value("ridge", ridge, Annotated[Real, Field(gt=0)])
    host = host_of(target, spectrum, **run)
    compute = ~all_computed(host)
    computed = growing(len(compute), window, growth, first)
    compute[computed] = True
    coefficients = torch.zeros(*compute.shape, len(computed))
    for evaluation in range(len(compute)):
        if not compute[evaluation, 0]:
            past = [at for at in computed if at < evaluation][::-1]
            coefficients[evaluation, :, : len(past)] = ridge_weights(
                evaluation, past, len(compute), degree, ridge
            )
    settings = {"window": window, "growth": growth, "first": first, "degree": degree, "ridge": ridge}
    predictor = Predictor("linear", coefficients=coefficients)
    return pattern(host, compute, {"method": "spectrum", **settings}, predictor)


def growing(evaluations: int, window: float, growth: float, first: int) -> list[int]:
    """Evaluations that compute: the first ones, then after intervals of the length `window`, which grows.

    >>> growing(20, window=2, growth=0.75, first=2)
    [0, 1, 3, 5, 8, 12, 17]
    """
    computed, length = list(range(min(first, evaluations))), float(window)
    while (at := computed[-1] + math.floor(length)) < evaluations:
        computed.append(at)
        length += growth
    return computed


def ridge_weights(
    target: int, computed: Sequence[int], evaluations: int, degree: int, ridge: float
) -> Tensor:
    """Weights (len(computed),), float32, of the values at evaluations in the forecast at another.

    >>> ridge_weights(2, [1, 0], evaluations=4, degree=1, ridge=1e-9).tolist()
    [2.0, -1.0]
    """
    fitted, wanted = (_chebyshev(at, evaluations, degree) for at in (computed, [target]))
    normal = fitted.T @ fitted + ridge * torch.eye(degree + 1, dtype=torch.float64)
    weights: Tensor = (wanted @ torch.linalg.solve(normal, fitted.T))[0].float()
    return weights


def _chebyshev(at: Sequence[int], evaluations: int, degree: int) -> Tensor:
    """Polynomials (len(at), degree + 1) over evaluations, from -1 at the first to 1 after the last."""
    angles = torch.acos(2 * torch.tensor(at, dtype=torch.float64) / evaluations - 1)
    return torch.cos(angles[:, None] * torch.arange(degree + 1))


METHOD = Method(
    "spectrum",
    "Spectrum",
    spectrum,
    "arXiv 2603.01623",
    published={"window": 2, "growth": 0.75},
    choices=(
        *({"window": 1, "growth": growth} for growth in (0.0, 0.1, 0.25)),
        *({"window": 2, "growth": growth} for growth in (0.0, 0.1, 0.25, 0.5, 0.75, 1.5, 3.0)),
    ),
)
