"""DMD: damped oscillations through the last computed values, found by dynamic mode decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from l2c.documents import Whole, check_value
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, at_intervals
from l2c.methods.inner_products import inner_products
from l2c.methods.smoothcache import CALIBRATION_SEED
from l2c.methods.taylorseer import forecast_weights
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule

LEAST_VALUES = 4
"""Evenly spaced values that modes are found from; with fewer, forecasts are lines."""
SMALLEST = 1e-4
"""Of the largest singular value, below which a mode is noise."""
RIDGE = 1e-8
"""Added to singular values that are divided by."""


def calibrate(target: Any, *, num_images: int = 10, seed: int = CALIBRATION_SEED, **run: Any) -> Tensor:
    """Samples pictures with everything computed and multiplies the outputs of each layer at all evaluations.

    Args:
        target: A model, a diffusers pipeline, or a host.
        num_images: Pictures of the calibration.
        seed: Of the first picture.
        run: How the target is sampled, see `l2c.learn`.

    Returns:
        Inner products (layers, evaluations, evaluations), float64.

    Raises:
        ConfigError: If an argument is unknown or out of range.
    """
    return inner_products(host_of(target, calibrate, **run), num_images, seed)


def dmd(
    target: Any,
    *,
    every: int = 3,
    first: int = 3,
    history: int = 6,
    prepared: Tensor | None = None,
    num_images: int = 10,
    seed: int = CALIBRATION_SEED,
    **run: Any,
) -> CacheSchedule:
    """Computes everything at the first evaluations and at every N-th after them; forecasts in between.

    Successive values of a layer are taken for powers of one linear map, whose modes are damped oscillations. Where the
    last four or more computed values are evenly spaced, the modes are found from them, and go on by a part of a step;
    before that, a forecast is the line through the last two. Modes depend on the values by their inner products alone,
    and a forecast is a combination of the values, so that it has weights.

    What differs: modes are found once, from the pictures of a calibration together, where cache-dit finds them in every
    picture while it is made; and everything is computed at fixed intervals, where cache-dit looks at each picture.

    Args:
        target: A model, a diffusers pipeline, or a host.
        every: Length of the interval, N.
        first: Evaluations at the beginning that compute everything.
        history: Computed values that modes are found from, at most.
        prepared: Inner products from `calibrate`; by default they are measured.
        num_images: Pictures of the calibration.
        seed: Of its first picture.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: cache-dit's calibrator of that name, version 1.5; the decomposition is that of Schmid, "Dynamic mode
    decomposition of numerical and experimental data", J. Fluid Mech. 656 (2010).
    """
    check_value("history", history, Annotated[Whole, Field(ge=LEAST_VALUES, le=16)])
    host = host_of(target, dmd, **run)
    computed = at_intervals(host, every, first)
    compute = ~all_computed(host)
    compute[computed] = True
    products = prepared if prepared is not None else calibrate(host, num_images=num_images, seed=seed)
    coefficients = torch.zeros(*compute.shape, history)
    for evaluation in range(len(compute)):
        past = [at for at in computed if at < evaluation][-history:]
        tail = evenly_spaced(past)
        for layer in () if compute[evaluation, 0] else range(len(host.table)):
            if len(tail) < LEAST_VALUES:
                weights = forecast_weights(evaluation, past[::-1], 1)
            else:
                ahead = (evaluation - tail[-1]) / (tail[-1] - tail[-2])
                weights = mode_weights(products[layer][tail][:, tail], ahead)
            coefficients[evaluation, layer, : len(weights)] = weights
    predictor = Predictor("linear", coefficients=coefficients)
    recorded = {"method": "dmd", "every": every, "first": first, "history": history, **host.provenance}
    return CacheSchedule(compute, host.table, host.contract(), predictor, None, recorded)


def evenly_spaced(computed: Sequence[int]) -> list[int]:
    """The last of some rising evaluations, as far back as their distances are alike.

    >>> evenly_spaced([0, 1, 2, 5, 8, 11])
    [2, 5, 8, 11]
    """
    tail = list(computed[-2:])
    while len(tail) < len(computed) and tail[0] - computed[-len(tail) - 1] == tail[1] - tail[0]:
        tail.insert(0, computed[-len(tail) - 1])
    return tail


def mode_weights(products: Tensor, ahead: float) -> Tensor:
    """Weights of evenly spaced values in what their modes go on to.

    Args:
        products: Inner products (n, n) of the values, the earliest first, float64.
        ahead: How far after the last value, in their distance.

    Returns:
        (n,), float32, the latest first; a copy of the last value where no modes are found.
    """
    copy = torch.eye(len(products))[0]
    squares, vectors = torch.linalg.eigh(products[:-1, :-1])  # of the earlier values: X'X = V S^2 V'
    singular = squares.clamp_min(0).sqrt()
    kept = singular > SMALLEST * singular[-1]
    if not kept.any():
        return copy
    vectors, singular = vectors[:, kept], singular[kept]
    inverse = 1 / (singular + RIDGE)
    onward = (vectors / singular).T @ products[:-1, 1:] @ vectors * inverse  # the map, in singular directions
    values, eigenvectors = torch.linalg.eig(onward)
    modes = (vectors * inverse).to(values.dtype) @ eigenvectors  # as weights on the later values
    squares, axes = torch.linalg.eigh(products[1:, 1:])
    root = ((axes * squares.clamp_min(0).sqrt()) @ axes.T).to(values.dtype)  # lengths as those of the values
    amplitudes = torch.linalg.lstsq(root @ modes, root[:, -1:]).solution[:, 0]
    weights = (modes @ (values**ahead * amplitudes)).real
    if not weights.isfinite().all():
        return copy
    return torch.cat([torch.zeros(1), weights.float()]).flip(0)


METHOD = Method(
    "dmd",
    "DMD",
    dmd,
    "cache-dit on PyPI",
    published={"every": 3, "first": 3, "history": 6},
    choices=tuple({"every": every} for every in range(1, 13)),
    prepare=calibrate,
    prepare_settings=("num_images", "seed"),
)
