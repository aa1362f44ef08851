"""Is learning through a diffusers pipeline as good as learning natively? Measured on the embedded DiT.

    python benchmarks/pipeline_parity.py

The trained weights are sampled in two ways: by l2c, and as a `DiTTransformer2DModel` in a class-conditional diffusers
pipeline. `l2c.learn` learns in both with the same settings, from the same noise and labels, towards the same fine-step
solutions: a schedule for half of the work of DPM-Solver++(2M), and one that brings its own solver, for the cost of a
few evaluations.

All are judged by the same pictures, which nothing was learned on: a picture's error is its root mean square distance
to a solution in fine steps from the same noise, after clamping. What was learned through the pipeline is sampled by the
pipeline, what was learned natively by l2c. Intervals are paired bootstraps over the pictures.

Schedules and pictures in fine steps are kept in `--work` and not made again, so that an interrupted run goes on where
it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import l2c
from l2c.bootstrap import statistic_confidence_interval
from l2c.digest import digest
from l2c.errors import L2CError
from l2c.evaluation.metrics import rmse
from l2c.files import atomic_write
from l2c.hosts.base import Host
from l2c.hosts.pipeline.conditions import SeededConditions
from l2c.hosts.pipeline.host import PipelineHost
from l2c.learning.session import Progress
from l2c.models.conversion import to_diffusers
from l2c.records import Record, describe_device
from l2c.sampling import seeded_noise
from l2c.schedule.schedule import CacheSchedule

ROOT = Path(__file__).resolve().parents[1]
MODEL, SOLVER, GUIDANCE = "dit-mini-cifar10", "dpmsolver++", 1.5
FINE = {"solver": "dpmsolver++3", "spacing": "logsnr"}
FIRST_SEED = 1_000_000  # of the pictures that are judged; learning draws from seeds far below
CLASSES = 10
FIXED, FREE = "forecasts", "solver and forecasts"
TARGETS = {FIXED: 0.01, FREE: 0.02}
"""How far apart the errors of both ways may be, relatively."""


@dataclass(frozen=True)
class Plan:
    """What is learned and judged.

    Attributes:
        steps: Evaluations of the run with a known solver.
        budget: What its schedule may cost.
        evaluations: What a run with a learned solver may cost.
        images: Pictures that both are judged by.
        fine_steps: Evaluations of their solution.
        examples: Pictures that are learned on, and held out.
        batch_size: Pictures per iteration.
        iterations: Of learning.
        trials: Masks that are tried.
        reference_steps: Evaluations of what learning comes close to.
    """

    steps: int = 12
    budget: float = 0.5
    evaluations: int = 6
    images: int = 32
    fine_steps: int = 60
    examples: int = 16
    batch_size: int = 2
    iterations: int = 16
    trials: int = 8
    reference_steps: int = 30

    def settings(self, seed: int) -> l2c.LearnSettings:
        """Settings of learning, for either host."""
        return l2c.LearnSettings(
            iterations=self.iterations,
            batch_size=self.batch_size,
            num_examples=self.examples,
            trials=self.trials,
            trial_examples=min(4, self.examples),
            reference_steps=self.reference_steps,
            branches=False,  # both passes of guidance alike, in both ways
            seed=seed,
        )


class TwinHost(PipelineHost):
    """A pipeline that learns on the noise and labels of a native host."""

    twin: Host

    def examples(self, count: int, *key: int | str, held_out: int = 0) -> SeededConditions:
        """See `Host.examples`."""
        drawn: Any = self.twin.examples(count, *key, held_out=held_out)
        conditions = tuple(
            {"class_labels": [label], "latents": noise[None]}
            for label, noise in zip(drawn.labels.tolist(), drawn.noise, strict=True)
        )
        return SeededConditions(conditions, tuple(range(count)))


class Benchmark:
    """Learns in both ways, keeping what is done, and samples.

    Args:
        plan: What to learn and judge.
        work: Folder for what is kept.
    """

    def __init__(self, plan: Plan, work: Path) -> None:
        from diffusers import DPMSolverMultistepScheduler

        from l2c.testing.class_pipeline import ClassPipeline

        self.plan, self._work = plan, work
        self.model = l2c.load_model(MODEL)
        options = {"solver_order": 2, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
        self.pipe = ClassPipeline(to_diffusers(self.model), DPMSolverMultistepScheduler(**options))
        self.pipe.set_progress_bar_config(disable=True)
        self.call = {"num_inference_steps": plan.steps, "guidance_scale": GUIDANCE}
        self.seeds = tuple(range(FIRST_SEED, FIRST_SEED + plan.images))
        self.labels = [i % CLASSES for i in range(plan.images)]
        work.mkdir(parents=True, exist_ok=True)

    def hosts(self) -> tuple[Host, TwinHost]:
        """The model, and the pipeline that learns on the same examples."""
        native = l2c.host_of(self.model, solver=SOLVER, steps=self.plan.steps, guidance=GUIDANCE)
        piped = TwinHost(self.pipe, [{"class_labels": [0]}], self.call)
        piped.twin = native
        return native, piped

    def learn(self, host: Host, what: str, seed: int) -> CacheSchedule:
        """A schedule that is learned on a host, or was.

        Args:
            host: One of `hosts`.
            what: `FIXED` or `FREE`.
            seed: Of learning.
        """
        settings = self.plan.settings(seed)
        how: dict[str, Any] = {"settings": settings, "on_progress": _show}
        if what == FIXED:
            return self._kept(host, what, settings, lambda: l2c.learn(host, budget=self.plan.budget, **how))
        # One structure for both: where two are about as good, a rounding would choose.
        auto = {"solver": "auto", "evaluations": self.plan.evaluations, "per_computed": 2}
        return self._kept(host, what, settings, lambda: l2c.learn(host, **auto, **how))

    def sample_once(self, **options: Any) -> Tensor:
        """The pictures by l2c without a schedule (B, C, H, W)."""
        path = self._work / f"pictures-{digest([self.seeds, options])}.safetensors"
        if not path.is_file():
            pictures = {"pictures": self.sample(**options).contiguous()}
            atomic_write(path, safetensors.torch.save(pictures))
        return safetensors.torch.load_file(path)["pictures"]

    def sample(self, **options: Any) -> Tensor:
        """The pictures by l2c (B, C, H, W)."""
        return l2c.sample(self.model, self.labels, self.seeds, guidance=GUIDANCE, batch_size=16, **options)

    def sample_by_pipeline(self, schedule: CacheSchedule) -> Tensor:
        """The pictures by the pipeline (B, C, H, W), clamped as those by l2c are."""
        noise = seeded_noise(self.seeds, tuple(self.pipe.transformer.config[key] for key in _SHAPE))
        call, made = {**self.call, "num_inference_steps": schedule.contract.run.steps}, []
        with l2c.enable_cache(self.pipe, schedule):
            for rows in torch.arange(self.plan.images).split(16):
                labels = [self.labels[row] for row in rows.tolist()]
                made.append(self.pipe(labels, latents=noise[rows], **call)[0])
        return torch.cat(made).clamp(-1, 1)

    def _kept(
        self, host: Host, what: str, settings: l2c.LearnSettings, make: Callable[[], CacheSchedule]
    ) -> CacheSchedule:
        way = "pipeline" if isinstance(host, PipelineHost) else "native"
        key = digest([asdict(self.plan), GUIDANCE, asdict(settings)])
        path = self._work / f"{way}-{what.replace(' ', '-')}-{key}.safetensors"
        if not path.is_file():
            make().save(path)
        return CacheSchedule.load(path)


_SHAPE = ("in_channels", "sample_size", "sample_size")


def measure(plan: Plan, learning_seeds: Sequence[int], work: Path) -> Record:
    """Learns, samples and compares."""
    benchmark = Benchmark(plan, work)
    native, piped = benchmark.hosts()
    target = benchmark.sample_once(**FINE, steps=plan.fine_steps)
    plain = rmse(benchmark.sample_once(solver=SOLVER, steps=plan.steps), target)
    costs: dict[str, float] = {}
    by_seed: dict[str, dict[str, list[float]]] = {}
    for seed in learning_seeds:
        rows = by_seed[str(seed)] = {}
        for what in TARGETS:
            ours, theirs = benchmark.learn(native, what, seed), benchmark.learn(piped, what, seed)
            rows[f"{what}, native"] = rmse(benchmark.sample(schedule=ours), target).tolist()
            rows[f"{what}, pipeline"] = rmse(benchmark.sample_by_pipeline(theirs), target).tolist()
            for way, schedule in (("native", ours), ("pipeline", theirs)):
                costs[f"{what}, {way}"] = schedule.cost.fraction * schedule.num_evaluations
        for name, values in rows.items():
            print(f"learning seed {seed}: {name} {np.mean(values):.5f}", file=sys.stderr)
    errors = {
        name: np.mean([rows[name] for rows in by_seed.values()], axis=0).tolist()
        for name in next(iter(by_seed.values()))
    }
    return Record(
        command="benchmarks/pipeline_parity.py",
        config={
            "model": MODEL,
            "solver": SOLVER,
            "guidance": GUIDANCE,
            "learning_seeds": list(learning_seeds),
            **asdict(plan),
        },
        seeds=benchmark.seeds,
        results={
            "errors": {
                "everything computed": float(plain.mean()),
                **{name: float(np.mean(values)) for name, values in errors.items()},
            },
            "costs": costs,
            "ratios": {
                what: _ratio(errors[f"{what}, pipeline"], errors[f"{what}, native"]) for what in TARGETS
            },
            "errors_by_learning_seed": by_seed,
        },
        device=describe_device("cpu"),
    )


def _ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Ratio of two mean errors on the same pictures, with its interval at 95 %."""
    above, below = np.asarray(values), np.asarray(others)
    found = statistic_confidence_interval(
        len(above), lambda rows: float(above[rows].mean() / below[rows].mean()), resamples=2000
    )
    return asdict(found)


