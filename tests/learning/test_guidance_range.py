"""A schedule for a range of guidance scales: learned on pictures with scales of it, silent within it."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch

import l2c
from l2c.cli.options import parse_guidance
from l2c.errors import ConfigError, ContractError, ScheduleError
from l2c.hosts.base import SolverTable
from l2c.hosts.targets import host_for
from l2c.learning.least_squares import Paths, StepFit
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler
from l2c.schedule.contract import guidance_powers
from l2c.testing import tiny_dit, tiny_pipeline

QUICK = l2c.LearnSettings(
    iterations=1, batch_size=2, num_examples=8, reference_steps=8, trials=8, trial_examples=2
)


@pytest.fixture(scope="module")
def learned():
    model = tiny_dit()
    return model, l2c.learn(model, solver="dpmsolver++", steps=6, budget=0.6, settings=QUICK, guidance=(1, 5))


def test_examples_draw_scales_from_the_range_and_run_with_them():
    model = tiny_dit()
    host = l2c.host_of(model, solver="dpmsolver++", steps=4, guidance=(1, 5))
    examples = host.examples(64, 0, "pictures")
    assert 1 <= examples.scales.min() < 1.5
    assert 4.5 < examples.scales.max() <= 5
    assert torch.equal(examples.scales, host.examples(64, 0, "pictures").scales)
    few = examples.rows([3, 9])
    assert few.describe(0).endswith(f"guidance {float(examples.scales[3]):.3g}")
    with torch.no_grad():
        made = host.sample(few)
        for row in range(2):
            guidance = Guidance(float(few.scales[row]))
            sampler = Sampler(Denoiser.of(model), "dpmsolver++", 4, guidance=guidance)
            alone = sampler(few.noise[row : row + 1], few.labels[row : row + 1])
            torch.testing.assert_close(
                made[row : row + 1], alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max())
            )
    plain = l2c.host_of(model, solver="dpmsolver++", steps=4, guidance=3.0).examples(64, 0, "pictures")
    assert torch.equal(plain.noise, examples.noise)


def test_the_contract_has_the_range_and_files_keep_it(learned, tmp_path):
    _, schedule = learned
    run = schedule.contract.run
    assert (run.guidance, run.guidance_range) == (3.0, (1.0, 5.0))
    assert list(schedule.provenance["held_out_error_by_guidance"]) == ["1", "3", "5", "7.5"]
    schedule.save(tmp_path / "schedule.safetensors")
    again = l2c.CacheSchedule.load(tmp_path / "schedule.safetensors")
    assert again.contract.run == run
    assert again.version == 2
    assert "guidance_range" in again.summary()


def test_files_of_one_scale_are_as_before():
    schedule = l2c.methods.interval(tiny_dit(), every=2, steps=4)
    assert "guidance_range" not in schedule.pack()[1]["contract"]["run"]
    assert schedule.version == 1


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_within_the_range_it_is_silent_and_outside_it_tells_the_errors(learned, engine):
    model, schedule = learned
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for scale in (1.0, 2.2, 5.0, None):
            l2c.sample(model, [1], guidance=scale, schedule=schedule, engine=engine)
    with pytest.warns(
        UserWarning, match="guidance from 1 to 5 and the run uses 8; .* measured were .* at 7.5"
    ):
        l2c.sample(model, [1], guidance=8.0, schedule=schedule, engine=engine)


def test_a_solver_is_learned_for_a_range_and_repair_keeps_it(learned):
    model, schedule = learned
    own = l2c.learn(model, solver="auto", evaluations=3, settings=QUICK, guidance=(1.5, 4))
    assert own.contract.run.guidance_range == (1.5, 4.0)
    assert own.version == 4
    repaired = l2c.repair(model, schedule, settings=QUICK)
    assert repaired.contract.run.guidance_range == (1.0, 5.0)
    assert repaired.provenance["held_out_error_before"] == pytest.approx(
        schedule.provenance["held_out_error"], abs=2e-5
    )


@pytest.fixture(scope="module")
def solver():
    """A solver with weights of a polynomial in the scale, whose coefficients are far from zero."""
    model = tiny_dit()
    settings = replace(QUICK, scales=2, branches=False)
    own = l2c.learn(model, solver="auto", evaluations=3, per_computed=1, settings=settings, guidance=(2, 4))
    generator, run = torch.Generator().manual_seed(0), own.contract.run
    table = torch.tensor(run.weights)
    table += 0.05 * torch.randn(table.shape, generator=generator) * (table != 0)
    contract = replace(own.contract, run=replace(run, weights=tuple(map(tuple, table.tolist()))))
    return model, replace(own, contract=contract)


def test_weights_of_a_solver_follow_the_scale(solver, tmp_path):
    model, own = solver
    run = own.contract.run
    middle, low, high = (run.at_guidance(scale) for scale in (None, 2.0, 4.0))
    size = 2 * (len(run.timesteps) + 1)
    parts = torch.tensor(run.weights).split(size, dim=1)
    assert len(parts) == 3
    assert torch.equal(torch.tensor(middle.weights), parts[0])
    torch.testing.assert_close(torch.tensor(high.weights), sum(parts))
    torch.testing.assert_close(torch.tensor(low.weights), parts[0] - parts[1] + parts[2])
    assert run.at_guidance(9.0).weights == high.weights
    own.save(tmp_path / "range.safetensors")
    again = l2c.CacheSchedule.load(tmp_path / "range.safetensors")
    assert again.contract.run == run
    assert again.to_json()["run"]["guidance_degree"] == 2
    for scale in (2.0, 3.3):
        made = l2c.sample(model, [1], schedule=again, guidance=scale)
        fixed = replace(own, contract=replace(own.contract, run=run.at_guidance(scale)))
        assert torch.equal(made, l2c.sample(model, [1], schedule=fixed, guidance=scale))
    at_two = replace(run.at_guidance(2.0), guidance=2.0)
    own.contract.check_run(at_two)
    with pytest.raises(ContractError, match="another learned solver"):
        own.contract.check_run(replace(at_two, guidance=3.3))


def test_each_picture_is_learned_on_with_the_solver_of_its_scale(solver):
    model, own = solver
    run = own.contract.run
    host = host_for(model, own)
    examples = host.examples(5, 0, "pictures")
    assert host.scales == (2, 4)
    table = SolverTable(torch.tensor(run.log_snrs), torch.tensor(run.weights), degree=2)
    with torch.no_grad():
        made = host.sample(examples, solver=table)
        near = {"rtol": 1e-3, "atol": 1e-4 * float(made.abs().max())}
        torch.testing.assert_close(host.sample(examples), made, **near)
        for row, scale in enumerate(examples.scales.tolist()):
            sampler = Sampler.of_run(Denoiser.of(model), run, Guidance(scale))
            alone = sampler(examples.noise[row : row + 1], examples.labels[row : row + 1])
            torch.testing.assert_close(
                made[row : row + 1], alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max())
            )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance_range": None}, "one of them is missing"),
        ({"weights": None}, "one of them is missing"),
        ({"guidance_range": (4.0, 2.0)}, "does not rise"),
        ({"guidance_range": (3.0, 3.0)}, "does not rise"),
        ({"guidance_degree": 1, "weights": ((1.0,),)}, "not those of 3 evaluations"),
        ({"guidance_degree": 9}, "guidance_degree must be at most 3"),
    ],
)
def test_a_file_whose_range_does_not_fit_is_refused(solver, tmp_path, changes, said):
    _, own = solver
    wrong = replace(own, contract=replace(own.contract, run=replace(own.contract.run, **changes)))
    wrong.save(tmp_path / "wrong.safetensors")
    with pytest.raises(ScheduleError, match=said):
        l2c.CacheSchedule.load(tmp_path / "wrong.safetensors")


def test_a_host_of_the_schedule_has_the_weights_for_the_range(solver):
    model, own = solver
    assert host_for(model, own).run == own.contract.run
    fixed = l2c.host_of(model, solver="dpmsolver++", steps=3, guidance=3.0).for_schedule(own)
    assert (fixed.run.guidance_degree, fixed.run.guidance_range) == (0, None)
    own.contract.check_run(fixed.run)


def test_a_fit_finds_weights_that_follow_the_scale():
    generator = torch.Generator().manual_seed(0)
    pictures, noise = torch.randn(2, 12, 3, 8, 8, generator=generator)
    powers = guidance_powers(torch.linspace(1, 5, 12), (1, 5), 2)
    levels = torch.linspace(-6, 6, 60).tolist()
    alphas = [1 / (1 + math.exp(-level)) for level in levels] + [1.0]
    states = torch.stack([alpha * pictures + (1 - alpha) * noise for alpha in alphas], dim=1)
    wrong = pictures / (1 + 0.5 * powers[:, 1])[:, None, None, None]  # by as much as the scale says
    fit = StepFit(Paths(tuple(levels), states), (-4.0, 0.0, 3.0), torch.zeros(4, 24), degree=2)
    found = fit(0, [noise, wrong], powers).view(3, 2, 2)
    assert (
        fit.table[1].view(3, 2, 4)[..., :2].flatten(0, 1).tolist() == fit.table[1].view(6, 4)[:, :2].tolist()
    )
    assert found[0, 0].tolist() == pytest.approx([0.5, 0.5], abs=5e-3)
    assert found[1, 0].tolist() == pytest.approx([0.0, 0.25], abs=5e-3)
    assert found[2, 0].tolist() == pytest.approx([0.0, 0.0], abs=5e-3)
    assert found[:, 1].abs().max() < 5e-3  # coarse and fine alike


@pytest.mark.parametrize("wrong", [(5, 1), (0.5, 2), (1, 2, 3)])
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="guidance"):
        l2c.host_of(tiny_dit(), guidance=wrong)


def test_where_no_range_is_learned_a_sentence_says_so():
    with pytest.raises(ConfigError, match="a router is learned for one guidance scale"):
        l2c.learn(tiny_dit(), pattern="alternate", guidance=(1, 5), steps=4)
    with pytest.raises(ConfigError, match="a range of guidance is learned for models so far"):
        l2c.host_of(tiny_pipeline("sd3"), guidance_scale=(1, 5))


def test_the_command_line_reads_a_range():
    assert parse_guidance("1-5") == (1.0, 5.0)
    with pytest.raises(
        ConfigError, match="--guidance takes a scale such as 1.5 or a range such as 1-5, got 'x'"
    ):
        parse_guidance("x")
