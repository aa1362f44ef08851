"""Which adapter finds the layers of which class of models, and what is done for a class that has none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from l2c.documents import check_value
from l2c.errors import ConfigError
from l2c.layers.base import ATTENTION, CROSS_ATTENTION, MLP, Layer, LayerTable

Adapter = Callable[[Any], LayerTable]
_ADAPTERS: dict[str, Adapter] = {}


def register_adapter(name: str) -> Callable[[Adapter], Adapter]:
    """Registers a function that lists the layers of models of one class.

    The name is enough, so that registering an adapter for a library does not import it.

    Args:
        name: Top-level package and name of the class: `diffusers.DiTTransformer2DModel`.

    Raises:
        ConfigError: If the class already has an adapter, or that is no name.
    """
    check_value("the name of a class", name, str)

    def register(adapter: Adapter) -> Adapter:
        if name in _ADAPTERS:
            raise ConfigError(f"{name} already has a layer adapter; a class can have only one")
        _ADAPTERS[name] = adapter
        return adapter

    return register


def find_layers(model: nn.Module) -> LayerTable:
    """Lists the layers of a model through the adapter of its class, or of a base class.

    A class without an adapter gets what the names of its submodules suggest, with a warning.

    Raises:
        ConfigError: If no adapter is registered for the class, and no submodule looks like a layer.
    """
    for cls in type(model).__mro__:
        if adapter := _ADAPTERS.get(_adapter_name(cls)):
            return adapter(model)
    name = _adapter_name(type(model))
    if layers := guess_layers(model):
        shown = ", ".join(layer.name for layer in layers[:3])
        message = (
            f"no layer adapter for {name}; taking {len(layers)} submodules for its layers by their names "
            f"({shown}, ... {layers[-1].name}); if that is wrong, say which ones are with "
            "l2c.layers.register_blocks"
        )
        warnings.warn(message, stacklevel=2)
        return LayerTable(name, layers)
    known = ", ".join(sorted(_ADAPTERS))
    raise ConfigError(
        f"no layer adapter for {name}; there are adapters for {known}, and "
        f'l2c.layers.register_blocks("{name}", ...) or l2c.layers.register_adapter adds one'
    )


def _adapter_name(cls: type) -> str:
    return f"{cls.__module__.partition('.')[0]}.{cls.__name__}"


_ATTENTION_NAMES = ("attn", "attn1", "attention", "self_attn", "self_attention")
_CROSS_NAMES = ("attn2", "cross_attn", "cross_attention", "encoder_attn")
_MLP_NAMES = ("ff", "ffn", "mlp", "feed_forward", "ff_context", "img_mlp", "txt_mlp")


def guess_layers(model: nn.Module) -> tuple[Layer, ...]:
    """Submodules that look like layers by their names, in the order in which the model lists them.

    Only blocks in lists count, so that the text encoder or projection of a model is left alone.
    """
    kinds = {
        **dict.fromkeys(_ATTENTION_NAMES, ATTENTION),
        **dict.fromkeys(_CROSS_NAMES, CROSS_ATTENTION),
        **dict.fromkeys(_MLP_NAMES, MLP),
    }
    layers: list[Layer] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            for i, block in module.named_children():
                layers += [
                    Layer(f"{path}.{i}.{name}", f"{path}.{i}.{name}", kinds[name])
                    for name, child in block.named_children()
                    if name in kinds and child is not None
                ]
    return tuple(layers)
