import copy
from dataclasses import replace

import pytest
import torch

import l2c
from l2c import LearnSettings, repair
from l2c.errors import ConfigError, ContractError, NumericsError
from l2c.testing import tiny_diffusers_dit, tiny_dit, tiny_uvit

SETTINGS = LearnSettings(iterations=3, batch_size=2, num_examples=8, reference_steps=12, seed=1)
RUN = {"solver": "dpmsolver++", "steps": 8}


def interval(model, every=2, predictor="taylor-2"):
    return l2c.methods.interval(model, every=every, predictor=predictor, **RUN)


@pytest.mark.slow
def test_learning_lowers_the_error_on_held_out_pictures(dit):
    """On the trained model; a random one has no smooth trajectory to be predicted."""
    schedule = l2c.methods.interval(dit, solver="dpmsolver++", steps=6, every=2, predictor="taylor")
    settings = LearnSettings(iterations=8, batch_size=1, num_examples=4, history=2, reference_steps=12)
    provenance = repair(dit, schedule, settings=replace(settings, learning_rate=1e-2)).provenance
    assert provenance["held_out_error"] < 0.9 * provenance["held_out_error_before"]


def test_no_learning_is_the_taylor_polynomial():
    """A vanishing learning rate leaves the coefficients where they started."""
    model = tiny_dit()
    schedule = repair(model, interval(model), settings=replace(SETTINGS, iterations=1, learning_rate=1e-12))
    learned = l2c.sample(model, [1, 2], schedule=schedule, **RUN)
    taylor = l2c.sample(model, [1, 2], schedule=interval(model), **RUN)
    torch.testing.assert_close(learned, taylor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rate", "warnings"), [(10.0, 1), (1e-12, 0)])
def test_learning_that_makes_pictures_worse_says_so(dit, caplog, rate, warnings):
    schedule = l2c.methods.interval(dit, solver="dpmsolver++", steps=4, every=2)
    settings = replace(
        SETTINGS, iterations=1, batch_size=1, num_examples=4, learning_rate=rate, validate_every=0
    )
    provenance = repair(dit, schedule, settings=settings).provenance
    assert (provenance["held_out_error"] > 1.01 * provenance["held_out_error_before"]) == bool(warnings)
    said = [record.message for record in caplog.records if "lower learning rate" in record.message]
    assert len(said) == warnings


def test_what_is_saved_samples_what_was_learned(tmp_path):
    model = tiny_dit()
    schedule = repair(model, interval(model), settings=SETTINGS)
    schedule.save(tmp_path / "s.safetensors")
    loaded = l2c.CacheSchedule.load(tmp_path / "s.safetensors")
    assert torch.equal(
        l2c.sample(model, [1], schedule=loaded, **RUN), l2c.sample(model, [1], schedule=schedule, **RUN)
    )
    assert loaded.predictor.name == "linear-3"
    assert torch.equal(loaded.compute, interval(model).compute)


def test_recomputing_layers_changes_memory_and_not_the_result():
    model = tiny_dit()
    kept, recomputed = (
        repair(model, interval(model), settings=replace(SETTINGS, recompute=flag)).predictor.coefficients
        for flag in (False, True)
    )
    torch.testing.assert_close(recomputed, kept)


def test_learning_leaves_the_model_as_it_was_and_is_reproducible():
    model = tiny_dit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (repair(model, interval(model), settings=SETTINGS) for _ in range(2))
    assert torch.equal(first.predictor.coefficients, second.predictor.coefficients)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ctrl_c_keeps_the_coefficients_so_far():
    def stop(progress):
        if progress.stage == "learning" and progress.iteration == 2:
            raise KeyboardInterrupt

    model = tiny_dit()
    provenance = repair(model, interval(model), settings=SETTINGS, on_progress=stop).provenance
    assert (provenance["interrupted"], provenance["iterations"]) == (True, 2)


def test_what_cannot_be_learned_is_one_sentence():
    model = tiny_dit()
    with pytest.raises(ConfigError, match="computes everything"):
        repair(model, interval(model, every=1), settings=SETTINGS)
    with pytest.raises(ContractError, match="the model is a uvit"):
        repair(tiny_uvit(), interval(model), settings=SETTINGS)
    with pytest.raises(ConfigError, match="at least one batch of 4"):
        LearnSettings(num_examples=4)
    model.blocks[0].attn.proj.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="solutions are zeros, or not finite; check the weights"):
        repair(model, interval(model), settings=SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("per_computed", [1, 2])
def test_a_solver_that_a_schedule_brings_is_repaired_with_it(dit, per_computed):
    """On the trained model; a random one has no smooth trajectory to be followed."""
    settings = LearnSettings(
        iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=1, level_trials=1
    )
    run = {"evaluations": 2.5, "per_computed": per_computed, "guidance": 1.0}
    schedule = l2c.learn(dit, solver="auto", settings=replace(settings, branches=False), **run)
    assert bool(schedule.compute.all()) == (per_computed == 1)
    changed = copy.deepcopy(dit)
    with torch.no_grad():
        for index, weight in enumerate(changed.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
            weight += 0.1 * weight.std(unbiased=False) * noise
    repaired = repair(changed, schedule, settings=settings)
    provenance = repaired.provenance
    assert provenance["held_out_error"] < 0.8 * provenance["held_out_error_before"]
    assert torch.equal(repaired.compute, schedule.compute)
    assert repaired.contract.run.scales == schedule.contract.run.scales
    assert l2c.check(changed, repaired).error < 0.8 * l2c.check(changed, schedule).error


def test_a_schedule_made_on_one_implementation_is_learned_on_the_other():
    ours, theirs = tiny_dit(), tiny_diffusers_dit()
    first, second = (repair(model, interval(ours), settings=SETTINGS) for model in (ours, theirs))
    torch.testing.assert_close(
        second.predictor.coefficients, first.predictor.coefficients, atol=1e-3, rtol=1e-3
    )
    l2c.sample(theirs, [1], schedule=first, **RUN)
