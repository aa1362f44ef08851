"""Small models with random weights and a call counter, for tests of l2c and of what builds on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from l2c.layers import find_layers
from l2c.models.conversion import to_diffusers
from l2c.models.dit import DiT, DiTConfig
from l2c.models.sizes import random_model
from l2c.models.uvit import UViT, UViTConfig

_SMALL: dict[str, Any] = {
    "in_channels": 3,
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "num_classes": 10,
}


def tiny_dit(seed: int = 0, **changes: Any) -> DiT:
    """A DiT of 3 blocks on 8 x 8 pictures; `changes` go to its `DiTConfig`."""
    return cast(DiT, random_model(DiTConfig(**{**_SMALL, "depth": 3, **changes}), seed=seed))


def tiny_uvit(seed: int = 0, **changes: Any) -> UViT:
    """A U-ViT of 1 + 1 + 1 blocks on 8 x 8 pictures; `changes` go to its `UViTConfig`."""
    return cast(UViT, random_model(UViTConfig(**{**_SMALL, "depth": 2, **changes}), seed=seed))


def tiny_diffusers_dit(seed: int = 0, **changes: Any) -> Any:
    """The weights of `tiny_dit` as diffusers' `DiTTransformer2DModel`."""
    return to_diffusers(tiny_dit(seed, **changes)).eval().requires_grad_(False)


@contextmanager
def count_calls(model: nn.Module) -> Iterator[Counter[str]]:
    """Counts how often the forward of each layer runs, by name of the layer; reused layers do not count.

    Enter it before the cache is enabled, and leave it after the cache is disabled.
    """
    counts: Counter[str] = Counter()
    modules = []
    for layer in find_layers(model).layers:
        module = model.get_submodule(layer.module_path)

        def counted(
            *args: Any, _name: str = layer.name, _forward: Any = module.forward, **kwargs: Any
        ) -> Any:
            counts[_name] += 1
            return _forward(*args, **kwargs)

        module.forward = counted
        modules.append(module)
    try:
        yield counts
    finally:
        for module in modules:
            del module.forward
