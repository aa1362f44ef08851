"""The scheduler as the clock: any scheduler, any timesteps, runs that begin late, and runs that end early."""

import copy
import inspect
import itertools
from dataclasses import replace

import diffusers
import pytest
import torch

import l2c
from l2c.cache.patch import covered
from l2c.errors import CacheStateError, ConfigError, ContractError
from l2c.hosts.pipeline.clock import SchedulerClock
from l2c.hosts.pipeline.runs import describe_run
from l2c.testing import tiny_call, tiny_pipeline
from l2c.testing import tiny_interval as interval
from l2c.testing import tiny_run as run

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept")  # diffusers with numpy 2

NOISE_SCHEDULERS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SASolverScheduler",
]
FLOW_SCHEDULERS = [
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
]
TWICE = {"HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
"""Those that evaluate a noise level twice."""


def pipeline_with(scheduler, **config):
    name = "sd3" if scheduler in FLOW_SCHEDULERS else "pixart"
    return name, tiny_pipeline(name, getattr(diffusers, scheduler)(**config))


@pytest.mark.parametrize("scheduler", NOISE_SCHEDULERS + FLOW_SCHEDULERS)
def test_every_scheduler_tells_its_evaluations(scheduler):
    name, pipe = pipeline_with(scheduler)
    schedule = interval(pipe, name, every=2)
    made = schedule.num_evaluations
    bare = run(pipe, name)
    with l2c.enable_cache(pipe, interval(pipe, name, every=1)):
        assert torch.equal(run(pipe, name), bare)
    for _ in range(2):
        with l2c.enable_cache(pipe, schedule) as cache:
            run(pipe, name)
        seen = cache.summary()
        assert seen.finished
        assert seen.models["transformer"].evaluations == seen.models["transformer"].calls["all"] == made
        assert seen.models["transformer"].computed == int(schedule.compute.sum())
    assert made == (11 if scheduler in TWICE or "KDPM2" in scheduler else len(pipe.scheduler.timesteps))


@pytest.mark.parametrize("scheduler", NOISE_SCHEDULERS + FLOW_SCHEDULERS)
def test_noise_levels_fall(scheduler):
    made = getattr(diffusers, scheduler)()
    made.set_timesteps(6)
    levels = describe_run(made).log_snrs
    assert len(levels) == len(made.timesteps)
    assert all(abs(level) <= 7 for level in levels)
    falls = [b - a for a, b in itertools.pairwise(levels)]
    assert all(fall >= 0 for fall in falls)
    repeats = scheduler in {*TWICE, "PNDMScheduler", "KDPM2AncestralDiscreteScheduler"}
    assert all(fall > 0 for fall in falls) != repeats


def test_noise_levels_that_differ_by_rounding_are_one():
    scheduler = diffusers.KDPM2AncestralDiscreteScheduler()
    scheduler.set_timesteps(6)
    scheduler.timesteps = scheduler.timesteps + 1e-5 * torch.tensor([1.0, -1.0]).repeat(6)[:11]
    levels = describe_run(scheduler).log_snrs
    assert levels[1::2] == levels[2::2]


def test_a_polynomial_through_a_noise_level_seen_twice_is_refused():
    name, pipe = pipeline_with("HeunDiscreteScheduler")
    with pytest.raises(ConfigError, match="HeunDiscreteScheduler evaluates a noise level twice"):
        interval(pipe, name, predictor="taylor")


def test_noise_levels_are_those_of_the_native_solvers():
    from l2c.sampling.solvers import make_solver

    native = make_solver("dpmsolver++", 8).run
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    scheduler.set_timesteps(8)
    ours = describe_run(scheduler)
    assert ours.timesteps == native.timesteps
    assert ours.log_snrs == pytest.approx(native.log_snrs)


@pytest.mark.parametrize("custom", [{"timesteps": [900, 500, 100]}, {"sigmas": [10.0, 2.0, 0.5, 0.0]}])
def test_custom_timesteps_and_sigmas_are_a_run_like_any_other(custom):
    name, pipe = pipeline_with("EulerDiscreteScheduler")
    schedule = interval(pipe, name, **custom)
    assert schedule.num_evaluations == 3
    with l2c.enable_cache(pipe, schedule) as cache:
        run(pipe, name, **custom)
        assert cache.summary().finished
        with pytest.raises(
            ContractError, match="schedule covers 3 evaluations but EulerDiscreteScheduler with 6"
        ):
            run(pipe, name)


def test_another_run_is_refused_with_the_difference_by_name(pixart):
    schedule = interval(pixart, "pixart")
    with (
        l2c.enable_cache(pixart, schedule),
        pytest.raises(ContractError, match="as it was, with 6 steps"),
    ):
        run(pixart, "pixart", steps=5)
    pixart.scheduler = diffusers.UniPCMultistepScheduler()
    with l2c.enable_cache(pixart, schedule), pytest.raises(ContractError, match="but the run uses UniPC"):
        run(pixart, "pixart")
    pixart.scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=3)
    with l2c.enable_cache(pixart, schedule), pytest.raises(ContractError, match="solver_order=3"):
        run(pixart, "pixart")
    pixart.scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing")
    with (
        l2c.enable_cache(pixart, schedule),
        pytest.raises(ContractError, match="evaluation 3 is at timestep 500"),
    ):
        run(pixart, "pixart")
    with l2c.enable_cache(pixart, schedule, any_run=True), pytest.warns(UserWarning, match="at timestep 500"):
        run(pixart, "pixart")


