"""diffusers' modular pipelines in sizes that a test can afford, of the same components as those of `tiny_pipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from l2c.testing.inputs import TEXT
from l2c.testing.pipelines import tiny_pipeline, tiny_tokenizer

TINY_MODULAR = {
    "flux": "FluxModularPipeline",
    "sd3": "StableDiffusion3ModularPipeline",
    "qwen": "QwenImageModularPipeline",
    "wan": "WanModularPipeline",
    "wan2.2": "Wan22ModularPipeline",
}
"""Names of modular pipelines, which are those of `TINY_PIPELINES`, and their classes."""


def tiny_modular(name: str, seed: int = 0) -> Any:
    """A modular pipeline, frozen.

    Args:
        name: One of `TINY_MODULAR`; all but `flux` are called with encoded prompts, and `qwen` stops at latents.
        seed: Of all weights.
    """
    import diffusers.modular_pipelines

    pipe = tiny_pipeline(name, seed=seed)
    made = getattr(diffusers.modular_pipelines, TINY_MODULAR[name])()
    parts = {key: part for key, part in pipe.components.items() if part is not None}
    if name == "flux":
        parts |= flux_encoders(seed)
    else:
        made = without_blocks(made, "text_encoder", *(["decode"] if "vae" not in parts else []))
    made.update_components(**{key: part for key, part in parts.items() if key in made.component_names})
    return made


def without_blocks(pipe: Any, *names: str) -> Any:
    """A modular pipeline without some of its blocks, as diffusers tells to make one."""
    blocks = pipe.blocks
    for name in names:
        del blocks.sub_blocks[name]
    return blocks.init_pipeline()


def flux_encoders(seed: int = 0) -> dict[str, Any]:
    """The text encoders of FLUX and their tokenizers, by name of the component."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    sizes = {"vocab_size": 32, "pad_token_id": 0, "eos_token_id": 1}
    clip = CLIPTextConfig(
        hidden_size=TEXT, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, bos_token_id=2,
        max_position_embeddings=16, **sizes,
    )  # fmt: skip
    t5 = T5Config(d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2, **sizes)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models: list[nn.Module] = [CLIPTextModel(clip), T5EncoderModel(t5)]
    first, second = (model.eval().requires_grad_(False) for model in models)
    return {
        "text_encoder": first,
        "tokenizer": tokenizer,
        "text_encoder_2": second,
        "tokenizer_2": tokenizer,
    }
