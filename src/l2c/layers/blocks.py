"""Adapters for models made of lists of blocks: one line says which submodules of a block are layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from l2c.errors import ConfigError
from l2c.layers.base import Layer, LayerTable
from l2c.layers.registry import register_adapter


@dataclass(frozen=True)
class Residual:
    """An output of a block that several submodules make together.

    Attributes:
        kind: `attention`, `cross-attention`, `mlp`, or `block` for attention and MLP in one.
        feeders: Submodules of the block whose outputs go into this one and nowhere else.
    """

    kind: str
    feeders: tuple[str, ...] = ()


BlockParts = Mapping[str, str | Residual]
"""Submodule of a block -> its kind, or a `Residual`; in execution order."""


def register_blocks(class_name: str, architecture: str, blocks: Mapping[str, BlockParts]) -> None:
    """Registers an adapter for a class of models.

    A submodule that a block does not have is passed over, so that the last block of an SD3, which has no MLP for
    the text, needs no line of its own. Sizes are measured when the model runs.

    Args:
        class_name: Top-level package and name of the class: `diffusers.WanTransformer3DModel`.
        architecture: Its name, which schedules record.
        blocks: Path of each list of blocks, in execution order, and the layers of its blocks.

    Raises:
        ConfigError: If the class already has an adapter.

    >>> register_blocks("mylib.MyTransformer", "mine", {"blocks": {"attn": "attention", "mlp": "mlp"}})
    """

    def adapter(model: nn.Module) -> LayerTable:
        layers: list[Layer] = []
        for path, parts in blocks.items():
            found = [
                layer for i, block in _blocks(model, path) for layer in _layers(f"{path}.{i}", block, parts)
            ]
            missing = [part for part in parts if not any(layer.name.endswith(f".{part}") for layer in found)]
            if len(missing) == len(parts) and len(list(_blocks(model, path))):
                raise ConfigError(
                    f"no block in {path} of {class_name} has a submodule {' or '.join(missing)}; "
                    "correct its line in register_blocks"
                )
            layers += found
        return LayerTable(architecture, tuple(layers))

    register_adapter(class_name)(adapter)


def _blocks(model: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    try:
        return list(model.get_submodule(path).named_children())
    except AttributeError:
        return []


def _layers(prefix: str, block: nn.Module, parts: BlockParts) -> list[Layer]:
    layers = []
    for part, given in parts.items():
        residual = given if isinstance(given, Residual) else Residual(given)
        if _part(block, part) is not None:
            feeders = tuple(f"{prefix}.{feeder}" for feeder in residual.feeders)
            layers.append(Layer(f"{prefix}.{part}", f"{prefix}.{part}", residual.kind, feeders=feeders))
    return layers


def _part(block: nn.Module, path: str) -> object:
    """A submodule by its path, None where a block has none."""
    found: object = block
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
