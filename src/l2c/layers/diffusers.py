"""Layers of diffusers' transformers, known by the names of their classes; diffusers is not imported."""

from __future__ import annotations

from typing import Any

from l2c.layers.base import (
    ATTENTION,
    BLOCK,
    CROSS_ATTENTION,
    MLP,
    LayerTable,
    transformer_layers,
)
from l2c.layers.blocks import BlockParts, Residual, register_blocks
from l2c.layers.registry import register_adapter

_PLAIN: BlockParts = {"attn": ATTENTION, "ff": MLP}
_TEXT: BlockParts = {"attn1": ATTENTION, "attn2": CROSS_ATTENTION, "ff": MLP}
_JOINT: BlockParts = {"attn": ATTENTION, "attn2": ATTENTION, "ff": MLP, "ff_context": MLP}
_SINGLE: BlockParts = {"proj_out": Residual(BLOCK, ("attn", "proj_mlp", "act_mlp"))}
_WAN: BlockParts = {"attn1": ATTENTION, "attn2": CROSS_ATTENTION, "ffn": MLP}
_Z_IMAGE: BlockParts = {"attention": ATTENTION, "feed_forward": MLP}
_LUMINA2: BlockParts = {"attn": ATTENTION, "feed_forward": MLP}

TRANSFORMERS: dict[str, tuple[str, dict[str, BlockParts]]] = {
    "PixArtTransformer2DModel": ("pixart", {"transformer_blocks": _TEXT}),
    "SD3Transformer2DModel": ("sd3", {"transformer_blocks": _JOINT}),
    "FluxTransformer2DModel": ("flux", {"transformer_blocks": _JOINT, "single_transformer_blocks": _SINGLE}),
    "ChromaTransformer2DModel": (
        "chroma",
        {"transformer_blocks": _JOINT, "single_transformer_blocks": _SINGLE},
    ),
    "AuraFlowTransformer2DModel": (
        "auraflow",
        {"joint_transformer_blocks": _JOINT, "single_transformer_blocks": _PLAIN},
    ),
    "SanaTransformer2DModel": ("sana", {"transformer_blocks": _TEXT}),
    "LuminaNextDiT2DModel": (
        "lumina",
        {"layers": {"attn1": ATTENTION, "attn2": CROSS_ATTENTION, "feed_forward": MLP}},
    ),
    "Lumina2Transformer2DModel": (
        "lumina2",
        {"context_refiner": _LUMINA2, "noise_refiner": _LUMINA2, "layers": _LUMINA2},
    ),
    "HunyuanDiT2DModel": ("hunyuan-dit", {"blocks": _TEXT}),
    "QwenImageTransformer2DModel": (
        "qwen-image",
        {"transformer_blocks": {"attn": ATTENTION, "img_mlp": MLP, "txt_mlp": MLP}},
    ),
    "WanTransformer3DModel": ("wan", {"blocks": _WAN}),
    "WanVACETransformer3DModel": ("wan-vace", {"vace_blocks": _WAN, "blocks": _WAN}),
    "SkyReelsV2Transformer3DModel": ("skyreels-v2", {"blocks": _WAN}),
    "ChronoEditTransformer3DModel": ("chronoedit", {"blocks": _WAN}),
    "HunyuanVideoTransformer3DModel": (
        "hunyuan-video",
        {"transformer_blocks": _JOINT, "single_transformer_blocks": _SINGLE},
    ),
    "HunyuanVideo15Transformer3DModel": ("hunyuan-video-1.5", {"transformer_blocks": _JOINT}),
    "HunyuanImageTransformer2DModel": (
        "hunyuan-image",
        {"transformer_blocks": _JOINT, "single_transformer_blocks": _SINGLE},
    ),
    "Flux2Transformer2DModel": (
        "flux2",
        {"transformer_blocks": _JOINT, "single_transformer_blocks": {"attn": BLOCK}},
    ),
    "BriaTransformer2DModel": ("bria", {"transformer_blocks": _JOINT, "single_transformer_blocks": _SINGLE}),
    "OvisImageTransformer2DModel": (
        "ovis-image",
        {"transformer_blocks": _JOINT, "single_transformer_blocks": _SINGLE},
    ),
    "LongCatImageTransformer2DModel": (
        "longcat-image",
        {"transformer_blocks": _JOINT, "single_transformer_blocks": _SINGLE},
    ),
    "SanaVideoTransformer3DModel": ("sana-video", {"transformer_blocks": _TEXT}),
    "CosmosTransformer3DModel": ("cosmos", {"transformer_blocks": _TEXT}),
    "LTXVideoTransformer3DModel": ("ltx-video", {"transformer_blocks": _TEXT}),
    "MochiTransformer3DModel": (
        "mochi",
        {"transformer_blocks": {"attn1": ATTENTION, "ff": MLP, "ff_context": MLP}},
    ),
    "CogVideoXTransformer3DModel": ("cogvideox", {"transformer_blocks": {"attn1": ATTENTION, "ff": MLP}}),
    "HiDreamImageTransformer2DModel": (
        "hidream",
        {
            "double_stream_blocks": {"block.attn1": ATTENTION, "block.ff_i": MLP, "block.ff_t": MLP},
            "single_stream_blocks": {"block.attn1": ATTENTION, "block.ff_i": MLP},
        },
    ),
    "ZImageTransformer2DModel": (
        "z-image",
        {"noise_refiner": _Z_IMAGE, "context_refiner": _Z_IMAGE, "layers": _Z_IMAGE},
    ),
    "LTX2VideoTransformer3DModel": (
        "ltx-2",
        {
            "transformer_blocks": {
                "attn1": ATTENTION,
                "audio_attn1": ATTENTION,
                "attn2": CROSS_ATTENTION,
                "audio_attn2": CROSS_ATTENTION,
                "audio_to_video_attn": CROSS_ATTENTION,
                "video_to_audio_attn": CROSS_ATTENTION,
                "ff": MLP,
                "audio_ff": MLP,
            }
        },
    ),
    "CogView4Transformer2DModel": ("cogview4", {"transformer_blocks": {"attn1": ATTENTION, "ff": MLP}}),
    "StableAudioDiTModel": ("stable-audio", {"transformer_blocks": _TEXT}),
}
"""Class -> its architecture, and its lists of blocks with their layers, in execution order."""

for _class, (_architecture, _blocks) in TRANSFORMERS.items():
    register_blocks(f"diffusers.{_class}", _architecture, _blocks)


@register_adapter("diffusers.DiTTransformer2DModel")
def diffusers_dit_layers(model: Any) -> LayerTable:
    """`transformer_blocks.N.attn1` and `.ff`, named as in our own DiT so that schedules fit both.

    The norms and modulations of this class stand outside the submodules and run also for a reused layer. Each
    block embeds the timestep and label anew.
    """
    config = model.config
    width = config.num_attention_heads * config.attention_head_dim
    tokens = (config.sample_size // config.patch_size) ** 2
    patch = config.patch_size**2
    blocks = {f"blocks.{i}": f"transformer_blocks.{i}" for i in range(config.num_layers)}
    layers = transformer_layers(blocks, tokens, width, 4.0, parts=("attn1", "ff"))
    embed = tokens * width * config.in_channels * patch + config.num_layers * (256 * width + width**2)
    modulation = 6 * width**2 * config.num_layers
    final = (
        tokens * width * (config.out_channels or config.in_channels) * patch
        + 2 * width**2
        + 256 * width
        + width**2
    )
    shape = (config.in_channels, config.sample_size, config.sample_size)
    return LayerTable("dit", layers, embed + modulation + final, shape)
