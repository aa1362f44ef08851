"""Pipelines with more than a transformer: ControlNets, IP adapters, and a picture that is edited."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

import l2c
from l2c.testing import tiny_call, tiny_pipeline, tiny_run
from l2c.testing.variants import VARIANTS, qwen_edit

SETTINGS = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=2)


def call_of(name):
    call = tiny_call(name)
    return {key: value for key, value in call.items() if key not in ("generator", "output_type")}


@pytest.mark.parametrize("name", [*VARIANTS, "cogview4"])
def test_variants_are_learned_and_checked(name):
    pipe, call = tiny_pipeline(name), call_of(name)
    bare = tiny_run(pipe, name)
    schedule = l2c.learn(pipe, budget=0.6, settings=SETTINGS, **call)
    assert schedule.cost.fraction <= 0.6
    assert l2c.check(pipe, schedule, seeds=[5], **call).error < 1
    assert torch.equal(tiny_run(pipe, name), bare)


@pytest.mark.parametrize("name", ["sd3-control", "flux-control"])
def test_a_controlnet_is_called_at_every_evaluation(name):
    pipe = tiny_pipeline(name)
    schedule = l2c.methods.interval(pipe, every=3, **call_of(name))
    calls = []
    pipe.controlnet.register_forward_pre_hook(lambda *_: calls.append(1))
    tiny_run(pipe, name)
    bare = len(calls)
    with l2c.enable_cache(pipe, schedule):
        tiny_run(pipe, name)
    assert len(calls) == 2 * bare


@pytest.mark.parametrize("name", ["sd3-control", "sd3-adapter", "flux-adapter"])
def test_what_controls_matters_with_a_cache_too(name):
    pipe, weaker = tiny_pipeline(name), {}
    if name == "flux-adapter":
        weaker["ip_adapter_image_embeds"] = [torch.zeros(1, 1, 16)]
    elif name == "sd3-adapter":
        weaker["ip_adapter_image_embeds"] = torch.zeros(2, 4, 16)
    else:
        weaker["controlnet_conditioning_scale"] = 0.0
    with l2c.enable_cache(pipe, l2c.methods.interval(pipe, every=3, **call_of(name))):
        assert not torch.equal(tiny_run(pipe, name), tiny_run(pipe, name, **weaker))


def test_the_ip_adapter_of_stable_diffusion_3_from_enable_to_disable():
    pipe, call = tiny_pipeline("sd3-adapter"), call_of("sd3-adapter")
    attention = pipe.transformer.transformer_blocks[0].attn.processor
    assert type(attention).__name__ == "SD3IPAdapterJointAttnProcessor2_0"
    bare, without = tiny_run(pipe, "sd3-adapter"), tiny_run(tiny_pipeline("sd3"), "sd3")
    assert not torch.equal(bare, without)
    with l2c.enable_cache(pipe, l2c.methods.interval(pipe, every=1, **call)):
        assert torch.equal(tiny_run(pipe, "sd3-adapter"), bare)
    with l2c.enable_cache(pipe, l2c.methods.interval(pipe, every=2, **call)) as cache:
        cached = tiny_run(pipe, "sd3-adapter")
        pipe.set_ip_adapter_scale(0.0)
        unled = tiny_run(pipe, "sd3-adapter")
        assert cache.summary().models["transformer"].fraction < 0.8
    assert not torch.equal(cached, bare)
    assert not torch.equal(cached, unled)
    pipe.set_ip_adapter_scale(0.5)
    assert torch.equal(tiny_run(pipe, "sd3-adapter"), bare)


@pytest.mark.parametrize("name", ["sd3-adapter", "flux-adapter"])
def test_learning_with_an_adapter_recomputes_what_it_would_keep(name):
    pipe, call, made = tiny_pipeline(name), call_of(name), []
    for how in (False, "evaluations"):
        settings = replace(SETTINGS, recompute=how)
        made.append(l2c.learn(pipe, budget=0.6, settings=settings, **call))
    assert torch.equal(made[0].compute, made[1].compute)
    kept, again = (schedule.provenance["held_out_error"] for schedule in made)
    assert again == pytest.approx(kept, rel=1e-4)


@pytest.mark.parametrize("name", ["sd3-adapter", "flux-adapter"])
def test_a_solver_is_learned_with_an_adapter(name):
    pipe, call = tiny_pipeline(name), call_of(name)
    schedule = l2c.learn(pipe, solver="auto", evaluations=3, per_computed=1, settings=SETTINGS, **call)
    assert l2c.check(pipe, schedule, seeds=[5], **call).error < 1


@pytest.mark.slow
def test_qwen_image_edit_from_enable_to_disable():
    pipe = qwen_edit(tiny_pipeline("qwen"))
    pipe.set_progress_bar_config(disable=True)
    edited = Image.new("RGB", (64, 64), (200, 60, 40))
    call = {**call_of("qwen"), "image": edited, "num_inference_steps": 4, "height": 64, "width": 64}

    def sampled():
        generator = torch.Generator().manual_seed(0)
        return pipe(**call, generator=generator, output_type="latent").images

    bare, schedule = sampled(), l2c.methods.interval(pipe, every=2, **call)
    assert schedule.layers.sample_shape == (
        1 + 256,
        16,
    )  # tokens of the picture that is made, and of the edited one
    with l2c.enable_cache(pipe, schedule) as cache:
        assert not torch.equal(sampled(), bare)
    assert cache.summary().models["transformer"].fraction == pytest.approx(schedule.cost.fraction)
    assert torch.equal(sampled(), bare)
