"""How close to the exact solution is a picture for its cost? Learned schedules against every honest rival.

    python benchmarks/quality.py

Every variant starts from the same noise and labels, which nothing was learned on. The error of a picture is its
root mean square distance to a solution in fine steps (DPM-Solver++ of order 3, 150 evaluations evenly spaced in
log-SNR), with guidance 1.5; the cost is in full evaluations, counted in multiply-accumulates.

Part `curves`, for three pairs of a model and a solver: the schedule families that come with l2c, the same solver with
fewer steps, every n-th evaluation computed with copied and with Taylor-extrapolated outputs, and routers learned as in
the paper. Part `solvers`, on the DiT: schedules that were learned with their solver, against the best of fewer steps
over known solvers and spacings, and against plain fewer steps whose solver and spacing were learned in the same way.
Part `guidance`, on the DiT at the cost of 8: a schedule that was learned for a range of guidance scales, at four of
them, against the best of fewer steps there, and against schedules learned for one scale; half of the pictures.

Every variant is recorded as soon as it is done, and what the record has is not sampled again: an interrupted run
goes on where it was. `python benchmarks/quality.py --show` prints the tables and draws the plots from the record, and
`--pictures` draws a sheet of pictures for the least work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

import l2c
import quality_report as report
from l2c.digest import digest
from l2c.errors import L2CError
from l2c.evaluation.metrics import rmse
from l2c.files import atomic_write
from l2c.models import CIFAR10_CLASSES
from l2c.records import Record, describe_device
from l2c.report.pictures import to_pixels
from l2c.report.prompt_sheet import prompt_sheet
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src/l2c/assets"
LEARNED = ROOT / "results/schedules"
FIRST_SEED = 1_000_000  # learning draws its noise from one generator, never from the seeds of single pictures
GUIDANCE = 1.5
REFERENCE = {"solver": "dpmsolver++3", "spacing": "logsnr", "steps": 150}
BUDGETS = (0.9, 0.7, 0.5, 0.35, 0.25)
RIVALS = [
    ("unipc", "logsnr"),
    ("unipc", "linspace"),
    ("dpmsolver++", "logsnr"),
    ("dpmsolver++3", "logsnr"),
    ("dpmsolver++3", "karras"),
    ("dpmsolver++", "linspace"),
]
GUIDED_RIVALS = [pair for pair in RIVALS if pair[1] != "karras" and pair[0] != "dpmsolver++"] + [RIVALS[-1]]
"""Of which the best is among the best at every scale."""


@dataclass(frozen=True)
class Variant:
    """One way of sampling, with a schedule or without.

    Attributes:
        part: Name of a pair, or `solvers`.
        kind: What it is compared as.
        name: Unique in its part.
        cost: In full evaluations.
        model: Name of the model.
        options: Of `l2c.sample`.
        guidance: Its scale.
    """

    part: str
    kind: str
    name: str
    cost: float
    model: str
    options: dict[str, Any]
    guidance: float = GUIDANCE

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
        """Whether a point is of this variant."""
        mine = (self.part, self.name, self.schedule)
        return mine == (point["part"], point["name"], point["schedule"])


def curve(pair: report.Pair) -> Iterator[Variant]:
    """Everything that is compared for a pair."""
    network = l2c.load_model(pair.model)
    plain = {"solver": pair.solver, "steps": pair.steps}
    yield Variant(pair.name, "everything", "everything computed", pair.steps, pair.model, plain)
    family = ASSETS / f"{pair.name}.safetensors"
    if family.is_file():
        for schedule in ScheduleFamily.load(family):
            yield _scheduled(pair, "learned", f"learned {schedule.provenance['budget']:g}", schedule)
    for budget in BUDGETS:
        steps = round(budget * pair.steps)
        options = {"solver": pair.solver, "steps": steps}
        yield Variant(pair.name, "fewer steps", f"{steps} steps", steps, pair.model, options)
    for predictor in ("copy", "taylor-2"):
        for every in (2, 3, 4):
            schedule = l2c.methods.interval(
                network, solver=pair.solver, steps=pair.steps, every=every, predictor=predictor
            )
            yield _scheduled(pair, f"interval, {predictor}", f"every {every}, {predictor}", schedule)
    for path in sorted(LEARNED.glob(f"paper-{pair.name}-*.safetensors")):
        yield _scheduled(pair, "paper's preset", path.stem, CacheSchedule.load(path))


def _scheduled(pair: report.Pair, kind: str, name: str, schedule: CacheSchedule) -> Variant:
    cost = pair.steps * schedule.cost.fraction
    return Variant(pair.name, kind, name, cost, pair.model, {"schedule": schedule})


def solvers() -> Iterator[Variant]:
    """Everything that is compared at the same cost, whatever the solver."""
    for cost in report.COSTS:
        for kind, path in (
            ("learned", ASSETS / f"{report.DIT}-auto-{cost}.safetensors"),
            ("fewer steps, solver learned", LEARNED / f"{report.DIT}-plain-{cost}.safetensors"),
        ):
            if path.is_file():
                schedule = CacheSchedule.load(path)
                spent = schedule.num_evaluations * schedule.cost.fraction
                yield Variant("solvers", kind, path.stem, spent, report.DIT, {"schedule": schedule})
    for solver, spacing in RIVALS:
        for cost in report.COSTS:
            options = {"solver": solver, "spacing": spacing, "steps": cost}
            yield Variant("solvers", "fewer steps", f"{solver}, {spacing}, {cost}", cost, report.DIT, options)


def guided() -> Iterator[Variant]:
    """Everything that is compared at several guidance scales, at one cost."""
    cost, name = report.GUIDED_COST, f"{report.DIT}-auto-{report.GUIDED_COST}"
    known = {
        "learned for the range": ASSETS / f"{name}-guidance-1-5.safetensors",
        "learned for 1.5": ASSETS / f"{name}.safetensors",
        "learned for 5": LEARNED / f"{name}-guidance-5.safetensors",
    }
    for scale in report.GUIDANCE_SCALES:
        for kind, path in known.items():
            if path.is_file():
                schedule = CacheSchedule.load(path)
                spent = schedule.num_evaluations * schedule.cost.fraction
                named = f"{path.stem} at {scale:g}"
                yield Variant("guidance", kind, named, spent, report.DIT, {"schedule": schedule}, scale)
        for solver, spacing in GUIDED_RIVALS:
            options = {"solver": solver, "spacing": spacing, "steps": cost}
            named = f"{solver}, {spacing}, {cost} at {scale:g}"
            yield Variant("guidance", "fewer steps", named, cost, report.DIT, options, scale)


class Benchmark:
    """Samples variants one after another into a record that is written after each."""

    def __init__(self, images: int, batch_size: int, out: Path) -> None:
        self.config = {"images": images, "guidance": GUIDANCE, "reference": REFERENCE}
        self.seeds = tuple(range(FIRST_SEED, FIRST_SEED + images))
        self.labels = [i % 10 for i in range(images)]
        self.few = max(2, images // 2)  # where there are several guidance scales
        self.batch_size = batch_size
        self.out = out
        self.points: list[dict[str, Any]] = []
        self._read()
        self._models: dict[str, torch.nn.Module] = {}
        self._solutions: dict[tuple[str, float], torch.Tensor] = {}

    def measure(self, variant: Variant) -> None:
        """Error and cost of one variant, unless the record has them."""
        if any(map(variant.is_in, self.points)):
            return
        count = self.few if variant.part == "guidance" else None
        made = self._sample(variant.model, variant.options, count, variant.guidance)
        errors = rmse(made, self._solution(variant.model, variant.guidance)[: len(made)])
        point = {
            "part": variant.part,
            "kind": variant.kind,
            "name": variant.name,
            "schedule": variant.schedule,
            "cost": variant.cost,
            "error": errors.mean().item(),
            "standard_error": (errors.std() / len(errors) ** 0.5).item(),
            "p95": errors.quantile(0.95).item(),
            "worst": errors.max().item(),
            "guidance": variant.guidance,
        }
        self._read()
        self.points.append(point)
        self._save()
        print(f"{variant.part:45} {variant.name:40} {variant.cost:6.2f}  {errors.mean():.4f}", flush=True)

    def forget(self, part: str, variants: Sequence[Variant]) -> None:
        """Drops points of a part that are of none of these variants: of schedules that are no longer there."""
        self._read()
        kept = [p for p in self.points if p["part"] != part or any(variant.is_in(p) for variant in variants)]
        if kept != self.points:
            self.points = kept
            self._save()

    def draw(self, path: Path) -> None:
        """A sheet of the first ten pictures for the least work: fine steps, what was learned, and the best rival."""
        cost = min(report.COSTS)
        rows = {f"{REFERENCE['steps']} evaluations": self._solution(report.DIT)[:10]}
        for title, kind in (("learned", "learned"), ("best known solver", "fewer steps")):
            measured = [
                (point["error"], variant.options)
                for variant in solvers()
                for point in self.points
                if variant.kind == kind and variant.cost <= 1.02 * cost and variant.is_in(point)
            ]
            if measured:
                _, options = min(measured, key=lambda found: found[0])
                rows[f"{title},\nthe work of {cost}"] = self._sample(report.DIT, options, 10)
        names = [CIFAR10_CLASSES[label] for label in self.labels[:10]]
        atomic_write(path, prompt_sheet({title: to_pixels(part) for title, part in rows.items()}, names))

    def _save(self) -> None:
        Record(
            command="benchmarks/quality.py",
            config=self.config,
            seeds=self.seeds,
            results={"points": self.points},
            device=describe_device("cpu"),
        ).save(self.out)

    def _read(self) -> None:
        """What the record has by now, also from another process that measures other parts."""
        if self.out.is_file():
            record = Record.load(self.out)
            self.points = record.results["points"] if record.config == self.config else []

    def _solution(self, model: str, guidance: float = GUIDANCE) -> torch.Tensor:
        """The pictures in fine steps, kept beside the record since they take as long as many variants together."""
        key = model, guidance
        if key not in self._solutions:
            other, count, what = "", None, json.dumps([self.config, self.seeds])
            if guidance != GUIDANCE:
                other, count = f"-at-{guidance:g}", self.few
            path = self.out.with_name(f"{self.out.stem}-solution-{model}{other}.safetensors")
            if path.is_file():
                with safe_open(path, framework="pt") as file:
                    if (file.metadata() or {}).get("what") == what:
                        self._solutions[key] = file.get_tensor("pictures")
                        return self._solutions[key]
            self._solutions[key] = self._sample(model, REFERENCE, count, guidance)
            pictures = {"pictures": self._solutions[key].contiguous()}
            atomic_write(path, safetensors.torch.save(pictures, {"what": what}))
        return self._solutions[key]

    def _sample(
        self, model: str, options: dict[str, Any], count: int | None = None, guidance: float = GUIDANCE
    ) -> torch.Tensor:
        if model not in self._models:
            self._models[model] = l2c.load_model(model)
        return l2c.sample(
            self._models[model],
            self.labels[:count],
            self.seeds[:count],
            guidance=guidance,
            batch_size=self.batch_size,
            **options,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the record and the plot beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts: dict[str, Callable[[], Iterator[Variant]]] = {
        **{pair.name: (lambda pair=pair: curve(pair)) for pair in report.PAIRS},
        "solvers": solvers,
        "guidance": guided,
    }
    parser.add_argument("--part", choices=parts, action="append", help="repeatable; all by default")
    parser.add_argument("--images", type=int, default=64, help="at least 2 (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="default %(default)s")
    parser.add_argument("--limit", type=int, help="measure only so many variants of each part, for a try")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument(
        "--pictures", action="store_true", help="draw a sheet of those for the least work, too"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results/quality.json")
    options = parser.parse_args(arguments)
    try:
        benchmark = Benchmark(options.images, options.batch_size, options.out)
        for part in [] if options.show else options.part or parts:
            variants = list(parts[part]())
            benchmark.forget(part, variants)
            for variant in variants[: options.limit]:
                benchmark.measure(variant)
    except L2CError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 1
    print(report.tables(benchmark.points))
    if {point["part"] for point in benchmark.points} == set(parts):
        print(f"\n{report.summary(benchmark.points)}")
    if benchmark.points:
        report.plot(benchmark.points, options.out.with_suffix(".png"))
    if options.pictures:
        benchmark.draw(options.out.with_name(f"{options.out.stem}-pictures.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
