"""`l2c check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2c.cli.console import note, print_json, results
from l2c.cli.options import (
    MODEL,
    OUTPUT,
    RUN,
    Device,
    DType,
    JsonOutput,
    check_suffix,
    parse_numbers,
    resolve_device,
    resolve_dtype,
)
from l2c.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from l2c.cache.schedule import CacheSchedule

BEYOND_LIMIT = 1


def check(
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="PIPELINE",
            help="A diffusers pipeline: a folder that save_pretrained wrote, or the name of a repository on the hub.",
            show_default=False,
        ),
    ],
    schedule: Annotated[
        str,
        typer.Argument(
            metavar="SCHEDULE",
            help="A schedule file (.safetensors), a folder with one, or the name of a repository on the hub.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A prompt; may be given several times.", rich_help_panel=RUN),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A text file with a prompt in each line.", rich_help_panel=RUN),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Class labels instead of prompts, for a class-conditional pipeline: 0,7,2-4.",
            rich_help_panel=RUN,
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="LIST", help="Seeds of the noise, a run for each.", rich_help_panel=RUN)
    ] = "0,1",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Anything else that the pipeline is called with, such as height=512; may be given several times. "
            "By default as when the schedule was made, where it says.",
            rich_help_panel=RUN,
        ),
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="A LoRA to load into the pipeline first.", rich_help_panel=MODEL
        ),
    ] = None,
    limit: Annotated[
        float,
        typer.Option(
            metavar="TIMES",
            help="How many times the error that was recorded with the schedule is still accepted.",
        ),
    ] = 1.5,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the schedule with this error recorded in it (.safetensors), for later checks to compare with.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    dtype: DType = "float32",
    as_json: JsonOutput = False,
) -> None:
    """Check how far a schedule is off with a diffusers pipeline as it is now.

    Samples with and without the schedule, from the same noise, and compares; the error is in units of what the
    pipeline makes. If the schedule says how far off it was when it was made, the exit code is 1 where it is now
    further off than the limit. So a LoRA, a quantised or a fine-tuned variant of a model can use a schedule that
    was made for the original, after a few pictures' time.

    For example:
    - `l2c check ./pixart schedule.safetensors --prompt "a photo of a cat"`
    - `l2c check ./pixart user/schedule --prompts prompts.txt --lora ./style --json`
    """
    from l2c.cache.schedule import CacheSchedule
    from l2c.pipelines.check import check as check_drift

    if record is not None:
        check_suffix(record, ".safetensors", "--record")
    if limit <= 0:
        raise ConfigError(f"--limit must be positive, got {limit:g}")
    loaded = CacheSchedule.from_pretrained(schedule)
    call = _call(loaded, _conditions(prompt, prompts, labels), setting or [])
    pipe = load_pipeline(pipeline, resolve_device(device), dtype, lora)
    drift = check_drift(pipe, loaded, seeds=parse_numbers(seeds, "--seeds"), limit=limit, **call)
    if record is not None:
        drift.record(loaded).save(record)
        note(f"wrote {record}")
    if as_json:
        print_json({"pipeline": pipeline, "schedule": schedule, **drift.to_json()})
    else:
        results().print(str(drift), soft_wrap=True)
    if drift.accepted is False:
        raise typer.Exit(BEYOND_LIMIT)


def load_pipeline(name: str, device: str, dtype: str, lora: str | None = None) -> Any:
    """A diffusers pipeline on a device, quiet.

    Raises:
        CheckpointError: If there is no such pipeline or it cannot be loaded.
    """
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(name, torch_dtype=resolve_dtype(dtype))
        if lora is not None:
            pipe.load_lora_weights(lora)
    except (OSError, ValueError, AttributeError, ImportError) as error:
        said = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        raise CheckpointError(
            f"cannot load the pipeline {name}{f' with the LoRA {lora}' if lora else ''}: {said}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _conditions(
    prompt: Sequence[str] | None, prompts: Path | None, labels: str | None
) -> dict[str, list[str] | list[int]]:
    given = list(prompt or [])
    if prompts is not None:
        if not prompts.is_file():
            raise ConfigError(f"there is no file {prompts}; --prompts reads one with a prompt in each line")
        given += [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if bool(given) == (labels is not None):
        raise ConfigError("give either prompts, with --prompt or --prompts, or --labels")
    return {"prompt": given} if labels is None else {"class_labels": parse_numbers(labels, "--labels")}


def _call(schedule: CacheSchedule, conditions: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """What the pipeline is called with: as when the schedule was made, changed by what is set."""
    run = schedule.contract.run
    call: dict[str, Any] = {"num_inference_steps": run.steps}
    if run.guidance is not None:
        call["guidance_scale"] = run.guidance
    call |= schedule.provenance.get("call", {})
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--set takes KEY=VALUE such as height=512, got '{setting}'")
        try:
            call[key] = json.loads(text)
        except json.JSONDecodeError:
            call[key] = text
    return {**call, **conditions}
