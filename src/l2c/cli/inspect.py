"""`l2c inspect`."""

from __future__ import annotations

from pathlib import Path

import typer

from l2c.cli.console import macs, note, print_json, results, table
from l2c.cli.options import AS_JSON, FAMILY_BUDGET, OTHER, OUTPUT, argument, check_outputs, option, takes
from l2c.errors import L2CError, ScheduleError


@takes()
def inspect(
    context: typer.Context,
    file: str = argument(
        "FILE|NAME",
        "A schedule written by l2c (.safetensors), the name of one that comes with l2c, a folder or a "
        "repository on the hub with one, or a router file published with the Learning-to-Cache paper (.pt, .pth); "
        "or a model or a diffusers pipeline, as for `l2c learn`.",
    ),
    threshold: float | None = option(
        "SCORE",
        "Decide anew which layers compute: those whose learned score, from 0 to 1, is above this. By default as "
        "the file was saved, or as the paper used it.",
        OTHER,
    ),
    model: str | None = option(
        "NAME",
        "Published model that a router file is for, where the file does not say: dit-xl-2-256, uvit-h-2-256 and "
        "so on.",
        OTHER,
    ),
    budget: float | None = FAMILY_BUDGET,
    plot: Path | None = option(
        "PNG", "Draw the schedule as a heat map, evaluations by layers, into this file.", OUTPUT
    ),
    save: Path | None = option(
        "FILE",
        "Write what is shown as a schedule file (.safetensors), for instance a published router or another "
        "threshold.",
        OUTPUT,
    ),
    as_json: bool = AS_JSON,
) -> None:
    """Show what a schedule computes, what it costs, and what it was made for; or what layers a model has.

    Prints how many attention and MLP layers are computed, in all and at each evaluation; the
    multiply-accumulates (MACs) per picture with and without the schedule; and the model and sampling run that
    it fits. Papers count MACs in two ways, so both are shown: DiT's count linear layers only, U-ViT's also
    the two products inside attention. Of a family without `--budget`, all schedules are listed.

    For example:
    - `l2c inspect router.safetensors`
    - `l2c inspect DDIM50_router.pt --plot heatmap.png`
    - `l2c inspect router.safetensors --threshold 0.3 --save leaner.safetensors`
    - `l2c inspect dit-mini-cifar10`
    """
    from l2c.cli.schedules import print_family, print_schedule
    from l2c.files import atomic_write
    from l2c.schedule.family import ScheduleFamily
    from l2c.schedule.open import load_schedule, open_schedule

    check_outputs(context.params, plot=".png", save=".safetensors")
    if all(choice is None for choice in (budget, threshold, plot, save)):
        try:
            family = open_schedule(file, model=model)
        except ScheduleError:
            if not _shows_layers(file, as_json=as_json):
                raise
            return
        if isinstance(family, ScheduleFamily):
            if as_json:
                print_json({"file": file, "schedules": [schedule.summary() for schedule in family]})
            else:
                print_family(family, file)
            return
    schedule = load_schedule(file, budget, threshold, model=model)
    summary = schedule.summary()
    if plot is not None:
        from l2c.report.figures import heat_map

        atomic_write(plot, heat_map(summary))
    if save is not None:
        schedule.save(save)
    if as_json:
        print_json({"file": file, **summary})
        return
    print_schedule(summary, file)
    for path in (plot, save):
        if path is not None:
            note(f"wrote {path}")


def _shows_layers(name: str, *, as_json: bool) -> bool:
    """Prints how many layers a model has and what they cost, where that is known; False if it is no model."""
    from l2c.hosts.loading import layers_of, load_target

    try:
        found = {part: layers.summary() for part, layers in layers_of(load_target(name, quiet=True)).items()}
    except L2CError:
        return False
    if as_json:
        print_json({"name": name, "models": found})
        return True
    for part, one in found.items():
        title = f"{name}: {part}, architecture {one['architecture']}, {one['layers']} layers"
        shown = table("kind", "layers", "MACs per evaluation", title=title)
        for kind, figures in one["kinds"].items():
            shown.add_row(kind, str(figures["layers"]), macs(figures["macs"]) if one["sized"] else "")
        shown.add_row("rest", "", macs(one["rest_macs"]) if one["sized"] else "")
        results().print(shown)
        if not one["sized"]:
            note("what layers cost depends on how it is called; l2c profile measures it")
    return True
