"""Is learning through a diffusers pipeline as good as learning natively? Measured on the embedded DiT.

    python benchmarks/pipeline_parity.py

The trained weights are sampled with DPM-Solver++ in two ways: by l2c, and as a `DiTTransformer2DModel` in a
class-conditional diffusers pipeline. The forecasts of one mask, which computes everything at every second evaluation,
are learned in both, with the same settings: `l2c.fit_predictor` and the pipeline's own. Each draws its own
noise and labels; both come close to DPM-Solver++(3M), evenly spaced in log-SNR. Through the pipeline they are also
learned to come close to what its own scheduler makes, in as fine steps and, which is what learning does unasked, in as
many steps as the schedule is for.

Both are judged by the same pictures, which neither has learned on: a picture's error is its root mean square distance
to a solution in fine steps from the same noise, after clamping. What was learned through the pipeline is sampled by the
pipeline and, with the same coefficients, by l2c. Intervals are paired bootstraps over the pictures; how much the draws
of learning matter is seen from several learning seeds.

Schedules and pictures in fine steps are kept in `--work` and not made again, so that an interrupted run goes on where
it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from l2c.learning.session import Progress
from l2c.models.conversion import to_diffusers
from l2c.records import RunRecord, describe_device
from l2c.sampling import seeded_noise
from l2c.schedule.schedule import CacheSchedule

ROOT = Path(__file__).resolve().parents[1]
MODEL, SOLVER, GUIDANCE = "dit-mini-cifar10", "dpmsolver++", 1.5
FINE = {"solver": "dpmsolver++3", "spacing": "logsnr"}
FIRST_SEED = 1_000_000  # of the pictures that are judged; learning draws from seeds far below
CLASSES = 10
TARGET = 0.03


@dataclass(frozen=True)
class Plan:
    """What is learned and judged.

    Attributes:
        steps: Evaluations of a run.
        images: Pictures that both are judged by.
        fine_steps: Evaluations of their solution.
        pictures: Pictures that are learned on.
        batch_size: Pictures per iteration.
        iterations: Of learning.
        learning_rate: Of learning.
        reference_steps: Evaluations of what learning comes close to.
    """

    steps: int = 12
    images: int = 32
    fine_steps: int = 60
    pictures: int = 12
    batch_size: int = 2
    iterations: int = 16
    learning_rate: float = 4e-3
    reference_steps: int = 30

    @property
    def common(self) -> dict[str, Any]:
        """Settings that both kinds of learning have."""
        names = ("batch_size", "iterations", "learning_rate", "reference_steps")
        return {name: getattr(self, name) for name in names}


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

    def mask(self, predictor: str = "copy") -> CacheSchedule:
        """The native schedule that computes everything at every second evaluation, with nothing learned."""
        return l2c.methods.interval(self.model, SOLVER, self.plan.steps, 2, predictor)

    def learn_natively(self, seed: int) -> CacheSchedule:
        """Forecasts that were learned natively."""
        plan = self.plan
        # a quarter of `num_pictures` is held out
        settings = l2c.LearnSettings(**plan.common, num_pictures=plan.pictures * 4 // 3, seed=seed)
        return self._kept(
            "native",
            settings,
            lambda: l2c.fit_predictor(
                self.model, self.mask(), guidance=GUIDANCE, settings=settings, on_progress=_show
            ),
        )

    def learn_through_pipeline(
        self, seed: int, reference_solver: str | None = FINE["solver"], *, finely: bool = True
    ) -> CacheSchedule:
        """Forecasts that were learned through the pipeline.

        Args:
            seed: Of learning.
            reference_solver: What makes the reference; None for the pipeline's own scheduler.
            finely: In `reference_steps`, not in as many steps as the schedule is for.
        """
        conditions = [{"class_labels": [label]} for label in range(CLASSES)]
        settings = l2c.hosts.pipeline.FitSettings(
            **{**self.plan.common, **({} if finely else {"reference_steps": None})},
            num_runs=self.plan.pictures,
            num_held_out=1,
            reference_solver=reference_solver,
            seed=seed,
        )

        def make() -> CacheSchedule:
            mask = l2c.hosts.pipeline.interval(self.pipe, **conditions[0], every=2, **self.call)
            return l2c.hosts.pipeline.fit_predictor(
                self.pipe, mask, conditions, settings=settings, on_progress=_show, **self.call
            )

        return self._kept("pipeline", settings, make)

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
        made = []
        with l2c.enable_cache(self.pipe, schedule):
            for rows in torch.arange(self.plan.images).split(16):
                labels = [self.labels[row] for row in rows.tolist()]
                made.append(self.pipe(labels, latents=noise[rows], **self.call)[0])
        return torch.cat(made).clamp(-1, 1)

    def _kept(self, name: str, settings: Any, make: Callable[[], CacheSchedule]) -> CacheSchedule:
        what = digest([self.plan.steps, GUIDANCE, asdict(settings)])
        path = self._work / f"{name}-{settings.seed}-{what}.safetensors"
        if not path.is_file():
            make().save(path)
        return CacheSchedule.load(path)


_SHAPE = ("in_channels", "sample_size", "sample_size")


def ways(benchmark: Benchmark, seed: int) -> Iterator[tuple[str, Tensor]]:
    """What is compared for a seed of learning: names, and pictures (B, C, H, W)."""
    native, piped = benchmark.learn_natively(seed), benchmark.learn_through_pipeline(seed)
    yield "native", benchmark.sample(solver=SOLVER, steps=benchmark.plan.steps, schedule=native)
    moved = replace(native, predictor=piped.predictor)
    yield (
        "pipeline, sampled natively",
        benchmark.sample(solver=SOLVER, steps=benchmark.plan.steps, schedule=moved),
    )
    yield "pipeline", benchmark.sample_by_pipeline(piped)
    for finely, name in ((True, "its own scheduler in fine steps"), (False, "its own run")):
        other = benchmark.learn_through_pipeline(seed, None, finely=finely)
        yield f"pipeline, close to {name}", benchmark.sample_by_pipeline(other)


def measure(plan: Plan, learning_seeds: Sequence[int], work: Path) -> RunRecord:
    """Learns, samples and compares."""
    benchmark = Benchmark(plan, work)
    start = benchmark.mask(f"taylor-{l2c.LearnSettings().history - 1}")  # where learning begins
    plain = {"solver": SOLVER, "steps": plan.steps}
    target = benchmark.sample_once(**FINE, steps=plan.fine_steps)
    made = {
        "everything computed": benchmark.sample_once(**plain),
        "before learning": benchmark.sample(**plain, schedule=start),
    }
    errors = {name: rmse(pictures, target).tolist() for name, pictures in made.items()}
    by_seed: dict[str, dict[str, list[float]]] = {}
    for seed in learning_seeds:
        rows = by_seed[str(seed)] = {
            name: rmse(pictures, target).tolist() for name, pictures in ways(benchmark, seed)
        }
        for name, values in rows.items():
            print(f"learning seed {seed}: {name} {np.mean(values):.5f}", file=sys.stderr)
    for name in next(iter(by_seed.values())):
        errors[name] = np.mean([rows[name] for rows in by_seed.values()], axis=0).tolist()
    return RunRecord(
        command="benchmarks/pipeline_parity.py",
        config={
            "model": MODEL,
            "solver": SOLVER,
            "guidance": GUIDANCE,
            "cost": start.cost.fraction,
            "learning_seeds": list(learning_seeds),
            **asdict(plan),
        },
        seeds=benchmark.seeds,
        results={
            "errors": {name: float(np.mean(values)) for name, values in errors.items()},
            "ratios": {
                name: _ratio(errors[name], errors["native"]) for name in errors if name.startswith("pipeline")
            },
            "ratio_by_learning_seed": {
                seed: _ratio(rows["pipeline"], rows["native"]) for seed, rows in by_seed.items()
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
    lines = [f"{name:32}{error:9.5f}" for name, error in results["errors"].items()]
    found = {
        **{f"{name} / native": ratio for name, ratio in results["ratios"].items()},
        **{f"  learning seed {seed}": ratio for seed, ratio in results["ratio_by_learning_seed"].items()},
    }
    lines += [f"{name:38}{r['value']:7.4f} ({r['low']:.4f} to {r['high']:.4f})" for name, r in found.items()]
    away = abs(results["ratios"]["pipeline"]["value"] - 1)
    lines.append(f"{away:.1%} apart; the target is {TARGET:.0%}")
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
