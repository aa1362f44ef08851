"""Pipelines that are variants of others: edited pictures, ControlNets, IP adapters; tiny, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from l2c.testing.inputs import TEXT, random
from l2c.testing.transformers import TINY

IMAGE_TOKENS = 4
"""Tokens that IP adapters make of a picture; for that of FLUX diffusers knows no other number."""
_HEAD = 64
"""Width of a head in the image projection of Stable Diffusion 3's, of which diffusers knows no other."""


def sd3_control(base: Any, seed: int) -> Any:
    """Stable Diffusion 3 with a ControlNet."""
    from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline

    config = {**base.transformer.config, "num_layers": 1, "extra_conditioning_channels": 0}
    control = _spread(SD3ControlNetModel.from_config(config))
    parts = {**base.components, "controlnet": control}
    return StableDiffusion3ControlNetPipeline(**parts)


def flux_control(base: Any, seed: int) -> Any:
    """FLUX with a ControlNet."""
    from diffusers import FluxControlNetModel, FluxControlNetPipeline

    config = {**base.transformer.config, "num_layers": 1, "num_single_layers": 1}
    return FluxControlNetPipeline(
        **base.components, controlnet=_spread(FluxControlNetModel.from_config(config))
    )


def sd3_adapter(base: Any, seed: int) -> Any:
    """Stable Diffusion 3 with an IP adapter, loaded by diffusers' own code from weights in the published layout."""
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    config = base.transformer.config
    adapter: dict[str, Any] = {}
    head = config.attention_head_dim
    width = config.num_attention_heads * head
    for index in range(len(base.transformer.attn_processors)):
        processor = SD3IPAdapterJointAttnProcessor2_0(width, width, head, timesteps_emb_dim=TEXT)
        adapter |= {f"{index}.{name}": weight for name, weight in processor.state_dict().items()}
    projection = IPAdapterTimeImageProjection(
        TEXT, width, TEXT, dim_head=_HEAD, heads=1, num_queries=IMAGE_TOKENS, timestep_in_dim=8
    )
    weights = {"ip_adapter": adapter, "image_proj": projection.state_dict()}
    base.load_ip_adapter(weights, weight_name=None, image_encoder_folder=None, low_cpu_mem_usage=False)
    return base


def flux_adapter(base: Any, seed: int) -> Any:
    """FLUX with an IP adapter, loaded by diffusers' own code from weights in the published layout."""
    from diffusers.models.embeddings import ImageProjection
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    model = base.transformer
    config, adapter = model.config, {}
    width = config.num_attention_heads * config.attention_head_dim
    doubles = [name for name in model.attn_processors if name.startswith("transformer_blocks")]
    for index in range(len(doubles)):
        processor = FluxIPAdapterAttnProcessor(width, config.joint_attention_dim)
        for name, weight in processor.state_dict().items():
            adapter[f"{index}.{name.replace('_ip.0.', '_ip.')}"] = weight
    projection = ImageProjection(TEXT, config.joint_attention_dim, IMAGE_TOKENS).state_dict()
    named = {name.replace("image_embeds", "proj"): weight for name, weight in projection.items()}
    model._load_ip_adapter_weights({"ip_adapter": adapter, "image_proj": named}, low_cpu_mem_usage=False)
    return base


def qwen_edit(base: Any) -> Any:
    """Qwen-Image-Edit, whose transformer reads the picture that is edited as further tokens."""
    from diffusers import AutoencoderKLQwenImage, QwenImageEditPipeline

    scale = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    autoencoder = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1] * 6, num_res_blocks=1, temperal_downsample=[False] * 5, **scale
    )  # which takes a million pixels, as the pipeline gives it, down to a thousand
    return QwenImageEditPipeline(**{**base.components, "vae": autoencoder, "processor": None})


def cogview4(scheduler: Any, seed: int, autoencoder: Any) -> Any:
    """CogView4, whose blocks have one MLP for picture and text."""
    from diffusers import CogView4Pipeline, FlowMatchEulerDiscreteScheduler

    clock = scheduler or FlowMatchEulerDiscreteScheduler(
        base_shift=0.25,
        max_shift=0.75,
        base_image_seq_len=256,
        use_dynamic_shifting=True,
        time_shift_type="linear",
    )
    return CogView4Pipeline(None, None, autoencoder, TINY["CogView4Transformer2DModel"].build(seed), clock)


VARIANTS: dict[str, tuple[str, Any]] = {
    "sd3-control": ("sd3", sd3_control),
    "sd3-adapter": ("sd3", sd3_adapter),
    "flux-control": ("flux", flux_control),
    "flux-adapter": ("flux", flux_adapter),
}
"""Variant -> the pipeline that it is made of, and how."""


def variant_call(name: str, images: int) -> dict[str, Any]:
    """What a variant is called with besides what its base is."""
    if name == "flux-adapter":
        pictures = {"ip_adapter_image_embeds": [random(images, 1, TEXT)]}
        return {**pictures, "negative_ip_adapter_image_embeds": [torch.zeros(images, 1, TEXT)]}
    if name == "sd3-adapter":  # of the pass without the prompt first
        embeds = random(images, IMAGE_TOKENS, TEXT)
        return {"ip_adapter_image_embeds": torch.cat([torch.zeros_like(embeds), embeds])}
    return {"control_image": random(images, 3, 16, 16).tanh(), "controlnet_conditioning_scale": 0.7}


def _spread(control: nn.Module) -> nn.Module:
    """A ControlNet whose outputs, which begin as zeros, are random."""
    for name, weight in control.named_parameters():
        if name.startswith("controlnet_"):
            nn.init.normal_(weight, std=0.1)
    return control
