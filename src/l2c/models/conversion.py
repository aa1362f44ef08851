"""DiT to and from `diffusers.DiTTransformer2DModel`.

Both hold the same network, with three differences that matter for a checkpoint in the public layout:

- diffusers spaces the timestep frequencies by `half - 1` where the public code has `half`; outputs differ by
  some 0.04 until each block's `time_proj.downscale_freq_shift` is 0;
- it computes its own position table and does not save it; a table stored in half precision differs by some
  0.0005;
- every block carries a copy of the timestep and label embedders, and the output layer reads the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from l2c.documents import parse
from l2c.errors import CheckpointError, ConfigError
from l2c.models.checkpoints import Tensors
from l2c.models.dit import NORM_EPS, DiT
from l2c.models.embeddings import sincos_positions
from l2c.models.layouts import model_from_tensors

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

_Size = Annotated[int, Field(ge=1, le=2**16)]


class _Sizes(TypedDict):
    num_attention_heads: _Size
    attention_head_dim: _Size
    sample_size: Annotated[int, Field(ge=1, le=1024)]
    patch_size: _Size
    beta_schedule: NotRequired[str]
    first_timestep: NotRequired[int]
    prediction_type: NotRequired[str]


DIFFUSERS_CLASS = "DiTTransformer2DModel"

_POSITIONS = "pos_embed.pos_embed"
_OUTER = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_IN_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_COPIED_IN_BLOCK = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_BLOCK_KEY = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")


_TRAINED = {"beta_schedule": "linear", "first_timestep": 0, "prediction_type": "epsilon"}
"""Conventions of training that diffusers' configuration has no field for, and what is meant without one."""


def to_diffusers(model: DiT) -> DiTTransformer2DModel:
    """Make the diffusers model with the same weights and the same outputs.

    Its position table is saved with it, so `load_model` reads back from its folder what was saved. A plain
    `from_pretrained` ignores the table and the frequencies' spacing: pass the result to
    `match_public_embeddings`. Its configuration says how the model was trained where that is not on linear betas to
    predict noise.

    Args:
        model: A DiT; left as it is, no memory is shared.

    Returns:
        The diffusers model in evaluation mode, in the same dtype and on the same device.

    Raises:
        ConfigError: `model` is not a DiT, or diffusers cannot express it (MLP ratio other than 4, no null
            class).
    """
    from diffusers import DiTTransformer2DModel

    if not isinstance(model, DiT):
        raise ConfigError(f"only a DiT can become a {DIFFUSERS_CLASS}, got {type(model).__name__}")
    config = model.config
    if config.mlp_hidden_size != 4 * config.hidden_size or not config.has_null_class:
        raise ConfigError(
            f"{DIFFUSERS_CLASS} has an MLP ratio of 4 and a null class, got mlp_ratio {config.mlp_ratio} and "
            f"has_null_class {config.has_null_class}"
        )
    with torch.device("meta"):
        transformer = DiTTransformer2DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.hidden_size // config.num_heads,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.depth,
            sample_size=config.image_size,
            patch_size=config.patch_size,
            num_embeds_ada_norm=config.num_classes,
            norm_eps=NORM_EPS,
        )
    match_public_embeddings(transformer, positions=model.pos_embed)
    trained = {name: getattr(config, name) for name in _TRAINED if getattr(config, name) != _TRAINED[name]}
    transformer.register_to_config(**trained)
    tensors = _diffusers_tensors(model.state_dict(), config.depth)
    transformer.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return transformer.eval().requires_grad_(False)


def from_diffusers(transformer: DiTTransformer2DModel) -> DiT:
    """Make the DiT with the weights of a diffusers model, in the public layout.

    The weights are taken to be trained with the public timestep frequencies, as those of the published
    pipelines are, whatever spacing `transformer` now uses.

    Args:
        transformer: The diffusers model; left as it is, no memory is shared.

    Returns:
        The model in evaluation mode, its parameters without gradients, in the same dtype and on the same
        device.

    Raises:
        ConfigError: `transformer` is not a `DiTTransformer2DModel`.
        CheckpointError: Its blocks disagree on the timestep or label embedder.
    """
    if type(transformer).__name__ != DIFFUSERS_CLASS:
        raise ConfigError(f"expected a {DIFFUSERS_CLASS}, got {type(transformer).__name__}")
    tensors = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    tensors.setdefault(_POSITIONS, transformer.pos_embed.pos_embed.clone())
    weight = transformer.pos_embed.proj.weight
    model = model_from_diffusers_tensors(
        tensors, transformer.config, source=DIFFUSERS_CLASS, dtype=weight.dtype, device=weight.device
    )
    return model


