"""Does the paper's preset find on the embedded DiT what the published router of DiT-XL/2 has found?

    python benchmarks/paper_preset.py results/schedules/paper-dit-mini-cifar10-ddim-50-1e-5.safetensors \
        path/to/DDIM50_router.pt

Draws the scores of both side by side, evaluations from noise to picture and layers from input to output, and prints how
much is computed in each third of the run and of the depth, by kind of layer. The published files are those of
https://github.com/horseee/learning-to-cache; the heat map of ours alone is drawn without them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from l2c.errors import L2CError
from l2c.files import atomic_write
from l2c.methods import import_router
from l2c.methods.published import ROUTER_SUFFIXES
from l2c.records import Record, describe_device
from l2c.report.figures import figure_png
from l2c.schedule.schedule import CacheSchedule

ROOT = Path(__file__).resolve().parents[1]


def read(path: Path) -> CacheSchedule:
    """A schedule, or a published router."""
    return import_router(path) if path.suffix in ROUTER_SUFFIXES else CacheSchedule.load(path)


def shares(schedule: CacheSchedule) -> dict[str, float]:
    """Share of the layers that compute, among those that are decided, by place."""
    assert schedule.scores is not None
    decided = ~schedule.scores.isnan()
    kinds = [layer.kind for layer in schedule.layers.layers]
    rows, columns = schedule.compute.shape
    thirds_of_run = torch.arange(rows) * 3 // rows
    thirds_of_depth = torch.arange(columns) * 3 // columns
    masks = {
        "all": decided,
        **{
            f"run, {n} third": decided & (thirds_of_run == i)[:, None]
            for i, n in enumerate(("first", "middle", "last"))
        },
        **{
            f"depth, {n} third": decided & (thirds_of_depth == i)
            for i, n in enumerate(("first", "middle", "last"))
        },
        **{kind: decided & torch.tensor([k == kind for k in kinds]) for kind in dict.fromkeys(kinds)},
    }
    return {name: round(schedule.compute[mask].double().mean().item(), 3) for name, mask in masks.items()}


def plot(schedules: dict[str, CacheSchedule], path: Path) -> None:
    """Scores of the evaluations that are decided; attention and MLP in panels of their own."""
    figure = Figure(figsize=(5.2 * len(schedules) + 0.6, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(2, len(schedules), squeeze=False)
    image = None
    for column, (title, schedule) in enumerate(schedules.items()):
        assert schedule.scores is not None
        decided = ~schedule.scores.isnan().all(dim=1)
        for row, kind in enumerate(("attention", "mlp")):
            places = [i for i, layer in enumerate(schedule.layers.layers) if layer.kind == kind]
            axes = grid[row, column]
            image = axes.imshow(
                schedule.scores[decided][:, places].T,
                origin="lower",
                aspect="auto",
                vmin=0,
                vmax=1,
                cmap="viridis",
            )
            axes.set(
                title=f"{title}: {kind}", xlabel="evaluation that may reuse, noise to picture", ylabel="block"
            )
    figure.colorbar(image, ax=grid, label="score: high computes, low reuses", shrink=0.6)
    atomic_write(path, figure_png(figure, 130))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares, prints, and writes record and figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="a learned router, then a published one")
    parser.add_argument("--out", type=Path, default=ROOT / "results/paper-preset.json")
    options = parser.parse_args(arguments)
    try:
        schedules = {
            schedule.contract.model or path.stem: schedule
            for path in options.files
            for schedule in [read(path)]
        }
    except L2CError as error:
        print(f"paper_preset: {error}", file=sys.stderr)
        return 1
    results = {name: shares(schedule) for name, schedule in schedules.items()}
    for place in next(iter(results.values())):
        print(f"{place:22}" + "".join(f"{name:>24} {found[place]:6.1%}" for name, found in results.items()))
    Record(
        command="benchmarks/paper_preset.py",
        config={"files": [path.name for path in options.files]},
        results=results,
        device=describe_device("cpu"),
    ).save(options.out)
    plot(schedules, options.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
