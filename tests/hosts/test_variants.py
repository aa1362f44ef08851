"""Pipelines with more than a transformer: ControlNets, IP adapters, and a picture that is edited."""

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


@pytest.mark.parametrize("name", ["sd3-control", "flux-adapter"])
def test_what_controls_matters_with_a_cache_too(name):
    pipe, weaker = tiny_pipeline(name), {}
    if name == "flux-adapter":
        weaker["ip_adapter_image_embeds"] = [torch.zeros(1, 1, 16)]
    else:
        weaker["controlnet_conditioning_scale"] = 0.0
    with l2c.enable_cache(pipe, l2c.methods.interval(pipe, every=3, **call_of(name))):
        assert not torch.equal(tiny_run(pipe, name), tiny_run(pipe, name, **weaker))


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