def match_public_embeddings(
    transformer: DiTTransformer2DModel, *, positions: torch.Tensor | None = None
) -> DiTTransformer2DModel:
    """Make a diffusers DiT embed timesteps, and if given positions, as the public checkpoints were trained.

    Args:
        transformer: Changed in place.
        positions: Table of shape (1, T, D) to use instead of diffusers' own, and to save with the model.

    Returns:
        `transformer`.
    """
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    if positions is not None:
        transformer.pos_embed.register_buffer("pos_embed", positions.clone(), persistent=True)
    return transformer


def model_from_diffusers_tensors(
    tensors: Tensors,
    config: Mapping[str, Any],
    *,
    source: str,
    dtype: torch.dtype,
    device: torch.device | str,
    num_heads: int | None = None,
) -> DiT:
    """Make a DiT from a diffusers state dict and its `config.json`.

    Args:
        tensors: Weights by their names in diffusers.
        config: The diffusers configuration.
        source: Where they come from, for messages.
        dtype: Of the model's weights.
        device: Where to put them.
        num_heads: Overrides the configuration.

    Returns:
        The model in evaluation mode, its parameters without gradients.

    Raises:
        CheckpointError: The configuration lacks a size, or the tensors are not those of a DiT.
    """
    found = parse(
        _Sizes, dict(config), f"the configuration of {source}", CheckpointError, "download it again"
    )
    heads, head_size = found["num_attention_heads"], found["attention_head_dim"]
    public = _public_tensors(tensors, source)
    if "pos_embed" not in public:
        public["pos_embed"] = sincos_positions(heads * head_size, found["sample_size"] // found["patch_size"])
    conventions: dict[str, Any] = {name: value for name, value in found.items() if name in _TRAINED}
    conventions["num_heads"] = num_heads or heads
    model = model_from_tensors(public, source=source, conventions=conventions, dtype=dtype, device=device)
    assert isinstance(model, DiT)
    return model


def _diffusers_tensors(public: Tensors, depth: int) -> Tensors:
    """Rename the tensors of a DiT to their names in diffusers, splitting qkv and copying the embedders."""
    tensors = {_POSITIONS: public["pos_embed"]}

    def rename(theirs: str, ours: str) -> None:
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in public:
                tensors[f"{theirs}.{kind}"] = public[f"{ours}.{kind}"]

    for theirs, ours in _OUTER.items():
        rename(theirs, ours)
    for index in range(depth):
        for theirs, ours in _IN_BLOCK.items():
            rename(f"transformer_blocks.{index}.{theirs}", f"blocks.{index}.{ours}")
        for theirs, ours in _COPIED_IN_BLOCK.items():
            rename(f"transformer_blocks.{index}.{theirs}", ours)
        for kind in ("weight", "bias"):
            parts = public[f"blocks.{index}.attn.qkv.{kind}"].chunk(3)
            for theirs, part in zip(_QKV, parts, strict=True):
                tensors[f"transformer_blocks.{index}.{theirs}.{kind}"] = part
    return tensors


def _public_tensors(tensors: Tensors, source: str) -> Tensors:
    """Rename tensors of diffusers to the public layout; unknown names stay and are reported later."""
    public: Tensors = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        block = _BLOCK_KEY.fullmatch(name)
        if name == _POSITIONS:
            public["pos_embed"] = tensor
        elif module in _OUTER:
            public[f"{_OUTER[module]}.{kind}"] = tensor
        elif block is None:
            public[name] = tensor
        elif block[2] in _IN_BLOCK:
            public[f"blocks.{block[1]}.{_IN_BLOCK[block[2]]}.{kind}"] = tensor
        elif block[2] in _COPIED_IN_BLOCK:
            ours = f"{_COPIED_IN_BLOCK[block[2]]}.{kind}"
            if not torch.equal(public.setdefault(ours, tensor), tensor):
                raise CheckpointError(
                    f"{source}: {name} differs from the same embedder in another block; a DiT has only one"
                )
        elif block[2] == _QKV[0]:
            parts = [tensors.get(f"transformer_blocks.{block[1]}.{part}.{kind}") for part in _QKV]
            present = [part for part in parts if part is not None]
            if len(present) < len(_QKV):
                raise CheckpointError(f"{source} lacks to_k or to_v beside {name}; download it again")
            public[f"blocks.{block[1]}.attn.qkv.{kind}"] = torch.cat(present)
        elif block[2] not in _QKV:
            public[name] = tensor
    return public
