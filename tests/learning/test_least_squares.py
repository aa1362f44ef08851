"""Solvers that begin with a least-squares fit: exact where a solver can be, and better than what they begin with."""

from __future__ import annotations

import functools
import math

import pytest
import torch

import l2c
from l2c.errors import ConfigError, NumericsError
from l2c.hosts.native import ModelHost
from l2c.hosts.pipeline.conditions import joined
from l2c.learning.closed_loop import ClosedLoop
from l2c.learning.least_squares import Paths, StepFit
from l2c.learning.references import solve
from l2c.learning.solver import learn_with_solver
from l2c.learning.trainer import Trainer
from l2c.schedule.scales import weigh_terms
from l2c.testing import tiny_call, tiny_dit, tiny_pipeline

CALL = tiny_call("sd3")
TEXTS = [name for name in CALL if name.endswith("embeds")]
LEVELS = (-4.0, -2.0, -0.5, 0.5, 2.0)


def path_of(pictures: torch.Tensor, noise: torch.Tensor, levels) -> Paths:
    """Straight lines from noise to pictures, as a flow has them."""
    sigmas = [1 / (1 + math.exp(level)) for level in levels] + [0.0]
    states = torch.stack([(1 - sigma) * pictures + sigma * noise for sigma in sigmas], dim=1)
    return Paths(tuple(levels), states)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 8, 8, generator=generator), torch.randn(6, 3, 8, 8, generator=generator)


def test_states_in_between_are_interpolated(pair):
    fine = path_of(*pair, torch.linspace(-6, 6, 40).tolist())
    for level in (-3.3, 0.1, 4.9):
        sigma = 1 / (1 + math.exp(level))
        exact = (1 - sigma) * pair[0] + sigma * pair[1]
        assert torch.allclose(fine.at(level), exact, atol=2e-3)
    assert torch.equal(fine.at(None), pair[0])
    assert torch.allclose(fine.at(fine.log_snrs[7]), fine.states[:, 7], atol=1e-5)


def test_a_step_that_can_be_exact_is(pair):
    pictures, noise = pair
    fine = path_of(pictures, noise, torch.linspace(-6, 6, 60).tolist())
    fit = StepFit(fine, LEVELS, torch.zeros(6, 6))
    sigma = 1 / (1 + math.exp(LEVELS[1]))
    row = fit(0, [noise, noise - pictures])
    assert row[0].tolist() == pytest.approx([1.0, sigma - 1.0], abs=5e-3)
    assert fit.table[1, :2].tolist() == pytest.approx(row[0].tolist())
    assert not fit.table[2:].any()


def test_lost_pictures_do_not_decide(pair):
    pictures, noise = pair
    fine = path_of(pictures, noise, torch.linspace(-6, 6, 60).tolist())
    predictions = noise - pictures
    predictions[0] *= -1  # of a picture that goes elsewhere
    row = StepFit(fine, LEVELS, torch.zeros(6, 6))(0, [noise, predictions])
    sigma = 1 / (1 + math.exp(LEVELS[1]))
    assert row[0].tolist() == pytest.approx([1.0, sigma - 1.0], abs=0.02)


def test_coarse_and_fine_are_weighed_apart():
    generator = torch.Generator().manual_seed(2)
    checkered = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2) * 2.0 - 1
    flat, grid = torch.randn(2, 6, 3, 1, 1, generator=generator)
    pictures, noise = (flat + grid * checkered).clone(), torch.zeros(6, 3, 8, 8)
    fine = path_of(pictures, noise, torch.linspace(-6, 6, 60).tolist())
    predictions = 2 * flat + 0.5 * grid * checkered  # each scale with an error of its own
    alike = StepFit(fine, LEVELS, torch.zeros(6, 6))(0, [noise, predictions])
    fit = StepFit(fine, LEVELS, torch.zeros(6, 12))
    apart = fit(0, [noise, predictions])
    assert torch.allclose(fit.table[1].view(2, 6)[:, :2].float(), apart)
    alpha = 1 - 1 / (1 + math.exp(LEVELS[1]))
    assert apart[:, 1].tolist() == pytest.approx([2 * alpha, alpha / 2 - 2 * alpha], rel=0.01)
    far, near = ((weigh_terms([noise, predictions], row) - alpha * pictures).norm() for row in (alike, apart))
    assert near < 0.05 * far


