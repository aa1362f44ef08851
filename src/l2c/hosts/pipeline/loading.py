"""Loading a diffusers pipeline, from a folder or from a hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from l2c.errors import CheckpointError


def load_pipeline(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    lora: str | None = None,
    quiet: bool = False,
) -> Any:
    """A diffusers pipeline on a device.

    Args:
        name: A folder that `save_pretrained` wrote, or a repository on the Hugging Face hub.
        dtype: Number format of the weights.
        device: Where to compute.
        lora: Name or path of a LoRA to load into it.
        quiet: Show no progress bars, neither now nor when it is called.

    Raises:
        CheckpointError: If there is no such pipeline or it cannot be loaded.
    """
    from diffusers import DiffusionPipeline

    folder = Path(name).expanduser()
    if str(name).startswith((".", "/", "~")) and not folder.is_dir():
        raise CheckpointError(
            f"there is no folder '{name}'; give one that a pipeline's save_pretrained wrote, or the name of a "
            "repository on the hub"
        )
    try:
        with _without_bars() if quiet else nullcontext():
            pipe = DiffusionPipeline.from_pretrained(folder if folder.is_dir() else name, torch_dtype=dtype)
            if lora is not None:
                pipe.load_lora_weights(lora)
    except (OSError, ValueError, LookupError, AttributeError, ImportError) as error:
        said = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        with_lora = f" with the LoRA {lora}" if lora else ""
        raise CheckpointError(f"cannot load the pipeline {name}{with_lora}: {said}") from error
    if quiet:
        pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


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
