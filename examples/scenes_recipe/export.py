"""The pipeline of diffusers as a folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from transformers import CLIPTokenizer

import l2c
from l2c.errors import CheckpointError
from scenes_recipe.autoencoder import FILE as AUTOENCODER_FILE
from scenes_recipe.autoencoder import load_autoencoder, new_autoencoder, new_optimizer
from scenes_recipe.networks import TextToLatents
from scenes_recipe.parallel import Workers
from scenes_recipe.state import read_state, write_state
from scenes_recipe.tokenizer import new_tokenizer
from scenes_recipe.transformer import FILE, FINISHED_FILE, Training

SHIFT = 2.0
"""Shift of the noise levels: objects are large beside latents, so that much is decided at high noise."""


def load_weights(work: Path) -> TextToLatents:
    """The averaged weights: of the finished model, or of training at the full rate where none is finished."""
    path = work / FINISHED_FILE
    state = read_state(path if path.exists() else work / FILE, "transformer")
    model = TextToLatents()
    model.load_state_dict(state["average"])
    return model.eval()


def assemble_pipeline(work: Path) -> StableDiffusion3Pipeline:
    """The pipeline of everything in a work folder, in float32."""
    weights = load_weights(work)
    pipeline = StableDiffusion3Pipeline(
        transformer=weights.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=load_autoencoder(work),
        text_encoder=weights.text_encoder,
        tokenizer=new_tokenizer(),
        text_encoder_2=weights.text_encoder_2,
        tokenizer_2=new_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export_pipeline(work: Path, out: Path) -> None:
    """Write the pipeline in float16 as a folder for `StableDiffusion3Pipeline.from_pretrained`."""
    assemble_pipeline(work).to(torch.float16).save_pretrained(out)
    for name in ("tokenizer", "tokenizer_2"):
        write_vocabulary(out / name, new_tokenizer())


def import_pipeline(folder: Path, work: Path) -> None:
    """Make an exported pipeline the state of a work folder, which training goes on from with new optimisers.

    Raises:
        CheckpointError: The folder does not hold a pipeline, or the work folder has a state already.
    """
    if any((work / name).exists() for name in (FILE, AUTOENCODER_FILE)):
        raise CheckpointError(f"{work} holds a state already; give a new folder")
    pipeline = load_pipeline(folder)
    autoencoder = new_autoencoder()
    autoencoder.load_state_dict(pipeline.vae.state_dict())
    write_state(
        work / AUTOENCODER_FILE,
        {"model": autoencoder.state_dict(), "optimizer": new_optimizer(autoencoder).state_dict(), "step": 0},
    )
    training = Training(Workers())
    for model in (training.weights, training.average):
        for name in ("transformer", "text_encoder", "text_encoder_2"):
            getattr(model, name).load_state_dict(getattr(pipeline, name).state_dict())
    write_state(work / FILE, training.state_dict())


def write_vocabulary(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Write `vocab.json` and `merges.txt`, which transformers 4 reads in place of `tokenizer.json`."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    lines = [
        "#version: 0.2",
        *(" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]),
    ]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> StableDiffusion3Pipeline:
    """The pipeline of a folder.

    Raises:
        CheckpointError: The folder does not hold one.
    """
    try:
        return l2c.load_pipeline(folder.resolve(), dtype=dtype, quiet=True)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; run the stage 'export' first") from error
