"""How close to the exact solution is a picture for its cost? Learned schedules against every honest rival.

    python benchmarks/quality.py

Every way of sampling starts from the same noise and labels, which nothing was learned on. The error of a picture is its
root mean square distance to a solution in fine steps (DPM-Solver++ of order 3, 150 evaluations evenly spaced in
log-SNR), with guidance 1.5; the cost is in full evaluations, counted in multiply-accumulates.

Part `curves`, for three pairs of a model and a solver: the schedule families that come with l2c, the same solver with
fewer steps, every n-th evaluation computed with copied and with Taylor-extrapolated outputs, and routers learned as in
the paper. Part `solvers`, on the DiT: schedules that were learned with their solver, against the best of fewer steps
over known solvers and spacings, and against plain fewer steps whose solver and spacing were learned in the same way.

Every way is recorded as soon as it is done, and what the record has is not sampled again, so that an interrupted run
goes on where it was. `python benchmarks/quality.py --show` prints the tables and draws the plots from the record.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors import safe_open

import l2c
from l2c.cache.family import ScheduleFamily
from l2c.cache.schedule import CacheSchedule
from l2c.errors import L2CError
from l2c.evaluation.metrics import rmse
from l2c.files import atomic_write
from l2c.learning.checkpoint import digest
from l2c.records import RunRecord, describe_device

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src/l2c/assets"
LEARNED = ROOT / "results/schedules"
FIRST_SEED = 1_000_000  # learning draws its noise from one generator, never from the seeds of single pictures
GUIDANCE = 1.5
REFERENCE = {"solver": "dpmsolver++3", "spacing": "logsnr", "steps": 150}
DIT, UVIT = "dit-mini-cifar10", "uvit-mini-cifar10"
BUDGETS = (0.9, 0.7, 0.5, 0.35, 0.25)
CURVE = (
    0.3,
    0.9,
)  # shares of the MACs between which a learned schedule must beat every rival that costs no less
RIVALS = [
    ("unipc", "logsnr"),
    ("unipc", "linspace"),
    ("dpmsolver++", "logsnr"),
    ("dpmsolver++3", "logsnr"),
    ("dpmsolver++3", "karras"),
    ("dpmsolver++", "linspace"),
]
COSTS = (12, 10, 8, 6)
RATIO_TARGETS = {12: 0.60, 10: 0.55, 8: 0.50, 6: 0.65}


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
    Pair(DIT, "ddim", 50, {0.5: 1.05, 0.35: 1.20}),
    Pair(DIT, "dpmsolver++", 20, {0.5: 1.05, 0.35: 1.50}),
    Pair(UVIT, "dpmsolver-singlestep", 50, {0.5: 1.10, 0.35: 1.40}),
)


@dataclass(frozen=True)
class Way:
    """One way of sampling.

    Attributes:
        part: Name of a pair, or `solvers`.
        kind: What it is compared as.
        name: Unique in its part.
        cost: In full evaluations.
        model: Name of the model.
        options: Of `l2c.sample`.
    """

    part: str
    kind: str
    name: str
    cost: float
    model: str
    options: dict[str, Any]

    @property
    def schedule(self) -> str:
        """Tells its schedule from others of the same name; empty where there is none."""
        if "schedule" not in self.options:
            return ""
        tensors, header = self.options["schedule"].pack()
        return digest(
            header["contract"]["run"], header["predictor"], *(tensors[name] for name in sorted(tensors))
        )

    def is_in(self, point: dict[str, Any]) -> bool:
        """Whether a point is of this way."""
        mine = (self.part, self.name, self.schedule)
        return mine == (point["part"], point["name"], point["schedule"])


def curve(pair: Pair) -> Iterator[Way]:
    """Everything that is compared for a pair."""
    network = l2c.load_model(pair.model)
    plain = {"solver": pair.solver, "steps": pair.steps}
    yield Way(pair.name, "everything", "everything computed", pair.steps, pair.model, plain)
    family = ASSETS / f"{pair.name}.safetensors"
    if family.is_file():
        for schedule in ScheduleFamily.load(family):
            yield _scheduled(pair, "learned", f"learned {schedule.provenance['budget']:g}", schedule)
    for budget in BUDGETS:
        steps = round(budget * pair.steps)
        options = {"solver": pair.solver, "steps": steps}
        yield Way(pair.name, "fewer steps", f"{steps} steps", steps, pair.model, options)
    for predictor in ("copy", "taylor-2"):
        for every in (2, 3, 4):
            schedule = l2c.methods.interval(network, pair.solver, pair.steps, every, predictor)
            yield _scheduled(pair, f"interval, {predictor}", f"every {every}, {predictor}", schedule)
    for path in sorted(LEARNED.glob(f"paper-{pair.name}-*.safetensors")):
        yield _scheduled(pair, "paper's preset", path.stem, CacheSchedule.load(path))


def _scheduled(pair: Pair, kind: str, name: str, schedule: CacheSchedule) -> Way:
    cost = pair.steps * schedule.cost.fraction
    return Way(pair.name, kind, name, cost, pair.model, {"schedule": schedule})


def solvers() -> Iterator[Way]:
    """Everything that is compared at the same cost, whatever the solver."""
    for cost in COSTS:
        for kind, path in (
            ("learned", ASSETS / f"{DIT}-auto-{cost}.safetensors"),
            ("fewer steps, solver learned", LEARNED / f"{DIT}-plain-{cost}.safetensors"),
        ):
            if path.is_file():
                schedule = CacheSchedule.load(path)
                spent = schedule.num_evaluations * schedule.cost.fraction
                yield Way("solvers", kind, path.stem, spent, DIT, {"schedule": schedule})
    for solver, spacing in RIVALS:
        for cost in COSTS:
            options = {"solver": solver, "spacing": spacing, "steps": cost}
            yield Way("solvers", "fewer steps", f"{solver}, {spacing}, {cost}", cost, DIT, options)


class Benchmark:
    """Samples ways one after another into a record that is written after each."""

    def __init__(self, images: int, batch_size: int, out: Path) -> None:
        self.config = {"images": images, "guidance": GUIDANCE, "reference": REFERENCE}
        self.seeds = tuple(range(FIRST_SEED, FIRST_SEED + images))
        self.labels = [i % 10 for i in range(images)]
        self.batch_size = batch_size
        self.out = out
        self.points: list[dict[str, Any]] = []
        self._read()
        self._models: dict[str, torch.nn.Module] = {}
        self._solutions: dict[str, torch.Tensor] = {}

    def measure(self, way: Way) -> None:
        """Error and cost of one way, unless the record has them."""
        if any(map(way.is_in, self.points)):
            return
        errors = rmse(self._sample(way.model, way.options), self._solution(way.model))
        point = {
            "part": way.part,
            "kind": way.kind,
            "name": way.name,
            "schedule": way.schedule,
            "cost": way.cost,
            "error": errors.mean().item(),
            "standard_error": (errors.std() / len(errors) ** 0.5).item(),
        }
        self._read()
        self.points.append(point)
        self._save()
        print(f"{way.part:45} {way.name:40} {way.cost:6.2f}  {errors.mean():.4f}", flush=True)

    def forget(self, part: str, ways: Sequence[Way]) -> None:
        """Drops points of a part that are of none of these ways: of schedules that are no longer there."""
        self._read()
        kept = [p for p in self.points if p["part"] != part or any(way.is_in(p) for way in ways)]
        if kept != self.points:
            self.points = kept
            self._save()

    def _save(self) -> None:
        RunRecord(
            command="benchmarks/quality.py",
            config=self.config,
            seeds=self.seeds,
            results={"points": self.points},
            device=describe_device("cpu"),
        ).save(self.out)

    def _read(self) -> None:
        """What the record has by now, also from another process that measures other parts."""
        if self.out.is_file():
            record = RunRecord.load(self.out)
            self.points = record.results["points"] if record.config == self.config else []

    def _solution(self, model: str) -> torch.Tensor:
        """The pictures in fine steps, kept beside the record since they take as long as many ways together."""
        if model not in self._solutions:
            path = self.out.with_name(f"{self.out.stem}-solution-{model}.safetensors")
            what = json.dumps([self.config, self.seeds])
            if path.is_file():
                with safe_open(path, framework="pt") as file:
                    if (file.metadata() or {}).get("what") == what:
                        self._solutions[model] = file.get_tensor("pictures")
                        return self._solutions[model]
            self._solutions[model] = self._sample(model, REFERENCE)
            pictures = {"pictures": self._solutions[model].contiguous()}
            atomic_write(path, safetensors.torch.save(pictures, {"what": what}))
        return self._solutions[model]

    def _sample(self, model: str, options: dict[str, Any]) -> torch.Tensor:
        if model not in self._models:
            self._models[model] = l2c.load_model(model)
        return l2c.sample(
            self._models[model],
            self.labels,
            self.seeds,
            guidance=GUIDANCE,
            batch_size=self.batch_size,
            **options,
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
            at = [p for p in own if p["kind"] == "learned" and p["cost"] <= 1.01 * share * pair.steps]
            if at:
                best = max(at, key=lambda point: point["cost"])
                lines.append(
                    f"  learned at cost {best['cost'] / pair.steps:.3f}: {best['error']:.4f} +- "
                    f"{best['standard_error']:.4f}, {best['error'] / full['error']:.2f} of that (target {target:.2f})"
                )
        lines.append(_beaten(pair, own))
    own = [point for point in points if point["part"] == "solvers"]
    for cost in COSTS:
        rivals = [p for p in own if p["kind"] == "fewer steps" and p["cost"] == cost]
        if not rivals:
            continue
        best = min(rivals, key=lambda point: point["error"])
        lines.append(f"cost {cost}: best of fewer steps {best['error']:.4f} ({best['name']})")
        for point in own:
            if point["kind"] != "fewer steps" and abs(point["cost"] - cost) < 0.02 * cost:
                target = f" (target {RATIO_TARGETS[cost]:.2f})" if point["kind"] == "learned" else ""
                lines.append(
                    f"  {point['kind']} at {point['cost']:.2f}: {point['error']:.4f} +- "
                    f"{point['standard_error']:.4f}, {point['error'] / best['error']:.2f} of that{target}"
                )
    return "\n".join(lines)


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
    figure.savefig(path, dpi=150)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the record and the plot beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts: dict[str, Callable[[], Iterator[Way]]] = {
        **{pair.name: (lambda pair=pair: curve(pair)) for pair in PAIRS},
        "solvers": solvers,
    }
    parser.add_argument("--part", choices=parts, action="append", help="repeatable; all by default")
    parser.add_argument("--images", type=int, default=64, help="at least 2 (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="default %(default)s")
    parser.add_argument("--limit", type=int, help="measure only so many ways of each part, for a try")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "results/quality.json")
    options = parser.parse_args(arguments)
    try:
        benchmark = Benchmark(options.images, options.batch_size, options.out)
        for part in [] if options.show else options.part or parts:
            ways = list(parts[part]())
            benchmark.forget(part, ways)
            for way in ways[: options.limit]:
                benchmark.measure(way)
    except L2CError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 1
    print(tables(benchmark.points))
    if benchmark.points:
        plot(benchmark.points, options.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
