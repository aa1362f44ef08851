"""Layers of a model and the registry of adapters that find them.

A *layer* is a submodule whose output is added to the residual stream: the self-attention or the MLP of one
transformer block. The cache replaces the forward of that submodule and knows nothing else about the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from l2c.errors import ConfigError, ScheduleError

ATTENTION = "attention"
MLP = "mlp"

MAX_PROBED = 2**18
"""Weights of one layer that its fingerprint looks at, at most."""


@dataclass(frozen=True)
class Layer:
    """One residual branch of a transformer block.

    Attributes:
        name: Name in schedules, the same for every implementation of an architecture: `blocks.3.attn`.
        module_path: Where the submodule is in this model: `transformer_blocks.3.attn1`.
        kind: `attention` or `mlp`.
        linear_macs: Multiply-accumulates of its linear maps, for one image.
        attention_macs: Multiply-accumulates of the two attention products (queries with keys, weights with
            values), for one image; 0 for an MLP.
        out_elements: Number of elements of its output, for one image.
    """

    name: str
    module_path: str
    kind: str
    linear_macs: int
    attention_macs: int
    out_elements: int

    @property
    def macs(self) -> int:
        """All multiply-accumulates for one image."""
        return self.linear_macs + self.attention_macs


@dataclass(frozen=True)
class LayerTable:
    """The layers of a model in execution order, and what the model costs besides them.

    Attributes:
        family: Architecture: `dit` or `uvit`. Schedules move between implementations of one family.
        layers: The layers in the order in which they run.
        rest_macs: Multiply-accumulates outside the layers (embeddings, modulations, long skips, final layer)
            for one image and evaluation.
        sample_shape: (channels, height, width) of the model's input.
    """

    family: str
    layers: tuple[Layer, ...]
    rest_macs: int
    sample_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers in execution order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def layer_macs(self) -> int:
        """Multiply-accumulates of all layers for one image and evaluation."""
        return sum(layer.macs for layer in self.layers)

    @property
    def full_macs(self) -> int:
        """Multiply-accumulates of one whole evaluation for one image."""
        return self.layer_macs + self.rest_macs

    def to_json(self) -> dict[str, Any]:
        """Plain data for a schedule file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerTable:
        """Inverse of `to_json`.

        Raises:
            ScheduleError: If a field is missing or of the wrong kind.
        """
        try:
            layers = tuple(Layer(**layer) for layer in data["layers"])
            channels, height, width = (int(n) for n in data["sample_shape"])
            return cls(str(data["family"]), layers, int(data["rest_macs"]), (channels, height, width))
        except (KeyError, TypeError, ValueError) as error:
            raise ScheduleError(f"the layer table of the schedule is malformed ({error!r})") from error


Adapter = Callable[[Any], LayerTable]
_ADAPTERS: dict[str, Adapter] = {}


def register_adapter(name: str) -> Callable[[Adapter], Adapter]:
    """Registers a function that lists the layers of models of one class.

    The name is enough, so that registering an adapter for a library does not import it.

    Args:
        name: Top-level package and name of the class: `diffusers.DiTTransformer2DModel`.

    Raises:
        ConfigError: If the class already has an adapter.
    """

    def register(adapter: Adapter) -> Adapter:
        if name in _ADAPTERS:
            raise ConfigError(f"{name} already has a layer adapter; a class can have only one")
        _ADAPTERS[name] = adapter
        return adapter

    return register


def find_layers(model: nn.Module) -> LayerTable:
    """Lists the layers of a model through the adapter of its class, or of a base class.

    Raises:
        ConfigError: If no adapter is registered for the class.
    """
    for cls in type(model).__mro__:
        if adapter := _ADAPTERS.get(_adapter_name(cls)):
            return adapter(model)
    known = ", ".join(sorted(_ADAPTERS))
    raise ConfigError(
        f"no layer adapter for {_adapter_name(type(model))}; there are adapters for {known}, "
        "and l2c.layers.register_adapter adds one"
    )


def _adapter_name(cls: type) -> str:
    return f"{cls.__module__.partition('.')[0]}.{cls.__name__}"


def transformer_layers(
    prefixes: dict[str, str],
    tokens: int,
    width: int,
    mlp_ratio: float,
    parts: tuple[str, str] = ("attn", "mlp"),
) -> tuple[Layer, ...]:
    """Layers of a plain transformer: in every block a self-attention, then an MLP.

    Args:
        prefixes: Name of each block in schedules, mapped to its path in the model, in execution order.
        tokens: Length of the sequence.
        width: Width of the residual stream.
        mlp_ratio: Hidden width of the MLP over `width`.
        parts: Names of the two submodules in the model.
    """
    layers = []
    for name, path in prefixes.items():
        attention = (4 * tokens * width**2, 2 * tokens**2 * width)
        mlp = (int(2 * mlp_ratio * tokens * width**2), 0)
        for part, module, kind, (linear, products) in (
            ("attn", parts[0], ATTENTION, attention),
            ("mlp", parts[1], MLP, mlp),
        ):
            layers.append(Layer(f"{name}.{part}", f"{path}.{module}", kind, linear, products, tokens * width))
    return tuple(layers)


@torch.no_grad()
def fingerprint(model: nn.Module, table: LayerTable) -> tuple[float, ...]:
    """One number per layer that changes with its weights and hardly with their precision.

    It is a fixed projection of the layer's output weights in units of their root mean square, so that float32,
    bf16 and fp16 copies of a checkpoint agree within about 0.01 and other checkpoints differ by about 1. Of a
    large matrix, an evenly spaced sample is looked at.

    Returns:
        As many numbers as there are layers; empty where a layer has no weights to look at (meta device).
    """
    values = []
    for layer in table.layers:
        matrices = [p for p in model.get_submodule(layer.module_path).parameters() if p.ndim == 2]
        if not matrices or matrices[-1].is_meta:
            return ()
        flat = matrices[-1].detach().flatten()
        sampled = flat[:: math.ceil(flat.numel() / MAX_PROBED)]
        weights = sampled.to(device="cpu", dtype=torch.float64)
        scale = weights.square().sum().sqrt().item() or 1.0
        value = (weights @ _probe(weights.numel())).item() * math.sqrt(2.0) / scale
        values.append(round(value, 4) if math.isfinite(value) else math.nan)
    return tuple(values)


@lru_cache(maxsize=4)
def _probe(size: int) -> Tensor:
    return torch.cos(torch.arange(size, dtype=torch.float64) * 1.6180339887)
