"""The heat map of a schedule, drawn from its summary."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

COLORS = {"attention": "#2f6db5", "cross-attention": "#4c9a8f", "mlp": "#d2762b", "block": "#7a5ba8"}
TITLES = {
    "attention": "Attention",
    "cross-attention": "Cross-attention",
    "mlp": "MLP",
    "block": "Whole block",
}
REUSED = "#edeff2"
INK, MUTED = "#22262b", "#697077"
_BAR = "#8a929b"
_DPI = 150
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.edgecolor": "#b5bbc2",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
}


def heat_map(summary: Mapping[str, Any]) -> bytes:
    """Which layers are computed at which evaluation, as a PNG file.

    One panel for the attention layers and one for the MLPs, evaluations from left to right, blocks from
    bottom to top, and below them the share of every evaluation's MACs that is left. Where the schedule has
    router scores, they stand beside it in panels of their own, and so do the layers of the unconditional pass where
    the passes of guidance have rows of their own.

    Args:
        summary: What `CacheSchedule.summary` returns.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE):
        return _draw(summary)


def _draw(summary: Mapping[str, Any]) -> bytes:
    rows, scores = summary["rows"], summary["scores"]
    kinds = list(dict.fromkeys(summary["layer_kinds"]))
    mask = np.array([[character == "1" for character in row["mask"]] for row in rows])
    apart = len(summary["branches"]) > 1
    columns = 1 if scores is None and not apart else 2
    panel = 1.3 + 0.045 * max(summary["layer_kinds"].count(kind) for kind in kinds)  # inches
    figure = Figure(
        figsize=(5.6 * columns + 0.4, len(kinds) * panel + 2.3),
        layout=ConstrainedLayoutEngine(hspace=0.04, wspace=0.05),
    )
    FigureCanvasAgg(figure)
    heights = [*[panel] * len(kinds), 0.75]
    axes = figure.subplots(len(kinds) + 1, columns, squeeze=False, height_ratios=heights)
    for axis, kind in zip(axes[:, 0], kinds, strict=False):
        part = mask[:, [k == kind for k in summary["layer_kinds"]]].T
        _mask_panel(axis, part, kind, rows, ", conditional" if apart else "")
    _cost_panel(axes[-1, 0], rows, summary["cost"]["fraction"])
    if apart:
        derived = np.array([row["unconditional"] is None for row in rows])
        other = np.array([[c == "1" for c in row["unconditional"] or "0" * mask.shape[1]] for row in rows])
        for axis, kind in zip(axes[:, 1], kinds, strict=False):
            part = other[:, [k == kind for k in summary["layer_kinds"]]].T
            _mask_panel(axis, part, kind, rows, ", unconditional", derived)
        axes[-1, 1].set_axis_off()
    elif scores is not None:
        values = np.array(scores, dtype=float)  # None becomes NaN
        for axis, kind in zip(axes[:, 1], kinds, strict=False):
            _score_panel(axis, values[:, [k == kind for k in summary["layer_kinds"]]].T, kind, rows)
        _score_counts(axes[-1, 1], values, summary)
    figure.suptitle(_title(summary), fontsize=10, fontweight="bold")
    return figure_png(figure, _DPI)


