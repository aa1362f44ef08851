"""How far is a learned schedule off when a LoRA is loaded, and what does a repair bring? Measured on the embedded DiT.

    python benchmarks/pipeline_repair.py

The trained weights are a `DiTTransformer2DModel` in a class-conditional diffusers pipeline. A schedule is learned for
it at half of the multiply-accumulates. Then a LoRA of random directions is fused into every attention, and three
schedules are judged with it on the same runs, with labels that nothing was learned on: that schedule as it is, repaired
by a few iterations (as `l2c repair` does), and one that is learned anew. Errors are root mean square distances to what
the pipeline makes with everything computed, relative. Seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import l2c
from l2c.errors import L2CError
from l2c.learning.session import Progress
from l2c.models.conversion import to_diffusers
from l2c.records import Record, describe_device
from l2c.schedule.schedule import CacheSchedule

ROOT = Path(__file__).resolve().parents[1]
MODEL, GUIDANCE = "dit-mini-cifar10", 1.5
JUDGED, LEARNED = (0, 1, 2, 3), (4, 5, 6, 7, 8, 9)
SEEDS = range(1_000_000, 1_000_002)  # of the runs that are judged; learning draws from seeds far below


@dataclass(frozen=True)
class Plan:
    """What is learned.

    Attributes:
        steps: Evaluations of a run.
        budget: Fraction of the multiply-accumulates.
        iterations: Of learning.
        examples: To learn on; a quarter is held out.
        trials: Masks to judge.
        repair_iterations: Of the repair.
        repair_examples: For the repair.
        rank: Of the LoRA.
        strength: Size of its change, in units of the weights that it changes.
    """

    steps: int = 8
    budget: float = 0.5
    iterations: int = 16
    examples: int = 8
    trials: int = 6
    repair_iterations: int = 4
    repair_examples: int = 4
    rank: int = 4
    strength: float = 0.5


def build(plan: Plan) -> tuple[Any, dict[str, Any]]:
    """The pipeline, and what it is called with."""
    from diffusers import DPMSolverMultistepScheduler

    from l2c.testing.class_pipeline import ClassPipeline

    options = {"solver_order": 2, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    model = to_diffusers(l2c.load_model(MODEL)).eval().requires_grad_(False)
    pipe = ClassPipeline(model, DPMSolverMultistepScheduler(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"num_inference_steps": plan.steps, "guidance_scale": GUIDANCE}


@torch.no_grad()
def fuse_lora(transformer: Any, plan: Plan) -> None:
    """Adds a LoRA of random directions to the attentions' weights, each as large as `strength` says."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in transformer.named_parameters():
        if ".attn1." in name and weight.ndim == 2:
            up, down = (torch.randn(size, plan.rank, generator=generator) for size in weight.shape)
            change = up @ down.T
            weight.add_(change, alpha=(plan.strength * weight.norm() / change.norm()).item())


def measure(plan: Plan) -> Record:
    """Learns, changes the pipeline, repairs, and judges."""
    pipe, call = build(plan)
    conditions = [{"class_labels": [label]} for label in LEARNED]
    judged = {"class_labels": list(JUDGED), **call}
    settings = l2c.LearnSettings(
        iterations=plan.iterations,
        batch_size=1,
        num_examples=plan.examples,
        trials=plan.trials,
        trial_examples=1,
        reference_steps=None,
    )
    took_s: dict[str, float] = {}

    def learn(name: str) -> CacheSchedule:
        began = time.process_time()
        schedule = l2c.learn(
            pipe, conditions=conditions, budget=plan.budget, settings=settings, on_progress=_show, **call
        )
        took_s[name] = time.process_time() - began
        return schedule

    def error(schedule: CacheSchedule) -> float:
        return l2c.check(pipe, schedule, seeds=list(SEEDS), **judged).error

    learned = learn("learned")
    errors = {"without the LoRA": error(learned)}
    bare = _sample(pipe, judged)
    fuse_lora(pipe.transformer, plan)
    moved = _sample(pipe, judged) - bare
    errors["with the LoRA"] = error(learned)
    began = time.process_time()
    few = replace(
        settings,
        iterations=plan.repair_iterations,
        num_examples=plan.repair_examples,
        learning_rate=2e-3,
    )
    repaired = l2c.repair(pipe, learned, conditions=conditions, settings=few, on_progress=_show, **call)
    took_s["repaired"] = time.process_time() - began
    errors["repaired"] = error(repaired)
    errors["learned anew"] = error(learn("learned anew"))
    return Record(
        command="benchmarks/pipeline_repair.py",
        config={
            "model": MODEL,
            "guidance": GUIDANCE,
            "solver": type(pipe.scheduler).__name__,
            **asdict(plan),
        },
        seeds=tuple(SEEDS),
        results={
            "errors": errors,
            "seconds": {name: round(value, 1) for name, value in took_s.items()},
            "change_by_the_lora": (moved.square().mean() / bare.square().mean()).sqrt().item(),
            "cost": learned.cost.fraction,
        },
        device=describe_device("cpu"),
    )


def _sample(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    made = [pipe(**call, generator=torch.Generator().manual_seed(seed))[0] for seed in SEEDS]
    return torch.cat(made)


def table(results: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"the LoRA changes what the pipeline makes by {results['change_by_the_lora']:.1%}"]
    lines += [f"error {name:20}{value:9.5f}" for name, value in results["errors"].items()]
    lines += [f"{name:26}{value:8.1f} s" for name, value in results["seconds"].items()]
    return "\n".join(lines)


def _show(progress: Progress) -> None:
    print(f"{progress.stage}: {progress.iteration} of {progress.iterations}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the figures and writes the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in asdict(Plan()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "results/pipeline-repair.json")
    options = parser.parse_args(arguments)
    plan = Plan(**{name: getattr(options, name) for name in asdict(Plan())})
    try:
        record = measure(plan)
        record.save(options.out)
    except L2CError as error:
        print(f"pipeline_repair: {error}", file=sys.stderr)
        return 1
    print(table(record.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
