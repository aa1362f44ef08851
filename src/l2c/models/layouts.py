"""From named tensors in a public layout to a model: sizes are read off the tensors."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from typing_extensions import TypedDict

from l2c.documents import Count, parse
from l2c.errors import CheckpointError, ConfigError, Told
from l2c.models.checkpoints import Tensors, name_some
from l2c.models.dit import DiT, DiTConfig
from l2c.models.sizes import SIZES, new_model
from l2c.models.uvit import NUM_EXTRA_TOKENS, UViT, UViTConfig


class Conventions(TypedDict, total=False):
    """Config fields that no tensor shows; files written by l2c carry them as text metadata."""

    num_heads: Count
    has_null_class: bool
    beta_schedule: str
    first_timestep: int
    prediction_type: str


CONVENTIONS = tuple(Conventions.__annotations__)

METADATA_KEY = "l2c.model"

_DEFAULT_HEAD_SIZE = 64
_IMAGENET_CLASSES = 1000


def model_from_tensors(
    tensors: Tensors,
    *,
    source: str,
    conventions: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device | str,
) -> DiT | UViT:
    """Make the model whose public layout the tensors have.

    Args:
        tensors: Weights by name.
        source: Where they come from, for messages.
        conventions: Values for fields in `CONVENTIONS` that are known; the others are taken from the
            published size with the same geometry, or from the usual values of the architecture.
        dtype: Of the model's weights.
        device: Where to put them.

    Returns:
        The model in evaluation mode, its parameters without gradients.

    Raises:
        CheckpointError: The layout is unknown, keys are missing or unexpected, or shapes contradict.
        ConfigError: `conventions` do not fit the sizes, such as a number of heads that does not divide the
            width.
    """
    config = _read_config(tensors, source, conventions)
    with torch.device("meta"), _WithoutRandomWeights():
        model = new_model(config)
    _check_tensors(model, tensors, source)
    converted = {
        name: tensor.to(device=device, dtype=dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(converted, assign=True)
    return model.eval().requires_grad_(False)


class _WithoutRandomWeights(TorchFunctionMode):
    """Skip random initialisation: pointless on the meta device, where it would import torch's compiler."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("uniform_", "normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def conventions_from_metadata(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """Read the fields of `CONVENTIONS` that a file's text metadata gives.

    Raises:
        CheckpointError: The metadata is not that of a model, or a value is of the wrong type.
    """
    if foreign := [key for key in metadata if key.startswith("l2c.") and key != METADATA_KEY]:
        raise CheckpointError(
            f"{source} is a file of kind {foreign[0]}, not a model; give the model's weights here"
        )
    what = f"{source} has unreadable metadata"
    return dict(
        parse(Conventions, metadata.get(METADATA_KEY, "{}"), what, CheckpointError, "save the model again")
    )


def metadata_of(model: DiT | UViT) -> dict[str, str]:
    """Text metadata that `conventions_from_metadata` reads back; one entry, so that files repeat."""
    fields = {name: getattr(model.config, name) for name in CONVENTIONS}
    return {METADATA_KEY: json.dumps({"family": type(model).__name__, **fields})}


def _read_config(tensors: Tensors, source: str, conventions: Mapping[str, Any]) -> DiTConfig | UViTConfig:
    config: DiTConfig | UViTConfig
    if "x_embedder.proj.weight" in tensors:
        config = _read_dit(tensors, source)
    elif "patch_embed.proj.weight" in tensors and any(name.startswith("in_blocks.") for name in tensors):
        config = _read_uvit(tensors, source)
    else:
        raise CheckpointError(
            f"{source} has neither the DiT layout (x_embedder.proj.weight, blocks.0...) nor the U-ViT layout "
            f"(patch_embed.proj.weight, in_blocks.0...); it holds {name_some(tensors)}"
        )
    num_classes = config.num_labels - conventions.get("has_null_class", config.has_null_class)
    with Told(ConfigError, f"{source}: {{said}}", ConfigError):
        return dataclasses.replace(config, **conventions, num_classes=num_classes)


def _read_dit(tensors: Tensors, source: str) -> DiTConfig:
    hidden_size, in_channels, patch_size, _ = _shape(tensors, "x_embedder.proj.weight", 4, source)
    num_tokens = _shape(tensors, "pos_embed", 3, source)[1]
    num_labels = _shape(tensors, "y_embedder.embedding_table.weight", 2, source)[0]
    out_size = _shape(tensors, "final_layer.linear.weight", 2, source)[0]
    inner_size = _shape(tensors, "blocks.0.mlp.fc1.weight", 2, source)[0]
    expected = patch_size**2 * in_channels
    if out_size not in (expected, 2 * expected):
        raise CheckpointError(
            f"{source}: final_layer.linear.weight has {out_size} rows; expected {expected} for the "
            f"prediction alone or {2 * expected} with learned variances"
        )
    geometry: dict[str, Any] = {
        "in_channels": in_channels,
        "image_size": _side(num_tokens, source) * patch_size,
        "patch_size": patch_size,
        "hidden_size": hidden_size,
        "depth": _count(tensors, "blocks"),
    }
    return DiTConfig(
        **geometry,
        **_labels(num_labels),
        **_inner_ratio(inner_size, hidden_size),
        num_heads=_usual_heads(hidden_size, source),
        learn_sigma=out_size == 2 * expected,
    )


def _read_uvit(tensors: Tensors, source: str) -> UViTConfig:
    hidden_size, in_channels, patch_size, _ = _shape(tensors, "patch_embed.proj.weight", 4, source)
    if "label_emb.weight" not in tensors:
        raise CheckpointError(
            f"{source} is a U-ViT without label_emb.weight; only class-conditional ones are supported"
        )
    num_tokens = _shape(tensors, "pos_embed", 3, source)[1]
    num_labels = _shape(tensors, "label_emb.weight", 2, source)[0]
    inner_size = _shape(tensors, "mid_block.mlp.fc1.weight", 2, source)[0]
    geometry: dict[str, Any] = {
        "in_channels": in_channels,
        "image_size": _side(num_tokens - NUM_EXTRA_TOKENS, source) * patch_size,
        "patch_size": patch_size,
        "hidden_size": hidden_size,
        "depth": 2 * _count(tensors, "in_blocks"),
    }
    published = [
        size
        for size in SIZES.values()
        if isinstance(size, UViTConfig)
        and all(getattr(size, name) == value for name, value in geometry.items())
    ]
    latent = in_channels == 4
    usual = published[0] if published else None
    return UViTConfig(
        **geometry,
        **_labels(num_labels),
        **_inner_ratio(inner_size, hidden_size),
        num_heads=_usual_heads(hidden_size, source),
        qkv_bias="mid_block.attn.qkv.bias" in tensors,
        time_embed_mlp="time_embed.0.weight" in tensors,
        final_conv="final_layer.weight" in tensors,
        beta_schedule=usual.beta_schedule if usual else "scaled_linear" if latent else "linear",
        first_timestep=usual.first_timestep if usual else int(latent),
    )


def _shape(tensors: Tensors, name: str, num_dims: int, source: str) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"{source} lacks {name}; the file is incomplete, download or save it again")
    shape = tuple(tensors[name].shape)
    if len(shape) != num_dims or 0 in shape:
        raise CheckpointError(
            f"{source}: {name} has shape {shape}; expected {num_dims} dimensions, none empty"
        )
    return shape


def _count(tensors: Tensors, prefix: str) -> int:
    """Number of blocks, from the largest index, so that a gap shows as missing keys later."""
    indices = {match[1] for name in tensors if (match := re.match(rf"{prefix}\.(\d{{1,6}})\.", name))}
    return min(max(map(int, indices), default=-1) + 1, 2 * len(tensors))


def _side(num_patches: int, source: str) -> int:
    side = math.isqrt(max(num_patches, 0))
    if side == 0 or side**2 != num_patches:
        raise CheckpointError(
            f"{source}: pos_embed covers {num_patches} patches; expected those of a square image"
        )
    return side


def _labels(num_rows: int) -> dict[str, Any]:
    # A thousand rows are the classes of ImageNet and nothing else; otherwise the last row is the null class.
    has_null_class = num_rows != _IMAGENET_CLASSES
    return {"num_classes": num_rows - has_null_class, "has_null_class": has_null_class}


def _inner_ratio(inner_size: int, hidden_size: int) -> dict[str, Any]:
    return {"mlp_ratio": inner_size / hidden_size}


def _usual_heads(hidden_size: int, source: str) -> int:
    for size in SIZES.values():
        if size.hidden_size == hidden_size:
            return size.num_heads
    return max(1, hidden_size // _DEFAULT_HEAD_SIZE)


def _check_tensors(model: DiT | UViT, tensors: Tensors, source: str) -> None:
    """Compare names and shapes with what a model of these sizes holds."""
    expected = model.state_dict()
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    kind = (
        f"a {type(model).__name__} of width {model.config.hidden_size} with {model.config.num_blocks} blocks"
    )
    problems = [
        *([f"lacks {name_some(missing)}; download or save it again"] if missing else ()),
        *([f"also holds {name_some(unexpected)}; that is not supported"] if unexpected else ()),
        *(
            f"{name} has shape {tuple(tensors[name].shape)}; expected {tuple(wanted.shape)}"
            for name, wanted in expected.items()
            if name in tensors and tensors[name].shape != wanted.shape
        ),
    ]
    if problems:
        raise CheckpointError(f"{source} looks like {kind} but {problems[0]}")