@pytest.mark.parametrize("scales", [1, 2])
def test_steps_move_samples_alike_and_apart(pair, scales):
    pictures, noise = (
        part[:1].expand(4, -1, -1, -1) for part in pair
    )  # all alike, so that all count the same
    fine = path_of(pictures, noise, torch.linspace(-6, 6, 60).tolist())
    fit = StepFit(fine, LEVELS, torch.zeros(6, 6 * scales))
    terms = [noise, noise - 1.01 * pictures]
    fit(0, terms)
    fit(1, [*terms, 0.999 * terms[1] + 0.01])  # nearly like the one before
    count = 3 * scales
    columns = fit.steps[2].view(scales, 6, -1)[..., :count]
    features = [*terms, 0.999 * terms[1] + 0.01]
    moved = torch.stack(
        [weigh_terms(features, columns[:, :, index].float())[0].flatten() for index in range(count)]
    )
    squares = moved @ moved.T / pictures[0].square().sum()
    lengths = squares.diagonal()
    assert (squares - lengths.diag()).abs().max() < 0.03
    assert (lengths[:2] - 1).abs().max() < 0.01
    assert lengths.min() > 0  # what holds weights keeps some short
    assert lengths.max() < 1.01
    assert not fit.steps[2].view(scales, 6, -1)[:, 3:].any()


def settings() -> l2c.LearnSettings:
    return l2c.LearnSettings(iterations=1, batch_size=2, num_examples=8, reference_steps=20, trials=2)


def test_a_fitted_solver_is_closer_than_a_known_one():
    host = ModelHost.of(tiny_dit(), "ddim", 20)
    trainer = Trainer("schedule and solver", host, settings())
    own = ClosedLoop(trainer, host, solve(trainer, host, settings(), fit_solver=True), settings(), "")
    loop = own.on(host.solver_starts(5)[0])
    student = loop.student(torch.ones(5, len(host.table), dtype=torch.bool), solver=True)
    examples = loop.training.rows(slice(3, 6))  # to the first three of the six it is fitted
    before = loop.error(student, examples)
    fitted = loop.trial_error(student, unseen=True)
    assert fitted < before
    assert loop.error(student, examples) == pytest.approx(fitted, rel=1e-3)
    assert loop.trial_error(student) < fitted  # by what it is fitted to


def host_of_embeddings(count: int):
    """A pipeline that is called with embedded prompts."""
    conditions = [{name: CALL[name] * (1 + 0.3 * index) for name in TEXTS} for index in range(count)]
    call = {name: value for name, value in CALL.items() if name not in (*TEXTS, "generator", "output_type")}
    return l2c.host_of(tiny_pipeline("sd3"), conditions=conditions, **call)


def test_pipelines_make_the_same_pictures_together_and_one_by_one():
    host = host_of_embeddings(3)
    examples = host.examples(3, 0, "pictures")
    with torch.no_grad():
        one_by_one = host.sample(examples)
    made, states = host.together(examples)
    assert torch.allclose(made, one_by_one, atol=1e-4)
    assert len(states) == len(host.run.timesteps) + 1
    assert torch.allclose(states[-1], made, atol=1e-4)


def host_that_fails_with(error: Exception):
    """A pipeline that raises an error where it is called for several pictures."""
    host = host_of_embeddings(2)

    class Failing(type(host.target)):
        @functools.wraps(type(host.target).__call__)
        def __call__(self, *args, **kwargs):
            if isinstance(kwargs.get("generator"), list):
                raise error
            return super().__call__(*args, **kwargs)

    host.target.__class__ = Failing
    return host


def test_a_pipeline_that_draws_one_picture_at_a_time_learns_without(caplog):
    host = host_that_fails_with(ValueError("one generator, please"))
    with caplog.at_level("INFO"), host.prepared():
        family = learn_with_solver(host, [4.0], 1, settings(), None, "", None)
    assert next(iter(family)).contract.run.weights is not None
    assert "their steps cannot be fitted: Failing does not draw several pictures in one call" in caplog.text
    assert "(one generator, please)" in caplog.text


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ConfigError("something else"), ConfigError, "^something else$"),
        (NumericsError("something else"), NumericsError, "^something else$"),
        (
            torch.OutOfMemoryError("out of memory"),
            ConfigError,
            "the 6 pictures .* take more memory than cpu has; take fewer fit_examples",
        ),
    ],
)
def test_what_else_goes_wrong_while_paths_are_made_is_told(error, kind, said):
    host = host_that_fails_with(error)
    trainer = Trainer("schedule and solver", host, settings())
    with host.prepared(), pytest.raises(kind, match=said):
        solve(trainer, host, settings(), fit_solver=True)


def test_conditions_of_several_pictures_for_one_call():
    rows = torch.arange(4.0).view(2, 2)
    pair = [{"prompt": "a", "rows": rows[:1], "flag": True}, {"prompt": "b", "rows": rows[1:], "flag": True}]
    made = joined(pair, {})
    assert made["prompt"] == ["a", "b"]
    assert torch.equal(made["rows"], rows)
    assert made["flag"] is True
    with pytest.raises(ConfigError, match="flag of their own"):
        joined([pair[0], {**pair[1], "flag": False}], {})
    with pytest.raises(ConfigError, match="rows of their own"):
        joined([pair[0], {**pair[1], "rows": rows[:, :1]}], {})
    with pytest.raises(ConfigError, match="more of their own"):
        joined([pair[0], {**pair[1], "more": "x"}], {})
