"""Scales of detail: bands add up, weights of bands and of low-passed maps are the same thing."""

from __future__ import annotations

import pytest
import torch

from l2c.errors import ConfigError
from l2c.sampling.linear import LinearSolver, check_table
from l2c.schedule.contract import Run
from l2c.schedule.scales import bands, low_pass, of_bands, scales_in, scales_of, weigh_terms

RUN = Run("learned", 2, "learned", (900.0, 300.0), (-2.0, 1.0))


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 4, 9, 14), (1, 4, 3, 8, 8)])
def test_bands_add_up(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parts = bands(x, 3)
    assert torch.allclose(sum(parts), x, atol=1e-6)
    assert parts[-1].var() < parts[0].var()  # white noise has most of its power in fine detail


def test_what_is_coarse_passes():
    flat = torch.full((1, 2, 16, 16), 3.0)
    assert torch.allclose(low_pass(flat, 3), flat)
    checkered = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float().expand(1, 1, 16, 16)
    assert torch.allclose(low_pass(checkered, 1), torch.full((1, 1, 16, 16), 0.5))


def test_weights_of_bands_are_weights_of_what_passes():
    generator = torch.Generator().manual_seed(1)
    terms = [torch.randn(2, 3, 16, 16, generator=generator) for _ in range(3)]
    weights = torch.randn(4, 3, generator=generator)
    by_bands = sum(
        weight * part
        for term, column in zip(terms, weights.T, strict=True)
        for weight, part in zip(column, bands(term, 4), strict=True)
    )
    assert torch.allclose(weigh_terms(terms, of_bands(weights)), by_bands, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "count"), [((1, 4, 128, 128), 4), ((1, 4, 8, 8), 3), ((1, 4, 1, 8), 1), ((1, 64, 16), 1)]
)
def test_scales_of_samples(shape, count):
    assert scales_of(shape) == count
    assert scales_of(shape, 2) == min(count, 2)


@pytest.mark.parametrize("width", [3, 6, 12])
def test_tables_side_by_side(width):
    table = torch.zeros(3, width)
    table[:, 0] = 1
    assert scales_in(table, 2) == width // 3
    solver, noise = LinearSolver(RUN, table), torch.ones(1, 1, 8, 8)
    assert torch.equal(solver.step(0, noise, noise), noise)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (3, 15), (3, 0)])
def test_other_tables_are_refused(shape):
    with pytest.raises(ConfigError, match="3 x 3 weights"):
        check_table(torch.zeros(shape), 2)