def figure_png(figure: Figure, dpi: int) -> bytes:
    """A figure that is drawn, as a PNG with so many dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def _title(summary: Mapping[str, Any]) -> str:
    run = f"{summary['solver']}, {summary['evaluations']} evaluations"
    model = f"{summary['model']} · " if summary["model"] else ""
    share = f"{summary['cost']['fraction']:.0%} of the MACs computed"
    return f"{model}{run}\n{share}" if len(model + run) > 40 else f"{model}{run} · {share}"


def _mask_panel(
    axis: Axes,
    mask: NDArray[np.bool_],
    kind: str,
    rows: list[dict[str, Any]],
    branch: str = "",
    derived: NDArray[np.bool_] | None = None,
) -> None:
    color = COLORS.get(kind, _BAR)
    axis.imshow(
        mask,
        cmap=ListedColormap([REUSED, color]),
        vmin=0,
        vmax=1,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    title, handles = TITLES.get(kind, kind) + branch, []
    if derived is not None:
        for column in np.flatnonzero(derived):
            axis.axvspan(
                column - 0.5, column + 0.5, facecolor="#ffffff", edgecolor="#d4d8dd", hatch="////", lw=0
            )
        handles = [Patch(facecolor="#ffffff", edgecolor="#d4d8dd", hatch="////", label="derived")]
    axis.set_title(f"{title}: {mask.sum()} of {mask.size} computed", loc="left", fontsize=9)
    axis.legend(
        handles=[
            Patch(facecolor=color, label="computed"),
            Patch(facecolor=REUSED, edgecolor="#c4c9cf", label="reused"),
            *handles,
        ],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2 + len(handles),
        frameon=False,
        borderaxespad=0.1,
        handlelength=1,
        columnspacing=1,
        fontsize=8,
    )
    _grid(axis, mask.shape)
    _block_axis(axis)
    _time_axis(axis, rows, labels=False)


def _score_panel(axis: Axes, scores: NDArray[np.float64], kind: str, rows: list[dict[str, Any]]) -> None:
    ramp = LinearSegmentedColormap.from_list(kind, ["#f6f7f9", COLORS.get(kind, _BAR)])
    image = axis.imshow(
        np.ma.masked_invalid(scores),
        cmap=ramp.with_extremes(bad="#ffffff"),
        vmin=0,
        vmax=1,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    for column in np.flatnonzero(np.isnan(scores).all(axis=0)):
        axis.axvspan(column - 0.5, column + 0.5, facecolor="none", edgecolor="#d4d8dd", hatch="////", lw=0)
    bar = axis.figure.colorbar(image, ax=axis, pad=0.015, aspect=18, fraction=0.04)
    bar.outline.set_visible(False)
    bar.set_ticks([0, 0.5, 1])
    axis.set_title(f"{TITLES.get(kind, kind)}: router score (hatched: no choice)", loc="left", fontsize=9)
    _block_axis(axis)
    _time_axis(axis, rows, labels=False)


def _cost_panel(axis: Axes, rows: list[dict[str, Any]], fraction: float) -> None:
    shares = [row["fraction"] for row in rows]
    axis.bar(range(len(rows)), shares, width=0.84 if len(rows) < 80 else 1.0, color=_BAR)
    axis.axhline(fraction, color=INK, lw=0.9, ls=(0, (4, 3)))
    axis.set_title(f"Share of the MACs computed; dashed: {fraction:.0%} over the run", loc="left", fontsize=9)
    axis.set_xlim(-0.5, len(rows) - 0.5)
    axis.set_ylim(0, 1.04)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_yticks([0, 0.5, 1])
    _bare(axis)
    _time_axis(axis, rows, labels=True)


def _score_counts(axis: Axes, scores: NDArray[np.float64], summary: Mapping[str, Any]) -> None:
    threshold = summary["provenance"].get("threshold")
    kinds = list(dict.fromkeys(summary["layer_kinds"]))
    groups = [scores[:, [k == kind for k in summary["layer_kinds"]]].ravel() for kind in kinds]
    axis.hist(
        [group[np.isfinite(group)] for group in groups],
        bins=np.linspace(0, 1, 26).tolist(),
        stacked=True,
        color=[COLORS.get(kind, _BAR) for kind in kinds],
        rwidth=0.9,
    )
    note = ""
    if isinstance(threshold, (int, float)):
        axis.axvline(threshold, color=INK, lw=0.9, ls=(0, (4, 3)))
        note = f"; above the threshold {threshold:g} (dashed) computes"
    axis.set_title(f"Layers by score{note}", loc="left", fontsize=9)
    axis.set_xlim(-0.01, 1.01)
    axis.set_xlabel("score")
    axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    _bare(axis)


def _block_axis(axis: Axes) -> None:
    axis.set_ylabel("block")
    axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.tick_params(length=2)


def _time_axis(axis: Axes, rows: list[dict[str, Any]], *, labels: bool) -> None:
    every = max(1, -(-len(rows) // 11))
    ticks = list(range(0, len(rows), every))
    axis.set_xticks(ticks)
    axis.tick_params(axis="x", length=2)
    if not labels:
        axis.set_xticklabels([])
        return
    axis.set_xticklabels([f"{i}\n{rows[i]['timestep']:.0f}" for i in ticks])
    axis.set_xlabel("model evaluation, and below it the training timestep (999: pure noise)")


def _grid(axis: Axes, shape: tuple[int, ...]) -> None:
    axis.set_xticks(np.arange(0.5, shape[1] - 1), minor=True)
    axis.set_yticks(np.arange(0.5, shape[0] - 1), minor=True)
    axis.grid(which="minor", color="white", lw=0.7)
    axis.tick_params(which="minor", length=0)


def _bare(axis: Axes) -> None:
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(length=2)
