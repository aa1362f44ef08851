"""diffusers' modular pipelines: enabled, learned and checked as others are, and left as they were."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image

import l2c
from l2c.errors import CacheStateError, ConfigError
from l2c.hosts.pipeline.decoding import PipelineDecoder
from l2c.testing import tiny_call, tiny_pipeline
from l2c.testing.modular import TINY_MODULAR, tiny_modular, without_blocks

pytest.importorskip("diffusers.modular_pipelines")
SETTINGS = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=2)
PROMPTS = {"prompt": "a photo of a cat", "max_sequence_length": 8}
FLUX = {"height": 16, "width": 16, "num_inference_steps": 6, **PROMPTS}


@pytest.fixture(autouse=True)
def calm():
    """diffusers tells of guiders in its log, and shows bars."""
    from diffusers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(logging.WARNING)


def call_of(pipe, name):
    takes = pipe.blocks.input_names
    left_out = ("generator", "output_type")
    return {key: value for key, value in tiny_call(name).items() if key in takes and key not in left_out}


def sampled(pipe, call, seed=0, output="latents"):
    return pipe(**call, generator=torch.Generator().manual_seed(seed), output=output)


def ordinary(pipe):
    """diffusers' FluxPipeline of the same components."""
    from diffusers import FluxPipeline

    made = FluxPipeline(**{key: part for key, part in pipe.components.items() if key != "image_processor"})
    made.set_progress_bar_config(disable=True)
    return made


def test_modular_flux_from_enable_to_disable_is_the_ordinary_pipeline_to_the_bit():
    pipe = tiny_modular("flux")
    other, blocks, parts = ordinary(pipe), pipe._blocks, dict(pipe.components)
    call = {**FLUX, "output_type": "pt"}

    def noise():
        return torch.Generator().manual_seed(3)

    before = sampled(pipe, call, 3, "images")
    assert torch.equal(before, other(**call, generator=noise()).images)
    for schedule in (
        l2c.methods.interval(pipe, every=2, predictor="taylor", **FLUX),
        l2c.learn(pipe, budget=0.5, settings=SETTINGS, **FLUX),
    ):
        cache = l2c.enable_cache(pipe, schedule)
        with pytest.raises(CacheStateError, match="already enabled"):
            l2c.enable_cache(pipe, schedule)
        cached = sampled(pipe, call, 3, "images")
        assert cache.summary().finished
        assert not torch.equal(cached, before)
        l2c.disable_cache(pipe)
        assert pipe._blocks is blocks
        assert pipe.components == parts
        assert torch.equal(sampled(pipe, call, 3, "images"), before)
        with l2c.enable_cache(other, schedule):
            assert torch.equal(other(**call, generator=noise()).images, cached)


def test_modular_flux_learns_and_checks_what_the_ordinary_pipeline_does():
    pipe = tiny_modular("flux")
    other, blocks = ordinary(pipe), pipe._blocks
    for what in ({"budget": 0.5}, {"solver": "auto", "evaluations": 3}):
        made = [l2c.learn(one, settings=SETTINGS, **what, **FLUX) for one in (pipe, other)]
        assert torch.equal(made[0].compute, made[1].compute)
        assert made[0].provenance["held_out_error"] == pytest.approx(
            made[1].provenance["held_out_error"], abs=2e-5
        )
        drifts = [l2c.check(one, made[0], seeds=[5], **PROMPTS) for one in (pipe, other)]
        assert drifts[0].error == drifts[1].error
    assert pipe._blocks is blocks


def test_modular_flux_from_a_picture_from_enable_to_disable():
    from diffusers import FluxImg2ImgPipeline

    pipe = tiny_modular("flux")
    parts = {key: part for key, part in pipe.components.items() if key != "image_processor"}
    other, blocks = FluxImg2ImgPipeline(**parts), pipe._blocks
    picture = {"image": Image.new("RGB", (16, 16), (200, 60, 40)), "strength": 0.6}
    call = {**FLUX, **picture, "num_inference_steps": 10}
    before = sampled(pipe, call)
    assert not torch.equal(before, sampled(pipe, {**call, "strength": 0.9}))
    everything, half = (l2c.methods.interval(pipe, every=every, **call) for every in (1, 2))
    assert half.num_evaluations == 6  # of 10
    with l2c.enable_cache(pipe, everything):
        assert torch.equal(sampled(pipe, call), before)
    whole = l2c.methods.interval(pipe, every=2, **{**FLUX, "num_inference_steps": 10})
    for schedule in (half, whole):  # one for whole runs goes on where this one begins
        with l2c.enable_cache(pipe, schedule) as cache:
            assert not torch.equal(sampled(pipe, call), before)
        done = cache.summary().models["transformer"]
        assert done.computed + done.reused == 6 * len(half.layers)
        assert (done.computed, done.unplanned) == (half.compute.sum(), 0)
    made = [l2c.learn(one, budget=0.6, settings=SETTINGS, **call) for one in (pipe, other)]
    assert made[0].num_evaluations == 6
    assert torch.equal(made[0].compute, made[1].compute)
    assert made[0].provenance["held_out_error"] == pytest.approx(
        made[1].provenance["held_out_error"], abs=2e-5
    )
    assert l2c.check(pipe, made[0], seeds=[5], **call).error < 1
    with pytest.raises(ConfigError, match="no solver is learned for a run that begins late"):
        l2c.learn(pipe, solver="auto", evaluations=3, settings=SETTINGS, **call)
    assert pipe._blocks is blocks
    assert torch.equal(sampled(pipe, call), before)


