"""The diffusion transformer (DiT) in the layout of its public checkpoints, free of any cache.

Source:
    Peebles and Xie, "Scalable Diffusion Models with Transformers" (arXiv 2212.09748).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from l2c.models.config import ModelConfig
from l2c.models.embeddings import sincos_positions, timestep_features, unpatchify

NUM_FREQUENCIES = 256
NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class DiTConfig(ModelConfig):
    """Size and training conventions of a `DiT`; see `ModelConfig` for the shared fields.

    Attributes:
        learn_sigma: Whether the network also predicts variances, in as many further channels.
    """

    learn_sigma: bool = False

    @property
    def out_channels(self) -> int:
        """Channels of the network's output: the prediction, then the variances if they are learned."""
        return 2 * self.in_channels if self.learn_sigma else self.in_channels

    @property
    def num_tokens(self) -> int:
        """Tokens per image that the blocks see."""
        return self.num_patches

    @property
    def num_blocks(self) -> int:
        """Transformer blocks, that is `depth`."""
        return self.depth


def modulated_norm(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Normalise tokens without learned parameters, then scale and shift them.

    Args:
        x: Tokens of shape (B, T, D).
        shift: Shape (B, 1, D).
        scale: Shape (B, 1, D); 0 leaves the normalised token as it is.

    Returns:
        Tokens of shape (B, T, D).
    """
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class Attention(nn.Module):
    """Self-attention branch: norm, modulation, attention, projection. The gate is applied outside."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Compute the branch's output for the residual stream `x` (B, T, D), before its gate."""
        return self.attend(modulated_norm(x, shift, scale))

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
    """MLP branch: norm, modulation, two linear layers with a tanh GELU. The gate is applied outside."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, hidden_size)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Compute the branch's output for the residual stream `x` (B, T, D), before its gate."""
        return self.expand(modulated_norm(x, shift, scale))

    def expand(self, h: torch.Tensor) -> torch.Tensor:
        """The branch after its norm: tokens (B, T, D) -> (B, T, D)."""
        return self.fc2(self.widen(h))  # type: ignore[no-any-return]

    def widen(self, h: torch.Tensor) -> torch.Tensor:
        """The branch after its norm and before its last map: tokens (B, T, D) -> (B, T, inner)."""
        return F.gelu(self.fc1(h), approximate="tanh")


class DiTBlock(nn.Module):
    """One transformer block: two residual branches, each gated by the timestep and the class.

    The submodules `attn` and `mlp` hold everything a branch costs, norm and modulation included, so whoever
    replaces one's forward saves all of it; gates stay outside and are always those of the current timestep.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn = Attention(config.hidden_size, config.num_heads)
        self.mlp = Mlp(config.hidden_size, config.mlp_hidden_size)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(config.hidden_size, 6 * config.hidden_size)
        )

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Add both branches to the residual stream: tokens (B, T, D), conditioning (B, D) -> (B, T, D)."""
        return self.add_branches(x, self.modulation(c))

    def modulation(self, c: torch.Tensor) -> torch.Tensor:
        """Map conditioning (B, D) to both branches' shift, scale and gate, side by side: (B, 1, 6 * D).

        It depends on the timestep and the label alone, so a fixed run can compute it ahead.
        """
        return self.adaLN_modulation(c).unsqueeze(1)  # type: ignore[no-any-return]

    def add_branches(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Add both branches to tokens (B, T, D), given what `modulation` returned."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        x = torch.addcmul(x, gate_a, self.attn(x, shift_a, scale_a))
        return torch.addcmul(x, gate_m, self.mlp(x, shift_m, scale_m))


class FinalLayer(nn.Module):
    """Modulated norm and projection of tokens to patches."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(config.hidden_size, 2 * config.hidden_size)
        )

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Map tokens (B, T, D) and conditioning (B, D) to patches (B, T, patch ** 2 * channels)."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulated_norm(x, shift, scale))  # type: ignore[no-any-return]


class PatchEmbedder(nn.Module):
    """Linear map of each patch to a token."""

    def __init__(self, in_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to tokens (B, T, D)."""
        # Contiguous, because every later sum keeps the layout of the residual stream: strided ones are slow.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()  # type: ignore[no-any-return]


class TimestepEmbedder(nn.Module):
    """Two-layer map of timestep features to the conditioning width."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(NUM_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Map timesteps (B,) to (B, D), the features computed in float32 and then taken to `dtype`."""
        return self.mlp(timestep_features(t, NUM_FREQUENCIES).to(dtype))  # type: ignore[no-any-return]


class LabelEmbedder(nn.Module):
    """One learned vector per class, the null class last."""

    def __init__(self, num_labels: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_labels, hidden_size)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Map labels (B,) to (B, D)."""
        return self.embedding_table(y)  # type: ignore[no-any-return]


class DiT(nn.Module):
    """Class-conditional diffusion transformer.

    A new model has the adaLN-zero initialisation of the paper: every gate and the output are zero.

    >>> model = DiT(DiTConfig(in_channels=3, image_size=8, patch_size=2, hidden_size=32, depth=2,
    ...                       num_heads=2, num_classes=10))
    >>> model(torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 3, 9, 10])).shape
    torch.Size([4, 3, 8, 8])
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbedder(config.in_channels, config.patch_size, config.hidden_size)
        self.t_embedder = TimestepEmbedder(config.hidden_size)
        self.y_embedder = LabelEmbedder(config.num_labels, config.hidden_size)
        self.pos_embed: torch.Tensor
        positions = sincos_positions(config.hidden_size, config.grid_size)
        self.register_buffer("pos_embed", positions.to(self.x_embedder.proj.weight.device))
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise for training: Xavier weights, zero biases, zero modulations and output.

        Source:
            arXiv 2212.09748, section 3.2 (adaLN-Zero) and its public code.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.config.hidden_size, -1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for module in self.t_embedder.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for module in (*self.blocks, self.final_layer):
            nn.init.zeros_(module.adaLN_modulation[1].weight)
            nn.init.zeros_(module.adaLN_modulation[1].bias)
        nn.init.zeros_(self.final_layer.linear.weight)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to tokens with positions (B, T, D), in the weights' dtype."""
        return self.x_embedder(x.to(self.pos_embed.dtype)) + self.pos_embed  # type: ignore[no-any-return]

    def condition(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Map timesteps (B,) and labels (B,) to conditioning (B, D)."""
        return self.t_embedder(t, self.pos_embed.dtype) + self.y_embedder(y)  # type: ignore[no-any-return]

    def project(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Map the last block's tokens (B, T, D) and conditioning (B, D) to the output image."""
        return self.unpatchify(self.final_layer(x, c))

    def unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        """Lay patches (B, T, patch ** 2 * out_channels) out as images (B, out_channels, H, W)."""
        return unpatchify(patches, self.config.out_channels, self.config.patch_size)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Predict the noise in a batch of noisy images.

        Args:
            x: Noisy images or latents of shape (B, in_channels, image_size, image_size).
            t: Timesteps of shape (B,), integer or fractional, from `config.first_timestep` upwards.
            y: Class labels of shape (B,), int64; `config.null_class` means no class.

        Returns:
            Prediction of shape (B, out_channels, image_size, image_size), in the weights' dtype.
        """
        c = self.condition(t, y)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, c)
        return self.project(x, c)
