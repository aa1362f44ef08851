"""Every published size by name, and models of those sizes with random weights.

Names are the published ones in lower case, followed by the resolution in pixels: `dit-xl-2-256`,
`uvit-h-2-512`. A slash for the first hyphen and capitals are fine (`DiT-XL/2-256`), and without a
resolution 256 is meant.
"""

from __future__ import annotations

import difflib

import torch
from torch import nn

from l2c.documents import check_value
from l2c.errors import ConfigError
from l2c.models.config import ModelConfig
from l2c.models.dit import DiT, DiTConfig
from l2c.models.uvit import UViT, UViTConfig

_DIT_WIDTHS = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}


def _imagenet_dit(width: str, patch_size: int, resolution: int) -> DiTConfig:
    hidden_size, depth, num_heads = _DIT_WIDTHS[width]
    return DiTConfig(
        in_channels=4,
        image_size=resolution // 8,  # the autoencoder's downsampling
        patch_size=patch_size,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=num_heads,
        num_classes=1000,
        learn_sigma=True,
    )


def _imagenet64_uvit(hidden_size: int, depth: int, num_heads: int) -> UViTConfig:
    return UViTConfig(
        in_channels=3,
        image_size=64,
        patch_size=4,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=num_heads,
        num_classes=1000,
        has_null_class=False,  # trained without guidance: the label table has exactly 1000 rows
    )


def _latent_uvit_large(patch_size: int, image_size: int) -> UViTConfig:
    # Trained in continuous time on the variance-preserving SDE, of which linear betas are the discrete form.
    return UViTConfig(
        in_channels=4,
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=1024,
        depth=20,
        num_heads=16,
        num_classes=1000,
    )


def _latent_uvit_huge(patch_size: int, image_size: int) -> UViTConfig:
    return UViTConfig(
        in_channels=4,
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=1152,
        depth=28,
        num_heads=16,
        num_classes=1000,
        final_conv=False,
        beta_schedule="scaled_linear",
        first_timestep=1,
    )


_MINI_DIT = DiTConfig(
    in_channels=3, image_size=32, patch_size=2, hidden_size=192, depth=12, num_heads=3, num_classes=10
)
_MINI_UVIT = UViTConfig(
    in_channels=3, image_size=32, patch_size=2, hidden_size=192, depth=12, num_heads=3, num_classes=10
)

SIZES: dict[str, DiTConfig | UViTConfig] = {
    "dit-mini-cifar10": _MINI_DIT,
    "uvit-mini-cifar10": _MINI_UVIT,
    **{f"dit-{w}-{p}-256": _imagenet_dit(w, p, 256) for w in _DIT_WIDTHS for p in (2, 4, 8)},
    "dit-xl-2-512": _imagenet_dit("xl", 2, 512),
    "uvit-m-4-64": _imagenet64_uvit(768, 16, 12),
    "uvit-l-4-64": _imagenet64_uvit(1024, 20, 16),
    "uvit-l-2-256": _latent_uvit_large(2, 32),
    "uvit-h-2-256": _latent_uvit_huge(2, 32),
    "uvit-l-4-512": _latent_uvit_large(4, 64),
    "uvit-h-4-512": _latent_uvit_huge(4, 64),
}
"""The published sizes and the two small ones that come with the package, by name.

Source:
    DiT: arXiv 2212.09748, table 1. U-ViT: arXiv 2209.12152, table 1 and appendix, with the public training
    configurations for the noise schedules, label tables and final convolutions.
"""


def resolve_name(name: str) -> str:
    """Find the published name that `name` means.

    Args:
        name: A key of `SIZES`, in any case, with a slash for a hyphen, or without its resolution.

    Returns:
        The key of `SIZES`.

    Raises:
        ConfigError: No published size is called that; the message suggests the nearest.

    >>> resolve_name("DiT-XL/2")
    'dit-xl-2-256'
    """
    plain = check_value("the model's name", name, str).lower().replace("/", "-")
    for candidate in (plain, f"{plain}-256"):
        if candidate in SIZES:
            return candidate
    nearest = difflib.get_close_matches(plain, SIZES, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(SIZES)}"
    raise ConfigError(f"there is no model called {name!r}; {hint}")


def is_size(name: str) -> bool:
    """Whether a published size is called that, in one of the spellings of `resolve_name`.

    >>> is_size("DiT-XL/2"), is_size("someone/model")
    (True, False)
    """
    plain = name.lower().replace("/", "-")
    return bool({plain, f"{plain}-256"} & set(SIZES))


def model_config(name: str) -> DiTConfig | UViTConfig:
    """Look a published size up.

    Raises:
        ConfigError: No published size is called that.

    >>> model_config("uvit-h-2-256").num_blocks
    29
    """
    return SIZES[resolve_name(name)]


def new_model(config: ModelConfig) -> DiT | UViT:
    """Make an untrained model of the architecture that `config` is of, initialised for training.

    Raises:
        ConfigError: `config` is neither a `DiTConfig` nor a `UViTConfig`.
    """
    if isinstance(config, DiTConfig):
        return DiT(config)
    if isinstance(config, UViTConfig):
        return UViT(config)
    raise ConfigError(f"config must be a DiTConfig or a UViTConfig, got {type(config).__name__}")


def random_model(
    config: ModelConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    draw_on: torch.device | str = "cpu",
) -> DiT | UViT:
    """Make a model with random weights of which every branch matters, for timing and for tests.

    A DiT initialised for training has zero gates and a zero output: any cache would be trivially right. Here
    the output varies with image, timestep and label. The global random state is left alone.

    Args:
        config: The model's size.
        seed: Seed of the weights.
        dtype: Of the weights.
        device: Where to put them.
        draw_on: Where to draw them: a GPU takes a fraction of the time for a large model, and gives other numbers.

    Returns:
        The model in evaluation mode, its parameters without gradients.

    Raises:
        ConfigError: `config` is of no known architecture.
    """
    devices = [torch.device(draw_on)] if torch.device(draw_on).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(draw_on):
        torch.manual_seed(seed)
        model = new_model(config)
        _spread_weights(model)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def build_model(
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DiT | UViT:
    """Make a model of a published size with the weights of `random_model`.

    Args:
        name: A published size; see `resolve_name`.
        seed: Seed of the weights.
        dtype: Of the weights.
        device: Where to put them.

    Returns:
        The model in evaluation mode, its parameters without gradients.

    Raises:
        ConfigError: No published size is called that.
    """
    return random_model(model_config(name), seed=seed, dtype=dtype, device=device)


def _spread_weights(model: DiT | UViT) -> None:
    """Give every linear layer a Xavier weight, also those that start at zero, and open the gates."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    if isinstance(model, DiT):
        nn.init.normal_(model.y_embedder.embedding_table.weight)
        for module in (*model.blocks, model.final_layer):
            nn.init.normal_(module.adaLN_modulation[1].bias, std=0.2)