def test_another_guidance_or_shape_is_a_warning(flux):
    learned_for = l2c.host_of(flux, **{**tiny_call("flux"), "generator": None}).contract()
    schedule = replace(interval(flux, "flux"), contract=learned_for)
    with (
        l2c.enable_cache(flux, schedule),
        pytest.warns(UserWarning, match="learned with guidance 3 .* uses 5"),
    ):
        run(flux, "flux", guidance_scale=5.0)
    name, pipe = "sd3", tiny_pipeline("sd3")
    with (
        l2c.enable_cache(pipe, interval(pipe, name)),
        pytest.warns(UserWarning, match="of 4x8x8 .* has 4x8x4"),
    ):
        run(pipe, name, width=8)


def img2img(scheduler=None):
    base = tiny_pipeline("sd3", scheduler)
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**base.components)
    pipe.set_progress_bar_config(disable=True)
    return base, pipe


def test_image_to_image_uses_the_rest_of_a_schedule():
    base, pipe = img2img()
    schedule = interval(base, "sd3", predictor="taylor")
    image = {"image": torch.zeros(1, 3, 16, 16), "strength": 0.5}
    with l2c.enable_cache(pipe, interval(base, "sd3", every=1)):
        everything = run(pipe, "sd3", **image)
    assert torch.equal(run(pipe, "sd3", **image), everything)
    with l2c.enable_cache(pipe, schedule) as cache:
        run(pipe, "sd3", **image)
    seen = cache.summary()
    model = seen.models["transformer"]
    assert seen.finished
    assert model.evaluations == 3
    layers = len(schedule.layers)  # at 3 nothing is there, 4 computes as planned, 5 goes on from both
    assert (model.computed, model.reused, model.unplanned) == (2 * layers, layers, 0)


def test_image_to_image_reuses_as_soon_as_there_is_something():
    base, pipe = img2img()
    schedule = interval(base, "sd3", every=2)
    with l2c.enable_cache(pipe, schedule) as cache:
        run(pipe, "sd3", image=torch.zeros(1, 3, 16, 16), strength=0.5)
    model = cache.summary().models["transformer"]
    layers = len(schedule.layers)
    assert (model.evaluations, model.computed, model.reused) == (3, 2 * layers, layers)
    assert model.unplanned == 0  # what a run that begins in the middle computes at first is planned


def test_a_late_beginning_without_begin_index_is_found_by_the_timestep():
    _, pipe = pipeline_with("DDIMScheduler")
    schedule = interval(pipe, "pixart")
    scheduler, x = pipe.scheduler, torch.randn(1, 4, 8, 8)
    clock = SchedulerClock(scheduler, lambda: None, lambda: None)
    scheduler.set_timesteps(6)
    for i, t in enumerate(scheduler.timesteps[2:]):
        scheduler.scale_model_input(x, t)
        assert clock.evaluation == 2 + i
        x = scheduler.step(x, t, x).prev_sample
    assert clock.finished
    clock.restore()
    assert schedule.num_evaluations == 6


