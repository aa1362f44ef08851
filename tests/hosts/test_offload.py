"""While a pipeline is learned through, only its transformers have their weights on the device."""

from dataclasses import replace

import pytest
import torch
from diffusers.hooks import apply_group_offloading

import l2c
from l2c import LearnSettings
from l2c.errors import ConfigError
from l2c.hosts.pipeline.offload import encoders_offloaded, execution_device
from l2c.hosts.pipeline.trajectory import PipelineTrajectory
from l2c.testing import tiny_call, tiny_interval, tiny_pipeline, tiny_run

FEW = LearnSettings(iterations=2, batch_size=1, num_examples=4, reference_steps=None)
PROMPTS = ["a photo of a cat", "a green house"]


def call_of(name):
    return {k: v for k, v in tiny_call(name).items() if k not in ("generator", "prompt", "output_type")}


def weights_of(module):
    return sum(weight.numel() for weight in module.parameters())


def test_encoders_and_decoder_are_there_only_while_they_work(pixart):
    bare = tiny_run(pixart, "pixart")
    before = [weight.data_ptr() for weight in pixart.text_encoder.parameters()]
    sizes = {name: weights_of(getattr(pixart, name)) for name in ("text_encoder", "vae", "transformer")}
    seen = {}

    def note(module, _arguments, _output):
        seen[type(module).__name__] = [weights_of(pixart.text_encoder), weights_of(pixart.vae)]

    hooks = [part.register_forward_hook(note) for part in (pixart.text_encoder, pixart.transformer)]
    with encoders_offloaded(pixart):
        assert weights_of(pixart.text_encoder) == weights_of(pixart.vae) == 0
        assert pixart.text_encoder.dtype == torch.float32
        assert execution_device(pixart) == torch.device("cpu")
        latents = PipelineTrajectory(pixart, call_of("pixart")).sample({"prompt": PROMPTS[0]}, seed=0)
        assert weights_of(pixart.text_encoder) == 0
        pixart.vae.decode(latents.detach())
        assert weights_of(pixart.vae) == sizes["vae"]
    for hook in hooks:
        hook.remove()
    assert seen == {"T5EncoderModel": [sizes["text_encoder"], 0], "PixArtTransformer2DModel": [0, 0]}
    assert torch.equal(latents, bare)
    assert [weight.data_ptr() for weight in pixart.text_encoder.parameters()] == before
    assert torch.equal(tiny_run(pixart, "pixart"), bare)
    assert not any(part._forward_pre_hooks for part in pixart.text_encoder.modules())


def test_learning_leaves_the_device_to_the_transformer(pixart):
    held = []
    schedule = tiny_interval(pixart, "pixart")

    def note(progress):
        held.append((progress.stage, weights_of(pixart.text_encoder) + weights_of(pixart.vae)))

    size = weights_of(pixart.text_encoder)
    l2c.repair(pixart, schedule, prompts=PROMPTS, settings=FEW, on_progress=note, **call_of("pixart"))
    assert {stage for stage, _ in held} == {
        "fine-step solutions",
        "fine-step solutions for validation",
        "learning",
    }
    assert {count for _, count in held} == {0}
    assert weights_of(pixart.text_encoder) == size
    assert not pixart.transformer._forward_pre_hooks


def test_learning_with_models_offloaded_by_turns_is_the_same_and_stays_so_afterwards(pixart):
    schedule, call = tiny_interval(pixart, "pixart"), {"settings": FEW, **call_of("pixart")}
    expected = l2c.repair(pixart, schedule, prompts=PROMPTS, **call)
    bare = tiny_run(pixart, "pixart")
    pixart.enable_model_cpu_offload(device="cpu")
    hooked = []
    made = l2c.repair(
        pixart, schedule, prompts=PROMPTS, on_progress=lambda _: hooked.append(len(pixart._all_hooks)), **call
    )
    assert torch.equal(made.predictor.coefficients, expected.predictor.coefficients)
    assert set(hooked) == {0}
    assert len(pixart._all_hooks) == 3
    assert torch.equal(tiny_run(pixart, "pixart"), bare)
    with l2c.enable_cache(pixart, expected) as cache:  # diffusers hooks the models anew after every call
        first, second = tiny_run(pixart, "pixart"), tiny_run(pixart, "pixart")
        assert cache.summary().models["transformer"].reused > 0
    assert torch.equal(first, second)
    assert not torch.equal(first, bare)
    assert torch.equal(tiny_run(pixart, "pixart"), bare)


