"""How does time grow with the fraction computed, with steps, pictures and tokens? By whole runs, plotted.

    python benchmarks/scaling.py --device cpu --out results/scaling-cpu.json

On a CPU with a model of the embedded DiT's size in float32; on a CUDA device with DiT-XL/2 in bfloat16, which is also
part `scaling` of `benchmarks/latency.py`. Weights are random, which makes no difference to time. The engine is the one
that `l2c.sample` takes there. Other fractions are masks that are random at every evaluation and layer, with copied
outputs, and take turns with everything computed in one process. One workload is in all four parts, timed anew in each:
that tells how far the figures can be trusted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import l2c
from l2c.allocator import keep_freed_memory
from l2c.bench.latency import measure_latency
from l2c.bench.runs import random_mask
from l2c.devices import resolve_device
from l2c.errors import DataError, L2CError
from l2c.files import atomic_write
from l2c.hosts.native import ModelHost
from l2c.layers import find_layers
from l2c.models import DiTConfig, model_config, random_model
from l2c.records import Record, describe_device
from l2c.report.figures import figure_png
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Sampler
from l2c.schedule.schedule import CacheSchedule

COMMAND = "benchmarks/scaling.py"
EVERYTHING = "everything"
SHARES = (0.8, 0.6, 0.4, 0.2, 0.0)

Panel = tuple[str, str, Mapping[str, Sequence[tuple[float, float]]]]
"""Labels of both axes, and points by the name of their curve."""


@dataclass(frozen=True)
class Plan:
    """What is measured on a device.

    Attributes:
        model: Name of the model.
        dtype: Of its weights.
        images: Pictures in a batch, where their number does not vary.
        steps: Evaluations, where their number does not vary.
        by_steps: Other numbers of evaluations.
        by_images: Pictures in a batch.
        resolutions: Sizes of the input whose tokens are compared.
        image_size: Size of the input elsewhere, if not the model's own.
    """

    model: str
    dtype: torch.dtype
    images: int
    steps: int
    by_steps: tuple[int, ...]
    by_images: tuple[int, ...]
    resolutions: tuple[int, ...]
    image_size: int | None = None

    def sampler(self, device: str, resolution: int | None = None) -> Sampler:
        """The model, for its own input or another, and DDIM."""
        config = model_config(self.model)
        assert isinstance(config, DiTConfig)
        config = replace(config, image_size=resolution or self.image_size or config.image_size)
        model = random_model(config, dtype=self.dtype, device=device, draw_on=device)
        return Sampler(Denoiser.of(model), "ddim", self.steps)


PLANS = {
    "cuda": Plan("dit-xl-2-256", torch.bfloat16, 8, 50, (10, 20, 50, 100), (1, 2, 4, 8, 16), (16, 32, 64)),
    "cpu": Plan("dit-mini-cifar10", torch.float32, 4, 20, (5, 10, 20, 40), (1, 2, 4, 8), (16, 32, 48)),
    "tiny": Plan("dit-mini-cifar10", torch.float32, 2, 4, (2, 4), (1, 2), (8, 16), image_size=8),
}
"""For GPUs that run CUDA graphs, for all else, and to see that everything works."""


@dataclass(frozen=True)
class Line:
    """The straight line nearest to points, by least squares.

    Attributes:
        slope: Of the line.
        fixed: Where it begins.
        worst: Largest distance of a point from it, as a share of the point.
    """

    slope: float
    fixed: float
    worst: float

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Line:
        """Fits the line to (x, y)."""
        x, y = torch.tensor(points, dtype=torch.float64).T
        slope, fixed = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution[:, 0]
        worst = ((slope * x + fixed - y) / y).abs().max()
        return cls(float(slope), float(fixed), float(worst))

    def __str__(self) -> str:
        """Seconds by the fraction computed."""
        share = self.fixed / (self.fixed + self.slope)
        return (
            f"{self.fixed:.4f} s + fraction of the MACs x {self.slope:.4f} s, off by at most {self.worst:.1%}; "
            f"the fixed part is {share:.1%} of everything"
        )


def measure(device: str, repetitions: int, tiny: bool = False) -> dict[str, Any]:
    """All of it, as plain data."""
    plan = PLANS["tiny" if tiny else "cuda" if torch.device(device).type == "cuda" else "cpu"]
    sampler = plan.sampler(device)
    by_fraction = [row.to_json() for row in measure_latency(
        ModelHost(sampler), masks(sampler), ["auto"], plan.images, repetitions
    )]  # fmt: skip
    points = [(row["macs_fraction"], row["median_s"]) for row in by_fraction]

    def everything(other: Sampler, images: int) -> dict[str, Any]:
        (row,) = measure_latency(ModelHost(other), {EVERYTHING: None}, ["auto"], images, repetitions)
        return row.to_json()

    return {
        "model": plan.model,
        "fraction": by_fraction,
        "line": asdict(Line.through(points)),
        "steps": [
            {"steps": steps, **everything(replace(sampler, steps=steps), plan.images)} for steps in plan.by_steps
        ],
        "pictures": [everything(sampler, images) for images in plan.by_images],
        "tokens": [tokens_row(plan, device, size, everything) for size in plan.resolutions],
    }  # fmt: skip


def masks(sampler: Sampler) -> dict[str, CacheSchedule | None]:
    """Everything, and random masks of smaller and smaller shares."""
    table = find_layers(sampler.denoiser.model)
    found: dict[str, CacheSchedule | None] = {EVERYTHING: None}
    for seed, share in enumerate(SHARES):
        found[f"{share:.0%}"] = on_mask(sampler, random_mask(table, sampler.steps, share, seed))
    return found


def on_mask(sampler: Sampler, compute: torch.Tensor) -> CacheSchedule:
    """A schedule for this model and solver with any mask and copied outputs."""
    fixed = l2c.methods.interval(sampler.denoiser.model, solver=sampler.solver, steps=sampler.steps, every=2)
    return replace(fixed, compute=compute, provenance={"method": "given mask"})


def tokens_row(plan: Plan, device: str, size: int, everything: Any) -> dict[str, Any]:
    """Everything computed at another resolution."""
    sampler = plan.sampler(device, size)
    config = sampler.denoiser.model.config
    return {"tokens": (size // config.patch_size) ** 2, **everything(sampler, plan.images)}


def show(results: Mapping[str, Any]) -> str:
    """The figures as text."""
    first = results["fraction"][0]
    lines = [
        f"{results['model']}, {first['images']} pictures, engine {first['engine']}: {Line(**results['line'])}"
    ]
    for name, x in (
        ("fraction", "macs_fraction"),
        ("steps", "steps"),
        ("pictures", "images"),
        ("tokens", "tokens"),
    ):
        for row in results[name]:
            value = f"{row[x]:.3f}" if name == "fraction" else f"{row[x]}"
            lines.append(
                f"{name:10}{value:>8}{row['median_s']:10.4f} s [{min(row['seconds']):.4f}, {max(row['seconds']):.4f}]"
            )
    return "\n".join(lines)


def panels(results: Mapping[str, Any]) -> list[Panel]:
    """What is plotted."""
    fit, first = results["line"], results["fraction"][0]
    seconds = f"seconds, {first['images']} pictures"
    straight = [(at, fit["fixed"] + at * fit["slope"]) for at in (0.0, 1.0)]
    measured = [(row["macs_fraction"], row["median_s"]) for row in results["fraction"]]
    return [
        ("fraction of the MACs", seconds, {"measured": measured, "straight line": straight}),
        ("evaluations", seconds, {"": [(row["steps"], row["median_s"]) for row in results["steps"]]}),
        ("pictures in a batch", "seconds", {"": [(row["images"], row["median_s"]) for row in results["pictures"]]}),
        ("tokens", seconds, {"": [(row["tokens"], row["median_s"]) for row in results["tokens"]]}),
    ]  # fmt: skip


def plot(drawn: Sequence[Panel], path: Path) -> None:
    """Draws panels side by side into a PNG file."""
    figure = Figure(figsize=(4 * len(drawn), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (x, y, curves) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        for name, points in curves.items():
            style = "-" if name == "straight line" else "o" if name == "measured" else "o-"
            axes.plot(*zip(*sorted(points), strict=True), style, label=name or None)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        if any(curves):
            axes.legend()
    atomic_write(path, figure_png(figure, 150))


def read_record(path: Path, command: str) -> Record:
    """The record that a benchmark wrote.

    Raises:
        DataError: If it cannot be read or is of another command.
    """
    record = Record.load(path)
    if record.command != command:
        raise DataError(f"{path} is a record of {record.command}; give one that {command} has written")
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the figures, writes the record and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="default: a GPU if there is one")
    parser.add_argument("--repetitions", type=int, default=5, help="timed rounds (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/scaling.json"), help="default %(default)s")
    parser.add_argument("--show", action="store_true", help="measure nothing, show the record")
    options = parser.parse_args(arguments)
    keep_freed_memory()  # as the program does
    try:
        if options.show:
            record = read_record(options.out, COMMAND)
        else:
            device = resolve_device(options.device)
            record = Record(
                COMMAND,
                {"repetitions": options.repetitions},
                results=measure(device, options.repetitions),
                device=describe_device(device),
            )
            record.save(options.out)
        print(show(record.results))
        plot(panels(record.results), options.out.with_suffix(".png"))
    except L2CError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
