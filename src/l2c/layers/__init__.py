"""What the cache knows about a model: its layers, found by one adapter per architecture."""

from l2c.layers import diffusers as _diffusers  # noqa: F401  (registers its adapters)
from l2c.layers import dit as _dit  # noqa: F401
from l2c.layers import uvit as _uvit  # noqa: F401
from l2c.layers.base import Layer, LayerTable, find_layers, fingerprint, register_adapter

__all__ = ["Layer", "LayerTable", "find_layers", "fingerprint", "register_adapter"]
