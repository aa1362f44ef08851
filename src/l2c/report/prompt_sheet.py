"""Pictures of the same prompts in several ways, one row each, under the prompts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from l2c.report.figures import figure_png
from l2c.report.pictures import Pixels


def prompt_sheet(rows: Mapping[str, Pixels], prompts: Sequence[str]) -> bytes:
    """A sheet as a PNG file.

    Args:
        rows: Pictures (B, H, W, 3) by what is said on their left, line by line.
        prompts: Of the pictures.
    """
    columns = len(prompts)
    figure = Figure(figsize=(1.3 * columns + 1.9, 1.3 * len(rows) + 0.75), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (title, pictures) in zip(grid, rows.items(), strict=True):
        for axes, pixels in zip(line, pictures, strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        label = "\n".join(textwrap.fill(part, 24) for part in title.splitlines())
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    for axes, prompt in zip(grid[0], prompts, strict=True):
        axes.set_title(textwrap.fill(prompt, 20), fontsize=6.5)
    return figure_png(figure, 160)
