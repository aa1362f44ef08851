"""Diffusion transformers in their public checkpoint layouts, and how to get one.

    model = load_model("dit-mini-cifar10")        # comes with the package
    model = load_model("DiT-XL-2-256x256.pt")     # a public checkpoint
    noise = model(x, t, y)

`DiT` and `UViT` are plain modules that know nothing of caches. Two architectures share one signature,
`model(x, t, y)`, and one set of config fields, `ModelConfig`. In both, each residual branch is a submodule
(`blocks.3.attn`, `in_blocks.0.mlp`) that takes in its norm and modulation: whoever replaces its forward saves
everything the branch costs.
"""

from l2c.models.config import ModelConfig
from l2c.models.conversion import from_diffusers, match_public_embeddings, to_diffusers
from l2c.models.dit import DiT, DiTConfig
from l2c.models.loading import CIFAR10_CLASSES, EMBEDDED_MODELS, load_model, save_model
from l2c.models.sizes import SIZES, build_model, is_size, model_config, new_model, random_model, resolve_name
from l2c.models.uvit import UViT, UViTConfig

__all__ = [
    "CIFAR10_CLASSES",
    "EMBEDDED_MODELS",
    "SIZES",
    "DiT",
    "DiTConfig",
    "ModelConfig",
    "UViT",
    "UViTConfig",
    "build_model",
    "from_diffusers",
    "is_size",
    "load_model",
    "match_public_embeddings",
    "model_config",
    "new_model",
    "random_model",
    "resolve_name",
    "save_model",
    "to_diffusers",
]
