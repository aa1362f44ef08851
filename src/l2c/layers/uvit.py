"""Layers of our own `UViT`."""

from __future__ import annotations

from l2c.layers.base import LayerTable, transformer_layers
from l2c.layers.registry import register_adapter
from l2c.models.uvit import UViT


@register_adapter("l2c.UViT")
def uvit_layers(model: UViT) -> LayerTable:
    """Attention and MLP of every block; the long skips (`skip_linear`) are always computed."""
    config = model.config
    half = config.depth // 2
    paths = [f"in_blocks.{i}" for i in range(half)]
    paths += ["mid_block"] + [f"out_blocks.{i}" for i in range(half)]
    layers = transformer_layers(
        {path: path for path in paths}, config.num_tokens, config.hidden_size, config.mlp_ratio
    )
    width, patch = config.hidden_size, config.patch_size**2
    patches = (config.image_size // config.patch_size) ** 2
    embed = patches * width * config.in_channels * patch
    skips = half * config.num_tokens * 2 * width**2
    decode = config.num_tokens * width * config.in_channels * patch
    if config.time_embed_mlp:
        embed += 8 * width**2
    convolution = 9 * config.in_channels**2 * config.image_size**2 if config.final_conv else 0
    shape = (config.in_channels, config.image_size, config.image_size)
    return LayerTable("uvit", layers, embed + skips + decode + convolution, shape)
