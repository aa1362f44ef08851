"""`l2c bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2c.cli.options import (
    ENGINE_HELP,
    GUIDANCE_HELP,
    MODEL,
    OUTPUT,
    RUN,
    SOLVER_HELP,
    SPACING_HELP,
    STEPS_HELP,
    Device,
    DTypeOrTF32,
    JsonOutput,
    Model,
    check_suffix,
)

SCHEDULES = "Schedules"
MEASURING = "Measuring"


def bench(
    model: Model = "dit-mini-cifar10",
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Take a model of a published size with random weights, which take the same time: --model names the "
            "size, such as dit-xl-2-256. Schedules learned on other weights of that size are timed, too.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    schedule: Annotated[
        list[Path] | None,
        typer.Option(
            "--schedule",
            "-s",
            metavar="FILE|NAME",
            help="What to time beside everything computed: a file from `l2c learn`, the name of a schedule that comes "
            "with l2c, or a published router file (.pt, .pth). Can be given several times.",
            rich_help_panel=SCHEDULES,
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of families of schedules, take the best one that costs at most this share of the MACs.",
            rich_help_panel=SCHEDULES,
            show_default=False,
        ),
    ] = None,
    any_weights: Annotated[
        bool,
        typer.Option(
            "--any-weights",
            help="Also time schedules learned on other weights of the same architecture, with a warning.",
            rich_help_panel=SCHEDULES,
        ),
    ] = False,
    solver: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{SOLVER_HELP} [default: each schedule's, or ddim]",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"{STEPS_HELP} [default: each schedule's, or 50]",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{SPACING_HELP} [default: each schedule's, or linspace]",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help=f"{GUIDANCE_HELP} [default: each schedule's, or 1.5]",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    guidance_mode: Annotated[
        str,
        typer.Option(metavar="NAME", help="As for l2c sample: batch or split.", rich_help_panel=RUN),
    ] = "batch",
    batch_sizes: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Pictures at a time, with commas: 1,8,64. One that does not fit into memory is left out.",
            rich_help_panel=MEASURING,
        ),
    ] = "1,8",
    engines: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"One or several, with commas: eager,compile,graph. {ENGINE_HELP}",
            rich_help_panel=MEASURING,
        ),
    ] = "auto",
    repetitions: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed runs of each kind.", rich_help_panel=MEASURING)
    ] = 5,
    device: Device = "auto",
    dtype: DTypeOrTF32 = "float32",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write all that was timed into this file (.json), every repetition of it.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Show how long sampling takes with schedules and without, on this device.

    Every schedule is timed beside a run of the same solver that computes everything, in turn in one process, with each
    engine and at each batch size. Speed-ups are medians of ratios within a round, so that a busy machine is busy for
    both; in brackets are the least and the most. The floor is the time that the multiply-accumulates alone take at the
    rate of a large matrix product on this device. The model and the solver are timed, decoding of latents is not. Which
    layers take the time is what `l2c profile` shows.

    For example:
    - `l2c bench -s dit-mini-cifar10-ddim-20 --budget 0.5 --batch-sizes 1,8`
    - `l2c bench -m DiT-XL-2-256x256.pt -s DDIM50_router.pt --dtype bfloat16 --engines graph,eager --out times.json`
    - `l2c bench -m uvit-h-2-256 --random-weights --dtype bfloat16 --batch-sizes 1,4,16,64`
    """
    from l2c.cli.bench_report import report
    from l2c.cli.bench_run import BenchRequest, run_bench
    from l2c.files import check_output_file

    if out is not None:
        check_suffix(out, ".json", "--out")
        check_output_file(out)
    request = BenchRequest(
        model=model,
        random_weights=random_weights,
        schedules=tuple(schedule or ()),
        budget=budget,
        any_weights=any_weights,
        solver=solver,
        steps=steps,
        spacing=spacing,
        guidance=guidance,
        guidance_mode=guidance_mode,
        batch_sizes=batch_sizes,
        engines=engines,
        repetitions=repetitions,
        device=device,
        dtype=dtype,
    )
    record = run_bench(request)
    if out is not None:
        record.save(out)
    report(record, out, as_json=as_json)
