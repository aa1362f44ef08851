"""Whole diffusers pipelines in sizes that a test can afford: random weights, a tokenizer of a few words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from l2c.methods.interval import interval
from l2c.schedule.schedule import CacheSchedule
from l2c.testing.inputs import TEXT, WORDS
from l2c.testing.transformers import TINY
from l2c.testing.variants import VARIANTS, cogview4, variant_call

_WORDS = ("a", "an", "and", "bird", "boat", "cat", "dog", "green", "house", "of", "painting", "photo", "the")


def tiny_pipeline(name: str, scheduler: Any = None, seed: int = 0) -> Any:
    """A pipeline of an architecture, frozen and without progress bar.

    Args:
        name: One of `TINY_PIPELINES`.
        scheduler: A diffusers scheduler instead of the architecture's own.
        seed: Of all weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base, vary = VARIANTS.get(name, (name, None))
        pipe = _BUILDERS[base](scheduler, seed)
        if vary is not None:
            pipe = vary(pipe, seed)
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    return pipe


def tiny_call(name: str, steps: int = 6, images: int = 1, seed: int = 0) -> dict[str, Any]:
    """What such a pipeline can be called with.

    Args:
        name: One of `TINY_PIPELINES`.
        steps: Number of solver steps.
        images: Number of pictures or videos.
        seed: Of the noise.
    """
    if name in VARIANTS:
        return {**tiny_call(VARIANTS[name][0], steps, images, seed), **variant_call(name, images)}
    call: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": 3.0,
        "generator": [torch.Generator().manual_seed(seed + i) for i in range(images)],
    }
    if name == "dit":
        return {**call, "class_labels": [1 + i for i in range(images)], "output_type": "np"}
    call["output_type"] = "latent"
    if name == "pixart":
        prompts = ["a photo of a cat", "a painting of the green house"]
        small = {"height": 16, "width": 16, "use_resolution_binning": False, "clean_caption": False}
        return {**call, **small, "prompt": (prompts * images)[:images], "max_sequence_length": 8}
    text = {
        "prompt_embeds": _random(images, WORDS, TEXT),
        "negative_prompt_embeds": _random(images, WORDS, TEXT) * 0.5,
    }
    pooled = {
        "pooled_prompt_embeds": _random(images, TEXT),
        "negative_pooled_prompt_embeds": _random(images, TEXT) * 0.5,
    }
    if name.startswith("wan"):
        return {**call, **text, "height": 16, "width": 16, "num_frames": 5}
    if name == "cogview4":
        return {**call, **text, "height": 16, "width": 16}
    if name == "sd3":
        return {**call, **text, **pooled, "height": 16, "width": 16}
    if name in ("qwen", "sana"):  # without an autoencoder, whose scale is 8 or 32 then
        kind, size = ("prompt_embeds_mask", 64) if name == "qwen" else ("prompt_attention_mask", 256)
        masks = {key: torch.ones(images, WORDS, dtype=torch.long) for key in (kind, f"negative_{kind}")}
        more: dict[str, Any] = {"height": size, "width": size}
        if name == "qwen":
            del call["guidance_scale"]
            return {**call, **text, **masks, **more, "true_cfg_scale": 2.0}
        return {**call, **text, **masks, **more, "negative_prompt": None, "use_resolution_binning": False}
    return {**call, **text, **pooled, "height": 16, "width": 16, "true_cfg_scale": 2.0}


def tiny_run(pipe: Any, name: str, **changes: Any) -> torch.Tensor:
    """Samples with the same noise and prompts every time.

    Args:
        pipe: A pipeline from `tiny_pipeline`.
        name: Its name.
        changes: Arguments of `tiny_call`, and what the pipeline is called with instead of that.

    Returns:
        Latents, or for `dit` pictures.
    """
    options = {key: changes.pop(key) for key in ("steps", "images", "seed") if key in changes}
    result = pipe(**{**tiny_call(name, **options), **changes}, return_dict=False)[0]
    return torch.as_tensor(result)


def tiny_interval(
    pipe: Any, name: str, every: int = 2, predictor: str = "copy", **changes: Any
) -> CacheSchedule:
    """The schedule that computes at every n-th evaluation, for `tiny_run`."""
    return interval(pipe, every=every, predictor=predictor, **{**tiny_call(name), **changes})


def tiny_mixed(pipe: Any, name: str, **changes: Any) -> CacheSchedule:
    """A schedule of different layers at different evaluations, for `tiny_run`."""
    regular = tiny_interval(pipe, name, every=1, **changes)
    compute = torch.rand(regular.compute.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    compute[0] = True
    return CacheSchedule(compute, regular.layers, regular.contract)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def tiny_tokenizer() -> Any:
    """A tokenizer that knows some words and splits at spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *_WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _autoencoder(channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=16,
        shift_factor=0.0,
    )


def _dit(scheduler: Any, seed: int) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline

    tiny = TINY["DiTTransformer2DModel"]
    changes = {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000}
    changed = replace(tiny, config={**tiny.config, **changes}, shape=(4, 8, 8))
    return DiTPipeline(changed.build(seed), _autoencoder(), scheduler or DDIMScheduler(clip_sample=False))


def _pixart(scheduler: Any, seed: int) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline
    from transformers import T5Config, T5EncoderModel

    encoder = T5EncoderModel(
        T5Config(vocab_size=32, d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
    )
    model = TINY["PixArtTransformer2DModel"].build(seed)
    return PixArtAlphaPipeline(
        tiny_tokenizer(), encoder, _autoencoder(), model, scheduler or DPMSolverMultistepScheduler()
    )


def _sd3(scheduler: Any, seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    model = TINY["SD3Transformer2DModel"].build(seed)
    clock = scheduler or FlowMatchEulerDiscreteScheduler()
    return StableDiffusion3Pipeline(
        model, clock, _autoencoder(), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def _flux(scheduler: Any, seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    model = TINY["FluxTransformer2DModel"]
    clock = scheduler or FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return FluxPipeline(
        clock, _autoencoder(1), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=model.build(seed),
    )  # fmt: skip


def _wan(scheduler: Any, seed: int, second: bool = False) -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    scale = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    autoencoder = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **scale)
    tiny = TINY["WanTransformer3DModel"]
    clock = scheduler or UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    more = {"transformer_2": tiny.build(seed + 1), "boundary_ratio": 0.8} if second else {}
    return WanPipeline(None, None, autoencoder, clock, tiny.build(seed), **more)


def _wan22(scheduler: Any, seed: int) -> Any:
    return _wan(scheduler, seed, second=True)


def _qwen(scheduler: Any, seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

    clock = scheduler or FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    model = TINY["QwenImageTransformer2DModel"].build(seed)
    return QwenImagePipeline(clock, vae=None, text_encoder=None, tokenizer=None, transformer=model)


def _sana(scheduler: Any, seed: int) -> Any:
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    model = TINY["SanaTransformer2DModel"].build(seed)
    return SanaPipeline(None, None, None, model, scheduler or DPMSolverMultistepScheduler(**flow))


def _cogview4(scheduler: Any, seed: int) -> Any:
    return cogview4(scheduler, seed, _autoencoder())


_BUILDERS: dict[str, Callable[[Any, int], Any]] = {
    "dit": _dit,
    "pixart": _pixart,
    "sd3": _sd3,
    "flux": _flux,
    "wan": _wan,
    "wan2.2": _wan22,
    "qwen": _qwen,
    "sana": _sana,
    "cogview4": _cogview4,
}
TINY_PIPELINES = (*_BUILDERS, *VARIANTS)
"""Names of the pipelines; `wan2.2` has two transformers."""
