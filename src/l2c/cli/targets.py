"""Models and diffusers pipelines on the command line: which one, and how it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from l2c.cli.options import (
    DEVICE,
    DTYPE,
    DTYPE_OR_TF32,
    MODEL,
    RUN,
    argument,
    option,
    parse_guidance,
    parse_numbers,
)
from l2c.errors import ConfigError

LEARNING_PROMPTS, JUDGING_PROMPTS = 64, 8
"""Prompts for the pipeline that comes with l2c where none are given."""

_TARGET_HELP = (
    "A model of l2c: the name of one that comes with it (dit-mini-cifar10, uvit-mini-cifar10), a .pt or .safetensors "
    "checkpoint in the public DiT or U-ViT layout, or a folder with such a transformer. Or a diffusers pipeline: a "
    "folder that save_pretrained wrote, the name of a repository on the hub, or l2c:scenes-sd3, which comes with l2c "
    "and needs no prompts."
)
TARGET = argument("MODEL", _TARGET_HELP, default="dit-mini-cifar10")
NAMED_TARGET = argument("MODEL", _TARGET_HELP)
SCHEDULE = argument(
    "SCHEDULE",
    "A schedule file (.safetensors), the name of one that comes with l2c, a folder with one, or the name of a "
    "repository on the hub.",
)


class TargetOptions:
    """How a target is loaded, and what a pipeline is called with."""

    prompt: list[str] | None = option("TEXT", "Of a pipeline, a prompt; may be given several times.", RUN)
    prompts: Path | None = option("FILE", "Of a pipeline, a text file with a prompt in each line.", RUN)
    labels: str | None = option(
        "LIST", "Of a class-conditional pipeline, labels instead of prompts: 0,7,2-4.", RUN
    )
    height: int | None = option("PIXELS", "Of a pipeline that is called for a size.", RUN)
    width: int | None = option("PIXELS", "Likewise.", RUN)
    call: list[str] | None = option(
        "NAME=VALUE",
        "Whatever else a pipeline is called with, such as max_sequence_length=128 or image=@FILE; may be repeated.",
        RUN,
    )
    lora: str | None = option("NAME|PATH", "A LoRA to load into a pipeline first.", MODEL)
    scheduler: str | None = option(
        "CLASS,NAME=VALUE",
        "Of a pipeline: one of diffusers' schedulers instead of its own, with its settings but for those named, such "
        "as UniPCMultistepScheduler,flow_shift=3.0; without a class, its own with other settings.",
        MODEL,
    )
    quantization: str | None = option(
        "NAME",
        "Of a pipeline: quantise the transformers' weights; int8 with torchao, bnb-8bit or bnb-4bit with bitsandbytes.",
        MODEL,
    )
    device: str = DEVICE
    device_map: str | None = option(
        "NAME", "Of a pipeline, instead of --device: balanced over all GPUs, or loaded to cuda or cpu.", MODEL
    )
    dtype: str = DTYPE


class TimedTargetOptions(TargetOptions):
    """The same, where the time of a run matters."""

    dtype: str = DTYPE_OR_TF32


_RUN = ("solver", "steps", "spacing", "guidance", "guidance_mode", "height", "width")


def read_run(given: Mapping[str, Any], *, learns: bool = False) -> dict[str, Any]:
    """How a target is run, as `l2c.host_of` takes it, from what a command was given: only what was said.

    A pipeline that comes with l2c has its call and prompts besides.

    Args:
        given: What the command was given.
        learns: Whether it learns, or judges: by other prompts then.

    Raises:
        ConfigError: If a pipeline has no prompts and no labels, or both; a model has any; or one cannot be read.
    """
    from l2c.hosts.loading import is_pipeline
    from l2c.hosts.pipeline.conditions import read_prompts
    from l2c.scenes.pipeline import EMBEDDED, scene_prompts

    name, labels, file = given["model"], given["labels"], given["prompts"]
    pipeline = is_pipeline(name)
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"} if pipeline else {}
    run = {names.get(key, key): given.get(key) for key in _RUN}
    scale = given.get("guidance")
    if isinstance(scale, str):
        run[names.get("guidance", "guidance")] = parse_guidance(scale)
    found = {key: value for key, value in run.items() if value is not None} | read_call(given["call"])
    texts = [*(given["prompt"] or ()), *(read_prompts(file) if file is not None else ())]
    if not pipeline:
        if texts or labels is not None:
            raise ConfigError(
                f"prompts and labels are for diffusers pipelines, and {name} is a model, which draws its labels; leave "
                "them out"
            )
        return found
    if name in EMBEDDED:
        found = {**EMBEDDED[name], **found}
        if not texts and labels is None:
            texts = (
                scene_prompts(LEARNING_PROMPTS) if learns else scene_prompts(JUDGING_PROMPTS, held_out=True)
            )
    if bool(texts) == (labels is not None):
        raise ConfigError("a pipeline needs either prompts, with --prompt or --prompts, or --labels")
    if labels is None:
        return {**found, "conditions": [{"prompt": text} for text in texts]}
    classes = parse_numbers(labels, "--labels")
    return {**found, "conditions": [{"class_labels": [label]} for label in classes]}


def read_call(settings: Sequence[str] | None) -> dict[str, Any]:
    """What `--call` says: pictures where values are `@` and a file, else as JSON where they are, and else as text.

    Raises:
        ConfigError: If one is no NAME=VALUE, or no picture.

    >>> read_call(["height=512", "negative_prompt=blurry"])
    {'height': 512, 'negative_prompt': 'blurry'}
    """
    from l2c.hosts.pipeline.conditions import read_picture

    call: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--call takes NAME=VALUE such as height=512, got '{setting}'")
        call[name] = read_picture(text[1:]) if text.startswith("@") else text
        with suppress(json.JSONDecodeError):
            call[name] = json.loads(text)
    return call


def load(given: Mapping[str, Any], *, tf32: bool = False) -> Any:
    """The model or pipeline that a command was given, with all that is loaded into it, where this process computes.

    Args:
        given: What the command was given.
        tf32: Whether products may be in TF32.

    Raises:
        CheckpointError: If it cannot be loaded.
        ConfigError: If no model has that name, a model is given what is for a pipeline, or there is no such device or
            number format.
    """
    from l2c.devices import resolve_dtype
    from l2c.hosts.loading import load_target
    from l2c.processes import own_device

    device = own_device(given["device"], given["device_map"])
    dtype = resolve_dtype(given["dtype"], device if tf32 else None)
    more = {name: given[name] for name in ("lora", "scheduler", "quantization", "device_map")}
    where = None if more["device_map"] and given["device"] == "auto" else device
    return load_target(given["model"], dtype=dtype, device=where, quiet=True, **more)


def name_of(target: str, lora: str | None) -> str:
    """Of a target, for people: without the folders that it is in on this machine.

    >>> name_of("someone/pixart", "someone/style")
    'someone/pixart with someone/style'
    """
    names = [Path(one).name if Path(one).exists() else one for one in (target, lora) if one]
    return " with ".join(names)