def test_a_modular_pipeline_decodes_latents_with_its_own_blocks():
    pipe = tiny_modular("flux")
    latents = l2c.host_of(pipe, **FLUX)._trajectory.sample(PROMPTS, 0)
    picture = PipelineDecoder(pipe, FLUX)(latents, PROMPTS)
    whole = sampled(pipe, {**FLUX, "output_type": "pt"}, output="images")
    assert torch.allclose(picture, whole * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in TINY_MODULAR if name != "flux"])
def test_other_modular_pipelines_are_left_as_they_were(name):
    pipe = tiny_modular(name)
    call = call_of(pipe, name)
    before = sampled(pipe, call)
    everything = l2c.methods.interval(pipe, every=1, **call)
    with l2c.enable_cache(pipe, everything):
        assert torch.equal(sampled(pipe, call), before)
    with l2c.enable_cache(pipe, l2c.methods.interval(pipe, every=2, **call)) as cache:
        assert not torch.equal(sampled(pipe, call), before)
        assert cache.summary().finished
    assert torch.equal(sampled(pipe, call), before)
    learned = l2c.learn(pipe, budget=0.6, settings=SETTINGS, **call)
    assert learned.contract.run.guidance == pipe.guider.guidance_scale
    assert l2c.check(pipe, learned, seeds=[5], **call).error < 1
    assert torch.equal(sampled(pipe, call), before)


def test_guiders_are_the_ordinary_pipeline_s_guidance():
    pipe, other, call = tiny_modular("sd3"), tiny_pipeline("sd3"), tiny_call("sd3")
    del call["generator"]
    pipe.update_components(guider=pipe.guider.new(guidance_scale=3.0))
    given = call_of(pipe, "sd3")
    schedule = l2c.methods.interval(pipe, every=2, **given)
    with l2c.enable_cache(pipe, schedule), l2c.enable_cache(other, schedule):
        ours = sampled(pipe, {**given, "sigmas": None})
        theirs = other(**call, generator=torch.Generator().manual_seed(0)).images
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_another_guidance_scale_of_a_guider_is_a_warning():
    pipe = tiny_modular("sd3")
    call = call_of(pipe, "sd3")
    learned = l2c.learn(pipe, budget=0.6, settings=SETTINGS, **call)
    pipe.update_components(guider=pipe.guider.new(guidance_scale=2.0))
    with (
        l2c.enable_cache(pipe, learned),
        pytest.warns(UserWarning, match=r"learned with guidance .* uses 2;"),
    ):
        sampled(pipe, call)


def test_a_guider_that_leaves_out_layers_is_refused():
    from diffusers.guiders import SkipLayerGuidance

    pipe = tiny_modular("sd3")
    call = call_of(pipe, "sd3")
    schedule = l2c.methods.interval(pipe, every=2, **call)
    pipe.update_components(guider=SkipLayerGuidance(skip_layer_guidance_layers=[0]))
    with pytest.raises(ConfigError, match="SkipLayerGuidance, leaves out layers of the transformer"):
        l2c.enable_cache(pipe, schedule)


def test_a_modular_pipeline_without_its_components_says_how_to_load_them():
    from diffusers.modular_pipelines import FluxModularPipeline, StableDiffusionXLModularPipeline

    with pytest.raises(ConfigError, match=r"has no transformer yet; call pipe.load_components\(\)"):
        l2c.methods.interval(FluxModularPipeline(), every=2, **FLUX)
    with pytest.raises(ConfigError, match="has no component called transformer"):
        l2c.methods.interval(StableDiffusionXLModularPipeline(), every=2, prompt="a cat")


def test_what_a_modular_pipeline_does_not_take_is_refused_by_name():
    pipe = tiny_modular("flux")
    with pytest.raises(ConfigError, match="no argument 'steps'; did you mean num_inference_steps"):
        l2c.methods.interval(pipe, every=2, steps=6, prompt="a photo of a cat")
    encoding = without_blocks(pipe, "denoise", "decode")
    encoding.transformer, encoding.scheduler = pipe.transformer, pipe.scheduler
    with pytest.raises(ConfigError, match="no block that is a loop"):
        l2c.methods.interval(encoding, every=2, **PROMPTS)


def test_a_modular_run_that_fails_leaves_nothing_behind():
    pipe = tiny_modular("flux")
    schedule = l2c.methods.interval(pipe, every=2, **FLUX)
    with l2c.enable_cache(pipe, schedule) as cache:
        wanted = sampled(pipe, FLUX)

        def fail(*_):
            if cache.clock.running and cache.clock.evaluation == 3:
                raise RuntimeError("stopped")

        hook = pipe.transformer.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="stopped"):
            sampled(pipe, FLUX)
        hook.remove()
        assert not cache.clock.running
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(sampled(pipe, FLUX), wanted)
