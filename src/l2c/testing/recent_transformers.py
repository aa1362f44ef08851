"""Transformers that later releases of diffusers have, in small."""

from __future__ import annotations

from l2c.testing import inputs
from l2c.testing.inputs import TEXT
from l2c.testing.tiny_transformer import TinyTransformer

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
_LIKE_FLUX = {
    **_HEADS,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (2, 2, 4),
}
_LIKE_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT,
    "freq_dim": 8,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 16,
}

RECENT = (
    TinyTransformer(
        "Flux2Transformer2DModel",
        {**_LIKE_FLUX, "axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": 8},
        (16, 4),
        inputs.flux2,
    ),
    TinyTransformer("BriaTransformer2DModel", _LIKE_FLUX, (16, 4), inputs.chroma),
    TinyTransformer("OvisImageTransformer2DModel", {**_LIKE_FLUX, "out_channels": 4}, (16, 4), inputs.chroma),
    TinyTransformer("LongCatImageTransformer2DModel", _LIKE_FLUX, (16, 4), inputs.chroma),
    TinyTransformer(
        "HunyuanImageTransformer2DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": TEXT,
            "rope_axes_dim": (4, 4),
        },
        (4, 8, 8),
        inputs.masked,
    ),
    TinyTransformer(
        "HunyuanVideo15Transformer3DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "text_embed_dim": TEXT,
            "text_embed_2_dim": TEXT,
            "image_embed_dim": TEXT,
            "rope_axes_dim": (2, 2, 4),
        },
        (4, 6, 8, 8),
        inputs.hunyuan_video15,
    ),
    TinyTransformer(
        "WanVACETransformer3DModel",
        {**_LIKE_WAN, "vace_layers": [0, 1], "vace_in_channels": 4},
        (4, 2, 8, 8),
        inputs.wan_vace,
    ),
    TinyTransformer("SkyReelsV2Transformer3DModel", _LIKE_WAN, (4, 2, 8, 8), inputs.text),
    TinyTransformer("ChronoEditTransformer3DModel", _LIKE_WAN, (4, 2, 8, 8), inputs.text),
    TinyTransformer(
        "SanaVideoTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": TEXT,
            "sample_size": 8,
            "rope_max_seq_len": 16,
        },
        (4, 2, 8, 8),
        inputs.text,
    ),
    TinyTransformer(
        "CosmosTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": TEXT,
            "adaln_lora_dim": 4,
            "max_size": (2, 8, 8),
            "concat_padding_mask": False,
            "extra_pos_embed_type": None,
        },
        (4, 2, 8, 8),
        inputs.text,
    ),
)
"""One small model each, as in `l2c.testing.TINY`, which has them, too."""
