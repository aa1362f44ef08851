"""Loading a diffusers pipeline, from a folder or from a hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2c.errors import CheckpointError, ConfigError
from l2c.hosts.pipeline.components import transformers_of
from l2c.scenes.pipeline import EMBEDDED

ASSETS = Path(str(resources.files("l2c") / "assets"))
ASSET_PREFIX = "l2c:"
"""What the names of files and folders that come with l2c begin with, where those of others are taken, too."""
PIPELINE_FILE = "model_index.json"
"""What the folder of a diffusers pipeline has and that of a model has not."""


def load_pipeline(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    lora: str | None = None,
    scheduler: str | None = None,
    quantization: str | None = None,
    quiet: bool = False,
) -> Any:
    """A diffusers pipeline on a device.

    Args:
        name: A folder that `save_pretrained` wrote, a repository on the Hugging Face hub, or `l2c:scenes-sd3`, which
            comes with l2c; `l2c.scenes` has what that one is called with, and prompts for it.
        dtype: Number format of the weights.
        device: Where to compute.
        lora: Name or path of a LoRA to load into it.
        scheduler: Class of diffusers' scheduler to drive it by instead of its own, with the settings of that.
        quantization: `int8`: linear maps of its transformers keep their weights in 8 bits, by torchao.
        quiet: Show no progress bars, neither now nor when it is called.

    Raises:
        CheckpointError: If there is no such pipeline or it cannot be loaded.
        ConfigError: If there is no such scheduler or quantization, or torchao is not installed.
    """
    from diffusers import DiffusionPipeline

    made = None if scheduler is None else _scheduler_class(scheduler)
    quantize = None if quantization is None else _quantizer(quantization)
    folder = pipeline_folder(name)
    if name in EMBEDDED and find_spec("transformers") is None:
        raise CheckpointError(
            f"{name} has text encoders of transformers, which is not installed; pip install 'l2c[pipelines]'"
        )
    if str(name).startswith((".", "/", "~")) and not folder.is_dir():
        raise CheckpointError(
            f"there is no folder '{name}'; give one that a pipeline's save_pretrained wrote, or the name of a "
            "repository on the hub"
        )
    try:
        with _without_bars() if quiet else nullcontext():
            pipe = DiffusionPipeline.from_pretrained(
                folder if folder.is_dir() else name, torch_dtype=dtype, **_left_out(folder)
            )
            if lora is not None:
                pipe.load_lora_weights(lora)
    except (OSError, ValueError, LookupError, AttributeError, ImportError) as error:
        said = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        with_lora = f" with the LoRA {lora}" if lora else ""
        raise CheckpointError(f"cannot load the pipeline {name}{with_lora}: {said}") from error
    if quiet:
        pipe.set_progress_bar_config(disable=True)
    if made is not None:
        pipe.scheduler = made.from_config(pipe.scheduler.config)
    pipe = pipe.to(device)
    if quantize is not None:
        for model in transformers_of(pipe).values():
            quantize(model)
    return pipe


def _scheduler_class(name: str) -> Any:
    import diffusers

    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if found is None:
        raise ConfigError(
            f"diffusers {diffusers.__version__} has no scheduler '{name}'; give the name of a class such as "
            "UniPCMultistepScheduler"
        )
    return found


def _quantizer(name: str) -> Callable[[nn.Module], object]:
    if name != "int8":
        raise ConfigError(f"unknown quantization '{name}'; there is int8, of the weights, by torchao")
    if find_spec("torchao") is None:
        raise ConfigError(
            "the quantization int8 is that of torchao, which is not installed; pip install torchao"
        )
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    return lambda model: quantize_(model, Int8WeightOnlyConfig())


def pipeline_folder(name: str | Path) -> Path:
    """The folder that a name stands for, which may be one of the package's own: `l2c:NAME`.

    Raises:
        CheckpointError: If no such pipeline comes with l2c, or it is missing.
    """
    if not str(name).startswith(ASSET_PREFIX):
        return Path(name).expanduser()
    if name not in EMBEDDED:
        raise CheckpointError(f"no pipeline {name} comes with l2c; there is {' and '.join(EMBEDDED)}")
    folder = ASSETS / str(name).removeprefix(ASSET_PREFIX)
    if not (folder / PIPELINE_FILE).is_file():
        raise CheckpointError(
            f"this installation of l2c has no weights of {name}; install l2c again, or train the pipeline with "
            "examples/pretrain_scenes.py and give its folder"
        )
    return folder


def _left_out(folder: Path) -> dict[str, None]:
    """Components that a pipeline was saved without, as Stable Diffusion 3 may be without its third text encoder."""
    index = folder / PIPELINE_FILE
    if not index.is_file():
        return {}
    described = json.loads(index.read_text(encoding="utf-8"))
    return {key: None for key, value in described.items() if value == [None, None]}


@contextmanager
def _without_bars() -> Iterator[None]:
    import diffusers.utils.logging

    libraries = [diffusers.utils.logging]
    with suppress(ImportError):  # of pipelines without text it is not needed
        import transformers.utils.logging

        libraries.append(transformers.utils.logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
