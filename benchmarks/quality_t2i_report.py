"""What `quality_t2i.py` has measured: verdicts beside what has to be, a plot, and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from l2c.bootstrap import ErrorSummary, statistic_confidence_interval
from l2c.files import atomic_write
from l2c.report.figures import figure_png
from l2c.report.pictures import to_pixels
from l2c.report.prompt_sheet import prompt_sheet

COSTS = (12, 10, 8, 6, 4)
"""In whole evaluations, at which learned solvers are compared."""
RATIO_TARGETS = {12: 0.50, 10: 0.50, 8: 0.50, 6: 0.50, 4: 0.65}
"""By cost: largest error relative to the best plain solver."""
SHARES = {0.5: "half", 1 / 3: "a third"}
"""Of the work of the pipeline's own run."""
POINTS_OF_ADHERENCE, TAIL_RATIO, LEARNING_S = 1.0, 1.1, 720.0
"""Targets: adherence lost at most, 95th percentile relative to the default's, and seconds of learning."""
SHOWN = 10

Point = Mapping[str, Any]


def error(point: Point) -> float:
    """Mean error of the latents."""
    return float(np.mean(point["latents"]))


def adherence_of(point: Point) -> float:
    """Objects that are as told, in per cent."""
    return 100 * sum(point["objects_right"]) / sum(point["objects"])


def line(point: Point) -> str:
    """The figures of a point: mean, 95th percentile and worst of each."""
    parts = [f"{point['name']:42}{point['cost']:6.2f}"]
    for name, form, sign in (("latents", ".4f", 1), ("pictures", ".4f", 1), ("ssim", ".3f", -1)):
        found = ErrorSummary.of([sign * value for value in point[name]])
        shown = (sign * figure for figure in (found.mean.value, found.p95, found.worst))
        parts.append(f"  {name} {' '.join(format(figure, form) for figure in shown)}")
    return f"{''.join(parts)}  adherence {adherence_of(point):.1f} %"


def verdicts(points: Sequence[Point]) -> dict[str, Any]:
    """What had to be shown, with figures, targets, and whether they are met, as far as it was measured."""
    found: dict[str, Any] = {}
    if by_cost := {str(cost): it for cost in COSTS if (it := _against_plain(points, cost))}:
        found["error relative to the best plain solver"] = by_cost
    default = next((point for point in points if point["kind"] == "default"), None)
    halves = [p for p in points if p["kind"] in ("own", "learned", "solver") and abs(p["cost"] - 14) < 0.3]
    if default is not None and halves:
        found["half of the work of the default"] = {p["name"]: _against_default(p, default) for p in halves}
    seconds = {p["name"]: p["learning_s"] for p in points if p["learning_s"] is not None}
    if seconds:
        longest = max(seconds.values())
        found["seconds of learning"] = {
            "longest": longest, "target": LEARNING_S, "met": longest <= LEARNING_S, "all": seconds
        }  # fmt: skip
    return found


def _against_plain(points: Sequence[Point], cost: int) -> dict[str, Any] | None:
    plain = [p for p in points if p["kind"] == "plain" and p["name"].endswith(f", {cost}")]
    solver, learned = (
        next((p for p in points if p["name"] == f"{kind}, {cost}"), None) for kind in ("solver", "learned")
    )
    ours = learned or solver  # a search over structures may choose to reuse nothing, too
    if not plain or ours is None:
        return None
    best = min(plain, key=error)
    ratio = _ratio(ours["latents"], best["latents"])
    return {
        "best plain solver": best["name"],
        "its error": error(best),
        "learned": error(ours),
        "nothing reused": None if solver is None else error(solver),
        **ratio,
        "target": RATIO_TARGETS[cost],
        "met": ratio["ratio"] <= RATIO_TARGETS[cost],
    }


def _against_default(point: Point, default: Point) -> dict[str, Any]:
    ours, theirs = (ErrorSummary.of(p["latents"]) for p in (point, default))
    right, other, told = (
        np.asarray(p) for p in (point["objects_right"], default["objects_right"], point["objects"])
    )
    lost = statistic_confidence_interval(
        len(told),
        lambda rows: float(100 * (other[rows] - right[rows]).sum() / told[rows].sum()),
        resamples=2000,
    )
    ratio = _ratio(point["latents"], default["latents"])
    met = (
        ratio["ratio"] <= 1,
        lost.value <= POINTS_OF_ADHERENCE,
        ours.p95 <= TAIL_RATIO * theirs.p95,
    )
    return {
        **ratio,
        "ratio target": 1.0,
        "points of adherence lost": lost.value,
        "lost low": lost.low,
        "lost high": lost.high,
        "lost target": POINTS_OF_ADHERENCE,
        "p95 ratio": ours.p95 / theirs.p95,
        "p95 target": TAIL_RATIO,
        "met": all(met),
    }


