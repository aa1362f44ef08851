"""Spectrum, DPCache and Adaptive Guidance against computations that share nothing with them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.methods import adaptive_guidance, dpcache, schedule_for, spectrum
from l2c.methods.dpcache import METHOD, best_paths, costs_of, path_costs
from l2c.methods.registry import find_method
from l2c.methods.spectrum import growing, ridge_weights
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler, seeded_noise


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize("computed", [[0], [0, 1, 2], [0, 1, 2, 4, 7, 11]])
def test_spectrum_forecasts_as_a_ridge_fit_of_chebyshev_polynomials_does(computed, ridge):
    rng, count, target, degree = np.random.default_rng(0), 20, 14, 4
    values = rng.normal(size=(len(computed), 5))
    times = 2 * np.array([*computed, target]) / count - 1
    table = np.polynomial.chebyshev.chebvander(times, degree)
    rows = np.vstack([table[:-1], np.sqrt(ridge) * np.eye(degree + 1)])  # ridge regression as least squares
    fit, *_ = np.linalg.lstsq(rows, np.vstack([values, np.zeros((degree + 1, 5))]), rcond=None)
    weights = ridge_weights(target, computed[::-1], count, degree, ridge).numpy()
    np.testing.assert_allclose(weights @ values[::-1], table[-1] @ fit, rtol=1e-4, atol=1e-5)


def test_spectrum_computes_at_growing_intervals(tiny_dit):
    assert growing(50, 2, 0.75, 5) == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]  # 14, as published
    schedule = spectrum(tiny_dit, solver="ddim", steps=12, first=3)
    computed = schedule.compute[:, 0].nonzero().flatten().tolist()
    assert computed == [0, 1, 2, 4, 6, 9]
    assert [source for source, _ in schedule.plan[8, 0]] == [6, 4, 2, 1, 0]
    weights = torch.tensor([weight for _, weight in schedule.plan[8, 0]])
    torch.testing.assert_close(weights, ridge_weights(8, [6, 4, 2, 1, 0], 12, 4, 0.1))
    assert l2c.sample(tiny_dit, [1], [0], schedule=schedule).isfinite().all()
    with pytest.raises(ConfigError, match="ridge"):
        spectrum(tiny_dit, solver="ddim", steps=12, ridge=0)


def sum_of(costs, path):
    count = costs.shape[1]
    steps = zip([-1, *path], path, [*path[1:], count], strict=False)
    return sum(float(costs[i + 1, j, k]) for i, j, k in steps)


def test_dpcache_finds_the_best_path_of_all():
    count, generator = 7, torch.Generator().manual_seed(0)
    costs = torch.rand(count + 1, count, count + 1, generator=generator, dtype=torch.float64)
    before, last, following = torch.meshgrid(*map(torch.arange, costs.shape), indexing="ij")
    costs[(before > last) | (following <= last)] = torch.inf
    found = best_paths(costs, count)
    for number in range(1, count + 1):
        paths = [(0, *rest) for rest in combinations(range(1, count), number - 1)]
        assert found[number][0] == 0
        assert len(found[number]) == number
        assert sum_of(costs, found[number]) == pytest.approx(min(sum_of(costs, path) for path in paths))


def test_dpcache_costs_are_errors_of_lines_through_the_last_two_values():
    values = torch.randn(6, 3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    costs = costs_of(torch.einsum("nlf,mlf->lnm", values, values))
    line = {at: values[2] + (at - 2) / 2 * (values[2] - values[0]) for at in (3, 4)}
    errors = [((values[at] - made).norm(dim=1) / values[at].norm(dim=1)).mean() for at, made in line.items()]
    assert float(costs[1, 2, 5]) == pytest.approx(float(sum(errors)), rel=1e-5)
    copied = ((values[1] - values[0]).norm(dim=1) / values[1].norm(dim=1)).mean()
    assert float(costs[0, 0, 2]) == pytest.approx(float(copied), rel=1e-5)
    assert float(costs[1, 2, 3]) == 0
    assert costs[3, 2, 5] == float("inf")


def test_dpcache_measures_layers_and_meets_a_budget(tiny_dit):
    run = {"solver": "ddim", "steps": 10}
    costs = path_costs(tiny_dit, num_images=2, **run)
    assert costs.shape == (11, 10, 11)
    schedule = dpcache(tiny_dit, evaluations=4, prepared=costs, **run)
    assert schedule.compute[:, 0].nonzero().flatten().tolist() == best_paths(costs, 4)[4]
    assert torch.equal(schedule.compute.any(1), schedule.compute.all(1))
    half = schedule_for(METHOD, l2c.host_of(tiny_dit, **run), budget=0.5, prepared=costs)
    assert half.cost.fraction == pytest.approx(0.5, abs=0.06)
    assert l2c.sample(tiny_dit, [1], [0], schedule=half).isfinite().all()


def test_adaptive_guidance_goes_on_with_the_conditional_pass(tiny_dit):
    schedule = adaptive_guidance(tiny_dit, solver="ddim", steps=6, share=0.5)
    denoiser, labels = Denoiser.of(tiny_dit), torch.tensor([1, 2])
    noise = seeded_noise([0, 1], denoiser.sample_shape)
    sampler = Sampler(denoiser, "ddim", 6, guidance=Guidance(2.0))
    made, solver = sampler.compile(schedule, "eager")(noise, labels), sampler.make_solver()
    x = noise * solver.init_scale
    with torch.no_grad():
        for evaluation, timestep in enumerate(solver.run.timesteps):
            at = solver.scale_input(x, evaluation)
            guided = denoiser(at, torch.tensor(timestep), labels)
            if evaluation < 3:
                uncond = denoiser(at, torch.tensor(timestep), torch.full_like(labels, denoiser.null_class))
                guided = uncond + 2.0 * (guided - uncond)
            x = solver.step(evaluation, x, guided)
    torch.testing.assert_close(made, x, rtol=1e-3, atol=1e-4 * float(x.abs().max()))
    assert schedule.cost.fraction == pytest.approx(0.75)
    close = schedule_for(find_method("adaptive-guidance"), l2c.host_of(tiny_dit, steps=6), budget=0.9)
    assert close.cost.fraction == pytest.approx(0.9, abs=0.06)


def test_adaptive_guidance_needs_guidance(tiny_dit):
    with pytest.raises(ConfigError, match="no passes of guidance that can be run apart"):
        adaptive_guidance(tiny_dit, steps=6, guidance=1.0)
