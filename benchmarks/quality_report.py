"""What `quality.py` has measured, as tables and a plot, each figure beside what it has to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from l2c.files import atomic_write
from l2c.report.figures import figure_png

DIT, UVIT = "dit-mini-cifar10", "uvit-mini-cifar10"
COSTS = (12, 10, 8, 6, 4)
"""In whole evaluations, at which learned solvers are compared."""
RATIO_TARGETS = {12: 0.36, 10: 0.30, 8: 0.32, 6: 0.34, 4: 0.50}
"""By cost: largest error relative to the best of fewer steps."""
GUIDANCE_SCALES, GUIDED_COST, GUIDED_TARGET = (1.0, 1.5, 3.0, 5.0), 8, 0.45
"""Where a schedule for a range of guidance is compared, and its largest error relative to the best of fewer steps."""
CURVE = (0.3, 0.9)
"""Shares of the MACs between which a learned schedule must beat every rival that costs no less."""


@dataclass(frozen=True)
class Pair:
    """A model and a solver.

    Attributes:
        targets: Largest error relative to everything computed, by share of the MACs.
    """

    model: str
    solver: str
    steps: int
    targets: dict[float, float]

    @property
    def name(self) -> str:
        """Short name, as in the names of files."""
        return f"{self.model}-{self.solver}-{self.steps}"


PAIRS = (
    Pair(DIT, "ddim", 50, {0.5: 1.05, 0.35: 0.45}),
    Pair(DIT, "dpmsolver++", 20, {0.5: 1.05, 0.35: 0.70}),
    Pair(UVIT, "dpmsolver-singlestep", 50, {0.5: 1.10, 0.35: 0.80}),
)


def tables(points: Sequence[dict[str, Any]]) -> str:
    """The figures that the project is judged by, each beside its target."""
    lines = []
    for pair in PAIRS:
        own = [point for point in points if point["part"] == pair.name]
        if not own:
            continue
        full = next(point for point in own if point["kind"] == "everything")
        lines.append(f"{pair.name}: everything computed has an error of {full['error']:.4f}")
        for share, target in pair.targets.items():
            best = _learned(own, share * pair.steps)
            if best is not None:
                cost = best["cost"] / pair.steps
                lines.append(f"  learned at cost {cost:.3f}: {_beside(best, full)} (target {target:.2f})")
        lines.append(_beaten(pair, own))
    own = [point for point in points if point["part"] == "solvers"]
    for cost in COSTS:
        rivals = [p for p in own if p["kind"] == "fewer steps" and p["cost"] == cost]
        if not rivals:
            continue
        best = min(rivals, key=lambda point: point["error"])
        lines.append(f"cost {cost}: best of fewer steps {best['error']:.4f} ({best['name']}){_tail(best)}")
        for point in own:
            if point["kind"] != "fewer steps" and _costs(point, cost):
                target = f" (target {RATIO_TARGETS[cost]:.2f})" if point["kind"] == "learned" else ""
                lines.append(
                    f"  {point['kind']} at {point['cost']:.2f}: {_beside(point, best)}{target}{_tail(point)}"
                )
    return "\n".join([*lines, *_guided(points)])


def _guided(points: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of every guidance scale."""
    lines = []
    for scale in GUIDANCE_SCALES:
        own = [p for p in points if p["part"] == "guidance" and p["guidance"] == scale]
        rivals = [point for point in own if point["kind"] == "fewer steps"]
        if not rivals:
            continue
        best = min(rivals, key=lambda point: point["error"])
        lines.append(
            f"guidance {scale:g}: best of fewer steps {best['error']:.4f} ({best['name']}){_tail(best)}"
        )
        for point in own:
            if point not in rivals:
                target = f" (target {GUIDED_TARGET:.2f})" if "range" in point["kind"] else ""
                lines.append(f"  {point['kind']}: {_beside(point, best)}{target}{_tail(point)}")
    return lines


def _beside(point: dict[str, Any], other: dict[str, Any]) -> str:
    """The error of a point, and what it is of another's."""
    return f"{point['error']:.4f} +- {point['standard_error']:.4f}, {point['error'] / other['error']:.2f} of that"


def _tail(point: dict[str, Any]) -> str:
    """The worst pictures, of points that say so."""
    return f"; 95th percentile {point['p95']:.4f}, worst {point['worst']:.4f}" if "p95" in point else ""


def summary(points: Sequence[dict[str, Any]]) -> str:
    """The same in short, as two tables in Markdown, of a record that has something of every part."""
    return f"{_markdown(_pairs_rows(points))}\n\n{_markdown(_solvers_rows(points))}"