def _ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Ratio of two mean errors on the same pictures, with its interval at 95 %."""
    above, below = np.asarray(values), np.asarray(others)
    found = statistic_confidence_interval(
        len(above), lambda rows: float(above[rows].mean() / below[rows].mean()), resamples=2000
    )
    return {"ratio": found.value, "low": found.low, "high": found.high}


def text(points: Sequence[Point]) -> str:
    """Verdicts in words."""
    found, lines = verdicts(points), []
    for cost, it in found.get("error relative to the best plain solver", {}).items():
        reuses_none = "" if it["nothing reused"] is None else f"; nothing reused {it['nothing reused']:.4f}"
        lines.append(
            f"cost {cost}: learned {it['learned']:.4f}, best plain {it['its error']:.4f} ({it['best plain solver']}): "
            f"{_with_interval(it)}, target {it['target']:.2f}, {_met(it)}{reuses_none}"
        )
    for name, it in found.get("half of the work of the default", {}).items():
        lines.append(
            f"half of the work ({name}): error {_with_interval(it)} of the default's, target 1; adherence "
            f"{-it['points of adherence lost']:+.1f} points ({-it['lost high']:+.1f} to {-it['lost low']:+.1f}), "
            f"target -1; 95th percentile {it['p95 ratio']:.2f} of the default's, target {it['p95 target']:g}: "
            f"{_met(it)}"
        )
    if it := found.get("seconds of learning"):
        lines.append(f"longest learning: {it['longest']:.0f} s, target {it['target']:.0f} s, {_met(it)}")
    return "\n".join(lines) or "nothing that a verdict needs has been measured yet"


def _with_interval(it: Mapping[str, float]) -> str:
    return f"{it['ratio']:.3f} ({it['low']:.3f} to {it['high']:.3f})"


def _met(it: Mapping[str, Any]) -> str:
    return "met" if it["met"] else "not met"


LEVELS = [digit * 10.0**power for power in range(-4, 1) for digit in (1, 1.5, 2, 3, 5, 7)]
"""Of errors that an axis may be marked at."""

STYLES = {
    "plain": ("C7s-", "best plain solver"),
    "solver": ("C4v-", "solver learned, nothing reused"),
    "learned": ("C0o-", "solver and reuse learned"),
    "own": ("C2^-", "own run, reuse learned"),
    "default": ("k*", "the pipeline's own 28 steps"),
}


def plot(points: Sequence[Point], path: Path) -> None:
    """Error of latents, error of pictures and adherence against cost; lines are means, bars reach up to the worst."""
    if not points:
        return
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    latents, pictures, told = figure.subplots(1, 3)
    for kind, (style, label) in STYLES.items():
        own = [p for p in points if p["kind"] == kind]
        if kind == "plain":
            at = sorted({int(p["name"].rpartition(", ")[2]) for p in own})
            own = [min((p for p in own if p["name"].endswith(f", {cost}")), key=error) for cost in at]
        own.sort(key=lambda point: point["cost"])
        if not own:
            continue
        costs = [p["cost"] for p in own]
        for axes, name in ((latents, "latents"), (pictures, "pictures")):
            found = [ErrorSummary.of(p[name]) for p in own]
            means = [it.mean.value for it in found]
            axes.plot(costs, means, style, label=label, ms=10 if kind == "default" else 6, lw=1.4)
            axes.plot(costs, [it.p95 for it in found], style[:2] if style[0] == "C" else "k", ls=":", lw=0.9)
            axes.vlines(
                costs, means, [it.worst for it in found], style[:2] if style[0] == "C" else "k", lw=0.5
            )
        told.plot(
            costs, [adherence_of(p) for p in own], style, label=label, ms=10 if kind == "default" else 6
        )
    for axes, name in ((latents, "error of latents, relative"), (pictures, "error of pictures, -1 to 1")):
        axes.set(xscale="log", yscale="log", ylabel=name)
        low, high = axes.get_ylim()
        levels = [e for e in LEVELS if low <= e <= high]
        axes.set_yticks(levels, [f"{e:g}" for e in levels])
    told.set(xscale="log", ylabel="objects as told, per cent")
    ticks = [4, 6, 8, 10, 12, 14, 20, 28]
    for axes in (latents, pictures, told):
        axes.set(xlabel="cost in full evaluations (MACs)")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    latents.legend(fontsize=8)
    figure.suptitle(
        "Lines are means, dotted ones 95th percentiles; bars reach to the worst picture", fontsize=9
    )
    atomic_write(path, figure_png(figure, 120))


def sheet(pictures: Mapping[str, Tensor], prompts: Sequence[str], path: Path) -> None:
    """Pictures, a row for each way of sampling, under their prompts."""
    count = len(next(iter(pictures.values())))
    rows = {name: to_pixels(images) for name, images in pictures.items()}
    atomic_write(path, prompt_sheet(rows, prompts[:count]))
