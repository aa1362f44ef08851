"""What does learning do for the text-to-image pipeline that comes with l2c? Measured on prompts nothing was learned on.

    python benchmarks/quality_t2i.py              # everything, some hours on two cores
    python benchmarks/quality_t2i.py --quick      # one cost and half of the work, in about 25 minutes

Every variant draws the same prompts from the same noise, through the pipeline's own call. Their combinations of
objects were held out in the pipeline's training, and no picture was learned on. The error of a picture is the distance
of its latents to those of a run in fine steps (Heun's method, 200 evaluations), relative to their root mean square; the
cost is in full evaluations, counted in multiply-accumulates. Adherence is the share of the prompts' objects that the
picture shows as told.

- `plain`: the best of plain solvers: Euler, Heun, DPM-Solver++ of order 2 and 3 and UniPC, over shifts and spacings.
- `solver`: a solver that was learned, and reuses nothing. `learned`: solver, mask and forecasts learned together.
- `own`: the pipeline's own run of 28 steps for half and a third of the work, its solver kept.

Schedules and the fine run are kept in `--work`, and every point is recorded as soon as it is measured, so that an
interrupted run goes on where it was. `--show` prints verdicts and draws the plot from the record. `--folder` takes
another export of the pipeline; points of other weights are measured anew.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import l2c
import quality_t2i_report as report
from l2c.digest import digest
from l2c.errors import L2CError
from l2c.evaluation.metrics import rmse, ssim
from l2c.files import atomic_write
from l2c.learning.session import Progress, Session
from l2c.records import Record, describe_device
from l2c.scenes import CALL, PIPELINE, adherence, scene_prompts
from l2c.schedule.schedule import CacheSchedule
from quality_t2i_variants import KINDS, STEPS, Plan, Variant, plain

ROOT = Path(__file__).resolve().parents[1]
FIRST_SEED = (
    1_000_000  # of the pictures that are judged; learning draws its seeds at random, see `Host.examples`
)


class Benchmark:
    """Learns, samples and records, keeping what is done.

    Args:
        plan: What to learn and judge.
        folder: Of the pipeline, or its name.
        work: Folder for what is kept.
        out: The record.
    """

    def __init__(self, plan: Plan, folder: str, work: Path, out: Path) -> None:
        self.plan, self._work, self._out = plan, work, out
        self.pipe = l2c.load_pipeline(folder, quiet=True)
        self.prompts = scene_prompts(plan.images, held_out=True)
        self.seeds = tuple(range(FIRST_SEED, FIRST_SEED + plan.images))
        self.learning_prompts = scene_prompts(max(64, plan.examples))
        self.host = l2c.host_of(self.pipe, prompts=self.learning_prompts, **CALL)
        self.weights = self.host.identity["weights"]
        self.config = {
            "pipeline": PIPELINE,
            "weights": self.weights,
            "images": plan.images,
            "fine_evaluations": plan.fine_evaluations,
            "call": dict(CALL),
        }
        self.points: list[dict[str, Any]] = []
        if out.is_file():
            record = Record.load(out)
            self.points = record.results["points"] if record.config == self.config else []
        work.mkdir(parents=True, exist_ok=True)

    def variants(self) -> Iterator[Variant]:
        """Everything that is compared; learns what is not there, one after another."""
        plan = self.plan
        if "default" in plan.kinds:
            yield Variant("default", f"{STEPS} steps", STEPS, STEPS)
        for share in plan.shares if "own" in plan.kinds else ():
            schedule = self.learn(f"own-{share:.2f}", plan.settings(False), budget=share)
            yield Variant("own", f"own, {share:.2f}", STEPS * schedule.cost.fraction, STEPS, None, schedule)
        for cost in plan.costs:
            if "plain" in plan.kinds:
                yield from plain(self.host, self.pipe.scheduler, cost)
            settings = plan.settings(True)
            for kind, ratio in (("learned", None), ("solver", 1)):
                if kind not in plan.kinds:
                    continue
                schedule = self.learn(f"{kind}-{cost}", settings, evaluations=cost, per_computed=ratio)
                spent, steps = schedule.cost.fraction * schedule.num_evaluations, schedule.num_evaluations
                yield Variant(kind, f"{kind}, {cost}", spent, steps, None, schedule)

    def learn(self, name: str, settings: l2c.LearnSettings, **cost: Any) -> CacheSchedule:
        """A schedule that is learned on the learning prompts, or was; Ctrl-C keeps the checkpoint."""
        path = self._work / f"{name}-{digest([self.weights, asdict(settings), cost])}.safetensors"
        if path.is_file():
            return CacheSchedule.load(path)
        how: dict[str, Any] = {} if "budget" in cost else {"solver": "auto"}
        checkpoint, began = path.with_suffix(".checkpoint"), perf_counter()
        resumed = checkpoint.is_file()
        schedule = l2c.learn(
            self.host,
            **cost,
            **how,
            settings=settings,
            session=Session(checkpoint, solutions=self._work / "solutions"),
            on_progress=_progress(name),
        )
        if schedule.provenance["interrupted"]:
            raise KeyboardInterrupt
        seconds = None if resumed else round(perf_counter() - began, 1)  # of a part of it says nothing
        schedule = replace(schedule, provenance={**schedule.provenance, "seconds": seconds})
        schedule.save(path)
        checkpoint.unlink(missing_ok=True)
        return schedule

    def measure(self, variant: Variant) -> None:
        """All figures of a variant, unless the record has them."""
        of_schedule = "" if variant.schedule is None else _identity(variant.schedule)
        self.points = [p for p in self.points if p["name"] != variant.name or p["schedule"] == of_schedule]
        if any(point["name"] == variant.name for point in self.points):
            return
        latents = self.sample(variant.steps, variant.scheduler, variant.schedule)
        pictures, fine = self.decode(latents), self.solution
        judged = adherence((pictures + 1) / 2, self.prompts)
        figures = {
            "latents": rmse(latents, fine, "relative"),
            "pictures": rmse(pictures, self.decode(fine)),
            "ssim": ssim(pictures, self.decode(fine)),
        }
        point = {
            "kind": variant.kind,
            "name": variant.name,
            "schedule": of_schedule,
            "cost": round(variant.cost, 3),
            "learning_s": None if variant.schedule is None else variant.schedule.provenance["seconds"],
            **{key: [round(value, 5) for value in values.tolist()] for key, values in figures.items()},
            "objects_right": [sum(item.right for item in one.objects) for one in judged],
            "objects": [len(one.objects) for one in judged],
        }
        self.points.append(point)
        self.save()
        print(report.line(point), flush=True)

    @torch.no_grad()
    def sample(
        self,
        steps: int,
        scheduler: Any = None,
        schedule: CacheSchedule | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Latents (B, 4, 16, 16) of all prompts, or the first ones, by the pipeline's own call."""
        own, made = self.pipe.scheduler, []
        self.pipe.scheduler = own if scheduler is None else scheduler
        try:
            with nullcontext() if schedule is None else l2c.enable_cache(self.pipe, schedule):
                for rows in torch.arange(len(self.prompts))[:count].split(16):
                    noise = [torch.Generator().manual_seed(self.seeds[row]) for row in rows.tolist()]
                    call = {**CALL, "num_inference_steps": steps, "output_type": "latent", "generator": noise}
                    made.append(
                        self.pipe([self.prompts[row] for row in rows.tolist()], **call).images.float()
                    )
        finally:
            self.pipe.scheduler = own
        return torch.cat(made)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, 64, 64) in [-1, 1]."""
        vae = self.pipe.vae
        scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
        return torch.cat([vae.decode(part).sample for part in scaled.split(16)]).clamp(-1, 1)

    @cached_property
    def solution(self) -> Tensor:
        """Latents of the fine run, which has nothing of what is learned: Heun's method at the pipeline's shift."""
        from diffusers import FlowMatchHeunDiscreteScheduler

        path = self._work / f"solution-{digest([self.config, self.seeds])}.safetensors"
        if not path.is_file():
            heun = FlowMatchHeunDiscreteScheduler(shift=self.pipe.scheduler.config.shift)
            latents = self.sample(self.plan.fine_evaluations // 2, heun)
            atomic_write(path, safetensors.torch.save({"latents": latents.contiguous()}))
        return safetensors.torch.load_file(path)["latents"]

    def save(self) -> None:
        """Writes the record as far as it is."""
        Record(
            command="benchmarks/quality_t2i.py",
            config=self.config,
            seeds=self.seeds,
            results={
                "points": self.points,
                "verdicts": report.verdicts(self.points),
                "prompts": self.prompts,
                "learning_prompts": self.learning_prompts,
            },
            device=describe_device("cpu"),
        ).save(self._out)

    def draw(self, variants: Sequence[Variant], path: Path) -> None:
        """A sheet of the first pictures: the fine run, the default, and what is compared at the least cost."""
        count = report.SHOWN
        costs = [round(v.cost) for v in variants if v.kind in ("learned", "solver")]
        shown: dict[str, Tensor] = {
            "fine steps": self.solution,
            f"{STEPS} steps": self.sample(STEPS, count=count),
        }
        names = {v.name for v in variants if v.kind == "own"} | {f"solver, {STEPS // 2}"}
        for cost in sorted({*costs} & {8, 4}, reverse=True) or costs[:1]:
            known = [p for p in self.points if p["kind"] == "plain" and p["name"].endswith(f", {cost}")]
            names |= {f"solver, {cost}", f"learned, {cost}"}
            if known:
                names.add(min(known, key=report.error)["name"])
        for variant in sorted((v for v in variants if v.name in names), key=lambda it: -it.cost):
            shown[variant.name] = self.sample(variant.steps, variant.scheduler, variant.schedule, count)
        pictures = {name: self.decode(latents[:count]) for name, latents in shown.items()}
        report.sheet(pictures, self.prompts, path)


def _identity(schedule: CacheSchedule) -> str:
    tensors, header = schedule.pack()
    return digest(header["contract"]["run"], *(tensors[name] for name in sorted(tensors)))


def _progress(name: str) -> Any:
    def show(progress: Progress) -> None:
        if progress.iteration % 10 == 0 or progress.iteration == progress.iterations:
            error = "" if math.isnan(progress.error) else f", error {progress.error:.4f}"
            print(
                f"{name}, {progress.stage}: {progress.iteration} of {progress.iterations}{error}, "
                f"{progress.left_s:.0f} s left",
                file=sys.stderr,
            )

    return show


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints verdicts, and writes record, plot and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", default=PIPELINE, help="of the pipeline (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one cost and half of the work")
    parser.add_argument("--costs", type=int, nargs="+", help="only these, in evaluations")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", help="measure only these variants")
    for name in ("images", "iterations", "examples", "trials", "fine-evaluations"):
        parser.add_argument(f"--{name}", type=int, help=f"default {getattr(Plan(), name.replace('-', '_'))}")
    parser.add_argument("--threads", type=int, default=2, help="default %(default)s")
    parser.add_argument("--work", type=Path, default=ROOT / "l2c-quality-t2i", help="folder for what is kept")
    parser.add_argument("--out", type=Path, default=ROOT / "results/quality-t2i.json")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    plan = Plan.quick() if options.quick else Plan()
    given = {key: getattr(options, key) for key in asdict(plan) if getattr(options, key, None) is not None}
    plan = replace(plan, **{key: tuple(it) if isinstance(it, list) else it for key, it in given.items()})
    try:
        if options.show:
            points = Record.load(options.out).results["points"]
        else:
            benchmark = Benchmark(plan, options.folder, options.work, options.out)
            variants = []
            for variant in benchmark.variants():
                benchmark.measure(variant)
                variants.append(variant)
            points = benchmark.points
            benchmark.save()
            benchmark.draw(variants, options.out.with_name(f"{options.out.stem}-pictures.png"))
    except L2CError as error:
        print(f"quality_t2i: {error}", file=sys.stderr)
        return 1
    print(report.text(points))
    report.plot(points, options.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
