"""Schedule files as the program reads and shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from l2c.cli.console import bar, macs, results
from l2c.errors import ConfigError

if TYPE_CHECKING:
    from l2c.schedule.family import ScheduleFamily
    from l2c.schedule.schedule import CacheSchedule

_BAR_WIDTH = 20
_FORECASTS = {
    "copy": "repeats its last output",
    "taylor": "continues its last outputs as a polynomial over the noise level",
    "linear": "is a learned combination of its last outputs",
}


def is_family(path: Path) -> bool:
    """Whether a file has several schedules.

    Raises:
        ScheduleError: If it cannot be read.
    """
    from l2c.methods.published import ROUTER_SUFFIXES
    from l2c.schedule.family import FORMAT
    from l2c.schedule.file import kind_of

    return path.suffix not in ROUTER_SUFFIXES and kind_of(path) == FORMAT


def read_schedule(
    path: Path, threshold: float | None = None, model: str | None = None, budget: float | None = None
) -> CacheSchedule:
    """Reads a schedule, one of a family, or a router file published by the authors of Learning-to-Cache.

    Args:
        path: `.safetensors` written by l2c, or a router in `.pt` or `.pth`.
        threshold: Decide anew from the scores in the file, instead of as it was saved or published.
        model: Name of the model that a router file is for, where the file does not say.
        budget: Share of the MACs, for which the best of a family is taken.

    Raises:
        ScheduleError: If the file cannot be read.
        ConfigError: If the threshold is out of range or there are no scores that it could decide on, if the family
            has no schedule within the budget, or if the budget is missing or there is no family.
    """
    from l2c.methods.published import ROUTER_SUFFIXES, import_router
    from l2c.schedule.family import ScheduleFamily
    from l2c.schedule.schedule import CacheSchedule

    if path.suffix in ROUTER_SUFFIXES:
        return import_router(path, threshold=threshold, model=model)
    if budget is None:
        schedule = CacheSchedule.load(path)
    elif is_family(path):
        schedule = ScheduleFamily.load(path).at(budget)
    else:
        raise ConfigError(f"{path} is not a family of schedules, so --budget has nothing to choose from")
    if threshold is None:
        return schedule
    if schedule.scores is None:
        raise ConfigError(f"{path} has no router scores, so --threshold has nothing to decide on")
    if schedule.predictor.kind == "linear":
        raise ConfigError(
            f"the forecasts in {path} were learned for its mask, so --threshold cannot change that"
        )
    if not 0 <= threshold <= 1:
        raise ConfigError(f"the threshold is compared with scores from 0 to 1, got {threshold}")
    return replace(
        schedule,
        compute=schedule.scores.isnan() | (schedule.scores > threshold),
        provenance={**schedule.provenance, "threshold": threshold},
    )


def print_family(family: ScheduleFamily, title: str) -> None:
    """Prints the run that a family is for, and a line per schedule."""
    console = results()
    schedules = list(family)
    first = schedules[0].summary()
    console.print(
        Text(
            f"{title}: {len(schedules)} schedules for {first['model'] or first['architecture']}, {first['solver']}, "
            f"{first['steps']} steps, {first['spacing']} spacing\n"
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("MACs per picture", "left", "forecast", "error", "before learning", "everything computed"):
        table.add_column(name, justify="left" if name == "forecast" else "right")
    for schedule in schedules:
        provenance = schedule.provenance
        errors = [
            f"{provenance[key]:.4f}" if key in provenance else ""
            for key in ("held_out_error", "held_out_error_before", "held_out_error_of_everything")
        ]
        cost = schedule.cost
        table.add_row(macs(cost.macs), f"{cost.fraction:.1%}", schedule.predictor.name, *errors)
    console.print(table)
    console.print(
        "Take one with --budget, such as --budget 0.5; errors are of pictures that were not learned on."
    )


def print_schedule(summary: dict[str, Any], title: str, *, rows: bool = True) -> None:
    """Prints a schedule's contract, counts and cost, and with `rows` a line per evaluation."""
    console = results()
    reusing = summary["cached"]["evaluations"]
    console.print(_facts(summary, title))
    console.print(f"\n[bold]Layers computed in the {reusing} evaluations that may reuse[/]")
    console.print(_counts(summary))
    console.print("\n[bold]MACs per picture over the whole run, guidance not counted[/]")
    console.print(_costs(summary))
    if rows:
        console.print("\n[bold]Layers computed at each evaluation, from noise to picture[/]")
        console.print(_evaluations(summary, console.encoding))


def _facts(summary: dict[str, Any], title: str) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    shape = "x".join(map(str, summary["sample_shape"]))
    weights = "any weights" if summary["weights"] == "any" else "checked against the weights"
    guidance = "any guidance" if summary["guidance"] is None else f"guidance {summary['guidance']:g}"
    forecast = summary["predictor"]
    grid.add_row("schedule", Text(title))
    grid.add_row(
        "for model",
        Text(
            f"{summary['model'] or summary['architecture']}: {summary['layers']} layers, input {shape}, {weights}"
        ),
    )
    grid.add_row(
        "for run",
        Text(
            f"{summary['solver']}, {summary['steps']} steps, {summary['spacing']} spacing, {guidance}: "
            f"{summary['evaluations']} evaluations"
        ),
    )
    if sizes := summary["provenance"].get("resolution"):
        grid.add_row(
            "resolution", Text(", ".join(f"{key.replace('_', ' ')} {size}" for key, size in sizes.items()))
        )
    grid.add_row("reuse", Text(f"{forecast}: a reused layer {_FORECASTS[forecast.partition('-')[0]]}"))
    made = ", ".join(f"{key} {value}" for key, value in summary["provenance"].items() if _is_plain(value))
    if made:
        grid.add_row("made by", Text(made))
    return grid


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _counts(summary: dict[str, Any]) -> Table:
    cached = summary["cached"]
    table = _table("kind", "computed", "of", "removed")
    for kind, counts in [*cached["kinds"].items(), ("all", cached)]:
        removed = 1 - counts["computed"] / counts["total"] if counts["total"] else 0.0
        table.add_row(kind, str(counts["computed"]), str(counts["total"]), f"{removed:.2%}")
    return table


def _costs(summary: dict[str, Any]) -> Table:
    cost = summary["cost"]
    table = _table("counted", "everything", "scheduled", "left")
    for label, full, left in (
        ("linear layers only (as for DiT)", cost["full_linear_macs"], cost["linear_macs"]),
        ("with attention products (as for U-ViT)", cost["full_macs"], cost["macs"]),
    ):
        table.add_row(label, macs(full), macs(left), f"{left / full:.1%}")
    return table


def _evaluations(summary: dict[str, Any], encoding: str) -> Table:
    kinds = list(summary["cached"]["kinds"])
    sizes = {kind: summary["layer_kinds"].count(kind) for kind in kinds}
    table = _table("evaluation", "timestep", *kinds, "MACs")
    table.add_column("", width=_BAR_WIDTH, no_wrap=True)
    for row in summary["rows"]:
        counts = [f"{row['kinds'][kind]}/{sizes[kind]}" for kind in kinds]
        share = row["fraction"]
        table.add_row(
            str(row["evaluation"]),
            f"{row['timestep']:.4g}",
            *counts,
            f"{share:.0%}",
            bar(share, _BAR_WIDTH, encoding),
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