def test_a_late_beginning_that_nothing_tells_is_refused():
    scheduler, x = diffusers.DDIMScheduler(), torch.randn(1, 4, 8, 8)
    clock = SchedulerClock(scheduler, lambda: None, lambda: None)
    scheduler.set_timesteps(6)
    assert clock.evaluation == 0
    with pytest.raises(
        ContractError, match="stepped from evaluation 2 where the cache was at 0; .*set_begin_index"
    ):
        scheduler.step(x, scheduler.timesteps[2], x)
    clock.restore()


def test_a_late_beginning_is_refused_when_the_scheduler_finds_out_itself():
    scheduler, x = diffusers.FlowMatchEulerDiscreteScheduler(), torch.randn(1, 4, 8, 8)
    clock = SchedulerClock(scheduler, lambda: None, lambda: None)
    scheduler.set_timesteps(6)
    assert clock.evaluation == 0
    with pytest.raises(ContractError, match="stepped from evaluation 2 where the cache was at 0"):
        scheduler.step(x, scheduler.timesteps[2], x)
    clock.restore()


def test_an_interrupted_run_leaves_nothing_behind(flux):
    schedule = interval(flux, "flux")
    with l2c.enable_cache(flux, schedule) as cache:
        expected = run(flux, "flux")

        def stop(pipe, step, timestep, values):
            pipe._interrupt = step == 2
            return values

        run(flux, "flux", callback_on_step_end=stop)
        assert not cache.summary().finished
        assert cache.summary().models["transformer"].evaluations == 3
        assert cache.transformers["transformer"].policy.store.nbytes == 0
        assert not cache.clock.running
        assert torch.equal(run(flux, "flux"), expected)


def fail(*_):
    raise KeyboardInterrupt


def test_an_exception_in_the_middle_leaves_nothing_behind(flux):
    bare, schedule = run(flux, "flux"), interval(flux, "flux")
    with l2c.enable_cache(flux, schedule) as cache:
        expected = run(flux, "flux")
        with pytest.raises(KeyboardInterrupt):
            run(flux, "flux", callback_on_step_end=fail)
        assert cache.transformers["transformer"].policy.store.nbytes == 0
        assert not cache.clock.running
        assert torch.equal(run(flux, "flux"), expected)
        handle = flux.transformer.transformer_blocks[1].ff.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            run(flux, "flux")
        handle.remove()
        assert not cache.clock.running
        assert torch.equal(run(flux, "flux"), expected)
    assert torch.equal(run(flux, "flux"), bare)


def test_an_exception_under_an_iterated_bar_ends_the_run_too():
    pipe = tiny_pipeline("dit")
    with l2c.enable_cache(pipe, interval(pipe, "dit")) as cache:
        expected = run(pipe, "dit")
        handle = pipe.vae.decoder.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            run(pipe, "dit")
        handle.remove()
        assert not cache.clock.running
        assert torch.equal(run(pipe, "dit"), expected)


def test_a_call_outside_a_run_is_refused(pixart):
    arguments = {"encoder_hidden_states": torch.zeros(1, 5, 16), "timestep": torch.tensor([5])}
    with l2c.enable_cache(pixart, interval(pixart, "pixart")):
        with pytest.raises(CacheStateError, match="outside a run of its scheduler"):
            pixart.transformer(torch.zeros(1, 4, 8, 8), **arguments)
        run(pixart, "pixart")
        pixart.scheduler = diffusers.DPMSolverMultistepScheduler()
        with pytest.raises(CacheStateError, match="was given another scheduler"):
            run(pixart, "pixart")


def test_the_scheduler_keeps_its_signatures_and_copies_of_it_are_bare():
    scheduler = diffusers.DDIMScheduler()
    expected = inspect.signature(scheduler.step)
    clock = SchedulerClock(scheduler, lambda: None, lambda: None)
    assert inspect.signature(scheduler.step) == expected
    twin = copy.deepcopy(scheduler)
    twin.set_timesteps(3)
    assert not clock.running
    assert covered(twin.step).__self__ is twin
    clock.restore()
    assert not {"step", "set_timesteps", "scale_model_input"} & set(vars(scheduler))
