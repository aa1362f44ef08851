"""`l2c sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2c.cli.options import (
    ENGINE_HELP,
    GUIDANCE_HELP,
    OUTPUT,
    RUN,
    SOLVER_HELP,
    SPACING_HELP,
    STEPS_HELP,
    Device,
    DTypeOrTF32,
    JsonOutput,
    Model,
)

SCHEDULE = "Schedule"
PICTURES = "Pictures"


def sample(
    model: Model = "dit-mini-cifar10",
    schedule: Annotated[
        Path | None,
        typer.Option(
            "--schedule",
            "-s",
            metavar="FILE",
            help="Which layers to compute at which evaluation: a file from `l2c learn`, or a router file "
            "published with the Learning-to-Cache paper (.pt, .pth). Without it, everything is computed.",
            rich_help_panel=SCHEDULE,
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of a family of schedules, take the best one that costs at most this share of the MACs.",
            rich_help_panel=SCHEDULE,
            show_default=False,
        ),
    ] = None,
    any_weights: Annotated[
        bool,
        typer.Option(
            "--any-weights",
            help="Use the schedule even if it was learned on other weights of the same architecture, with a "
            "warning instead of an error.",
            rich_help_panel=SCHEDULE,
        ),
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Class numbers, in turn, with commas and ranges: 207,360 or 0-9. By default 0, 1, 2, ...",
            rich_help_panel=PICTURES,
            show_default=False,
        ),
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(
            "--num",
            "-n",
            min=1,
            metavar="N",
            help="How many pictures. By default one per label or seed that is listed, or else 8.",
            rich_help_panel=PICTURES,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Seed of the first picture; the next ones count up. A seed always gives the same noise, "
            "whatever else is sampled with it.",
            rich_help_panel=PICTURES,
        ),
    ] = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Seed of each picture, instead of --seed: 3,17,40-43.",
            rich_help_panel=PICTURES,
            show_default=False,
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{SOLVER_HELP} [default: the schedule's, or ddim]",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"{STEPS_HELP} [default: the schedule's, or 50]",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{SPACING_HELP} [default: the schedule's, or linspace]",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help=f"{GUIDANCE_HELP} [default: the schedule's, or 1.5]",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    guidance_mode: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="With guidance, evaluate with and without the label in one call of twice the size (batch) "
            "or in two calls (split), which needs less memory.",
            rich_help_panel=RUN,
        ),
    ] = "batch",
    guidance_channels: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Guide only the first N channels; the samples published for DiT guide 3 of 4. By default "
            "all.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pictures at a time.", rich_help_panel=RUN)
    ] = 8,
    engine: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"{ENGINE_HELP} All but eager take seconds to get going, which pays for many pictures.",
            rich_help_panel=RUN,
        ),
    ] = "auto",
    device: Device = "auto",
    dtype: DTypeOrTF32 = "float32",
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where the pictures go: one PNG for each, named by seed and label; grid.png with all of "
            "them; record.json with every setting, version and timing.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("l2c-samples"),
    vae: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For latent models such as DiT-XL/2: the autoencoder that decodes their latents, a folder "
            "saved by diffusers. Without it, only latents.safetensors is written.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    npz: Annotated[
        bool,
        typer.Option(
            "--npz",
            help="Also write samples.npz with all pictures as `arr_0` (uint8, N x H x W x 3), as the evaluation "
            "script of ADM reads it.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where a run with the same settings was interrupted: pictures that are in the folder are "
            "not made again.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: JsonOutput = False,
) -> None:
    """Sample pictures, with or without a schedule.

    With `--schedule`, layers that the schedule does not compute are skipped and their stored outputs reused.
    That is faster and changes the pictures slightly; to see how slightly, sample the same seeds without it.
    How much memory the stored outputs take at most is said before sampling begins. Solver, steps, spacing and
    guidance default to those that the schedule was made for. Large sets are shared by the processes that
    `accelerate launch` starts, each picture by its own seed, and can be resumed.

    For example:
    - `l2c sample --labels 3,5 --num 8`
    - `l2c sample --schedule router.safetensors --labels 0-9 --out faster`
    - `accelerate launch -m l2c sample --num 50000 --batch-size 64 --npz --resume --out large`
    - `l2c sample -m DiT-XL-2-256x256.pt -s DDIM50_router.pt --labels 207,360 --vae sd-vae-ft-mse`
    """
    from l2c.cli.sample_plan import SampleRequest
    from l2c.cli.sample_run import report, run_sample
    from l2c.cli.sample_set import run_sample_set
    from l2c.errors import ConfigError
    from l2c.processes import num_processes

    if budget is not None and schedule is None:
        raise ConfigError("--budget chooses from a family of schedules; name its file with --schedule")
    request = SampleRequest(
        model=model,
        schedule=schedule,
        budget=budget,
        any_weights=any_weights,
        labels=labels,
        num=num,
        seed=seed,
        seeds=seeds,
        solver=solver,
        steps=steps,
        spacing=spacing,
        guidance=guidance,
        guidance_mode=guidance_mode,
        guidance_channels=guidance_channels,
        batch_size=batch_size,
        engine=engine,
        device=device,
        dtype=dtype,
        vae=vae,
        npz=npz,
        resume=resume,
    )
    together = npz or resume or num_processes() > 1
    record = run_sample_set(request, out) if together else run_sample(request, out)
    if record is not None:  # as it is in the first process
        report(record, out, as_json=as_json)
