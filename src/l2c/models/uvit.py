"""U-ViT in the layout of its public checkpoints, free of any cache. Class-conditional only.

Everything is a token: the label, the timestep and the image patches share one sequence. Long skips join
block k of the first half to its mirror image in the second.

Source:
    Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models" (arXiv 2209.12152).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from l2c.documents import check_value
from l2c.models.config import ModelConfig
from l2c.models.embeddings import timestep_features, unpatchify

NUM_EXTRA_TOKENS = 2  # label, timestep


@dataclass(frozen=True, kw_only=True)
class UViTConfig(ModelConfig):
    """Size and training conventions of a `UViT`; see `ModelConfig` for the shared fields.

    `depth` counts the blocks of both halves but not the middle one, as the paper does: `depth + 1` in all.

    Attributes:
        qkv_bias: Whether the attention's input projection has a bias.
        time_embed_mlp: Whether a two-layer MLP follows the timestep features.
        final_conv: Whether a 3x3 convolution follows the patches' projection.

    Raises:
        ConfigError: Also when `depth` is odd.
    """

    qkv_bias: bool = False
    time_embed_mlp: bool = False
    final_conv: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_value("depth, which counts two equal halves,", self.depth, Annotated[int, Field(multiple_of=2)])

    @property
    def out_channels(self) -> int:
        """Channels of the network's output."""
        return self.in_channels

    @property
    def num_tokens(self) -> int:
        """Tokens per image that the blocks see: label, timestep and patches."""
        return NUM_EXTRA_TOKENS + self.num_patches

    @property
    def num_blocks(self) -> int:
        """Transformer blocks, the middle one included."""
        return self.depth + 1


class Attention(nn.Module):
    """Self-attention branch: the block's norm, attention, projection."""

    def __init__(self, hidden_size: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        """Compute the branch's output for the residual stream `x` (B, T, D)."""
        return self.attend(norm(x))

    def attend(self, h: torch.Tensor) -> torch.Tensor:
        """The branch after its norm: tokens (B, T, D) -> (B, T, D)."""
        return self.proj(self.mix(h))  # type: ignore[no-any-return]

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        """The branch after its norm and before its projection: tokens (B, T, D) -> (B, T, D)."""
        batch, num_tokens, hidden_size = h.shape
        qkv = self.qkv(h).reshape(batch, num_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, heads, T, head_dim) each
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(batch, num_tokens, hidden_size)


class Mlp(nn.Module):
    """MLP branch: the block's norm, two linear layers with an exact GELU."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, hidden_size)

    def forward(self, x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        """Compute the branch's output for the residual stream `x` (B, T, D)."""
        return self.expand(norm(x))

    def expand(self, h: torch.Tensor) -> torch.Tensor:
        """The branch after its norm: tokens (B, T, D) -> (B, T, D)."""
        return self.fc2(self.widen(h))  # type: ignore[no-any-return]

    def widen(self, h: torch.Tensor) -> torch.Tensor:
        """The branch after its norm and before its last map: tokens (B, T, D) -> (B, T, inner)."""
        return F.gelu(self.fc1(h))


class UViTBlock(nn.Module):
    """One transformer block; in the second half it first merges the long skip into the stream.

    The norms belong to the block in the public key layout, but each runs inside the branch it serves, so
    whoever replaces a branch's forward saves its norm too. `skip_linear` is no branch: the stream itself
    passes through it.
    """

    def __init__(self, config: UViTConfig, *, skip: bool = False) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = Attention(hidden_size, config.num_heads, qkv_bias=config.qkv_bias)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = Mlp(hidden_size, config.mlp_hidden_size)
        self.skip_linear = nn.Linear(2 * hidden_size, hidden_size) if skip else None

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Merge the long skip, if this block has one, and add both branches.

        Args:
            x: Tokens of shape (B, T, D).
            skip: Output of the mirror-image block, same shape; only for blocks with a `skip_linear`.

        Returns:
            Tokens of shape (B, T, D).
        """
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(x, self.norm1)
        x = x + self.mlp(x, self.norm2)
        return x


class PatchEmbedder(nn.Module):
    """Linear map of each patch to a token."""

    def __init__(self, in_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to tokens (B, T, D)."""
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class UViT(nn.Module):
    """Class-conditional U-ViT.

    >>> model = UViT(UViTConfig(in_channels=3, image_size=8, patch_size=2, hidden_size=32, depth=2,
    ...                         num_heads=2, num_classes=10))
    >>> model(torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 3, 9, 10])).shape
    torch.Size([4, 3, 8, 8])
    """

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        hidden_size, half = config.hidden_size, config.depth // 2
        self.patch_embed = PatchEmbedder(config.in_channels, config.patch_size, hidden_size)
        if config.time_embed_mlp:
            self.time_embed: nn.Module = nn.Sequential(
                nn.Linear(hidden_size, 4 * hidden_size), nn.SiLU(), nn.Linear(4 * hidden_size, hidden_size)
            )
        else:
            self.time_embed = nn.Identity()
        self.label_emb = nn.Embedding(config.num_labels, hidden_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, hidden_size))
        self.in_blocks = nn.ModuleList(UViTBlock(config) for _ in range(half))
        self.mid_block = UViTBlock(config)
        self.out_blocks = nn.ModuleList(UViTBlock(config, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(hidden_size)
        self.decoder_pred = nn.Linear(hidden_size, config.patch_size**2 * config.in_channels)
        if config.final_conv:
            self.final_layer: nn.Module = nn.Conv2d(config.in_channels, config.in_channels, 3, padding=1)
        else:
            self.final_layer = nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise for training: truncated normal weights of deviation 0.02, zero biases.

        Source:
            arXiv 2209.12152 and its public code.
        """
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W), timesteps (B,) and labels (B,) to tokens with positions (B, T, D)."""
        return self.embed_patches(x, torch.stack([self.label_emb(y), self.embed_time(t)], dim=1))

    def embed_time(self, t: torch.Tensor) -> torch.Tensor:
        """Map timesteps (B,) to their tokens (B, D)."""
        features = timestep_features(t, self.config.hidden_size)
        return self.time_embed(features.to(self.pos_embed.dtype))  # type: ignore[no-any-return]

    def embed_patches(self, x: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to tokens after the label and timestep tokens (B, 2, D): (B, T, D)."""
        patches = self.patch_embed(x.to(self.pos_embed.dtype))
        return torch.cat([extra, patches], dim=1) + self.pos_embed

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Map the last block's tokens (B, T, D) to the output image."""
        return self.unpatchify(self.decoder_pred(self.norm(x)))

    def unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        """Lay patches (B, T, patch ** 2 * channels) out as images (B, channels, H, W), without the extra tokens."""
        patches = patches[:, NUM_EXTRA_TOKENS:]
        image = unpatchify(patches, self.config.in_channels, self.config.patch_size)
        return self.final_layer(image)  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Predict the noise in a batch of noisy images.

        Args:
            x: Noisy images or latents of shape (B, in_channels, image_size, image_size).
            t: Timesteps of shape (B,), integer or fractional, from `config.first_timestep` upwards.
            y: Class labels of shape (B,), int64; `config.null_class` means no class.

        Returns:
            Prediction of shape (B, in_channels, image_size, image_size), in the weights' dtype.
        """
        x = self.embed(x, t, y)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        return self.project(x)
