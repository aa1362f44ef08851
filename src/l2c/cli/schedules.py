"""Schedules and families as the program shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from l2c.cli.console import bar, facts, macs, results, table
from l2c.report.facts import schedule_facts

if TYPE_CHECKING:
    from l2c.schedule.schedule import CacheSchedule

_BAR_WIDTH = 20
_ERRORS = {
    "held_out_error": "error",
    "held_out_error_worst": "worst",
    "held_out_error_before": "before\nlearning",
    "held_out_error_of_everything": "everything\ncomputed",
}


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
    left = "whole evaluations" if solvers else "left"
    listed = table("MACs per picture", left, "forecast", *_ERRORS.values())
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
    console.print(facts({"schedule": title, **schedule_facts(summary)}))
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
