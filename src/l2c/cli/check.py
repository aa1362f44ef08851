"""`l2c check`."""

from __future__ import annotations

from pathlib import Path

import typer

from l2c.cli import options, targets
from l2c.cli.console import note, print_json, results
from l2c.cli.options import check_outputs, option, parse_numbers, takes
from l2c.documents import Positive, check_value

BEYOND_LIMIT = 1


@takes(targets.TargetOptions)
def check(
    context: typer.Context,
    model: str = targets.NAMED_TARGET,
    schedule: str = targets.SCHEDULE,
    budget: float | None = options.FAMILY_BUDGET,
    seeds: str | None = option(
        "LIST",
        "Seeds of the noise, a run for each; prompts or labels take turns. By default 0,1, or one for each of "
        "these.",
        options.RUN,
    ),
    limit: float = option(
        "TIMES",
        "How many times the error that was recorded with the schedule is still accepted.",
        options.OTHER,
        default=1.5,
    ),
    record: Path | None = option(
        "FILE",
        "Write the schedule with this error recorded in it (.safetensors), for later checks to compare with.",
        options.OUTPUT,
    ),
    as_json: bool = options.AS_JSON,
) -> None:
    """Check how far a schedule is off with a model or a diffusers pipeline as it is now.

    Samples with the schedule and in fine steps, from the same noise, and compares. The target is run as when the
    schedule was made, where nothing else is said. If the schedule says how far off it was then, the exit code is 1
    where it is now further off than the limit. So a LoRA, a quantised or a fine-tuned variant of a model can use a
    schedule that was made for the original, after a few pictures' time; `l2c repair` learns a little more for it.

    For example:
    - `l2c check tuned.safetensors half.safetensors`
    - `l2c check ./pixart schedule.safetensors --prompt "a photo of a cat"`
    - `l2c check ./pixart user/schedule --prompts prompts.txt --lora ./style --json`
    """
    given = context.params
    check_outputs({**given, "schedule": None}, record=".safetensors")  # which may be the schedule itself
    check_value("--limit", limit, Positive)

    import l2c

    loaded = l2c.load_schedule(schedule, budget)
    run = targets.read_run(given)
    count = max(2, len(run.get("conditions", ())))
    numbers = list(range(count)) if seeds is None else parse_numbers(seeds, "--seeds")
    target = targets.load(given)
    drift = l2c.check(target, loaded, seeds=numbers, limit=limit, **run)
    if record is not None:
        drift.record(loaded).save(record)
        note(f"wrote {record}")
    if as_json:
        print_json({"model": model, "schedule": schedule, **drift.to_json()})
    else:
        results().print(str(drift), soft_wrap=True)
    if drift.accepted is False:
        raise typer.Exit(BEYOND_LIMIT)
