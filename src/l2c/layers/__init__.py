"""What the cache knows about a model: its layers, found by one adapter per architecture."""

from l2c.layers import diffusers as _diffusers  # noqa: F401  (registers its adapters)
from l2c.layers import dit as _dit  # noqa: F401
from l2c.layers import uvit as _uvit  # noqa: F401
from l2c.layers.base import Layer, LayerTable, fingerprint
from l2c.layers.blocks import Residual, register_blocks
from l2c.layers.measure import measure_layers
from l2c.layers.registry import find_layers, register_adapter

__all__ = [
    "Layer",
    "LayerTable",
    "Residual",
    "find_layers",
    "fingerprint",
    "measure_layers",
    "register_adapter",
    "register_blocks",
]
