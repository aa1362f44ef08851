"""Schedules and families as the program shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from l2c.cli.console import bar, facts, macs, results, table

if TYPE_CHECKING:
    from l2c.schedule.schedule import CacheSchedule

_BAR_WIDTH = 20
_FORECASTS = {
    "copy": "repeats its last output",
    "taylor": "continues its last outputs as a polynomial over the noise level",
    "linear": "is a learned combination of its last outputs",
}
_ERRORS = ("held_out_error", "held_out_error_worst", "held_out_error_before", "held_out_error_of_everything")


def print_family(family: Iterable[CacheSchedule], title: str) -> None:
    """Prints the run that a family is for, and a line per schedule."""
    console = results()
    schedules = list(family)
    first = schedules[0].summary()
    solvers = schedules[0].contract.run.weights is not None
    run = f"{first['solver']}, {first['steps']} steps, {first['spacing']} spacing"
    run = "each with a learned solver of its own" if solvers else run
    console.print(
        f"{title}: {len(schedules)} schedules for {first['model'] or first['architecture']}, {run}\n",
        markup=False,
    )
    heads = (
        "whole evaluations" if solvers else "left",
        "forecast",
        "error",
        "worst",
        "before\nlearning",
        "everything\ncomputed",
    )
    listed = table("MACs per picture", *heads)
    for schedule in schedules:
        made, cost = schedule.provenance, schedule.cost
        errors = [f"{made[key]:.4f}" if key in made else "" for key in _ERRORS]
        whole = f"{cost.fraction * schedule.num_evaluations:.1f} of {schedule.num_evaluations}"
        left = whole if solvers else f"{cost.fraction:.1%}"
        listed.add_row(macs(cost.macs), left, schedule.predictor.name, *errors)
    console.print(listed)
    console.print(
        f"\nTake one with --budget, such as --budget {'8' if solvers else '0.5'}; errors are of pictures that were not "
        "learned on."
    )


def print_schedule(summary: dict[str, Any], title: str, *, rows: bool = True) -> None:
    """Prints a schedule's contract, counts and cost, and with `rows` a line per evaluation."""
    console, cached, cost = results(), summary["cached"], summary["cost"]
    console.print(facts(_facts(summary, title)))
    console.print(
        f"\nLayers computed in the {cached['evaluations']} evaluations that may reuse", style="bold"
    )
    counts = table("kind", "computed", "of", "removed")
    for kind, count in [*cached["kinds"].items(), ("all", cached)]:
        removed = 1 - count["computed"] / count["total"] if count["total"] else 0.0
        counts.add_row(kind, str(count["computed"]), str(count["total"]), f"{removed:.2%}")
    console.print(counts)
    console.print("\nMACs per picture over the whole run, guidance not counted", style="bold")
    costs = table("counted", "everything", "scheduled", "left")
    for label, kind in (
        ("linear layers only (as for DiT)", "linear_macs"),
        ("with attention products (as for U-ViT)", "macs"),
    ):
        full, left = cost[f"full_{kind}"], cost[kind]
        costs.add_row(label, macs(full), macs(left), f"{left / full:.1%}")
    console.print(costs)
    if rows:
        console.print("\nLayers computed at each evaluation, from noise to picture", style="bold")
        kinds = list(cached["kinds"])
        sizes = {kind: summary["layer_kinds"].count(kind) for kind in kinds}
        apart = len(summary["branches"]) > 1
        heads = [*kinds, "uncond"] if apart else kinds
        evaluations = table("evaluation", "timestep", *heads, "MACs")
        evaluations.add_column("", width=_BAR_WIDTH, no_wrap=True)
        for row in summary["rows"]:
            computed = [f"{row['kinds'][kind]}/{sizes[kind]}" for kind in kinds]
            if apart:
                computed.append(_unconditional(row["unconditional"]))
            share = row["fraction"]
            drawn = bar(share, _BAR_WIDTH, console.encoding)
            evaluations.add_row(
                str(row["evaluation"]), f"{row['timestep']:.4g}", *computed, f"{share:.0%}", drawn
            )
        console.print(evaluations)


def _unconditional(mask: str | None) -> str:
    """What the unconditional pass does at an evaluation, of whose layers it has a character each."""
    if mask is None:
        return "derived"
    return f"{mask.count('1')}/{len(mask)}"


def print_errors(provenance: Mapping[str, Any]) -> None:
    """Prints how close the pictures come, where learning measured that."""
    if "held_out_error" not in provenance:
        return
    line = f"\nError of pictures that were not learned on: {provenance['held_out_error']:.4f}"
    line += f" ({provenance['error_unit']})" if "error_unit" in provenance else ""
    if {"held_out_error_p95", "held_out_error_worst", "held_out_worst"} <= provenance.keys():
        line += (
            f", 95th percentile {provenance['held_out_error_p95']:.4f}, worst {provenance['held_out_error_worst']:.4f} "
            f"({provenance['held_out_worst']})"
        )
    if "held_out_error_of_everything" in provenance:
        line += f"; with everything computed {provenance['held_out_error_of_everything']:.4f}"
    if "held_out_error_before" in provenance:
        line += f"; before learning, with the same mask, {provenance['held_out_error_before']:.4f}"
    results().print(line, soft_wrap=True)
    if "fewer_steps" in provenance and "structure" in provenance:
        plain = sorted(provenance["fewer_steps"].items(), key=lambda item: item[1])
        listed = ", ".join(f"{name} {error:.4f}" for name, error in plain)
        line = f"Chosen: {provenance['structure']}. Plain fewer steps at that cost: {listed}"
        results().print(line, soft_wrap=True)


def _facts(summary: dict[str, Any], title: str) -> dict[str, str]:
    """What a schedule is for and how it was made."""
    shape = "x".join(map(str, summary["sample_shape"]))
    weights = "any weights" if summary["weights"] == "any" else "checked against the weights"
    guidance = "any guidance" if summary["guidance"] is None else f"guidance {summary['guidance']:g}"
    if "guidance_range" in summary:
        guidance = "guidance from {:g} to {:g}".format(*summary["guidance_range"])
    forecast, provenance = summary["predictor"], summary["provenance"]
    found = {
        "schedule": title,
        "for model": f"{summary['model'] or summary['architecture']}: {summary['layers']} layers, input {shape}, "
        f"{weights}",
        "for run": f"{summary['solver']}, {summary['steps']} steps, {summary['spacing']} spacing, {guidance}: "
        f"{summary['evaluations']} evaluations",
    }
    if sizes := provenance.get("resolution"):
        found["resolution"] = ", ".join(f"{key.replace('_', ' ')} {size}" for key, size in sizes.items())
    found["reuse"] = f"{forecast}: a reused layer {_FORECASTS.get(forecast.partition('-')[0], 'is forecast')}"
    if len(summary["branches"]) > 1:
        runs = sum(row["unconditional"] is not None for row in summary["rows"])
        found["guidance"] = (
            f"passes apart: the unconditional one runs at {runs} of {summary['evaluations']} evaluations, at the "
            "others it is derived from the conditional one"
        )
    plain = {
        k: v for k, v in provenance.items() if isinstance(v, str | int | float) and not isinstance(v, bool)
    }
    if plain:
        found["made by"] = ", ".join(f"{key} {value}" for key, value in plain.items())
    return found
