"""Whole pipelines, tiny and random: enable, sample, disable, and the model is what it was."""

import gc
import weakref

import pytest
import torch
from torch import nn

import l2c
from l2c.errors import CacheStateError, ConfigError, ContractError
from l2c.hosts.pipeline.components import transformers_of
from l2c.hosts.pipeline.dry_run import dry_run
from l2c.testing import TINY_PIPELINES, count_calls, tiny_call, tiny_pipeline
from l2c.testing import tiny_interval as interval
from l2c.testing import tiny_mixed as mixed
from l2c.testing import tiny_run as run

STEPS = 6


@pytest.fixture(params=TINY_PIPELINES, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(name):
    return tiny_pipeline(name)


def methods(pipe):
    """Everything that covers a method of the pipeline, its scheduler, or a module of its models."""
    owners = [pipe, pipe.scheduler]
    owners += [m for c in pipe.components.values() if isinstance(c, nn.Module) for m in c.modules()]
    return [{key: value for key, value in vars(owner).items() if callable(value)} for owner in owners]


def test_computing_everything_is_bit_equal_and_disabling_restores(pipe, name):
    bare, before = run(pipe, name), methods(pipe)
    cache = l2c.enable_cache(pipe, interval(pipe, name, every=1))
    assert torch.equal(run(pipe, name), bare)
    l2c.disable_cache(pipe)
    assert methods(pipe) == before
    assert "_l2c_cache" not in vars(pipe)
    assert torch.equal(run(pipe, name), bare)
    cache.restore()  # harmless
    with pytest.raises(CacheStateError, match="no cache is enabled on this"):
        l2c.disable_cache(pipe)


def test_reuse_is_counted_and_repeats_and_leaves_no_trace(pipe, name):
    bare, schedule = run(pipe, name), mixed(pipe, name)
    models = transformers_of(pipe)
    with count_calls(models["transformer"]) as calls, l2c.enable_cache(pipe, schedule):
        first = run(pipe, name)
        seen = l2c.summary(pipe)
    assert not torch.equal(first, bare)
    assert seen.finished
    assert seen.evaluations == STEPS
    assert sum(calls.values()) == seen.models["transformer"].computed
    assert sum(model.evaluations for model in seen.models.values()) == STEPS
    assert seen.models["transformer"].fraction < 1
    assert "layers computed" in str(seen)
    with l2c.enable_cache(pipe, schedule):
        assert torch.equal(run(pipe, name), first)
        assert torch.equal(run(pipe, name), first)
    assert torch.equal(run(pipe, name), bare)


def test_computed_share_is_what_the_schedule_announces(pipe, name):
    schedule = interval(pipe, name)
    with l2c.enable_cache(pipe, schedule) as cache:
        run(pipe, name)
    if name != "wan2.2":  # its second transformer begins later
        assert cache.summary().models["transformer"].fraction == pytest.approx(schedule.cost.fraction)
        assert cache.summary().models["transformer"].unplanned == 0


def test_a_schedule_survives_its_file(pipe, name, tmp_path):
    schedule = interval(pipe, name, predictor="taylor")
    schedule.save(tmp_path / "schedule.safetensors")
    loaded = l2c.CacheSchedule.load(tmp_path / "schedule.safetensors")
    with l2c.enable_cache(pipe, schedule):
        expected = run(pipe, name)
    with l2c.enable_cache(pipe, loaded):
        assert torch.equal(run(pipe, name), expected)


def test_several_pictures_are_what_they_are_alone(pipe, name):
    if name not in ("pixart", "sd3"):
        pytest.skip("one pipeline with and one without text encoder will do")
    with l2c.enable_cache(pipe, mixed(pipe, name)):
        together = run(pipe, name, images=2)
        alone = run(pipe, name)
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)


def test_dry_run_uses_no_random_numbers_and_changes_nothing(pipe, name):
    generator, before = torch.Generator().manual_seed(3), methods(pipe)
    state, everywhere = generator.get_state(), torch.get_rng_state()
    found = dry_run(pipe, **{**tiny_call(name, steps=STEPS), "generator": generator})
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), everywhere)
    assert methods(pipe) == before
    assert sorted(i for seen in found.evaluations.values() for i in seen) == list(range(STEPS))
    assert all(table.sized for table in found.tables.values())


