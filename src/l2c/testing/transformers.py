"""diffusers' transformers in sizes that a test can afford, with random weights, and inputs that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2c.testing import inputs
from l2c.testing.inputs import TEXT, WIDTH, WORDS

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


@dataclass(frozen=True)
class TinyTransformer:
    """A small model of an architecture, and how to call it.

    Attributes:
        class_name: Name of its class in diffusers.
        config: Its configuration.
        shape: Shape of its input for one image, without the batch.
        conditions: Function of the batch size that returns everything but `hidden_states` and `timestep`.
    """

    class_name: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    conditions: Callable[[int], dict[str, Any]]

    def build(self, seed: int = 0) -> nn.Module:
        """The model with weights from `seed`, frozen."""
        import diffusers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = getattr(diffusers, self.class_name)(**self.config)
        return model.eval().requires_grad_(False)

    def call(self, model: nn.Module, x: Tensor, timestep: float) -> Tensor:
        """What the model predicts for samples (B, ...) at a timestep."""
        given = self.conditions(x.shape[0])
        output = model(
            hidden_states=x, timestep=torch.full(x.shape[:1], timestep), return_dict=False, **given
        )[0]
        return torch.stack(output) if isinstance(output, list) else output


TINY: dict[str, TinyTransformer] = {
    tiny.class_name: tiny
    for tiny in (
        TinyTransformer(
            "DiTTransformer2DModel",
            {**_HEADS, "in_channels": 3, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 10},
            (3, 8, 8),
            lambda batch: {"class_labels": torch.ones(batch, dtype=torch.long)},
        ),
        TinyTransformer(
            "PixArtTransformer2DModel",
            {
                **_HEADS,
                "num_layers": 2,
                "sample_size": 8,
                "cross_attention_dim": WIDTH,
                "caption_channels": TEXT,
                "use_additional_conditions": False,
            },
            (4, 8, 8),
            lambda batch: {
                **inputs.text(batch),
                "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            },
        ),
        TinyTransformer(
            "SD3Transformer2DModel",
            {
                **_HEADS,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 3,
                "sample_size": 8,
                "joint_attention_dim": TEXT,
                "caption_projection_dim": WIDTH,
                "pooled_projection_dim": TEXT,
                "pos_embed_max_size": 8,
                "dual_attention_layers": (0,),
                "qk_norm": "rms_norm",
            },
            (4, 8, 8),
            inputs.pooled,
        ),
        TinyTransformer(
            "FluxTransformer2DModel",
            {
                **_HEADS,
                "in_channels": 4,
                "num_layers": 2,
                "num_single_layers": 2,
                "joint_attention_dim": TEXT,
                "pooled_projection_dim": TEXT,
                "guidance_embeds": True,
                "axes_dims_rope": (2, 2, 4),
            },
            (16, 4),
            inputs.flux,
        ),
        TinyTransformer(
            "ChromaTransformer2DModel",
            {
                **_HEADS,
                "in_channels": 4,
                "num_layers": 2,
                "num_single_layers": 2,
                "joint_attention_dim": TEXT,
                "axes_dims_rope": (2, 2, 4),
                "approximator_num_channels": 8,
                "approximator_hidden_dim": 16,
                "approximator_layers": 1,
            },
            (16, 4),
            inputs.chroma,
        ),
        TinyTransformer(
            "AuraFlowTransformer2DModel",
            {
                **_HEADS,
                "num_mmdit_layers": 1,
                "num_single_dit_layers": 2,
                "sample_size": 8,
                "joint_attention_dim": TEXT,
                "caption_projection_dim": WIDTH,
                "pos_embed_max_size": 16,
            },
            (4, 8, 8),
            inputs.text,
        ),
        TinyTransformer(
            "SanaTransformer2DModel",
            {
                **_HEADS,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 2,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 8,
                "cross_attention_dim": WIDTH,
                "caption_channels": TEXT,
                "sample_size": 8,
            },
            (4, 8, 8),
            inputs.text,
        ),
        TinyTransformer(
            "LuminaNextDiT2DModel",
            {
                "sample_size": 8,
                "hidden_size": WIDTH,
                "num_layers": 2,
                "num_attention_heads": 2,
                "num_kv_heads": 2,
                "multiple_of": 8,
                "cross_attention_dim": TEXT,
                "learn_sigma": False,
            },
            (4, 8, 8),
            inputs.lumina,
        ),
        TinyTransformer(
            "Lumina2Transformer2DModel",
            {
                "sample_size": 8,
                "in_channels": 4,
                "hidden_size": WIDTH,
                "num_layers": 2,
                "num_refiner_layers": 1,
                "num_attention_heads": 2,
                "num_kv_heads": 1,
                "multiple_of": 8,
                "axes_dim_rope": (4, 2, 2),
                "axes_lens": (16, 8, 8),
                "cap_feat_dim": TEXT,
            },
            (4, 8, 8),
            inputs.masked,
        ),
        TinyTransformer(
            "HunyuanDiT2DModel",
            {
                **_HEADS,
                "in_channels": 4,
                "patch_size": 2,
                "sample_size": 8,
                "hidden_size": WIDTH,
                "num_layers": 4,
                "learn_sigma": False,
                "cross_attention_dim": TEXT,
                "cross_attention_dim_t5": TEXT,
                "pooled_projection_dim": TEXT,
                "text_len": WORDS,
                "text_len_t5": WORDS,
            },
            (4, 8, 8),
            inputs.hunyuan_dit,
        ),
        TinyTransformer(
            "QwenImageTransformer2DModel",
            {
                **_HEADS,
                "in_channels": 16,
                "out_channels": 4,
                "num_layers": 2,
                "joint_attention_dim": TEXT,
                "axes_dims_rope": (2, 2, 4),
            },
            (16, 16),
            inputs.qwen,
        ),
        TinyTransformer(
            "WanTransformer3DModel",
            {
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": 4,
                "out_channels": 4,
                "text_dim": TEXT,
                "freq_dim": 8,
                "ffn_dim": 32,
                "num_layers": 2,
                "rope_max_seq_len": 16,
            },
            (4, 2, 8, 8),
            inputs.text,
        ),
        TinyTransformer(
            "HunyuanVideoTransformer3DModel",
            {
                **_HEADS,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 2,
                "num_single_layers": 2,
                "num_refiner_layers": 1,
                "text_embed_dim": TEXT,
                "pooled_projection_dim": TEXT,
                "rope_axes_dim": (2, 2, 4),
            },
            (4, 2, 8, 8),
            inputs.hunyuan_video,
        ),
        TinyTransformer(
            "LTXVideoTransformer3DModel",
            {
                **_HEADS,
                "in_channels": 4,
                "out_channels": 4,
                "cross_attention_dim": WIDTH,
                "num_layers": 2,
                "caption_channels": TEXT,
            },
            (32, 4),
            inputs.ltx,
        ),
        TinyTransformer(
            "MochiTransformer3DModel",
            {
                **_HEADS,
                "num_layers": 2,
                "pooled_projection_dim": TEXT,
                "in_channels": 4,
                "text_embed_dim": TEXT,
                "time_embed_dim": 8,
                "max_sequence_length": WORDS,
            },
            (4, 2, 8, 8),
            inputs.masked,
        ),
        TinyTransformer(
            "CogVideoXTransformer3DModel",
            {
                **_HEADS,
                "in_channels": 4,
                "out_channels": 4,
                "time_embed_dim": 8,
                "text_embed_dim": TEXT,
                "num_layers": 2,
                "sample_width": 8,
                "sample_height": 8,
                "sample_frames": 5,
                "max_text_seq_length": WORDS,
            },
            (2, 4, 8, 8),
            inputs.text,
        ),
        TinyTransformer(
            "StableAudioDiTModel",
            {
                **_HEADS,
                "sample_size": 8,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 2,
                "num_key_value_attention_heads": 1,
                "cross_attention_dim": TEXT,
                "time_proj_dim": 8,
                "global_states_input_dim": TEXT,
                "cross_attention_input_dim": TEXT,
            },
            (4, 8),
            inputs.stable_audio,
        ),
    )
}
"""One small model per class in the table of adapters (`l2c.layers.diffusers.TRANSFORMERS`), and DiT's."""
