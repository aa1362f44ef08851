"""Loading a diffusers pipeline, from a folder or from a hub."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from l2c.documents import check_path
from l2c.errors import CheckpointError, ConfigError, Told, check_installed, known
from l2c.hosts.pipeline.components import TRANSFORMERS, transformers_of
from l2c.scenes.pipeline import EMBEDDED

ASSETS = Path(str(resources.files("l2c") / "assets"))
ASSET_PREFIX = "l2c:"
"""What the names of files and folders that come with l2c begin with, where those of others are taken, too."""
QUANTIZATIONS = {"int8": "torchao", "bnb-8bit": "bitsandbytes", "bnb-4bit": "bitsandbytes"}
"""What `--quantization` may be, and the package that does it."""
DTYPE_SINCE = (0, 40)
"""Release of diffusers that names the number format of weights `dtype`; before, it was `torch_dtype`."""
PIPELINE_FILE = "model_index.json"
"""What the folder of a diffusers pipeline has and that of a model has not."""


def load_pipeline(
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
    """A diffusers pipeline on a device, or on several.

    Args:
        name: A folder that `save_pretrained` wrote, a repository on the Hugging Face hub, or `l2c:scenes-sd3`, which
            comes with l2c; `l2c.scenes` has what that one is called with, and prompts for it.
        dtype: Number format of the weights.
        device: Where to compute; by default on the CPU.
        lora: Name or path of a LoRA to load into it.
        scheduler: Class of diffusers' scheduler to drive it by instead of its own, with the settings of that, and
            settings that are to be others: `UniPCMultistepScheduler,flow_shift=3.0`, or `shift=3.0` alone.
        quantization: `int8`: linear maps of its transformers keep their weights in 8 bits, by torchao; `bnb-8bit` and
            `bnb-4bit`: they are loaded in so many by bitsandbytes.
        device_map: Instead of a device, where diffusers loads the weights at once, without a copy on the CPU: `cuda`,
            `cpu`, or `balanced`, each component on one of all GPUs.
        quiet: Show no progress bars, neither now nor when it is called, and no warnings of transformers while loading.

    Raises:
        CheckpointError: If there is no such pipeline or it cannot be loaded.
        ConfigError: If there is no such scheduler or quantization, what quantises is not installed, or a device map
            cannot be had here or comes with a device.
    """
    import diffusers
    from diffusers.quantizers import PipelineQuantizationConfig

    if device_map is not None:
        _check_device_map(device_map, device)
    named = None if scheduler is None else read_scheduler(scheduler)
    folder = pipeline_folder(name)
    parts = [part for part in TRANSFORMERS if part in _index(folder)] or list(TRANSFORMERS)
    quantize = None if quantization is None else _quantizer(quantization, dtype, parts)
    if name in EMBEDDED:
        check_installed(str(name), "transformers", "'l2c[pipelines]'", CheckpointError)
    if str(name).startswith((".", "/", "~")) and not folder.is_dir():
        raise CheckpointError(
            f"there is no folder '{name}'; give one that a pipeline's save_pretrained wrote, or the name of a "
            "repository on the hub"
        )
    release = tuple(map(int, diffusers.__version__.split(".")[:2]))
    try:
        with _quietly() if quiet else nullcontext():
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                folder if folder.is_dir() else name,
                device_map=device_map,
                quantization_config=quantize if isinstance(quantize, PipelineQuantizationConfig) else None,
                **_left_out(folder),
                **{"dtype" if release >= DTYPE_SINCE else "torch_dtype": dtype},
            )
            if lora is not None:
                pipe.load_lora_weights(lora)
    except (OSError, ValueError, LookupError, AttributeError, ImportError, RuntimeError) as error:
        said = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        with_lora = f" with the LoRA {lora}" if lora else ""
        raise CheckpointError(f"cannot load the pipeline {name}{with_lora}: {said}") from error
    if quiet:
        pipe.set_progress_bar_config(disable=True)
    if named is not None:
        pipe.scheduler = make_scheduler(pipe.scheduler, *named)
    if device_map is None:
        pipe = pipe.to(device or "cpu")
    if callable(quantize):
        for model in transformers_of(pipe).values():
            quantize(model)
    return pipe


def _check_device_map(name: str, device: torch.device | str | None) -> None:
    """Refuses a device map that clashes with a device, that there is none of, or whose devices are not there."""
    from diffusers.pipelines.pipeline_utils import SUPPORTED_DEVICE_MAP

    if device is not None:
        raise ConfigError(
            f"the device map {name} says where weights are, and so does the device {device}; leave one of the two out"
        )
    known("device map", name, dict.fromkeys(("balanced", "cuda", *SUPPORTED_DEVICE_MAP)))
    if name not in SUPPORTED_DEVICE_MAP or (
        name == "balanced" and set(SUPPORTED_DEVICE_MAP) == {name, "cpu"}
    ):
        raise ConfigError(
            f"the device map {name} is for GPUs, and there is none here; take cpu, or leave it out"
        )


def read_scheduler(text: str) -> tuple[Any, dict[str, Any]]:
    """The class of a scheduler, None for the pipeline's own, and settings for it, from text: `CLASS,NAME=VALUE,...`.

    >>> read_scheduler("shift=3.0,use_dynamic_shifting=false")
    (None, {'shift': 3.0, 'use_dynamic_shifting': False})

    Raises:
        ConfigError: If diffusers has no such scheduler.
    """
    import diffusers

    first, *rest = (part.strip() for part in text.split(","))
    given = [first, *rest] if "=" in first else rest
    settings: dict[str, Any] = {}
    for part in given:
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"a scheduler's settings are NAME=VALUE such as flow_shift=3.0, got '{part}'")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    if "=" in first:
        return None, settings
    found = getattr(diffusers, first, None) if first.endswith("Scheduler") else None
    if found is None:
        raise ConfigError(
            f"diffusers {diffusers.__version__} has no scheduler '{first}'; give the name of a class such as "
            "UniPCMultistepScheduler"
        )
    return found, settings


def make_scheduler(own: Any, kind: Any, settings: Mapping[str, Any]) -> Any:
    """A scheduler with the settings of another, but for some; of the same class for None.

    Raises:
        ConfigError: If it has no such setting, or refuses one.
    """
    kind = type(own) if kind is None else kind
    names = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    for name in settings:
        known(f"setting of {kind.__name__}", name, names)
    refused = f"{kind.__name__} refuses its settings: {{said}}"
    with Told(ConfigError, refused, TypeError, ValueError, NotImplementedError):
        return kind.from_config({**own.config, **settings})


def _quantizer(name: str, dtype: torch.dtype, parts: Sequence[str]) -> Any:
    """What quantises a loaded model, or, for what has to be quantised while it is loaded, the settings of that."""
    package = QUANTIZATIONS[known("quantization", name, QUANTIZATIONS)]
    check_installed(f"the quantization {name}", package, package)
    if name == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        return lambda model: quantize_(model, Int8WeightOnlyConfig())
    from diffusers import BitsAndBytesConfig
    from diffusers.quantizers import PipelineQuantizationConfig

    bits = (
        BitsAndBytesConfig(load_in_8bit=True)
        if name == "bnb-8bit"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    )
    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(parts, bits))


def pipeline_folder(name: str | Path) -> Path:
    """The folder that a name stands for, which may be one of the package's own: `l2c:NAME`.

    Raises:
        CheckpointError: If no such pipeline comes with l2c, or it is missing.
    """
    if not str(name).startswith(ASSET_PREFIX):
        return check_path("a pipeline", name).expanduser()
    known("pipeline of l2c", str(name), EMBEDDED, error=CheckpointError)
    folder = ASSETS / str(name).removeprefix(ASSET_PREFIX)
    if not (folder / PIPELINE_FILE).is_file():
        raise CheckpointError(
            f"this installation of l2c has no weights of {name}; install l2c again, or train the pipeline with "
            "examples/pretrain_scenes.py and give its folder"
        )
    return folder


def _left_out(folder: Path) -> dict[str, None]:
    """Components that a pipeline was saved without, as Stable Diffusion 3 may be without its third text encoder."""
    return {key: None for key, value in _index(folder).items() if value == [None, None]}


def _index(folder: Path) -> dict[str, Any]:
    """Classes of the components of a pipeline in a folder; nothing where that is none."""
    index = folder / PIPELINE_FILE
    return dict(json.loads(index.read_text(encoding="utf-8"))) if index.is_file() else {}


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars, and of transformers no warnings, such as that it finds no torchvision."""
    import diffusers.utils.logging

    libraries = [diffusers.utils.logging]
    with ExitStack() as stack:
        with suppress(ImportError):  # of pipelines without text it is not needed
            import transformers.utils.logging as of_transformers

            libraries.append(of_transformers)
            stack.callback(of_transformers.set_verbosity, of_transformers.get_verbosity())
            of_transformers.set_verbosity_error()
        for library in libraries:
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                stack.callback(library.enable_progress_bar)
        yield
