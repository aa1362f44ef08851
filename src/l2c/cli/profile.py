"""`l2c profile`."""

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
    Device,
    DTypeOrTF32,
    JsonOutput,
    Model,
    check_suffix,
)

MEASURING = "Measuring"


def profile(
    model: Model = "dit-mini-cifar10",
    solver: Annotated[str, typer.Option(metavar="NAME", help=SOLVER_HELP, rich_help_panel=RUN)] = "ddim",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Evaluations of each run that is timed: 20 on CUDA devices and 8 elsewhere if not given. What is "
            "measured holds for any number.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    spacing: Annotated[
        str, typer.Option(metavar="NAME", help=SPACING_HELP, rich_help_panel=RUN)
    ] = "linspace",
    guidance: Annotated[float, typer.Option(metavar="SCALE", help=GUIDANCE_HELP, rich_help_panel=RUN)] = 1.5,
    guidance_mode: Annotated[
        str,
        typer.Option(metavar="NAME", help="As for l2c sample: batch or split.", rich_help_panel=RUN),
    ] = "batch",
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pictures at a time.", rich_help_panel=RUN)
    ] = 1,
    engine: Annotated[str, typer.Option(metavar="NAME", help=ENGINE_HELP, rich_help_panel=RUN)] = "auto",
    predictor: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Forecasts of the layers that are reused: copy, or taylor-N, which reads N + 1 values. What l2c learn "
            "makes takes the time of taylor-2.",
            rich_help_panel=MEASURING,
        ),
    ] = "taylor-2",
    repetitions: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Runs of each kind, fewer if that takes more than three minutes.",
            rich_help_panel=MEASURING,
        ),
    ] = 9,
    vae: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For latent models: also time the autoencoder that decodes their latents, a folder saved by "
            "diffusers.",
            rich_help_panel=MEASURING,
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    dtype: DTypeOrTF32 = "float32",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write the costs and all that was timed into this file (.json), which l2c learn --costs reads.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Show where the time of sampling goes, layer by layer, on this device at this shape.

    What a layer costs is what runs save that reuse it: whole runs that reuse all attention or all MLP layers are timed
    against runs that compute everything, in turn. The rest of an evaluation is what no schedule can save: embeddings,
    final layer, solver, and the forecasts. To see how far the costs can be trusted, the time of three random schedules
    is predicted from them and measured in the same rounds. How long whole runs take, with schedules and without, shows
    `l2c bench`.

    For example:
    - `l2c profile`
    - `l2c profile -m DiT-XL-2-256x256.pt --dtype bfloat16 --batch-size 8 --out costs.json`
    - `l2c learn -m DiT-XL-2-256x256.pt --latency-ms 400 --costs costs.json`
    """
    from l2c.cli.profile_run import ProfileRequest, report, run_profile
    from l2c.files import check_output_file

    if out is not None:
        check_suffix(out, ".json", "--out")
        check_output_file(out)
    request = ProfileRequest(
        model=model,
        solver=solver,
        steps=steps,
        spacing=spacing,
        guidance=guidance,
        guidance_mode=guidance_mode,
        batch_size=batch_size,
        engine=engine,
        predictor=predictor,
        repetitions=repetitions,
        vae=vae,
        device=device,
        dtype=dtype,
    )
    record = run_profile(request)
    if out is not None:
        record.save(out)
    report(record, out, as_json=as_json)
