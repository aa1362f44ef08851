"""Layers of our own `DiT`."""

from __future__ import annotations

from l2c.layers.base import LayerTable, transformer_layers
from l2c.layers.registry import register_adapter
from l2c.models.dit import DiT, DiTConfig


def dit_rest_macs(config: DiTConfig) -> int:
    """Multiply-accumulates of a DiT evaluation outside its layers, for one image."""
    width, patch = config.hidden_size, config.patch_size**2
    embed = config.num_tokens * width * config.in_channels * patch + 256 * width + width**2
    modulation = 6 * width**2 * config.depth
    final = config.num_tokens * width * config.out_channels * patch + 2 * width**2
    return embed + modulation + final


@register_adapter("l2c.DiT")
def dit_layers(model: DiT) -> LayerTable:
    """`blocks.N.attn` and `blocks.N.mlp`: the branches before their adaLN gates."""
    config = model.config
    blocks = {f"blocks.{i}": f"blocks.{i}" for i in range(config.depth)}
    layers = transformer_layers(blocks, config.num_tokens, config.hidden_size, config.mlp_ratio)
    shape = (config.in_channels, config.image_size, config.image_size)
    return LayerTable("dit", layers, dit_rest_macs(config), shape)
