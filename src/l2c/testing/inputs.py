"""What tiny transformers are called with besides samples and timesteps."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

WIDTH, TEXT, WORDS = 16, 16, 5


def random(*shape: int) -> Tensor:
    """Numbers of a shape, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def text(batch: int) -> dict[str, Any]:
    """Text embeddings."""
    return {"encoder_hidden_states": random(1, WORDS, TEXT).repeat(batch, 1, 1)}


def masked(batch: int) -> dict[str, Any]:
    """Text embeddings with a mask."""
    return {**text(batch), "encoder_attention_mask": torch.ones(batch, WORDS, dtype=torch.bool)}


def pooled(batch: int) -> dict[str, Any]:
    """Text embeddings with pooled ones."""
    return {**text(batch), "pooled_projections": random(1, TEXT).repeat(batch, 1)}


def cogview4(batch: int) -> dict[str, Any]:
    """Those of CogView4."""
    sizes = {"original_size": 64.0, "target_size": 64.0, "crop_coords": 0.0}
    return {**text(batch), **{name: torch.full((batch, 2), size) for name, size in sizes.items()}}


def flux(batch: int) -> dict[str, Any]:
    """Those of FLUX."""
    return {
        **pooled(batch),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(WORDS, 3),
        "guidance": torch.ones(batch),
    }


def chroma(batch: int) -> dict[str, Any]:
    """Those of Chroma."""
    return {**text(batch), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(WORDS, 3)}


def lumina(batch: int) -> dict[str, Any]:
    """Those of Lumina Next."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return {
        **text(batch),
        "encoder_mask": torch.ones(batch, WORDS),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 384, 384),
        "cross_attention_kwargs": {},
    }


def hunyuan_dit(batch: int) -> dict[str, Any]:
    """Those of HunyuanDiT."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    grid = get_2d_rotary_pos_embed(8, ((0, 0), (4, 4)), (4, 4), output_type="pt")
    return {
        **text(batch),
        "text_embedding_mask": torch.ones(batch, WORDS),
        "encoder_hidden_states_t5": random(1, WORDS, TEXT).repeat(batch, 1, 1),
        "text_embedding_mask_t5": torch.ones(batch, WORDS),
        "image_meta_size": torch.full((batch, 6), 64.0),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": grid,
    }


def qwen(batch: int) -> dict[str, Any]:
    """Those of Qwen-Image."""
    release = tuple(map(int, version("diffusers").split(".")[:2]))
    lengths = (
        {"txt_seq_lens": [WORDS] * batch} if release < (0, 37) else {}
    )  # later ones take them from the mask
    return {
        **text(batch),
        "encoder_hidden_states_mask": torch.ones(batch, WORDS, dtype=torch.long),
        "img_shapes": [[(1, 4, 4)]] * batch,
        **lengths,
    }


def hunyuan_video(batch: int) -> dict[str, Any]:
    """Those of HunyuanVideo."""
    return {**pooled(batch), **masked(batch), "guidance": torch.full((batch,), 6000.0)}


def ltx(batch: int) -> dict[str, Any]:
    """Those of LTX-Video."""
    return {**masked(batch), "num_frames": 2, "height": 4, "width": 4}


def flux2(batch: int) -> dict[str, Any]:
    """Those of FLUX.2, whose positions have four axes."""
    ids = {"img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(WORDS, 4)}
    return {**text(batch), **ids, "guidance": torch.ones(batch)}


def hunyuan_video15(batch: int) -> dict[str, Any]:
    """Those of HunyuanVideo 1.5: two text encoders, and an image that is not there."""
    return {
        **masked(batch),
        "encoder_hidden_states_2": random(1, 1, TEXT).repeat(batch, 1, 1),
        "encoder_attention_mask_2": torch.ones(batch, 1, dtype=torch.bool),
        "image_embeds": torch.zeros(batch, 1, TEXT),
    }


def wan_vace(batch: int) -> dict[str, Any]:
    """Those of Wan VACE, with latents to control by."""
    return {**text(batch), "control_hidden_states": random(1, 4, 2, 8, 8).repeat(batch, 1, 1, 1, 1)}


def stable_audio(batch: int) -> dict[str, Any]:
    """Those of Stable Audio."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    return {
        **text(batch),
        "global_hidden_states": random(1, 1, TEXT).repeat(batch, 1, 1),
        "rotary_embedding": get_1d_rotary_pos_embed(4, 9, use_real=True, repeat_interleave_real=False),
    }


def hidream(batch: int) -> dict[str, Any]:
    """Those of HiDream-I1: hidden states of every chosen layer of a language model, and those of a T5."""
    return {
        "encoder_hidden_states_t5": random(1, WORDS, TEXT).repeat(batch, 1, 1),
        "encoder_hidden_states_llama3": random(4, 1, WORDS, TEXT).repeat(1, batch, 1, 1),
        "pooled_embeds": random(1, TEXT).repeat(batch, 1),
    }


def z_image(batch: int) -> dict[str, Any]:
    """Those of Z-Image, a caption for each sample."""
    return {"cap_feats": [random(WORDS, TEXT)] * batch}


def ltx2(batch: int) -> dict[str, Any]:
    """Those of LTX-2, with the sound as it is at one step."""
    return {
        **ltx(batch),
        "audio_hidden_states": random(1, 4, 4).repeat(batch, 1, 1),
        "audio_encoder_hidden_states": random(1, WORDS, TEXT).repeat(batch, 1, 1),
        "audio_encoder_attention_mask": torch.ones(batch, WORDS, dtype=torch.bool),
        "audio_num_frames": 4,
    }
