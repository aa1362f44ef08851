"""BudCache, NeuralSolver and bespoke solvers: searches against all there is, solvers against their formulas."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.hosts.base import SolverTable
from l2c.hosts.labelled_noise import LabelledNoise
from l2c.hosts.native import ModelHost
from l2c.methods import bespoke, budcache, neuralsolver
from l2c.methods.budcache import judged, learn_grid, search
from l2c.methods.neuralsolver import Lion, SearchedSolver, velocity_table
from l2c.methods.solver_fit import TimeGrid, noise_shares
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.linear import LinearSolver, solver_table
from l2c.sampling.sampler import Sampler, seeded_noise

QUICK = {"iterations": 2, "batch_size": 1, "num_examples": 2, "reference_steps": 8}


def gaps(mask, total=10):
    """A loss that prefers even gaps, with a few bad places."""
    ends = [*mask, total]
    return sum((b - a) ** 2.5 for a, b in pairwise(ends)) / 500 + 0.02 * (5 in mask)


@pytest.mark.parametrize("seed", range(5))
def test_budcache_finds_the_best_mask_of_all(seed):
    fixed, asked = {0}, []

    def loss(mask):
        asked.append(mask)
        return gaps(mask)

    found, value = search(10, 4, fixed, loss, 200, 20, random.Random(seed))
    masks = [(0, *rest) for rest in combinations(range(1, 10), 3)]
    assert value == gaps(found) == pytest.approx(min(gaps(mask) for mask in masks))
    assert len(asked) == len(set(asked)) <= len(masks)  # none is tried twice
    assert all(len(mask) == 4 and mask[0] == 0 for mask in asked)


def test_budcache_climbs_down_alone_and_keeps_what_is_fixed():
    found, _ = search(12, 5, {0, 1, 7}, lambda mask: gaps(mask, 12), 0, 20, random.Random(0))
    assert {0, 1, 7} <= set(found)
    assert len(found) == 5
    best = min(
        gaps((*sorted({0, 1, 7, *rest}),), 12) for rest in combinations([2, 3, 4, 5, 6, 8, 9, 10, 11], 2)
    )
    assert gaps(found, 12) == pytest.approx(best)


def test_budcache_judges_by_final_pictures(tiny_dit):
    host = l2c.host_of(tiny_dit, solver="ddim", steps=6)
    with torch.no_grad(), judged(host, 2, 30) as loss:
        assert loss(tuple(range(6))) == 0
        found = loss((0, 1, 4))
    schedule = budcache(host, evaluations=3, annealing=2, climbing=1)
    assert schedule.cost.fraction == pytest.approx(0.5, abs=0.05)
    assert schedule.predictor.kind == "copy"
    compute = torch.zeros(6, 6, dtype=torch.bool)
    compute[[0, 1, 4]] = True
    mask = l2c.CacheSchedule(compute, host.table, host.contract())
    examples = host.seeded([30, 31])
    with torch.no_grad():
        full = host.sample(examples)
        with host.attach(mask):
            made = host.sample(examples)
    assert found == pytest.approx(float((made - full).square().mean()), rel=1e-4)


def test_budcache_learns_a_time_grid(tiny_dit):
    host = l2c.host_of(tiny_dit, steps=6).solver_starts(6)[0]
    compute = torch.zeros(6, 6, dtype=torch.bool)
    compute[[0, 2, 4]] = True
    table = learn_grid(host, compute, 8, 2, 2, 0.02, 0)
    before = torch.tensor(host.run.log_snrs, dtype=torch.float64)
    assert float(table.log_snrs[0]) == pytest.approx(float(before[0]))
    assert (table.log_snrs.diff() > 0).all()
    examples = host.examples(2, 0, "budcache")
    schedule = l2c.CacheSchedule(compute, host.table, host.contract())

    def error(solver):
        with torch.no_grad(), host.attach(schedule):
            return float((host.sample(examples, solver=solver) - full).square().mean())

    with torch.no_grad():
        full = host.sample(examples)
    assert error(table) < 0.98 * error(SolverTable(before, host.multistep_table(before).float()))
    made = budcache(
        l2c.host_of(tiny_dit, steps=6), evaluations=3, annealing=1, climbing=0, refine=1, batch_size=1
    )
    assert made.contract.run.weights is not None
    assert l2c.sample(tiny_dit, [1], [0], schedule=made).isfinite().all()


def test_a_time_grid_begins_where_it_is_told_and_never_crosses():
    log_snrs = torch.linspace(-5, 4, 7, dtype=torch.float64)
    grid = TimeGrid(noise_shares(log_snrs))
    torch.testing.assert_close(grid.log_snrs(-5.0), log_snrs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        grid.logits += 3 * torch.randn(7, generator=torch.Generator().manual_seed(0))
    assert (grid.log_snrs(-5.0).diff() > 0).all()


def test_neuralsolver_has_the_published_number_of_parameters(tiny_dit):
    host = l2c.host_of(tiny_dit, steps=4)
    for count, published in ((6, 21), (7, 28), (8, 36), (10, 55)):  # table 2 of the publication
        solver = SearchedSolver(host.solver_starts(count)[0])
        below = torch.ones_like(solver.coefficients).tril(-1).sum()
        assert below + len(solver.grid.logits) == published


def test_neuralsolver_begins_as_ddim(tiny_dit):
    """Euler's steps along velocities of the flow are those of DDIM."""
    sampler = Sampler(Denoiser.of(tiny_dit), "ddim", 5)
    log_snrs = torch.tensor(sampler.run.log_snrs, dtype=torch.float64)
    ours = velocity_table(log_snrs, torch.eye(5, dtype=torch.float64), "epsilon")
    torch.testing.assert_close(ours.float(), solver_table(sampler.make_solver()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_neuralsolver_table_steps_along_sums_of_velocities(kind):
    generator = torch.Generator().manual_seed(0)
    log_snrs = torch.tensor([-3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    weights = torch.randn(4, 4, dtype=torch.float64, generator=generator).tril(-1)
    weights += torch.diag(1 - weights.sum(1))
    x, predictions = torch.randn(5, 3, dtype=torch.float64, generator=generator).split([1, 4])
    terms = torch.cat([x, predictions])
    ratio = log_snrs.exp()  # alpha over sigma
    share = 1 / (1 + ratio)
    size = torch.ones(4, dtype=torch.float64) if kind == "flow_prediction" else (1 - share) ** 2 + share**2
    scale = size.rsqrt()  # alpha + sigma
    sample, velocities = x[0], []
    for i in range(4):
        alpha, sigma, said = (1 - share[i]) * scale[i], share[i] * scale[i], predictions[i]
        data = {
            "epsilon": (sample - sigma * said) / alpha,
            "v_prediction": alpha * sample - sigma * said,
            "flow_prediction": sample - sigma * said,
        }[kind]
        velocities.append((sample - alpha * data) / sigma - data)
        after, over = (share[i + 1], scale[i + 1]) if i < 3 else (0.0, 1.0)
        along = sum(weights[i, j] * velocities[j] for j in range(i + 1))
        sample = over * (sample / scale[i] + (after - share[i]) * along)
    table = velocity_table(log_snrs, weights, kind)
    torch.testing.assert_close(table[-1] @ terms, sample)
    assert torch.equal(table, table.tril())


def test_lion_moves_by_the_sign_of_a_mean():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = Lion([parameter], lr=0.1)
    for gradient in ([1.0, -2.0], [-0.05, -2.0]):  # 0.9 * 0.01 - 0.1 * 0.05 > 0: the mean still leads
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    torch.testing.assert_close(parameter.data, torch.tensor([-0.2, 0.2]))


def test_neuralsolver_learns_a_run(tiny_dit):
    host = l2c.host_of(tiny_dit, steps=12)
    schedule = neuralsolver(host, budget=0.5, **(QUICK | {"iterations": 16, "learning_rate": 0.05}))
    assert len(schedule.contract.run.timesteps) == 6
    assert bool(schedule.compute.all())
    assert schedule.provenance["loss_last"] < schedule.provenance["loss_first"]
    solver = LinearSolver.of_run(schedule.contract.run)
    assert solver.weights.shape == (7, 7)
    for wrong in ({"evaluations": 1}, {"budget": 1.5}):
        with pytest.raises(ConfigError):
            neuralsolver(host, **wrong, **QUICK)


def test_bespoke_samples_by_its_formula(tiny_dit):
    """x_i = a_i x_0 + sum over j of b_ij u_j, as section 3 has it."""
    host = l2c.host_of(tiny_dit, steps=8, guidance=1.0)
    settings = {"iterations": 2, "batch_size": 1, "num_examples": 4, "reference_steps": 8, "trials": 1}
    schedule = bespoke(host, budget=0.5, **settings)
    run, denoiser = schedule.contract.run, Denoiser.of(tiny_dit)
    assert len(run.timesteps) == 4
    assert schedule.provenance["method"] == "bespoke"
    labels, noise = torch.tensor([3]), seeded_noise([5], denoiser.sample_shape)
    terms = [noise]
    with torch.no_grad():
        for i in range(4):
            x = sum(weight * term for weight, term in zip(run.weights[i], terms, strict=False))
            terms.append(denoiser(x, torch.tensor(run.timesteps[i]), labels))
        expected = sum(weight * term for weight, term in zip(run.weights[4], terms, strict=True))
        made = ModelHost.of_schedule(tiny_dit, schedule).sample(LabelledNoise(noise, labels))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