def table(results: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = []
    for name, error in results["errors"].items():
        cost = f" at cost {results['costs'][name]:.2f}" if name in results["costs"] else ""
        lines.append(f"{name:32}{error:9.5f}{cost}")
    for what, r in results["ratios"].items():
        interval = f"({r['low']:.4f} to {r['high']:.4f})"
        away = abs(r["value"] - 1)
        lines.append(f"{what}: pipeline / native {r['value']:.4f} {interval}: {away:.1%} apart; ")
        lines[-1] += f"the target is {TARGETS[what]:.0%}"
    return "\n".join(lines)


def _show(progress: Progress) -> None:
    print(
        f"{progress.stage}: {progress.iteration} of {progress.iterations}, error {progress.error:.4f}, "
        f"{progress.left_s:.0f} s left",
        file=sys.stderr,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the figures and writes the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in asdict(Plan()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help="default %(default)s")
    parser.add_argument("--learning-seeds", type=int, nargs="+", default=[0], help="draws of learning")
    parser.add_argument("--work", type=Path, default=ROOT / "l2c-parity", help="folder for what is kept")
    parser.add_argument("--out", type=Path, default=ROOT / "results/pipeline-parity.json")
    options = parser.parse_args(arguments)
    plan = Plan(**{name: getattr(options, name) for name in asdict(Plan())})
    try:
        record = measure(plan, options.learning_seeds, options.work)
        record.save(options.out)
    except L2CError as error:
        print(f"pipeline_parity: {error}", file=sys.stderr)
        return 1
    print(table(record.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