def test_learning_with_weights_that_come_layer_by_layer_is_the_same(flux):
    from accelerate import cpu_offload

    schedule, call = tiny_interval(flux, "flux"), {"settings": FEW, **call_of("flux")}
    expected = l2c.repair(flux, schedule, **call)
    for part in (flux.transformer, flux.vae):  # as enable_sequential_cpu_offload, which wants an accelerator
        cpu_offload(part, execution_device=torch.device("cpu"))
    assert next(flux.transformer.parameters()).is_meta
    made = l2c.repair(flux, schedule, **call)
    torch.testing.assert_close(made.predictor.coefficients, expected.predictor.coefficients)
    assert next(flux.transformer.parameters()).is_meta
    assert made.contract.fingerprint == expected.contract.fingerprint


def test_group_offloading_is_refused(flux):
    device = torch.device("cpu")
    try:
        apply_group_offloading(
            flux.transformer, device, device, offload_type="block_level", num_blocks_per_group=1
        )
    except (AttributeError, RuntimeError):  # of diffusers, of older torch
        pytest.skip("diffusers before 0.41 offloads groups only where there is an accelerator")
    with pytest.raises(ConfigError, match="the transformer has group offloading"):
        l2c.repair(flux, tiny_interval(flux, "flux"), settings=FEW, **call_of("flux"))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_go_through_a_bf16_pipeline(recompute):
    exact, pipe, call = tiny_pipeline("sd3"), tiny_pipeline("sd3").to(torch.bfloat16), call_of("sd3")
    call = {key: value.bfloat16() if torch.is_tensor(value) else value for key, value in call.items()}
    schedule = tiny_interval(exact, "sd3", every=3)
    settings = replace(FEW, iterations=10, learning_rate=2e-2, recompute=recompute)
    losses = []
    learned = l2c.repair(
        pipe, schedule, settings=settings, on_progress=lambda report: losses.append(report.loss), **call
    )
    assert next(pipe.transformer.parameters()).dtype == torch.bfloat16
    assert learned.predictor.coefficients.dtype == torch.float32
    assert learned.provenance["held_out_error"] < learned.provenance["held_out_error_before"]
    with l2c.enable_cache(pipe, learned):
        assert tiny_run(pipe, "sd3", **call).isfinite().all()


def test_bf16_is_for_learning_alone(pixart):
    schedule, call = tiny_interval(pixart, "pixart"), call_of("pixart")
    products = set()

    def note(_module, _arguments, output):
        products.add((output.dtype, output.requires_grad))

    part = pixart.transformer.transformer_blocks[0].ff.net[2]
    made = []
    for bf16 in (False, True):
        settings = replace(FEW, iterations=3, bf16=bf16)
        hook = part.register_forward_hook(note)
        made.append(l2c.repair(pixart, schedule, prompts=PROMPTS, settings=settings, **call))
        hook.remove()
        dtypes = {dtype for dtype, _ in products}
        assert dtypes == ({torch.float32, torch.bfloat16} if bf16 else {torch.float32})
    before, after = (one.provenance["held_out_error_before"] for one in made)
    assert before == after  # measured in the pipeline's own precision
    assert not torch.equal(made[0].predictor.coefficients, made[1].predictor.coefficients)
    torch.testing.assert_close(
        made[0].predictor.coefficients, made[1].predictor.coefficients, atol=2e-2, rtol=0
    )
