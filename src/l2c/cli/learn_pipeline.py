"""`l2c learn-pipeline` and `l2c repair`: their options and their help. What they do is in `pipeline_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2c.cli.options import RUN, Device, DType, JsonOutput, check_suffix
from l2c.cli.pipelines import (
    Labels,
    Lora,
    Pipeline,
    Prompt,
    Prompts,
    Schedule,
    Settings,
    SettingsAsMade,
    call_as_made,
    read_conditions,
    read_settings,
)
from l2c.cli.session import (
    BF16,
    LEARNING,
    CheckpointFile,
    LogDir,
    MaxMinutes,
    Out,
    Restart,
    SaveEvery,
    Seed,
    session_of,
)

Iterations = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Optimizer steps, each through whole runs of the pipeline.",
        rich_help_panel=LEARNING,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Runs per optimizer step. Several processes share them, so take a multiple of their number.",
        rich_help_panel=LEARNING,
    ),
]
LearningRate = Annotated[
    float,
    typer.Option(
        "--learning-rate", "--lr", metavar="RATE", help="Of the optimizer.", rich_help_panel=LEARNING
    ),
]
Runs = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Runs to learn on, each with a prompt and noise of its own; more than there are prompts take turns. "
        "Each is first made with everything computed, as what to come close to.",
        rich_help_panel=LEARNING,
    ),
]
HeldOut = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Further runs, with prompts that nothing is learned on, which tell how good the result is.",
        rich_help_panel=LEARNING,
    ),
]
Recompute = Annotated[
    bool,
    typer.Option(
        "--recompute",
        help="Need far less memory for a third more time: compute layers again for the gradient instead of keeping "
        "what they worked out.",
        rich_help_panel=LEARNING,
    ),
]


def learn_pipeline(
    pipeline: Pipeline,
    prompt: Prompt = None,
    prompts: Prompts = None,
    labels: Labels = None,
    steps: Annotated[
        int, typer.Option(metavar="N", help="Steps of the pipeline's scheduler.", rich_help_panel=RUN)
    ] = 20,
    setting: Settings = None,
    budget: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="What a run may cost, as a fraction of the multiply-accumulates (MACs) of computing everything; where "
            "there are two transformers, of both together.",
            rich_help_panel=LEARNING,
        ),
    ] = 0.5,
    iterations: Iterations = 60,
    batch_size: BatchSize = 1,
    learning_rate: LearningRate = 0.004,
    runs: Runs = 8,
    held_out: HeldOut = 2,
    trials: Annotated[
        int, typer.Option(metavar="N", help="Masks that are judged, at most.", rich_help_panel=LEARNING)
    ] = 24,
    reference_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Come close to runs of this many steps instead of --steps, so that the schedule makes up for the "
            "solver, too. For schedulers that draw no noise.",
            rich_help_panel=LEARNING,
            show_default=False,
        ),
    ] = None,
    bf16: BF16 = False,
    recompute: Recompute = False,
    seed: Seed = 0,
    max_minutes: MaxMinutes = None,
    checkpoint: CheckpointFile = None,
    save_every: SaveEvery = 30.0,
    restart: Restart = False,
    log_dir: LogDir = None,
    lora: Lora = None,
    device: Device = "auto",
    dtype: DType = "float32",
    out: Out = Path("schedule.safetensors"),
    as_json: JsonOutput = False,
) -> None:
    """Learn a schedule for a diffusers pipeline on your own prompts, for a budget.

    Where to compute is searched by what runs of the pipeline make, and how the reused layers follow from their last
    outputs is learned by gradients through its whole run. The result is one file, which says for which pipeline,
    steps, resolution and guidance it holds and how far off it is on prompts that it has not seen. In Python,
    `l2c.enable_cache(pipe, schedule)` uses it; `l2c check` tells whether it still fits.

    Ctrl-C ends learning early and keeps what has been learned so far. A run that ended early or was killed goes
    on where it was when the same command is given again. `accelerate launch -m l2c learn-pipeline ...` shares the
    work among GPUs or machines.

    For example:

    - `l2c learn-pipeline ./pixart --prompts prompts.txt --budget 0.5 --steps 20 -o fast.safetensors`
    - `l2c learn-pipeline user/wan --prompts prompts.txt --set height=480 --dtype bfloat16 --recompute`
    - `l2c learn-pipeline ./dit --labels 0-9 --set guidance_scale=1.5 --max-minutes 30`
    """
    check_suffix(out, ".safetensors", "--out")

    from l2c.cli.pipeline_run import PipelineRequest, run_learn_pipeline
    from l2c.hosts.pipeline.settings import FitSettings

    conditions = read_conditions(prompt, prompts, labels)
    call = {"num_inference_steps": steps, **read_settings(setting)}
    settings = FitSettings(
        iterations=iterations,
        batch_size=batch_size,
        bf16=bf16,
        seed=seed,
        num_runs=runs,
        num_held_out=held_out,
        learning_rate=learning_rate,
        reference_steps=reference_steps,
        trials=trials,
        recompute=recompute,
    )
    session = session_of(out, checkpoint, save_every, restart, max_minutes, log_dir)
    request = PipelineRequest(pipeline, device, dtype, lora, conditions, call, out, as_json)
    run_learn_pipeline(request, budget, settings, session)


def repair(
    pipeline: Pipeline,
    schedule: Schedule,
    prompt: Prompt = None,
    prompts: Prompts = None,
    labels: Labels = None,
    setting: SettingsAsMade = None,
    iterations: Iterations = 12,
    batch_size: BatchSize = 1,
    learning_rate: LearningRate = 0.002,
    runs: Runs = 4,
    held_out: HeldOut = 2,
    bf16: BF16 = False,
    recompute: Recompute = False,
    seed: Seed = 0,
    max_minutes: MaxMinutes = None,
    checkpoint: CheckpointFile = None,
    save_every: SaveEvery = 30.0,
    restart: Restart = False,
    log_dir: LogDir = None,
    lora: Lora = None,
    device: Device = "auto",
    dtype: DType = "float32",
    out: Out = Path("repaired.safetensors"),
    as_json: JsonOutput = False,
) -> None:
    """Repair a learned schedule for a diffusers pipeline that has changed: a LoRA, a fine-tuned or quantised variant.

    Where to compute stays, and a few steps of learning go on from what the schedule has, in a fraction of the time
    that learning took. Tells how far off it was with this pipeline before, and is afterwards, on prompts that nothing
    was learned on. Whether a schedule needs it, `l2c check` tells.

    For example:

    - `l2c repair ./pixart schedule.safetensors --lora ./style --prompts prompts.txt -o style.safetensors`
    """
    check_suffix(out, ".safetensors", "--out")

    from l2c.cli.pipeline_run import PipelineRequest, run_repair
    from l2c.hosts.pipeline.settings import FitSettings
    from l2c.schedule.schedule import CacheSchedule

    conditions, changes = read_conditions(prompt, prompts, labels), read_settings(setting)
    settings = FitSettings(
        iterations=iterations,
        batch_size=batch_size,
        bf16=bf16,
        seed=seed,
        num_runs=runs,
        num_held_out=held_out,
        learning_rate=learning_rate,
        recompute=recompute,
    )
    session = session_of(out, checkpoint, save_every, restart, max_minutes, log_dir)
    loaded = CacheSchedule.from_pretrained(schedule)
    call = {**call_as_made(loaded), **changes}
    request = PipelineRequest(pipeline, device, dtype, lora, conditions, call, out, as_json)
    run_repair(request, loaded, settings, session)
