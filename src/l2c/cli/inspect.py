"""`l2c inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2c.cli.console import note, print_json
from l2c.cli.options import OUTPUT, JsonOutput, check_suffix


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A schedule written by l2c (.safetensors), or a router file published with the "
            "Learning-to-Cache paper (.pt, .pth).",
            show_default=False,
        ),
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="Decide anew which layers compute: those whose learned score, from 0 to 1, is above this. "
            "By default as the file was saved, or as the paper used it.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Published model that a router file is for, where the file does not say: dit-xl-2-256, "
            "uvit-h-2-256 and so on.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of a family, the best schedule that costs at most this share of the MACs. Without it, all are "
            "listed.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            help="Draw the schedule as a heat map, evaluations by layers, into this file.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write what is shown as a schedule file (.safetensors), for instance a published router or "
            "another threshold.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Show what a schedule computes, what it costs, and what it was made for.

    Prints how many attention and MLP layers are computed, in all and at each evaluation; the
    multiply-accumulates (MACs) per picture with and without the schedule; and the model and sampling run that
    it fits. Papers count MACs in two ways, so both are shown: DiT's count linear layers only, U-ViT's also
    the two products inside attention.

    For example:
    - `l2c inspect router.safetensors`
    - `l2c inspect DDIM50_router.pt --plot heatmap.png`
    - `l2c inspect router.safetensors --threshold 0.3 --save leaner.safetensors`
    """
    from l2c.cli.schedules import is_family, print_family, print_schedule, read_schedule
    from l2c.files import atomic_write, check_output_file

    for path, suffix, option in ((plot, ".png", "--plot"), (save, ".safetensors", "--save")):
        if path is not None:
            check_suffix(path, suffix, option)
            check_output_file(path)
    if all(option is None for option in (budget, threshold, plot, save)) and is_family(file):
        from l2c.schedule.family import ScheduleFamily

        family = ScheduleFamily.load(file)
        if as_json:
            print_json({"file": str(file), "schedules": [schedule.summary() for schedule in family]})
        else:
            print_family(family, str(file))
        return
    schedule = read_schedule(file, threshold, model, budget)
    summary = schedule.summary()
    if plot is not None:
        from l2c.report.figures import heat_map

        atomic_write(plot, heat_map(summary))
    if save is not None:
        schedule.save(save)
    if as_json:
        print_json({"file": str(file), **summary})
        return
    print_schedule(summary, str(file))
    for path in (plot, save):
        if path is not None:
            note(f"wrote {path}")
