"""How close to the exact solution is a picture for its cost? Learned schedules against simply fewer steps.

    python benchmarks/quality.py --schedule src/l2c/assets/dit-mini-cifar10-ddim-20.safetensors

Every way of sampling starts from the same noise and labels, which no schedule was learned on. The error of a picture
is its root mean square distance to a solution in fine steps (DPM-Solver++ of order 3, 150 evaluations evenly spaced
in log-SNR); the cost is in full evaluations, counted in multiply-accumulates. The rivals are all solvers and spacings
that came first somewhere in a wider search, with fewer steps.

Every way is recorded as soon as it is done, and what the record has is not sampled again, so that an interrupted run
goes on where it was.
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

import l2c
from l2c.cache.schedule import CacheSchedule
from l2c.errors import L2CError
from l2c.evaluation.metrics import rmse
from l2c.records import RunRecord, describe_device

FIRST_SEED = 1_000_000  # learning draws its noise from one generator, never from the seeds of single pictures
GUIDANCE = 1.5
REFERENCE = ("dpmsolver++3", "logsnr", 150)
RIVALS = [
    ("dpmsolver++", "linspace"),
    ("dpmsolver++", "logsnr"),
    ("dpmsolver++3", "logsnr"),
    ("dpmsolver++3", "karras"),
    ("unipc", "logsnr"),
    ("unipc", "linspace"),
    ("ddim", "linspace"),
]


class Benchmark:
    """Samples ways one after another into a record that is written after each."""

    def __init__(self, model: str, images: int, batch_size: int, out: Path) -> None:
        self.network = l2c.load_model(model)
        self.config = {"model": model, "images": images, "guidance": GUIDANCE, "reference": list(REFERENCE)}
        self.seeds = tuple(range(FIRST_SEED, FIRST_SEED + images))
        self.labels = [i % 10 for i in range(images)]
        self.batch_size = batch_size
        self.out = out
        self.points: list[dict[str, Any]] = []
        if out.is_file():
            record = RunRecord.load(out)
            self.points = list(record.results["points"]) if record.config == self.config else []
        self._reference: torch.Tensor | None = None

    def measure(
        self, name: str, solver: str, spacing: str, steps: int, schedule: CacheSchedule | None
    ) -> None:
        """Error and cost of one way, unless the record has them."""
        if any(point["name"] == name for point in self.points):
            return
        errors = rmse(self._sample(solver, spacing, steps, schedule), self._solution())
        self.points.append(
            {
                "name": name,
                "solver": solver,
                "spacing": spacing,
                "steps": steps,
                "learned": schedule is not None,
                "cost": steps * (1.0 if schedule is None else schedule.cost.fraction),
                "error": errors.mean().item(),
                "standard_error": (errors.std() / len(errors) ** 0.5).item(),
            }
        )
        RunRecord(
            command="benchmarks/quality.py",
            config=self.config,
            seeds=self.seeds,
            results={"points": self.points},
            device=describe_device("cpu"),
        ).save(self.out)
        print(
            f"{name:45} cost {self.points[-1]['cost']:6.2f}   error {self.points[-1]['error']:.4f}",
            flush=True,
        )

    def _solution(self) -> torch.Tensor:
        if self._reference is None:
            solver, spacing, steps = REFERENCE
            self._reference = self._sample(solver, spacing, steps, None)
        return self._reference

    def _sample(self, solver: str, spacing: str, steps: int, schedule: CacheSchedule | None) -> torch.Tensor:
        return l2c.sample(
            self.network,
            self.labels,
            self.seeds,
            solver=solver,
            spacing=spacing,
            steps=steps,
            guidance=GUIDANCE,
            schedule=schedule,
            batch_size=self.batch_size,
        )


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Error against cost, both logarithmic; rivals as lines, learned schedules as stars."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for solver, spacing in RIVALS:
        line = sorted((p["cost"], p["error"]) for p in points if _is_rival(p, solver, spacing))
        if line:
            axes.plot(*zip(*line, strict=True), "o-", ms=3, lw=1, label=f"{solver}, {spacing}")
    learned = [p for p in points if p["learned"]]
    axes.plot([p["cost"] for p in learned], [p["error"] for p in learned], "k*", ms=10, label="learned")
    for point in learned:
        axes.annotate(
            f"{point['solver']}-{point['steps']}",
            (point["cost"], point["error"]),
            (6, 4),
            textcoords="offset points",
        )
    axes.set(
        xscale="log", yscale="log", xlabel="cost in full evaluations (MACs)", ylabel="error to the solution"
    )
    ticks = [6, 8, 10, 12, 15, 20, 30, 50]
    costs, errors = [p["cost"] for p in points], [p["error"] for p in points]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_yticks(levels := [0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2], [str(level) for level in levels])
    axes.set_xlim(min(costs) / 1.2, max(costs) * 1.2)
    axes.set_ylim(min(errors) / 1.3, max(errors) * 1.3)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def _is_rival(point: dict[str, Any], solver: str, spacing: str) -> bool:
    return not point["learned"] and (point["solver"], point["spacing"]) == (solver, spacing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the record and the plot beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="dit-mini-cifar10", help="default %(default)s")
    parser.add_argument(
        "--schedule", type=Path, action="append", default=[], help="a schedule file; repeatable"
    )
    parser.add_argument("--steps", default="6,8,10,12", help="steps of the rivals (default %(default)s)")
    parser.add_argument("--images", type=int, default=64, help="at least 2 (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/quality.json"), help="default %(default)s")
    options = parser.parse_args(arguments)
    try:
        benchmark = Benchmark(options.model, options.images, options.batch_size, options.out)
        for path in options.schedule:
            schedule = CacheSchedule.load(path)
            run = schedule.contract.run
            title = f"{run.solver}, {run.spacing}, {run.steps}"
            benchmark.measure(title, run.solver, run.spacing, run.steps, None)
            benchmark.measure(f"{path.stem}", run.solver, run.spacing, run.steps, schedule)
        for steps in (int(part) for part in options.steps.split(",") if part):
            for solver, spacing in RIVALS:
                benchmark.measure(f"{solver}, {spacing}, {steps}", solver, spacing, steps, None)
    except L2CError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 1
    plot(benchmark.points, options.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
