"""`l2c check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2c.cli.console import note, print_json, results
from l2c.cli.options import OUTPUT, RUN, Device, DType, JsonOutput, check_suffix, parse_numbers
from l2c.cli.pipelines import (
    Labels,
    Lora,
    Pipeline,
    Prompt,
    Prompts,
    Schedule,
    SettingsAsMade,
    call_as_made,
    in_words_of,
    read_conditions,
    read_settings,
)
from l2c.devices import resolve_device, resolve_dtype
from l2c.errors import ConfigError

BEYOND_LIMIT = 1


def check(
    pipeline: Pipeline,
    schedule: Schedule,
    prompt: Prompt = None,
    prompts: Prompts = None,
    labels: Labels = None,
    seeds: Annotated[
        str, typer.Option(metavar="LIST", help="Seeds of the noise, a run for each.", rich_help_panel=RUN)
    ] = "0,1",
    setting: SettingsAsMade = None,
    lora: Lora = None,
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
    from l2c.hosts.pipeline.check import check as check_drift
    from l2c.hosts.pipeline.loading import load_pipeline
    from l2c.schedule.schedule import CacheSchedule

    if record is not None:
        check_suffix(record, ".safetensors", "--record")
    if limit <= 0:
        raise ConfigError(f"--limit must be positive, got {limit:g}")
    loaded = CacheSchedule.from_pretrained(schedule)
    conditions = read_conditions(prompt, prompts, labels)
    name = next(iter(conditions[0]))
    together = (
        {"prompt": [one["prompt"] for one in conditions]}
        if name == "prompt"
        else {name: [label for one in conditions for label in one[name]]}
    )
    call = {**call_as_made(loaded), **read_settings(setting), **together}
    numbers = parse_numbers(seeds, "--seeds")
    pipe = load_pipeline(
        pipeline, dtype=resolve_dtype(dtype), device=resolve_device(device), lora=lora, quiet=True
    )
    with in_words_of(pipe, call):
        drift = check_drift(pipe, loaded, seeds=numbers, limit=limit, **call)
    if record is not None:
        drift.record(loaded).save(record)
        note(f"wrote {record}")
    if as_json:
        print_json({"pipeline": pipeline, "schedule": schedule, **drift.to_json()})
    else:
        results().print(str(drift), soft_wrap=True)
    if drift.accepted is False:
        raise typer.Exit(BEYOND_LIMIT)
