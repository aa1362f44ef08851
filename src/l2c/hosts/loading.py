"""`load_target`: the one place that decides whether a name is that of a model or of a diffusers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2c.documents import check_path
from l2c.errors import ConfigError
from l2c.hosts.pipeline.components import transformers_of
from l2c.hosts.pipeline.loading import ASSET_PREFIX, PIPELINE_FILE, load_pipeline
from l2c.layers import LayerTable, find_layers
from l2c.models import is_size, load_model


def load_target(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    lora: str | None = None,
    scheduler: str | None = None,
    quantization: str | None = None,
    device_map: str | None = None,
    quiet: bool = False,
) -> Any:
    """What a schedule is learned for and used with: a model of l2c, or a diffusers pipeline.

    Args:
        name: Of a pipeline: a folder that `save_pretrained` wrote, or a repository on a hub (`user/name`). Anything
            else but `l2c:scenes-sd3`, the pipeline that comes with l2c, is what `load_model` takes.
        dtype: Number format of the weights.
        device: Where to compute; by default on the CPU.
        lora: Name or path of a LoRA to load into a pipeline.
        scheduler: See `load_pipeline`.
        quantization: See `load_pipeline`.
        device_map: See `load_pipeline`.
        quiet: See `load_pipeline`.

    Raises:
        CheckpointError: If it cannot be loaded.
        ConfigError: If no model has that name, or a model is given what is for a pipeline.

    Example:
        >>> import l2c
        >>> type(l2c.load_target("dit-mini-cifar10")).__name__
        'DiT'
    """
    if is_pipeline(name):
        given = {"lora": lora, "scheduler": scheduler, "quantization": quantization, "device_map": device_map}
        return load_pipeline(name, dtype=dtype, device=device, quiet=quiet, **given)
    for what, value in (
        ("LoRA", lora),
        ("scheduler", scheduler),
        ("quantization", quantization),
        ("device map", device_map),
    ):
        if value is not None:
            raise ConfigError(f"a {what} is for diffusers pipelines, and {name} is a model; leave it out")
    return load_model(str(name), dtype=dtype, device=device or "cpu")


def is_pipeline(name: str | Path) -> bool:
    """Whether a name can only be that of a diffusers pipeline.

    >>> is_pipeline("dit-mini-cifar10"), is_pipeline("someone/pixart"), is_pipeline("l2c:scenes-sd3")
    (False, True, True)
    """
    path = check_path("a model or pipeline", name).expanduser()
    if path.is_dir():
        return (path / PIPELINE_FILE).is_file()
    if str(name).startswith(ASSET_PREFIX):
        return True
    if path.exists() or path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors"):
        return False
    if str(name).startswith((".", "/", "~")):
        return True  # which says that there is no such folder
    return str(name).count("/") == 1 and not is_size(str(name))


def layers_of(target: Any) -> dict[str, LayerTable]:
    """The layers of a model, or of every transformer of a pipeline, by name; sized where that hangs on no call.

    Raises:
        ConfigError: If a pipeline has no transformer, or there is no adapter for a model.
    """
    models = {"model": target} if isinstance(target, nn.Module) else transformers_of(target)
    return {name: find_layers(model) for name, model in models.items()}