def test_guidance_in_two_calls_is_two_branches(flux):
    with l2c.enable_cache(flux, interval(flux, "flux")) as cache:
        run(flux, "flux")
    assert cache.summary().models["transformer"].calls == {"cond": STEPS, "uncond": STEPS}


def test_two_transformers_share_a_schedule_and_nothing_else(wan22):
    schedule = interval(wan22, "wan2.2", every=STEPS)
    with l2c.enable_cache(wan22, schedule) as cache:
        run(wan22, "wan2.2")
    models = cache.summary().models
    switch = models["transformer"].evaluations
    assert 0 < switch < STEPS
    assert models["transformer"].computed == 2 * len(schedule.layers)  # cond and uncond
    assert models["transformer_2"].reused == 0  # nothing of the other's was there to take
    assert models["transformer_2"].unplanned == 2 * (STEPS - switch) * len(schedule.layers)


def test_two_transformers_take_schedules_of_their_own(wan22):
    everything, some = interval(wan22, "wan2.2", every=1), interval(wan22, "wan2.2")
    with l2c.enable_cache(wan22, {"transformer": everything, "transformer_2": some}) as cache:
        run(wan22, "wan2.2")
    models = cache.summary().models
    assert models["transformer"].reused == 0
    assert models["transformer_2"].reused > 0
    with l2c.enable_cache(wan22, {"transformer_2": some}) as cache:
        run(wan22, "wan2.2")
    assert list(cache.summary().models) == ["transformer_2"]
    with pytest.raises(
        ConfigError,
        match="unknown transformer of the pipeline 'transformer_3'; .*one of transformer, transformer_2",
    ):
        l2c.enable_cache(wan22, {"transformer_3": some})


def test_a_transformer_in_a_loop_of_ones_own_follows_its_scheduler(pixart):
    schedule = interval(pixart, "pixart")
    with l2c.enable_cache(pixart, schedule):
        expected = run(pixart, "pixart")
    with l2c.enable_cache(pixart.transformer, schedule, scheduler=pixart.scheduler) as cache:
        assert torch.equal(run(pixart, "pixart"), expected)
        assert cache.summary().finished
        assert l2c.summary(pixart.transformer).models["transformer"].reused > 0
        l2c.disable_cache(pixart.transformer)


def test_enabling_refuses_what_it_cannot_use(pixart):
    schedule = interval(pixart, "pixart")
    with pytest.raises(ConfigError, match="has no component called transformer"):
        l2c.enable_cache(object.__new__(type("Pipe", (), {})), schedule)
    bare = type("Pipe", (), {})()
    bare.transformer = pixart.transformer
    with pytest.raises(ConfigError, match="has no diffusers scheduler"):
        l2c.enable_cache(bare, schedule)
    with pytest.raises(ConfigError, match="a model takes one schedule"):
        l2c.enable_cache(pixart.transformer, {"transformer": schedule})
    with pytest.raises(CacheStateError, match="no cache is enabled"):
        l2c.summary(pixart)


def test_a_refusal_in_the_middle_of_enabling_leaves_the_pipeline_as_it_was(wan22):
    before, schedule = methods(wan22), interval(wan22, "wan2.2")
    other = interval(tiny_pipeline("flux"), "flux")
    with pytest.raises(ContractError, match="made for a flux"):
        l2c.enable_cache(wan22, {"transformer": schedule, "transformer_2": other})
    assert methods(wan22) == before
    with l2c.enable_cache(wan22, schedule):
        run(wan22, "wan2.2")


def test_a_pipeline_with_a_cache_can_be_forgotten():
    pipe = tiny_pipeline("pixart")
    l2c.enable_cache(pipe, interval(pipe, "pixart"))
    run(pipe, "pixart")
    gone = weakref.ref(pipe), weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
