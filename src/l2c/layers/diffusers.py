"""Layers of diffusers' transformers, known by the names of their classes; diffusers is not imported."""

from __future__ import annotations

from typing import Any

from l2c.layers.base import LayerTable, register_adapter, transformer_layers


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
