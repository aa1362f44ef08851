"""Layers of a model, what they cost, and what tells their weights apart.

A *layer* is a submodule whose output is added to the residual stream: the attention or the MLP of one
transformer block. The cache replaces the forward of that submodule and knows nothing else about the model.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import AliasChoices, Field
from torch import Tensor, nn

from l2c.documents import MOST_LAYERS, Count, Macs

ATTENTION = "attention"
CROSS_ATTENTION = "cross-attention"
MLP = "mlp"
BLOCK = "block"

MAX_PROBED = 2**18
"""Weights of one layer that its fingerprint looks at, at most."""


@dataclass(frozen=True)
class Layer:
    """One residual branch of a transformer block.

    Attributes:
        name: Name in schedules, the same for every implementation of an architecture: `blocks.3.attn`.
        module_path: Where the submodule is in this model: `transformer_blocks.3.attn1`.
        kind: `attention`, `cross-attention`, `mlp`, or `block` where attention and MLP share one output.
        linear_macs: Multiply-accumulates of its linear maps, for one image.
        attention_macs: Multiply-accumulates of the two attention products (queries with keys, weights with
            values), for one image; 0 for an MLP.
        out_elements: Number of elements of its output, for one image; of all its tensors, if there are several.
        feeders: Paths of submodules whose outputs only this layer reads. They belong to it: their MACs are
            counted in it, and they do not run where it is reused.
    """

    name: str
    module_path: str
    kind: str
    linear_macs: Macs = 0
    attention_macs: Annotated[int, Field(ge=-(2**62), le=2**62)] = 0  # measured as what is left
    out_elements: Macs = 0
    feeders: tuple[str, ...] = field(default=())

    @property
    def macs(self) -> int:
        """All multiply-accumulates for one image."""
        return self.linear_macs + self.attention_macs


@dataclass(frozen=True)
class LayerTable:
    """The layers of a model in execution order, and what the model costs besides them.

    Attributes:
        architecture: `dit`, `uvit`, `flux`. Schedules move between implementations of one architecture.
        layers: The layers in the order in which they run.
        rest_macs: Multiply-accumulates outside the layers (embeddings, modulations, long skips, final layer)
            for one image and evaluation.
        sample_shape: Shape of the model's input for one image: (channels, height, width), for video
            (channels, frames, height, width), for packed tokens (tokens, channels). Empty where the sizes are
            not known, because the model takes any; then all MACs are 0.
    """

    architecture: Annotated[
        str, Field(validation_alias=AliasChoices("architecture", "family"))
    ]  # the latter once
    layers: Annotated[tuple[Layer, ...], Field(max_length=MOST_LAYERS)]
    rest_macs: Macs = 0
    sample_shape: tuple[Count, ...] = ()

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

    @property
    def sized(self) -> bool:
        """Whether the sizes are known."""
        return bool(self.sample_shape)

    def summary(self) -> dict[str, Any]:
        """How many layers of each kind there are and what they cost, as plain data; MACs are 0 where unknown."""
        kinds: dict[str, dict[str, int]] = {}
        for layer in self.layers:
            kind = kinds.setdefault(layer.kind, {"layers": 0, "macs": 0})
            kind["layers"] += 1
            kind["macs"] += layer.macs
        return {
            "architecture": self.architecture,
            "layers": len(self),
            "sized": self.sized,
            "sample_shape": list(self.sample_shape),
            "kinds": kinds,
            "rest_macs": self.rest_macs,
        }

    def with_sizes_of(self, other: LayerTable) -> LayerTable:
        """This table, where it has no sizes of its own, with those of a table of the same layers."""
        if self.sized or (self.architecture, self.names) != (other.architecture, other.names):
            return self
        layers = tuple(
            replace(theirs, module_path=mine.module_path, feeders=mine.feeders)
            for mine, theirs in zip(self.layers, other.layers, strict=True)
        )
        return replace(other, layers=layers)

    def times(self, parts: int) -> LayerTable:
        """The table of the whole model, from that of one of so many equal parts of the sequence."""
        layers = tuple(
            replace(
                layer,
                linear_macs=parts * layer.linear_macs,
                attention_macs=parts * layer.attention_macs,
                out_elements=parts * layer.out_elements,
            )
            for layer in self.layers
        )
        return replace(self, layers=layers, rest_macs=parts * self.rest_macs)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a schedule file."""
        data = asdict(self)
        for layer in data["layers"]:
            if not layer["feeders"]:
                del layer["feeders"]
        return data


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
    bf16 and fp16 copies of a checkpoint agree within about 0.01 and other checkpoints differ by about 1; eight bits
    move it by a few hundredths. Of a large matrix, an evenly spaced sample is looked at. Adapters such as LoRAs are not
    looked at, and sharded or quantised weights are gathered or dequantised, one layer at a time.

    Returns:
        As many numbers as there are layers; empty where a layer has no weights to look at (meta device).
    """
    values = []
    for layer in table.layers:
        module = model.get_submodule(layer.module_path)
        matrices = [
            name
            for name, weight in module.named_parameters()
            if weight.ndim >= 2
            and ".lora_" not in f".{name}"  # base weights tell, whatever adapters are loaded
        ]
        matrix = _weight(module, matrices[-1]) if matrices else None
        if matrix is None or matrix.is_meta:
            return ()
        flat = _plain(matrix.detach()).flatten()
        sampled = flat[:: math.ceil(flat.numel() / MAX_PROBED)]
        weights = sampled.to(device="cpu", dtype=torch.float64)
        scale = weights.square().sum().sqrt().item() or 1.0
        value = (weights @ _probe(weights.numel())).item() * math.sqrt(2.0) / scale
        values.append(round(value, 4) if math.isfinite(value) else math.nan)
    return tuple(values)


def _weight(module: nn.Module, name: str) -> Tensor:
    """A weight, or where accelerate has offloaded it, what will be loaded for it."""
    weight = module.get_parameter(name)
    owner, _, last = name.rpartition(".")
    offloaded = getattr(getattr(module.get_submodule(owner), "_hf_hook", None), "weights_map", None)
    if weight.is_meta and offloaded is not None:
        kept: Tensor = offloaded[last]
        return kept
    return weight


def _plain(weight: Tensor) -> Tensor:
    """A weight as ordinary numbers: gathered where it is sharded, dequantised where it is quantised."""
    if (gather := getattr(weight, "full_tensor", None)) is not None:  # DTensor
        gathered: Tensor = gather()
        return gathered
    state = getattr(weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        four_bit: Tensor = dequantize_4bit(weight.data, state)
        return four_bit
    if hasattr(weight, "quant_type"):
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        unpacked: Tensor = dequantize_gguf_tensor(weight)
        return unpacked
    return weight.dequantize() if type(weight) not in (Tensor, nn.Parameter) else weight


@lru_cache(maxsize=4)
def _probe(size: int) -> Tensor:
    return torch.cos(torch.arange(size, dtype=torch.float64) * 1.6180339887)