def _pairs_rows(points: Sequence[dict[str, Any]]) -> list[list[str]]:
    shares = list(dict.fromkeys(share for pair in PAIRS for share in pair.targets))
    work = [f"{share:.0%} of the work" for share in shares]
    rows = [["error (relative to everything computed)", "everything", *work]]
    for pair in PAIRS:
        own = [point for point in points if point["part"] == pair.name]
        full = next(point["error"] for point in own if point["kind"] == "everything")
        learned = [_learned(own, share * pair.steps) for share in shares]
        found = [math.nan if at is None else at["error"] for at in learned]
        cells = [f"{error:.4f} ({error / full:.2f} x)" for error in found]
        rows.append([f"`{pair.model}`, {pair.solver}, {pair.steps} evaluations", f"{full:.4f}", *cells])
    return rows


def _solvers_rows(points: Sequence[dict[str, Any]]) -> list[list[str]]:
    own = [point for point in points if point["part"] == "solvers"]

    def least(kind: str) -> list[float]:
        return [
            min((p["error"] for p in own if p["kind"] == kind and _costs(p, cost)), default=math.nan)
            for cost in COSTS
        ]

    best = least("fewer steps")
    learned = [_figure(error, rival) for error, rival in zip(least("learned"), best, strict=True)]
    return [
        ["error for the work of so many evaluations", *map(str, COSTS)],
        ["best known solver with fewer steps", *map(_figure, best)],
        [
            "solver learned, nothing reused",
            *(_figure(error) for error in least("fewer steps, solver learned")),
        ],
        ["solver and reuse learned (relative to the first)", *learned],
    ]


def _figure(error: float, rival: float | None = None) -> str:
    """An error, and what it is of a rival's; a dash where there is none."""
    if math.isnan(error):
        return "-"
    return f"{error:.4f}" if rival is None else f"{error:.4f} ({error / rival:.2f} x)"


def _costs(point: dict[str, Any], cost: float) -> bool:
    """Whether a point costs so much, but for what does not fill a layer."""
    return abs(point["cost"] - cost) < 0.02 * cost


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def _learned(points: Sequence[dict[str, Any]], cost: float) -> dict[str, Any] | None:
    """The learned schedule that comes closest to a cost without being much above it."""
    within = [p for p in points if p["kind"] == "learned" and p["cost"] <= 1.01 * cost]
    return max(within, key=lambda point: point["cost"], default=None)


def _beaten(pair: Pair, points: Sequence[dict[str, Any]]) -> str:
    """Which rivals a learned schedule of at most their cost does not beat."""
    learned = [point for point in points if point["kind"] == "learned"]
    rivals = [
        point
        for point in points
        if point["kind"] not in ("learned", "everything")
        and CURVE[0] <= point["cost"] / pair.steps <= 1.01 * CURVE[1]
    ]
    ahead = [
        rival["name"]
        for rival in rivals
        if rival["error"]
        <= min((p["error"] for p in learned if p["cost"] <= rival["cost"]), default=math.inf)
    ]
    of = f"of {len(rivals)} rivals from cost {CURVE[0]} to {CURVE[1]}"
    return f"  {of}, closer than learned at no more cost: {', '.join(ahead) or 'none'}"


STYLES = {
    "everything": ("k*", 11),
    "fewer steps": ("C7o-", 4),
    "interval, copy": ("C1s--", 4),
    "interval, taylor-2": ("C2^--", 4),
    "paper's preset": ("C3d", 6),
    "fewer steps, solver learned": ("C4v-", 5),
    "learned": ("C0o-", 5),
}


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Error against cost, both logarithmic, one panel per pair and one for learned solvers."""
    parts = [
        part for part in (*(pair.name for pair in PAIRS), "solvers") if any(p["part"] == part for p in points)
    ]
    figure = Figure(figsize=(6.2 * min(2, len(parts)), 4.6 * -(-len(parts) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(-(-len(parts) // 2), min(2, len(parts)), squeeze=False).flat)
    for part, axes in zip(parts, grid, strict=False):
        own = [point for point in points if point["part"] == part]
        _panel(axes, own, "DiT, any solver and spacing" if part == "solvers" else part)
    for axes in grid[len(parts) :]:
        axes.set_visible(False)
    atomic_write(path, figure_png(figure, 150))


def _panel(axes: Any, points: Sequence[dict[str, Any]], title: str) -> None:
    for kind, (style, size) in STYLES.items():
        line = sorted((p["cost"], p["error"]) for p in points if p["kind"] == kind)
        if kind == "fewer steps" and title.startswith("DiT, any"):
            line = [
                min(pair for pair in line if pair[0] == cost) for cost in sorted({cost for cost, _ in line})
            ]
        if line:
            label = f"best of {kind}" if kind == "fewer steps" and title.startswith("DiT, any") else kind
            axes.plot(*zip(*line, strict=True), style, ms=size, lw=1.2, label=label)
    costs, errors = [p["cost"] for p in points], [p["error"] for p in points]
    ticks = [t for t in (5, 6, 8, 10, 12, 15, 20, 30, 40, 50) if min(costs) / 1.1 <= t <= max(costs) * 1.1]
    levels = [
        e for e in (0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3) if min(errors) / 1.5 < e < max(errors) * 1.5
    ]
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="cost in full evaluations (MACs)", ylabel="error to the solution")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_yticks(levels, [str(level) for level in levels])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
