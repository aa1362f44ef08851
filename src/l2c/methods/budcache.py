"""BudCache: the evaluations that compute, searched under a budget by the final pictures; then a learned time grid."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from l2c.documents import Count, LearningRate, Seed, Whole, check_value
from l2c.hosts.base import Host, SolverTable
from l2c.hosts.targets import host_of
from l2c.learning.task import rate_at
from l2c.methods.base import Method, all_computed, evaluations_of
from l2c.methods.smoothcache import CALIBRATION_SEED
from l2c.methods.solver_fit import TimeGrid, fit, fitted_contract, noise_shares
from l2c.schedule.forecast import Predictor, plan_reuse
from l2c.schedule.schedule import CacheSchedule

HOTTEST, COLDEST = 0.05, 1e-5
"""Temperatures that annealing begins and ends with, in mean squared error."""
NEAR = 3
"""Evaluations that a short move goes at most."""

Mask = tuple[int, ...]
"""Evaluations that compute, rising."""


def budcache(
    target: Any,
    *,
    evaluations: int | None = None,
    budget: float | None = None,
    annealing: int = 200,
    climbing: int = 20,
    num_images: int = 1,
    refine: int = 0,
    batch_size: int = 4,
    num_examples: int = 32,
    learning_rate: float = 5e-4,
    seed: int = CALIBRATION_SEED,
    **run: Any,
) -> CacheSchedule:
    """Computes everything at a given number of evaluations, and copies in between; which ones, a search finds.

    A mask is judged by the pictures that come out: their mean squared distance to those with everything computed. The
    search moves computed evaluations, by simulated annealing first, then to the best neighbour as long as there is a
    better one. With `refine`, the times of the evaluations are learned for the mask that was found, too, by gradients
    through the whole run.

    What differs: each layer's output is copied, and not what all blocks add up to. With `refine`, the run is that of
    DPM-Solver++(2M), whose weights follow the times; the publication's are Euler's steps. And times are those of the
    flow that a run amounts to, which for a flow are its own.

    Args:
        target: A model, a diffusers pipeline, or a host.
        evaluations: How many compute; half by default.
        budget: Instead of that, the share of the run's MACs to come close to.
        annealing: Masks that annealing tries.
        climbing: Moves to the best neighbour, at most; each tries some ten masks for every computed evaluation.
        num_images: Pictures by which a mask is judged.
        refine: Steps of learning the time grid; 0 leaves it as it is.
        batch_size: Pictures of a step.
        num_examples: Pictures that the grid is learned on.
        learning_rate: Of AdamW, for the logarithms of the gaps between times.
        seed: Of the pictures and of the search.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range, or times are to be learned where no solver can be.

    Source: Lei et al., arXiv 2606.13496; moves, temperatures and defaults from the released search for FLUX.1-dev.
    """
    counts = {"annealing": annealing, "climbing": climbing, "refine": refine}
    for name, count in counts.items():
        check_value(name, count, Annotated[Whole, Field(ge=0)])
    for name, count in {
        "num_images": num_images,
        "batch_size": batch_size,
        "num_examples": num_examples,
    }.items():
        check_value(name, count, Count)
    check_value("learning_rate", learning_rate, LearningRate)
    check_value("seed", seed, Seed)
    host = host_of(target, budcache, **run)
    number = evaluations_of(host, evaluations, budget)
    if refine:
        host = host.solver_starts(len(host.run.timesteps))[0]
    total = len(host.run.timesteps)
    fixed = {*range(max(1, number // 4)), *host.segments}
    number = max(number, len(fixed))
    with torch.no_grad(), judged(host, num_images, seed) as loss:
        mask, found = search(total, number, fixed, loss, annealing, climbing, random.Random(seed))
    compute = ~all_computed(host)
    compute[list(mask)] = True
    recorded: dict[str, Any] = {"method": "budcache", "evaluations": number, **counts}
    recorded |= {"squared_error": round(found, 7), **host.provenance}
    contract = host.contract()
    if refine:
        table = learn_grid(host, compute, refine, batch_size, num_examples, learning_rate, seed)
        contract = fitted_contract(host, table)
    return CacheSchedule(compute, host.table, contract, provenance=recorded)


@contextmanager
def judged(host: Host, num_images: int, seed: int) -> Iterator[Callable[[Mask], float]]:
    """Tells the mean squared distance of pictures with a mask to those with everything computed."""
    examples = host.seeded(range(seed, seed + num_images))
    wanted = host.sample(examples)
    everything = all_computed(host)
    start = CacheSchedule(everything, host.table, host.contract(weights=False))
    with host.attach(start) as handle:

        def loss(mask: Mask) -> float:
            compute = ~everything
            compute[list(mask)] = True
            handle.use(plan_reuse(compute, Predictor(), None))
            return (host.sample(examples) - wanted).square().mean().item()

        yield loss


def search(
    total: int,
    number: int,
    fixed: set[int],
    loss: Callable[[Mask], float],
    annealing: int,
    climbing: int,
    generator: random.Random,
) -> tuple[Mask, float]:
    """The best mask that was tried, and its loss.

    Args:
        total: Evaluations of the run.
        number: How many compute.
        fixed: Those that compute in any case.
        loss: Of a mask; asked once for each.
        annealing: Masks that annealing tries.
        climbing: Moves to the best neighbour, at most.
        generator: Of random numbers.
    """
    known: dict[Mask, float] = {}

    def judge(mask: Mask) -> float:
        if mask not in known:
            known[mask] = loss(mask)
        return known[mask]

    free = sorted(set(range(total)) - fixed)
    here = tuple(sorted(fixed | set(generator.sample(free, number - len(fixed)))))
    judge(here)
    for trial in range(annealing):
        temperature = HOTTEST * (COLDEST / HOTTEST) ** (trial / annealing)
        other = _moved(here, free, generator)
        worse = judge(other) - known[here]
        if worse < 0 or generator.random() < math.exp(-worse / temperature):
            here = other
    here = min(known, key=known.__getitem__)
    for _ in range(climbing):
        best = min(_neighbours(here, free, generator), key=judge, default=here)
        if judge(best) >= known[here]:
            break
        here = best
    return here, known[here]


def _moved(mask: Mask, free: list[int], generator: random.Random) -> Mask:
    """A mask with one evaluation moved, mostly not far, or now and then two of them."""
    movable, empty = [at for at in mask if at in free], [at for at in free if at not in mask]
    if not movable or not empty:
        return mask
    if generator.random() < 0.1 and min(len(movable), len(empty)) > 1:
        leaving, coming = generator.sample(movable, 2), generator.sample(empty, 2)
    else:
        leaving = [generator.choice(movable)]
        near = [at for at in empty if abs(at - leaving[0]) <= NEAR]
        coming = [generator.choice(near if near and generator.random() < 0.7 else empty)]
    return tuple(sorted({*mask, *coming} - set(leaving)))


def _neighbours(mask: Mask, free: list[int], generator: random.Random) -> list[Mask]:
    """Masks with one evaluation moved: all short moves, and two others of each."""
    empty = [at for at in free if at not in mask]
    found: dict[Mask, None] = {}
    for leaving in (at for at in mask if at in free):
        near = [at for at in empty if abs(at - leaving) <= NEAR]
        for coming in [*near, *generator.sample(empty, min(2, len(empty)))]:
            found[tuple(sorted({*mask, coming} - {leaving}))] = None
    return list(found)


def learn_grid(
    host: Host,
    compute: Tensor,
    iterations: int,
    batch_size: int,
    num_examples: int,
    learning_rate: float,
    seed: int,
) -> SolverTable:
    """Learns the times of a run with a mask, by the distance to what it makes with everything computed at its own.

    Args:
        host: Of `Host.solver_starts`.
        compute: The mask, bool (evaluations, layers).
        iterations: Steps.
        batch_size: Pictures of a step.
        num_examples: Pictures in all.
        learning_rate: Of AdamW; it rises and falls as for forecasts.
        seed: Of the pictures.
    """
    levels = torch.tensor(host.run.log_snrs, dtype=torch.float64, device=host.device)
    grid = TimeGrid(noise_shares(levels)).to(host.device)
    examples = host.examples(num_examples, seed, "budcache")
    with torch.no_grad():
        wanted = host.sample(examples)

    def table() -> SolverTable:
        log_snrs = grid.log_snrs(host.run.log_snrs[0])
        return SolverTable(log_snrs, host.multistep_table(log_snrs).float())

    schedule = CacheSchedule(compute, host.table, host.contract(weights=False))
    with host.prepared(), host.attach(schedule):
        fit(
            host,
            table,
            examples,
            wanted,
            torch.nn.functional.mse_loss,
            torch.optim.AdamW(grid.parameters(), lr=learning_rate, weight_decay=1e-4),
            iterations=iterations,
            batch_size=batch_size,
            seed=seed,
            rate=lambda iteration: rate_at(iteration, iterations),
        )
    with torch.no_grad():
        return table()


METHOD = Method("budcache", "BudCache", budcache, "arXiv 2606.13496")
