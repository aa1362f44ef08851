"""One function that gets a model from wherever its weights are, and one that saves it."""

from __future__ import annotations

import logging
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from l2c.documents import check_path, existing, read_document
from l2c.errors import CheckpointError, ConfigError, Told
from l2c.files import atomic_write
from l2c.models.checkpoints import (
    PICKLE_SUFFIXES,
    SAFETENSORS_SUFFIX,
    read_folder_weights,
    read_weights,
)
from l2c.models.conversion import DIFFUSERS_CLASS, model_from_diffusers_tensors
from l2c.models.dit import DiT
from l2c.models.layouts import conventions_from_metadata, metadata_of, model_from_tensors
from l2c.models.sizes import resolve_name
from l2c.models.uvit import UViT

logger = logging.getLogger(__name__)

EMBEDDED_MODELS = ("dit-mini-cifar10", "uvit-mini-cifar10")
"""Trained models that come with the package, by name."""

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""What the labels of the embedded models mean, in order."""

HUB_REPOSITORIES = {"dit-xl-2-256": "facebook/DiT-XL-2-256", "dit-xl-2-512": "facebook/DiT-XL-2-512"}
"""Published sizes whose weights are on the Hugging Face hub, and where."""


def load_model(
    source: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    num_heads: int | None = None,
) -> DiT | UViT:
    """Load a trained model.

    Sizes are read off the tensors. The number of heads, which no tensor shows, comes from `num_heads`, else
    from the file's metadata, else from the published size of the same width, else from a head size of 64.

    Args:
        source: One of

            - a weights file, `.safetensors` or PyTorch (`.pt`, `.pth`, `.bin`, `.ckpt`; never runs code from
              it), in the public DiT or U-ViT layout, bare or under `ema`, `model` or `state_dict`;
            - a folder in diffusers layout: a `DiTTransformer2DModel`, or a pipeline with one in
              `transformer/`;
            - the name of a model that comes with the package, see `EMBEDDED_MODELS`;
            - a published name with weights on the hub, `dit-xl-2-256` or `dit-xl-2-512`: downloaded.
        dtype: Of the model's weights, whatever the file stores.
        device: Where to put them.
        num_heads: Attention heads, where the file and its width do not tell.

    Returns:
        The model in evaluation mode, its parameters without gradients.

    Raises:
        CheckpointError: The weights are missing, damaged, unsafe to load or in no known layout.
        ConfigError: `source` is neither a path nor a known name, or `num_heads` does not fit.

    >>> load_model("dit-mini-cifar10").config.depth
    12
    """
    path = check_path("a model", source).expanduser()
    overrides = {} if num_heads is None else {"num_heads": num_heads}
    if path.is_dir():
        return _load_folder(path, dtype=dtype, device=device, num_heads=num_heads)
    if not path.exists() and isinstance(source, str) and not _looks_like_path(source):
        name = resolve_name(source)
        if name in HUB_REPOSITORIES:
            folder = _download(HUB_REPOSITORIES[name])
            return _load_folder(folder, dtype=dtype, device=device, num_heads=num_heads)
        path = _embedded_path(name)
    tensors, metadata = read_weights(path)
    conventions: dict[str, Any] = {**conventions_from_metadata(metadata, str(path)), **overrides}
    return model_from_tensors(tensors, source=str(path), conventions=conventions, dtype=dtype, device=device)


def save_model(
    model: DiT | UViT, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float16
) -> None:
    """Save a model as one safetensors file in the public layout, with what no tensor shows as metadata.

    The file appears whole or not at all, and the same model makes the same bytes.

    Args:
        model: The model to save.
        path: Where to, ending in `.safetensors`.
        dtype: Stored type of floating-point tensors.

    Raises:
        ConfigError: `path` does not end in `.safetensors`.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != SAFETENSORS_SUFFIX:
        raise ConfigError(f"models are saved as {SAFETENSORS_SUFFIX} files, got {path}")
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()
    }
    atomic_write(path, save(tensors, metadata=metadata_of(model)))


def _looks_like_path(source: str) -> bool:
    """Whether a string that names nothing on disk was meant as a path, not as a model's name."""
    return source.startswith((".", "/", "~")) or Path(source).suffix in (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)


def _embedded_path(name: str) -> Path:
    if name not in EMBEDDED_MODELS:
        raise CheckpointError(
            f"no public download of {name} is known; give its weights as a path to a .pt or .safetensors file"
        )
    return Path(str(resources.files("l2c") / "assets" / f"{name}{SAFETENSORS_SUFFIX}"))


def _download(repository: str) -> Path:
    """Fetch the transformer of a pipeline on the hub, or find it in the local cache."""
    from huggingface_hub import snapshot_download

    logger.info("fetching the transformer of %s from the Hugging Face hub", repository)
    wrong = f"{repository} could not be downloaded ({{said}}); check the network, or give the path of a local copy"
    with Told(CheckpointError, wrong, Exception):  # the hub client raises errors of several libraries
        return Path(snapshot_download(repository, allow_patterns=["transformer/*"]))


def _load_folder(
    folder: Path, *, dtype: torch.dtype, device: torch.device | str, num_heads: int | None
) -> DiT:
    home = folder / "transformer" if (folder / "transformer").is_dir() else folder
    advice = f"give the folder of a {DIFFUSERS_CLASS}, one with it as transformer, or a file of weights"
    file = existing(home / "config.json", "configuration of a model", advice, CheckpointError)
    config = read_document(file, dict[str, Any], CheckpointError, "download the folder again")
    if config.get("_class_name") != DIFFUSERS_CLASS:
        raise CheckpointError(
            f"{home} holds a {config.get('_class_name')}; only a {DIFFUSERS_CLASS} can be converted"
        )
    tensors = read_folder_weights(home)
    return model_from_diffusers_tensors(
        tensors, config, source=str(home), dtype=dtype, device=device, num_heads=num_heads
    )
