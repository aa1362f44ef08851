"""What there is to know of a schedule, in sentences: for the terminal and for its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FORECASTS = {
    "copy": "repeats its last output",
    "taylor": "continues its last outputs as a polynomial over the noise level",
    "linear": "is a learned combination of its last outputs",
}
_HELD_OUT = ("held_out_error_p95", "held_out_error_worst", "held_out_worst")


def schedule_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """What a schedule is for and how it reuses layers.

    Args:
        summary: What `CacheSchedule.summary` returns.
    """
    shape = "x".join(map(str, summary["sample_shape"])) or "of any shape"
    weights = "any weights" if summary["weights"] == "any" else "checked against the weights"
    guidance = "any guidance" if summary["guidance"] is None else f"guidance {summary['guidance']:g}"
    if "guidance_range" in summary:
        guidance = "guidance from {:g} to {:g}".format(*summary["guidance_range"])
    forecast, provenance = summary["predictor"], summary["provenance"]
    found = {
        "for model": f"{summary['model'] or summary['architecture']}: {summary['layers']} layers, input {shape}, "
        f"{weights}",
        "for run": f"{summary['solver']}, {summary['steps']} steps, {summary['spacing']} spacing, {guidance}: "
        f"{summary['evaluations']} evaluations",
    }
    if isinstance(sizes := provenance.get("resolution"), Mapping) and sizes:
        found["resolution"] = ", ".join(f"{key.replace('_', ' ')} {size}" for key, size in sizes.items())
    if isinstance(errors := provenance.get("held_out_error_by_size"), Mapping):
        found["error by size"] = "; ".join(f"{size}: {error:.4f}" for size, error in errors.items())
    found["reuse"] = f"{forecast}: a reused layer {_FORECASTS.get(forecast.partition('-')[0], 'is forecast')}"
    if len(summary["branches"]) > 1:
        runs = sum(row["unconditional"] is not None for row in summary["rows"])
        found["guidance"] = (
            f"passes apart: the unconditional one runs at {runs} of {summary['evaluations']} evaluations, at the "
            "others it is derived from the conditional one"
        )
    plain = {
        key: value
        for key, value in provenance.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    }
    if plain:
        found["made by"] = ", ".join(f"{key} {value}" for key, value in plain.items())
    return found


def error_sentences(provenance: Mapping[str, Any]) -> list[str]:
    """How close the pictures come, where learning measured that."""
    if "held_out_error" not in provenance:
        return []
    line = f"Error of pictures that were not learned on: {provenance['held_out_error']:.4f}"
    line += f" ({provenance['error_unit']})" if "error_unit" in provenance else ""
    if provenance.keys() >= set(_HELD_OUT):
        p95, worst, which = (provenance[name] for name in _HELD_OUT)
        line += f", 95th percentile {p95:.4f}, worst {worst:.4f} ({which})"
    for name, what in (
        ("held_out_error_of_everything", "with everything computed"),
        ("held_out_error_before", "before learning, with the same mask,"),
    ):
        if name in provenance:
            line += f"; {what} {provenance[name]:.4f}"
    if "fewer_steps" not in provenance or "structure" not in provenance:
        return [line]
    plain = sorted(provenance["fewer_steps"].items(), key=lambda item: item[1])
    listed = ", ".join(f"{name} {error:.4f}" for name, error in plain)
    return [line, f"Chosen: {provenance['structure']}. Plain fewer steps at that cost: {listed}"]
