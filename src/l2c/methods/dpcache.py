"""DPCache: the evaluations that compute are the best path through a table of costs, by dynamic programming."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, evaluations_of
from l2c.methods.inner_products import inner_products
from l2c.methods.smoothcache import CALIBRATION_SEED
from l2c.methods.taylorseer import forecast_weights
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule


def path_costs(target: Any, *, num_images: int = 10, seed: int = CALIBRATION_SEED, **run: Any) -> Tensor:
    """Samples pictures with everything computed and measures what skipping evaluations would cost.

    Args:
        target: A model, a diffusers pipeline, or a host.
        num_images: Pictures of the calibration.
        seed: Of the first picture.
        run: How the target is sampled, see `l2c.learn`.

    Returns:
        Costs (N + 1, N, N + 1) of N evaluations: at [i + 1, j, k] the sum of the relative errors, mean over layers, of
        the forecasts between evaluations j and k from the values at i and j. Index 0 in the first place is for a j that
        has none before it; N in the last for the end of the run. Infinite where i < j < k does not hold.

    Raises:
        ConfigError: If an argument is unknown or out of range.
    """
    return costs_of(inner_products(host_of(target, path_costs, **run), num_images, seed))


def costs_of(products: Tensor) -> Tensor:
    """Costs, see `path_costs`, from inner products (groups, N, N) of groups of values at N evaluations."""
    count = products.shape[1]
    norms = products.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1e-12)
    costs = torch.full((count + 1, count, count + 1), torch.inf, dtype=torch.float64)
    for j in range(count):
        for i in range(-1, j):
            past = [j] if i < 0 else [j, i]
            total = 0.0
            costs[i + 1, j, j + 1] = 0.0
            for at in range(j + 1, count):
                weights = torch.cat([torch.ones(1), -forecast_weights(at, past, 1)]).double()
                places = [at, *past]
                squares = (products[:, places][:, :, places] @ weights) @ weights
                total += float((squares.clamp_min(0).sqrt() / norms[:, at]).mean())
                costs[i + 1, j, at + 1] = total
    return costs


def best_paths(costs: Tensor, most: int) -> dict[int, list[int]]:
    """For every number of evaluations up to `most`, the ones to compute at the least sum of costs, from 0 on.

    Args:
        costs: See `path_costs`.
        most: Largest number.
    """
    count = costs.shape[1]
    ends = torch.full(
        (count + 1, count), torch.inf, dtype=costs.dtype
    )  # the last two of a path, best sum so far
    ends[0, 0] = 0.0
    links: list[Tensor] = []
    found: dict[int, list[int]] = {}
    for number in range(1, most + 1):
        closed = ends + costs[:, :, count]
        place = int(closed.argmin())
        before, last = place // count, place % count
        path = [last]
        for link in reversed(links):
            path.append(before - 1)
            before, last = int(link[before - 1, last]), before - 1
        found[number] = path[::-1]
        sums, link = (ends[:, :, None] + costs[:, :, :count]).min(dim=0)  # (second to last, next)
        links.append(link)
        ends = torch.cat([torch.full((1, count), torch.inf, dtype=costs.dtype), sums])
    return found


def dpcache(
    target: Any,
    *,
    evaluations: int | None = None,
    budget: float | None = None,
    prepared: Tensor | None = None,
    num_images: int = 10,
    seed: int = CALIBRATION_SEED,
    **run: Any,
) -> CacheSchedule:
    """Computes everything at the evaluations whose forecasts of all others cost least, found exactly.

    The cost of a gap depends on where it begins, where it ends, and the computed evaluation before it, since forecasts
    are lines through the last two values over step numbers. Dynamic programming over pairs of computed evaluations
    finds the path of the least sum.

    What differs: costs are errors of the outputs of all layers, at some elements of each.

    Args:
        target: A model, a diffusers pipeline, or a host.
        evaluations: How many compute; half by default.
        budget: Instead of that, the share of the run's MACs to come close to.
        prepared: Costs from `path_costs`; by default they are measured.
        num_images: Pictures of the calibration.
        seed: Of its first picture.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Cui et al., arXiv 2602.22654.
    """
    host = host_of(target, dpcache, **run)
    compute = ~all_computed(host)
    total = len(compute)
    evaluations = evaluations_of(host, evaluations, budget)
    costs = prepared if prepared is not None else path_costs(host, num_images=num_images, seed=seed)
    computed = best_paths(costs, evaluations)[evaluations]
    compute[computed] = True
    coefficients = torch.zeros(*compute.shape, 2)
    for at in range(total):
        if not compute[at, 0]:
            weights = forecast_weights(at, [one for one in computed if one < at][::-1], 1)
            coefficients[at, :, : len(weights)] = weights
    predictor = Predictor("linear", coefficients=coefficients)
    recorded = {"method": "dpcache", "evaluations": evaluations, **host.provenance}
    return CacheSchedule(compute, host.table, host.contract(), predictor, None, recorded)


METHOD = Method(
    "dpcache",
    "DPCache",
    dpcache,
    "arXiv 2602.22654",
    prepare=path_costs,
    prepare_settings=("num_images", "seed"),
)
