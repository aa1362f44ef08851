"""The transformer and the text encoders, untrained, and what the pipeline of diffusers makes of a prompt."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from l2c.scenes.vocabulary import COLOURS, SHAPES
from scenes_recipe.tokenizer import MAX_LENGTH, new_tokenizer

TEXT_WIDTH = 128
WIDTH, NUM_HEADS, NUM_BLOCKS = 192, 3, 6
PROBED_BLOCK = 3
NUM_SHAPE_LABELS, NUM_COLOUR_LABELS = 1 + len(SHAPES), 1 + len(COLOURS)


class TextToLatents(nn.Module):
    """Transformer, both text encoders and a probe as one module, so that one optimiser and one average hold them.

    The probe is for training only: the transformer learns faster what a prompt means if the shape and colour of the
    object at each patch must be readable from its hidden states.
    """

    def __init__(self) -> None:
        super().__init__()
        self.transformer = new_transformer()
        self.text_encoder = new_text_encoder()
        self.text_encoder_2 = new_text_encoder()
        self.probe = nn.Linear(WIDTH, NUM_SHAPE_LABELS + NUM_COLOUR_LABELS)

    def encode_tokens(self, tokens: Tensor, num_empty: int = 0) -> tuple[Tensor, Tensor]:
        """What `StableDiffusion3Pipeline.encode_prompt` makes of a prompt without a T5 encoder.

        Args:
            tokens: Token ids, shape (B, 20).
            num_empty: `max_sequence_length` of the pipeline: where a T5 encoder's output would stand, there are
                this many vectors of zeros.

        Returns:
            Embeddings (B, 20 + num_empty, 256) and pooled embeddings (B, 256).
        """
        outputs = [
            encoder(tokens, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)
        ]
        embeddings = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        pooled = torch.cat([output.text_embeds for output in outputs], -1)
        return nn.functional.pad(embeddings, (0, 0, 0, num_empty)), pooled

    def forward(
        self, noisy: Tensor, times: Tensor, tokens: Tensor, num_empty: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Velocity from data to noise, and what the probe sees.

        Args:
            noisy: Latents (B, 4, 16, 16).
            times: Noise levels in [0, 1], shape (B,).
            tokens: Token ids, shape (B, 20).
            num_empty: As for `encode_tokens`.

        Returns:
            Velocity like `noisy`, and for each patch logits of shapes (B, 64, 7) and colours (B, 64, 9), read off the
            hidden states in the transformer's middle; the first of each is that there is no object.
        """
        embeddings, pooled = self.encode_tokens(tokens, num_empty)
        hidden: list[Tensor] = []
        hook = self.transformer.transformer_blocks[PROBED_BLOCK].register_forward_hook(
            lambda _module, _arguments, outputs: hidden.append(outputs[1])
        )
        velocity: Tensor = self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=embeddings,
            pooled_projections=pooled,
            timestep=1000 * times,
            return_dict=False,
        )[0]
        hook.remove()
        normed = nn.functional.layer_norm(hidden[0], (WIDTH,))
        shapes, colours = self.probe(normed).split([NUM_SHAPE_LABELS, NUM_COLOUR_LABELS], -1)
        return velocity, shapes, colours


def new_text_encoder() -> CLIPTextModelWithProjection:
    """Three layers, of which the pipeline reads two and, pooled, all."""
    tokenizer = new_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=3 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModelWithProjection(config)
    for name, weight in model.named_parameters():
        if name.endswith("embedding.weight"):  # CLIP's 0.02 is for millions of steps
            nn.init.normal_(weight, std=0.4 if "token" in name else 0.1)
    return model


def new_transformer() -> SD3Transformer2DModel:
    """Six blocks of width 192 over 64 patches of 2x2 latents, initialised as DiT is.

    Source:
        Peebles and Xie, "Scalable Diffusion Models with Transformers" (arXiv 2212.09748): adaLN-Zero.
    """
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=NUM_BLOCKS,
        attention_head_dim=WIDTH // NUM_HEADS,
        num_attention_heads=NUM_HEADS,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=8,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    modulations = [norm.linear for b in model.transformer_blocks for norm in (b.norm1, b.norm1_context)]
    for layer in (*modulations, model.norm_out.linear, model.proj_out):
        nn.init.zeros_(layer.weight)
    return model
